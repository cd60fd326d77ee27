"""Absolute end-effector poses <-> model actions and proprioception: ONE pair for all users.

Training data, live serving, offline replay and the ``recorded`` policy all go through
:func:`encode_actions` and :func:`decode_actions`; a convention that differed between them would
move a robot wrongly without any error. Bodies are array-generic: numpy arrays in float64 or torch
tensors of any float type, with any leading batch axes.

Action (8 numbers, model units): ``[dx dy dz | qw qx qy qz | gripper]``

- translation: ``p_i - p_ref`` in the robot BASE frame (arXiv 2511.17411), normalised by NormStats;
- rotation: ``R_ref^-1 R_i`` in the END-EFFECTOR frame, unit quaternion with w >= 0, never
  normalised by statistics;
- gripper: 1 = open binarised at the spec's threshold, scaled to [-1, 1].

``ref`` is the pose measured at t_obs (``chunk_start``) or the previous knot (``previous_step``).
Rotations are first taken to the frame that the data set trained on: ``R_model = R_base_ee D^T``
with D the spec's ``reference_rotation`` (BridgeData V2 ``widowx_controller.DEFAULT_ROTATION``:
top-down is the identity; identity for DROID's ``link8``).

Proprioception (8 numbers): ``[position, normalised | quaternion of R_model | gripper in -1 .. 1]``.
Of q and -q the one on the side of the spec's ``proprio_pole`` is taken: a Franka that points down
has w = 0 exactly, where the rule w >= 0 would flip the sign with every flicker of the last digit.
"""

from typing import NamedTuple

from spear_ros.core.geometry import pose_parts
from spear_ros.core.types import ActionSpec, FloatArray, NormStats, RobotState
from spear_ros.processing.arrays import (
    Array,
    namespace,
    quat_conjugate,
    quat_in_half_space,
    quat_multiply,
    quat_multiply_constant,
)
from spear_ros.processing.normalization import (
    binarize_gripper,
    denormalize_gripper,
    denormalize_translation,
    normalize_gripper,
    normalize_position,
    normalize_translation,
)

ACTION_DIM = 8
PROPRIO_DIM = 8
TRANSLATION = slice(0, 3)
ROTATION = slice(3, 7)
GRIPPER = 7


class Pose(NamedTuple):
    """Pose of the trained end-effector frame in the base frame."""

    p: Array
    """(..., 3) m."""
    q: Array
    """(..., 4) wxyz, unit."""


class Targets(NamedTuple):
    """Absolute targets of a chunk, knot by knot."""

    p: Array
    """(..., H, 3) m in the base frame."""
    q: Array
    """(..., H, 4) wxyz, unit."""
    gripper: Array
    """(..., H) 1 = open."""


def pose_of(state: RobotState) -> Pose:
    """Pose of a measured state, float64."""
    return Pose(*pose_parts(state.T_base_ee))


def targets_from_poses(T_base_ee: FloatArray, gripper: FloatArray) -> Targets:
    """Poses (H, 4, 4) and openings (H,) as targets, float64."""
    return Targets(*pose_parts(T_base_ee), gripper)


def to_model_rotation(q_base_ee: Array, spec: ActionSpec) -> Array:
    """Quaternions of R_base_ee (..., 4) to those of R_model = R_base_ee D^T."""
    w, x, y, z = spec.reference_rotation
    return quat_multiply_constant(q_base_ee, (w, -x, -y, -z))


def from_model_rotation(q_model: Array, spec: ActionSpec) -> Array:
    """Quaternions of R_model (..., 4) to those of R_base_ee = R_model D."""
    return quat_multiply_constant(q_model, spec.reference_rotation)


def encode_actions(targets: Targets, anchor: Pose, spec: ActionSpec, stats: NormStats) -> Array:
    """Absolute targets (..., H) on a measured anchor (...) to model actions (..., H, 8).

    Fewer than ``spec.horizon`` knots are fine: a committed prefix is encoded by the same rule.
    """
    xp = namespace(targets.p)
    knots = targets.p.shape[-2]
    p_ref, q_ref = _references(targets, anchor, spec)
    q = to_model_rotation(targets.q, spec)
    delta_q = quat_in_half_space(quat_multiply(quat_conjugate(to_model_rotation(q_ref, spec)), q))
    delta_p = normalize_translation(targets.p - p_ref, stats)
    opening = normalize_gripper(binarize_gripper(targets.gripper, spec.gripper_threshold))
    assert opening.shape[-1] == knots, (opening.shape, knots)
    return xp.concatenate([delta_p, delta_q, opening[..., None]], -1)


def decode_actions(actions: Array, anchor: Pose, spec: ActionSpec, stats: NormStats) -> Targets:
    """Model actions (..., H, 8) on a measured anchor (...) to absolute targets.

    Quaternions are composed as they came, neither normalised nor made canonical: what is not finite
    or not a rotation must reach the safety gate and be refused there. With the anchor's sign kept,
    neighbouring knots never differ in sign.
    """
    assert actions.shape[-1] == ACTION_DIM, actions.shape
    xp = namespace(actions)
    delta_p = denormalize_translation(actions[..., TRANSLATION], stats)
    delta_q = actions[..., ROTATION]
    q_anchor = to_model_rotation(anchor.q, spec)
    if spec.relative_to == 'chunk_start':
        p = anchor.p[..., None, :] + delta_p
        q = quat_multiply(q_anchor[..., None, :], delta_q)
    else:
        p = anchor.p[..., None, :] + xp.cumsum(delta_p, -2)
        knots = []
        for i in range(actions.shape[-2]):
            q_anchor = quat_multiply(q_anchor, delta_q[..., i, :])
            knots.append(q_anchor)
        q = xp.stack(knots, -2)
    opening = binarize_gripper(denormalize_gripper(actions[..., GRIPPER]), spec.gripper_threshold)
    return Targets(p, from_model_rotation(q, spec), opening)


def encode_proprio(anchor: Pose, gripper: Array, spec: ActionSpec, stats: NormStats) -> Array:
    """Measured pose (...) and opening (...) to the model's proprioception (..., 8).

    The opening is not binarised: a half-closed gripper tells that it holds something.
    """
    q = quat_in_half_space(to_model_rotation(anchor.q, spec), spec.proprio_pole)
    p = normalize_position(anchor.p, stats)
    opening = normalize_gripper(gripper)
    return namespace(p).concatenate([p, q, opening[..., None]], -1)


def _references(targets: Targets, anchor: Pose, spec: ActionSpec) -> tuple[Array, Array]:
    """Per knot the pose that its delta is measured from: (..., H or 1, 3) and (..., H or 1, 4)."""
    p0, q0 = anchor.p[..., None, :], anchor.q[..., None, :]
    if spec.relative_to == 'chunk_start':
        return p0, q0
    join = namespace(targets.p).concatenate
    return join([p0, targets.p[..., :-1, :]], -2), join([q0, targets.q[..., :-1, :]], -2)
