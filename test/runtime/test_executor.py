"""The executor as its users meet it: states, reasons and command counts on an injected clock."""

import threading
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import pose_distance
from spear_ros.core.reasons import Reason
from spear_ros.robots.kinematics import forward
from spear_ros.runtime.executor import DriverState, ExecutorSettings
from spear_ros.runtime.state_machine import State

ROBOTS = ('fr3', 'wx250s')
MS = 1_000_000


def state_of(rig):
    snapshot = rig.executor.snapshot()
    return snapshot.state, snapshot.reason


def speed(commands, rig):
    """Largest end-effector speed in a list of commands."""
    sent = [c for c in commands if c is not None]
    steps = [pose_distance(a.T_base_ee, b.T_base_ee)[0] for a, b in pairwise(sent)]
    return max(steps, default=0.0) / (rig.period_ns * 1e-9)


def health(**changes):
    """Spoil what the policy says about itself."""
    return lambda rig: setattr(rig, 'health', replace(rig.health, **changes))


def driver(reason, text='x'):
    """Let the driver adapter report something."""
    state = DriverState(received_ns=0, reason=reason, text=text)
    return lambda rig: setattr(rig, 'driver', state)


def readings(hook):
    """Change the joint readings on their way."""
    return lambda rig: setattr(rig, 'joints_hook', hook)


def silent(stream):
    """Stop a stream."""
    return lambda rig: setattr(rig, f'send_{stream}', False)


@pytest.fixture
def rig(bench):
    return bench.Rig().ready()


class TestArming:
    @pytest.mark.parametrize('robot', ROBOTS)
    def test_disarmed_sends_nothing_and_previews_chunks(self, bench, robot):
        rig = bench.Rig(robot)
        rig.run(0.3)
        assert rig.executor.on_chunk(rig.chunk(), rig.now_ns) is None
        assert rig.executor.preview().shape == (6, 4, 4)
        assert rig.run(0.5) == [None] * round(0.5e9 / rig.period_ns)
        assert state_of(rig) == (State.DISARMED, Reason.NONE)

    @pytest.mark.parametrize('robot', ROBOTS)
    def test_first_command_is_the_measured_pose(self, bench, robot):
        rig = bench.Rig(robot)
        rig.q = rig.q + 0.05
        rig.run(0.4)
        measured = rig.q.copy()
        assert rig.executor.arm().accepted
        command = rig.tick()
        np.testing.assert_allclose(command.q_rad, measured, atol=1e-6)
        np.testing.assert_allclose(command.T_base_ee, forward(rig.robot, measured), atol=1e-9)
        assert command.gripper is None
        assert command.holding
        assert state_of(rig) == (State.ARMED, Reason.NONE)

    @pytest.mark.parametrize(
        ('spoil', 'words'),
        [
            (silent('joints'), 'no joint state has arrived'),
            (silent('gripper'), 'no gripper state has arrived'),
            (silent('driver'), 'driver adapter has not reported'),
            (silent('policy'), 'start policy_node'),
            (lambda r: r.executor.on_publisher_count(2), 'command topic: 2, expected 1'),
            (lambda r: r.executor.on_publisher_count(0), 'command topic: 0, expected 1'),
            (driver(Reason.USER_STOP, 'release the button.'), 'release the button'),
            (health(active=False), 'not active yet'),
            (health(embodiment='x'), 'embodiment "x"'),
            (health(ee_frame='tcp'), 'end-effector frame "tcp"'),
            (health(spec_mismatch='rate_hz 5 / 15'), 'rate_hz 5 / 15'),
            (health(step_s=0.0), '5 knots of 0 s'),
            (health(checkpoint_id=''), 'no checkpoint_id'),
            (health(stream_problems=('external is stale.',)), 'external is stale'),
            (readings(lambda q: np.full(7, np.nan)), 'not finite'),
            (lambda r: setattr(r, 'q', r.q + np.array([0, 0, 0, 0.9, 0, 0, 0])),
             'where the arm stands'),
        ],
    )  # fmt: skip
    def test_preflight_refuses_and_says_why(self, bench, spoil, words):
        rig = bench.Rig()
        spoil(rig)
        rig.run(0.5)
        answer = rig.executor.arm()
        assert not answer.accepted
        assert words in answer.text
        assert state_of(rig)[0] is State.DISARMED
        assert rig.tick() is None

    def test_a_slow_joint_stream_is_refused_with_its_rate(self, bench):
        rig = bench.Rig()
        for k in range(300):
            rig.send_joints = k % 10 == 0
            rig.tick()
        rig.send_joints = True
        rig.tick()
        answer = rig.executor.arm()
        assert not answer.accepted
        assert '10 Hz' in answer.text

    def test_arming_never_waits_for_statistics(self, bench):
        rig = bench.Rig()
        assert not rig.executor.arm().accepted
        rig.run(0.05)
        rig.executor.arm()  # whatever it says, it says it now

    def test_arm_is_refused_while_running_and_while_braking(self, rig):
        rig.drive(0.5)
        assert not rig.executor.arm().accepted
        assert 'RUNNING' in rig.executor.arm().text


