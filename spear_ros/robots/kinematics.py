"""Forward and inverse kinematics of a RobotSpec: the one solver of executor, gate and simulator.

Legend: n joints. ``T_i = O_i Rot(a_i, q_i)`` is affine in (sin q_i, cos q_i), so a chain keeps 3
constant stacks and a pose costs n small matrix products. The inverse is damped least squares with
Sugihara's error-proportional damping (Solvability-Unconcerned Inverse Kinematics by the
Levenberg-Marquardt Method, IEEE T-RO 2011): quadratic near the solution, tame far from it and at
singularities. Joints at a limit are taken out of the step, never wrapped. All poses are of the
end-effector frame in the base frame, Jacobians in base axes (linear rows first).
"""

from dataclasses import dataclass
from functools import lru_cache
from math import atan2, sqrt

import numpy as np
from numpy.typing import ArrayLike

from spear_ros.core.geometry import matrix_to_quat, quat_log, rpy_to_matrix
from spear_ros.core.types import FloatArray
from spear_ros.robots.spec import Joint, RobotSpec, Vector3


class Chain:
    """Constants of one kinematic chain, and the three maps that are computed from them."""

    def __init__(self, joints: tuple[Joint, ...], ee_xyz: Vector3, ee_rpy: Vector3) -> None:
        n = len(joints)
        self.n = n
        self._constant = np.zeros((n, 4, 4))
        self._sine = np.zeros((n, 4, 4))
        self._cosine = np.zeros((n, 4, 4))
        self._axes = np.zeros((n, 3, 1))
        for i, joint in enumerate(joints):
            a = np.asarray(joint.axis, float)
            a = a / np.linalg.norm(a)
            outer, cross = np.outer(a, a), _skew(a)
            origin = _transform(joint.xyz, joint.rpy)
            self._constant[i] = origin @ _block(outer, 1.0)
            self._cosine[i] = origin @ _block(np.eye(3) - outer, 0.0)
            self._sine[i] = origin @ _block(cross, 0.0)
            self._axes[i, :, 0] = a
        self._T_last_ee = _transform(ee_xyz, ee_rpy)

    def links(self, q: FloatArray) -> FloatArray:
        """Joint angles (n,) to link poses (n + 2, 4, 4): base, each joint's link, end-effector."""
        M = self._constant + np.sin(q)[:, None, None] * self._sine
        M += np.cos(q)[:, None, None] * self._cosine
        T = np.empty((self.n + 2, 4, 4))
        T[0] = _EYE
        T[1] = M[0]
        for i in range(1, self.n):
            np.dot(T[i], M[i], out=T[i + 1])
        np.dot(T[self.n], self._T_last_ee, out=T[self.n + 1])
        return T

    def jacobian(self, links: FloatArray) -> FloatArray:
        """Geometric Jacobian (6, n) from the poses that :meth:`links` returned."""
        z = np.matmul(links[1:-1, :3, :3], self._axes)[:, :, 0]
        r = links[-1, :3, 3] - links[1:-1, :3, 3]
        zx, zy, zz = z.T
        rx, ry, rz = r.T
        J = np.empty((6, self.n))
        J[0] = zy * rz - zz * ry
        J[1] = zz * rx - zx * rz
        J[2] = zx * ry - zy * rx
        J[3:] = z.T
        return J


def forward(spec: RobotSpec, q: ArrayLike) -> FloatArray:
    """Joint angles (n,) in rad to the end-effector pose ``T_base_ee`` (4, 4)."""
    return chain_of(spec).links(np.asarray(q, float))[-1].copy()


def link_transforms(spec: RobotSpec, q: ArrayLike) -> FloatArray:
    """Joint angles (n,) to ``T_base_link`` (n + 1, 4, 4): the base, then the link of each joint."""
    return chain_of(spec).links(np.asarray(q, float))[:-1]


