"""Alignment on the newest external image, and every reason why there is no observation."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_ros.core import geometry
from spear_ros.core.errors import UserError
from spear_ros.core.reasons import Reason
from spear_ros.core.types import EXTERNAL, WRIST, CameraFrame, Observation
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot
from spear_ros.runtime.observation_buffer import (
    InputProblem,
    ObservationBuffer,
    ObservationConfig,
)

MS = 1_000_000
T0 = 1_700_000_000_000 * MS
ROBOT = get_robot('wx250s')
HOME = np.asarray(ROBOT.q_home_rad)
RNG = np.random.default_rng(0)


def frame(stamp_ns, number=None, delay_ms=10):
    rng = RNG if number is None else np.random.default_rng(number)
    image = rng.integers(0, 256, (32, 40, 3), np.uint8)
    return CameraFrame(image=image, stamp_ns=stamp_ns, received_ns=stamp_ns + delay_ms * MS)


def q_at(time_ns):
    return HOME + 0.1 * np.sin((time_ns - T0) / 1e9 + np.arange(len(HOME)))


class Lab:
    """Feeds a buffer like a lab with healthy drivers, up to ``now``."""

    def __init__(self, **config):
        self.buffer = ObservationBuffer(ROBOT, ObservationConfig(**config))
        self.buffer.set_instruction('put the cup on the plate', 'abcd0123')
        self.now = T0

    def run(self, seconds, *, without=(), number=None):
        end = self.now + round(seconds * 1e9)
        for t in range(self.now, end, 5 * MS):
            step = (t - T0) // MS
            if step % 10 == 0 and 'arm' not in without:
                self.buffer.add_joints(t - 2 * MS, t, q_at(t - 2 * MS))
            if step % 20 == 0 and 'gripper' not in without:
                self.buffer.add_gripper(t, t, 1.0)
            if step % 65 == 0 and EXTERNAL not in without:
                self.buffer.add_image(EXTERNAL, frame(t - 10 * MS, number))
            if step % 65 == 30 and WRIST not in without:
                self.buffer.add_image(WRIST, frame(t - 10 * MS, number))
        self.now = end
        return self.buffer.build(self.now)


def problem(result, reason, words=''):
    assert isinstance(result, InputProblem), result
    assert result.reason == reason, result
    assert words in result.text, result.text
    assert result.text.endswith('.')


def test_a_healthy_lab_gives_an_observation_at_the_newest_external_image():
    lab = Lab()
    observation = lab.run(1.0)
    assert isinstance(observation, Observation)
    newest = max(t for t in range(0, 1000, 65)) * MS + T0 - 10 * MS
    assert observation.t_obs_ns == newest
    assert observation.images[EXTERNAL].stamp_ns == newest
    assert 0 <= newest - observation.images[WRIST].stamp_ns <= 100 * MS
    np.testing.assert_allclose(observation.state.q_rad, q_at(newest), atol=1e-5)
    np.testing.assert_allclose(
        observation.state.T_base_ee, forward(ROBOT, observation.state.q_rad), atol=1e-12
    )
    assert observation.instruction_id == 'abcd0123'
    assert observation.embodiment == 'widowx_bridge'


def test_building_copies_no_image():
    lab = Lab()
    lab.run(0.5)
    sent = frame(lab.now - MS, delay_ms=1)
    lab.buffer.add_image(EXTERNAL, sent)
    observation = lab.buffer.build(lab.now)
    assert observation.images[EXTERNAL].image is sent.image


def test_nothing_happens_without_an_instruction():
    lab = Lab()
    lab.buffer.set_instruction('', '')
    problem(lab.run(0.5), Reason.POLICY_NOT_READY, 'no instruction')


@pytest.mark.parametrize(
    ('stream', 'reason'),
    [
        (EXTERNAL, Reason.CAMERA_STALE),
        ('arm', Reason.JOINTS_STALE),
        ('gripper', Reason.GRIPPER_STALE),
    ],
)
def test_a_stream_that_never_came_or_stops_is_named(stream, reason):
    problem(Lab().run(0.5, without=(stream,)), reason, 'nothing received')
    lab = Lab()
    assert isinstance(lab.run(0.5), Observation)
    result = lab.run(0.3, without=(stream,))
    problem(result, reason, 'ms old')
    assert result.stream == stream
    assert isinstance(lab.run(0.3), Observation)  # and it recovers by itself


def test_a_wrist_camera_that_never_delivered_is_left_out():
    observation = Lab().run(0.5, without=(WRIST,))
    assert set(observation.images) == {EXTERNAL}


def test_a_wrist_camera_that_dies_holds_unless_told_to_go_on_without():
    lab = Lab()
    lab.run(0.5)
    problem(lab.run(0.3, without=(WRIST,)), Reason.CAMERA_STALE, WRIST)
    lab = Lab(wrist_lost='drop')
    lab.run(0.5)
    assert set(lab.run(0.3, without=(WRIST,)).images) == {EXTERNAL}
    assert lab.buffer.wrist_left_out == 1


@pytest.mark.parametrize('camera', [EXTERNAL, WRIST])
def test_eight_identical_frames_with_advancing_stamps_are_frozen(camera):
    still = frame(T0, number=1)
    lab = Lab()
    for i in range(8):
        stamp = lab.now + i * 60 * MS
        for t in range(stamp, stamp + 60 * MS, 10 * MS):
            lab.buffer.add_joints(t, t, HOME)
            lab.buffer.add_gripper(t, t, 1.0)
        other = WRIST if camera == EXTERNAL else EXTERNAL
        lab.buffer.add_image(other, frame(stamp, delay_ms=0))
        lab.buffer.add_image(camera, replace(still, stamp_ns=stamp, received_ns=stamp))
        result = lab.buffer.build(stamp + 50 * MS)
        assert isinstance(result, Observation) == (i < 7), (i, result)
    problem(result, Reason.CAMERA_FROZEN, 'byte for byte')
    assert any(s.frozen and s.name == camera for s in lab.buffer.stream_status(stamp))
    lab.buffer.add_image(camera, frame(stamp + 20 * MS, delay_ms=0))
    assert isinstance(lab.buffer.build(stamp + 50 * MS), Observation)


def test_one_changed_pixel_is_not_frozen():
    lab = Lab(cameras=(EXTERNAL,))
    image = frame(T0, number=1).image
    for i in range(20):
        stamp = T0 + i * 60 * MS
        image = image.copy()
        image[31, 39, 2] ^= 1
        for t in range(stamp, stamp + 60 * MS, 10 * MS):
            lab.buffer.add_joints(t, t, HOME)
            lab.buffer.add_gripper(t, t, 1.0)
        lab.buffer.add_image(EXTERNAL, CameraFrame(image=image, stamp_ns=stamp, received_ns=stamp))
    assert isinstance(lab.buffer.build(stamp + 50 * MS), Observation)


@pytest.mark.parametrize('offset_s', [-1.5, 1.5])
def test_a_camera_on_another_clock_is_reported_as_clock_skew(offset_s):
    lab = Lab()
    lab.run(0.5)
    stamp = lab.now + round(offset_s * 1e9)
    lab.buffer.add_image(EXTERNAL, replace(frame(stamp), received_ns=lab.now))
    problem(lab.buffer.build(lab.now), Reason.CLOCK_SKEW, EXTERNAL)


def test_a_clock_that_starts_over_empties_the_buffer_and_then_works():
    lab = Lab()
    assert isinstance(lab.run(1.0), Observation)
    lab.now = T0
    result = lab.run(0.01)
    problem(result, Reason.CAMERA_STALE, 'nothing received')
    assert lab.buffer.clock_resets >= 1
    assert isinstance(lab.run(0.5), Observation)


def test_a_build_far_before_the_newest_input_empties_the_buffer():
    lab = Lab()
    lab.run(1.0)
    problem(lab.buffer.build(T0), Reason.CAMERA_STALE)
    assert lab.buffer.clock_resets == 1


def test_queues_decoded_one_after_another_are_no_clock_reset():
    lab = Lab(cameras=(EXTERNAL,))
    lab.buffer.add_image(EXTERNAL, frame(T0 + 300 * MS))
    for t in range(T0, T0 + 310 * MS, 10 * MS):
        lab.buffer.add_joints(t, t, HOME)
    for t in range(T0, T0 + 310 * MS, 20 * MS):
        lab.buffer.add_gripper(t, t, 1.0)
    assert isinstance(lab.buffer.build(T0 + 312 * MS), Observation)
    assert lab.buffer.clock_resets == 0


@pytest.mark.parametrize(
    ('q', 'reason'),
    [
        (np.full(6, np.nan), Reason.JOINTS_NOT_FINITE),
        (np.full(6, -np.pi), Reason.JOINTS_LIMIT),
    ],
)
def test_corrupt_joint_readings_stop_at_once_and_are_not_stored(q, reason):
    lab = Lab()
    lab.run(0.5)
    lab.buffer.add_joints(lab.now, lab.now, q)
    problem(lab.buffer.build(lab.now), reason, 'joint')
    lab.buffer.add_joints(lab.now + MS, lab.now + MS, HOME)
    assert isinstance(lab.buffer.build(lab.now + MS), Observation)


def test_a_gripper_reading_that_is_not_finite_is_refused():
    lab = Lab()
    lab.run(0.5)
    lab.buffer.add_gripper(lab.now, lab.now, float('nan'))
    problem(lab.buffer.build(lab.now), Reason.GRIPPER_STALE, 'not finite')


def test_one_unreadable_image_is_tolerated_while_the_last_good_one_is_fresh():
    lab = Lab()
    lab.run(0.5)
    lab.buffer.refuse(EXTERNAL, lab.now, Reason.CAMERA_STALE, 'JPEG image is cut short.')
    assert isinstance(lab.buffer.build(lab.now), Observation)
    result = lab.run(0.3, without=(EXTERNAL,))
    problem(result, Reason.CAMERA_STALE, 'cut short')
    assert lab.buffer.refusals()[EXTERNAL][0] == 1


def pose_lab(stamps_and_poses, t_obs):
    buffer = ObservationBuffer(ROBOT, ObservationConfig(cameras=(EXTERNAL,)))
    buffer.set_instruction('go', 'x')
    for stamp, T in stamps_and_poses:
        buffer.add_pose(stamp, stamp, T)
    buffer.add_gripper(t_obs, t_obs, 0.5)
    buffer.add_image(EXTERNAL, frame(t_obs, delay_ms=0))
    return buffer.build(max(t_obs, *(s for s, _ in stamps_and_poses)))


unit = st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(c * c for c in q) > 0.05)


@settings(deadline=None)
@given(unit, unit, st.tuples(*[st.floats(-1, 1)] * 6), st.integers(0, 40))
def test_poses_are_interpolated_straight_and_on_the_geodesic(qa, qb, p, part):
    qa, qb = geometry.quat_normalize(qa), geometry.quat_normalize(qb)
    Ta, Tb = geometry.pose(p[:3], qa), geometry.pose(p[3:], qb)
    t_obs = T0 + part * MS
    observation = pose_lab([(T0, Ta), (T0 + 40 * MS, Tb)], t_obs)
    assert isinstance(observation, Observation)
    T, s = observation.state.T_base_ee, part / 40
    assert observation.state.q_rad is None
    np.testing.assert_allclose(T[:3, 3], (1 - s) * np.array(p[:3]) + s * np.array(p[3:]), atol=1e-9)
    whole = geometry.quat_angle(qa, qb)
    turned = geometry.quat_angle(qa, geometry.matrix_to_quat(T[:3, :3]))
    assert abs(turned - s * whole) < 1e-6


def test_an_exact_stamp_gives_the_recorded_pose_bit_for_bit():
    T = geometry.pose([0.3, 0.1, 0.2], geometry.quat_exp([0.1, 0.2, 0.3]))
    observation = pose_lab([(T0 - 200 * MS, np.eye(4)), (T0, T), (T0 + 5 * MS, np.eye(4))], T0)
    assert (observation.state.T_base_ee == T).all()


def test_arm_samples_too_far_from_the_image_are_not_used():
    far = pose_lab([(T0 - 60 * MS, np.eye(4))], T0)
    problem(far, Reason.JOINTS_STALE)
    gap = pose_lab([(T0 - 140 * MS, np.eye(4)), (T0 + 140 * MS, np.eye(4))], T0)
    problem(gap, Reason.JOINTS_STALE, 'apart')
    after = pose_lab([(T0 + 60 * MS, np.eye(4))], T0)
    problem(after, Reason.JOINTS_STALE, 'after the image')
    near = pose_lab([(T0 - 40 * MS, np.eye(4))], T0)
    assert isinstance(near, Observation)


def test_the_gripper_is_the_newest_not_later_than_the_tolerance_after_the_image():
    lab = Lab(cameras=(EXTERNAL,), gripper_tolerance_s=0.02)
    for t in range(T0 - 100 * MS, T0 + 60 * MS, 10 * MS):
        lab.buffer.add_joints(t, t, HOME)
    for offset, opening in ((-60, 0.1), (15, 0.2), (30, 0.3)):
        lab.buffer.add_gripper(T0 + offset * MS, T0 + offset * MS, opening)
    lab.buffer.add_image(EXTERNAL, replace(frame(T0), received_ns=T0 + 50 * MS))
    assert lab.buffer.build(T0 + 55 * MS).state.gripper == 0.2


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=25),
    st.lists(st.integers(0, 400), max_size=25),
    st.randoms(use_true_random=False),
)
def test_whatever_the_order_the_wrist_never_lies_after_the_external_image(ext, wri, random):
    """Nothing from the future, nothing older than the window, whichever way messages arrive."""
    buffer = ObservationBuffer(ROBOT, ObservationConfig(wrist_lost='drop'))
    buffer.set_instruction('go', 'x')
    now = T0 + 400 * MS
    events = [(EXTERNAL, t) for t in ext] + [(WRIST, t) for t in wri]
    random.shuffle(events)
    for camera, offset in events:
        image = np.full((4, 4, 3), offset % 256, np.uint8)
        stamp = T0 + offset * MS
        buffer.add_image(camera, CameraFrame(image=image, stamp_ns=stamp, received_ns=now))
    for t in range(T0, now + 1, 10 * MS):
        buffer.add_joints(t, now, HOME)
    buffer.add_gripper(now, now, 1.0)
    buffer.add_gripper(T0 + max(ext) * MS, now, 1.0)
    result = buffer.build(now)
    if not isinstance(result, Observation):
        assert max(ext) < 250 or result.reason == Reason.CAMERA_FROZEN
        return
    assert result.t_obs_ns == T0 + max(ext) * MS
    inside = [t for t in wri if 0 <= max(ext) - t <= 100]
    if WRIST in result.images:
        assert result.images[WRIST].stamp_ns == T0 + max(inside) * MS
    else:
        assert not inside


def test_memory_stays_bounded_over_a_long_run():
    lab = Lab()
    for _ in range(20):
        lab.run(1.0)
    held = [len(s.stamps) for s in lab.buffer._all()]
    lab.run(5.0)
    assert [len(s.stamps) for s in lab.buffer._all()] == held
    assert held[0] <= 5  # a quarter of a second of external images


def test_the_status_lists_every_wired_stream_with_its_health():
    lab = Lab(topics={EXTERNAL: '/cam'}, needs_object_poses=True)
    lab.run(0.5)
    status = {s.name: s for s in lab.buffer.stream_status(lab.now)}
    assert list(status) == [EXTERNAL, WRIST, 'arm', 'gripper', 'object_poses']
    assert status[EXTERNAL].topic == '/cam'
    assert status[EXTERNAL].shape == '40x32 rgb8'
    assert status['arm'].shape == '6 joints'
    assert 95 < status['arm'].rate_hz < 105
    assert status['object_poses'].age_s == -1
    assert status['object_poses'].stale
    problem(lab.buffer.build(lab.now), Reason.POLICY_NOT_READY, 'object_poses')
    lab.buffer.add_object_poses(lab.now, lab.now, {'cube': np.eye(4)})
    assert set(lab.buffer.build(lab.now).privileged) == {'cube'}


@pytest.mark.parametrize('bad', [{'cameras': (WRIST,)}, {'frozen_frames': 1}, {'history_s': -1}])
def test_a_configuration_that_cannot_work_is_refused(bad):
    with pytest.raises(UserError):
        ObservationConfig(**bad)