class TestRunning:
    @pytest.mark.parametrize('robot', ROBOTS)
    def test_chunks_move_the_arm_within_nominal_limits(self, bench, robot):
        rig = bench.Rig(robot).ready()
        start = rig.commands[-1].T_base_ee
        commands = rig.drive(1.5, velocity=(0, 0.08, -0.02), turn=(0, 0, 0.2))
        assert state_of(rig) == (State.RUNNING, Reason.NONE)
        assert all(c is not None for c in commands)
        moved, turned = pose_distance(start, commands[-1].T_base_ee)
        assert moved > 0.05
        assert turned > 0.1
        motion, nominal = bench.motion_of(commands), rig.limits.nominal
        assert motion['linear_m_s'] <= nominal.linear_m_s * (1 + 1e-6)
        assert motion['linear_m_s2'] <= nominal.linear_m_s2 * 1.001
        assert motion['angular_rad_s2'] <= nominal.angular_rad_s2 * 1.001
        for c in commands:
            np.testing.assert_allclose(forward(rig.robot, c.q_rad), c.T_base_ee, atol=1e-5)

    def test_snapshot_tells_what_is_followed(self, rig):
        rig.drive(1.0)
        s = rig.executor.snapshot()
        assert s.sequence == rig.sequence
        assert s.instruction_id == rig.health.instruction_id
        assert s.checkpoint_id == rig.health.checkpoint_id
        assert s.policy_session == rig.health.policy_session
        assert s.chunks_accepted == 5
        assert 0.1 <= s.chunk_age_s <= 0.31
        assert s.arm_age_s == 0.0
        assert s.command_interval_p50_ms == pytest.approx(10.0)
        assert s.first_command_age_p50_ms == pytest.approx(110.0, abs=11)
        assert s.robot == 'fr3'
        assert not s.standstill

    def test_a_late_policy_ends_in_hold_resumes_in_time_and_latches_later(self, rig):
        rig.drive(0.6)
        rig.run(1.2)
        assert state_of(rig) == (State.HOLD, Reason.CHUNK_LATE)
        rig.drive(0.6)
        assert state_of(rig) == (State.RUNNING, Reason.NONE)
        rig.run(1.2 + 2.2)
        commands = rig.drive(0.6)
        assert state_of(rig) == (State.HOLD, Reason.CHUNK_LATE)
        assert speed(commands, rig) == 0.0
        assert rig.executor.arm().accepted
        rig.drive(0.6)
        assert state_of(rig)[0] is State.RUNNING

    def test_no_command_moves_past_the_chunks_expiry(self, rig):
        rig.drive(0.4)
        chunk = rig.chunk((0, 0.3, 0))
        rig.executor.on_chunk(chunk, rig.now_ns)
        commands = rig.run(2.0)
        after = [c for c in commands if c.stamp_ns >= chunk.expiry_ns]
        assert len(after) > 90
        assert speed(after, rig) == 0.0
        assert all(c.holding for c in after)

    def test_chunks_from_before_arming_are_dropped_and_do_not_count(self, bench):
        rig = bench.Rig()
        rig.run(0.5)
        early = rig.chunk()
        rig.run(0.1)
        assert rig.executor.arm().accepted
        assert rig.executor.on_chunk(early, rig.now_ns).reason is Reason.CHUNK_OLD
        rig.run(0.1)
        assert state_of(rig) == (State.ARMED, Reason.NONE)
        assert rig.executor.snapshot().chunks_rejected == 0

    def test_speed_scale_slows_the_same_path(self, rig):
        rig.executor.set_speed_scale(0.1)
        commands = rig.drive(1.0, velocity=(0, 0.3, 0))
        assert speed(commands, rig) <= 0.1 * rig.limits.nominal.linear_m_s * (1 + 1e-6)
        assert rig.executor.snapshot().stretch == pytest.approx(10, rel=0.3)
        with pytest.raises(UserError, match='must lie between'):
            rig.executor.set_speed_scale(0.0)

    def test_gripper_follows_the_chunks_and_survives_a_hold(self, rig):
        rig.drive(0.6, gripper=np.zeros(5))
        assert rig.commands[-1].gripper == 0.0
        rig.run(1.5)
        assert state_of(rig)[0] is State.HOLD
        assert rig.commands[-1].gripper == 0.0


