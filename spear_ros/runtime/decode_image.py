"""Camera messages to RGB arrays, without any message package.

Works on whatever has the fields of ``sensor_msgs/Image`` or ``sensor_msgs/CompressedImage``: rclpy
messages, ``rosbags`` messages, a test's namespace. Everything that a header claims is checked
before memory is taken for it. What comes out owns its memory, is C-contiguous, and was copied once.
"""

from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from spear_ros.core.errors import UserError
from spear_ros.core.reasons import Reason
from spear_ros.core.types import ImageArray

ByteArray = NDArray[np.uint8]

MAX_PIXELS = 50_000_000
"""No camera in use has more; a header that claims more is corrupt."""
MAX_COMPRESSED_BYTES = 64 << 20

# sensor_msgs/image_encodings.hpp: yuv422_yuy2 and yuyv are the same bytes (Y0 U Y1 V), so are
# uyvy and the old name yuv422 (U Y0 V Y1).
_BYTES_PER_PIXEL: Mapping[str, int] = {
    'rgb8': 3,
    'bgr8': 3,
    'rgba8': 4,
    'bgra8': 4,
    'yuv422_yuy2': 2,
    'yuyv': 2,
    'uyvy': 2,
    'yuv422': 2,
}
_CONVERSION: Mapping[str, int] = {
    'bgr8': cv2.COLOR_BGR2RGB,
    'rgba8': cv2.COLOR_RGBA2RGB,
    'bgra8': cv2.COLOR_BGRA2RGB,
    'yuv422_yuy2': cv2.COLOR_YUV2RGB_YUY2,
    'yuyv': cv2.COLOR_YUV2RGB_YUY2,
    'uyvy': cv2.COLOR_YUV2RGB_UYVY,
    'yuv422': cv2.COLOR_YUV2RGB_UYVY,
}
_NO_COLOUR = frozenset({'mono8', 'mono16', '8UC1', '16UC1', '16SC1', '32FC1', '64FC1'})

_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_PNG_END = b'IEND\xaeB`\x82'
_PNG_GREY = (0, 4)


class DecodeError(UserError):
    """A message whose content cannot be used; carries the reason code of what follows from it."""

    def __init__(self, text: str, reason: Reason = Reason.NONE) -> None:
        super().__init__(text)
        self.reason = reason


def decode_image(msg: Any, fallback: Callable[[Any], ImageArray] | None = None) -> ImageArray:
    """Turn a ``sensor_msgs/Image`` or ``CompressedImage`` into an RGB array.

    Raw encodings: rgb8, bgr8, rgba8, bgra8, yuv422_yuy2 (yuyv), uyvy (yuv422), with or without
    padding behind each row. Compressed: JPEG and PNG in colour; the orientation tag is ignored, the
    pixels stay as the camera made them.

    Args:
        msg: The message, duck-typed.
        fallback: Converter for encodings not listed above (the ROS layer passes cv_bridge's where
            that is installed); must return (H, W, 3) uint8 RGB.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous, writable, sharing no memory with the message.

    Raises:
        DecodeError: no colour, unknown encoding, sizes that do not fit together, corrupt data.
    """
    if hasattr(msg, 'encoding'):
        return _decode_raw(msg, fallback)
    if hasattr(msg, 'format'):
        return _decode_compressed(msg)
    raise DecodeError(
        f'message of type {type(msg).__name__} is not an image; '
        'set this camera to a sensor_msgs/Image or sensor_msgs/CompressedImage topic.'
    )


def _decode_raw(msg: Any, fallback: Callable[[Any], ImageArray] | None) -> ImageArray:
    encoding, width, height = str(msg.encoding), int(msg.width), int(msg.height)
    _check_size(width, height)
    if encoding in _NO_COLOUR:
        raise DecodeError(
            f'encoding "{encoding}" has no colour; set the camera topic to the colour stream '
            f'({", ".join(_BYTES_PER_PIXEL)}).'
        )
    if encoding not in _BYTES_PER_PIXEL:
        return _convert_exotic(msg, encoding, fallback)
    pixels = _rows(msg, width, height, _BYTES_PER_PIXEL[encoding])
    if encoding == 'rgb8':
        return pixels.copy()
    if _BYTES_PER_PIXEL[encoding] == 2 and width % 2:
        raise DecodeError(
            f'width {width} is odd, but "{encoding}" stores pixels in pairs; the header is corrupt.'
        )
    return np.asarray(cv2.cvtColor(pixels, _CONVERSION[encoding]), np.uint8)


