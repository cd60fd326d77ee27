"""Oriented boxes: one order of their vertices, exact overlap, projection.

The vertices of a box have no order of their own: 24 labelings of the axes describe the same box,
and box fitters return any of them (Open3D returned four different ones for twenty noisy copies of
one cloud). Here the box axes are named after the camera axes that they are closest to, and vertices
are listed near to far, top to bottom, left to right. The order flips only where an axis is midway
between two camera axes.
"""

from itertools import permutations, product

import numpy as np

from spear_ros.annotation.types import OrientedBox
from spear_ros.core.types import FloatArray

SIGNS = np.array([(x, y, z) for z, y, x in product((-1.0, 1.0), repeat=3)])
"""(8, 3) vertices in box axes: x changes fastest (left, right), then y (top, bottom), then z."""

_EDGES = np.array(
    [(a, b) for a in range(8) for b in range(a + 1, 8) if (SIGNS[a] != SIGNS[b]).sum() == 1]
)
_DIGITS = 9  # differences below this are rounding, and ties


def canonical(box: OrientedBox) -> OrientedBox:
    """The same box with axes named after the camera axes x, y, z that they are closest to.

    Of the six assignments the one with the greatest sum of |cosines| is taken and the axes turned
    so that cosines are positive. That sum is above 1 for every box, and a mirrored one (whose trace
    is at most 1) cannot reach it: the result is a rotation.
    """
    best: tuple[float, ...] | None = None
    chosen = box
    for order in permutations(range(3)):
        axes, extents = box.axes[:, order], box.extents[list(order)]
        cosines = np.diag(axes)
        signs = np.where(cosines < 0, -1.0, 1.0)
        flat = np.abs(cosines) < 10.0**-_DIGITS
        if flat.any() and np.linalg.det(axes * signs) < 0:
            signs[int(np.argmax(flat))] *= -1.0
        axes = axes * signs
        rank = (
            round(float(np.abs(cosines).sum()), _DIGITS),
            *np.round(axes, _DIGITS).ravel().tolist(),
        )
        if best is None or rank > best:
            best, chosen = rank, OrientedBox(centre=box.centre, axes=axes, extents=extents)
    return chosen


def vertices(box: OrientedBox) -> FloatArray:
    """Corners (8, 3) in the canonical order, camera frame."""
    box = canonical(box)
    return box.centre + (SIGNS * box.extents / 2) @ box.axes.T


def volume(box: OrientedBox) -> float:
    """Product of the extents."""
    return float(np.prod(box.extents))


def intersection_volume(first: OrientedBox, second: OrientedBox) -> float:
    """Volume that two boxes share, exact but for rounding.

    Every vertex of the common polyhedron lies on an edge of one box inside of the other one; the
    ends of all edges so clipped have it as their convex hull.
    """
    from scipy.spatial import ConvexHull, QhullError

    points = np.concatenate([_clipped_edges(first, second), _clipped_edges(second, first)])
    if len(points) < 4:
        return 0.0
    try:
        return float(ConvexHull(points).volume)
    except QhullError:
        return 0.0  # they touch in a point, an edge or a face


def iou(first: OrientedBox, second: OrientedBox) -> float:
    """Intersection over union of two boxes, 0 .. 1; exact, not sampled."""
    shared = intersection_volume(first, second)
    union = volume(first) + volume(second) - shared
    if union <= 0 or shared < 1e-8 * union:  # a common side has no volume
        return 0.0
    return float(min(shared / union, 1.0))


def contains(box: OrientedBox, points: FloatArray) -> np.ndarray:
    """Which of (N, 3) points lie in a box; (N,) bool."""
    local = (points - box.centre) @ box.axes
    return (np.abs(local) <= box.extents / 2).all(axis=-1)


def project(points: FloatArray, K: FloatArray) -> FloatArray:
    """Pixels (..., 2) of points (..., 3); NaN for those not in front of the camera."""
    uvw = np.asarray(points, float) @ np.asarray(K, float).T
    depth = np.where(uvw[..., 2:] > 1e-9, uvw[..., 2:], np.nan)
    return uvw[..., :2] / depth


def edges() -> np.ndarray:
    """Pairs (12, 2) of vertex numbers that share an edge, for drawing."""
    return _EDGES.copy()


def _clipped_edges(box: OrientedBox, by: OrientedBox) -> FloatArray:
    """Ends (N, 3) of the edges of one box inside of another one (Liang-Barsky)."""
    corners = box.centre + (SIGNS * box.extents / 2) @ box.axes.T
    local = (corners - by.centre) @ by.axes
    start, way = local[_EDGES[:, 0]], local[_EDGES[:, 1]] - local[_EDGES[:, 0]]
    # Sides that coincide are inside by a hair, or rounding would drop the edges on them.
    size = float(max(first.max() for first in (by.extents, np.abs(start), np.abs(way))))
    half = by.extents / 2 + 1e-10 * size
    with np.errstate(divide='ignore', invalid='ignore'):
        t1, t2 = (-half - start) / way, (half - start) / way
    parallel = np.abs(way) <= 1e-12 * size
    inside = np.abs(start) <= half
    low = np.where(parallel, np.where(inside, -np.inf, np.inf), np.minimum(t1, t2))
    high = np.where(parallel, np.where(inside, np.inf, -np.inf), np.maximum(t1, t2))
    enter, leave = np.maximum(low.max(axis=1), 0.0), np.minimum(high.min(axis=1), 1.0)
    hit = enter <= leave
    ends = np.concatenate([start[hit] + way[hit] * t[hit, None] for t in (enter, leave)])
    return by.centre + ends @ by.axes.T
