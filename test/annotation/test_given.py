import cv2
import numpy as np
import pytest

from spear_ros.annotation.box_geometry import project
from spear_ros.annotation.given import GivenDepth, GivenMasks
from spear_ros.annotation.types import AnnotationError, Detection, FailureKind, WorkingImage

K = np.array([[100.0, 0, 59.5], [0, 100, 29.5], [0, 0, 1]])


@pytest.fixture
def image():
    pixels = np.zeros((60, 80, 3), np.uint8)
    return WorkingImage(name='x.png', digest='d', pixels=pixels, original_size=(120, 60))


def kind_of(call):
    with pytest.raises(AnnotationError) as caught:
        call()
    return caught.value.kind


def detection(number):
    return Detection(label='a', box_xyxy=(0, 0, 1, 1), number=number)


def test_masks_are_found_by_the_number_of_their_box(tmp_path, image):
    labels = np.zeros((60, 120), np.uint16)
    labels[10:20, 30:50] = 2
    cv2.imwrite(str(tmp_path / 'x.png'), labels)
    second, third = GivenMasks(tmp_path).segment(image, [detection(2), detection(3)])
    assert second[10:20, 10:30].all()
    assert second.sum() == 200
    assert not third.any()


def test_masks_of_another_size_or_kind_are_refused(tmp_path, image):
    masks = GivenMasks(tmp_path)
    assert kind_of(lambda: masks.segment(image, [])) is FailureKind.NOTHING_GIVEN
    for wrong in (np.zeros((60, 80), np.uint8), np.zeros((60, 120, 3), np.uint8)):
        cv2.imwrite(str(tmp_path / 'x.png'), wrong)
        assert kind_of(lambda: masks.segment(image, [])) is FailureKind.BAD_MASK


def test_points_of_given_depth_project_to_their_pixels(tmp_path, image):
    depth = np.random.default_rng(0).uniform(1, 2, (60, 120))
    depth[0, 20] = 0
    depth[1, 20] = np.nan
    np.savez(tmp_path / 'x.npz', depth=depth, K=K, scale='metric')
    found = GivenDepth(tmp_path).estimate(image)
    assert found.scale == 'metric'
    assert not found.valid[:2, 0].any()
    assert found.valid.sum() == 80 * 60 - 2
    np.testing.assert_allclose(found.points[30, 40, 2], depth[30, 60])
    np.testing.assert_allclose(project(found.points[30, 40], found.K), [40, 30], atol=1e-9)
    np.testing.assert_allclose(project(found.points[5, 7], found.K), [7, 5], atol=1e-9)


@pytest.mark.parametrize(
    'change',
    [
        {'scale': 'feet'},
        {'K': np.zeros((3, 3))},
        {'depth': np.ones((60, 80))},
        {'K': np.eye(2)},
        {'K': np.full((3, 3), 'a')},
        {'depth': np.full((60, 120), 'b')},
        {'K': np.array(None)},
        {'depth': np.full((60, 120), 1200.0)},
    ],
)
def test_wrong_depth_and_millimetres_are_refused(tmp_path, image, change):
    depth = GivenDepth(tmp_path)
    assert kind_of(lambda: depth.estimate(image)) is FailureKind.NOTHING_GIVEN
    np.savez(
        tmp_path / 'x.npz', **{'depth': np.ones((60, 120)), 'K': K, 'scale': 'metric'} | change
    )
    assert kind_of(lambda: depth.estimate(image)) is FailureKind.BAD_DEPTH
    (tmp_path / 'x.npz').write_bytes(b'PK\x03\x04 not really')
    assert kind_of(lambda: depth.estimate(image)) is FailureKind.BAD_DEPTH
