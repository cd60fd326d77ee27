"""SafetyGate: the hard limits. It rejects; it never clamps.

Two doors. :meth:`SafetyGate.examine` judges a whole chunk when it arrives, in a fixed order from
cheap to dear, and the first failure is the answer. :meth:`SafetyGate.check_command` judges every
command before it is sent, whatever produced it. Both answer with a code and a sentence that has
the figures in it. Pure: no clock, no state between calls.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import numpy as np

from spear_ros.core.geometry import (
    matrix_to_quat,
    pose,
    quat_angle,
    quat_conjugate,
    quat_log,
    quat_multiply,
    quat_normalize,
)
from spear_ros.core.reasons import Reason
from spear_ros.core.types import ActionChunk, FloatArray
from spear_ros.robots.kinematics import InverseKinematics, IkResult
from spear_ros.robots.spec import RobotSpec
from spear_ros.runtime.safety_limits import SafetyLimits, load_limits

__all__ = [
    'ChunkContext',
    'Rejection',
    'SafetyGate',
    'SafetyLimits',
    'SentCommand',
    'Verdict',
    'load_limits',
]

MAX_HORIZON = 64
STEP_RANGE_S = (0.02, 1.0)
MAX_DURATION_S = 5.0
QUATERNION_TOLERANCE = 1e-3
# A stamp this far ahead of receipt is a clock that runs ahead, not network jitter.
_FUTURE_S = 0.05
# More than this between two knots is another branch of the inverse kinematics.
_RECONFIGURATION_RAD = 1.5
# Fractions over a limit that are rounding, not motion.
_SLACK = 1.0 + 1e-6
_BOX_SLACK_M = 1e-6


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a chunk or a command is refused: a code and a sentence with the figures."""

    reason: Reason
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkContext:
    """What the gate compares a chunk with. Empty strings and None are not compared."""

    received_ns: int
    measured: Callable[[int], FloatArray | None]
    """Stamp -> measured joint angles (n,) at that time; None = no measurement."""
    forward: Callable[[FloatArray], FloatArray]
    """Joint angles (n,) -> end-effector pose (4, 4)."""
    not_before_ns: int = 0
    """The last arm or home: older observations are not followed."""
    policy_session: str = ''
    checkpoint_id: str = ''
    last_sequence: int | None = None
    """Newest sequence seen in this session."""
    horizon: int | None = None
    step_s: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of examining a chunk."""

    rejection: Rejection | None
    segment_rates: tuple[float, ...] = ()
    """(H,) largest rate of time per step that the joints' nominal limits allow."""


@dataclass(frozen=True, slots=True)
class SentCommand:
    """The last command that went out, and its velocities."""

    stamp_ns: int
    T_base_ee: FloatArray
    q_rad: FloatArray
    dq_rad_s: FloatArray
    dt_s: float
    """Time since the command before; 0 for the first."""