class TestSoftReasons:
    def hold_after(self, rig, spoil, seconds=0.4):
        rig.drive(0.6)
        spoil(rig)
        commands = rig.drive(seconds)
        return commands, state_of(rig)

    @pytest.mark.parametrize(
        ('spoil', 'reason'),
        [
            (silent('policy'), Reason.POLICY_SILENT),
            (silent('gripper'), Reason.GRIPPER_STALE),
            (health(reason=Reason.CAMERA_STALE, text='x'), Reason.CAMERA_STALE),
            (health(reason=Reason.CAMERA_FROZEN, text='x'), Reason.CAMERA_FROZEN),
            (health(active=False), Reason.POLICY_NOT_READY),
            (health(reason=Reason.POLICY_NOT_READY), Reason.POLICY_NOT_READY),
        ],
    )  # fmt: skip
    def test_hold_with_the_right_reason_and_resume_when_it_passes(self, rig, spoil, reason):
        healthy = rig.health
        commands, seen = self.hold_after(rig, spoil)
        assert seen == (State.HOLD, reason)
        assert all(c is not None for c in commands)
        assert speed(commands[-5:], rig) == 0.0
        rig.send_policy = rig.send_gripper = True
        rig.health = healthy
        rig.drive(0.6)
        assert state_of(rig) == (State.RUNNING, Reason.NONE)

    def test_policy_death_is_noticed_after_300_ms_and_not_before(self, rig):
        rig.drive(0.6)
        rig.send_policy = False
        last = rig.now_ns
        while state_of(rig)[0] is State.RUNNING:
            rig.drive(0.2)
        assert 0.3 < (rig.now_ns - last) * 1e-9 <= 0.6
        assert state_of(rig)[1] is Reason.POLICY_SILENT

    def test_a_policy_without_instruction_does_not_disturb_an_armed_robot(self, rig):
        rig.health = replace(
            rig.health, ready=False, reason=Reason.POLICY_NOT_READY, instruction_id=''
        )
        rig.run(5.0)
        assert state_of(rig) == (State.ARMED, Reason.NONE)

    def test_skewed_stamps_hold(self, rig):
        rig.drive(0.4)
        now = rig.now_ns
        rig.executor.on_gripper(now - 2_000 * MS, now, 1.0)
        rig.tick()
        assert state_of(rig) == (State.HOLD, Reason.CLOCK_SKEW)

    def test_a_rejected_chunk_holds_and_three_in_a_row_are_a_fault(self, rig):
        rig.drive(0.6)
        for n in range(3):
            bad = rig.chunk(p_base_ee=np.full((5, 3), np.nan))
            assert rig.executor.on_chunk(bad, rig.now_ns).reason is Reason.CHUNK_NOT_FINITE
            rig.run(0.2)
            if n < 2:
                assert state_of(rig) == (State.HOLD, Reason.CHUNK_NOT_FINITE)
        assert state_of(rig) == (State.FAULT, Reason.THREE_REJECTS)
        s = rig.executor.snapshot()
        assert s.chunks_rejected == 3
        assert s.reject_counts == {Reason.CHUNK_NOT_FINITE: 3}
        assert s.last_reject_reason is Reason.CHUNK_NOT_FINITE

    def test_a_good_chunk_between_bad_ones_starts_the_count_again(self, rig):
        rig.drive(0.4)
        for _ in range(4):
            rig.executor.on_chunk(rig.chunk(embodiment='x'), rig.now_ns)
            rig.run(0.1)
            rig.executor.on_chunk(rig.chunk(), rig.now_ns)
            rig.run(0.1)
        assert state_of(rig) == (State.RUNNING, Reason.NONE)

    def test_another_session_or_checkpoint_is_rejected_until_armed_again(self, rig):
        rig.drive(0.4)
        rig.run(0.8)
        rig.health = replace(rig.health, policy_session='11111111', checkpoint_id='d' * 12)
        rig.run(0.1)
        chunk = rig.chunk()
        assert rig.executor.on_chunk(chunk, rig.now_ns).reason is Reason.CHUNK_IDENTITY
        rig.run(0.1)
        assert state_of(rig) == (State.HOLD, Reason.CHUNK_IDENTITY)
        assert rig.executor.arm().accepted
        rig.drive(0.5)
        assert state_of(rig) == (State.RUNNING, Reason.NONE)


