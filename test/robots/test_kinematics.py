"""Kinematics against published numbers, against itself, and against finite differences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_ros.core.geometry import (
    matrix_to_quat,
    matrix_to_rpy,
    pose,
    pose_distance,
    pose_parts,
    quat_conjugate,
    quat_exp,
    quat_log,
    quat_multiply,
)
from spear_ros.robots.kinematics import InverseKinematics, forward, jacobian, link_transforms
from spear_ros.robots.registry import get_robot, robot_names

# Bridge states its orientations relative to the gripper pointing straight down.
TOP_DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
HAND_TCP = pose([0, 0, 0.1034], quat_exp([0, 0, -np.pi / 4]))


def bounds(robot):
    return (
        np.array([j.lower_rad for j in robot.joints]),
        np.array([j.upper_rad for j in robot.joints]),
    )


def random_q(robot, seed, margin=0.2):
    low, high = bounds(robot)
    return np.random.default_rng(seed).uniform(low + margin, high - margin)


def near_home(robot, seed, spread=0.5):
    low, high = bounds(robot)
    q = np.array(robot.q_home_rad) + np.random.default_rng(seed).uniform(-spread, spread, len(low))
    return np.clip(q, low + 0.1, high - 0.1)


class TestPublishedNumbers:
    def test_droid_start_pose(self):
        T = forward(
            get_robot('panda', 'robotiq_2f85'),
            [0, -np.pi / 5, 0, -4 * np.pi / 5, 0, 3 * np.pi / 5, 0],
        )
        np.testing.assert_allclose(T[:3, 3], [0.3597, 0, 0.4899], atol=5e-5)
        np.testing.assert_allclose(abs(matrix_to_rpy(T[:3, :3])), [np.pi, 0, 0], atol=1e-9)
        np.testing.assert_allclose((T @ HAND_TCP)[:3, 3], [0.3597, 0, 0.3865], atol=5e-5)

    def test_franka_ready_pose(self):
        q = [0, -np.pi / 4, 0, -3 * np.pi / 4, 0, np.pi / 2, np.pi / 4]
        T = forward(get_robot('fr3'), q)
        np.testing.assert_allclose(T[:3, 3], [0.307, 0, 0.590], atol=5e-4)
        np.testing.assert_allclose((T @ HAND_TCP)[:3, 3], [0.307, 0, 0.487], atol=5e-4)

    @pytest.mark.parametrize(
        ('q', 'xyz', 'rpy'),
        [
            (
                [-0.1319, -0.7624, 0.4449, -0.0199, 1.7564, -0.1595],
                [0.1202, -0.0191, 0.2467],
                [-0.0399, -0.1272, 0.0252],
            ),
            ([0, -1.80, 1.55, 0, 0.8, 0], [0.1227, 0, 0.0813], [0, -1.0208, 0]),
        ],
        ids=['neutral', 'sleep'],
    )
    def test_bridge_states_of_the_widowx(self, q, xyz, rpy):
        T = forward(get_robot('wx250s'), q)
        np.testing.assert_allclose(T[:3, 3], xyz, atol=5e-5)
        np.testing.assert_allclose(matrix_to_rpy(T[:3, :3] @ TOP_DOWN.T), rpy, atol=5e-5)

    def test_widowx_zero_pose_and_start_pose(self):
        robot = get_robot('wx250s')
        np.testing.assert_allclose(
            forward(robot, np.zeros(6))[:3, 3], [0.4583, 0, 0.3607], atol=5e-5
        )
        T = forward(robot, robot.q_home_rad)
        np.testing.assert_allclose(T[:3, 3], [0.3, 0, 0.15], atol=1e-5)
        np.testing.assert_allclose(T[:3, :3], TOP_DOWN, atol=1e-5)

    def test_widowx_agrees_with_the_vendors_product_of_exponentials(self):
        """Interbotix's mr_descriptions: home matrix and screw axes (w, v) in the base frame."""
        M = np.eye(4)
        M[:3, 3] = [0.458325, 0, 0.36065]
        screws = np.array(
            [
                [0, 0, 1, 0, 0, 0],
                [0, 1, 0, -0.11065, 0, 0],
                [0, 1, 0, -0.36065, 0, 0.04975],
                [1, 0, 0, 0, 0.36065, 0],
                [0, 1, 0, -0.36065, 0, 0.29975],
                [1, 0, 0, 0, 0.36065, 0],
            ]
        )
        robot = get_robot('wx250s')
        for seed in range(20):
            q = random_q(robot, seed)
            T = np.eye(4)
            for s, angle in zip(screws, q, strict=True):
                T = T @ screw(s, angle)
            np.testing.assert_allclose(T @ M, forward(robot, q), atol=1e-9)


def screw(s, angle):
    w, v = s[:3], s[3:]
    W = np.array([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]])
    T = np.eye(4)
    T[:3, :3] = np.eye(3) + np.sin(angle) * W + (1 - np.cos(angle)) * W @ W
    G = np.eye(3) * angle + (1 - np.cos(angle)) * W + (angle - np.sin(angle)) * W @ W
    T[:3, 3] = G @ v
    return T


