"""Flow matching: times, noise, paths, losses, integration, real-time-chunking prefix."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_ros.networks import flow_matching as fm
from spear_ros.networks import s3
from spear_ros.networks.config import FlowConfig

CONFIGS = {
    'cos+geo': FlowConfig(),
    'mse': FlowConfig(rotation_loss='mse'),
    'cos+mse': FlowConfig(rotation_loss='cos+mse'),
    'cos': FlowConfig(rotation_loss='cos'),
    'linear cosine': FlowConfig(rotation_path='linear'),
    'linear mse': FlowConfig(rotation_path='linear', rotation_loss='mse'),
}
SPHERE = FlowConfig()


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def make_actions(batch, generator, dtype=torch.float32):
    actions = torch.randn(batch, 5, 8, generator=generator).to(dtype)
    q = s3.random_rotations((batch, 5), generator).to(dtype)
    actions[..., fm.QUATERNION] = s3.normalize(q)
    return actions


def make_pair(batch, config, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = fm.sample_noise(batch, config, generator).to(dtype)
    if config.rotation_path == 's3':
        noise[..., fm.QUATERNION] = s3.normalize(noise[..., fm.QUATERNION])
    return make_actions(batch, generator, dtype), noise


@given(spread=st.floats(0, 1), seed=st.integers(0, 1000))
def test_shrunk_noise_lies_between_its_middle_and_itself(spread, seed):
    noise = fm.sample_noise(2, SPHERE, torch.Generator().manual_seed(seed))
    shrunk = fm.shrink_noise(noise, spread, SPHERE)
    torch.testing.assert_close(shrunk[..., fm.XYZ], spread * noise[..., fm.XYZ])
    q, whole = shrunk[..., fm.QUATERNION], noise[..., fm.QUATERNION]
    torch.testing.assert_close(q.norm(dim=-1), torch.ones(2, SPHERE.horizon), atol=1e-5, rtol=0)
    angle, full = (2 * torch.acos(x[..., 0].clamp(-1, 1)) for x in (q, whole))
    torch.testing.assert_close(angle, spread * full, atol=2e-3, rtol=0)


def exact_field(target, config, steps):
    """Velocity of the path from wherever the point is to the target."""

    def velocity(actions, i):
        rest = 1 - i / steps
        v = (target - actions) / rest
        if config.rotation_path == 's3':
            q, end = actions[..., fm.QUATERNION], target[..., fm.QUATERNION]
            v[..., fm.QUATERNION] = s3.slerp_velocity(q, end, 0.0) / rest
        return v

    return velocity


def random_field(seed):
    """A fixed non-linear field that mixes the tokens of a chunk, like a network does."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(40, 40, generator=generator) / 6

    def velocity(actions, i):
        return torch.tanh((actions.flatten(1) @ mix.to(actions)).unflatten(1, (5, 8)) + 0.1 * i)

    return velocity


def test_flow_times_follow_the_beta_distribution_in_closed_form():
    tau = fm.sample_tau(100_000, SPHERE, torch.Generator().manual_seed(0))
    b = 1 - tau / SPHERE.tau_max
    for level in (0.1, 0.3, 0.5, 0.9):  # distribution function of Beta(alpha, 1) is x^alpha
        assert (b < level).float().mean().item() == pytest.approx(level**1.5, abs=0.006)
    assert tau.min() >= 0
    assert tau.max() <= SPHERE.tau_max


def test_noise_depends_on_the_generator_only_and_leaves_the_global_one_alone():
    state = torch.random.get_rng_state()
    first = fm.sample_noise(2, SPHERE, torch.Generator().manual_seed(7))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first, fm.sample_noise(2, SPHERE, torch.Generator().manual_seed(7)))
    assert not torch.equal(first, fm.sample_noise(2, SPHERE, torch.Generator().manual_seed(8)))


def test_noise_is_normal_in_space_and_a_canonical_rotation():
    noise = fm.sample_noise(4000, SPHERE, torch.Generator().manual_seed(0))
    q = noise[..., fm.QUATERNION]
    assert (q.norm(dim=-1) - 1).abs().max() < 1e-6
    assert q[..., 0].min() >= 0
    rest = noise[..., [0, 1, 2, 7]]
    assert rest.mean().abs() < 0.01
    assert rest.std().item() == pytest.approx(1, abs=0.01)


def test_path_starts_at_the_noise_and_ends_at_the_data(config):
    actions, noise = make_pair(64, config, torch.float64)
    assert torch.allclose(fm.path(noise, actions, 0.0, config), noise, atol=1e-13)
    assert torch.allclose(fm.path(noise, actions, 1.0, config), actions, atol=1e-13)


def test_target_velocity_is_the_derivative_of_the_path(config):
    actions, noise = make_pair(64, config, torch.float64)
    tau = torch.full((64,), 0.4, dtype=torch.float64)
    sample = fm.make_sample(actions, noise, tau, config)
    h = 1e-6
    low, high = (fm.path(noise, actions, 0.4 + d, config) for d in (-h, h))
    assert torch.allclose((high - low) / (2 * h), sample.velocity, atol=1e-8)
    assert torch.allclose(sample.actions, fm.path(noise, actions, 0.4, config), atol=1e-14)


