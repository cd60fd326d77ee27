"""An arm that does not follow: blocked, without torque, or led away by hand."""

import numpy as np
import pytest

from spear_ros.core.reasons import Reason
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot
from spear_ros.runtime.executor import DriverState
from spear_ros.runtime.following_watch import MEMORY_S, FollowingWatch
from spear_ros.runtime.state_machine import State

ROBOTS = ('fr3', 'wx250s')
MS = 1_000_000


def state_of(rig):
    snapshot = rig.executor.snapshot()
    return snapshot.state, snapshot.reason


def blocked(rig):
    """From now on the joints read where they are, with the noise of an encoder."""
    q, rng = rig.q.copy(), np.random.default_rng(0)
    rig.joints_hook = lambda _: q + rng.normal(0.0, 1e-4, len(q))
    return q


@pytest.mark.parametrize('robot', ROBOTS)
def test_an_arm_that_lags_follows_and_one_that_stays_behind_does_not(robot):
    spec = get_robot(robot)
    q = np.array(spec.q_home_rad)
    watch = FollowingWatch(spec)
    assert watch.behind(q) is None  # nothing was sent yet
    poses, period = [], 10 * MS
    for i in range(200):
        q_i = q.copy()
        q_i[0] += 0.005 * i
        poses.append(q_i)
        watch.sent(i * period, forward(spec, q_i))
        lagging = poses[max(0, i - 25)]
        assert watch.behind(lagging) is None
    finding = watch.behind(q)
    assert finding.reason is Reason.FOLLOWING_ERROR
    assert 'does not follow' in finding.text
    watch.restart()
    assert watch.behind(q) is None


def test_the_last_target_stays_in_force_however_old():
    spec = get_robot('fr3')
    q = np.array(spec.q_home_rad)
    watch = FollowingWatch(spec)
    watch.sent(0, forward(spec, q))
    away = q + 0.3
    watch.sent(round(10 * MEMORY_S * 1e9), forward(spec, q))
    assert watch.behind(away) is not None
    assert watch.behind(q) is None


@pytest.mark.parametrize('robot', ROBOTS)
def test_home_against_an_obstacle_is_a_fault_and_not_arrived(bench, robot):
    rig = bench.Rig(robot)
    rig.q = rig.q + np.array([0.6, 0.1] + [0.0] * (len(rig.q) - 2))
    rig.ready()
    blocked(rig)
    assert rig.executor.home().accepted
    rig.run(8.0)
    assert state_of(rig) == (State.FAULT, Reason.FOLLOWING_ERROR)
    assert 'does not follow' in rig.executor.snapshot().text
    assert rig.commands[-1] is None  # nothing is left to jump to


def test_home_that_ends_a_little_beside_the_start_pose_is_not_arrived(bench):
    rig = bench.Rig('wx250s')
    rig.q = rig.q + np.array([0.25, 0, 0, 0, 0, 0.0])
    rig.ready()
    assert rig.executor.home().accepted
    # The waist ends 0.2 rad short: some 6 cm, nearer than what is called "does not follow".
    rig.joints_hook = lambda q: q + np.array([0.2 * min(1.0, (0.25 - q[0]) / 0.25)] + [0.0] * 5)
    rig.run(1.0)
    while state_of(rig)[0] is State.HOMING:
        rig.run(0.1)
    assert state_of(rig) == (State.FAULT, Reason.FOLLOWING_ERROR)
    assert 'the way is over' in rig.executor.snapshot().text


@pytest.mark.parametrize('robot', ROBOTS)
def test_pressing_under_chunks_is_bounded_by_where_the_chunks_start(bench, robot):
    rig = bench.Rig(robot).ready()
    rig.drive(0.4, velocity=(0.0, 0.15, 0.0))
    q = blocked(rig)
    ahead = []
    for _ in range(15):
        rig.q = q.copy()
        for command in rig.drive(0.2, velocity=(0.0, 0.15, 0.0)):
            ahead.append(np.linalg.norm((command.T_base_ee - forward(rig.robot, q))[:3, 3]))
    assert state_of(rig) == (State.RUNNING, Reason.NONE)
    assert 0.03 < ahead[-1] < max(ahead) < 0.08


@pytest.mark.parametrize('robot', ROBOTS)
def test_a_target_that_the_arm_was_taken_from_is_forgotten_in_a_fault(bench, robot):
    rig = bench.Rig(robot).ready()
    assert rig.executor.stop().accepted
    rig.run(0.5)
    assert rig.commands[-1] is not None
    # Led away by hand, slowly enough to be believed.
    start = rig.q.copy()
    for i in range(200):
        moved = start.copy()
        moved[0] += 0.5 * i / 199
        rig.joints_hook = lambda _, moved=moved: moved
        rig.tick()
    assert state_of(rig) == (State.FAULT, Reason.STOP_SERVICE)
    assert rig.commands[-1] is None


def test_torque_that_returns_after_a_motor_error_finds_no_old_target(bench):
    rig = bench.Rig('wx250s').ready()
    rig.drive(0.4)
    rig.driver = DriverState(received_ns=0, reason=Reason.MOTOR_ERROR, text='overload')
    rig.run(1.0)
    assert state_of(rig) == (State.FAULT, Reason.MOTOR_ERROR)
    rig.driver = DriverState(received_ns=0)
    assert all(c is None for c in rig.run(0.5))
