"""Pictures with exact depth: the training data of a depth encoder.

A folder holds ``scenes-*.npz`` files of some hundred pictures each (no pickle inside): ``jpeg`` and
``png`` are the encoded pictures one after another, ``jpeg_ends`` and ``png_ends`` where each ends.
Depth is a 16-bit PNG in units of 0.1 mm (up to 6.55 m), 0 = nothing there; cameras are
pinholes without distortion, principal point in the centre, ``fov_y_rad`` their vertical view.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import cv2
import numpy as np
from numpy.typing import NDArray

from spear_ros.core.errors import UserError
from spear_ros.core.types import FloatArray, ImageArray
from spear_ros.data.episodes import decode_image_bytes

UNIT_M = 1e-4
FAR_M = 65535 * UNIT_M
SURFACE_STEP = 0.02
"""Neighbours whose depths differ by less, relatively, lie on one surface."""


class DepthPicture(NamedTuple):
    """One picture and what it shows."""

    image: ImageArray
    """(H, W, 3) uint8 RGB."""
    depth_m: FloatArray
    """(H, W) along the optical axis, 0 where nothing is."""
    fov_y_rad: float


def write_scenes(path: Path, pictures: Sequence[DepthPicture], jpeg_quality: int = 95) -> None:
    """Write one file; whole or not at all."""
    jpegs, pngs = [], []
    for picture in pictures:
        bgr = cv2.cvtColor(picture.image, cv2.COLOR_RGB2BGR)
        units = np.where(picture.depth_m < FAR_M, picture.depth_m, 0) / UNIT_M
        for blobs, suffix, data, options in (
            (jpegs, '.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]),
            (pngs, '.png', np.round(units).astype(np.uint16), []),
        ):
            ok, encoded = cv2.imencode(suffix, data, options)
            assert ok
            blobs.append(encoded)
    building = path.with_name(f'{path.name}.part')
    with open(building, 'wb') as stream:
        np.savez(
            stream,
            jpeg=np.concatenate(jpegs),
            png=np.concatenate(pngs),
            jpeg_ends=np.cumsum([len(b) for b in jpegs]),
            png_ends=np.cumsum([len(b) for b in pngs]),
            fov_y_rad=np.array([p.fov_y_rad for p in pictures]),
        )
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(building, path)


def shrink(picture: DepthPicture, size: tuple[int, int], name: str) -> DepthPicture:
    """Bring a picture to ``size`` (rows, columns), of which its own is a whole multiple.

    Colours are averaged. Depth is, where the pixels that become one lie on one surface; across an
    edge the nearest counts (no depth in between, where nothing is), and where half of them or more
    have no depth, there is none.

    Raises:
        UserError: another size; names it.
    """
    rows, columns = picture.depth_m.shape
    factor = rows // size[0]
    if factor < 1 or (factor * size[0], factor * size[1]) != (rows, columns):
        raise UserError(
            f'{name}: a picture of {columns}x{rows} cannot be brought to {size[1]}x{size[0]}; make '
            'the scenes with that --size or a whole multiple of it.'
        )
    if factor == 1:
        return picture
    image = cv2.resize(picture.image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    depth = picture.depth_m.reshape(size[0], factor, size[1], factor).swapaxes(1, 2)
    depth = depth.reshape(*size, factor * factor)
    known = depth > 0
    nearest = np.where(known, depth, np.inf).min(-1)
    even = known.all(-1) & (depth.max(-1) < (1 + SURFACE_STEP) * nearest)
    shrunk = np.where(even, depth.mean(-1), nearest)
    shrunk = np.where(2 * known.sum(-1) > factor * factor, shrunk, 0.0)
    return DepthPicture(image, shrunk, picture.fov_y_rad)


@dataclass(frozen=True, slots=True)
class _Blobs:
    """The encoded pictures of one file."""

    jpeg: NDArray[np.uint8]
    png: NDArray[np.uint8]
    jpeg_ends: NDArray[np.int64]
    png_ends: NDArray[np.int64]
    fov_y_rad: FloatArray


class DepthScenes:
    """All pictures of some folders, encoded in memory, decoded on request."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Read all files.

        Raises:
            UserError: a folder without scenes, or a damaged file.
        """
        self._files: list[_Blobs] = []
        self._places: list[tuple[int, int]] = []
        self.names: list[str] = []
        for folder in folders:
            paths = sorted(folder.glob('scenes-*.npz'))
            if not paths:
                raise UserError(f'{folder}: no scenes-*.npz; make them with "spear depth-scenes".')
            for path in paths:
                self._read(path)

    def _read(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as data:
                blobs = _Blobs(*(data[name] for name in _Blobs.__dataclass_fields__))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            text = ' '.join(str(error).split())[:100]
            raise UserError(f'{path}: damaged ({text}); delete it and make it again.') from None
        number = len(self._files)
        self._files.append(blobs)
        self._places += [(number, i) for i in range(len(blobs.fov_y_rad))]
        self.names += [f'{path}#{i}' for i in range(len(blobs.fov_y_rad))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> DepthPicture:
        """Decode one picture; UserError where it is damaged."""
        number, i = self._places[index]
        blobs, name = self._files[number], self.names[index]
        image = decode_image_bytes(_slice(blobs.jpeg, blobs.jpeg_ends, i).tobytes(), name)
        units = cv2.imdecode(_slice(blobs.png, blobs.png_ends, i), cv2.IMREAD_UNCHANGED)
        if units is None or units.dtype != np.uint16 or units.shape != image.shape[:2]:
            raise UserError(f'{name}: the depth is damaged; delete the file and make it again.')
        return DepthPicture(image, units * UNIT_M, float(blobs.fov_y_rad[i]))


def _slice(data: NDArray[np.uint8], ends: NDArray[np.int64], i: int) -> NDArray[np.uint8]:
    start = int(ends[i - 1]) if i else 0
    return data[start : int(ends[i])]
