"""Pictures from anywhere, opened without trusting them, brought to one size.

All stages see the same working image: upright, RGB, cropped about the centre to the aspect ratio of
``width`` x ``height`` and resized, never stretched. 840 x 630 is what SPEAR-VLM feeds MoGe, because
its scale depends on the input's size; the same crop is what the VLM sees later, so pixel positions
in answers mean the same in both.
"""

import hashlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from spear_ros.annotation.store import digest_of
from spear_ros.annotation.types import AnnotationError, FailureKind, WorkingImage
from spear_ros.core.errors import UserError
from spear_ros.core.types import FloatArray, ImageArray

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')
# Formats by content: nothing that can run code, load other files or is rarely tested.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF')


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSettings:
    """How pictures are opened."""

    width: int = 840
    height: int = 630
    min_side_px: int = 64
    """Smaller ones are refused: nothing can be told from them."""
    max_pixels: int = 100_000_000
    """More are refused before they are decoded (decompression bombs)."""
    max_bytes: int = 200 << 20

    def __post_init__(self) -> None:
        if not (16 <= self.width <= 4096 and 16 <= self.height <= 4096):
            raise UserError(
                f'image size {self.width}x{self.height}: each side must be 16 to 4096 pixels.'
            )


def find_images(folder: Path) -> list[str]:
    """Names of all files below a folder that do not begin with a dot, sorted.

    Files that are no pictures are listed as well: opening them counts them as failures, so that
    nothing vanishes silently. JSON and NumPy files (labels that lie beside) are left out.

    Raises:
        UserError: there is no such folder or nothing in it.
    """
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder of images.')
    names = sorted(_names(folder))
    if not names:
        raise UserError(f'{folder}: no file in it; give a folder of {", ".join(SUFFIXES)} images.')
    return names


def _names(folder: Path) -> Iterator[str]:
    for path in folder.rglob('*'):
        relative = path.relative_to(folder)
        hidden = any(part.startswith('.') for part in relative.parts)
        beside = path.suffix.lower() in ('.json', '.jsonl', '.npy', '.npz')
        if path.is_file() and not hidden and not beside:
            yield relative.as_posix()


def open_image(folder: Path, name: str, settings: ImageSettings) -> WorkingImage:
    """Open one picture.

    Raises:
        AnnotationError: unreadable, not a picture, damaged, too large or too small.
    """
    try:
        path = folder / name
        if path.stat().st_size > settings.max_bytes:
            raise AnnotationError(FailureKind.TOO_LARGE, f'more than {settings.max_bytes} bytes')
        blob = path.read_bytes()
    except OSError as error:
        raise AnnotationError(FailureKind.UNREADABLE, str(error.strerror), transient=True) from None
    return decode_image(blob, name, settings)


def decode_image(blob: bytes, name: str, settings: ImageSettings) -> WorkingImage:
    """Decode the bytes of one picture: see :func:`open_image`."""
    pixels = _decode(blob, settings)
    height, width = pixels.shape[:2]
    return WorkingImage(
        name=name,
        digest=image_digest(blob, settings),
        pixels=to_working(pixels, (settings.width, settings.height), smooth=True),
        original_size=(width, height),
    )


def image_digest(blob: bytes, settings: ImageSettings) -> str:
    """What ``WorkingImage.digest`` of these bytes will be; the picture is not decoded."""
    return digest_of('image', 1, hashlib.sha256(blob).hexdigest(), asdict(settings))