class SafetyGate:
    """Hard limits of one robot.

    Args:
        robot: kinematics and joint limits.
        limits: the limits in force.
    """

    def __init__(self, robot: RobotSpec, limits: SafetyLimits) -> None:
        self._robot = robot
        self._limits = limits
        self._ik = InverseKinematics(
            robot, margin_rad=limits.joint_margin_rad, tolerance_m=1e-4, tolerance_rad=1e-3
        )
        joints = robot.joints
        self._lower = np.array([j.lower_rad for j in joints])
        self._upper = np.array([j.upper_rad for j in joints])
        hard = limits.hard.joint_fraction
        self._velocity = hard * np.array([j.velocity_rad_s for j in joints])
        self._acceleration = hard * np.array([j.acceleration_rad_s2 for j in joints])
        self._nominal_velocity = limits.nominal.joint_fraction * self._velocity / hard
        self._box = np.array([limits.workspace_min_m, limits.workspace_max_m])
        spheres = robot.link_spheres
        self._sphere_link = np.array([s.after_joint for s in spheres], int)
        self._sphere_center = np.array([s.center_m for s in spheres]).reshape(-1, 3)
        self._sphere_radius = np.array([s.radius_m for s in spheres])

    # --------------------------------------------------------------------------------------- chunks

    def check_chunk(self, chunk: ActionChunk, context: ChunkContext) -> Rejection | None:
        """Judge a chunk; None = it may be followed."""
        return self.examine(chunk, context).rejection

    def examine(self, chunk: ActionChunk, context: ChunkContext) -> Verdict:
        """Judge a chunk and, if it is good, say how fast the joints allow it to run."""
        with np.errstate(over='ignore', invalid='ignore'):
            rejection = self.check_fields(chunk, context)
        if rejection is not None:
            return Verdict(rejection)
        return self._check_reach(chunk, context)

    def check_fields(self, chunk: ActionChunk, context: ChunkContext) -> Rejection | None:
        """Every check that needs no inverse kinematics, in order."""
        return (
            _check_numbers(chunk)
            or _check_shape(chunk, context)
            or self._check_identity(chunk, context)
            or self._check_time(chunk, context)
            or self._check_anchor(chunk, context)
            or self._check_steps(chunk)
            or self._check_box(chunk)
        )

    def _check_identity(self, chunk: ActionChunk, context: ChunkContext) -> Rejection | None:
        robot = self._robot
        pairs = [
            ('embodiment', chunk.embodiment, robot.embodiment),
            ('base frame', chunk.base_frame, robot.base_frame),
            ('end-effector frame', chunk.ee_frame, robot.ee_frame),
        ]
        if context.checkpoint_id:
            pairs.append(('checkpoint', chunk.checkpoint_id, context.checkpoint_id))
        if context.policy_session:
            pairs.append(('policy session', chunk.policy_session, context.policy_session))
        for name, seen, expected in pairs:
            if seen != expected:
                return Rejection(
                    Reason.CHUNK_IDENTITY,
                    f'the chunk is of {name} "{seen}", armed with "{expected}"; arm again if this '
                    'is the policy you want.',
                )
        return None

    def _check_time(self, chunk: ActionChunk, context: ChunkContext) -> Rejection | None:
        age_s = (context.received_ns - chunk.t_obs_ns) * 1e-9
        if age_s < -_FUTURE_S:
            return Rejection(
                Reason.CLOCK_SKEW,
                f'the chunk is stamped {-age_s:.3f} s in the future; synchronise the clocks.',
            )
        if age_s > self._limits.max_chunk_age_s:
            return Rejection(
                Reason.CHUNK_OLD,
                f'the chunk\'s observation is {age_s:.3f} s old, limit '
                f'{self._limits.max_chunk_age_s:g} s; the policy is too slow.',
            )
        if context.received_ns >= chunk.expiry_ns:
            late = (context.received_ns - chunk.expiry_ns) * 1e-9
            return Rejection(Reason.CHUNK_OLD, f'the chunk expired {late:.3f} s before receipt.')
        if context.last_sequence is not None and chunk.sequence <= context.last_sequence:
            return Rejection(
                Reason.CHUNK_MALFORMED,
                f'chunk {chunk.sequence} came after chunk {context.last_sequence}: out of order.',
            )
        if chunk.t_obs_ns < context.not_before_ns:
            return Rejection(
                Reason.CHUNK_OLD, 'the chunk\'s observation is older than the last arm or home.'
            )
        return None

    def _check_anchor(self, chunk: ActionChunk, context: ChunkContext) -> Rejection | None:
        q = context.measured(chunk.t_obs_ns)
        if q is None:
            return Rejection(
                Reason.CHUNK_ANCHOR, 'no joint measurement at the time of the chunk\'s observation.'
            )
        T = context.forward(q)
        distance = float(np.linalg.norm(T[:3, 3] - chunk.anchor_p))
        angle = float(quat_angle(matrix_to_quat(T[:3, :3]), quat_normalize(chunk.anchor_q)))
        lim = self._limits
        if distance > lim.anchor_tolerance_m or angle > lim.anchor_tolerance_rad:
            return Rejection(
                Reason.CHUNK_ANCHOR,
                f'the chunk starts {distance * 1e3:.1f} mm and {np.degrees(angle):.1f} deg from '
                f'where the arm was then (limits {lim.anchor_tolerance_m * 1e3:.0f} mm, '
                f'{np.degrees(lim.anchor_tolerance_rad):.1f} deg).',
            )
        return None

    def _check_steps(self, chunk: ActionChunk) -> Rejection | None:
        lim = self._limits.step
        k = chunk.step_s / lim.per_s
        p = np.vstack([chunk.anchor_p, chunk.p_base_ee])
        q = quat_normalize(np.vstack([chunk.anchor_q, chunk.q_base_ee]))
        d = np.diff(p, axis=0)
        r = quat_log(quat_multiply(q[1:], quat_conjugate(q[:-1])))
        for name, steps, norm_limit, axis_limit, unit in (
            ('moves', d, lim.norm_m, lim.axis_m, 'm'),
            ('turns', r, lim.norm_rad, lim.axis_rad, 'rad'),
        ):
            norms, axes = np.linalg.norm(steps, axis=1), abs(steps).max(axis=1)
            for values, limit, what in (
                (norms, k * norm_limit, ''),
                (axes, k * axis_limit, ' along one axis'),
            ):
                worst = int(np.argmax(values))
                if not values[worst] <= limit * _SLACK:
                    return Rejection(
                        Reason.CHUNK_STEP_LIMIT,
                        f'step {worst} {name} {values[worst]:.4f} {unit}{what} in '
                        f'{chunk.step_s:g} s, limit {limit:.4f} {unit}.',
                    )
        return None

    def _check_box(self, chunk: ActionChunk) -> Rejection | None:
        p = chunk.p_base_ee
        low, high = self._box
        outside = (p < low) | (p > high)
        if outside.any():
            knot, axis = (int(i) for i in np.argwhere(outside)[0])
            return _outside(f'knot {knot}', p[knot], axis, self._box)
        return None

    def _check_reach(self, chunk: ActionChunk, context: ChunkContext) -> Verdict:
        q = context.measured(chunk.t_obs_ns)
        assert q is not None  # checked with the anchor
        rates = []
        T = pose(chunk.p_base_ee, quat_normalize(chunk.q_base_ee))
        for knot in range(chunk.horizon):
            result = self._ik.solve(T[knot], q)
            rejection = self._check_knot(knot, result, q)
            if rejection is not None:
                return Verdict(rejection)
            speed = abs(result.q_rad - q) / chunk.step_s
            rates.append(1.0 / max(1.0, float((speed / self._nominal_velocity).max())))
            q = result.q_rad
        return Verdict(None, tuple(rates))

    def _check_knot(self, knot: int, result: IkResult, q_before: FloatArray) -> Rejection | None:
        if not result.converged:
            return Rejection(
                Reason.CHUNK_UNREACHABLE,
                f'the arm cannot reach knot {knot} within its joint limits: '
                f'{result.position_error_m * 1e3:.1f} mm and '
                f'{np.degrees(result.rotation_error_rad):.1f} deg remain.',
            )
        jump = abs(result.q_rad - q_before)
        if jump.max() > _RECONFIGURATION_RAD:
            joint = self._robot.joints[int(jump.argmax())].name
            return Rejection(
                Reason.CHUNK_UNREACHABLE,
                f'{joint} would have to turn {jump.max():.2f} rad to reach knot {knot}.',
            )
        low = self.clearance_m(result.links)
        if low < self._limits.table_clearance_m:
            return Rejection(
                Reason.CHUNK_WORKSPACE,
                f'at knot {knot} a link would be {low * 1e3:.0f} mm above the table, least '
                f'{self._limits.table_clearance_m * 1e3:.0f} mm.',
            )
        return None

    # ------------------------------------------------------------------------------------- commands

    def check_command(
        self, now_ns: int, result: IkResult, previous: SentCommand | None
    ) -> Rejection | None:
        """Judge the command ``result`` (pose and joints) that is about to be sent at ``now_ns``."""
        T, q = result.links[-1], result.q_rad
        return self.check_pose(result) or self._check_motion(now_ns, T, q, previous)

    def check_pose(self, result: IkResult) -> Rejection | None:
        """The half that needs no history: finite, reached, inside the box, joints and table."""
        T, q = result.links[-1], result.q_rad
        if not (np.isfinite(T).all() and np.isfinite(q).all()):
            return Rejection(Reason.COMMAND_LIMIT, 'the command is not finite.')
        if not result.converged:
            return Rejection(
                Reason.COMMAND_UNREACHABLE,
                f'the arm cannot reach the target: {result.position_error_m * 1e3:.2f} mm and '
                f'{np.degrees(result.rotation_error_rad):.2f} deg remain.',
            )
        p = T[:3, 3]
        outside = (p < self._box[0] - _BOX_SLACK_M) | (p > self._box[1] + _BOX_SLACK_M)
        if outside.any():
            found = _outside('the target', p, int(outside.argmax()), self._box)
            return Rejection(Reason.COMMAND_LIMIT, found.text)
        beyond = np.maximum(self._lower - q, q - self._upper)
        if beyond.max() > 1e-6:
            joint = self._robot.joints[int(beyond.argmax())].name
            return Rejection(
                Reason.COMMAND_LIMIT, f'{joint} would be {beyond.max():.4f} rad beyond its limit.'
            )
        low = self.clearance_m(result.links)
        if low < self._limits.table_clearance_m:
            return Rejection(
                Reason.COMMAND_LIMIT, f'a link would be {low * 1e3:.0f} mm above the table.'
            )
        return None

    def _check_motion(
        self, now_ns: int, T: FloatArray, q: FloatArray, previous: SentCommand | None
    ) -> Rejection | None:
        if previous is None:
            return None
        dt = (now_ns - previous.stamp_ns) * 1e-9
        if dt <= 0.0:
            return Rejection(Reason.COMMAND_LIMIT, 'two commands at the same time.')
        hard = self._limits.hard
        d = (T[:3, 3] - previous.T_base_ee[:3, 3]).tolist()
        linear = (d[0] ** 2 + d[1] ** 2 + d[2] ** 2) ** 0.5 / dt
        # trace(R1 R2^T) = 1 + 2 cos(angle); the chord is exact enough below a radian per period
        chord = T[:3, :3] - previous.T_base_ee[:3, :3]
        angular = (0.5 * float(np.vdot(chord, chord))) ** 0.5 / dt
        dq = (q - previous.q_rad) / dt
        for value, limit, what, unit in (
            (linear, hard.linear_m_s, 'end-effector speed', 'm/s'),
            (angular, hard.angular_rad_s, 'end-effector turning speed', 'rad/s'),
        ):
            if not value <= limit * _SLACK:
                return _too_fast(what, value, limit, unit)
        ratio = abs(dq) / self._velocity
        worst = int(ratio.argmax())
        if not ratio[worst] <= _SLACK:
            return _too_fast(
                f'{self._robot.joints[worst].name} speed',
                float(abs(dq[worst])),
                float(self._velocity[worst]),
                'rad/s',
            )
        ddq = abs(dq - previous.dq_rad_s) / (0.5 * (dt + (previous.dt_s or dt)))
        ratio = ddq / self._acceleration
        worst = int(ratio.argmax())
        if not ratio[worst] <= _SLACK:
            return _too_fast(
                f'{self._robot.joints[worst].name} acceleration',
                float(ddq[worst]),
                float(self._acceleration[worst]),
                'rad/s^2',
            )
        return None

    def clearance_m(self, links: FloatArray) -> float:
        """Least height of the link spheres above the table for link poses (n + 2, 4, 4)."""
        if not len(self._sphere_radius):
            return float('inf')
        rows = links[self._sphere_link, 2]
        heights = (rows[:, :3] * self._sphere_center).sum(axis=1) + rows[:, 3]
        return float((heights - self._sphere_radius).min()) - self._limits.table_z_m

    def inside_joint_limits(self, q: FloatArray, margin_rad: float = 0.0) -> bool:
        """Whether every joint is inside its hard limits, ``margin_rad`` further in."""
        return bool(((q >= self._lower + margin_rad) & (q <= self._upper - margin_rad)).all())