class TestInstructions:
    def test_the_old_ones_chunk_runs_for_at_most_one_more_step(self, rig):
        rig.drive(0.6, velocity=(0, 0.2, 0))
        old = rig.health.instruction_id
        rig.health = replace(rig.health, instruction_id='bbbbbbbb')
        changed = rig.now_ns
        commands = rig.run(0.6)
        late = [c for c in commands if c.stamp_ns > changed + 210 * MS]
        assert speed(late, rig) == 0.0
        assert state_of(rig) == (State.HOLD, Reason.CHUNK_MISSING)
        stale = rig.chunk(instruction_id=old)
        assert rig.executor.on_chunk(stale, rig.now_ns).reason is Reason.CHUNK_OLD
        rig.run(0.1)
        assert speed(rig.commands[-5:], rig) == 0.0
        assert rig.executor.snapshot().chunks_rejected == 0
        rig.drive(0.6)
        assert state_of(rig) == (State.RUNNING, Reason.NONE)

    def test_a_new_instruction_whose_chunk_comes_first_is_followed(self, rig):
        rig.drive(0.4)
        rig.executor.on_chunk(rig.chunk(instruction_id='cccccccc'), rig.now_ns)
        rig.run(0.05)
        assert rig.executor.snapshot().instruction_id == 'cccccccc'
        rig.health = replace(rig.health, instruction_id='cccccccc')
        rig.run(0.5)
        assert state_of(rig)[0] is State.RUNNING


