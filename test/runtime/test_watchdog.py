"""What makes a reading credible: ages, skew, names, limits, jumps, frozen, clocks."""

from dataclasses import replace

import numpy as np
import pytest

from spear_ros.core.geometry import pose, quat_exp
from spear_ros.core.reasons import Reason
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot
from spear_ros.runtime.watchdog import ClockWatch, JointWatch, StreamMeter

S = 1_000_000_000
MS = 1_000_000
ROBOT = get_robot('wx250s')
NAMES = ROBOT.joint_names
HOME = np.array(ROBOT.q_home_rad)
T_HOME = forward(ROBOT, HOME)


class TestStreamMeter:
    def test_age_is_the_older_of_stamp_and_receipt(self):
        meter = StreamMeter('x', 0.05)
        assert meter.age_s(S) == -1.0
        assert meter.stale(S)
        meter.note(S, S + 20 * MS)
        assert meter.age_s(S + 30 * MS) == pytest.approx(0.03)
        meter.note(2 * S + 40 * MS, 2 * S)  # stamped by a clock that runs ahead
        assert meter.age_s(2 * S + 45 * MS) == pytest.approx(0.045)
        assert meter.stale(2 * S + 51 * MS)

    def test_repeated_stamps_do_not_refresh(self):
        meter = StreamMeter('x', 0.05)
        for k in range(10):
            meter.note(S, S + k * 10 * MS)
        assert meter.stale(S + 95 * MS)

    def test_stamps_a_second_off_are_clock_skew_and_not_recorded(self):
        meter = StreamMeter('arm', 0.05)
        finding = meter.note(S, 3 * S)
        assert finding.reason is Reason.CLOCK_SKEW
        assert '+2.00 s' in finding.text
        assert meter.age_s(3 * S) == -1.0
        assert meter.note(5 * S, 3 * S).reason is Reason.CLOCK_SKEW

    def test_rate_over_the_last_two_seconds(self):
        meter = StreamMeter('x', 0.05)
        for k in range(300):
            meter.note(k * 10 * MS, k * 10 * MS)
        assert meter.rate_hz(299 * 10 * MS) == pytest.approx(100, rel=0.01)
        assert meter.rate_hz(20 * S) == 0.0


def fed(n=20, period=10 * MS, q=HOME):
    watch = JointWatch(ROBOT, 0.05)
    for k in range(n):
        assert watch.observe(k * period, k * period, NAMES, q + 1e-5 * k) is None
    return watch, (n - 1) * period


