"""Scalar twin of ``core.geometry`` for the control loop: plain floats, no arrays.

One 3-vector operation costs numpy about as much as ten of these lines cost Python, and the loop
does some eighty of them per period on a processor that others keep busy. A test pins every function
to its array twin. Quaternions are (w, x, y, z) tuples of unit norm, vectors are (x, y, z) tuples.
"""

from math import atan2, cos, sin, sqrt

import numpy as np

from spear_ros.core.types import FloatArray

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]

ZERO: Vector = (0.0, 0.0, 0.0)
IDENTITY: Quaternion = (1.0, 0.0, 0.0, 0.0)


def norm(v: Vector) -> float:
    """Length of a vector."""
    x, y, z = v
    return sqrt(x * x + y * y + z * z)


def dot(a: Vector, b: Vector) -> float:
    """Scalar product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def add(a: Vector, b: Vector) -> Vector:
    """Sum a + b."""
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def subtract(a: Vector, b: Vector) -> Vector:
    """Difference a - b."""
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


def scale(k: float, v: Vector) -> Vector:
    """Product of a number and a vector."""
    return (k * v[0], k * v[1], k * v[2])


def limit(v: Vector, largest: float) -> Vector:
    """Shorten ``v`` to at most ``largest``, keeping its direction (projection onto a ball)."""
    length = norm(v)
    return v if length <= largest else scale(largest / length, v)


def multiply(a: Quaternion, b: Quaternion) -> Quaternion:
    """Hamilton product: rotate by b, then by a (in fixed axes)."""
    aw, ax, ay, az = a
    bw, bx, by, bz = b
    return (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )


def conjugate(q: Quaternion) -> Quaternion:
    """Inverse rotation."""
    return (q[0], -q[1], -q[2], -q[3])


def normalize(q: Quaternion) -> Quaternion:
    """Scale to unit norm."""
    w, x, y, z = q
    k = 1.0 / sqrt(w * w + x * x + y * y + z * z)
    return (k * w, k * x, k * y, k * z)


def rotate(q: Quaternion, v: Vector) -> Vector:
    """Rotate a vector: v + 2 u x (u x v + w v) with q = (w, u)."""
    w, x, y, z = q
    vx, vy, vz = v
    tx = 2.0 * (y * vz - z * vy)
    ty = 2.0 * (z * vx - x * vz)
    tz = 2.0 * (x * vy - y * vx)
    return (
        vx + w * tx + y * tz - z * ty,
        vy + w * ty + z * tx - x * tz,
        vz + w * tz + x * ty - y * tx,
    )


def exp(v: Vector) -> Quaternion:
    """Rotation vector [rad] to quaternion."""
    x, y, z = v
    angle = sqrt(x * x + y * y + z * z)
    half = 0.5 * angle
    k = sin(half) / angle if angle > 1e-9 else 0.5
    return (cos(half), k * x, k * y, k * z)


def log(q: Quaternion) -> Vector:
    """Quaternion to the short rotation vector, angle in [0, pi]; q and -q give the same."""
    w, x, y, z = q
    if w < 0.0:
        w, x, y, z = -w, -x, -y, -z
    s = sqrt(x * x + y * y + z * z)
    k = 2.0 * atan2(s, w) / s if s > 1e-9 else 2.0
    return (k * x, k * y, k * z)


def between(a: Quaternion, b: Quaternion) -> Vector:
    """Rotation vector, in fixed axes, that turns a into b."""
    return log(multiply(b, conjugate(a)))


def to_pose(p: Vector, q: Quaternion) -> FloatArray:
    """Position and quaternion to a pose (4, 4)."""
    w, x, y, z = q
    return np.array(
        (
            (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y), p[0]),
            (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x), p[1]),
            (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y), p[2]),
            (0.0, 0.0, 0.0, 1.0),
        )
    )
