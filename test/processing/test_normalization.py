"""Normalisation is affine, exact in both directions, and refuses ranges that mean nothing."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_ros.core.errors import UserError
from spear_ros.core.types import NormStats
from spear_ros.processing.normalization import (
    binarize_gripper,
    check_norm_stats,
    denormalize,
    denormalize_gripper,
    normalize,
    normalize_gripper,
    normalize_position,
    normalize_translation,
)

STATS = NormStats(
    kind='quantile',
    translation_low=(-0.1, -0.2, -0.3),
    translation_high=(0.3, 0.2, 0.1),
    position_low=(0.2, -0.4, 0.0),
    position_high=(0.8, 0.4, 0.5),
)
floats = st.floats(-2, 2)
triples = st.tuples(floats, floats, floats)


@pytest.mark.parametrize('kind', ['quantile', 'minmax', 'mean_std'])
@given(x=triples, low=triples, width=st.tuples(*[st.floats(1e-3, 3)] * 3))
@settings(deadline=None)
def test_normalising_and_back_is_the_identity(kind, x, low, width):
    high = width if kind == 'mean_std' else tuple(a + w for a, w in zip(low, width, strict=True))
    x = np.array(x)
    np.testing.assert_allclose(
        denormalize(normalize(x, kind, low, high), kind, low, high), x, atol=1e-9
    )


def test_the_quantiles_become_minus_one_and_one_and_are_not_a_clip():
    ends = np.array([STATS.translation_low, STATS.translation_high, (0.7, 0.6, 0.5)])
    np.testing.assert_allclose(
        normalize_translation(ends, STATS), [[-1] * 3, [1] * 3, [3.0] * 3], atol=1e-12
    )


def test_mean_and_deviation_become_zero_and_one():
    stats = replace(STATS, kind='mean_std', position_low=(1, 2, 3), position_high=(0.5, 0.25, 2))
    rows = np.array([[1, 2, 3], [1.5, 2.25, 5]])
    np.testing.assert_allclose(normalize_position(rows, stats), [[0] * 3, [1] * 3])


def test_gripper_limits_map_to_the_ends_of_the_range():
    opening = np.array([0, 0.5, 1])
    np.testing.assert_array_equal(normalize_gripper(opening), [-1, 0, 1])
    np.testing.assert_array_equal(denormalize_gripper(normalize_gripper(opening)), opening)


def test_a_gripper_at_nan_neither_opens_nor_closes():
    binary = binarize_gripper(np.array([0.2, np.nan, 0.8]), 0.5)
    np.testing.assert_array_equal(binary, [0, np.nan, 1])


@pytest.mark.parametrize(
    ('field', 'value', 'words'),
    [
        ('translation_high', (0.3, -0.2, 0.1), ['translation y', '-0.2']),
        ('position_low', (0.2, float('nan'), 0.0), ['position y', 'nan']),
        ('position_high', (0.2, 0.4, 0.5), ['position x', '0.2']),
    ],
)
def test_ranges_without_width_are_refused_by_axis(field, value, words):
    with pytest.raises(UserError) as error:
        check_norm_stats(replace(STATS, **{field: value}))
    assert all(w in str(error.value) for w in words)


def test_sound_statistics_pass():
    check_norm_stats(STATS)
    check_norm_stats(replace(STATS, kind='mean_std', translation_high=(0.1, 0.1, 0.1)))
