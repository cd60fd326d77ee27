"""ChunkPlayer: nominal limits for any chunks at any time, C1 splices, exact holds, no afterlife."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_ros.core.geometry import (
    matrix_to_quat,
    pose,
    pose_distance,
    pose_parts,
    quat_conjugate,
    quat_exp,
    quat_log,
    quat_multiply,
    quat_rotate,
)
from spear_ros.core.types import ActionChunk
from spear_ros.robots.registry import get_robot
from spear_ros.runtime.chunk_player import ChunkPlayer, PlayerSettings

LIMITS = get_robot('fr3').nominal
S = 1_000_000_000
STEP_S = 0.2
IDENTITY = np.array([1.0, 0, 0, 0])
P0 = np.array([0.4, 0.0, 0.3])


def make_chunk(t_obs_ns, p, q=None, anchor=None, **changes):
    p = np.asarray(p, float)
    h = len(p)
    q = np.tile(IDENTITY, (h, 1)) if q is None else np.asarray(q, float)
    anchor_p, anchor_q = (P0, IDENTITY) if anchor is None else anchor
    fields = {
        't_obs_ns': t_obs_ns,
        'step_s': STEP_S,
        'embodiment': 'franka_droid',
        'base_frame': 'base',
        'ee_frame': 'link8',
        'p_base_ee': p,
        'q_base_ee': q,
        'gripper': np.ones(h),
        'anchor_p': anchor_p,
        'anchor_q': anchor_q,
        'sequence': 1,
    }
    return ActionChunk(**{**fields, **changes})


def straight(t_obs_ns, velocity, start=P0, **changes):
    t = STEP_S * np.arange(1, 6)[:, None]
    return make_chunk(
        t_obs_ns, start + t * np.asarray(velocity), anchor=(start, IDENTITY), **changes
    )


def player_at(p=P0, q=IDENTITY, **kwargs):
    player = ChunkPlayer(LIMITS, **kwargs)
    player.reset(pose(p, q), None, 0)
    return player


def play(player, seconds, start_ns, loads=(), period_ns=10_000_000):
    """Sample for a while, loading (time, chunk) pairs when due; returns the samples."""
    loads, samples = list(loads), []
    for k in range(1, round(seconds * S / period_ns) + 1):
        now = start_ns + k * period_ns
        while loads and loads[0][0] <= now:
            player.load(loads.pop(0)[1], now)
        samples.append(player.sample(now))
    return samples


def motion(samples, dt=0.01):
    T = np.array([s.T_base_ee for s in samples])
    q = matrix_to_quat(T[:, :3, :3])
    v = np.diff(T[:, :3, 3], axis=0) / dt
    w = quat_log(quat_multiply(q[1:], quat_conjugate(q[:-1]))) / dt
    return v, w, np.diff(v, axis=0) / dt, np.diff(w, axis=0) / dt


def largest(x):
    return np.linalg.norm(x, axis=1).max()


@st.composite
def loads_of_random_chunks(draw, turn=5.0):
    """Chunks of random shape that arrive at random times, out of any rhythm.

    ``turn``: rad of rotation per metre of spread. Near half a turn the short way is a matter of
    rounding, which no comparison of two runs can survive.
    """
    rng = np.random.default_rng(draw(st.integers(0, 1_000_000)))
    loads, now = [], 0
    for k in range(12):
        now += int(rng.integers(10, 500)) * 1_000_000
        spread = rng.choice([0.005, 0.05, 0.3])
        start = P0 + rng.normal(0, spread, 3)
        p = start + np.cumsum(rng.normal(0, spread, (5, 3)), axis=0)
        q = [quat_exp(rng.normal(0, spread * turn, 3)) for _ in range(6)]
        t_obs = now - int(rng.integers(0, 400)) * 1_000_000
        chunk = make_chunk(t_obs, p, q[1:], (start, q[0]), sequence=k)
        rates = tuple(rng.uniform(0.1, 1.0, 5)) if rng.random() < 0.3 else None
        loads.append((now, chunk, rates))
    return loads, float(rng.choice([0.05, 0.3, 1.0]))


class TestLimits:
    @given(loads_of_random_chunks())
    @settings(max_examples=40, deadline=None)
    def test_hold_for_random_chunks_at_random_times(self, case):
        loads, speed_scale = case
        player = player_at(speed_scale=speed_scale)
        samples = []
        for k in range(1, 700):
            now = k * 10_000_000
            while loads and loads[0][0] <= now:
                _, chunk, rates = loads.pop(0)
                player.load(chunk, now, rates)
            if k == 400:
                player.hold()
            samples.append(player.sample(now))
        v, w, a, alpha = motion(samples)
        assert largest(v) <= speed_scale * LIMITS.linear_m_s * (1 + 1e-6)
        assert largest(w) <= speed_scale * LIMITS.angular_rad_s * (1 + 1e-6)
        assert largest(a) <= LIMITS.linear_m_s2 * (1 + 1e-4)
        assert largest(alpha) <= LIMITS.angular_rad_s2 * (1 + 1e-4)

    @given(loads_of_random_chunks())
    @settings(max_examples=15, deadline=None)
    def test_reported_velocity_is_the_derivative_so_splices_are_c1(self, case):
        loads, _ = case
        player = player_at()
        samples = play(player, 4.0, 0, [(t, c) for t, c, _ in loads])
        v, w, _, _ = motion(samples)
        for k in range(len(v)):
            mean_v = 0.5 * (samples[k].linear + samples[k + 1].linear)
            mean_w = 0.5 * (samples[k].angular + samples[k + 1].angular)
            # equal but for the last fraction of a step in which a brake ends
            assert np.linalg.norm(v[k] - mean_v) <= 0.5 * LIMITS.linear_m_s2 * 0.01 + 1e-9
            assert np.linalg.norm(w[k] - mean_w) <= 0.5 * LIMITS.angular_rad_s2 * 0.01 + 1e-6


class TestInvariance:
    @given(loads_of_random_chunks(turn=1.0), st.integers(0, 1000))
    @settings(max_examples=10, deadline=None)
    def test_another_base_frame_gives_the_same_motion(self, case, seed):
        loads, _ = case
        rng = np.random.default_rng(seed)
        T = pose(rng.normal(0, 1, 3), quat_exp(rng.normal(0, 1, 3)))
        T_p, T_q = pose_parts(T)

        def moved(c):
            return make_chunk(
                c.t_obs_ns,
                T_p + np.array([quat_rotate(T_q, p) for p in c.p_base_ee]),
                quat_multiply(T_q, c.q_base_ee),
                (T_p + quat_rotate(T_q, c.anchor_p), quat_multiply(T_q, c.anchor_q)),
                sequence=c.sequence,
            )

        here, there = player_at(), ChunkPlayer(LIMITS)
        there.reset(T @ pose(P0, IDENTITY), None, 0)
        a = play(here, 3.0, 0, [(t, c) for t, c, _ in loads])
        b = play(there, 3.0, 0, [(t, moved(c)) for t, c, _ in loads])
        # Rounding in the other frame can put a decision (brake now or a tick later) on the other
        # side of its threshold: a tick's worth of motion. Frame dependence would show in cm.
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(T @ x.T_base_ee, y.T_base_ee, atol=5e-3)

    @given(loads_of_random_chunks(turn=1.0))
    @settings(max_examples=10, deadline=None)
    def test_the_sign_of_a_quaternion_means_nothing(self, case):
        loads, _ = case
        signs = np.array([1, -1, -1, 1, -1])[:, None]

        def flipped(c):
            return make_chunk(
                c.t_obs_ns, c.p_base_ee, signs * c.q_base_ee, (c.anchor_p, -c.anchor_q)
            )

        a = play(player_at(), 3.0, 0, [(t, c) for t, c, _ in loads])
        b = play(player_at(), 3.0, 0, [(t, flipped(c)) for t, c, _ in loads])
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x.T_base_ee, y.T_base_ee, atol=1e-7)

    def test_a_chunk_that_stays_moves_nothing(self):
        player = player_at()
        samples = play(player, 0.8, 0, [(S // 10, straight(0, [0, 0, 0]))])
        assert all(pose_distance(s.T_base_ee, pose(P0, IDENTITY)) < (1e-12, 1e-12) for s in samples)
        assert samples[20].stretch == pytest.approx(1.0)


class TestTime:
    def test_a_feasible_chunk_is_tracked_on_its_own_time(self):
        """Knot i is passed at t_obs + (i + 1) * step when the motion is under way."""
        player = player_at()
        under_way = play(player, 0.3, 0, [(10_000_000, straight(0, [0, 0.1, 0]))])
        start = under_way[-1].T_base_ee[:3, 3]
        chunk = straight(300_000_000, [0, 0.1, 0.02], start, sequence=2)
        samples = play(player, 0.6, 300_000_000, [(400_000_000, chunk)])
        at_knot = samples[-1]  # 0.9 s = 0.3 s + 3 steps
        assert pose_distance(at_knot.T_base_ee, pose(chunk.p_base_ee[2], IDENTITY))[0] < 5e-4
        assert at_knot.stretch == pytest.approx(1.0)

    def test_steps_that_inference_consumed_fall_away(self):
        player = player_at()
        player.sample(300_000_000)
        player.load(straight(0, [0, 0.1, 0]), 300_000_000)
        y = play(player, 0.5, 300_000_000)[-1].T_base_ee[1, 3]
        assert 0.07 < y <= 0.08  # 0.08 m at 0.8 s; 0.05 m if the first 0.3 s had been kept

    def test_too_fast_a_chunk_takes_longer_and_says_so(self):
        player = player_at()
        samples = play(player, 0.6, 0, [(10_000_000, straight(0, [0, 1.0, 0]))])
        assert samples[-1].stretch == pytest.approx(1 / 0.475, rel=0.02)
        assert np.linalg.norm(samples[-1].linear) == pytest.approx(0.475, rel=0.02)
        off_line = max(abs(s.T_base_ee[0, 3] - P0[0]) for s in samples)
        assert off_line < 1e-9  # the path is kept, only the time is stretched

    def test_speed_scale_multiplies_speed_and_not_braking(self):
        player = player_at(speed_scale=0.1)
        samples = play(player, 0.6, 0, [(10_000_000, straight(0, [0, 0.2, 0]))])
        assert samples[-1].stretch == pytest.approx(10, rel=0.02)
        moving = player_at()
        play(moving, 0.5, 0, [(10_000_000, straight(0, [0, 0.3, 0]))])
        moving.speed_scale = 0.05
        speed = np.linalg.norm(moving.sample(S // 2).linear)
        moving.hold()
        stopped = play(moving, speed / LIMITS.linear_m_s2 + 0.01, S // 2)
        assert stopped[-1].standstill

    def test_the_command_of_the_period_in_which_hold_is_asked_brakes_already(self):
        player = player_at()
        samples = play(player, 0.48, 0, [(10_000_000, straight(0, [0, 0.3, 0]))])
        speed, before = np.linalg.norm(samples[-1].linear), samples[-1].T_base_ee
        assert speed > 0.1
        now = 500_000_000
        player.hold()
        sample = player.sample(now)
        moved, _ = pose_distance(before, sample.T_base_ee)
        assert np.linalg.norm(sample.linear) == pytest.approx(
            speed - LIMITS.linear_m_s2 * 0.02, abs=1e-6
        )
        assert moved == pytest.approx(speed * 0.02 - 0.5 * LIMITS.linear_m_s2 * 0.02**2, abs=1e-6)

    def test_stretched_chunks_are_joined_where_the_robot_is_not_where_it_would_be(self):
        """At a tenth of the speed, chunk after chunk still advances evenly at a tenth."""
        player, p, speeds = player_at(speed_scale=0.1), P0.copy(), []
        waiting = []
        for k in range(1, 500):
            now = k * 10_000_000
            if k % 20 == 0:
                waiting.append((now + 150_000_000, straight(now, [0, 0.3, 0], p, sequence=k)))
            while waiting and waiting[0][0] <= now:
                player.load(waiting.pop(0)[1], now)
            sample = player.sample(now)
            p = sample.T_base_ee[:3, 3]
            speeds.append(np.linalg.norm(sample.linear))
        assert np.mean(speeds[100:]) == pytest.approx(0.03, rel=0.1)
        assert np.std(speeds[100:]) < 0.01


class TestStopping:
    @given(st.floats(0.02, 0.45), st.floats(0.0, 0.9))
    @settings(max_examples=25, deadline=None)
    def test_hold_comes_to_rest_within_v_squared_over_2a(self, speed, turn):
        player = player_at()
        t = STEP_S * np.arange(1, 6)[:, None]
        q = quat_exp(t * np.array([0, 0, turn]))
        play(player, 0.5, 0, [(10_000_000, make_chunk(0, P0 + t * np.array([speed, 0, 0]), q))])
        now = S // 2
        before = player.sample(now)
        player.hold()
        after = play(player, 1.0, now)
        v, w = np.linalg.norm(before.linear), np.linalg.norm(before.angular)
        distance, angle = pose_distance(before.T_base_ee, after[-1].T_base_ee)
        assert distance <= v**2 / (2 * LIMITS.linear_m_s2) * (1 + 1e-6) + 1e-9
        assert angle <= w**2 / (2 * LIMITS.angular_rad_s2) * (1 + 1e-6) + 1e-7
        longest = max(v / LIMITS.linear_m_s2, w / LIMITS.angular_rad_s2)
        index = int(np.ceil(longest / 0.01))
        assert after[index].standstill
        assert not after[-1].following

    def test_the_target_stands_still_at_expiry_and_never_moves_after_it(self):
        player = player_at()
        chunk = straight(0, [0, 0.4, 0])
        samples = play(player, 2.0, 0, [(10_000_000, chunk)])
        at_expiry = samples[99]
        assert at_expiry.standstill
        assert at_expiry.finished
        for sample in samples[100:]:
            np.testing.assert_array_equal(sample.T_base_ee, at_expiry.T_base_ee)

    @given(st.integers(0, 100_000))
    @settings(max_examples=20, deadline=None)
    def test_no_motion_past_expiry_whatever_the_chunk_and_the_sampling(self, seed):
        rng = np.random.default_rng(seed)
        p = P0 + np.cumsum(rng.normal(0, 0.08, (5, 3)), axis=0)
        chunk = make_chunk(0, p, [quat_exp(rng.normal(0, 0.4, 3)) for _ in range(5)])
        player, now, last = player_at(), 10_000_000, None
        player.load(chunk, now)
        while now < 2 * S:
            now += int(rng.integers(1, 24)) * 1_000_000
            sample = player.sample(now)
            if now >= chunk.expiry_ns:
                assert sample.standstill
                if last is not None:
                    np.testing.assert_array_equal(sample.T_base_ee, last)
                last = sample.T_base_ee

    def test_an_expired_chunk_moves_nothing(self):
        player = player_at()
        player.sample(2 * S)
        player.load(straight(0, [0, 0.3, 0]), 2 * S)
        samples = play(player, 1.0, 2 * S)
        assert pose_distance(samples[-1].T_base_ee, pose(P0, IDENTITY))[0] == 0.0

    def test_a_changed_instruction_ends_the_chunk_early(self):
        player = player_at()
        play(player, 0.3, 0, [(10_000_000, straight(0, [0, 0.2, 0]))])
        player.end_by(S // 2)
        samples = play(player, 0.5, 3 * S // 10)
        assert samples[20].standstill
        assert samples[20].finished

    def test_a_gap_in_control_is_not_caught_up(self):
        player = player_at()
        play(player, 0.4, 0, [(10_000_000, straight(0, [0, 0.3, 0]))])
        before = player.sample(400_000_000)
        after = player.sample(900_000_000)
        moved = pose_distance(before.T_base_ee, after.T_base_ee)[0]
        assert moved <= 0.025 * 0.3  # at most what a tick may be late, not half a second's worth
        assert np.linalg.norm(after.linear) < 0.3


class TestModeSwitch:
    def far(self, now_ns):
        """Another plan: the same time, 15 cm to the side."""
        start = P0 + np.array([0.15, 0, 0])
        return straight(now_ns - 100_000_000, [0, -0.2, 0], start, sequence=2)

    def test_stops_along_the_old_motion_before_it_takes_up_a_far_plan(self):
        player = player_at()
        play(player, 0.4, 0, [(10_000_000, straight(0, [0, 0.3, 0]))])
        now = 400_000_000
        speed = np.linalg.norm(player.sample(now).linear)
        player.load(self.far(now), now)
        samples = play(player, 0.6, now)
        braking = [s for s in samples if not s.following]
        assert braking
        for s in braking:  # straight on along the old motion, no turn towards the new plan yet
            assert abs(s.linear[0]) < 1e-9
        assert min(np.linalg.norm(s.linear) for s in samples) < 1e-9
        assert samples[-1].sequence == 2
        assert samples[-1].following
        assert len(braking) * 0.01 <= speed / LIMITS.linear_m_s2 + 0.02

    def test_a_turn_of_more_than_sixty_degrees_is_another_plan_too(self):
        player = player_at()
        play(player, 0.4, 0, [(10_000_000, straight(0, [0, 0.3, 0]))])
        now = 400_000_000
        here = player.sample(now).T_base_ee[:3, 3]
        turned = quat_exp([0, 0, 1.2])
        player.load(
            make_chunk(now, np.tile(here, (5, 1)), np.tile(turned, (5, 1)), (here, turned)), now
        )
        assert not player.sample(now + 10_000_000).following

    def test_a_near_plan_is_spliced_without_stopping(self):
        player = player_at()
        play(player, 0.4, 0, [(10_000_000, straight(0, [0, 0.3, 0]))])
        now = 400_000_000
        here = player.sample(now).T_base_ee[:3, 3]
        player.load(straight(now, [0, 0.3, 0.05], here + np.array([0, 0, 0.02]), sequence=2), now)
        samples = play(player, 0.3, now)
        assert all(s.following for s in samples)
        assert min(np.linalg.norm(s.linear) for s in samples) > 0.2


class TestGripper:
    def test_value_of_the_step_in_progress_is_taken(self):
        player = player_at(settings=PlayerSettings())
        chunk = straight(0, [0, 0.0, 0], gripper=np.array([1.0, 1.0, 0.0, 0.0, 0.0]))
        samples = play(player, 0.9, 0, [(10_000_000, chunk)])
        assert samples[20].gripper == 1.0
        assert samples[38].gripper == 1.0
        assert (
            samples[65].gripper == 0.0
        )  # the step to knot 2 began at 0.4 s; dwell ended at 0.61 s

    def test_nothing_is_commanded_before_a_chunk(self):
        assert player_at().sample(10_000_000).gripper is None

    def test_hold_and_settle_keep_the_gripper(self):
        player = player_at()
        play(player, 0.3, 0, [(10_000_000, straight(0, [0, 0, 0]))])
        player.hold()
        assert player.sample(310_000_000).gripper == 1.0
        player.settle(pose(P0, IDENTITY), 320_000_000)
        assert player.sample(330_000_000).gripper == 1.0
        player.reset(pose(P0, IDENTITY), None, 340_000_000)
        assert player.sample(350_000_000).gripper is None
