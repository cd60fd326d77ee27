"""Global normalisation figures over a mixture: ONE NormStats for all data sets and robots.

SPEAR-1 normalises with quantiles over the whole mixture, not per data set (arXiv 2511.17411); its
Table 10 compares min-max constants, the 99th quantile and mean-std, so all three are here. Every
data set counts by its probability in the mixture, not by its size. Only translation deltas (of all
valid knots, taken as the ActionSpec says) and measured positions are counted; rotations are never
normalised.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from spear_ros.core.config import from_mapping, to_mapping
from spear_ros.core.errors import UserError
from spear_ros.core.types import ActionSpec, FloatArray, NormStats
from spear_ros.data.episodes import IntArray
from spear_ros.data.mixtures import Mixture, mixture_hash, probabilities
from spear_ros.data.samples import TARGETS, VALID, P, stable_hash
from spear_ros.data.shards import ShardDataset, write_json
from spear_ros.processing.normalization import MIN_RANGE_M, check_norm_stats

Kind = Literal['quantile', 'minmax', 'mean_std']
LOW_Q, HIGH_Q = 0.01, 0.99
STATS_FORMAT = 1


class Weighted(NamedTuple):
    """Rows with weights."""

    values: FloatArray
    """(n, 3) m."""
    weights: FloatArray
    """(n,)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureNumbers:
    """What statistics are computed from."""

    translation: Weighted
    position: Weighted
    counted: Mapping[str, int]
    """Samples looked at, by data set."""


def sample_places(dataset: ShardDataset, limit: int, seed: int) -> tuple[IntArray, IntArray]:
    """Shard and index of at most ``limit`` samples, seeded, without repetition, in file order."""
    total = len(dataset)
    if total <= limit:
        chosen = np.arange(total)
    else:
        rng = np.random.default_rng([seed, stable_hash(dataset.card.name)])
        chosen = np.sort(rng.choice(total, limit, replace=False))
    edges = np.cumsum(dataset.sizes)
    shards = np.searchsorted(edges, chosen, side='right')
    return shards, chosen - (edges - dataset.sizes)[shards]


def sample_rows(dataset: ShardDataset, limit: int, seed: int) -> FloatArray:
    """Numbers (n, 1 + H, 9) of at most ``limit`` samples, spread evenly over all shards."""
    places = zip(*sample_places(dataset, limit, seed), strict=True)
    return np.stack([dataset.numbers(int(shard), int(index)) for shard, index in places])


def translation_deltas(numbers: FloatArray, spec: ActionSpec) -> FloatArray:
    """Deltas (m, 3) of all valid knots of (n, 1 + H, 9), as the spec takes them."""
    targets = numbers[:, TARGETS, P]
    if spec.relative_to == 'chunk_start':
        reference = numbers[:, :1, P]
    else:
        reference = numbers[:, :-1, P]
    return (targets - reference)[numbers[:, TARGETS, VALID] > 0.5]


def positions(numbers: FloatArray) -> FloatArray:
    """Measured positions (m, 3) of the samples in which they mean something."""
    return numbers[numbers[:, 0, VALID] > 0.5, 0, P]


def collect(
    mixture: Mixture, datasets: Mapping[str, ShardDataset], *, limit: int, seed: int = 0
) -> MixtureNumbers:
    """Gather weighted rows of a mixture, at most ``limit`` samples of each data set."""
    chances = probabilities(mixture, {name: len(d) for name, d in datasets.items()})
    deltas: list[tuple[FloatArray, FloatArray]] = []
    places: list[tuple[FloatArray, FloatArray]] = []
    counted: dict[str, int] = {}
    for name, chance in chances.items():
        numbers = sample_rows(datasets[name], limit, seed)
        counted[name] = len(numbers)
        for rows, found in (
            (deltas, translation_deltas(numbers, datasets[name].card.spec)),
            (places, positions(numbers)),
        ):
            if len(found):
                rows.append((found, np.full(len(found), chance / len(found))))
    return MixtureNumbers(
        translation=_join(mixture, 'translation deltas', deltas),
        position=_join(mixture, 'measured positions', places),
        counted=counted,
    )


