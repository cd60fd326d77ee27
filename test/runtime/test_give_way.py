"""GiveWay: a stiff arm in front of a wall, in one and in several joints."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_ros.core.reasons import Reason
from spear_ros.runtime.effort_guard import EffortGuard
from spear_ros.runtime.executor_types import DriverState, ExecutorSettings
from spear_ros.runtime.give_way import GiveWay, GiveWaySettings
from spear_ros.runtime.state_machine import State

PERIOD_S = 0.04
SOFT, LIMIT = 750.0, 1000.0
SETTINGS = GiveWaySettings(soft_effort=(SOFT, SOFT))
ZERO = np.zeros(2)


class Servos:
    """Two position servos under commands at 25 Hz, heard a period late; a wall stops the first."""

    def __init__(self, give_way, stiffness, wall_rad=np.inf, lag_s=0.03):
        self.give_way, self.stiffness, self.wall, self.lag_s = give_way, stiffness, wall_rad, lag_s
        self.q, self.set_point, self.effort = ZERO.copy(), ZERO.copy(), ZERO.copy()
        self.sent, self.dq, self.now_ns = ZERO.copy(), ZERO.copy(), 0
        self.efforts, self.targets = [], []
        self.guard = EffortGuard((LIMIT, LIMIT), time_s=0.1)

    def period(self, asked):
        """One control period with the targets ``asked``."""
        asked = np.array(asked, float)
        target = asked
        if self.give_way is not None:
            self.give_way.on_efforts(self.now_ns, self.effort.copy())
            target = self.give_way.update(self.now_ns, asked, (self.sent, self.dq), self.q.copy())
        self.dq = (target - self.sent) / PERIOD_S
        self.sent = target
        self.targets.append(target.copy())
        for _ in range(4):
            self.now_ns += 10_000_000
            self.set_point += (target - self.set_point) * (1 - np.exp(-0.01 / self.lag_s))
            self.q = self.set_point.copy()
            self.q[0] = min(self.q[0], self.wall)
            self.effort = self.stiffness * (self.set_point - self.q)
            self.efforts.append(abs(self.effort[0]))
            self.guard.update(('a', 'b'), self.effort.tolist(), self.now_ns * 1e-9)


def ramp_into_wall(give_way, stiffness, speed, seconds=1.0):
    """Go on for ``seconds`` at ``speed`` although a wall is met after a tenth of a radian."""
    arm = Servos(give_way, stiffness, wall_rad=0.1)
    asked = ZERO.copy()
    for k in range(round(seconds / PERIOD_S)):
        asked = np.array([min(speed * k * PERIOD_S, 0.1 + 0.11), 0.0])
        arm.period(asked)
    return arm, asked


@given(stiffness=st.floats(5e3, 4e4), speed=st.floats(0.05, 0.35))
@settings(max_examples=60, deadline=None)
def test_a_wall_does_not_trip_the_guard_of_an_arm_that_gives_way(stiffness, speed):
    arm, _ = ramp_into_wall(GiveWay(SETTINGS, PERIOD_S), stiffness, speed, seconds=3.0)
    assert arm.guard.tripped == ''
    settled = arm.efforts[-40:]
    assert max(settled) < LIMIT
    assert max(settled) > 0.3 * SOFT or arm.targets[-1][0] < 0.11  # it does push on, softly


def test_the_same_wall_trips_the_guard_of_a_stiff_arm():
    arm, _ = ramp_into_wall(None, 2e4, 0.3)
    assert 'joint a' in arm.guard.tripped


def test_targets_come_back_exactly_when_nothing_is_pushed_any_more():
    give_way = GiveWay(SETTINGS, PERIOD_S)
    arm, asked = ramp_into_wall(give_way, 2e4, 0.3)
    assert give_way.gives_way
    drawn = asked[0] - arm.sent[0]
    assert drawn > 0.03
    arm.wall = np.inf
    gaps = []
    for _ in range(60):
        arm.period(asked)
        gaps.append(asked[0] - arm.sent[0])
    assert min(gaps) >= 0.0  # never past what is asked
    assert gaps[-1] == 0.0
    assert not give_way.gives_way


@given(stiffness=st.floats(5e3, 4e4), speed=st.floats(0.05, 1.5))
@settings(max_examples=60, deadline=None)
def test_speed_and_acceleration_of_a_drawn_target_are_bounded(stiffness, speed):
    arm, _ = ramp_into_wall(GiveWay(SETTINGS, PERIOD_S), stiffness, speed)
    joints = np.array(arm.targets)
    velocity = np.diff(joints, axis=0) / PERIOD_S
    allowed = SETTINGS.acceleration_rad_s2 + speed / PERIOD_S  # of the ramp's own corner
    assert abs(velocity).max() <= speed + SETTINGS.back_rad_s + 1e-9
    assert abs(np.diff(velocity, axis=0) / PERIOD_S).max() <= allowed + 1e-6


def test_without_effort_targets_pass_untouched_to_the_bit():
    give_way = GiveWay(SETTINGS, PERIOD_S)
    rng = np.random.default_rng(0)
    for k in range(50):
        asked = rng.normal(size=2)
        give_way.on_efforts(k, rng.uniform(-SOFT, SOFT, 2))
        sent = (asked - 0.01, ZERO)
        assert give_way.update(k, asked, sent, rng.normal(size=2)) is asked


def test_the_whole_arm_stands_while_one_joint_pushes():
    give_way = GiveWay(SETTINGS, PERIOD_S)
    give_way.on_efforts(0, np.array([1200.0, 0.0]))
    sent = np.array([0.02, 0.3])
    target = give_way.update(0, np.array([0.03, 0.34]), (sent, ZERO), np.array([0.0, 0.3]))
    assert target[0] < sent[0]
    assert target[1] == pytest.approx(sent[1])
    assert give_way.text(('waist', 'wrist')) == (
        'gives way: waist pushes with 1200 mA (soft limit 750).'
    )
    give_way.on_efforts(1, ZERO)
    give_way.update(1, np.array([0.03, 0.34]), (target, ZERO), np.array([0.0, 0.3]))
    assert give_way.text(('waist', 'wrist')) == ''


def test_an_effort_against_the_error_is_not_a_push_of_the_target():
    give_way = GiveWay(SETTINGS, PERIOD_S)
    give_way.on_efforts(0, np.array([-1200.0, 0.0]))  # holds a weight that the target is above of
    asked = np.array([0.03, 0.0])
    assert give_way.update(0, asked, (asked, ZERO), ZERO) is asked


def test_an_effort_that_is_reported_wrongly_lets_the_arm_sink_no_further_than_said():
    give_way = GiveWay(SETTINGS, PERIOD_S)
    sent, asked = ZERO.copy(), ZERO.copy()
    for k in range(500):
        give_way.on_efforts(k, np.array([900.0, 0.0]))
        # It sags below whatever it is told, as an arm under its own weight does.
        sent = give_way.update(k, asked, (sent, ZERO), sent - np.array([0.02, 0.0]))
    assert sent[0] == pytest.approx(-SETTINGS.most_rad)


def test_old_wrong_and_missing_efforts_change_nothing():
    give_way = GiveWay(SETTINGS, PERIOD_S)
    sent = np.array([0.05, 0.0])
    first = give_way.update(0, sent, (sent, ZERO), ZERO)
    np.testing.assert_array_equal(first, sent)
    give_way.on_efforts(0, np.array([np.nan, 0.0]))
    give_way.on_efforts(0, np.array([2000.0]))
    np.testing.assert_array_equal(give_way.update(1, sent, (sent, ZERO), ZERO), sent)
    give_way.on_efforts(0, np.array([1200.0, 0.0]))
    drawn = give_way.update(1, sent, (sent, ZERO), ZERO)
    assert drawn[0] < sent[0]
    late = round(SETTINGS.max_age_s * 1e9) + 1
    np.testing.assert_array_equal(give_way.update(late, sent, (drawn, ZERO), ZERO), drawn)
    assert give_way.text(('a', 'b')) == ''


def test_share_zero_means_that_no_joint_gives_way():
    assert GiveWaySettings.below((1000.0, 500.0), 0.0) is None
    below = GiveWaySettings.below((1000.0, 500.0), 0.75)
    assert below is not None
    assert below.soft_effort == (750.0, 375.0)


# ------------------------------------------------------------------------------ inside the executor


def widowx(bench):
    """An armed rig of a WidowX whose soft efforts are 750."""
    soft = GiveWaySettings(soft_effort=(SOFT,) * 6)
    rig = bench.Rig('wx250s', ExecutorSettings(give_way=soft))
    rig.ready()
    return rig


def press(rig, chunks, effort):
    """Follow chunks downwards while the second joint reports ``effort``; the arm stays."""
    commands = []
    for _ in range(chunks):
        rig.executor.on_chunk(rig.chunk(velocity=(0.0, 0.0, -0.08)), rig.now_ns)
        for _ in range(5):
            rig.executor.on_efforts(rig.now_ns, np.array([0.0, effort, 0.0, 0.0, 0.0, 0.0]))
            commands.append(rig.tick())
    return commands


def test_a_command_that_is_drawn_back_is_judged_and_its_pose_belongs_to_its_joints(bench):
    from spear_ros.core.geometry import pose_distance
    from spear_ros.robots.kinematics import forward

    rig = widowx(bench)
    free = press(rig, 2, 0.0)
    assert free[-1].T_base_ee[2, 3] < free[0].T_base_ee[2, 3] - 0.01
    pressed = press(rig, 3, 1200.0)
    snapshot = rig.executor.snapshot()
    assert (snapshot.state, snapshot.reason) == (State.RUNNING, Reason.NONE)
    assert 'shoulder pushes with 1200 mA' in snapshot.progress
    asked = rig.executor._cycle.stage.player.sample(rig.now_ns).T_base_ee
    assert pressed[-1].T_base_ee[2, 3] > asked[2, 3] + 0.004
    for command in pressed:
        assert max(pose_distance(forward(rig.robot, command.q_rad), command.T_base_ee)) < 1e-4
    motion = bench.motion_of(free + pressed)
    assert motion['joint_rad_s2'] <= 30.0
    assert motion['linear_m_s'] <= rig.limits.hard.linear_m_s
    press(rig, 5, 0.0)
    assert rig.executor.snapshot().progress == ''


def test_a_faulted_arm_does_not_move_to_give_way(bench):
    rig = widowx(bench)
    press(rig, 2, 0.0)
    rig.send_driver = False
    rig.executor.on_driver(
        DriverState(received_ns=rig.now_ns, reason=Reason.MOTOR_ERROR, text='overload')
    )
    rig.run(0.5)
    standing = [rig.tick().q_rad for _ in range(3)]
    for _ in range(10):
        rig.executor.on_efforts(rig.now_ns, np.array([0.0, 1500.0, 0, 0, 0, 0]))
        np.testing.assert_array_equal(rig.tick().q_rad, standing[-1])
    assert rig.executor.snapshot().state == State.FAULT


def test_an_arm_that_holds_draws_back_but_does_not_return_by_itself(bench):
    rig = widowx(bench)
    press(rig, 2, 0.0)
    rig.run(1.5)  # no chunk comes any more
    assert rig.executor.snapshot().state == State.HOLD
    standing = rig.tick().q_rad
    for _ in range(5):
        rig.q = rig.commands[-1].q_rad - np.array([0.0, 0.04, 0.0, 0.0, 0.0, 0.0])
        rig.executor.on_efforts(rig.now_ns, np.array([0.0, 1200.0, 0, 0, 0, 0]))
        drawn = rig.tick().q_rad
    assert drawn[1] < standing[1] - 0.01
    for _ in range(10):
        rig.executor.on_efforts(rig.now_ns, np.zeros(6))
        # The solver of the inverse kinematics stops within micrometres.
        np.testing.assert_allclose(rig.tick().q_rad, drawn, atol=1e-5)


def test_arming_again_starts_from_the_measured_pose_without_what_was_drawn_back(bench):
    rig = widowx(bench)
    press(rig, 3, 1200.0)
    assert rig.executor._cycle.stage.give_way.gives_way
    rig.executor.disarm()
    rig.run(1.0)
    assert rig.executor.arm().accepted
    assert not rig.executor._cycle.stage.give_way.gives_way
    command = rig.tick()
    np.testing.assert_allclose(command.q_rad, rig.q, atol=1e-6)
