"""GiveWay: a stiff arm in front of a wall, in one and in several joints."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_ros.core.geometry import pose_distance
from spear_ros.core.reasons import Reason
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot
from spear_ros.runtime.command_stage import CommandStage
from spear_ros.runtime.effort_guard import EffortGuard
from spear_ros.runtime.executor_types import DriverState, ExecutorSettings
from spear_ros.runtime.give_way import GiveWay, GiveWaySettings
from spear_ros.runtime.safety import SafetyGate, load_limits
from spear_ros.runtime.state_machine import State

PERIOD_S = 0.04
SOFT, LIMIT = 750.0, 1000.0
SETTINGS = GiveWaySettings(soft_effort=(SOFT, SOFT))
ZERO = np.zeros(2)
UPWARDS = 1.0
"""Sign of an elbow's effort that draws the fingers of a WidowX upwards."""


class Servos:
    """Two position servos under commands at 25 Hz, heard a period late; a wall stops the first."""

    def __init__(self, give_way, stiffness, wall_rad=np.inf, lag_s=0.03):
        self.give_way, self.stiffness, self.wall, self.lag_s = give_way, stiffness, wall_rad, lag_s
        self.q, self.set_point, self.effort = ZERO.copy(), ZERO.copy(), ZERO.copy()
        self.sent, self.dq, self.now_ns = ZERO.copy(), ZERO.copy(), 0
        self.efforts, self.targets, self.drawn = [], [], []
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
        self.drawn.append(self.give_way is not None and self.give_way.gives_way)
        for _ in range(4):
            self.now_ns += 10_000_000
            self.set_point += (target - self.set_point) * (1 - np.exp(-0.01 / self.lag_s))
            self.q = self.set_point.copy()
            self.q[0] = min(self.q[0], self.wall)
            self.effort = self.stiffness * (self.set_point - self.q)
            self.efforts.append(abs(self.effort[0]))
            self.guard.update(('a', 'b'), self.effort.tolist(), self.now_ns * 1e-9)


def ramp_into_wall(give_way, stiffness, speed, seconds=1.0, beyond=0.11):
    """Go on for ``seconds`` at ``speed`` although a wall is met after a tenth of a radian."""
    arm = Servos(give_way, stiffness, wall_rad=0.1)
    asked = ZERO.copy()
    for k in range(round(seconds / PERIOD_S)):
        asked = np.array([min(speed * k * PERIOD_S, 0.1 + beyond), 0.0])
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
    # Far beyond the largest distance too, where the arm is taken along.
    arm, asked = ramp_into_wall(GiveWay(SETTINGS, PERIOD_S), stiffness, speed, beyond=0.5)
    velocity = np.diff(np.array(arm.targets), axis=0) / PERIOD_S
    acceleration = abs(np.diff(velocity, axis=0) / PERIOD_S).max(axis=1)
    drawn = np.array(arm.drawn[2:])
    assert acceleration[drawn].max(initial=0.0) <= SETTINGS.acceleration_rad_s2 + 1e-6
    assert abs(velocity).max() <= max(speed, SETTINGS.back_rad_s) + SETTINGS.forth_rad_s + 1e-9
    for _ in range(50):
        arm.period(asked)
    assert abs(asked - arm.sent).max() <= SETTINGS.most_rad + 1e-9


def test_in_contact_the_arm_goes_on_slower_the_nearer_it_is_to_the_soft_effort():
    steps = []
    for effort in (0.2, 0.6, 0.8, 0.95):
        give_way = GiveWay(SETTINGS, PERIOD_S)
        give_way.on_efforts(0, np.array([1200.0, 0.0]))
        sent = np.array([0.1, 0.0])
        drawn = give_way.update(0, sent, (sent, ZERO), ZERO)
        give_way.on_efforts(1, np.array([effort * SOFT, 0.0]))
        # The second joint is asked to go on by itself.
        target = give_way.update(1, np.array([0.1, 0.01]), (drawn, ZERO), drawn - 0.02)
        steps.append(target[1])
    assert steps[0] == steps[1] == pytest.approx(0.01)
    assert 0.0 < steps[3] < steps[2] < steps[1]


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
    # Nothing is known of what pushes: what was drawn back stands, whatever is asked.
    for time in (round(SETTINGS.max_age_s * 1e9) + 1, -1):
        stands = give_way.update(time, sent + 0.02, (drawn, ZERO), ZERO)
        np.testing.assert_allclose(stands, drawn, atol=1e-12)
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