class TestHardReasons:
    @pytest.mark.parametrize('robot', ROBOTS)
    def test_stop_brakes_at_once_and_stays_within_v_squared_over_2a(self, bench, robot):
        rig = bench.Rig(robot).ready()
        rig.drive(0.6, velocity=(0, 0.2, 0))
        before = rig.commands[-1]
        assert rig.executor.stop().accepted
        first = rig.tick()
        assert first.holding
        assert state_of(rig) == (State.FAULT, Reason.STOP_SERVICE)
        after = rig.run(1.0)
        v = speed(rig.commands[-200:], rig)
        distance = pose_distance(before.T_base_ee, after[-1].T_base_ee)[0]
        assert distance <= v**2 / (2 * rig.limits.nominal.linear_m_s2) + 1e-4
        assert speed(after[-10:], rig) == 0.0
        assert all(c is not None for c in after)

    @pytest.mark.parametrize(
        ('spoil', 'reason', 'silent'),
        [
            (silent('joints'), Reason.JOINTS_STALE, False),
            (readings(lambda q: np.full(7, np.nan)), Reason.JOINTS_NOT_FINITE, False),
            (readings(lambda q: q + 0.4), Reason.JOINTS_JUMP, False),
            (readings(lambda q: np.full(7, -np.pi)), Reason.JOINTS_LIMIT, False),
            (readings(lambda q: q[:6]), Reason.JOINTS_NAMES, False),
            (driver(Reason.ROBOT_REFLEX), Reason.ROBOT_REFLEX, True),
            (driver(Reason.USER_STOP), Reason.USER_STOP, True),
            # A motor without torque: nothing that it could be pulled back to when it returns.
            (driver(Reason.MOTOR_ERROR), Reason.MOTOR_ERROR, True),
            (driver(Reason.GRIPPER_FAULT), Reason.GRIPPER_FAULT, False),
            (lambda r: r.executor.on_publisher_count(2), Reason.SECOND_PUBLISHER, True),
        ],
    )  # fmt: skip
    def test_fault_latches_until_reset(self, rig, spoil, reason, silent):
        rig.drive(0.6)
        spoil(rig)
        rig.run(0.5)
        assert state_of(rig) == (State.FAULT, reason)
        assert (rig.commands[-1] is None) == silent
        if not silent:
            assert speed(rig.commands[-5:], rig) == 0.0
        rig.send_joints, rig.joints_hook = True, lambda q: q
        rig.driver = DriverState(received_ns=0)
        rig.executor.on_publisher_count(1)
        rig.drive(0.6)
        assert state_of(rig) == (State.FAULT, reason)
        assert not rig.executor.arm().accepted
        assert rig.executor.reset().accepted
        assert state_of(rig) == (State.DISARMED, Reason.NONE)
        rig.run(0.6)
        assert rig.commands[-1] is None
        assert rig.executor.arm().accepted
        rig.drive(0.6)
        assert state_of(rig) == (State.RUNNING, Reason.NONE)

    def test_the_gripper_begins_nothing_in_a_fault(self, rig):
        rig.drive(0.6)
        assert rig.commands[-1].gripper is not None
        rig.executor.stop()
        assert all(c.gripper is None for c in rig.run(0.3))

    def test_a_dropped_target_is_not_sent_again(self, rig):
        rig.drive(0.6)
        rig.executor.stop()
        rig.run(0.5)
        rig.executor.drop_target()
        assert all(c is None for c in rig.run(0.3))
        assert state_of(rig) == (State.FAULT, Reason.STOP_SERVICE)

    def test_joints_that_are_stale_with_fresh_stamps_are_noticed(self, rig):
        rig.lag_s, stuck = 1e9, rig.q.copy()  # locked brakes, or a driver that repeats itself
        rig.joints_hook = lambda q: stuck
        start = rig.now_ns
        while state_of(rig)[0] is not State.FAULT:
            rig.drive(0.2, velocity=(0, 0.1, 0))
            assert rig.now_ns - start < 2_000 * MS
        assert state_of(rig) == (State.FAULT, Reason.JOINTS_FROZEN)

    def test_a_driver_that_falls_silent_is_lost(self, rig):
        rig.drive(0.4)
        rig.send_driver = False
        rig.drive(1.2)
        assert state_of(rig) == (State.FAULT, Reason.DRIVER_LOST)
        assert rig.commands[-1] is None

    @pytest.mark.parametrize('robot', ROBOTS)
    def test_after_a_pause_of_the_process_the_first_command_is_a_hold(self, bench, robot):
        rig = bench.Rig(robot).ready()
        rig.drive(0.8, velocity=(0, 0.2, 0))
        before = rig.commands[-1]
        rig.send_driver = False  # its report is as old as the pause, which is nobody's fault
        command = rig.tick(2_000 * MS)
        rig.send_driver = True
        assert state_of(rig) == (State.FAULT, Reason.CONTROL_GAP)
        assert command.holding
        assert pose_distance(before.T_base_ee, command.T_base_ee)[0] < 0.002
        rig.run(0.5)
        assert pose_distance(before.T_base_ee, rig.commands[-1].T_base_ee)[0] < 0.002

    @pytest.mark.parametrize('leap_s', [-5.0, -0.05, 30.0])
    def test_a_clock_jump_is_a_fault_and_the_brake_still_brakes(self, rig, leap_s):
        rig.drive(0.6, velocity=(0, 0.2, 0))
        before = rig.commands[-1]
        rig.now_ns += round(leap_s * 1e9)
        commands = rig.run(0.6)
        assert state_of(rig) == (State.FAULT, Reason.CLOCK_JUMP)
        assert all(c is not None for c in commands)
        assert pose_distance(before.T_base_ee, commands[-1].T_base_ee)[0] < 0.05
        assert speed(commands[-5:], rig) == 0.0
        assert rig.executor.reset().accepted
        rig.ready()

    def test_a_looping_simulated_clock_is_a_fault_too(self, bench):
        rig = bench.Rig(steady=False).ready()
        rig.drive(0.4)
        rig.now_ns -= 3_000 * MS
        rig.run(0.2)
        assert state_of(rig) == (State.FAULT, Reason.CLOCK_JUMP)

    def test_a_silent_reason_silences_a_fault_that_was_braking(self, rig):
        rig.drive(0.4)
        rig.executor.stop()
        assert rig.tick() is not None
        rig.executor.on_publisher_count(2)
        assert rig.tick() is None
        assert state_of(rig) == (State.FAULT, Reason.STOP_SERVICE)

    def test_reset_waits_for_standstill_and_stop_is_remembered_while_disarmed(self, rig):
        rig.drive(0.6, velocity=(0, 0.2, 0))
        rig.executor.stop()
        rig.tick()
        assert 'still braking' in rig.executor.reset().text
        rig.run(0.5)
        assert rig.executor.reset().accepted
        assert rig.executor.stop().accepted
        assert state_of(rig) == (State.FAULT, Reason.STOP_SERVICE)
        assert rig.tick() is None
        assert not rig.executor.arm().accepted
        assert 'reset' in rig.executor.arm().text

    def test_an_internal_error_freezes_and_says_so(self, rig):
        rig.drive(0.4)
        before = rig.commands[-1]

        def broken(now):
            raise ZeroDivisionError('a bug')

        rig.executor._cycle._timers = broken
        command = rig.tick()
        np.testing.assert_array_equal(command.T_base_ee, before.T_base_ee)
        assert state_of(rig) == (State.FAULT, Reason.INTERNAL_ERROR)
        assert 'ZeroDivisionError' in rig.executor.internal_error