class TestJointWatch:
    def test_names_in_any_order_with_strangers_among_them(self):
        watch = JointWatch(ROBOT, 0.05)
        names = [*reversed(NAMES), 'gripper', 'left_finger']
        q = [*reversed(HOME.tolist()), 0.3, 0.02]
        assert watch.observe(S, S, names, np.array(q)) is None
        np.testing.assert_array_equal(watch.q, HOME)

    @pytest.mark.parametrize(
        ('names', 'q', 'words'),
        [
            (NAMES[:5], HOME[:5], 'wrist_rotate'),
            (('panda_joint1',) * 1, np.zeros(1), 'waist'),
            ((*NAMES, 'waist'), np.zeros(7), 'repeat'),
            (NAMES, np.zeros(4), '6 joint names but 4 positions'),
        ],
    )
    def test_missing_repeated_or_uneven_names(self, names, q, words):
        finding = JointWatch(ROBOT, 0.05).observe(S, S, names, q)
        assert finding.reason is Reason.JOINTS_NAMES
        assert words in finding.text

    def test_not_finite(self):
        watch, t = fed()
        q = HOME.copy()
        q[2] = np.nan
        assert watch.observe(t + 10 * MS, t + 10 * MS, NAMES, q).reason is Reason.JOINTS_NOT_FINITE
        np.testing.assert_allclose(watch.q, HOME, atol=1e-3)  # the bad one was not taken over

    def test_zero_ticks_of_a_serial_error_are_outside_the_limits(self):
        """xs_driver returns zero ticks on a read error: every joint reads about -pi."""
        watch, t = fed()
        finding = watch.observe(t + 10 * MS, t + 10 * MS, NAMES, np.full(6, -np.pi))
        assert finding.reason is Reason.JOINTS_LIMIT
        assert 'shoulder reads -3.142 rad' in finding.text

    def test_a_jump_between_two_samples(self):
        watch, t = fed()
        q = HOME.copy()
        q[0] += 0.31
        finding = watch.observe(t + 60 * MS, t + 60 * MS, NAMES, q)
        assert finding.reason is Reason.JOINTS_JUMP
        assert 'waist jumped 0.31' in finding.text

    def test_faster_than_the_motors_can_is_a_jump_too(self):
        watch, t = fed()
        q = HOME.copy()
        q[0] += 0.1  # 10 rad/s
        finding = watch.observe(t + 10 * MS, t + 10 * MS, NAMES, q)
        assert finding.reason is Reason.JOINTS_JUMP
        slow = HOME.copy()
        slow[0] += 0.1
        watch, t = fed()
        assert watch.observe(t + 60 * MS, t + 60 * MS, NAMES, slow) is None

    def test_full_motor_speed_is_no_jump_at_the_real_stamps(self):
        watch = JointWatch(ROBOT, 0.05)
        rng = np.random.default_rng(0)
        t, q = 0, HOME.copy()
        for _ in range(200):
            dt = int(rng.integers(8, 64)) * MS  # gaps up to 64 ms are in the vendor's own recording
            t += dt
            q = HOME.copy()
            q[0] += 0.5 * np.sin(3.14 * t / S / 0.5)
            assert watch.observe(t, t, NAMES, q) is None

    def test_after_a_jump_the_arm_is_believed_once_it_stays_there(self):
        watch, t = fed()
        moved = HOME.copy()
        moved[0] += 1.0
        found = [watch.observe(t + k * 10 * MS, t + k * 10 * MS, NAMES, moved) for k in range(1, 9)]
        assert [f is not None for f in found] == [True] * 5 + [False] * 3
        np.testing.assert_array_equal(watch.q, moved)

    def test_one_outlier_does_not_become_the_baseline(self):
        watch, t = fed()
        outlier = HOME.copy()
        outlier[0] += 1.0
        assert watch.observe(t + 10 * MS, t + 10 * MS, NAMES, outlier) is not None
        assert watch.observe(t + 20 * MS, t + 20 * MS, NAMES, HOME) is None

    def test_reordered_samples_are_not_newer(self):
        watch, t = fed()
        before = watch.q
        assert watch.observe(t - 30 * MS, t, NAMES, HOME) is None
        np.testing.assert_array_equal(watch.q, before)
        assert watch.meter.age_s(t + 60 * MS) == pytest.approx(0.06)

    def test_past_angles_are_interpolated_and_the_future_is_not_invented(self):
        watch = JointWatch(ROBOT, 0.05)
        for k in range(11):
            watch.observe(S + k * 10 * MS, S + k * 10 * MS, NAMES, HOME + 0.01 * k)
        np.testing.assert_allclose(watch.at(S + 25 * MS), HOME + 0.025, atol=1e-12)
        np.testing.assert_allclose(watch.at(S + 30 * MS), HOME + 0.03, atol=1e-12)
        np.testing.assert_allclose(watch.at(S + 130 * MS), HOME + 0.1, atol=1e-12)
        assert watch.at(S + 200 * MS) is None
        assert watch.at(S - 1) is None


def test_a_real_arms_stream_is_believed_throughout(real_recordings):
    """106 s of a moving WidowX-200 with late and bunched samples: not one false finding."""
    bags = pytest.importorskip('spear_ros.data.bag_files', reason='reading bags needs rosbags')
    names = ('waist', 'shoulder', 'elbow', 'wrist_angle', 'wrist_rotate')
    robot = replace(ROBOT, joints=tuple(j for j in ROBOT.joints if j.name in names))
    watch, late, count, last = JointWatch(robot, 0.05), 0, 0, None
    with bags.Bag(real_recordings / 'widowx200_rosbag2/wx200_mcap') as bag:
        for topic, received, data in bag.messages(['/wx200/joint_states']):
            message = bag.deserialize(topic, data)
            stamp = message.header.stamp.sec * S + message.header.stamp.nanosec
            late += last is not None and watch.meter.stale(stamp)
            last, count = stamp, count + 1
            assert watch.observe(stamp, received, message.name, message.position) is None
    assert count > 10_000
    assert late == 1  # one gap of 64 ms: the age limit of 50 ms is tight for this driver


