"""Masks and depth that are there already: from a data set, a depth camera or a simulator."""

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from spear_ros.annotation.detectors import file_digest
from spear_ros.annotation.images import to_working, working_camera
from spear_ros.annotation.types import (
    SCALE_TYPES,
    AnnotationError,
    Detection,
    FailureKind,
    MaskArray,
    PointMap,
    WorkingImage,
)
from spear_ros.core.errors import UserError

MOST_METRES = 100.0
"""A metric picture whose median depth is greater is taken for one in millimetres."""


def check_stems(names: Sequence[str]) -> None:
    """Pictures that differ by their suffix alone would share their given labels.

    Raises:
        UserError: there are such; names two.
    """
    seen: dict[str, str] = {}
    for name in names:
        stem = Path(name).with_suffix('').as_posix()
        if stem in seen:
            raise UserError(
                f'{seen[stem]} and {name} would share the given labels of "{stem}"; rename one.'
            )
        seen[stem] = name


class GivenMasks:
    """``DIR/<picture's name without suffix>.png``: 8 or 16 bits, one channel, original size.

    Pixel value i (from 1) is the object of the i-th stored box; 0 is background.
    """

    name = 'segment-given'

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f'{folder}: no such folder of masks.')
        self._folder = folder

    def settings(self) -> Mapping[str, object]:
        """See Stage."""
        return {'version': 1}

    def digest(self, image: WorkingImage) -> str:
        """Digest of the file."""
        return file_digest(self._path(image))

    def segment(self, image: WorkingImage, detections: list[Detection]) -> list[MaskArray]:
        """See Segmenter; ``detections`` in the order of the stored boxes."""
        path = self._path(image)
        if not path.is_file():
            raise AnnotationError(FailureKind.NOTHING_GIVEN, f'no mask {path.name}')
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if labels is None or labels.ndim != 2:
            raise AnnotationError(FailureKind.BAD_MASK, f'{path.name} has not one channel')
        _same_size(labels.shape, image, path, FailureKind.BAD_MASK)
        size = (image.pixels.shape[1], image.pixels.shape[0])
        small = to_working(labels, size, smooth=False)
        return [small == d.number for d in detections]

    def _path(self, image: WorkingImage) -> Path:
        return (self._folder / image.name).with_suffix('.png')


class GivenDepth:
    """``DIR/<picture's name without suffix>.npz`` of the upright original picture.

    Arrays: ``depth`` (H, W) along the optical axis, 0 or not finite where unknown; ``K`` (3, 3) in
    pixels, the centre of the first one is (0, 0); ``scale`` the text ``metric`` or ``affine``.
    """

    name = 'depth-given'

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f'{folder}: no such folder of depth.')
        self._folder = folder

    def settings(self) -> Mapping[str, object]:
        """See Stage."""
        return {'version': 1}

    def digest(self, image: WorkingImage) -> str:
        """Digest of the file."""
        return file_digest(self._path(image))

    def estimate(self, image: WorkingImage) -> PointMap:
        """See DepthEstimator."""
        path = self._path(image)
        if not path.is_file():
            raise AnnotationError(FailureKind.NOTHING_GIVEN, f'no depth {path.name}')
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as data:
                depth, K = (np.asarray(data[name], float) for name in ('depth', 'K'))
                scale = str(data['scale'])
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile,
                zlib.error) as error:  # fmt: skip
            text = ' '.join(str(error).split())[:80]
            raise AnnotationError(FailureKind.BAD_DEPTH, f'{path.name}: {text}') from None
        if scale not in SCALE_TYPES or K.shape != (3, 3) or not _is_camera(K):
            raise AnnotationError(FailureKind.BAD_DEPTH, f'{path.name}: camera or scale "{scale}"')
        _same_size(depth.shape, image, path, FailureKind.BAD_DEPTH)
        known = depth[np.isfinite(depth) & (depth > 0)]
        if scale == 'metric' and len(known) and np.median(known) > MOST_METRES:
            middle = float(np.median(known))
            raise AnnotationError(
                FailureKind.BAD_DEPTH, f'{path.name}: {middle:.0f} metres in the median; mm?'
            )
        size = (image.pixels.shape[1], image.pixels.shape[0])
        camera = working_camera(K, image.original_size, size)
        return points_of_depth(to_working(depth, size, smooth=False), camera, scale)

    def _path(self, image: WorkingImage) -> Path:
        return (self._folder / image.name).with_suffix('.npz')


def points_of_depth(depth: np.ndarray, K: np.ndarray, scale: Any) -> PointMap:
    """Point map of a depth map (H, W) seen by a camera."""
    valid = np.isfinite(depth) & (depth > 0)
    z = np.where(valid, depth, 0.0)
    v, u = np.mgrid[0 : z.shape[0], 0 : z.shape[1]]
    x, y = (u - K[0, 2]) / K[0, 0] * z, (v - K[1, 2]) / K[1, 1] * z
    return PointMap(points=np.stack([x, y, z], axis=-1), valid=valid, K=np.array(K), scale=scale)


def _is_camera(K: np.ndarray) -> bool:
    return bool(np.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0 and K[0, 1] == 0)


def _same_size(shape: tuple[int, ...], image: WorkingImage, path: Path, kind: FailureKind) -> None:
    expected = image.original_size[::-1]
    if tuple(shape) != expected:
        raise AnnotationError(
            kind, f'{path.name} is {shape}, the picture {expected} (rows, columns)'
        )
