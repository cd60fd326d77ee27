"""Flow matching of SPEAR-1's actions on R^3 x S^3 x R^1: paths, losses, integration.

tau = 0 is noise, tau = 1 is data. Actions and velocities are (B, H, 8):
[x y z | quaternion w x y z | gripper]; translation and gripper follow straight lines, rotations
geodesics of S^3 (``s3.py``), all in the half-space w >= 0. Everything is float32 or better with
autocast off: bfloat16 quaternions would be off by half a degree.

Shapes: B batch, H horizon.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spear_ros.networks import s3
from spear_ros.networks.config import FlowConfig

XYZ = slice(0, 3)
QUATERNION = slice(3, 7)
GRIPPER = slice(7, 8)
ACTION_DIM = 8

_MIN_SPEED = 1e-3  # rad per unit tau: below it the direction of a target velocity means nothing
_NORM_FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True)
class FlowSample:
    """One training point of the flow."""

    tau: Tensor
    """(B,)."""
    actions: Tensor
    """(B, H, 8) on the path at tau: the network's input."""
    velocity: Tensor
    """(B, H, 8) of the path at tau: the target."""


def sample_tau(batch: int, config: FlowConfig, generator: torch.Generator | None = None) -> Tensor:
    """Draw flow times (B,): tau_max (1 - b), b ~ Beta(alpha, 1) = U^(1 / alpha) in closed form.

    ``torch.distributions.Beta`` would synchronise with the device and ignore the generator.
    """
    device = 'cpu' if generator is None else generator.device
    uniform = torch.rand(batch, generator=generator, device=device)
    return config.tau_max * (1 - uniform ** (1 / config.beta_alpha))


def sample_noise(
    batch: int, config: FlowConfig, generator: torch.Generator | None = None
) -> Tensor:
    """Draw the start of the flow (B, H, 8), float32 on the generator's device.

    Normal in R^3 and for the gripper; rotations uniform on SO(3) and kept in w >= 0 (without that,
    half of the paths would be longer than a quarter circle). The linear ablation starts from a
    normal 4-vector.
    """
    device = 'cpu' if generator is None else generator.device
    noise = torch.randn(batch, config.horizon, ACTION_DIM, generator=generator, device=device)
    if config.rotation_path == 's3':
        noise[..., QUATERNION] = s3.canonical(s3.normalize(noise[..., QUATERNION]))
    return noise


def shrink_noise(noise: Tensor, spread: float, config: FlowConfig) -> Tensor:
    """``noise`` (..., 8) brought towards its middle: 1 leaves it, 0 is the middle."""
    shrunk = spread * noise
    if config.rotation_path == 's3':
        middle = torch.zeros_like(noise[..., QUATERNION])
        middle[..., 0] = 1.0
        shrunk[..., QUATERNION] = s3.slerp(middle, noise[..., QUATERNION], spread)
    return shrunk


def path(noise: Tensor, actions: Tensor, tau: Tensor | float, config: FlowConfig) -> Tensor:
    """Point of the path from ``noise`` to ``actions`` (B, H, 8) at ``tau``, (B, 1, 1) or float."""
    point = (1 - tau) * noise + tau * actions
    if config.rotation_path == 's3':
        q = s3.canonical(actions[..., QUATERNION])
        point[..., QUATERNION] = s3.slerp(noise[..., QUATERNION], q, tau)
    return point


def make_sample(actions: Tensor, noise: Tensor, tau_B: Tensor, config: FlowConfig) -> FlowSample:
    """Put data and noise on the path at ``tau_B``. Quaternions of the data may have either sign."""
    actions, noise = _full_precision(actions), _full_precision(noise)
    with torch.autocast(actions.device.type, enabled=False):
        actions = actions.clone()
        actions[..., QUATERNION] = s3.canonical(actions[..., QUATERNION])
        tau = tau_B.to(actions)[:, None, None]
        velocity = actions - noise
        if config.rotation_path == 's3':
            ends = noise[..., QUATERNION], actions[..., QUATERNION]
            velocity[..., QUATERNION] = s3.slerp_velocity(*ends, tau)
        return FlowSample(tau=tau_B, actions=path(noise, actions, tau, config), velocity=velocity)


def flow_loss(
    velocity: Tensor, sample: FlowSample, config: FlowConfig, valid_BH: Tensor | None = None
) -> dict[str, Tensor]:
    """Losses of predicted velocities (B, H, 8); 'loss' is the weighted sum to be minimised.

    ``valid_BH`` (bool) leaves out actions past the end of an episode. The other keys are the
    unweighted parts: translation, gripper, and of rotation cosine, geodesic, mse as configured.
    Every rotation part but 'mse' is bounded whatever the network says.
    """
    velocity, target = _full_precision(velocity), _full_precision(sample.velocity)
    with torch.autocast(velocity.device.type, enabled=False):
        if valid_BH is None:
            valid_BH = torch.ones_like(target[..., 0], dtype=torch.bool)
        square = (velocity - target).square()
        parts = {
            'translation': _mean(square[..., XYZ].mean(-1), valid_BH),
            'gripper': _mean(square[..., GRIPPER].mean(-1), valid_BH),
        }
        rotation = rotation_losses(
            velocity[..., QUATERNION],
            target[..., QUATERNION],
            _full_precision(sample.actions)[..., QUATERNION],
            config,
        )
        total = config.translation_weight * parts['translation']
        total = total + config.gripper_weight * parts['gripper']
        for name, (value, valid) in rotation.items():
            parts[name] = _mean(value, valid_BH & valid)
            weight = 1.0 if name == 'cosine' else config.geodesic_weight
            if config.rotation_loss == 'mse':
                weight = 1.0
            total = total + config.rotation_weight * weight * parts[name]
        return {'loss': total, **parts}


