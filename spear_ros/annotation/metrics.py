"""How good answers about pictures are: token accuracy, and errors in the unit of the labels.

An item is one question whose true numbers are known and the numbers that were told; families are
judged apart, as a point, a box and a place in the picture have no common error. Lengths of
different scale types must not be averaged: :func:`score` refuses them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spear_ros.annotation.box_geometry import SIGNS, iou
from spear_ros.annotation.questions import N_TOKENS
from spear_ros.annotation.types import OrientedBox
from spear_ros.core.errors import UserError
from spear_ros.core.types import FloatArray

POINTS = ('closest_point', 'furthest_point', 'centre_point', 'pixel')


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """One answered question; n numbers as the family has."""

    family: str
    scale_type: str
    truth: FloatArray
    """(n,) lengths, or shares of the picture (y, x, ...)."""
    told: FloatArray | None
    """(n,); None where the answer had other tokens than belong there."""
    right_tokens: float
    """Share of number tokens that are exactly those of the label."""
    low: FloatArray | None = None
    """(n,) 5 % quantiles of the network's own distribution, for coverage."""
    high: FloatArray | None = None
    truth_name: str = ''
    """Family ``closer``: the object that is closer."""
    told_name: str = ''


def score(items: Sequence[Judged]) -> dict[str, dict[str, float]]:
    """Figures of each family, by name.

    ``n``; ``token_accuracy``; ``malformed`` (share without an answer of the right form, which has
    no other figure); ``error_mean`` and ``error_median`` of points, box centres, distance vectors
    and places (Euclidean; places in shares of the picture); ``depth_error_mean`` of points, along
    the optical axis alone; ``vertex_error_mean`` and ``iou_mean`` of boxes; ``length_error_mean``
    of distances; ``right_name`` of the closer object; ``coverage``, the share of true numbers
    inside of the network's own 90 % interval.

    Raises:
        UserError: lengths of two scale types.
    """
    scales = {i.scale_type for i in items if i.scale_type}
    if len(scales) > 1:
        raise UserError(
            f'lengths of the scale types {" and ".join(sorted(scales))} have no common error; '
            'evaluate them apart.'
        )
    families: dict[str, list[Judged]] = {}
    for item in items:
        families.setdefault(item.family, []).append(item)
    return {family: _family(family, members) for family, members in sorted(families.items())}


def _family(family: str, items: Sequence[Judged]) -> dict[str, float]:
    good = [i for i in items if i.told is not None]
    figures = {
        'n': float(len(items)),
        'malformed': 1 - len(good) / len(items),
        'token_accuracy': float(np.mean([i.right_tokens for i in items])),
    }
    if not good:
        return figures
    truth = np.stack([i.truth for i in good])
    told = np.stack([np.asarray(i.told) for i in good])
    errors = _errors(family, truth, told)
    figures['error_mean'] = float(errors.mean())
    figures['error_median'] = float(np.median(errors))
    if family in POINTS:
        figures['depth_error_mean'] = float(np.abs(truth[:, 2] - told[:, 2]).mean())
    if family == 'box':
        figures |= box_figures(truth, told)
    if family == 'distance':
        lengths = [np.linalg.norm(x, axis=1) for x in (truth, told)]
        figures['length_error_mean'] = float(np.abs(lengths[0] - lengths[1]).mean())
    if family == 'closer':
        figures['right_name'] = float(np.mean([i.told_name == i.truth_name for i in good]))
    inside = [
        ((i.truth >= i.low) & (i.truth <= i.high)).mean()
        for i in good
        if i.low is not None and i.high is not None
    ]
    if inside:
        figures['coverage'] = float(np.mean(inside))
    return figures


def _errors(family: str, truth: FloatArray, told: FloatArray) -> FloatArray:
    """(N,) one error for each answer."""
    if family == 'box':
        truth, told = (x.reshape(-1, 8, 3).mean(1) for x in (truth, told))
    if family == 'projection':
        away = (truth - told).reshape(len(truth), -1, 2)
        return np.asarray(np.linalg.norm(away, axis=-1).mean(1))
    if family == 'closer':
        return np.asarray(np.abs(truth - told).mean(1))
    return np.asarray(np.linalg.norm(truth - told, axis=1))


def box_figures(truth: FloatArray, told: FloatArray) -> dict[str, float]:
    """Mean error of the vertices of boxes (N, 24) and mean overlap of the boxes they span."""
    away = np.linalg.norm((truth - told).reshape(len(truth), 8, 3), axis=-1)
    overlaps = [
        iou(box_of_vertices(a), box_of_vertices(b)) for a, b in zip(truth, told, strict=True)
    ]
    return {
        'vertex_error_mean': float(away.mean()),
        'iou_mean': float(np.mean(overlaps)),
        'iou_above_25_percent': float(np.mean(np.array(overlaps) > 0.25)),
    }


def box_of_vertices(vertices: FloatArray) -> OrientedBox:
    """The box (24 or (8, 3) numbers in canonical order) nearest to eight points that span none.

    Its edges are the mean edges of the points, made orthogonal by the closest rotation.
    """
    corners = np.asarray(vertices, float).reshape(8, 3)
    centre = corners.mean(axis=0)
    # Least squares: signs are orthogonal columns, so each mean edge stands alone.
    edges = 2 * SIGNS.T @ (corners - centre) / 8
    u, _, vt = np.linalg.svd(edges.T)
    axes = u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt)) or 1.0]) @ vt
    extents = np.maximum((axes * edges.T).sum(0), 0.0)
    return OrientedBox(centre=centre, axes=axes, extents=extents)


def constant_answers(
    families: Sequence[str], values: Sequence[FloatArray]
) -> Mapping[str, FloatArray]:
    """Per family, the median of every number over the training answers: what needs no picture.

    Answers with another count of numbers than the family has are left out.
    """
    grouped: dict[str, list[FloatArray]] = {}
    for family, numbers in zip(families, values, strict=True):
        if len(numbers) == N_TOKENS.get(family, 3):
            grouped.setdefault(family, []).append(np.asarray(numbers, float))
    return {family: np.median(np.stack(v), axis=0) for family, v in grouped.items()}