def test_both_signs_of_a_data_quaternion_make_the_same_training_point():
    actions, noise = make_pair(16, SPHERE)
    flipped = actions.clone()
    flipped[..., fm.QUATERNION] *= -1
    tau = torch.rand(16)
    a = fm.make_sample(actions, noise, tau, SPHERE)
    b = fm.make_sample(flipped, noise, tau, SPHERE)
    assert torch.equal(a.actions, b.actions)
    assert torch.equal(a.velocity, b.velocity)


def test_true_velocity_has_no_loss_and_any_other_has(config):
    actions, noise = make_pair(64, config)
    sample = fm.make_sample(actions, noise, torch.rand(64) * 0.9, config)
    right = fm.flow_loss(sample.velocity, sample, config)
    wrong = fm.flow_loss(sample.velocity.roll(1, 0), sample, config)
    for name, value in right.items():
        assert value < 1e-5, name
        assert wrong[name] > 0.01, name


def test_loss_is_the_weighted_sum_of_its_parts():
    config = dataclasses.replace(
        SPHERE,
        translation_weight=2.0,
        rotation_weight=3.0,
        geodesic_weight=0.5,
        gripper_weight=0.25,
    )
    actions, noise = make_pair(32, config)
    sample = fm.make_sample(actions, noise, torch.rand(32), config)
    parts = fm.flow_loss(torch.randn(32, 5, 8), sample, config)
    expected = (
        2 * parts['translation']
        + 3 * (parts['cosine'] + 0.5 * parts['geodesic'])
        + 0.25 * parts['gripper']
    )
    assert torch.isclose(parts['loss'], expected)


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(0, 1e4), seed=st.integers(0, 1000))
def test_rotation_losses_are_bounded_whatever_the_network_says(scale, seed):
    actions, noise = make_pair(8, SPHERE, seed=seed)
    sample = fm.make_sample(actions, noise, torch.rand(8), SPHERE)
    generator = torch.Generator().manual_seed(seed)
    parts = fm.flow_loss(scale * torch.randn(8, 5, 8, generator=generator), sample, SPHERE)
    assert 0 <= parts['cosine'] <= 2 + 1e-5
    assert 0 <= parts['geodesic'] <= math.sqrt(2) + 1e-5


@pytest.mark.parametrize('factor', [1.0, 10.0, 100.0])
def test_cosine_loss_does_not_reward_speed(factor):
    """Without normalising both, v = 100 u would score about -200."""
    actions, noise = make_pair(64, SPHERE)
    sample = fm.make_sample(actions, noise, torch.rand(64) * 0.9, SPHERE)
    assert fm.flow_loss(factor * sample.velocity, sample, SPHERE)['cosine'].abs() < 1e-5


def test_geodesic_loss_of_a_small_step_is_the_step_times_the_velocity_error():
    actions, noise = make_pair(256, SPHERE, torch.float64)
    sample = fm.make_sample(actions, noise, torch.full((256,), 0.5, dtype=torch.float64), SPHERE)
    config = dataclasses.replace(SPHERE, geodesic_step=0.01)
    q = sample.actions[..., fm.QUATERNION]
    off = s3.tangent(q, torch.randn_like(q))
    velocity = sample.velocity.clone()
    velocity[..., fm.QUATERNION] += off
    loss = fm.flow_loss(velocity, sample, config)['geodesic'].item()
    assert loss == pytest.approx(0.01 * off.norm(dim=-1).mean().item(), rel=0.02)


def test_radial_part_of_a_prediction_changes_nothing():
    actions, noise = make_pair(32, SPHERE, torch.float64)
    sample = fm.make_sample(actions, noise, torch.rand(32).double(), SPHERE)
    velocity = torch.randn(32, 5, 8, dtype=torch.float64)
    radial = velocity.clone()
    radial[..., fm.QUATERNION] += 3 * sample.actions[..., fm.QUATERNION]
    for config in (SPHERE, CONFIGS['mse']):
        a, b = (fm.flow_loss(v, sample, config)['loss'] for v in (velocity, radial))
        assert torch.isclose(a, b, rtol=1e-10)
    steps = [fm.flow_step(sample.actions, v, 0.1, SPHERE) for v in (velocity, radial)]
    assert torch.allclose(*(s[..., fm.QUATERNION] for s in steps), atol=1e-12)


def test_gradients_are_finite_at_zero_velocity_and_at_a_target_that_does_not_move():
    actions, noise = make_pair(4, SPHERE)
    noise[..., fm.QUATERNION] = actions[..., fm.QUATERNION]
    sample = fm.make_sample(actions, noise, torch.rand(4), SPHERE)
    velocity = torch.zeros(4, 5, 8, requires_grad=True)
    parts = fm.flow_loss(velocity, sample, SPHERE)
    parts['loss'].backward()
    assert torch.isfinite(velocity.grad).all()
    assert parts['cosine'] == 0


