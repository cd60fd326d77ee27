import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_ros.core.geometry import quat_exp, quat_log, quat_to_matrix
from spear_ros.robots import kinematics
from spear_ros.robots.registry import get_robot
from spear_ros.simulation.controllers import (
    CartesianImpedance,
    TimeProfile,
    rotation_matrix,
    rotation_vector,
)

ROBOT = get_robot('fr3')
HOME = np.array(ROBOT.q_home_rad)
LIMIT = np.array([87.0] * 4 + [12.0] * 3)
vectors = st.lists(st.floats(-1.7, 1.7), min_size=3, max_size=3).map(np.array)
angles = st.lists(st.floats(-3, 3), min_size=2, max_size=2).map(np.array)


@given(vectors)
def test_the_fast_rotation_helpers_agree_with_the_library(v):
    R = quat_to_matrix(quat_exp(v))
    np.testing.assert_allclose(rotation_matrix(v), R, atol=1e-9)
    if np.linalg.norm(v) < 3.1:
        np.testing.assert_allclose(rotation_vector(R), quat_log(quat_exp(v)), atol=1e-7)


def impedance():
    controller = CartesianImpedance(torque_limit_nm=LIMIT, q_posture_rad=HOME)
    controller.reset(kinematics.forward(ROBOT, HOME))
    return controller


def settle(controller, q, ms=400):
    T, J = kinematics.forward(ROBOT, q), kinematics.jacobian(ROBOT, q)
    for _ in range(ms):
        tau = controller.torque(T, J, q, np.zeros(7), 0.001)
    return tau, T, J


def test_at_the_target_and_at_rest_there_is_no_torque():
    tau, _, _ = settle(impedance(), HOME)
    np.testing.assert_allclose(tau, 0, atol=1e-9)


@pytest.mark.parametrize('axis', range(3))
def test_an_error_pulls_with_the_stiffness_of_crisp(axis):
    controller = impedance()
    target = kinematics.forward(ROBOT, HOME)
    target[axis, 3] += 0.02
    controller.set_target(target)
    tau, _, J = settle(controller, HOME)
    wrench = np.linalg.lstsq(J.T, tau, rcond=None)[0]
    expected = np.zeros(6)
    expected[axis] = 600 * 0.02
    np.testing.assert_allclose(wrench, expected, atol=0.05)


def test_a_far_target_pulls_no_harder_than_at_the_clip():
    near, far = impedance(), impedance()
    for controller, metres in ((near, 0.16), (far, 0.5)):
        target = kinematics.forward(ROBOT, HOME)
        target[1, 3] += metres
        controller.set_target(target)
    np.testing.assert_allclose(settle(near, HOME)[0], settle(far, HOME)[0], atol=0.01)


def test_torque_grows_no_faster_than_crisp_allows_and_stays_inside_the_limits():
    controller = impedance()
    target = kinematics.forward(ROBOT, HOME)
    target[:3, 3] += 0.3
    controller.set_target(target)
    before = np.zeros(7)
    for _ in range(300):
        T, J = kinematics.forward(ROBOT, HOME), kinematics.jacobian(ROBOT, HOME)
        tau = controller.torque(T, J, HOME, np.zeros(7), 0.001).copy()
        assert (abs(tau - before) <= 0.5 + 1e-9).all()
        assert (abs(tau) <= LIMIT).all()
        before = tau


def test_motion_is_damped():
    dq = np.full(7, 0.1)
    T, J = kinematics.forward(ROBOT, HOME), kinematics.jacobian(ROBOT, HOME)
    controller = impedance()
    for _ in range(200):
        tau = controller.torque(T, J, HOME, dq, 0.001)
    assert tau @ dq < 0


def test_the_last_target_is_held_for_ever():
    controller = impedance()
    target = kinematics.forward(ROBOT, HOME)
    target[0, 3] += 0.01
    controller.set_target(target)
    tau, _, _ = settle(controller, HOME)
    again, _, _ = settle(controller, HOME, ms=5000)
    np.testing.assert_allclose(tau, again, atol=1e-6)


@given(angles, angles, st.floats(20, 500), st.floats(0, 300), st.floats(0, 1))
def test_a_profile_arrives_on_time_at_rest_and_without_jumps(start, goal, total, ramp, share):
    profile = TimeProfile(start, total, ramp)
    profile.set_goal(goal)
    profile.advance(share * total / 1e3)
    profile.set_goal(goal * 0.5)  # on the way, from whatever velocity it has
    before, speed = profile.position_rad.copy(), profile.velocity_rad_s.copy()
    step = 0.0005
    # The steepest ramp of this profile bounds each step.
    ramp_s = max(min(ramp, total / 2) / 1e3, step)
    fastest = 4 * (np.abs(goal) + np.abs(start) + np.abs(speed)).max() / (total / 1e3)
    for _ in range(int(total / 1e3 / step) + 2):
        now = profile.advance(step)
        assert (abs(now - before) <= fastest * step + 1e-9).all()
        assert (abs(profile.velocity_rad_s - speed) <= 2 * fastest * step / ramp_s + 1e-6).all()
        before, speed = now.copy(), profile.velocity_rad_s.copy()
    np.testing.assert_allclose(profile.position_rad, goal * 0.5)
    np.testing.assert_allclose(profile.velocity_rad_s, 0)


def test_a_profile_is_a_trapezoid_of_the_given_times():
    profile = TimeProfile(np.zeros(1), 1000, 200)
    profile.set_goal(np.array([0.8]))
    speeds = []
    for _ in range(1000):
        profile.advance(0.001)
        speeds.append(profile.velocity_rad_s[0])
    assert max(speeds) == pytest.approx(1.0)
    assert speeds[100] == pytest.approx(0.5, abs=0.01)
    assert speeds[500] == pytest.approx(1.0)
    assert speeds[900] == pytest.approx(0.5, abs=0.01)
    assert profile.position_rad[0] == 0.8
