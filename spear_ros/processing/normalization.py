"""Affine normalisation of metres to model units and back, for numpy arrays and torch tensors.

The kinds are those of the paper's Table 10 (arXiv 2511.17411): ``minmax`` constants, ``quantile``
(1st and 99th percentile over the whole mixture) and ``mean_std``. Values outside of the quantiles
are not clipped: a clipped target could not be composed back to the pose that was recorded.
Quaternions never come here.
"""

import math
from typing import Literal

from spear_ros.core.errors import UserError
from spear_ros.core.types import NormStats
from spear_ros.processing.arrays import Array, namespace

Kind = Literal['quantile', 'minmax', 'mean_std']
Triple = tuple[float, float, float]

# Narrower than this (metres) a range says that the axis never moved: dividing by it would turn
# sensor noise into full-scale actions.
MIN_RANGE_M = 1e-4


def normalize(x: Array, kind: Kind, low: Triple, high: Triple) -> Array:
    """Metres (..., 3) to model units (..., 3); see :class:`spear_ros.core.types.NormStats`."""
    assert x.shape[-1] == 3, x.shape
    if kind == 'mean_std':
        columns = [(x[..., i] - low[i]) / high[i] for i in range(3)]
    else:
        columns = [2.0 * (x[..., i] - low[i]) / (high[i] - low[i]) - 1.0 for i in range(3)]
    return namespace(x).stack(columns, -1)


def denormalize(x: Array, kind: Kind, low: Triple, high: Triple) -> Array:
    """Model units (..., 3) to metres (..., 3); inverse of :func:`normalize`."""
    assert x.shape[-1] == 3, x.shape
    if kind == 'mean_std':
        columns = [x[..., i] * high[i] + low[i] for i in range(3)]
    else:
        columns = [(x[..., i] + 1.0) * (0.5 * (high[i] - low[i])) + low[i] for i in range(3)]
    return namespace(x).stack(columns, -1)


def normalize_translation(x: Array, stats: NormStats) -> Array:
    """Translation deltas (..., 3) in metres to model units."""
    return normalize(x, stats.kind, stats.translation_low, stats.translation_high)


def denormalize_translation(x: Array, stats: NormStats) -> Array:
    """Model units (..., 3) to translation deltas in metres."""
    return denormalize(x, stats.kind, stats.translation_low, stats.translation_high)


def normalize_position(x: Array, stats: NormStats) -> Array:
    """Measured positions (..., 3), metres in the base frame, to model units."""
    return normalize(x, stats.kind, stats.position_low, stats.position_high)


def denormalize_position(x: Array, stats: NormStats) -> Array:
    """Model units (..., 3) to positions in metres."""
    return denormalize(x, stats.kind, stats.position_low, stats.position_high)


def normalize_gripper(opening: Array) -> Array:
    """Opening in [0, 1] to [-1, 1]: the range of the other inputs (limits 0 and 1 are exact)."""
    return 2.0 * opening - 1.0


def denormalize_gripper(value: Array) -> Array:
    """Model units to opening, 1 = open."""
    return 0.5 * (value + 1.0)


def binarize_gripper(opening: Array, threshold: float) -> Array:
    """Opening to exactly 1 (open) above ``threshold`` and 0 (closed) else; NaN stays NaN.

    A NaN must reach the safety gate instead of closing the gripper without a word.
    """
    xp = namespace(opening)
    binary = xp.where(opening > threshold, xp.ones_like(opening), xp.zeros_like(opening))
    return xp.where(opening != opening, opening, binary)


def check_norm_stats(stats: NormStats) -> None:
    """Refuse statistics that would divide by nothing or carry NaN.

    Raises:
        UserError: names the field, the axis and the values.
    """
    for name in ('translation', 'position'):
        low, high = getattr(stats, f'{name}_low'), getattr(stats, f'{name}_high')
        for axis, a, b in zip('xyz', low, high, strict=True):
            width = b if stats.kind == 'mean_std' else b - a
            if not (math.isfinite(a) and math.isfinite(b) and width >= MIN_RANGE_M):
                raise UserError(
                    f'norm_stats {name} {axis}: low {a} and high {b} ({stats.kind}) span less than '
                    f'{MIN_RANGE_M} m or are not finite; compute the statistics again from data '
                    'in which this axis moves.'
                )