def rotation_losses(
    v: Tensor, u: Tensor, q: Tensor, config: FlowConfig
) -> dict[str, tuple[Tensor, Tensor]]:
    """Per-action rotation losses (...,) and where each is defined, for velocities (..., 4) at q.

    cosine: 1 - cos(v, u), both normalised (the paper's eq. (8) without normalisation has no lower
    bound), undefined for a target that does not move. geodesic: distance after integrating target
    and prediction for ``geodesic_step``, the smaller over the sign of the quaternion, eq. (9).
    On S^3 the prediction is first projected to the tangent space.
    """
    everywhere = torch.ones_like(v[..., 0], dtype=torch.bool)
    sphere = config.rotation_path == 's3'
    if sphere:
        v = s3.tangent(q, v)
    losses = {}
    if config.rotation_loss != 'mse':
        speed = s3.norm(u)
        cosine = (v * u).sum(-1) / (
            s3.norm(v).clamp_min(_NORM_FLOOR) * speed.clamp_min(_NORM_FLOOR)
        ).squeeze(-1)
        losses['cosine'] = 1 - cosine, (speed > _MIN_SPEED).squeeze(-1)
    if config.rotation_loss == 'cos+geo' and sphere:
        step = config.geodesic_step
        reached, wanted = s3.exponential_step(q, v, step), s3.exponential_step(q, u, step)
        losses['geodesic'] = (
            torch.minimum(_distance(reached, wanted), _distance(reached, -wanted)),
            everywhere,
        )
    if config.rotation_loss in ('mse', 'cos+mse'):
        losses['mse'] = (v - u).square().mean(-1), everywhere
    return losses


def euler_times(steps: int) -> tuple[float, ...]:
    """Flow times 0 .. 1 of ``steps`` equal Euler steps, as Python floats (baked into graphs)."""
    return tuple(i / steps for i in range(steps + 1))


def flow_step(actions: Tensor, velocity: Tensor, step: float, config: FlowConfig) -> Tensor:
    """One Euler step in R^3 and R^1, one exponential step on S^3, (B, H, 8)."""
    moved = actions + step * velocity
    if config.rotation_path == 's3':
        q = s3.exponential_step(actions[..., QUATERNION], velocity[..., QUATERNION], step)
        moved[..., QUATERNION] = s3.canonical(q)
    return moved


def integrate(
    velocity: Callable[[Tensor, int], Tensor],
    noise: Tensor,
    config: FlowConfig,
    committed: tuple[Tensor, Tensor] | None = None,
    steps: int | None = None,
) -> Tensor:
    """Integrate the flow from ``noise`` (B, H, 8) at tau 0 to actions at tau 1.

    Args:
        velocity: called with the actions (B, H, 8) and the index of the step; returns (B, H, 8).
        noise: start, from :func:`sample_noise`.
        config: paths and number of steps.
        committed: real-time chunking. Actions (B, H, 8) that the robot already owes and a mask
            (B, H) that is True for them: they are put on their own path after every step (hard
            prefix), so the rest is denoised beside them and the result starts with them. Values
            outside the mask are ignored.
        steps: Euler steps, by default the configuration's.

    Returns:
        Actions (B, H, 8), quaternions of unit length with w >= 0.
    """
    times = euler_times(config.steps if steps is None else steps)
    noise = _full_precision(noise)
    actions = noise
    for i, (tau, following) in enumerate(itertools.pairwise(times)):
        v = _full_precision(velocity(actions, i))
        actions = flow_step(actions, v, following - tau, config)
        if committed is not None:
            actions = hold_committed(actions, noise, committed, following, config)
    return finish(actions, config)


def hold_committed(
    actions: Tensor,
    noise: Tensor,
    committed: tuple[Tensor, Tensor],
    tau: float,
    config: FlowConfig,
) -> Tensor:
    """Put committed actions on their path at ``tau``; see :func:`integrate`."""
    owed, mask_BH = committed
    return torch.where(mask_BH[..., None], path(noise, owed.to(noise), tau, config), actions)


def finish(actions: Tensor, config: FlowConfig) -> Tensor:
    """Make the end of the flow a valid action: the linear ablation leaves the sphere."""
    if config.rotation_path == 's3':
        return actions
    actions = actions.clone()
    actions[..., QUATERNION] = s3.canonical(s3.normalize(actions[..., QUATERNION]))
    return actions


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance (...,); 1e-12 under the root keeps the gradient finite at equality."""
    return ((a - b).square().sum(-1) + 1e-12).sqrt()


def _mean(value: Tensor, valid: Tensor) -> Tensor:
    """Mean over valid entries, 0 where there are none."""
    return (value * valid).sum() / valid.sum().clamp_min(1)


def _full_precision(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