class TestHome:
    @pytest.mark.parametrize('robot', ROBOTS)
    def test_moves_slowly_to_the_start_pose_and_ends_armed(self, bench, robot):
        rig = bench.Rig(robot).ready()
        rig.drive(1.0, velocity=(0, 0.1, -0.03), turn=(0, 0, 0.3))
        rig.run(1.5)
        answer = rig.executor.home()
        assert answer.accepted, answer.text
        assert state_of(rig)[0] is State.HOMING
        rig.run(0.3)
        assert rig.executor.snapshot().progress.startswith('home: ')
        commands = rig.run(6.0)
        assert state_of(rig) == (State.ARMED, Reason.NONE)
        np.testing.assert_allclose(commands[-1].q_rad, rig.robot.q_home_rad, atol=1e-6)
        assert bench.motion_of(commands)['linear_m_s'] <= rig.limits.home.linear_m_s * 1.01
        assert commands[-1].gripper == 1.0
        assert rig.executor.snapshot().progress == ''

    def test_chunks_are_ignored_on_the_way_and_older_ones_after_it(self, rig):
        rig.drive(0.6)
        rig.run(1.2)
        assert rig.executor.home().accepted
        rig.run(0.2)
        during = rig.chunk()
        assert rig.executor.on_chunk(during, rig.now_ns) is None
        rig.run(0.2)
        assert state_of(rig)[0] is State.HOMING
        rig.run(3.0)
        assert state_of(rig)[0] is State.ARMED
        assert rig.executor.on_chunk(during, rig.now_ns).reason is Reason.CHUNK_OLD

    def test_a_soft_reason_on_the_way_does_not_let_chunks_take_over(self, rig):
        rig.drive(1.0, velocity=(0, 0.2, 0))
        rig.run(1.2)
        assert rig.executor.home().accepted
        rig.drive(0.3)
        rig.send_gripper = False
        rig.drive(0.4)
        assert state_of(rig) == (State.HOLD, Reason.GRIPPER_STALE)
        rig.send_gripper = True
        rig.drive(1.0)  # the cause is gone and the policy goes on, but nobody has armed
        assert state_of(rig)[0] is State.HOLD
        assert speed(rig.commands[-5:], rig) == 0.0
        assert rig.executor.home().accepted

    @pytest.mark.parametrize('robot', ROBOTS)
    def test_after_a_pause_on_the_way_the_arm_stays_where_it_waited(self, bench, robot):
        rig = bench.Rig(robot).ready()
        rig.drive(1.0, velocity=(0, 0.1, 0))
        rig.run(1.5)
        assert rig.executor.home().accepted
        rig.run(0.5)
        before = rig.commands[-1]
        assert speed(rig.commands[-5:], rig) > 0.01
        rig.tick(2_000 * MS)
        rig.run(1.0)
        assert state_of(rig) == (State.FAULT, Reason.CONTROL_GAP)
        assert pose_distance(before.T_base_ee, rig.commands[-1].T_base_ee)[0] < 1e-6

    def test_only_in_armed_and_hold(self, bench, rig):
        rig.drive(0.5)
        answer = rig.executor.home()
        assert not answer.accepted
        assert 'only in ARMED, HOLD' in answer.text
        assert not bench.Rig().executor.home().accepted

    def test_stop_and_soft_reasons_on_the_way(self, rig):
        rig.drive(1.0, velocity=(0, 0.2, 0))
        rig.run(1.2)
        rig.executor.home()
        rig.run(0.6)
        rig.send_gripper = False
        rig.run(1.0)
        assert state_of(rig) == (State.HOLD, Reason.GRIPPER_STALE)
        assert speed(rig.commands[-5:], rig) == 0.0
        rig.send_gripper = True
        rig.run(0.1)
        assert rig.executor.home().accepted
        rig.run(0.4)
        rig.executor.stop()
        rig.run(0.5)
        assert state_of(rig) == (State.FAULT, Reason.STOP_SERVICE)
        assert speed(rig.commands[-5:], rig) == 0.0

    def test_a_way_that_leaves_the_limits_is_refused(self, bench):
        raised = replace(bench.get_robot('wx250s'), q_home_rad=(0.0, -1.0, 0.5, 0.0, 0.0, 0.0))
        rig = bench.Rig(raised)
        rig.q = np.array(bench.get_robot('wx250s').q_home_rad)
        rig.ready()
        answer = rig.executor.home()
        assert not answer.accepted
        assert 'on the way' in answer.text
        assert state_of(rig)[0] is State.ARMED

    def test_widowx_comes_home_from_its_sleep_pose(self, bench):
        rig = bench.Rig('wx250s')
        rig.q = np.array([0, -1.80, 1.55, 0, 0.8, 0])
        rig.ready()
        answer = rig.executor.home()
        assert answer.accepted, answer.text
        rig.run(10.0)
        np.testing.assert_allclose(rig.commands[-1].q_rad, rig.robot.q_home_rad, atol=1e-6)


