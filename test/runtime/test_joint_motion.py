"""The way home and the brake of last resort stay under their limits and end where they say."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_ros.core.geometry import pose_distance
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot, robot_names
from spear_ros.runtime.joint_motion import JointBrake, plan_joint_move
from spear_ros.runtime.safety_limits import SafetyLimits

S = 1_000_000_000


def random_start(robot, seed):
    low = np.array([j.lower_rad for j in robot.joints])
    high = np.array([j.upper_rad for j in robot.joints])
    home = np.array(robot.q_home_rad)
    return np.clip(home + np.random.default_rng(seed).normal(0, 0.5, len(home)), low, high)


@given(st.sampled_from(robot_names()), st.integers(0, 1000), st.floats(0.05, 1.0))
@settings(max_examples=10, deadline=None)
def test_move_stays_under_every_limit_and_arrives(name, seed, speed_scale):
    robot = get_robot(name)
    limits = SafetyLimits.of(robot).home
    start, goal = random_start(robot, seed), np.array(robot.q_home_rad)
    move = plan_joint_move(robot, (start, goal), limits, 5 * S, speed_scale)
    t = np.linspace(0, move.duration_s, 250)
    q = np.array([move.at(5 * S + round(x * S)) for x in t])
    dt = t[1]
    np.testing.assert_allclose(q[0], start, atol=1e-9)
    np.testing.assert_allclose(q[-1], goal, atol=1e-9)
    assert move.finished(5 * S + round(move.duration_s * S) + 1)
    dq = abs(np.diff(q, axis=0)) / dt
    top = limits.joint_fraction * np.array([j.velocity_rad_s for j in robot.joints])
    assert (dq <= speed_scale * top * 1.01).all()
    T = [forward(robot, x) for x in q]
    steps = np.array([pose_distance(a, b) for a, b in pairwise(T)]) / dt
    assert steps[:, 0].max() <= speed_scale * limits.linear_m_s * 1.02
    assert steps[:, 1].max() <= speed_scale * limits.angular_rad_s * 1.02


def test_move_before_its_start_and_after_its_end_stands_still():
    robot = get_robot('fr3')
    start = random_start(robot, 1)
    move = plan_joint_move(robot, (start, np.array(robot.q_home_rad)), robot.nominal, S)
    np.testing.assert_array_equal(move.at(0), start)
    np.testing.assert_allclose(move.at(99 * S), robot.q_home_rad)
    assert move.share(0) == 0.0
    assert move.share(99 * S) == 1.0
    assert len(move.waypoints()) > 20


def test_being_there_already_takes_no_risk():
    robot = get_robot('fr3')
    home = np.array(robot.q_home_rad)
    move = plan_joint_move(robot, (home, home), robot.nominal, 0)
    assert move.duration_s == pytest.approx(0.5)
    np.testing.assert_array_equal(move.at(S // 4), home)


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_brake_keeps_the_direction_and_every_joints_deceleration(seed):
    rng = np.random.default_rng(seed)
    q, dq = rng.normal(0, 1, 7), rng.normal(0, 1, 7)
    deceleration = rng.uniform(1, 10, 7)
    brake = JointBrake(q, dq, deceleration, 0)
    t = np.linspace(0, brake.duration_s, 200)
    way = np.array([brake.at(round(x * S)) for x in t])
    assert brake.finished(round(brake.duration_s * S) + 1)
    speed = np.diff(way, axis=0) / t[1]
    assert (abs(np.diff(speed, axis=0)) / t[1] <= deceleration * 1.01).all()
    moved = way[-1] - q
    np.testing.assert_allclose(moved, 0.5 * brake.duration_s * dq, atol=1e-6)
    np.testing.assert_array_equal(brake.at(100 * S), brake.at(200 * S))


def test_brake_at_rest_is_over_at_once():
    brake = JointBrake(np.ones(6), np.zeros(6), np.ones(6), 7)
    assert brake.finished(7)
    np.testing.assert_array_equal(brake.at(S), np.ones(6))