def _convert_exotic(
    msg: Any, encoding: str, fallback: Callable[[Any], ImageArray] | None
) -> ImageArray:
    if fallback is None:
        raise DecodeError(
            f'encoding "{encoding}" is not supported; set the camera driver to one of '
            f'{", ".join(_BYTES_PER_PIXEL)}, or use its compressed topic.'
        )
    try:
        image = fallback(msg)
    except Exception as error:
        text = ' '.join(str(error).split())
        raise DecodeError(f'encoding "{encoding}" could not be converted ({text}).') from None
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DecodeError(
            f'the converter of encoding "{encoding}" gave {image.dtype} {image.shape} '
            'instead of uint8 (H, W, 3).'
        )
    return np.array(image, order='C')


def _check_size(width: int, height: int) -> None:
    if width <= 0 or height <= 0:
        raise DecodeError(
            f'image size {width} x {height} is empty; the driver fills width and height wrongly.'
        )
    if width * height > MAX_PIXELS:
        raise DecodeError(
            f'image size {width} x {height} exceeds {MAX_PIXELS} pixels; the header is corrupt '
            'or the camera must be set to a smaller picture.'
        )


def _rows(msg: Any, width: int, height: int, bytes_per_pixel: int) -> ByteArray:
    """View the message's bytes as (H, W, C), skipping the padding behind each row."""
    step, data = int(msg.step), _byte_view(msg.data)
    row = width * bytes_per_pixel
    if step < row:
        raise DecodeError(
            f'step {step} is shorter than a row of {width} "{msg.encoding}" pixels ({row} bytes); '
            'the driver fills the header wrongly.'
        )
    if len(data) not in (step * height, step * (height - 1) + row):
        raise DecodeError(
            f'data holds {len(data)} bytes, but {width} x {height} "{msg.encoding}" with step '
            f'{step} needs {step * height}; the message is cut or its header wrong.'
        )
    strides = (step, bytes_per_pixel, 1)
    return np.lib.stride_tricks.as_strided(
        data, (height, width, bytes_per_pixel), strides, writeable=False
    )


def _byte_view(data: Any) -> ByteArray:
    if len(data) == 0:
        raise DecodeError('the image message carries no data; check the camera driver.')
    if isinstance(data, np.ndarray):
        return np.ascontiguousarray(data).view(np.uint8).ravel()
    try:
        return np.frombuffer(data, np.uint8)
    except (TypeError, ValueError, BufferError):
        return np.asarray(data, np.uint8)


def _decode_compressed(msg: Any) -> ImageArray:
    data = _byte_view(msg.data)
    if len(data) > MAX_COMPRESSED_BYTES:
        raise DecodeError(
            f'compressed image of {len(data)} bytes exceeds {MAX_COMPRESSED_BYTES}; '
            'the message is corrupt.'
        )
    head = data[:8].tobytes()
    if head.startswith(b'\xff\xd8'):
        _check_jpeg(data)
    elif head == _PNG_SIGNATURE:
        _check_png(data)
    else:
        raise DecodeError(
            f'compressed image (format "{str(msg.format)[:60]}") starts with {head.hex(" ")}, '
            'which is neither JPEG nor PNG; use the camera\'s "compressed" topic with jpeg or png.'
        )
    try:
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        bgr = None
    if bgr is None:
        raise DecodeError(
            f'compressed image of {len(data)} bytes cannot be decoded; the data are corrupt.'
        )
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=bgr), np.uint8)


def _check_png(data: ByteArray) -> None:
    head = data[:33].tobytes()
    if len(head) < 33 or head[12:16] != b'IHDR' or _PNG_END not in data[-64:].tobytes():
        raise DecodeError(
            f'PNG image of {len(data)} bytes is cut short; the sender or the recording is damaged.'
        )
    _check_size(int.from_bytes(head[16:20], 'big'), int.from_bytes(head[20:24], 'big'))
    if head[25] in _PNG_GREY:
        raise DecodeError('PNG image has no colour; set the camera topic to the colour stream.')


def _check_jpeg(data: ByteArray) -> None:
    """Read size and components from the frame header, and demand the end-of-image marker.

    ``cv2.imdecode`` fills a cut picture with grey and only prints a warning, so the marker is the
    test of completeness. Drivers that pass a camera's buffer on leave zeros behind it.
    """
    tail = data[-4096:].tobytes().rstrip(b'\x00')
    if not tail.endswith(b'\xff\xd9'):
        raise DecodeError(
            f'JPEG image of {len(data)} bytes is cut short; the sender or the recording is damaged.'
        )
    position = 2
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = int(data[position + 1])
        if marker == 0xFF:
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD9:
            position += 2
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = data[position + 5 : position + 10].tobytes()
            _check_size(int.from_bytes(frame[2:4], 'big'), int.from_bytes(frame[:2], 'big'))
            if frame[4] < 3:
                raise DecodeError(
                    'JPEG image has no colour; set the camera topic to the colour stream.'
                )
            return
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4].tobytes(), 'big')
    raise DecodeError(f'JPEG image of {len(data)} bytes has no frame header; the data are corrupt.')
