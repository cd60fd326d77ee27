"""Images in every encoding that drivers send, and everything that can be wrong with them."""

import array
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_ros.runtime.decode import DecodeError, decode_image

RGB = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)


def raw(pixels, encoding, step=None, **fields):
    height, width = pixels.shape[:2]
    row = pixels.reshape(height, -1)
    step = step or row.shape[1]
    padded = np.full((height, step), 0xAB, np.uint8)
    padded[:, : row.shape[1]] = row
    values = {'width': width, 'height': height, 'data': array.array('B', padded.tobytes())}
    return SimpleNamespace(encoding=encoding, step=step, is_bigendian=0, **(values | fields))


def compressed(data, kind='jpeg'):
    return SimpleNamespace(format=kind, data=np.frombuffer(bytes(data), np.uint8))


def jpeg(image=RGB):
    return cv2.imencode('.jpg', image[:, :, ::-1])[1].tobytes()


def png(image=RGB):
    return cv2.imencode('.png', image[:, :, ::-1] if image.ndim == 3 else image)[1].tobytes()


def with_alpha(image):
    return np.dstack([image, np.full(image.shape[:2], 7, np.uint8)])


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize(
    ('encoding', 'pixels'),
    [
        ('rgb8', RGB),
        ('bgr8', RGB[:, :, ::-1]),
        ('rgba8', with_alpha(RGB)),
        ('bgra8', with_alpha(RGB[:, :, ::-1])),
    ],
)
def test_colour_encodings_give_the_same_rgb_with_and_without_row_padding(encoding, pixels, padding):
    message = raw(np.ascontiguousarray(pixels), encoding, step=pixels[0].size + padding)
    image = decode_image(message)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable
    np.testing.assert_array_equal(image, RGB)


@pytest.mark.parametrize(
    ('names', 'order'), [(('yuv422_yuy2', 'yuyv'), (0, 1)), (('uyvy', 'yuv422'), (1, 0))]
)
def test_both_packed_yuv_orders_decode_under_both_of_their_names(names, order):
    # A grey ramp with constant chroma: Y alternates with U, V = 128, so RGB = Y (full range off).
    luma = np.tile(np.linspace(16, 235, 16, dtype=np.uint8), (4, 1))
    chroma = np.full_like(luma, 128)
    packed = np.ascontiguousarray(np.stack([luma, chroma], -1)[:, :, order])
    images = [decode_image(raw(packed, name)) for name in names]
    np.testing.assert_array_equal(images[0], images[1])
    assert images[0].shape == (4, 16, 3)
    expected = np.clip((luma.astype(float) - 16) * 255 / 219, 0, 255)
    assert np.abs(images[0].astype(float) - expected[..., None]).max() <= 2


def test_yuyv_red_is_red_and_not_blue():
    # BT.601 limited range: pure red is Y 82, U 90, V 240.
    packed = np.tile(np.array([[82, 90], [82, 240]], np.uint8), (2, 4, 1))
    r, g, b = decode_image(raw(packed, 'yuyv'))[0, 0]
    assert r > 240
    assert g < 20
    assert b < 20


@pytest.mark.parametrize('as_type', [bytes, bytearray, list, lambda d: np.frombuffer(d, np.uint8)])
def test_data_may_come_in_any_container(as_type):
    message = raw(RGB, 'rgb8')
    message.data = as_type(bytes(message.data))
    np.testing.assert_array_equal(decode_image(message), RGB)


def test_the_image_shares_no_memory_with_the_message():
    message = raw(RGB, 'rgb8')
    image = decode_image(message)
    message.data[0] ^= 0xFF
    np.testing.assert_array_equal(image, RGB)


def test_a_last_row_without_padding_is_accepted():
    message = raw(RGB, 'rgb8', step=16 * 3 + 5)
    message.data = message.data[:-5]
    np.testing.assert_array_equal(decode_image(message), RGB)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'width': 100_000, 'height': 100_000, 'step': 300_000}, '100000 x 100000'),
        ({'width': 0}, 'empty'),
        ({'height': -1}, 'empty'),
        ({'step': 10}, 'step 10'),
        ({'height': 13}, 'needs 624'),
        ({'data': b''}, 'no data'),
        ({'encoding': 'mono8'}, 'no colour'),
        ({'encoding': '32FC1'}, 'no colour'),
        ({'encoding': 'bayer_rggb8'}, 'not supported'),
        ({'encoding': ''}, 'not supported'),
    ],
)
def test_a_wrong_header_is_refused_in_one_sentence(change, words):
    message = raw(RGB, 'rgb8')
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(DecodeError, match=words):
        decode_image(message)