def jacobian(spec: RobotSpec, q: ArrayLike) -> FloatArray:
    """Geometric Jacobian (6, n) of the end-effector: base axes, linear rows first."""
    chain = chain_of(spec)
    return chain.jacobian(chain.links(np.asarray(q, float)))


def chain_of(spec: RobotSpec) -> Chain:
    """Return the cached chain of a spec (limits do not matter to it)."""
    return _chain(spec.joints, spec.ee_xyz, spec.ee_rpy)


@dataclass(frozen=True, slots=True)
class IkResult:
    """Where the solver ended; use ``q_rad`` for a command only if ``converged``."""

    q_rad: FloatArray
    """(n,) inside the joint limits, whatever ``converged`` says."""
    converged: bool
    position_error_m: float
    rotation_error_rad: float
    iterations: int
    links: FloatArray
    """(n + 2, 4, 4) poses at ``q_rad``: base, each joint's link, end-effector."""


_NULL_STEP_RAD = 1e-4
"""Longest null-space step of one iteration. A control tick makes two or three of them: at 100 Hz
the drift then starts with at most 3 rad/s^2, well under the joints' limits (7.5 to 20). Without the
bound an elbow 0.25 rad off asked for 12 rad/s^2 at every resume, and the gate refused each time."""


class InverseKinematics:
    """Damped least squares from a seed, inside the joint limits, with a bounded iteration count.

    Args:
        spec: the robot.
        max_iterations: upper bound of steps; two or three suffice from the last control period.
        tolerance_m: converged below this position error ...
        tolerance_rad: ... and this rotation error. Tight, because commands are differenced twice:
            1e-6 m at 100 Hz is 0.01 m/s^2 of noise.
        null_gain: share of the distance to the reference that a redundant arm walks per step.
        margin_rad: distance kept from the joint limits (smaller where the seed is already inside
            the margin, so that an arm at its limit can leave it).
    """

    def __init__(
        self,
        spec: RobotSpec,
        *,
        max_iterations: int = 30,
        tolerance_m: float = 1e-6,
        tolerance_rad: float = 1e-5,
        null_gain: float = 0.005,
        margin_rad: float = 0.0,
    ) -> None:
        self._chain = chain_of(spec)
        self._lower = np.array([j.lower_rad + margin_rad for j in spec.joints])
        self._upper = np.array([j.upper_rad - margin_rad for j in spec.joints])
        rest = spec.q_rest_rad or tuple(0.5 * (j.lower_rad + j.upper_rad) for j in spec.joints)
        self._q_rest = np.asarray(rest, float)
        self._max_iterations = max_iterations
        self._tolerance_m = tolerance_m
        self._tolerance_rad = tolerance_rad
        # Six joints leave nothing free: the pull would only bias the answer near singularities.
        self._null_gain = null_gain if spec.n_joints > 6 else 0.0

    def solve(
        self, T_base_ee: FloatArray, q_seed: FloatArray, q_reference: FloatArray | None = None
    ) -> IkResult:
        """Find joint angles for ``T_base_ee`` (4, 4) near ``q_seed`` (n,).

        Args:
            T_base_ee: target pose.
            q_seed: start of the search, usually the last command.
            q_reference: what the redundant direction is pulled to; None = the spec's rest pose.
        """
        lower, upper = np.minimum(self._lower, q_seed), np.maximum(self._upper, q_seed)
        reference = self._q_rest if q_reference is None else q_reference
        q = np.array(q_seed, float)
        best: IkResult | None = None
        for iteration in range(self._max_iterations + 1):
            links = self._chain.links(q)
            error, position, rotation = _pose_error(T_base_ee, links[-1])
            if (
                best is None
                or position + rotation < best.position_error_m + best.rotation_error_rad
            ):
                done = position <= self._tolerance_m and rotation <= self._tolerance_rad
                best = IkResult(q, done, position, rotation, iteration, links)
                if done:
                    break
            if iteration < self._max_iterations:
                q = self._step(q, links, error, (reference, lower, upper))
        assert best is not None
        return best

    def _step(
        self,
        q: FloatArray,
        links: FloatArray,
        error: FloatArray,
        bounds: tuple[FloatArray, FloatArray, FloatArray],
    ) -> FloatArray:
        reference, lower, upper = bounds
        J = self._chain.jacobian(links)
        null = None
        if self._null_gain:
            null = self._null_gain * (reference - q)
            # An elbow far from its reference starts to drift back gently, not with a jerk.
            null *= min(1.0, _NULL_STEP_RAD / max(float(abs(null).max()), 1e-12))
        damping = 0.05 * float(error @ error) + _MIN_DAMPING
        new = q + _limited(_least_squares(J, error, damping, null))
        outside = (new < lower) | (new > upper)
        if outside.any():
            # Put the offenders onto their limit and let the others make up for it.
            fixed = np.where(outside, np.clip(new, lower, upper) - q, 0.0)
            rest = _least_squares(np.where(outside, 0.0, J), error - J @ fixed, damping, null)
            new = np.clip(q + fixed + _limited(np.where(outside, 0.0, rest)), lower, upper)
        return new


