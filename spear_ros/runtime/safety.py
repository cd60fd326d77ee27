"""SafetyGate: the hard limits. It rejects; it never clamps.

Two doors. :meth:`SafetyGate.examine` judges a whole chunk when it arrives, in a fixed order from
cheap to dear, and the first failure is the answer. :meth:`SafetyGate.check_command` judges every
command before it is sent, whatever produced it. Both answer with a code and a sentence that has
the figures in it. Pure: no clock, no state between calls.
"""

import numpy as np

from spear_ros.core.geometry import pose, quat_normalize
from spear_ros.core.reasons import Reason
from spear_ros.core.types import ActionChunk, FloatArray
from spear_ros.robots.kinematics import IkResult, InverseKinematics, chain_of
from spear_ros.robots.spec import RobotSpec
from spear_ros.runtime.chunk_checks import (
    check_anchor,
    check_identity,
    check_numbers,
    check_shape,
    check_steps,
    check_time,
)
from spear_ros.runtime.safety_limits import SafetyLimits, load_limits
from spear_ros.runtime.safety_types import ChunkContext, Rejection, SentCommand, Verdict

__all__ = [
    'GAP_PERIODS',
    'ChunkContext',
    'Rejection',
    'SafetyGate',
    'SafetyLimits',
    'SentCommand',
    'Verdict',
    'load_limits',
]

# More than this between two knots is another branch of the inverse kinematics.
_RECONFIGURATION_RAD = 1.5
# Control periods after which an interval is a gap.
GAP_PERIODS = 2.5
# Fractions over a limit that are rounding, not motion.
_SLACK = 1.0 + 1e-6
_BOX_SLACK_M = 1e-6


class SafetyGate:
    """Hard limits of one robot.

    Args:
        robot: kinematics and joint limits.
        limits: the limits in force.
        period_s: nominal control period; 0 = that of the robot.
    """

    def __init__(self, robot: RobotSpec, limits: SafetyLimits, period_s: float = 0.0) -> None:
        self._longest_s = GAP_PERIODS * (period_s or 1.0 / robot.control_rate_hz)
        self._robot = robot
        self._limits = limits
        self._chain = chain_of(robot)
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
            check_numbers(chunk)
            or check_shape(chunk, context)
            or check_identity(chunk, context, self._robot)
            or check_time(chunk, context, self._limits.max_chunk_age_s)
            or self._check_anchor(chunk, context)
            or check_steps(chunk, self._limits.step)
            or self._check_box(chunk)
        )

    def _check_anchor(self, chunk: ActionChunk, context: ChunkContext) -> Rejection | None:
        q = context.q_measured
        T = None if q is None else self._chain.links(q)[-1]
        return check_anchor(chunk, T, self._limits)

    def _check_box(self, chunk: ActionChunk) -> Rejection | None:
        p = chunk.p_base_ee
        low, high = self._box
        outside = (p < low) | (p > high)
        if outside.any():
            knot, axis = (int(i) for i in np.argwhere(outside)[0])
            return _outside(f'knot {knot}', p[knot], axis, self._box)
        return None

    def _check_reach(self, chunk: ActionChunk, context: ChunkContext) -> Verdict:
        q = context.q_measured
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
        # After a gap the receiver sees the whole way as one step: speed counts over a short while.
        # Acceleration says nothing then: for the receiver the target has been standing.
        short = min(dt, self._longest_s)
        hard = self._limits.hard
        d = (T[:3, 3] - previous.T_base_ee[:3, 3]).tolist()
        linear = (d[0] ** 2 + d[1] ** 2 + d[2] ** 2) ** 0.5 / short
        # trace(R1 R2^T) = 1 + 2 cos(angle); the chord is exact enough below a radian per period
        chord = T[:3, :3] - previous.T_base_ee[:3, :3]
        angular = (0.5 * float(np.vdot(chord, chord))) ** 0.5 / short
        dq = (q - previous.q_rad) / short
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
        if dt > self._longest_s:
            return None
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
