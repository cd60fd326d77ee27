"""Pictures are cropped or padded, never stretched, and the camera matrix follows exactly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_ros.core.errors import UserError
from spear_ros.processing.images import (
    EXTERNAL_SIZE,
    WRIST_SIZE,
    ImageSize,
    fit_image,
    fit_intrinsics,
    place,
)

sides = st.integers(16, 900)


@pytest.mark.parametrize('target', [EXTERNAL_SIZE, WRIST_SIZE])
@pytest.mark.parametrize('fit', ['crop', 'pad'])
@given(height=sides, width=sides)
@settings(deadline=None, max_examples=60)
def test_both_axes_are_scaled_alike_to_within_a_pixel(target, fit, height, width):
    where = place(ImageSize(height, width), target, fit)
    sy = where.scaled.height / where.crop.height
    sx = where.scaled.width / where.crop.width
    # One pixel of the smaller of window and result is all that rounding may cost.
    smallest = min(*where.crop, *where.scaled)
    assert abs(sx / sy - 1) <= 1.0 / smallest
    if fit == 'crop':
        assert where.scaled == target
        assert where.crop.height == height or where.crop.width == width
        assert where.top + where.crop.height <= height
        assert where.left + where.crop.width <= width
    else:
        assert where.crop == (height, width)
        assert where.scaled.height == target.height or where.scaled.width == target.width


@pytest.mark.parametrize('fit', ['crop', 'pad'])
@pytest.mark.parametrize('shape', [(480, 640), (720, 1280), (64, 64), (210, 280), (640, 480)])
def test_the_result_has_the_networks_shape_and_range(shape, fit):
    image = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)
    for size in (EXTERNAL_SIZE, WRIST_SIZE):
        out = fit_image(image, size, fit)
        assert out.shape == (3, *size)
        assert out.dtype == torch.float32
        assert out.min() >= 0
        assert out.max() <= 1 + 1e-6


def test_a_picture_of_the_right_size_keeps_its_pixels():
    image = torch.randint(0, 256, (210, 280, 3), dtype=torch.uint8)
    torch.testing.assert_close(fit_image(image, EXTERNAL_SIZE), image.permute(2, 0, 1) / 255.0)


def test_cropping_takes_the_middle_and_padding_is_black_on_both_sides():
    image = torch.zeros((100, 300, 3), dtype=torch.uint8)
    image[:, 100:200] = 255
    assert fit_image(image, ImageSize(50, 50), 'crop').min() > 0.999
    padded = fit_image(image, ImageSize(50, 50), 'pad')
    assert padded[:, :16].abs().max() == 0
    assert padded[:, -16:].abs().max() == 0
    assert padded[:, 25, 25].min() > 0.999


def test_batches_give_the_same_numbers_as_single_pictures():
    images = torch.randint(0, 256, (2, 3, 60, 90, 3), dtype=torch.uint8)
    together = fit_image(images, WRIST_SIZE)
    assert together.shape == (2, 3, 3, *WRIST_SIZE)
    torch.testing.assert_close(together[1, 2], fit_image(images[1, 2], WRIST_SIZE), rtol=0, atol=0)


@pytest.mark.parametrize('fit', ['crop', 'pad'])
def test_a_bright_point_lands_where_the_transformed_camera_matrix_says(fit):
    # A small disc at a known pixel: its centre of mass must follow x' = fx' X + cx'.
    source, K = ImageSize(480, 720), np.array([[500.0, 0, 350], [0, 500, 250], [0, 0, 1]])
    ray = np.array([0.12, -0.2, 1.0])
    u, v = (K @ ray)[:2]
    rows, columns = np.mgrid[0:480, 0:720]
    disc = np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 200.0)
    image = torch.tensor((disc * 255).round().astype(np.uint8))[..., None].expand(-1, -1, 3)
    out = fit_image(image, EXTERNAL_SIZE, fit)[0].double().numpy()
    y, x = np.mgrid[0:210, 0:280]
    expected = (fit_intrinsics(K, source, EXTERNAL_SIZE, fit) @ ray)[:2]
    np.testing.assert_allclose(
        [(x * out).sum() / out.sum(), (y * out).sum() / out.sum()], expected, atol=0.02
    )


@pytest.mark.parametrize(
    'image',
    [
        torch.zeros((8, 640, 3), dtype=torch.uint8),
        torch.zeros((480, 640, 4), dtype=torch.uint8),
        torch.zeros((480, 640, 3)),
        torch.zeros((480, 640), dtype=torch.uint8),
        torch.zeros((1, 1, 1), dtype=torch.uint8).expand(100_000, 100_000, 3),
    ],
    ids=['tiny', 'four channels', 'float', 'grey', 'huge'],
)
def test_what_is_no_picture_is_refused_in_one_sentence(image):
    with pytest.raises(UserError, match='image of'):
        fit_image(image, EXTERNAL_SIZE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_the_gpu_gives_the_same_pixels():
    image = torch.randint(0, 256, (480, 640, 3), dtype=torch.uint8)
    torch.testing.assert_close(
        fit_image(image.cuda(), EXTERNAL_SIZE).cpu(),
        fit_image(image, EXTERNAL_SIZE),
        atol=1e-5,
        rtol=0,
    )
