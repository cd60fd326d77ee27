"""SE(3) and unit quaternions on numpy arrays, vectorised over leading axes.

Quaternions are ``(w, x, y, z)``; rotation vectors are axis times angle in radians; ``T_a_b`` is the
4x4 pose of frame b in frame a. All functions compute in float64 and assume unit quaternions; what
comes from outside is checked with :func:`is_unit_quaternion` before it gets here.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

_SMALL = 1e-8


def is_unit_quaternion(q: ArrayLike, tolerance: float = 1e-3) -> bool:
    """Tell whether every quaternion in ``q`` (..., 4) is finite and has unit norm."""
    q = np.asarray(q, float)
    return bool(np.isfinite(q).all() and (abs(np.linalg.norm(q, axis=-1) - 1) <= tolerance).all())


def quat_normalize(q: ArrayLike) -> FloatArray:
    """Scale (..., 4) to unit norm."""
    q = np.asarray(q, float)
    return q / np.linalg.norm(q, axis=-1, keepdims=True)


def quat_canonical(q: ArrayLike) -> FloatArray:
    """Choose the representative with w >= 0 of each rotation (..., 4)."""
    q = np.asarray(q, float)
    return np.where(q[..., :1] < 0, -q, q)


def quat_conjugate(q: ArrayLike) -> FloatArray:
    """Inverse of unit quaternions (..., 4)."""
    return np.asarray(q, float) * np.array([1.0, -1.0, -1.0, -1.0])


def quat_multiply(a: ArrayLike, b: ArrayLike) -> FloatArray:
    """Hamilton product: rotate by b, then by a (in fixed axes)."""
    aw, ax, ay, az = np.moveaxis(np.asarray(a, float), -1, 0)
    bw, bx, by, bz = np.moveaxis(np.asarray(b, float), -1, 0)
    return np.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        axis=-1,
    )


def quat_exp(rotvec: ArrayLike) -> FloatArray:
    """Rotation vectors (..., 3) to unit quaternions (..., 4)."""
    rotvec = np.asarray(rotvec, float)
    half = 0.5 * np.linalg.norm(rotvec, axis=-1, keepdims=True)
    scale = 0.5 * np.sinc(half / np.pi)  # sin(half) / (2 half)
    return np.concatenate([np.cos(half), scale * rotvec], axis=-1)


def quat_log(q: ArrayLike) -> FloatArray:
    """Unit quaternions (..., 4) to the short rotation vector (..., 3), angle in [0, pi]."""
    q = quat_canonical(q)
    v = q[..., 1:]
    s = np.linalg.norm(v, axis=-1, keepdims=True)
    angle = 2.0 * np.arctan2(s, q[..., :1])
    return np.where(s > _SMALL, angle / np.maximum(s, _SMALL), 2.0) * v


def quat_rotate(q: ArrayLike, v: ArrayLike) -> FloatArray:
    """Rotate vectors (..., 3) by unit quaternions (..., 4)."""
    return np.einsum('...ij,...j->...i', quat_to_matrix(q), np.asarray(v, float))


def quat_angle(a: ArrayLike, b: ArrayLike) -> FloatArray:
    """Angle in radians, in [0, pi], between the rotations a and b (...,)."""
    return np.asarray(np.linalg.norm(quat_log(quat_multiply(quat_conjugate(a), b)), axis=-1))


def quat_slerp(a: ArrayLike, b: ArrayLike, s: ArrayLike) -> FloatArray:
    """Short-way interpolation from a (s = 0) to b (s = 1) at constant angular velocity."""
    delta = quat_log(quat_multiply(quat_conjugate(a), b))
    return quat_normalize(quat_multiply(a, quat_exp(np.asarray(s, float)[..., None] * delta)))


def quat_to_matrix(q: ArrayLike) -> FloatArray:
    """Unit quaternions (..., 4) to rotation matrices (..., 3, 3)."""
    w, x, y, z = np.moveaxis(np.asarray(q, float), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_quat(R: ArrayLike) -> FloatArray:
    """Rotation matrices (..., 3, 3) to unit quaternions (..., 4) with w >= 0.

    Shepperd's method: the largest of the four squared components is taken from the diagonal, so
    that no division is by a small number.
    """
    R = np.asarray(R, float)
    m00, m11, m22 = R[..., 0, 0], R[..., 1, 1], R[..., 2, 2]
    squares = np.stack(
        [1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22], -1
    )
    a, b, c = (
        R[..., 2, 1] - R[..., 1, 2],
        R[..., 0, 2] - R[..., 2, 0],
        R[..., 1, 0] - R[..., 0, 1],
    )
    d, e, f = (
        R[..., 1, 0] + R[..., 0, 1],
        R[..., 0, 2] + R[..., 2, 0],
        R[..., 2, 1] + R[..., 1, 2],
    )
    # Row k holds 4 * q_k * q for each choice k of the largest component.
    outer = np.stack(
        [
            np.stack([squares[..., 0], a, b, c], -1),
            np.stack([a, squares[..., 1], d, e], -1),
            np.stack([b, d, squares[..., 2], f], -1),
            np.stack([c, e, f, squares[..., 3]], -1),
        ],
        axis=-2,
    )
    largest = np.argmax(squares, axis=-1)
    row = np.take_along_axis(outer, largest[..., None, None], axis=-2)[..., 0, :]
    return quat_canonical(quat_normalize(row))


def rpy_to_matrix(rpy: ArrayLike) -> FloatArray:
    """Extrinsic x, y, z angles (..., 3) in radians to R = Rz(yaw) Ry(pitch) Rx(roll)."""
    roll, pitch, yaw = np.moveaxis(np.asarray(rpy, float), -1, 0)
    cr, sr, cp, sp, cy, sy = (
        np.cos(roll), np.sin(roll), np.cos(pitch), np.sin(pitch), np.cos(yaw), np.sin(yaw),
    )  # fmt: skip
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_rpy(R: ArrayLike) -> FloatArray:
    """Rotation matrices (..., 3, 3) to extrinsic x, y, z angles (..., 3); roll = 0 at the poles."""
    R = np.asarray(R, float)
    cp = np.hypot(R[..., 0, 0], R[..., 1, 0])
    pitch = np.arctan2(-R[..., 2, 0], cp)
    pole = cp < 1e-9
    roll = np.where(pole, 0.0, np.arctan2(R[..., 2, 1], R[..., 2, 2]))
    yaw = np.where(
        pole,
        np.arctan2(-R[..., 0, 1], R[..., 1, 1]),
        np.arctan2(R[..., 1, 0], R[..., 0, 0]),
    )
    return np.stack([roll, pitch, yaw], axis=-1)


def pose(p: ArrayLike, q: ArrayLike) -> FloatArray:
    """Positions (..., 3) and unit quaternions (..., 4) to poses (..., 4, 4)."""
    p = np.asarray(p, float)
    T = np.zeros((*p.shape[:-1], 4, 4))
    T[..., :3, :3] = quat_to_matrix(q)
    T[..., :3, 3] = p
    T[..., 3, 3] = 1.0
    return T


def pose_parts(T: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Poses (..., 4, 4) to positions (..., 3) and quaternions (..., 4) with w >= 0."""
    T = np.asarray(T, float)
    return T[..., :3, 3].copy(), matrix_to_quat(T[..., :3, :3])


def pose_inverse(T: ArrayLike) -> FloatArray:
    """Inverse of poses (..., 4, 4)."""
    T = np.asarray(T, float)
    R_t = np.swapaxes(T[..., :3, :3], -1, -2)
    inverse = np.zeros_like(T)
    inverse[..., :3, :3] = R_t
    inverse[..., :3, 3] = -np.einsum('...ij,...j->...i', R_t, T[..., :3, 3])
    inverse[..., 3, 3] = 1.0
    return inverse


def pose_interpolate(T0: ArrayLike, T1: ArrayLike, s: float) -> FloatArray:
    """Straight line in position, geodesic in rotation; s = 0 gives T0 and s = 1 gives T1."""
    p0, q0 = pose_parts(T0)
    p1, q1 = pose_parts(T1)
    return pose((1 - s) * p0 + s * p1, quat_slerp(q0, q1, s))


def pose_distance(T0: ArrayLike, T1: ArrayLike) -> tuple[float, float]:
    """Distance in metres and angle in radians between two poses (4, 4)."""
    p0, q0 = pose_parts(T0)
    p1, q1 = pose_parts(T1)
    return float(np.linalg.norm(p1 - p0)), float(quat_angle(q0, q1))