_EYE = np.eye(4)
_EYE6 = np.eye(6)
_MIN_DAMPING = 1e-9
_MAX_STEP_RAD = 0.4


def _least_squares(
    J: FloatArray, error: FloatArray, damping: float, null: FloatArray | None
) -> FloatArray:
    A = J @ J.T
    A.flat[::7] += damping
    if null is None:
        return J.T @ np.linalg.solve(A, error)
    return null + J.T @ np.linalg.solve(A, error - J @ null)


def _limited(dq: FloatArray) -> FloatArray:
    """Shorten a step that leaves the region where the Jacobian means anything."""
    largest = float(abs(dq).max())
    return dq if largest <= _MAX_STEP_RAD else dq * (_MAX_STEP_RAD / largest)


def _pose_error(T_target: FloatArray, T: FloatArray) -> tuple[FloatArray, float, float]:
    """Error twist (6,) in base axes from T to the target, its length in m and in rad."""
    error = np.empty(6)
    error[:3] = T_target[:3, 3] - T[:3, 3]
    R = T_target[:3, :3] @ T[:3, :3].T
    (r00, r01, r02), (r10, r11, r12), (r20, r21, r22) = R.tolist()
    x, y, z = 0.5 * (r21 - r12), 0.5 * (r02 - r20), 0.5 * (r10 - r01)
    sine, cosine = sqrt(x * x + y * y + z * z), 0.5 * (r00 + r11 + r22 - 1.0)
    angle = atan2(sine, cosine)
    if sine > 1e-4 or cosine > 0.0:
        scale = angle / sine if sine > 1e-12 else 1.0
        error[3], error[4], error[5] = scale * x, scale * y, scale * z
    else:  # within 1e-4 rad of a half turn: the skew part says nothing about the axis
        error[3:] = quat_log(matrix_to_quat(R))
    px, py, pz = error[:3].tolist()
    return error, sqrt(px * px + py * py + pz * pz), angle


@lru_cache(maxsize=32)
def _chain(joints: tuple[Joint, ...], ee_xyz: Vector3, ee_rpy: Vector3) -> Chain:
    return Chain(joints, ee_xyz, ee_rpy)


def _skew(a: FloatArray) -> FloatArray:
    return np.array([[0.0, -a[2], a[1]], [a[2], 0.0, -a[0]], [-a[1], a[0], 0.0]])


def _block(R: FloatArray, corner: float) -> FloatArray:
    T = np.zeros((4, 4))
    T[:3, :3] = R
    T[3, 3] = corner
    return T


def _transform(xyz: Vector3, rpy: Vector3) -> FloatArray:
    T = _block(rpy_to_matrix(rpy), 1.0)
    T[:3, 3] = xyz
    return T
