"""The follower: its limits hold for every reference, and its brake is exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_ros.core.geometry import quat_conjugate, quat_exp, quat_log, quat_multiply
from spear_ros.robots.spec import MotionLimits
from spear_ros.runtime.bounded_motion import BoundedMotion, Reference

LIMITS = MotionLimits(linear_m_s=0.5, linear_m_s2=2.0, angular_rad_s=1.0, angular_rad_s2=4.0)
IDENTITY = (1.0, 0.0, 0.0, 0.0)
ZERO = (0.0, 0.0, 0.0)


def moving(v=(0.3, 0, 0), w=(0, 0.5, 0)):
    motion = BoundedMotion(LIMITS)
    motion.place(ZERO, IDENTITY)
    motion.v, motion.w = v, w
    return motion


@given(st.integers(0, 100_000), st.floats(0.001, 0.01), st.floats(0.05, 1.0))
@settings(max_examples=60, deadline=None)
def test_speed_and_acceleration_hold_for_a_reference_that_jumps_at_random(seed, dt, speed_scale):
    rng = np.random.default_rng(seed)
    motion = BoundedMotion(LIMITS)
    motion.place(ZERO, IDENTITY)
    p, q, v, w = [], [], [], []
    for k in range(60):
        if k % 7 == 0:
            where, turn = rng.normal(0, 2, 3), tuple(quat_exp(rng.normal(0, 2, 3)))
            going, turning = rng.normal(0, 3, 3), rng.normal(0, 5, 3)
        motion.follow(
            Reference(tuple(where), turn, tuple(going), tuple(turning), tuple(rng.normal(0, 9, 3))),
            dt,
            speed_scale,
        )
        p.append(motion.p)
        q.append(motion.q)
        v.append(motion.v)
        w.append(motion.w)
    p, q = np.array(p), np.array(q)
    speed = np.diff(p, axis=0) / dt
    turn = quat_log(quat_multiply(q[1:], quat_conjugate(q[:-1]))) / dt
    top = speed_scale * (1 + 1e-6)
    assert np.linalg.norm(speed, axis=1).max() <= LIMITS.linear_m_s * top
    assert np.linalg.norm(turn, axis=1).max() <= LIMITS.angular_rad_s * top
    assert np.linalg.norm(np.diff(speed, axis=0), axis=1).max() / dt <= LIMITS.linear_m_s2 * 1.0001
    assert (
        np.linalg.norm(np.diff(turn, axis=0), axis=1).max() / dt <= LIMITS.angular_rad_s2 * 1.0001
    )


@given(st.floats(0.01, 0.5), st.floats(0.0005, 0.03))
def test_brake_stops_after_v_squared_over_2a_and_not_later(speed, dt):
    motion = moving(v=(speed, 0, 0), w=ZERO)
    steps = 0
    while not motion.standstill:
        motion.brake(dt)
        steps += 1
        assert steps < 10_000
    assert motion.p[0] == pytest.approx(speed**2 / (2 * LIMITS.linear_m_s2), rel=1e-6)
    assert steps * dt <= speed / LIMITS.linear_m_s2 + 2 * dt


def test_brake_keeps_the_direction_of_both_motions():
    motion = moving(v=(0.3, 0.1, -0.2), w=(0.2, -0.4, 0.1))
    motion.brake(0.02)
    assert np.cross(motion.v, (0.3, 0.1, -0.2)) == pytest.approx(ZERO, abs=1e-12)
    assert np.cross(motion.w, (0.2, -0.4, 0.1)) == pytest.approx(ZERO, abs=1e-12)


def test_shedding_speed_does_not_move():
    motion = moving()
    motion.shed_speed(0.05)
    assert motion.p == ZERO
    assert np.linalg.norm(motion.v) == pytest.approx(0.3 - 0.05 * 2.0)


def test_a_lowered_speed_limit_is_approached_at_the_nominal_deceleration():
    motion = moving(v=(0.5, 0, 0), w=ZERO)
    ahead = Reference((5.0, 0, 0), IDENTITY, (0.5, 0, 0), ZERO)
    motion.follow(ahead, 0.01, 0.1)
    assert motion.v[0] == pytest.approx(0.5 - 0.01 * 2.0)
    for _ in range(60):
        motion.follow(ahead, 0.01, 0.1)
    assert motion.v[0] == pytest.approx(0.05)


def test_a_step_is_taken_without_overshoot():
    motion = BoundedMotion(LIMITS)
    motion.place(ZERO, IDENTITY)
    goal = Reference((0.3, 0, 0), tuple(quat_exp([0, 0, 0.8])), ZERO, ZERO)
    xs = []
    for _ in range(300):
        motion.follow(goal, 0.01, 1.0)
        xs.append(motion.p[0])
    assert max(xs) <= 0.3 + 2e-4
    assert motion.p[0] == pytest.approx(0.3, abs=1e-4)
    assert motion.error(goal.p, goal.q)[1] < 1e-3
