"""From a mask and a point map to an oriented box, with every way to fail told apart."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import cv2
import numpy as np

from spear_ros.annotation.box_geometry import canonical
from spear_ros.annotation.types import (
    AnnotationError,
    FailureKind,
    MaskArray,
    OrientedBox,
    PointMap,
)
from spear_ros.core.errors import UserError
from spear_ros.core.types import FloatArray

BoxKind = Literal['pca', 'minimal']
BOX_KINDS: tuple[BoxKind, ...] = ('pca', 'minimal')


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxSettings:
    """How object points are cleaned and boxes fitted. Pixels of the working image."""

    kind: BoxKind = 'minimal'
    """The better one so far, on little data: doc/annotation.md."""
    erosion_px: int = 3
    """Depth at the border of a mask mixes object and background ("flying pixels")."""
    min_mask_in_box: float = 0.8
    """Share of a mask that lies in its detected box; less, and the two are of different things."""
    min_box_overlap: float = 0.4
    """Overlap (IoU) of the detected box and the mask's own; less where x and y are swapped, the
    numbers of masks are, or most of the object is hidden."""
    min_mask_px: int = 200
    """After erosion."""
    neighbours: int = 20
    outlier_sigma: float = 2.0
    """Open3D's statistical outlier removal, its usual numbers."""
    min_points: int = 50
    max_points: int = 20000
    min_thickness: float = 0.005
    """Least extent as a share of the greatest; flatter is coplanar and has no box."""

    def __post_init__(self) -> None:
        if self.kind not in BOX_KINDS:
            raise UserError(f'boxes: kind "{self.kind}" is none of {", ".join(BOX_KINDS)}.')

    def as_json(self) -> Mapping[str, object]:
        """Settings for the key of stored results."""
        return {'version': 3, **asdict(self)}


def require_agreement(
    mask: MaskArray, box_xyxy: tuple[float, float, float, float], settings: BoxSettings
) -> None:
    """Refuse a mask (H, W) that does not belong to its detected box, pixels of the same picture.

    Raises:
        AnnotationError: the mask is empty, or they disagree.
    """
    if not mask.any():
        raise AnnotationError(FailureKind.BAD_MASK, 'the mask is empty')
    x0, y0, x1, y1 = box_xyxy
    rows, columns = np.nonzero(mask)
    # A pixel counts by its centre, half a pixel inside of a box drawn round it.
    inside = (columns + 0.5 > x0) & (columns + 0.5 < x1) & (rows + 0.5 > y0) & (rows + 0.5 < y1)
    share = float(inside.mean())
    overlap = 0.0
    if inside.any():
        # Between quantiles: one stray pixel must not make the mask as wide as the picture.
        own_w, own_h = (np.ptp(np.quantile(x[inside], (0.01, 0.99))) + 1 for x in (columns, rows))
        overlap = float(own_w * own_h / max((x1 - x0) * (y1 - y0), 1.0))
    if share < settings.min_mask_in_box or overlap < settings.min_box_overlap:
        raise AnnotationError(
            FailureKind.BAD_MASK,
            f'{share:.0%} of the mask lies in its box and spans {overlap:.0%} of it',
        )


def object_points(points: PointMap, mask: MaskArray, settings: BoxSettings) -> FloatArray:
    """Points (N, 3) of one object: mask eroded, invalid and outlying points dropped.

    Raises:
        AnnotationError: tiny, without valid points, or with too few.
    """
    size = 2 * settings.erosion_px + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    # Beyond the border of the picture counts as outside: an object cut off there ends unknown.
    inner = cv2.erode(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT,
                      borderValue=0) > 0  # fmt: skip
    count = int(inner.sum())
    if count < settings.min_mask_px:
        raise AnnotationError(
            FailureKind.TINY_OBJECT,
            f'{count} pixels left after erosion, {settings.min_mask_px} are needed',
        )
    cloud = points.points[inner & points.valid]
    cloud = cloud[np.isfinite(cloud).all(axis=1)].astype(float)
    if len(cloud) == 0:
        raise AnnotationError(FailureKind.NO_VALID_POINTS, f'none of {count} pixels has a point')
    if len(cloud) > settings.max_points:
        # Evenly over the mask, and the same ones in every run.
        cloud = cloud[np.linspace(0, len(cloud) - 1, settings.max_points).astype(int)]
    if len(cloud) >= settings.min_points:
        cloud = remove_outliers(cloud, settings.neighbours, settings.outlier_sigma)
    if len(cloud) < settings.min_points:
        raise AnnotationError(
            FailureKind.TOO_FEW_POINTS, f'{len(cloud)} points, {settings.min_points} are needed'
        )
    return cloud


