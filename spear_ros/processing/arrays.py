"""Quaternion and array helpers that accept numpy arrays and torch tensors alike.

Training feeds batches of tensors, serving feeds numpy arrays in float64; both must run the very
same lines. Nothing here imports torch: the namespace is looked up from the argument.

Quaternions are ``(w, x, y, z)`` over the last axis.
"""

import sys
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""A numpy array or a torch tensor; every argument of one call is of the same library."""


def namespace(x: Array) -> Any:
    """Return the module, ``numpy`` or ``torch``, whose functions work on ``x``."""
    return sys.modules['torch'] if type(x).__module__.partition('.')[0] == 'torch' else np


def quat_conjugate(q: Array) -> Array:
    """Inverse of unit quaternions (..., 4)."""
    return namespace(q).stack([q[..., 0], -q[..., 1], -q[..., 2], -q[..., 3]], -1)


def quat_multiply(a: Array, b: Array) -> Array:
    """Hamilton product of (..., 4) and (..., 4)."""
    aw, ax, ay, az = (a[..., i] for i in range(4))
    bw, bx, by, bz = (b[..., i] for i in range(4))
    return namespace(a).stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        -1,
    )


def quat_multiply_constant(a: Array, b: tuple[float, float, float, float]) -> Array:
    """Product of (..., 4) with one constant quaternion on the right."""
    w, x, y, z = (a[..., i] for i in range(4))
    bw, bx, by, bz = b
    return namespace(a).stack(
        [
            w * bw - x * bx - y * by - z * bz,
            w * bx + x * bw + y * bz - z * by,
            w * by - x * bz + y * bw + z * bx,
            w * bz + x * by - y * bx + z * bw,
        ],
        -1,
    )


def quat_in_half_space(
    q: Array, pole: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
) -> Array:
    """Choose of q and -q the one whose dot product with ``pole`` is not negative.

    The default pole is the paper's rule w >= 0. The norm is left alone.
    """
    side = sum(q[..., i] * pole[i] for i in range(4))
    return namespace(q).where(side[..., None] < 0, -q, q)
