"""S^3 geometry: every row of the table of checked facts, float32 against float64, and numpy's twin.

Samples are pairs of rotations in the half-space w >= 0, as the flow uses them.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_ros.core import geometry
from spear_ros.networks import s3


@pytest.fixture(scope='module')
def pairs():
    generator = torch.Generator().manual_seed(0)
    n = 50_000
    start, end = (s3.random_rotations((n,), generator).double() for _ in range(2))
    start, end = s3.normalize(start), s3.normalize(end)
    return start, end, torch.rand(n, 1, generator=generator, dtype=torch.float64)


def body_rate(q, u):
    """2 Im(q* u), and the real part that must vanish for a tangent u."""
    product = s3.multiply(s3.conjugate(q), u)
    return 2 * product[..., 1:], product[..., 0]


def worst(x):
    return x.abs().max().item()


def test_path_stays_on_the_sphere_and_velocity_is_tangent_of_length_theta(pairs):
    q, u = s3.slerp(*pairs), s3.slerp_velocity(*pairs)
    assert worst(q.norm(dim=-1) - 1) < 1e-14
    assert worst((q * u).sum(-1)) < 1e-12
    assert worst(u.norm(dim=-1, keepdim=True) - s3.angle(*pairs[:2])) < 1e-11


def test_velocity_is_the_derivative_of_the_path(pairs):
    start, end, tau = pairs
    tau = 0.01 + 0.98 * tau
    h = 1e-5
    difference = (s3.slerp(start, end, tau + h) - s3.slerp(start, end, tau - h)) / (2 * h)
    assert worst(difference - s3.slerp_velocity(start, end, tau)) < 1e-8


def test_body_rate_has_twice_the_angle_and_no_real_part(pairs):
    omega, real = body_rate(s3.slerp(*pairs), s3.slerp_velocity(*pairs))
    assert worst(omega.norm(dim=-1, keepdim=True) - 2 * s3.angle(*pairs[:2])) < 1e-11
    assert worst(real) < 1e-12


@pytest.mark.parametrize('fraction', [0.1, 0.5, 1.0])
def test_exponential_step_lands_on_the_geodesic_for_any_step(pairs, fraction):
    start, end, tau = pairs
    step = fraction * (1 - tau)
    q, u = s3.slerp(*pairs), s3.slerp_velocity(*pairs)
    assert worst(s3.exponential_step(q, u, step) - s3.slerp(start, end, tau + step)) < 1e-13


def test_exponential_step_is_the_quaternion_product_with_the_body_rate(pairs):
    q, u = s3.slerp(*pairs), s3.slerp_velocity(*pairs)
    omega, _ = body_rate(q, u)
    half = omega.norm(dim=-1, keepdim=True) * 0.1 / 2
    turn = torch.cat([half.cos(), omega * (0.1 / 2) * s3.sinc(half)], dim=-1)
    assert worst(s3.exponential_step(q, u, 0.1) - s3.multiply(q, turn)) < 1e-14


def test_velocity_is_the_logarithm_of_the_rest_over_the_remaining_time(pairs):
    start, end, tau = pairs
    tau = 0.95 * tau
    q = s3.slerp(start, end, tau)
    direction = s3.tangent(q, end)
    log = s3.angle(q, end) * direction / direction.norm(dim=-1, keepdim=True)
    assert worst(s3.slerp_velocity(start, end, tau) - log / (1 - tau)) < 1e-10


def test_body_rate_does_not_see_the_sign_of_the_quaternion(pairs):
    q, u = s3.slerp(*pairs), s3.slerp_velocity(*pairs)
    assert torch.equal(body_rate(-q, -u)[0], body_rate(q, u)[0])


def test_geodesics_never_leave_the_half_space(pairs):
    assert s3.slerp(*pairs)[..., 0].min() >= 0


@pytest.mark.parametrize('steps', [5, 10, 20])
def test_euler_steps_of_the_exact_field_reach_the_target_inside_the_half_space(pairs, steps):
    q, end, _ = pairs
    for i in range(steps):
        tau = i / steps
        direction = s3.tangent(q, end)
        u = s3.angle(q, end) * s3.sinc(s3.angle(q, end)).reciprocal() * direction
        u = u / s3.angle(q, end).clamp_min(1e-30)
        q = s3.exponential_step(q, u / (1 - tau), 1 / steps)
        assert q[..., 0].min() > -1e-12
    assert worst(q - end) < 1e-12


def test_paths_to_small_rotations_have_the_known_mean_angle(pairs):
    """Half of the mean rotation, 126.5 degrees; pi / 2 without choosing a half-space."""
    identity = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    mean = s3.angle(pairs[0], identity).mean().item()
    assert mean == pytest.approx(math.pi / 4 + 1 / math.pi, abs=0.01)


def test_random_rotations_are_uniform_on_so3():
    generator = torch.Generator().manual_seed(1)
    q = s3.random_rotations((50_000,), generator)
    assert q[..., 0].min() >= 0
    turn = 2 * torch.arccos(q[..., 0])
    assert torch.rad2deg(turn.mean()).item() == pytest.approx(126.5, abs=0.5)
    directions = q[..., 1:] / q[..., 1:].norm(dim=-1, keepdim=True)
    assert worst(directions.mean(0)) < 0.01


def turned(theta, dtype):
    start = torch.tensor([0.6, 0.0, 0.8, 0.0], dtype=torch.float64)
    side = torch.tensor([0.0, 0.6, 0.0, 0.8], dtype=torch.float64)
    end = math.cos(theta) * start + math.sin(theta) * side
    return start.to(dtype), end.to(dtype)


@pytest.mark.parametrize('theta', [0.0, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0, 2.0, 3.0, 3.1])
def test_float32_agrees_with_float64_at_every_angle(theta):
    tau = torch.linspace(0, 1, 11)[:, None]
    q32 = s3.slerp(*turned(theta, torch.float32), tau)
    u32 = s3.slerp_velocity(*turned(theta, torch.float32), tau)
    q64 = s3.slerp(*turned(theta, torch.float64), tau.double())
    u64 = s3.slerp_velocity(*turned(theta, torch.float64), tau.double())
    sine = max(math.sin(theta), 1e-2) if theta > 1 else 1.0
    assert worst(q32 - q64) < 5e-7 / sine
    assert worst(u32 - u64) < 2e-6 / sine


@pytest.mark.parametrize('gap', [0.0, 1e-7, 1e-6, 1e-4, 1e-3])
def test_opposite_points_give_finite_unit_paths_and_tangent_velocities(gap):
    tau = torch.linspace(0, 1, 11)[:, None]
    pair = turned(math.pi - gap, torch.float32)
    q, u = s3.slerp(*pair, tau), s3.slerp_velocity(*pair, tau)
    assert torch.isfinite(q).all()
    assert torch.isfinite(u).all()
    if gap >= 1e-3:
        assert worst(q.norm(dim=-1) - 1) < 1e-6
        assert worst((q * u).sum(-1)) < 1e-4


def test_gradients_are_finite_at_zero_velocity_and_zero_angle():
    q = torch.tensor([1.0, 0.0, 0.0, 0.0])
    v = torch.zeros(4, requires_grad=True)
    s3.exponential_step(q, v, 0.1).sum().backward()
    assert torch.isfinite(v.grad).all()
    a = q.clone().requires_grad_()
    s3.slerp(a, q, 0.3).sum().backward()
    assert torch.isfinite(a.grad).all()


def test_left_multiplication_carries_geodesics_and_steps_along(pairs):
    """A change of the base frame multiplies quaternions from the left."""
    start, end, tau = (x[:1000] for x in pairs)
    turn = s3.normalize(torch.tensor([0.3, -0.5, 0.7, 0.2], dtype=torch.float64)).expand(1000, 4)
    moved = s3.slerp(s3.multiply(turn, start), s3.multiply(turn, end), tau)
    assert worst(moved - s3.multiply(turn, s3.slerp(start, end, tau))) < 1e-12
    u = s3.slerp_velocity(start, end, tau)
    stepped = s3.exponential_step(s3.multiply(turn, start), s3.multiply(turn, u), 0.2)
    assert worst(stepped - s3.multiply(turn, s3.exponential_step(start, u, 0.2))) < 1e-12


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31), tau=st.floats(0, 1), step=st.floats(-2, 2))
def test_torch_and_numpy_agree_on_quaternions(seed, tau, step):
    rng = np.random.default_rng(seed)
    a, b = (geometry.quat_normalize(rng.standard_normal((5, 4))) for _ in range(2))
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    np.testing.assert_allclose(s3.multiply(ta, tb), geometry.quat_multiply(a, b), atol=1e-14)
    np.testing.assert_allclose(s3.conjugate(ta), geometry.quat_conjugate(a), atol=0)
    np.testing.assert_array_equal(s3.canonical(ta), geometry.quat_canonical(a))
    omega = rng.standard_normal((5, 3))
    v = 0.5 * geometry.quat_multiply(a, np.concatenate([np.zeros((5, 1)), omega], axis=1))
    stepped = s3.exponential_step(ta, torch.from_numpy(v), step)
    expected = geometry.quat_multiply(a, geometry.quat_exp(step * omega))
    np.testing.assert_allclose(stepped, expected, atol=1e-12)
    near = geometry.quat_canonical(b) if np.all((a * b).sum(-1) > 0) else None
    if near is not None:
        slerped = s3.slerp(ta, tb, tau)
        assert geometry.quat_angle(slerped.numpy(), geometry.quat_slerp(a, b, tau)).max() < 1e-7
