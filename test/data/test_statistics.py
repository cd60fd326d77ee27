from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_ros.core.errors import UserError
from spear_ros.data.mixtures import Mixture, MixturePart
from spear_ros.data.statistics import (
    MixtureNumbers,
    Weighted,
    check_data_hash,
    collect,
    compute,
    load_norm_stats,
    norm_stats,
    sample_places,
    save_norm_stats,
    translation_deltas,
    weighted_quantile,
)
from spear_ros.processing.embodiments import default_action_specs

SPEC = default_action_specs()['widowx_bridge']


def mixture(**weights):
    parts = tuple(MixturePart(dataset=n, weight=w, weight_from='ours') for n, w in weights.items())
    return Mixture(name='m', weight_is='probability', parts=parts)


class Numbers:
    """A shard folder that only has numbers."""

    def __init__(self, name, numbers):
        self.card = type('Card', (), {'spec': SPEC, 'name': name})
        self.sizes = np.array([len(numbers) // 2, len(numbers) - len(numbers) // 2])
        self.content_hash = name
        self._numbers = numbers

    def __len__(self):
        return len(self._numbers)

    def numbers(self, shard, index):
        return self._numbers[index + shard * self.sizes[0]]


def numbers_with_steps(steps, valid=5):
    """(n, 6, 9) whose knots move by ``steps`` (n, 3) each."""
    numbers = np.zeros((len(steps), 6, 9))
    numbers[..., 3] = 1.0
    numbers[:, :, :3] = 0.4 + steps[:, None] * np.arange(6)[None, :, None]
    numbers[:, 1 : valid + 1, 8] = 1.0
    numbers[:, 0, 8] = 1.0
    return numbers


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=50), st.floats(0.01, 0.99))
def test_equal_weights_give_numpys_hazen_quantiles(values, q):
    column = np.array(values)[:, None]
    found = weighted_quantile(column, np.full(len(values), 0.3), q)
    np.testing.assert_allclose(found, np.quantile(column, q, axis=0, method='hazen'), atol=1e-12)


def test_a_weight_counts_like_repetition():
    values = np.random.default_rng(0).normal(size=(500, 1))
    weights = np.where(values[:, 0] > 0, 3.0, 1.0)
    repeated = np.concatenate([values, values[values[:, 0] > 0], values[values[:, 0] > 0]])
    for q in (0.01, 0.5, 0.99):
        a = weighted_quantile(values, weights, q)
        assert abs(a - np.quantile(repeated, q)) < 0.1


def test_deltas_are_taken_as_the_spec_says():
    numbers = numbers_with_steps(np.array([[0.01, 0.0, -0.02]]), valid=3)
    from_start = translation_deltas(numbers, SPEC)
    np.testing.assert_allclose(from_start[:, 0], [0.01, 0.02, 0.03])
    stepwise = translation_deltas(numbers, replace(SPEC, relative_to='previous_step'))
    np.testing.assert_allclose(stepwise[:, 0], [0.01, 0.01, 0.01])


def test_a_data_set_counts_by_its_probability_not_its_size():
    data = {
        'big': Numbers('big', numbers_with_steps(np.full((900, 3), 0.001))),
        'small': Numbers('small', numbers_with_steps(np.full((30, 3), 0.1))),
    }
    collected = collect(mixture(big=1.0, small=1.0), data, limit=10_000)
    mean = np.average(collected.translation.values, axis=0, weights=collected.translation.weights)
    np.testing.assert_allclose(mean, 3 * (0.001 + 0.1) / 2)
    assert collected.counted == {'big': 900, 'small': 30}


def test_the_three_kinds():
    rng = np.random.default_rng(0)
    data = {'a': Numbers('a', numbers_with_steps(rng.normal(scale=0.01, size=(4000, 3))))}
    collected = collect(mixture(a=1.0), data, limit=10_000)
    values = collected.translation.values
    quantile = norm_stats(collected, 'quantile', 'h')
    np.testing.assert_allclose(
        quantile.translation_low, np.quantile(values, 0.01, axis=0), atol=1e-4
    )
    np.testing.assert_allclose(
        quantile.translation_high, np.quantile(values, 0.99, axis=0), atol=1e-4
    )
    minmax = norm_stats(collected, 'minmax', 'h')
    np.testing.assert_array_equal(minmax.translation_low, values.min(axis=0))
    spread = norm_stats(collected, 'mean_std', 'h')
    np.testing.assert_allclose(spread.translation_high, values.std(axis=0))


def test_an_axis_that_never_moves_gets_the_smallest_range_about_its_middle():
    steps = np.random.default_rng(0).normal(scale=0.01, size=(100, 3)) * [1, 1, 0]
    data = {'a': Numbers('a', numbers_with_steps(steps))}
    stats = norm_stats(collect(mixture(a=1.0), data, limit=1000), 'quantile', 'h')
    assert stats.translation_high[2] - stats.translation_low[2] == pytest.approx(1e-3)
    assert stats.translation_high[2] == pytest.approx(5e-4)
    assert stats.position_low[0] == pytest.approx(0.4 - 5e-4)


def test_positions_that_mean_nothing_are_not_counted():
    numbers = numbers_with_steps(np.full((10, 3), 0.01))
    numbers[:5, 0, 8] = 0.0
    numbers[:5, :, :3] += 100.0
    collected = collect(mixture(a=1.0), {'a': Numbers('a', numbers)}, limit=100)
    assert collected.position.values.max() < 1
    assert len(collected.translation.values) == 50
    numbers[:, 0, 8] = 0.0
    with pytest.raises(UserError, match='not one sample has measured positions'):
        collect(mixture(a=1.0), {'a': Numbers('a', numbers)}, limit=100)


def test_a_limited_look_is_seeded_and_without_repetition():
    data = Numbers('a', numbers_with_steps(np.zeros((100, 3))))
    shards, index = sample_places(data, 30, seed=1)
    again = sample_places(data, 30, seed=1)
    np.testing.assert_array_equal(shards, again[0])
    np.testing.assert_array_equal(index, again[1])
    assert len(set(zip(shards.tolist(), index.tolist(), strict=True))) == 30
    assert (index < data.sizes[shards]).all()


def test_statistics_are_tied_to_their_data(tmp_path, make_shards):
    data = {'demo': make_shards(tmp_path / 'a')}
    parts = mixture(demo=1.0)
    stats = compute(parts, data)
    check_data_hash(stats, parts, data)
    save_norm_stats(tmp_path / 's.json', stats, parts)
    assert load_norm_stats(tmp_path / 's.json') == stats
    other = {'demo': make_shards(tmp_path / 'b', episodes=3)}
    with pytest.raises(UserError, match=f'data_hash is "{stats.data_hash}", but mixture m'):
        check_data_hash(stats, parts, other)


@pytest.mark.parametrize('text', ['{', '[]', '{"format": 7}'])
def test_a_file_that_holds_no_statistics_is_refused(tmp_path, text):
    (tmp_path / 's.json').write_text(text)
    with pytest.raises(UserError, match=r's\.json'):
        load_norm_stats(tmp_path / 's.json')


def test_numbers_that_are_not_finite_never_become_statistics():
    bad = Weighted(np.full((3, 3), np.nan), np.ones(3))
    with pytest.raises(UserError, match='not finite'):
        norm_stats(MixtureNumbers(translation=bad, position=bad, counted={}), 'minmax', 'h')