def stuck(rig):
    """The shoulder stays behind its target and pushes, whatever it is told."""
    last = next(c for c in reversed(rig.commands) if c is not None)
    rig.q = last.q_rad - np.array([0.0, 0.04, 0.0, 0.0, 0.0, 0.0])
    rig.executor.on_efforts(rig.now_ns, np.array([0.0, 1200.0, 0, 0, 0, 0]))


@pytest.mark.parametrize(
    ('event', 'wanted'),
    [
        ('stop', (State.FAULT, Reason.STOP_SERVICE)),
        ('driver', (State.FAULT, Reason.MOTOR_ERROR)),
        ('silence', (State.HOLD, Reason.CHUNK_LATE)),
        ('disarm', (State.DISARMED, Reason.NONE)),
    ],
)
def test_an_arm_that_gives_way_stands_at_once_and_stays_when_it_follows_nothing(
    bench, event, wanted
):
    rig = widowx(bench)
    press(rig, 2, 0.0)
    press(rig, 1, 1200.0)
    assert rig.executor._cycle.stage.give_way.gives_way
    before = rig.commands[-1]
    if event == 'stop':
        rig.executor.stop()
    elif event == 'disarm':
        rig.executor.disarm()
    elif event == 'driver':
        rig.send_driver = False
        state = DriverState(received_ns=rig.now_ns, reason=Reason.MOTOR_ERROR, text='overload')
        rig.executor.on_driver(state)
    commands = []
    for _ in range(40):  # "silence": the chunk runs out
        stuck(rig)
        command = rig.tick()
        if event != 'silence' or rig.executor.snapshot().state != State.RUNNING:
            commands.append(command)
    snapshot = rig.executor.snapshot()
    assert (snapshot.state, snapshot.reason) == wanted
    assert snapshot.progress == ''
    sent = [c for c in commands if c is not None]
    if event == 'silence':
        before = sent[0]
    for command in sent:
        # No further in than the braking of what was really sent, and nothing by itself.
        further = 1e-3 if event == 'silence' else 1e-5
        assert command.T_base_ee[2, 3] >= before.T_base_ee[2, 3] - further
    for command in sent[5:]:
        np.testing.assert_array_equal(command.q_rad, sent[-1].q_rad)


def test_an_armed_arm_that_carries_a_weight_does_not_sink(bench):
    rig = widowx(bench)
    first = rig.commands[-1]
    for _ in range(50):
        stuck(rig)
        command = rig.tick()
    assert rig.executor.snapshot().state == State.ARMED
    np.testing.assert_allclose(command.q_rad, first.q_rad, atol=1e-5)


@pytest.mark.parametrize('sign', [1.0, -1.0])
def test_at_the_floor_of_the_workspace_the_arm_stands_instead_of_being_refused(sign):
    """Drawing back the elbow alone lowers or raises the fingers, with the sign of the push."""
    robot = get_robot('wx250s')
    q = np.array(robot.q_home_rad)
    limits = load_limits(robot)
    floor = (*limits.workspace_min_m[:2], forward(robot, q)[2, 3] - 1e-4)
    limits = replace(limits, workspace_min_m=floor)
    stage = CommandStage(robot, limits, SafetyGate(robot, limits, PERIOD_S), PERIOD_S)
    stage.give_way = GiveWay(GiveWaySettings(soft_effort=(SOFT,) * 6), PERIOD_S)
    stage.anchor(q, 0)
    heights = []
    for k in range(1, 30):
        now = round(k * PERIOD_S * 1e9)
        behind = np.array([0.0, 0.0, -0.03 * sign, 0.0, 0.0, 0.0])
        stage.give_way.on_efforts(now, np.array([0.0, 0.0, 1500.0 * sign, 0.0, 0.0, 0.0]))
        command, why = stage.produce(now, stage.q_target + behind)
        assert why is None
        assert command is not None
        heights.append(command.T_base_ee[2, 3])
    assert min(heights) >= floor[2] - 1e-5
    moved = max(heights) - min(heights)
    assert (moved > 0.005) == (sign == UPWARDS)


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
