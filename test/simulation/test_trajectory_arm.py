"""The joint trajectory controller of the simulated Franka: continuous velocity, rest at the end."""

import numpy as np
import pytest

from spear_ros.simulation.trajectory_arm import CubicTrajectory

DT, PERIOD, AHEAD = 0.002, 0.01, 0.1


def stream(trajectory, target, seconds, start_s=0.0):
    """Send a target every period, as the driver does; return desired positions and velocities."""
    seen = []
    for k in range(round(seconds / PERIOD)):
        goal = np.array([target(start_s + k * PERIOD)])
        trajectory.set_goal(goal, np.zeros(1), AHEAD)
        for _ in range(round(PERIOD / DT)):
            trajectory.advance(DT)
            seen.append((trajectory.position_rad[0], trajectory.velocity_rad_s[0]))
    return np.array(seen)


def test_a_single_point_is_reached_at_rest_and_held():
    trajectory = CubicTrajectory(np.zeros(2))
    trajectory.set_goal(np.array([0.1, -0.2]), np.zeros(2), 0.1)
    path = np.array([trajectory.advance(DT).copy() for _ in range(100)])
    np.testing.assert_allclose(path[-1], [0.1, -0.2])
    np.testing.assert_allclose(path[49:], np.tile([0.1, -0.2], (51, 1)), atol=1e-12)
    assert (np.diff(path[:, 0]) >= -1e-15).all()  # no overshoot
    assert not trajectory.velocity_rad_s.any()


def test_a_stream_is_followed_at_its_speed_with_a_lag_of_two_thirds_of_the_time_ahead():
    seen = stream(CubicTrajectory(np.zeros(1)), lambda t: 0.5 * t, 2.0)
    position, velocity = seen[-1]
    assert velocity == pytest.approx(0.5, rel=0.03)
    lag_s = (0.5 * 2.0 - position) / 0.5
    assert lag_s == pytest.approx(2 / 3 * AHEAD, abs=0.01)
    late = seen[len(seen) // 2 :, 1]
    assert abs(late - 0.5).max() < 0.03  # no stutter from point to point


def test_velocity_is_continuous_where_a_trajectory_replaces_another():
    seen = stream(CubicTrajectory(np.zeros(1)), lambda t: 0.1 * np.sin(3 * t), 3.0)
    assert abs(np.diff(seen[:, 1])).max() < 0.3 * 15 * DT  # 15 rad/s^2 would be a jerk


def test_a_stream_that_ends_leads_to_rest_at_its_last_target_without_overshoot():
    trajectory = CubicTrajectory(np.zeros(1))
    stream(trajectory, lambda t: 0.5 * t, 1.0)
    rest = np.array([trajectory.advance(DT)[0] for _ in range(100)])
    assert rest[-1] == pytest.approx(0.5 * 0.99)
    assert rest.max() <= 0.5 * 0.99 + 1e-9
    acceleration = np.diff(rest, 2) / DT**2
    assert abs(acceleration[: round(0.08 / DT)]).max() < 12.0  # FR3: 10 rad/s^2, at half a rad/s


@pytest.fixture(scope='module')
def world():
    pytest.importorskip('mujoco', reason='mujoco is not installed')
    from spear_ros.robots.registry import get_robot
    from spear_ros.simulation.world import World

    world = World(get_robot('panda'), 'franka_hand')
    world.control_by_trajectories()
    return world


def test_the_arm_stands_still_without_a_trajectory(world):
    q = world.q_rad.copy()
    world.step(200)
    assert abs(world.q_rad - q).max() < 1e-3


def test_the_arm_goes_to_the_point_elbow_included(world):
    q = world.q_rad + np.array([0.1, -0.1, 0.15, 0.1, -0.1, 0.1, 0.1])
    world.set_joint_trajectory(q, np.zeros(7), 1.0)
    world.step(900)
    assert abs(world.q_rad - q).max() < 3e-3


def test_a_saved_state_brings_the_trajectory_back(world):
    state = world.pack_state()
    goal = world.q_rad + 0.05
    world.set_joint_trajectory(goal, np.zeros(7), 0.2)
    world.step(300)
    moved = world.q_rad.copy()
    world.restore(state)
    world.step(300)
    assert abs(world.q_rad - moved).max() > 0.02