class TestFrozen:
    def step(self, watch, k, q, T):
        t = k * 10 * MS
        watch.observe(t, t, NAMES, q)
        return watch.frozen(t, T)

    def moved(self, metres):
        T = T_HOME.copy()
        T[1, 3] += metres
        return T

    def test_old_data_with_fresh_stamps_while_the_command_moves(self):
        watch = JointWatch(ROBOT, 0.05)
        findings = [
            self.step(watch, k, HOME, self.moved(0.001 * max(0, k - 50))) for k in range(120)
        ]
        first = next(k for k, f in enumerate(findings) if f is not None)
        assert findings[first].reason is Reason.JOINTS_FROZEN
        assert (first - 50) * 0.01 == pytest.approx(0.2, abs=0.021)

    def test_turning_counts_as_moving(self):
        watch = JointWatch(ROBOT, 0.05)
        findings = [
            self.step(watch, k, HOME, T_HOME @ pose([0, 0, 0], quat_exp([0, 0, 0.002 * k])))
            for k in range(60)
        ]
        assert any(f is not None for f in findings)

    def test_standing_still_is_not_frozen(self):
        watch = JointWatch(ROBOT, 0.05)
        assert all(self.step(watch, k, HOME, T_HOME) is None for k in range(500))

    def test_less_than_five_millimetres_is_not_frozen(self):
        watch = JointWatch(ROBOT, 0.05)
        assert all(
            self.step(watch, k, HOME, self.moved(min(0.004, 0.0002 * k))) is None
            for k in range(200)
        )

    def test_a_slow_start_after_a_long_rest_is_not_frozen(self):
        """Encoders stand for minutes; what counts begins when the command begins to move."""
        watch = JointWatch(ROBOT, 0.05)
        for k in range(1000):
            assert self.step(watch, k, HOME, T_HOME) is None
        for k in range(1000, 1100):
            lagging = HOME + 1e-3 * max(0, k - 1015)  # answers after 150 ms
            assert self.step(watch, k, lagging, self.moved(0.001 * (k - 1000))) is None

    def test_a_moving_arm_is_not_frozen(self):
        watch = JointWatch(ROBOT, 0.05)
        assert all(
            self.step(watch, k, HOME + 1e-3 * k, self.moved(0.002 * k)) is None for k in range(200)
        )


class TestClockWatch:
    def test_regular_and_late_ticks_are_fine(self):
        watch = ClockWatch(0.01, 0.1)
        for t in (0, 10, 20, 50, 140):
            assert watch.tick(t * MS, t * MS) is None

    def test_a_pause_is_a_control_gap(self):
        watch = ClockWatch(0.01, 0.1)
        watch.tick(0, 0)
        finding = watch.tick(700 * MS, 700 * MS)
        assert finding.reason is Reason.CONTROL_GAP
        assert '0.700 s' in finding.text

    def test_the_clock_going_back_or_leaping_is_a_jump(self):
        watch = ClockWatch(0.01, 0.1)
        watch.tick(10 * S, 0)
        assert watch.tick(9 * S, 10 * MS).reason is Reason.CLOCK_JUMP
        watch.tick(9 * S + 10 * MS, 20 * MS)
        assert watch.tick(60 * S, 30 * MS).reason is Reason.CLOCK_JUMP

    def test_under_simulated_time_a_leap_counts_as_a_gap_and_a_loop_as_a_jump(self):
        watch = ClockWatch(0.01, 0.1)
        watch.tick(10 * S, None)
        assert watch.tick(12 * S, None).reason is Reason.CONTROL_GAP
        assert watch.tick(0, None).reason is Reason.CLOCK_JUMP

    def test_a_real_pause_with_a_stopped_node_clock_is_a_jump_or_a_gap_never_nothing(self):
        watch = ClockWatch(0.01, 0.1)
        watch.tick(10 * S, 0)
        assert watch.tick(10 * S + 10 * MS, 400 * MS).reason is Reason.CONTROL_GAP
