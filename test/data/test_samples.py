import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_ros.core.errors import UserError
from spear_ros.core.types import WRIST
from spear_ros.data.episodes import ArrayFrames, EncodedFrames, decode_image_bytes
from spear_ros.data.resampling import ResampleSettings, resample
from spear_ros.data.samples import (
    GRIPPER,
    TARGETS,
    VALID,
    P,
    PictureSettings,
    Q,
    jpeg_size,
    restore_aspect,
    samples_of,
    shrink,
    stable_hash,
    store_picture,
)

PICTURES = PictureSettings()


def gradient(height, width):
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, width)[None]
    image[..., 1] = np.linspace(0, 255, height)[:, None]
    return image


def with_camera(make_episode, frames, **changes):
    episode = make_episode()
    return make_episode(cameras={'external': frames}, **changes), episode


def test_a_jpeg_that_fits_is_stored_byte_for_byte(make_episode, jpeg):
    episode = make_episode()
    blob = store_picture(episode, 'external', 3, (PICTURES, (240, 320)))
    assert blob == jpeg(3)


def test_a_larger_picture_is_cropped_to_the_ratio_and_scaled(make_episode):
    wide = ArrayFrames(np.arange(21) * 200_000_000, lambda i: gradient(360, 640))
    episode = make_episode(cameras={'external': wide})
    blob = store_picture(episode, 'external', 0, (PICTURES, (240, 320)))
    image = decode_image_bytes(blob, 'x')
    assert image.shape == (240, 320, 3)
    # 480 of 640 columns are kept about the centre, so red runs from 1/8 to 7/8.
    assert abs(int(image[120, 0, 0]) - 32) < 6
    assert abs(int(image[120, -1, 0]) - 223) < 6
    assert int(image[0, 160, 1]) < 6
    assert int(image[-1, 160, 1]) > 249


def test_a_squashed_picture_gets_its_ratio_back_before_it_is_cropped(make_episode, jpeg):
    square = EncodedFrames(np.arange(21) * 200_000_000, [jpeg(0, 64, 64)] * 21)
    episode = make_episode(cameras={'external': square}, stored_aspect=4 / 3)
    blob = store_picture(episode, 'external', 0, (PICTURES, (240, 320)), 4 / 3)
    assert jpeg_size(blob) == (64, 85)


def test_restoring_widens_or_heightens_and_loses_nothing():
    assert restore_aspect(gradient(64, 64), 4 / 3).shape == (64, 85, 3)
    assert restore_aspect(gradient(64, 128), 4 / 3).shape == (96, 128, 3)
    same = gradient(48, 64)
    assert restore_aspect(same, 4 / 3) is same


@given(st.integers(16, 700), st.integers(16, 700))
def test_shrinking_keeps_the_ratio_within_a_pixel_and_never_enlarges(height, width):
    result = shrink(np.zeros((height, width, 3), np.uint8), (240, 320), 'crop')
    h, w = result.shape[:2]
    assert h <= min(240, height)
    assert w <= min(320, width)
    assert abs(w - h * 4 / 3) <= 1.0
    kept = shrink(np.zeros((height, width, 3), np.uint8), (240, 320), 'keep')
    assert abs(kept.shape[1] / width - kept.shape[0] / height) <= 1.0 / min(height, width)


@given(st.integers(8, 300), st.integers(8, 300), st.sampled_from([50, 95]))
def test_jpeg_sizes_are_read_from_the_header(height, width, quality):
    image = np.zeros((height, width, 3), np.uint8)
    blob = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    assert jpeg_size(blob) == (height, width)
    progressive = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    assert jpeg_size(progressive) == (height, width)


@given(st.binary(max_size=60))
def test_a_damaged_header_has_no_size_and_raises_nothing(data):
    assert jpeg_size(b'\xff\xd8' + data) is None or len(data) > 8


