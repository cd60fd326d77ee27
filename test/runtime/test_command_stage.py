"""CommandStage: what it does when the judge says no, one rung at a time."""

import numpy as np
import pytest

from spear_ros.core.geometry import pose_distance
from spear_ros.core.reasons import Reason
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot
from spear_ros.runtime.command_stage import CommandStage, Source
from spear_ros.runtime.joint_motion import plan_joint_move
from spear_ros.runtime.safety import Rejection, SafetyGate, load_limits

MS = 1_000_000
PERIOD = 10 * MS
NO = Rejection(Reason.COMMAND_LIMIT, 'no')


class Judge:
    """A gate whose answers are set by hand; None falls through to the real one."""

    def __init__(self, robot, limits):
        self._real = SafetyGate(robot, limits, 0.01)
        self.answers = []

    def check_command(self, now_ns, result, previous):
        if self.answers:
            answer = self.answers.pop(0)
            if answer is not None:
                return answer
        return self._real.check_command(now_ns, result, previous)


@pytest.fixture
def stage():
    robot = get_robot('fr3')
    limits = load_limits(robot)
    stage = CommandStage(robot, limits, Judge(robot, limits), 0.01)
    stage.robot, stage.limits, stage.judge = robot, limits, stage._gate
    stage.anchor(np.array(robot.q_home_rad), 0)
    stage.produce(PERIOD, None)
    return stage


def run(stage, start, n):
    return [stage.produce(start + (k + 1) * PERIOD, None) for k in range(n)]


def moving_home(stage):
    """Let it move in joint space; returns the time."""
    goal = np.array(stage.robot.q_home_rad) + np.array([0.5, 0, 0, 0, 0, 0, 0])
    move = plan_joint_move(stage.robot, (stage.q_target, goal), stage.limits.home, PERIOD)
    stage.go(move, PERIOD)
    n = round(0.5 * move.duration_s / 0.01)
    run(stage, PERIOD, n)
    return PERIOD * (n + 1)


def test_a_refused_command_is_not_sent_and_the_joints_brake(stage):
    now = moving_home(stage)
    before = stage.sent
    stage.judge.answers = [NO]
    command, why = stage.produce(now + PERIOD, None)
    assert why is NO
    assert stage.source is Source.JOINT_BRAKE
    assert command.holding
    moved = command.q_rad - before.q_rad
    assert 0 < moved[0] < before.dq_rad_s[0] * 0.01
    commands = run(stage, now + PERIOD, 100)
    assert stage.standstill(now + 101 * PERIOD)
    joints = np.array([c.q_rad[0] for c, _ in commands])
    deceleration = -np.diff(joints, n=2) / 0.01**2
    assert deceleration.max() <= 0.5 * 10.0 * 1.01
    assert all(w is None for _, w in commands)


def test_if_the_brake_is_refused_too_the_last_command_is_repeated(stage):
    now = moving_home(stage)
    before = stage.sent
    stage.judge.answers = [NO, NO]
    command, why = stage.produce(now + PERIOD, None)
    assert why is NO
    assert stage.source is Source.FROZEN
    np.testing.assert_array_equal(command.T_base_ee, before.T_base_ee)
    for c, w in run(stage, now + PERIOD, 20):
        assert w is None
        np.testing.assert_array_equal(c.q_rad, before.q_rad)


def test_a_first_command_that_is_refused_leaves_nothing_to_send(stage):
    stage.anchor(np.array(stage.robot.q_home_rad), 0)
    stage.judge.answers = [NO]
    assert stage.produce(PERIOD, None) == (None, NO)
    assert stage.produce(2 * PERIOD, None)[0] is None


def test_nothing_is_sent_after_drop(stage):
    stage.drop()
    assert run(stage, PERIOD, 3) == [(None, None)] * 3
    assert stage.freeze(5 * PERIOD) is None


def test_two_ticks_at_the_same_time_send_the_same_target(stage):
    now = moving_home(stage)
    first, _ = stage.produce(now + PERIOD, None)
    again, _ = stage.produce(now + PERIOD, None)
    np.testing.assert_array_equal(first.T_base_ee, again.T_base_ee)


def test_pose_and_joints_of_a_command_belong_together(stage):
    now = moving_home(stage)
    stage.brake(now)
    for command, _ in run(stage, now, 50):
        gap = pose_distance(forward(stage.robot, command.q_rad), command.T_base_ee)
        assert max(gap) < 1e-5


def test_a_gap_on_the_way_home_is_not_caught_up(stage):
    now = moving_home(stage)
    before = stage.sent
    late = now + 8 * PERIOD
    command, why = stage.produce(late, None)
    assert why is None
    assert abs(command.q_rad - before.q_rad).max() < 2 * abs(before.dq_rad_s).max() * 0.01


def test_after_a_clock_jump_the_brake_continues_in_the_new_time(stage):
    now = moving_home(stage)
    before = stage.sent
    new_time = now - 3600 * 1_000_000_000
    stage.restart_time(new_time)
    command, _ = stage.produce(new_time, None)
    assert stage.source is Source.JOINT_BRAKE
    assert 0 < command.q_rad[0] - before.q_rad[0] < before.dq_rad_s[0] * 0.011
    run(stage, new_time, 100)
    assert stage.standstill(new_time + 101 * PERIOD)


def test_player_takes_over_at_rest_and_keeps_the_gripper(stage):
    now = moving_home(stage)
    stage.player.set_gripper(0.0, now)
    stage.brake(now)
    assert not stage.may_follow(now + PERIOD)
    run(stage, now, 100)
    later = now + 100 * PERIOD
    assert stage.may_follow(later)
    stage.arrive(later)
    assert stage.source is Source.PLAYER
    command, _ = stage.produce(later + PERIOD, None)
    assert command.gripper == 0.0
