"""3D tokens: bins that data fills equally, fine where data is dense."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_ros.core.errors import UserError
from spear_ros.processing.spatial_bins import SpatialBins, read_bins


def test_every_token_is_used_about_equally_often():
    rng = np.random.default_rng(0)
    bins = SpatialBins.fit(rng.normal(1.0, 0.4, 200_000))
    counts = np.bincount(bins.encode(rng.normal(1.0, 0.4, 400_000)), minlength=1024)
    assert counts.min() > 0.5 * 400_000 / 1024
    assert counts.max() < 2.0 * 400_000 / 1024


def test_fitted_and_analytic_bins_of_a_normal_law_agree():
    samples = np.random.default_rng(1).normal(0.5, 0.2, 500_000)
    fitted, exact = SpatialBins.fit(samples, 64), SpatialBins.normal(0.5, 0.2, 64)
    np.testing.assert_allclose(fitted.edges, exact.edges, atol=5e-3)


def test_bins_are_finer_at_the_mean_and_beat_even_bins():
    samples = np.random.default_rng(2).normal(0, 1, 100_000)
    bins = SpatialBins.normal(0, 1)
    widths = np.diff(bins.edges)
    assert widths[511] < widths[5] / 20
    even = np.linspace(-6, 6, 1025)
    even_bins = SpatialBins(edges=tuple(even[1:-1]), centres=tuple((even[1:] + even[:-1]) / 2))
    assert bins.round_trip_error(samples) < 0.75 * even_bins.round_trip_error(samples)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
@settings(deadline=None)
def test_tokens_decode_into_themselves_and_keep_the_order(values):
    bins = SpatialBins.normal(0.0, 1.0, 128)
    index = bins.encode(sorted(values))
    assert (np.diff(index) >= 0).all()
    assert ((index >= 0) & (index < 128)).all()
    np.testing.assert_array_equal(bins.encode(bins.decode(index)), index)


@pytest.mark.parametrize(
    ('samples', 'words'),
    [
        (np.arange(100.0), '100 samples'),
        (np.full(100_000, 0.3), 'empty because values repeat'),
        (np.append(np.arange(10_000.0), np.nan), 'finite'),
    ],
)
def test_data_that_gives_no_bins_is_refused(samples, words):
    with pytest.raises(UserError, match=words):
        SpatialBins.fit(samples)


def test_edges_out_of_order_are_refused():
    with pytest.raises(UserError, match='increasing'):
        SpatialBins(edges=(1.0, 0.5), centres=(0.0, 0.7, 2.0))
    with pytest.raises(UserError, match='outside of its bin'):
        SpatialBins(edges=(0.5, 1.0), centres=(0.0, 2.0, 2.0))


@pytest.mark.parametrize(
    'text',
    [
        None,
        '',
        '{"scale_type": "metric"}',
        '{"scale_type": "inches", "edges": [0.5], "centres": [0, 1]}',
        '{"scale_type": "metric", "edges": [0.5], "centres": [0.6, 1]}',
    ],
)
def test_a_table_that_says_nothing_is_refused_in_a_sentence(text, tmp_path):
    path = tmp_path / 'bins.json'
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError):
        read_bins(path)


def test_a_table_on_disk_keeps_bins_and_scale_type(tmp_path):
    bins = SpatialBins.normal(0.5, 0.2)
    data = {'scale_type': 'affine', 'edges': bins.edges, 'centres': bins.centres}
    (tmp_path / 'bins.json').write_text(json.dumps(data))
    assert read_bins(tmp_path / 'bins.json') == (bins, 'affine')
