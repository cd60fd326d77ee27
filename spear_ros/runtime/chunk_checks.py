"""Checks of a chunk that need no kinematics: pure functions, first failure wins.

Each returns None or a :class:`Rejection` with the figures. :class:`safety.SafetyGate` calls them in
the order in which they stand here, from cheap to dear.
"""

from math import isfinite

import numpy as np

from spear_ros.core.geometry import (
    matrix_to_quat,
    quat_angle,
    quat_conjugate,
    quat_log,
    quat_multiply,
    quat_normalize,
)
from spear_ros.core.reasons import Reason
from spear_ros.core.types import ActionChunk, FloatArray
from spear_ros.robots.spec import RobotSpec, StepLimits
from spear_ros.runtime.safety_limits import SafetyLimits
from spear_ros.runtime.safety_types import ChunkContext, Rejection

MAX_HORIZON = 64
STEP_RANGE_S = (0.02, 1.0)
MAX_DURATION_S = 5.0
QUATERNION_TOLERANCE = 1e-3
# A stamp this far ahead of receipt is a clock that runs ahead, not network jitter.
_FUTURE_S = 0.05
_SLACK = 1.0 + 1e-6


def check_numbers(chunk: ActionChunk) -> Rejection | None:
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


def check_shape(chunk: ActionChunk, context: ChunkContext) -> Rejection | None:
    """Number of knots, their spacing, gripper range."""
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


def check_identity(chunk: ActionChunk, context: ChunkContext, robot: RobotSpec) -> Rejection | None:
    """Embodiment, frames and the pinned ids."""
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


def check_time(chunk: ActionChunk, context: ChunkContext, max_age_s: float) -> Rejection | None:
    """Age at receipt, expiry, order, and the last arm or home."""
    age_s = (context.received_ns - chunk.t_obs_ns) * 1e-9
    if age_s < -_FUTURE_S:
        return Rejection(
            Reason.CLOCK_SKEW,
            f'the chunk is stamped {-age_s:.3f} s in the future; synchronise the clocks.',
        )
    if age_s > max_age_s:
        return Rejection(
            Reason.CHUNK_OLD,
            f"the chunk's observation is {age_s:.3f} s old, limit "
            f'{max_age_s:g} s; the policy is too slow.',
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
            Reason.CHUNK_OLD, "the chunk's observation is older than the last arm or home."
        )
    return None


def check_anchor(
    chunk: ActionChunk, T_measured: FloatArray | None, limits: SafetyLimits
) -> Rejection | None:
    """Anchor against the pose (4, 4) measured at the same time."""
    if T_measured is None:
        return Rejection(
            Reason.CHUNK_ANCHOR, "no joint measurement at the time of the chunk's observation."
        )
    distance = float(np.linalg.norm(T_measured[:3, 3] - chunk.anchor_p))
    angle = float(quat_angle(matrix_to_quat(T_measured[:3, :3]), quat_normalize(chunk.anchor_q)))
    if distance > limits.anchor_tolerance_m or angle > limits.anchor_tolerance_rad:
        return Rejection(
            Reason.CHUNK_ANCHOR,
            f'the chunk starts {distance * 1e3:.1f} mm and {np.degrees(angle):.1f} deg from '
            f'where the arm was then (limits {limits.anchor_tolerance_m * 1e3:.0f} mm, '
            f'{np.degrees(limits.anchor_tolerance_rad):.1f} deg).',
        )
    return None


def check_steps(chunk: ActionChunk, lim: StepLimits) -> Rejection | None:
    """Every step, anchor to knot 0 included: norm and per axis, scaled with step_s."""
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
