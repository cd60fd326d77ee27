"""Camera pictures to the networks' pixels, the same on CPU and GPU, never stretched.

A depth-aware encoder reads shape from perspective: stretching a picture to another aspect ratio
breaks the intrinsics that this rests on (arXiv 2511.17411). Therefore a picture is cropped about
its centre (``crop``, the default; loses the margins) or padded with black (``pad``; loses
resolution), and only then scaled, by antialiased bilinear interpolation in float32.

The result is in [0, 1]: both encoders are fed from this ONE picture, and the network applies each
one's affine map of pixel values itself (SigLIP: mean and deviation 0.5; MoGe: ImageNet's).
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from spear_ros.core.errors import UserError
from spear_ros.core.types import FloatArray

ImageFit = Literal['crop', 'pad']

# Below this the picture carries nothing; above it something is wrong with the message.
MIN_SIDE, MAX_SIDE = 16, 8192


class ImageSize(NamedTuple):
    """Rows and columns in pixels."""

    height: int
    width: int


EXTERNAL_SIZE = ImageSize(210, 280)
WRIST_SIZE = ImageSize(112, 112)
"""Sizes of the paper; a checkpoint carries its own in its model config."""


class Placement(NamedTuple):
    """How a picture is laid into the target: crop window, scaled size, margins; in pixels."""

    top: int
    left: int
    crop: ImageSize
    scaled: ImageSize
    pad_top: int
    pad_left: int


def place(source: ImageSize, target: ImageSize, fit: ImageFit) -> Placement:
    """Work out the largest centred window (crop) or the largest centred inset (pad).

    Crop windows are whole pixels, so the two axes' scales differ by less than one pixel in the
    window's size; :func:`fit_intrinsics` uses the exact scale of each axis.

    Raises:
        UserError: a side outside of 16..8192 pixels.
    """
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in source):
        raise UserError(
            f'image of {source.width} x {source.height} pixels: each side must lie between '
            f'{MIN_SIDE} and {MAX_SIDE}; check the camera driver.'
        )
    wide = source.width * target.height >= source.height * target.width
    if fit == 'crop':
        if wide:
            crop = ImageSize(source.height, round(source.height * target.width / target.height))
        else:
            crop = ImageSize(round(source.width * target.height / target.width), source.width)
        crop = ImageSize(max(1, crop.height), max(1, crop.width))
        top, left = (source.height - crop.height) // 2, (source.width - crop.width) // 2
        return Placement(top, left, crop, target, 0, 0)
    if wide:
        scaled = ImageSize(round(source.height * target.width / source.width), target.width)
    else:
        scaled = ImageSize(target.height, round(source.width * target.height / source.height))
    scaled = ImageSize(max(1, scaled.height), max(1, scaled.width))
    pad_top, pad_left = (target.height - scaled.height) // 2, (target.width - scaled.width) // 2
    return Placement(0, 0, source, scaled, pad_top, pad_left)


def fit_image(image: torch.Tensor, size: ImageSize, fit: ImageFit = 'crop') -> torch.Tensor:
    """Bring pictures to the network's size.

    Args:
        image: (..., H, W, 3) uint8 RGB, on any device.
        size: rows and columns of the result.
        fit: ``crop`` or ``pad``.

    Returns:
        (..., 3, height, width) float32 in [0, 1] on the same device.

    Raises:
        UserError: not uint8 RGB, or a side outside of the sane range.
    """
    if image.dtype != torch.uint8 or image.ndim < 3 or image.shape[-1] != 3:
        raise UserError(
            f'image of shape {tuple(image.shape)} and type {image.dtype}: expected (height, width, '
            '3) uint8 RGB; decode the message first.'
        )
    where = place(ImageSize(image.shape[-3], image.shape[-2]), size, fit)
    rows = slice(where.top, where.top + where.crop.height)
    columns = slice(where.left, where.left + where.crop.width)
    window = image[..., rows, columns, :].movedim(-1, -3).float() / 255.0
    flat = window.reshape(-1, *window.shape[-3:])
    if tuple(flat.shape[-2:]) != tuple(where.scaled):
        flat = F.interpolate(
            flat, size=tuple(where.scaled), mode='bilinear', antialias=True, align_corners=False
        )
    if where.scaled != size:
        right = size.width - where.scaled.width - where.pad_left
        bottom = size.height - where.scaled.height - where.pad_top
        flat = F.pad(flat, (where.pad_left, right, where.pad_top, bottom))
    return flat.reshape(*image.shape[:-3], *flat.shape[-3:])


def fit_intrinsics(
    K: FloatArray, source: ImageSize, target: ImageSize, fit: ImageFit = 'crop'
) -> FloatArray:
    """Camera matrix (3, 3) of the picture that :func:`fit_image` returns.

    Pixel centres are at whole numbers (OpenCV and ROS ``CameraInfo``), hence the half pixels.
    """
    where = place(source, target, fit)
    sx, sy = where.scaled.width / where.crop.width, where.scaled.height / where.crop.height
    fitted = np.array(K, dtype=float)
    fitted[0, 0] *= sx
    fitted[0, 1] *= sx
    fitted[1, 1] *= sy
    fitted[0, 2] = (K[0, 2] - where.left + 0.5) * sx - 0.5 + where.pad_left
    fitted[1, 2] = (K[1, 2] - where.top + 0.5) * sy - 0.5 + where.pad_top
    return fitted
