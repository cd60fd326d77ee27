"""New embedding rows follow the law of the trained ones."""

import pytest
import torch

from spear_ros.checkpoints.embeddings import draw_embeddings, embedding_law


def table(n=5000, width=8):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(width, width, generator=generator)
    return torch.randn(n, width, generator=generator) @ mix + torch.arange(width)


def test_mean_and_covariance_are_those_of_the_table():
    rows = table(40_000)  # more than one chunk
    mean, covariance = embedding_law(rows)
    torch.testing.assert_close(mean, rows.double().mean(0).float())
    torch.testing.assert_close(covariance, torch.cov(rows.double().T).float(), rtol=1e-4, atol=1e-4)


def test_full_scale_rows_have_the_tables_mean_and_covariance():
    rows = table()
    new = draw_embeddings(rows, 40_000, seed=1, covariance_scale=1.0)
    mean, covariance = embedding_law(rows)
    torch.testing.assert_close(new.mean(0), mean, atol=0.08, rtol=0)
    torch.testing.assert_close(torch.cov(new.T), covariance, atol=0.05 * covariance.max(), rtol=0.1)


def test_the_default_stays_at_the_mean_but_rows_differ():
    rows = table()
    new = draw_embeddings(rows, 1024, seed=1)
    assert (new - rows.mean(0)).abs().max() < 0.02 * rows.std()
    assert len(torch.unique(new, dim=0)) == 1024


def test_a_seed_gives_the_same_rows_and_the_type_of_the_table():
    rows = table().to(torch.bfloat16)
    a, b = (draw_embeddings(rows, 16, seed=3) for _ in range(2))
    assert a.dtype == torch.bfloat16
    assert torch.equal(a, b)
    assert not torch.equal(a, draw_embeddings(rows, 16, seed=4, covariance_scale=1.0))


@pytest.mark.parametrize('rows', [torch.ones(10, 4), torch.randn(3, 6)], ids=['constant', 'few'])
def test_a_table_without_full_rank_still_gives_finite_rows(rows):
    assert draw_embeddings(rows, 5, seed=0, covariance_scale=1.0).isfinite().all()
