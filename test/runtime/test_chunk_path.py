"""The curve through a chunk: through every knot, C1, independent of the base frame; its rate."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_ros.core.geometry import (
    pose,
    pose_parts,
    quat_angle,
    quat_conjugate,
    quat_exp,
    quat_log,
    quat_multiply,
    quat_rotate,
)
from spear_ros.core.types import ActionChunk
from spear_ros.robots.registry import get_robot
from spear_ros.runtime.chunk_path import ChunkPath, RateProfile

STEP_S = 0.2
LIMITS = get_robot('fr3').nominal


def make_chunk(p, q, **changes):
    """Chunk whose anchor is the first of ``p`` (H+1, 3) and ``q`` (H+1, 4)."""
    fields = {
        't_obs_ns': 0,
        'step_s': STEP_S,
        'embodiment': 'franka_droid',
        'base_frame': 'base',
        'ee_frame': 'link8',
        'p_base_ee': np.asarray(p[1:], float),
        'q_base_ee': np.asarray(q[1:], float),
        'gripper': np.ones(len(p) - 1),
        'anchor_p': np.asarray(p[0], float),
        'anchor_q': np.asarray(q[0], float),
    }
    return ActionChunk(**{**fields, **changes})


def random_chunk(seed, spread_m=0.08, spread_rad=0.3):
    rng = np.random.default_rng(seed)
    p = np.cumsum(rng.normal(0, spread_m, (6, 3)), axis=0)
    q = [quat_exp(rng.normal(0, 1, 3))]
    for _ in range(5):
        q.append(quat_multiply(quat_exp(rng.normal(0, spread_rad, 3)), q[-1]))
    return make_chunk(p, np.array(q))


seeds = st.integers(0, 100_000)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_passes_through_anchor_and_every_knot(seed):
    chunk = random_chunk(seed)
    path = ChunkPath(chunk)
    knots = [(chunk.anchor_p, chunk.anchor_q), *zip(chunk.p_base_ee, chunk.q_base_ee, strict=True)]
    for i, (p, q) in enumerate(knots):
        point = path.at(i * STEP_S)
        np.testing.assert_allclose(point.p, p, atol=1e-9)
        assert quat_angle(point.q, q) < 1e-7


@given(seeds, st.floats(0.001, 0.999))
@settings(max_examples=60, deadline=None)
def test_reported_velocities_are_the_derivatives(seed, share):
    path, eps = ChunkPath(random_chunk(seed)), 1e-6
    tau = share * path.duration_s
    a, x, b = path.at(tau - eps), path.at(tau), path.at(tau + eps)
    np.testing.assert_allclose((np.array(b.p) - a.p) / (2 * eps), x.v, atol=1e-4)
    w = quat_log(quat_multiply(b.q, quat_conjugate(a.q))) / (2 * eps)
    np.testing.assert_allclose(w, x.w, atol=1e-3)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_velocity_is_continuous_at_every_knot(seed):
    path, eps = ChunkPath(random_chunk(seed)), 1e-9
    for i in range(1, 5):
        before, after = path.at(i * STEP_S - eps), path.at(i * STEP_S + eps)
        np.testing.assert_allclose(before.v, after.v, atol=1e-5)
        np.testing.assert_allclose(before.w, after.w, atol=1e-5)


@given(seeds, st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_another_base_frame_gives_the_same_curve(seed, share):
    chunk = random_chunk(seed)
    rng = np.random.default_rng(seed + 1)
    T = pose(rng.normal(0, 1, 3), quat_exp(rng.normal(0, 1, 3)))
    T_p, T_q = pose_parts(T)
    moved = make_chunk(
        [T_p + quat_rotate(T_q, p) for p in (chunk.anchor_p, *chunk.p_base_ee)],
        [quat_multiply(T_q, q) for q in (chunk.anchor_q, *chunk.q_base_ee)],
    )
    a, b = ChunkPath(chunk).at(share), ChunkPath(moved).at(share)
    np.testing.assert_allclose(T_p + quat_rotate(T_q, a.p), b.p, atol=1e-9)
    assert quat_angle(quat_multiply(T_q, a.q), b.q) < 1e-7
    np.testing.assert_allclose(quat_rotate(T_q, a.w), b.w, atol=1e-7)


def test_a_policy_that_stops_is_not_overshot():
    p = np.array([[0, 0, 0], [0.05, 0, 0], [0.1, 0, 0], [0.1, 0, 0], [0.1, 0, 0], [0.1, 0, 0]])
    path = ChunkPath(make_chunk(p, np.tile([1.0, 0, 0, 0], (6, 1))))
    xs = [path.at(t).p[0] for t in np.linspace(0, 1, 200)]
    assert max(xs) <= 0.1 + 1e-12


class TestRateProfile:
    @given(seeds)
    @settings(max_examples=30, deadline=None)
    def test_speed_along_the_curve_stays_under_the_limit(self, seed):
        path = ChunkPath(random_chunk(seed))
        profile = RateProfile(path, LIMITS)
        for tau in np.linspace(0, path.duration_s, 31):
            point, u = path.at(tau), profile.rate(tau)
            assert 0 < u <= 1
            assert u * np.linalg.norm(point.v) <= LIMITS.linear_m_s * (1 + 1e-9)
            assert u * np.linalg.norm(point.w) <= LIMITS.angular_rad_s * (1 + 1e-9)

    def test_a_slow_straight_chunk_runs_at_full_rate(self):
        p = np.linspace([0, 0, 0], [0.2, 0, 0], 6)
        profile = RateProfile(ChunkPath(make_chunk(p, np.tile([1.0, 0, 0, 0], (6, 1)))), LIMITS)
        assert [profile.rate(t) for t in np.linspace(0, 1, 20)] == pytest.approx([1.0] * 20)

    def test_twice_the_nominal_speed_takes_twice_the_time(self):
        p = np.linspace([0, 0, 0], [1.0, 0, 0], 6)
        profile = RateProfile(ChunkPath(make_chunk(p, np.tile([1.0, 0, 0, 0], (6, 1)))), LIMITS)
        assert profile.rate(0.5) == pytest.approx(0.475)  # 0.5 m/s of 1 m/s, less the reserve

    def test_joints_may_slow_single_steps(self):
        p = np.linspace([0, 0, 0], [0.1, 0, 0], 6)
        path = ChunkPath(make_chunk(p, np.tile([1.0, 0, 0, 0], (6, 1))))
        profile = RateProfile(path, LIMITS, (1.0, 1.0, 0.3, 1.0, 1.0))
        assert profile.rate(0.5) == pytest.approx(0.3)
        assert profile.rate(0.9) == pytest.approx(1.0)

    def test_it_slows_down_in_time_for_a_sharp_bend(self):
        p = np.array([[0, 0, 0], [0.09, 0, 0], [0.18, 0, 0], [0.18, 0.09, 0], [0.18, 0.18, 0]])
        path = ChunkPath(make_chunk(p, np.tile([1.0, 0, 0, 0], (5, 1))))
        profile = RateProfile(path, LIMITS)
        taus = np.linspace(0, path.duration_s, 400)
        u = np.array([profile.rate(t) for t in taus])
        # du/dt = u du/dtau; times the speed it is the deceleration along the curve
        slope = u[:-1] * np.diff(u) / np.diff(taus)
        speed = np.array([np.linalg.norm(path.at(t).v) for t in taus[:-1]])
        assert u.min() < 0.9
        assert (-slope * speed).max() <= LIMITS.linear_m_s2 * 1.05