def test_an_odd_width_in_packed_yuv_is_refused():
    with pytest.raises(DecodeError, match='odd'):
        decode_image(raw(np.zeros((4, 5, 2), np.uint8), 'yuyv'))


def test_exotic_encodings_go_to_the_converter_where_there_is_one():
    message = raw(RGB, 'bayer_rggb8')
    np.testing.assert_array_equal(decode_image(message, fallback=lambda m: RGB), RGB)
    with pytest.raises(DecodeError, match='instead of uint8'):
        decode_image(message, fallback=lambda m: RGB.astype(float))
    with pytest.raises(DecodeError, match='could not be converted'):
        decode_image(message, fallback=lambda m: 1 / 0)


def test_jpeg_and_png_are_decoded_in_rgb_order():
    red = np.zeros((32, 32, 3), np.uint8)
    red[:, :, 0] = 255
    np.testing.assert_array_equal(decode_image(compressed(png(RGB), 'png')), RGB)
    image = decode_image(compressed(jpeg(red), 'bgr8; jpeg compressed bgr8'))
    assert image[16, 16, 0] > 250
    assert image[16, 16, 2] < 5


def test_zeros_behind_the_jpeg_are_accepted():
    image = decode_image(compressed(jpeg() + bytes(100)))
    np.testing.assert_array_equal(image, decode_image(compressed(jpeg())))


@pytest.mark.parametrize(
    ('data', 'words'),
    [
        (jpeg()[:-40], 'cut short'),
        (jpeg()[:4] + b'\xff\xd9', 'no frame header'),
        (png()[:60], 'cut short'),
        (png()[:40] + bytes(20) + png()[60:], 'cannot be decoded'),
        (jpeg(RGB[:, :, 0][..., None].repeat(3, -1))[:0], 'no data'),
        (cv2.imencode('.jpg', RGB[:, :, 0])[1].tobytes(), 'no colour'),
        (png(RGB[:, :, 0]), 'no colour'),
        (b'GIF89a' + bytes(50), 'neither JPEG nor PNG'),
    ],
)
def test_damaged_or_colourless_files_are_refused(data, words):
    with pytest.raises(DecodeError, match=words):
        decode_image(compressed(data))


def test_a_decompression_bomb_is_refused_by_its_header():
    bomb = bytearray(png())
    bomb[16:24] = (100_000).to_bytes(4, 'big') * 2
    with pytest.raises(DecodeError, match='100000 x 100000'):
        decode_image(compressed(bomb, 'png'))
    bomb = bytearray(jpeg())
    frame = bomb.index(b'\xff\xc0')
    bomb[frame + 5 : frame + 9] = b'\xff\xff\xff\xff'
    with pytest.raises(DecodeError, match='65535 x 65535'):
        decode_image(compressed(bomb))


def test_something_else_is_not_an_image():
    with pytest.raises(DecodeError, match='not an image'):
        decode_image(SimpleNamespace(data=b'123'))


@given(st.binary(max_size=400), st.integers(0, 3))
def test_no_bytes_bring_anything_but_an_image_or_a_decode_error(data, start):
    prefix = (b'', b'\xff\xd8', b'\x89PNG\r\n\x1a\n', jpeg()[:200])[start]
    try:
        image = decode_image(compressed(prefix + data))
    except DecodeError:
        return
    assert image.ndim == 3


@given(st.integers(0, 600), st.integers(0, 255))
def test_a_jpeg_with_one_wrong_byte_never_raises_anything_else(position, value):
    data = bytearray(jpeg())
    data[position % len(data)] = value
    try:
        image = decode_image(compressed(data))
    except DecodeError:
        return
    assert image.dtype == np.uint8