def test_actions_past_the_end_of_an_episode_have_no_say(config):
    actions, noise = make_pair(16, config)
    sample = fm.make_sample(actions, noise, torch.rand(16), config)
    velocity = torch.randn(16, 5, 8)
    valid = torch.arange(5) < torch.randint(1, 6, (16, 1))
    other = torch.where(valid[..., None], velocity, 1e3 * torch.randn(16, 5, 8))
    a, b = (fm.flow_loss(v, sample, config, valid)['loss'] for v in (velocity, other))
    assert torch.equal(a, b)


def test_autocast_does_not_reach_the_losses(config):
    actions, noise = make_pair(16, config)
    tau = torch.rand(16)
    velocity = torch.randn(16, 5, 8).bfloat16()
    plain = fm.flow_loss(velocity, fm.make_sample(actions, noise, tau, config), config)
    with torch.autocast('cpu', torch.bfloat16):
        cast = fm.flow_loss(velocity, fm.make_sample(actions, noise, tau, config), config)
    assert cast['loss'].dtype == torch.float32
    assert torch.equal(cast['loss'], plain['loss'])


@pytest.mark.parametrize('steps', [5, 10, 20])
def test_integrating_the_exact_field_reaches_the_data(config, steps):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        actions, noise = make_pair(256, config, dtype)
        result = fm.integrate(exact_field(actions, config, steps), noise, config, steps=steps)
        assert (result - actions).abs().max() < tolerance


def test_results_are_unit_quaternions_in_the_half_space_for_any_field(config):
    _, noise = make_pair(64, config)
    q = fm.integrate(random_field(0), noise, config)[..., fm.QUATERNION]
    assert (q.norm(dim=-1) - 1).abs().max() < 1e-6
    assert q[..., 0].min() >= 0


def prefix_mask(batch, length):
    return (torch.arange(5) < length).expand(batch, 5)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), length=st.integers(0, 5), name=st.sampled_from(sorted(CONFIGS)))
def test_committed_actions_come_out_as_they_went_in(seed, length, name):
    config = CONFIGS[name]
    owed, noise = make_pair(4, config, seed=seed)
    result = fm.integrate(random_field(seed), noise, config, (owed, prefix_mask(4, length)))
    assert torch.allclose(result[:, :length], owed[:, :length], atol=1e-5)


def test_no_committed_action_means_the_same_chunk_bit_for_bit(config):
    owed, noise = make_pair(4, config)
    mask = torch.zeros(4, 5, dtype=torch.bool)
    free = fm.integrate(random_field(1), noise, config)
    assert torch.equal(fm.integrate(random_field(1), noise, config, (owed, mask)), free)


def test_both_signs_of_a_committed_quaternion_give_the_same_chunk():
    owed, noise = make_pair(4, SPHERE)
    flipped = owed.clone()
    flipped[..., fm.QUATERNION] *= -1
    mask = prefix_mask(4, 2)
    chunks = [fm.integrate(random_field(2), noise, SPHERE, (a, mask)) for a in (owed, flipped)]
    assert torch.equal(*chunks)


def test_the_network_sees_committed_actions_on_their_path_at_every_step(config):
    owed, noise = make_pair(4, config)
    seen = []

    def velocity(actions, i):
        seen.append(actions.clone())
        return random_field(3)(actions, i)

    fm.integrate(velocity, noise, config, (owed, prefix_mask(4, 2)))
    for i, actions in enumerate(seen):
        expected = fm.path(noise, owed, i / config.steps, config)
        assert torch.allclose(actions[:, :2], expected[:, :2], atol=1e-6)


def test_committed_actions_pull_the_rest_of_the_chunk_along():
    owed, noise = make_pair(4, SPHERE)
    free = fm.integrate(random_field(4), noise, SPHERE)
    held = fm.integrate(random_field(4), noise, SPHERE, (owed, prefix_mask(4, 2)))
    assert (held[:, 2:] - free[:, 2:]).abs().max() > 0.01


def test_values_outside_the_mask_are_ignored(config):
    owed, noise = make_pair(4, config)
    mask = prefix_mask(4, 2)
    broken = torch.where(mask[..., None], owed, torch.nan)
    chunks = [fm.integrate(random_field(5), noise, config, (a, mask)) for a in (owed, broken)]
    assert torch.equal(*chunks)


def test_committing_what_the_model_would_do_anyway_changes_nothing():
    """Identity: the exact field's own first actions as the prefix of the same noise."""
    actions, noise = make_pair(16, SPHERE, torch.float64)
    field = exact_field(actions, SPHERE, 10)
    free = fm.integrate(field, noise, SPHERE)
    held = fm.integrate(field, noise, SPHERE, (free, prefix_mask(16, 2)))
    assert torch.allclose(held, free, atol=1e-12)