def _check_numbers(chunk: ActionChunk) -> Rejection | None:
    """Array shapes (without them nothing else can be computed), finite, unit quaternions."""
    h = chunk.p_base_ee.shape[0] if chunk.p_base_ee.ndim else 0
    shapes = (
        ('poses', chunk.p_base_ee, (h, 3)),
        ('rotations', chunk.q_base_ee, (h, 4)),
        ('gripper', chunk.gripper, (h,)),
        ('anchor position', chunk.anchor_p, (3,)),
        ('anchor rotation', chunk.anchor_q, (4,)),
    )
    for name, array, shape in shapes:
        if array.shape != shape:
            return Rejection(
                Reason.CHUNK_MALFORMED, f'{name} have shape {array.shape}, expected {shape}.'
            )
    for name, array, _ in shapes:
        if not np.isfinite(array).all():
            return Rejection(Reason.CHUNK_NOT_FINITE, f'{name} contain NaN or infinity.')
    if not isfinite(chunk.step_s):
        return Rejection(Reason.CHUNK_NOT_FINITE, f'step_s = {chunk.step_s}.')
    for name, q in (('a rotation', chunk.q_base_ee), ('the anchor rotation', chunk.anchor_q)):
        error = abs(np.sqrt((q * q).sum(axis=-1)) - 1.0)
        if h and not error.max() <= QUATERNION_TOLERANCE:
            return Rejection(
                Reason.CHUNK_MALFORMED,
                f'{name} is not a unit quaternion (norm off by {error.max():.3g}).',
            )
    return None