class TestDisarm:
    def test_brakes_first_then_sends_nothing(self, rig):
        rig.drive(0.6, velocity=(0, 0.3, 0))
        assert rig.executor.disarm().accepted
        assert state_of(rig) == (State.HOLD, Reason.OPERATOR)
        commands = rig.run(0.6)
        assert commands[0] is not None
        assert commands[-1] is None
        assert state_of(rig) == (State.DISARMED, Reason.NONE)
        sent = [c for c in commands if c is not None]
        assert pose_distance(sent[-1].T_base_ee, sent[-2].T_base_ee)[0] < 1e-4

    def test_is_fine_twice_and_refused_in_fault(self, rig):
        rig.executor.disarm()
        rig.run(0.1)
        assert rig.executor.disarm().accepted
        rig.executor.stop()
        assert not rig.executor.disarm().accepted


class TestRecover:
    def test_only_in_fault_and_carried_out_by_the_driver(self, rig):
        ex = rig.executor
        assert not ex.recover().accepted
        rig.driver = DriverState(received_ns=0, reason=Reason.ROBOT_REFLEX, text='reflex')
        rig.run(0.1)
        assert ex.recover().accepted
        assert not ex.recover().accepted
        assert ex.take_recovery()
        assert not ex.take_recovery()
        ex.on_recovery('error recovery 1/3')
        assert ex.snapshot().progress == 'recover: error recovery 1/3'
        # Torque and controllers may be off now: nothing else is begun.
        assert not ex.recover().accepted
        assert 'under way' in ex.reset().text
        ex.on_recovery('controller active', finished=True, success=True)
        assert 'call reset' in ex.snapshot().progress
        assert rig.tick() is None
        assert state_of(rig)[0] is State.FAULT
        rig.driver = DriverState(received_ns=0)
        rig.run(0.1)
        assert ex.reset().accepted
        assert ex.snapshot().progress == ''