@pytest.mark.parametrize('name', robot_names())
class TestEveryRobot:
    def test_link_poses_are_rigid_and_end_at_the_flange(self, name):
        robot = get_robot(name)
        q = random_q(robot, 0)
        links = link_transforms(robot, q)
        assert links.shape == (robot.n_joints + 1, 4, 4)
        np.testing.assert_array_equal(links[0], np.eye(4))
        for T in links:
            np.testing.assert_allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3), atol=1e-12)
        reach = np.linalg.norm(forward(robot, q)[:3, 3] - links[-1][:3, 3])
        assert reach == pytest.approx(np.linalg.norm(robot.ee_xyz), abs=1e-12)

    @given(seed=st.integers(0, 10_000))
    @settings(max_examples=25, deadline=None)
    def test_jacobian_is_the_derivative_of_the_pose(self, name, seed):
        robot = get_robot(name)
        q, eps = random_q(robot, seed), 1e-6
        J = jacobian(robot, q)
        for i in range(robot.n_joints):
            step = np.zeros(robot.n_joints)
            step[i] = eps
            T0, T1 = forward(robot, q - step), forward(robot, q + step)
            linear = (T1[:3, 3] - T0[:3, 3]) / (2 * eps)
            q0, q1 = (matrix_to_quat(T[:3, :3]) for T in (T0, T1))
            angular = quat_log(quat_multiply(q1, quat_conjugate(q0))) / (2 * eps)
            np.testing.assert_allclose(J[:, i], [*linear, *angular], atol=1e-7)

    @given(seed=st.integers(0, 10_000))
    @settings(max_examples=40, deadline=None)
    def test_inverse_reaches_what_the_arm_can_reach_from_nearby(self, name, seed):
        robot = get_robot(name)
        rng = np.random.default_rng(seed)
        q = near_home(robot, seed)
        goal = np.clip(q + rng.uniform(-0.25, 0.25, len(q)), *bounds(robot))
        T = forward(robot, goal)
        result = InverseKinematics(robot).solve(T, q)
        assert result.converged
        distance, angle = pose_distance(forward(robot, result.q_rad), T)
        assert distance < 2e-6
        assert angle < 2e-5
        np.testing.assert_allclose(result.links[-1], forward(robot, result.q_rad), atol=1e-12)

    @given(seed=st.integers(0, 10_000))
    @settings(max_examples=40, deadline=None)
    def test_inverse_never_leaves_the_joint_limits_and_always_ends(self, name, seed):
        robot = get_robot(name)
        rng = np.random.default_rng(seed)
        T = pose(rng.uniform(-1.5, 1.5, 3), quat_exp(rng.uniform(-3, 3, 3)))
        result = InverseKinematics(robot, max_iterations=30).solve(T, random_q(robot, seed))
        low, high = bounds(robot)
        assert result.iterations <= 30
        assert (result.q_rad >= low).all()
        assert (result.q_rad <= high).all()
        if not result.converged:
            assert result.position_error_m > 1e-6 or result.rotation_error_rad > 1e-5

    def test_out_of_reach_is_said_and_not_approximated(self, name):
        robot = get_robot(name)
        T = forward(robot, robot.q_home_rad)
        T[0, 3] += 3.0
        result = InverseKinematics(robot).solve(T, np.array(robot.q_home_rad))
        assert not result.converged
        assert result.position_error_m > 1.0

    def test_a_moving_target_is_tracked_without_jumps(self, name):
        robot = get_robot(name)
        ik = InverseKinematics(robot, max_iterations=8)
        q = np.array(robot.q_home_rad)
        p0, r0 = pose_parts(forward(robot, q))
        for k in range(300):
            t = 0.01 * k
            p = p0 + np.array([0.03 * np.sin(2 * t), 0.08 * np.sin(1.5 * t), 0.03 * np.sin(t)])
            r = quat_multiply(quat_exp([0.2 * np.sin(t), 0, 0.3 * np.sin(1.3 * t)]), r0)
            result = ik.solve(pose(p, r), q)
            assert result.converged
            assert abs(result.q_rad - q).max() < 0.02
            q = result.q_rad


def test_margin_keeps_the_solution_away_from_the_limits_but_lets_the_arm_out():
    robot = get_robot('wx250s')
    ik = InverseKinematics(robot, margin_rad=0.1)
    q = np.array(robot.q_home_rad)
    q[1] = robot.joints[1].upper_rad - 0.02
    result = ik.solve(forward(robot, q), q)
    assert result.converged  # inside the margin already: may stay
    q_out = q.copy()
    q_out[1] = robot.joints[1].upper_rad - 0.05
    assert ik.solve(forward(robot, q_out), q).converged
    q_in = np.array(robot.q_home_rad)
    assert not ik.solve(forward(robot, q), q_in).converged


def test_redundant_arm_is_pulled_to_the_reference_without_moving_the_flange():
    robot = get_robot('fr3')
    ik = InverseKinematics(robot, null_gain=0.05)
    q = np.array(robot.q_home_rad)
    T = forward(robot, q)
    reference = q + np.array([0.3, 0, -0.3, 0, 0.3, 0, -0.3])
    before = np.linalg.norm(reference - q)
    for k in range(60):
        shaken = T.copy()
        shaken[0, 3] += 1e-4 * (-1) ** k
        q = ik.solve(shaken, q, reference).q_rad
    assert np.linalg.norm(reference - q) < before
    assert pose_distance(forward(robot, q), T)[0] < 2e-4


def test_an_elbow_off_its_reference_drifts_back_without_a_jerk():
    spec = get_robot('fr3')
    solver = InverseKinematics(spec)
    q = np.array(spec.q_home_rad)
    target = forward(spec, q)
    start = target[0, 3]
    reference = q.copy()
    reference[[0, 2]] += [0.25, -0.25]
    before, now = q, q
    worst = 0.0
    for tick in range(50):
        target[0, 3] = start + 0.25 * (0.01 * tick) ** 2  # 0.5 m/s^2 from rest
        result = solver.solve(target, now, reference)
        assert result.converged
        worst = max(worst, float(abs(result.q_rad - 2 * now + before).max()) / 0.01**2)
        before, now = now, result.q_rad
    assert 0.0 < worst < 5.0
