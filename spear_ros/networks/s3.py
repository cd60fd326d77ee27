"""Unit quaternions on the sphere S^3: geodesics, velocities, exponential step. Torch, batched.

Quaternions are (w, x, y, z) in the last dimension. q and -q are the same rotation; the house keeps
the half-space w >= 0, which geodesics between two of its points never leave. Formulas: SPEAR-1
(arXiv 2511.17411) equations (1) to (7), in forms that stay accurate at angles 0 and pi in float32.
No function branches on data, so all can be captured in a CUDA graph.
"""

import torch
from torch import Tensor

_NORM_FLOOR = 1e-30  # inside square roots: keeps gradients finite at zero, below any float32 square


def norm(x: Tensor) -> Tensor:
    """Length (..., 1) of the last dimension, with a finite gradient at zero."""
    return (x.square().sum(-1, keepdim=True) + _NORM_FLOOR).sqrt()


def normalize(q: Tensor) -> Tensor:
    """Scale (..., 4) to unit length."""
    return q / norm(q)


def canonical(q: Tensor) -> Tensor:
    """Of q and -q the one with w >= 0, (..., 4)."""
    return torch.where(q[..., :1] < 0, -q, q)


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product (..., 4)."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        dim=-1,
    )


def conjugate(q: Tensor) -> Tensor:
    """Inverse of unit quaternions (..., 4)."""
    return torch.cat([q[..., :1], -q[..., 1:]], dim=-1)


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Angle (..., 1) between unit vectors in [0, pi], accurate at both ends (no arc cosine)."""
    return 2 * torch.atan2(norm(a - b), norm(a + b))


def sinc(x: Tensor) -> Tensor:
    """sin(x) / x, 1 at 0, with finite gradients everywhere."""
    small = x.abs() < 1e-3
    safe = torch.where(small, torch.ones_like(x), x)
    return torch.where(small, 1 - x * x / 6, torch.sin(safe) / safe)


def tangent(q: Tensor, v: Tensor) -> Tensor:
    """Part of ``v`` that is orthogonal to the unit quaternion ``q`` (..., 4)."""
    return v - (v * q).sum(-1, keepdim=True) * q


def slerp(start: Tensor, end: Tensor, tau: Tensor | float) -> Tensor:
    """Point at ``tau`` on the geodesic from ``start`` to ``end``, eq. (1); tau (..., 1) or float.

    sin(k theta) / sin(theta) is written with sinc, so theta -> 0 is regular; at theta -> pi the
    geodesic is ambiguous and the clamp keeps the result finite.
    """
    theta = angle(start, end)
    q = (1 - tau) * sinc((1 - tau) * theta) * start + tau * sinc(tau * theta) * end
    return normalize(q / sinc(theta).clamp_min(1e-6))


def slerp_velocity(start: Tensor, end: Tensor, tau: Tensor | float) -> Tensor:
    """Derivative of :func:`slerp` by tau, eq. (7): tangent at the point, of length theta."""
    theta = angle(start, end)
    u = -torch.cos((1 - tau) * theta) * start + torch.cos(tau * theta) * end
    return tangent(slerp(start, end, tau), u / sinc(theta).clamp_min(1e-6))


def exponential_step(q: Tensor, v: Tensor, step: Tensor | float) -> Tensor:
    """Follow the geodesic of velocity ``v`` from ``q`` for a time ``step``, eqs. (5), (6).

    q * [cos h, w sin h] with the body rate 2 Im(q* v) equals cos(h) q + step sinc(h) v_t with
    h = step |v_t|: the same point without a quaternion product. The radial part of ``v`` is
    dropped. Exact for any step when ``v`` is a geodesic's velocity.
    """
    v = tangent(q, v)
    h = norm(v) * step
    return normalize(torch.cos(h) * q + step * sinc(h) * v)


def random_rotations(shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Uniform rotations (*shape, 4), w >= 0, float32 on the generator's device."""
    device = 'cpu' if generator is None else generator.device
    return canonical(normalize(torch.randn(*shape, 4, generator=generator, device=device)))