class TestSettings:
    def test_ranges(self):
        with pytest.raises(UserError, match='speed_scale = 2'):
            ExecutorSettings(speed_scale=2.0)
        with pytest.raises(UserError, match='arm_max_age_s'):
            ExecutorSettings(arm_max_age_s=0.0)
        with pytest.raises(UserError, match='control_rate_hz'):
            ExecutorSettings(control_rate_hz=5000.0)

    def test_without_policy_driver_and_gripper_it_still_judges_joints_and_chunks(self, bench):
        rig = bench.Rig(
            settings=ExecutorSettings(
                require_policy=False,
                require_driver=False,
                require_gripper=False,
                expected_publishers=0,
            )
        )
        rig.send_policy = rig.send_driver = rig.send_gripper = False
        rig.ready()
        rig.drive(0.5)
        assert state_of(rig)[0] is State.RUNNING
        rig.send_joints = False
        rig.run(0.2)
        assert state_of(rig) == (State.FAULT, Reason.JOINTS_STALE)

    def test_two_runs_on_the_same_clock_are_the_same(self, bench):
        def run():
            rig = bench.Rig().ready()
            commands = rig.drive(1.0, velocity=(0.02, 0.1, 0), turn=(0, 0.2, 0))
            return np.array([c.q_rad for c in commands])

        np.testing.assert_array_equal(run(), run())

    def test_inputs_may_come_from_other_threads(self, rig):
        """No deadlock, no exception, and every chunk is counted once."""
        chunks = [rig.chunk() for _ in range(200)]
        errors = []

        def feed():
            try:
                for chunk in chunks:
                    rig.executor.on_chunk(chunk, rig.now_ns)
                    rig.executor.snapshot()
                    rig.executor.preview()
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=feed) for _ in range(2)]
        for t in threads:
            t.start()
        for _ in range(100):
            rig.tick(MS)
        for t in threads:
            t.join(20.0)
        assert not errors
        s = rig.executor.snapshot()
        assert s.chunks_accepted + s.chunks_rejected == 400
        assert not rig.executor.internal_error