def crop_window(original: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Centre crop (left, top, width, height) of an original, with the aspect ratio of ``size``."""
    width, height = original
    ratio = size[0] / size[1]
    kept_w = min(width, max(1, round(height * ratio)))
    kept_h = min(height, max(1, round(width / ratio)))
    return (width - kept_w) // 2, (height - kept_h) // 2, kept_w, kept_h


def to_working(array: NDArray[Any], size: tuple[int, int], *, smooth: bool) -> NDArray[Any]:
    """Crop and resize an array (H, W, ...) of an original picture to (width, height) ``size``.

    ``smooth`` averages (pictures); without it the nearest value is taken (depth, masks).
    """
    left, top, width, height = crop_window((array.shape[1], array.shape[0]), size)
    cut = array[top : top + height, left : left + width]
    if (width, height) == size:
        return np.ascontiguousarray(cut)
    if smooth:
        area = width > size[0]
        method = cv2.INTER_AREA if area else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(cut, size, interpolation=method))
    rows = ((np.arange(size[1]) + 0.5) * height / size[1]).astype(int)
    columns = ((np.arange(size[0]) + 0.5) * width / size[0]).astype(int)
    return np.ascontiguousarray(cut[rows][:, columns])


def working_camera(K: FloatArray, original: tuple[int, int], size: tuple[int, int]) -> FloatArray:
    """Camera matrix (3, 3) of the working image from that of the original (first centre = 0)."""
    left, top, width, height = crop_window(original, size)
    sx, sy = size[0] / width, size[1] / height
    moved = np.array(K, float)
    moved[0] *= sx
    moved[1] *= sy
    moved[0, 2] = (K[0][2] - left + 0.5) * sx - 0.5
    moved[1, 2] = (K[1][2] - top + 0.5) * sy - 0.5
    return moved


def working_pixels(xy: FloatArray, original: tuple[int, int], size: tuple[int, int]) -> FloatArray:
    """Positions (..., 2) in the original as positions in the working image (may lie outside)."""
    left, top, width, height = crop_window(original, size)
    scale = np.array([size[0] / width, size[1] / height])
    return (np.asarray(xy, float) - (left, top) + 0.5) * scale - 0.5


def _decode(blob: bytes, settings: ImageSettings) -> ImageArray:
    from PIL import Image, ImageOps, UnidentifiedImageError

    Image.init()  # open() with a list of formats loads no plugin by itself
    try:
        with warnings.catch_warnings():
            # Size is checked here against our own limit; a warning would go unread.
            warnings.simplefilter('ignore')
            with Image.open(io.BytesIO(blob), formats=FORMATS) as image:
                _check_size(image.size, settings)
                upright = ImageOps.exif_transpose(image)
                return _to_rgb(upright)
    except UnidentifiedImageError:
        raise AnnotationError(FailureKind.NOT_AN_IMAGE, 'none of ' + ', '.join(FORMATS)) from None
    except Image.DecompressionBombError:
        raise AnnotationError(
            FailureKind.TOO_LARGE, f'more than {settings.max_pixels} pixels'
        ) from None
    except (OSError, ValueError, SyntaxError, TypeError, EOFError, IndexError, KeyError,
            OverflowError, AttributeError, MemoryError) as error:  # fmt: skip
        # Decoders of damaged files raise all of these.
        text = ' '.join(str(error).split())[:100]
        raise AnnotationError(FailureKind.DAMAGED_IMAGE, text or type(error).__name__) from None


def _check_size(size: tuple[int, int], settings: ImageSettings) -> None:
    width, height = size
    if width * height > settings.max_pixels:
        raise AnnotationError(
            FailureKind.TOO_LARGE, f'{width}x{height} is more than {settings.max_pixels} pixels'
        )
    if min(size) < settings.min_side_px:
        raise AnnotationError(
            FailureKind.TOO_SMALL, f'{width}x{height}: a side below {settings.min_side_px} pixels'
        )


def _to_rgb(image: 'Image') -> ImageArray:
    """Any mode to (H, W, 3) uint8; 16 bits keep their upper ones, alpha stands on white."""
    from PIL import Image

    if image.mode.startswith('I') or image.mode == 'F':
        values = np.asarray(image, np.float64)
        # Modes I and F say nothing of their range; 16-bit files come as 0 .. 65535.
        wide = image.mode.startswith('I;16') or values.max(initial=0.0) > 255
        top = 65535.0 if wide else 255.0
        grey = np.clip(np.nan_to_num(values) * (255.0 / top), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if 'A' in image.mode or 'transparency' in image.info:
        rgba = image.convert('RGBA')
        white = Image.new('RGBA', rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.array(image.convert('RGB'))