def _join(mixture: Mixture, what: str, rows: list[tuple[FloatArray, FloatArray]]) -> Weighted:
    if not rows:
        raise UserError(f'mixture {mixture.name}: not one sample has {what}.')
    return Weighted(np.concatenate([r[0] for r in rows]), np.concatenate([r[1] for r in rows]))


def weighted_quantile(values: FloatArray, weights: FloatArray, q: float) -> FloatArray:
    """Quantile ``q`` of every column of (n, k), linear between the samples' centres of weight.

    With equal weights this is numpy's ``hazen`` method.
    """
    result = []
    for column in values.T:
        order = np.argsort(column, kind='stable')
        w = weights[order]
        centres = (np.cumsum(w) - 0.5 * w) / w.sum()
        result.append(np.interp(q, centres, column[order]))
    return np.array(result)


def bounds(rows: Weighted, kind: Kind) -> tuple[FloatArray, FloatArray]:
    """Low and high (3,) of a kind; see :class:`spear_ros.core.types.NormStats`."""
    values, weights = rows
    if kind == 'quantile':
        return weighted_quantile(values, weights, LOW_Q), weighted_quantile(values, weights, HIGH_Q)
    if kind == 'minmax':
        return values.min(axis=0), values.max(axis=0)
    mean = np.average(values, axis=0, weights=weights)
    return mean, np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weights))


def norm_stats(numbers: MixtureNumbers, kind: Kind, data_hash: str) -> NormStats:
    """Figures of a kind.

    An axis that hardly moves gets the smallest range that normalisation accepts, about its middle,
    so that one flat axis of a small set does not stop a training; ``spear data check`` names it.
    """
    low, high = bounds(numbers.translation, kind)
    position_low, position_high = bounds(numbers.position, kind)
    low, high = _widen(low, high, kind)
    position_low, position_high = _widen(position_low, position_high, kind)
    stats = NormStats(
        kind=kind,
        translation_low=_triple(low),
        translation_high=_triple(high),
        position_low=_triple(position_low),
        position_high=_triple(position_high),
        data_hash=data_hash,
    )
    check_norm_stats(stats)
    return stats


def compute(
    mixture: Mixture,
    datasets: Mapping[str, ShardDataset],
    kind: Kind = 'quantile',
    *,
    limit: int = 200_000,
) -> NormStats:
    """NormStats of a mixture, tied to its data by ``data_hash``."""
    numbers = collect(mixture, datasets, limit=limit)
    return norm_stats(numbers, kind, mixture_hash(mixture, datasets))


def save_norm_stats(path: Path, stats: NormStats, mixture: Mixture) -> None:
    """Write a JSON file that :func:`load_norm_stats` reads."""
    write_json(
        path,
        {'format': STATS_FORMAT, 'mixture': mixture.name, 'norm_stats': to_mapping(stats)},
    )


def load_norm_stats(path: Path) -> NormStats:
    """Read a file of ``spear data stats``; UserError where it is not one."""
    try:
        data = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f'{path}: cannot read the statistics ({error}).') from None
    if not isinstance(data, dict) or data.get('format') != STATS_FORMAT:
        raise UserError(f'{path}: not a file of "spear data stats" of format {STATS_FORMAT}.')
    stats = from_mapping(NormStats, data['norm_stats'], str(path))
    check_norm_stats(stats)
    return stats


def check_data_hash(
    stats: NormStats, mixture: Mixture, datasets: Mapping[str, ShardDataset]
) -> None:
    """Refuse statistics of other data.

    Raises:
        UserError: names ``data_hash`` with both values.
    """
    found = mixture_hash(mixture, datasets)
    if stats.data_hash != found:
        raise UserError(
            f'norm_stats data_hash is "{stats.data_hash}", but mixture {mixture.name} over this '
            f'data is "{found}"; compute the statistics again with "spear data stats".'
        )


def _widen(low: FloatArray, high: FloatArray, kind: Kind) -> tuple[FloatArray, FloatArray]:
    least = 10 * MIN_RANGE_M
    if kind == 'mean_std':
        return low, np.maximum(high, least)
    middle, half = 0.5 * (low + high), np.maximum(0.5 * (high - low), 0.5 * least)
    narrow = high - low < least
    return np.where(narrow, middle - half, low), np.where(narrow, middle + half, high)


def _triple(values: FloatArray) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z
