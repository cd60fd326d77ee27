import contextlib
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from spear_ros.annotation.images import (
    ImageSettings,
    decode_image,
    find_images,
    open_image,
    to_working,
    working_camera,
    working_pixels,
)
from spear_ros.annotation.types import AnnotationError, FailureKind
from spear_ros.core.errors import UserError

SMALL = ImageSettings(width=80, height=60, min_side_px=32)


def encoded(image, kind='PNG', **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def failure(blob, settings=SMALL):
    with pytest.raises(AnnotationError) as caught:
        decode_image(blob, 'x', settings)
    return caught.value.kind


def halves(left=(250, 10, 10), right=(10, 10, 250), size=(80, 60)):
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 2], pixels[:, size[0] // 2 :] = left, right
    return Image.fromarray(pixels)


def test_a_rotated_photograph_stands_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a turn by 90 degrees clockwise
    blob = encoded(halves(), 'JPEG', quality=95, exif=exif)
    image = decode_image(blob, 'x', SMALL)
    assert image.original_size == (60, 80)
    top, bottom = image.pixels[5, 40], image.pixels[-5, 40]
    assert top[0] > 200
    assert bottom[2] > 200


@pytest.mark.parametrize('mode', ['CMYK', 'L', 'P', 'RGBA', 'LA', '1'])
def test_every_mode_becomes_rgb(mode):
    source = halves((240, 240, 240), (20, 20, 20)).convert(mode)
    kind = 'JPEG' if mode == 'CMYK' else 'PNG'
    pixels = decode_image(encoded(source, kind), 'x', SMALL).pixels
    assert pixels.shape == (60, 80, 3)
    assert pixels.dtype == np.uint8
    assert pixels[30, 10].min() > 215
    assert pixels[30, 70].max() < 45


@pytest.mark.parametrize('channels', [1, 3])
def test_16_bits_keep_the_upper_ones(channels):
    values = np.full((60, 80, channels), 40000, np.uint16)
    values[:, 40:] = 4000
    blob = cv2.imencode('.png', values)[1].tobytes()
    pixels = decode_image(blob, 'x', SMALL).pixels
    assert abs(int(pixels[30, 10, 1]) - 156) <= 1
    assert abs(int(pixels[30, 70, 1]) - 15) <= 1


def test_20_megapixels_are_opened():
    blob = encoded(halves(size=(5200, 3900)), 'JPEG')
    image = decode_image(blob, 'x', SMALL)
    assert image.original_size == (5200, 3900)
    assert image.pixels[30, 5, 0] > 200


def test_tiny_and_huge_pictures_are_told_apart_without_decoding():
    assert failure(encoded(halves(size=(10, 10)))) is FailureKind.TOO_SMALL
    header = struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)
    bomb = b'\x89PNG\r\n\x1a\n'
    for name, data in ((b'IHDR', header), (b'IDAT', zlib.compress(b'\0' * 1000)), (b'IEND', b'')):
        checksum = zlib.crc32(name + data)
        bomb += struct.pack('>I', len(data)) + name + data + struct.pack('>I', checksum)
    assert failure(bomb) is FailureKind.TOO_LARGE


@pytest.mark.parametrize('blob', [b'', b'hello', b'%PDF-1.4', b'GIF89a' + b'\0' * 50])
def test_what_is_no_picture_is_said_to_be_none(blob):
    assert failure(blob) is FailureKind.NOT_AN_IMAGE


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP', 'BMP', 'TIFF'])
def test_damaged_files_never_crash(kind):
    rng = np.random.default_rng(0)
    blob = encoded(Image.fromarray(rng.integers(0, 255, (70, 90, 3), np.uint8)), kind)
    assert failure(blob[: len(blob) // 2]) in (
        FailureKind.DAMAGED_IMAGE,
        FailureKind.NOT_AN_IMAGE,
    )
    for _ in range(30):
        broken = bytearray(blob)
        for place in rng.integers(0, min(len(blob), 300), 4):
            broken[place] = int(rng.integers(256))
        with contextlib.suppress(AnnotationError):  # any other exception is the crash
            assert decode_image(bytes(broken), 'x', SMALL).pixels.shape == (60, 80, 3)


def test_the_crop_keeps_the_aspect_and_the_camera_follows():
    rng = np.random.default_rng(1)
    K = np.array([[100.0, 0, 59.5], [0, 100.0, 29.5], [0, 0, 1]])
    point = np.array([*rng.uniform(-0.2, 0.2, 2), 1.0])
    before = (K @ point)[:2]
    moved = working_camera(K, (120, 60), (40, 30))
    after = (moved @ point)[:2]
    np.testing.assert_allclose(working_pixels(before, (120, 60), (40, 30)), after, atol=1e-12)
    wide = np.zeros((60, 120), np.uint8)
    wide[:, 20:100] = 7  # what a crop to 4:3 keeps
    assert (to_working(wide, (40, 30), smooth=False) == 7).all()


def test_the_digest_follows_content_and_settings():
    blob = encoded(halves())
    digest = decode_image(blob, 'a', SMALL).digest
    assert decode_image(blob, 'b', SMALL).digest == digest
    other = ImageSettings(width=40, height=30, min_side_px=32)
    assert decode_image(blob, 'a', other).digest != digest


def test_folders_are_listed_and_empty_ones_refused(tmp_path):
    with pytest.raises(UserError, match='no file'):
        find_images(tmp_path)
    with pytest.raises(UserError, match='no such folder'):
        find_images(tmp_path / 'x')
    for name in ('b.png', 'sub/a.JPG', 'label.json', '.hidden/c.png', 'what.bin'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'x')
    assert find_images(tmp_path) == ['b.png', 'sub/a.JPG', 'what.bin']
    with pytest.raises(AnnotationError) as caught:
        open_image(tmp_path, 'gone.png', SMALL)
    assert caught.value.kind is FailureKind.UNREADABLE