def remove_outliers(cloud: FloatArray, neighbours: int, sigma: float) -> FloatArray:
    """Drop points whose mean distance to their neighbours is far above the average of all.

    As Open3D's ``remove_statistical_outlier``: beyond mean + ``sigma`` standard deviations.
    """
    from scipy.spatial import cKDTree

    k = min(neighbours, len(cloud) - 1)
    if k < 1:
        return cloud
    distances, _ = cKDTree(cloud).query(cloud, k=k + 1)
    mean = distances[:, 1:].mean(axis=1)
    return cloud[mean <= mean.mean() + sigma * mean.std()]


def fit_box(cloud: FloatArray, settings: BoxSettings) -> OrientedBox:
    """Oriented box around points (N, 3), canonical axes.

    Raises:
        AnnotationError: too few points, or flat ones.
    """
    if len(cloud) < 4:
        raise AnnotationError(FailureKind.TOO_FEW_POINTS, f'{len(cloud)} points span no box')
    box = pca_box(cloud)
    _require_thickness(box, settings.min_thickness)
    if settings.kind == 'minimal':
        box = minimal_box(cloud)
        _require_thickness(box, settings.min_thickness)
    return canonical(box)


def pca_box(cloud: FloatArray) -> OrientedBox:
    """Box along the principal axes of points (N, 3)."""
    centred = cloud - cloud.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return _box_along(cloud, axes)


def minimal_box(cloud: FloatArray) -> OrientedBox:
    """Box of least volume among those with one side flush with a face of the convex hull.

    Within that side the rectangle is minimal too (one edge flush). The overall least box may touch
    by edges alone (O'Rourke 1985) and be a little smaller.

    Raises:
        AnnotationError: the points are coplanar.
    """
    from scipy.spatial import ConvexHull, QhullError

    try:
        hull = ConvexHull(cloud)
    except QhullError:
        raise AnnotationError(FailureKind.COPLANAR, 'the points lie in a plane') from None
    corners = cloud[hull.vertices]
    normals = hull.equations[:, :3]
    # Triangles of one flat side, and opposite sides, give the same box.
    normals = normals * np.where(normals @ np.array([1.0, 1e-3, 1e-6]) < 0, -1.0, 1.0)[:, None]
    _, first = np.unique(np.round(normals, 3), axis=0, return_index=True)
    best, least = None, np.inf
    for normal in normals[np.sort(first)]:
        box = _flush_box(corners, normal)
        size = float(np.prod(box.extents))
        if size < least:
            best, least = box, size
    assert best is not None
    return best


def _flush_box(corners: FloatArray, normal: FloatArray) -> OrientedBox:
    """Least box of hull corners (N, 3) with one axis along ``normal``."""
    helper = np.eye(3)[int(np.argmin(np.abs(normal)))]
    u = np.cross(normal, helper)
    u /= np.linalg.norm(u)
    v = np.cross(normal, u)
    flat = np.stack([corners @ u, corners @ v], axis=1)
    (_, _, angle_deg) = cv2.minAreaRect((flat - flat.mean(axis=0)).astype(np.float32))
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    return _box_along(corners, np.stack([c * u + s * v, -s * u + c * v, normal], axis=1))


def _box_along(cloud: FloatArray, axes: FloatArray) -> OrientedBox:
    """Box of points along given axes, made right-handed."""
    axes = axes * np.array([1.0, 1.0, np.sign(np.linalg.det(axes))])
    local = cloud @ axes
    low, high = local.min(axis=0), local.max(axis=0)
    return OrientedBox(centre=axes @ ((low + high) / 2), axes=axes, extents=high - low)


def _require_thickness(box: OrientedBox, share: float) -> None:
    least, greatest = float(box.extents.min()), float(box.extents.max())
    if not (np.isfinite(greatest) and greatest > 0 and least >= share * greatest):
        raise AnnotationError(
            FailureKind.COPLANAR, f'extents {np.round(box.extents, 5).tolist()} are too flat'
        )
