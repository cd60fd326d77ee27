"""Metres to one of 1024 3D tokens and back, with bins that data fills about equally.

Distances and coordinates are close to normally distributed; even bins would spend most tokens on
values that never come. SPEAR-VLM therefore makes bins fine near the mean and wide in the tails so
that each token is used about equally often (arXiv 2511.17411): bin edges are quantiles, of data
(:meth:`SpatialBins.fit`) or of a normal distribution (:meth:`SpatialBins.normal`).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spear_ros.core.errors import UserError
from spear_ros.core.types import FloatArray
from spear_ros.processing.tokens import N_SPATIAL_TOKENS

MIN_SAMPLES_PER_BIN = 4
SCALE_TYPES = ('affine', 'metric')
"""Of lengths: metres, or another unknown unit in every picture. Never mixed in one table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpatialBins:
    """Bin edges and the value that each bin decodes to, in the unit of the data."""

    edges: tuple[float, ...]
    """(n - 1,) strictly increasing inner edges; the outer bins are open."""
    centres: tuple[float, ...]
    """(n,) medians of the bins."""

    def __post_init__(self) -> None:
        edges, centres = np.asarray(self.edges), np.asarray(self.centres)
        if len(centres) != len(edges) + 1 or not (
            np.isfinite(edges).all() and (np.diff(edges) > 0).all()
        ):
            raise UserError(
                f'spatial bins: {len(edges)} edges and {len(centres)} centres; edges must be '
                'finite and strictly increasing, one fewer than centres.'
            )
        if not ((centres[:-1] <= edges).all() and (centres[1:] >= edges).all()):
            raise UserError('spatial bins: a centre lies outside of its bin; fit the bins again.')

    @classmethod
    def fit(cls, samples: ArrayLike, n: int = N_SPATIAL_TOKENS) -> 'SpatialBins':
        """Quantile edges of data: every bin holds the same share of ``samples``.

        Raises:
            UserError: too few samples, or so many equal ones that edges coincide.
        """
        x = np.sort(np.asarray(samples, float).ravel())
        if len(x) < MIN_SAMPLES_PER_BIN * n or not np.isfinite(x).all():
            raise UserError(
                f'{len(x)} samples for {n} bins: give at least {MIN_SAMPLES_PER_BIN * n} finite '
                'values.'
            )
        edges = np.quantile(x, np.arange(1, n) / n)
        if not (np.diff(edges) > 0).all():
            raise UserError(
                f'{int((np.diff(edges) <= 0).sum())} of {n} bins would be empty because values '
                'repeat; give more varied samples or fewer bins.'
            )
        centres = np.quantile(x, (np.arange(n) + 0.5) / n)
        return cls(edges=tuple(map(float, edges)), centres=tuple(map(float, centres)))

    @classmethod
    def normal(cls, mean: float, std: float, n: int = N_SPATIAL_TOKENS) -> 'SpatialBins':
        """Quantile edges of a normal distribution, where there is no data yet."""
        law = NormalDist(mean, std)
        return cls(
            edges=tuple(law.inv_cdf(i / n) for i in range(1, n)),
            centres=tuple(law.inv_cdf((i + 0.5) / n) for i in range(n)),
        )

    def encode(self, x: ArrayLike) -> NDArray[np.int64]:
        """Bin of each value, 0 .. n - 1; same shape as ``x``. NaN is a programmer's error."""
        x = np.asarray(x, float)
        assert not np.isnan(x).any(), 'NaN has no bin'
        return np.searchsorted(np.asarray(self.edges), x, side='right').astype(np.int64)

    def decode(self, index: ArrayLike) -> FloatArray:
        """Median of each bin; same shape as ``index``."""
        return np.asarray(self.centres)[np.asarray(index)]

    def round_trip_error(self, x: ArrayLike) -> float:
        """Mean absolute difference between values and what their tokens decode to."""
        x = np.asarray(x, float)
        return float(np.abs(self.decode(self.encode(x)) - x).mean())


def read_bins(path: Path) -> tuple[SpatialBins, str]:
    """A table of bins (``bins.json``, in checkpoints ``spatial_bins.json``) and its scale type.

    Raises:
        UserError: missing or damaged.
    """
    try:
        data = json.loads(path.read_bytes())
        scale = data['scale_type']
        if scale not in SCALE_TYPES:
            raise ValueError(f'scale_type {scale!r}')
        bins = SpatialBins(edges=tuple(data['edges']), centres=tuple(data['centres']))
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = ' '.join(str(getattr(error, 'strerror', None) or error).split())[:120]
        raise UserError(f'{path}: no table of bins ({text}); annotate again.') from None
    return bins, scale