def test_numbers_of_a_sample_are_the_measured_pose_and_the_targets(make_episode):
    episode = make_episode()
    steps = resample(episode, ResampleSettings())
    samples = list(samples_of(episode, steps, PICTURES))
    assert [s.info['step'] for s in samples] == list(range(20))
    last = samples[-1].numbers
    assert last.shape == (6, 9)
    np.testing.assert_array_equal(last[0, P], episode.reached.p[19])
    np.testing.assert_array_equal(last[1, Q], episode.reached.q[20])
    np.testing.assert_array_equal(last[TARGETS, VALID], [1, 0, 0, 0, 0])
    assert last[0, GRIPPER] == episode.gripper.values[19]
    assert last[1, GRIPPER] == episode.gripper_command.values[19]
    assert last[0, VALID] == 1.0


def test_integrated_poses_are_marked_as_no_proprioception(make_episode):
    episode = make_episode(has_proprio=False)
    sample = next(samples_of(episode, resample(episode, ResampleSettings()), PICTURES))
    assert sample.numbers[0, VALID] == 0.0


def test_of_two_views_both_are_used_and_always_the_same_way(make_episode, jpeg):
    stamps = np.round(np.arange(101) / 5 * 1e9).astype(np.int64)
    cameras = {
        'external': EncodedFrames(stamps, [jpeg(1)] * 101),
        'external_2': EncodedFrames(stamps, [jpeg(2)] * 101),
    }
    episode = make_episode(n=101, cameras=cameras)
    steps = resample(episode, ResampleSettings())
    first = [s.info['view'] for s in samples_of(episode, steps, PICTURES)]
    assert first == [s.info['view'] for s in samples_of(episode, steps, PICTURES)]
    assert 0.3 < np.mean([v == 'external_2' for v in first]) < 0.7
    blobs = {s.external for s in samples_of(episode, steps, PICTURES)}
    assert blobs == {jpeg(1), jpeg(2)}


def test_a_view_that_has_no_picture_yet_is_not_chosen(make_episode, jpeg):
    stamps = np.round(np.arange(21) / 5 * 1e9).astype(np.int64)
    cameras = {
        'external': EncodedFrames(stamps, [jpeg(1)] * 21),
        'external_2': EncodedFrames(stamps[:3], [jpeg(2)] * 3),
    }
    episode = make_episode(cameras=cameras)
    samples = list(samples_of(episode, resample(episode, ResampleSettings()), PICTURES))
    assert len(samples) == 20
    assert all(s.info['view'] == 'external' for s in samples[7:])


def test_a_wrist_camera_is_stored_where_its_picture_is_fresh(make_episode, jpeg):
    stamps = np.round(np.arange(21) / 5 * 1e9).astype(np.int64)
    cameras = {
        'external': EncodedFrames(stamps, [jpeg(1)] * 21),
        WRIST: EncodedFrames(stamps[:5], [jpeg(2)] * 5),
    }
    episode = make_episode(cameras=cameras)
    samples = list(samples_of(episode, resample(episode, ResampleSettings()), PICTURES))
    assert [s.wrist is not None for s in samples] == [True] * 5 + [False] * 15


def test_idle_samples_are_left_out_on_request(make_episode):
    episode = make_episode()
    steps = resample(episode, ResampleSettings(idle_m=10.0, idle_rad=10.0))
    assert steps.idle.any()
    kept = list(samples_of(episode, steps, PICTURES, drop_idle=True))
    assert len(kept) == len(steps) - steps.idle.sum()


def test_a_damaged_picture_names_the_camera():
    frames = EncodedFrames(np.arange(2), [b'', b'abc'], 'blue camera')
    with pytest.raises(UserError, match='blue camera 1: 3 bytes'):
        frames.rgb(1)
    with pytest.raises(UserError, match='blue camera 0: 0 bytes'):
        frames.rgb(0)


def test_settings_outside_of_reason_are_refused():
    with pytest.raises(UserError, match='fit = "squash"'):
        PictureSettings(fit='squash')
    with pytest.raises(UserError, match='jpeg_quality = 10'):
        PictureSettings(jpeg_quality=10)
    with pytest.raises(UserError, match='picture size'):
        PictureSettings(external_size=(2, 2))


def test_stable_hash_is_pinned():
    """Keys, views and shuffles of converted data depend on it: it must never change."""
    assert stable_hash('view', 'demo-0-00000') == 0x09D4AF267317ED75
    assert stable_hash('a', 1) != stable_hash('a1')
