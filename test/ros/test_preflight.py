"""Jog chunks stay slow and end at their goal; pictures are compared without noise."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')
pytest.importorskip('spear_msgs', reason='the interfaces are not built')

from spear_ros.core.geometry import pose_parts, quat_angle
from spear_ros.core.types import EXTERNAL, WRIST
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot
from spear_ros.ros.config import load_robot_config
from spear_ros.ros.conversions import joint_state_msg
from spear_ros.ros.jog import HORIZON, STEP_S, JogPolicy
from spear_ros.ros.preflight import Preflight, changed_share
from spear_ros.runtime.safety import SafetyGate, load_limits


class FakeNode:
    """Takes subscriptions, publishers and timers, and runs none."""

    def create_publisher(self, *args):
        return SimpleNamespace(publish=lambda message: None)

    def create_subscription(self, *args):
        return None

    def create_timer(self, *args):
        return None


@pytest.fixture(params=['franka', 'widowx'])
def robot(request):
    config = load_robot_config(request.param).simulated()
    return config, get_robot(config.model, config.gripper)


@pytest.fixture
def jog(robot):
    config, spec = robot
    jog = JogPolicy(FakeNode(), config, spec, speed_m_s=0.03)
    jog._on_joints(joint_state_msg(5, spec.joint_names, spec.q_home_rad))
    return jog


def test_no_chunk_without_goal_or_measurement(robot):
    config, spec = robot
    jog = JogPolicy(FakeNode(), config, spec)
    assert jog.chunk() is None
    jog.goal = np.eye(4)
    assert jog.chunk() is None


def test_chunk_starts_at_the_measured_pose_and_keeps_its_speed(jog, robot):
    spec = robot[1]
    T = forward(spec, np.array(spec.q_home_rad))
    jog.goal = T.copy()
    jog.goal[0, 3] += 0.5
    chunk = jog.chunk()
    np.testing.assert_allclose(chunk.anchor_p, T[:3, 3])
    path = np.vstack([chunk.anchor_p, chunk.p_base_ee])
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    np.testing.assert_allclose(steps, 0.03 * STEP_S)
    assert quat_angle(chunk.anchor_q, chunk.q_base_ee[-1]) < 1e-6


def test_chunk_ends_at_a_near_goal(jog):
    goal = jog.T_base_ee.copy()
    goal[2, 3] += 0.008
    jog.goal = goal
    chunk = jog.chunk()
    np.testing.assert_allclose(chunk.p_base_ee[1:], np.tile(pose_parts(goal)[0], (HORIZON - 1, 1)))


def test_unusable_joint_states_leave_the_last_pose(jog, robot):
    before = jog.T_base_ee.copy()
    jog._on_joints(joint_state_msg(6, robot[1].joint_names[:-1], robot[1].q_home_rad[:-1]))
    np.testing.assert_array_equal(jog.T_base_ee, before)


def test_jog_of_three_centimetres_stays_in_the_workspace_of_the_shipped_limits(jog, robot):
    spec = robot[1]
    limits = load_limits(spec)
    SafetyGate(spec, limits)
    goal = jog.T_base_ee[:3, 3] + np.array([0.03, 0.0, 0.0])
    assert (goal > limits.workspace_min_m).all()
    assert (goal < limits.workspace_max_m).all()


def picture(seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return cv2.resize(image, (640, 480), interpolation=cv2.INTER_CUBIC)


def test_noise_is_no_change_and_motion_is():
    image = picture()
    noisy = np.clip(
        image.astype(int) + np.random.default_rng(1).integers(0, 2, image.shape), 0, 255
    )
    assert changed_share(image, noisy.astype(np.uint8)) == 0.0
    assert changed_share(image, np.roll(image, 30, axis=1)) > 0.5
    patched = image.copy()
    patched[:48, :64] = 255 - patched[:48, :64]
    assert 0.0 < changed_share(image, patched) < 0.02
    assert changed_share(image, image[:240]) == 1.0


@pytest.mark.parametrize('swapped', [False, True])
def test_exchanged_cameras_are_noticed(robot, swapped):
    config, spec = robot
    seen = []
    client = SimpleNamespace(node=FakeNode(), describe=lambda: '')
    preflight = Preflight(client, config, spec, seen.append)
    still, moved = picture(), np.roll(picture(), 25, axis=1)
    names = (WRIST, EXTERNAL) if not swapped else (EXTERNAL, WRIST)
    before = {names[0]: still, names[1]: still}
    after = {names[0]: moved, names[1]: still}
    preflight._judge_cameras(before, after)
    (check,) = seen
    assert check.ok is not swapped
    assert ('exchanged' in check.text) is swapped


@pytest.mark.parametrize(
    ('moved', 'ok'),
    [((0.028, 0.001, -0.002), True), ((-0.028, 0.0, 0.0), False), ((0.0, 0.028, 0.0), False)],
)
def test_motion_along_another_axis_fails(robot, moved, ok):
    seen = []
    client = SimpleNamespace(node=FakeNode(), describe=lambda: 'executor RUNNING')
    Preflight(client, *robot, seen.append)._judge_motion(np.array(moved))
    assert seen[0].ok is ok