def _check_shape(chunk: ActionChunk, context: ChunkContext) -> Rejection | None:
    h, step = chunk.horizon, chunk.step_s
    low, high = STEP_RANGE_S
    text = ''
    if not 1 <= h <= MAX_HORIZON or (context.horizon and h != context.horizon):
        text = f'{h} knots, expected {context.horizon or f"1 to {MAX_HORIZON}"}.'
    elif not low <= step <= high or (context.step_s and abs(step - context.step_s) > 1e-6):
        text = f'step_s = {step:g}, expected {context.step_s or f"{low:g} to {high:g}"}.'
    elif h * step > MAX_DURATION_S:
        text = f'{h} knots of {step:g} s last longer than {MAX_DURATION_S:g} s.'
    elif not ((chunk.gripper > -0.5) & (chunk.gripper < 1.5)).all():
        text = 'gripper values must lie between 0 (closed) and 1 (open).'
    return Rejection(Reason.CHUNK_MALFORMED, text) if text else None


def _outside(what: str, p: FloatArray, axis: int, box: FloatArray) -> Rejection:
    return Rejection(
        Reason.CHUNK_WORKSPACE,
        f'{what} is outside the workspace: {"xyz"[axis]} = {p[axis]:.3f} m, allowed '
        f'{box[0][axis]:.3f} to {box[1][axis]:.3f} m.',
    )


def _too_fast(what: str, value: float, limit: float, unit: str) -> Rejection:
    return Rejection(
        Reason.COMMAND_LIMIT, f'{what} would be {value:.3f} {unit}, limit {limit:.3f} {unit}.'
    )
