"""How published recordings write poses, commands and grippers, brought to ours.

Ours: position in metres and unit quaternion wxyz of the end-effector in the base frame; gripper
1 = open. Encodings are named in the rows of ``config/training/datasets``; tests pin each to numbers
worked out by hand.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import (
    matrix_to_quat,
    quat_exp,
    quat_log,
    quat_multiply,
    quat_normalize,
    rpy_to_matrix,
)
from spear_ros.core.types import FloatArray
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot

PoseEncoding = Literal[
    'xyz_rpy',
    'xyz_euler_zxy',
    'xyz_quat_xyzw',
    'xyz_quat_wxyz',
    'xyz_axis_angle',
    'xyz',
    'matrix_columns',
    'matrix_rows',
    'joints',
    'integrated_xyz_rpy',
]
CommandEncoding = Literal[
    'delta_xyz_rpy',
    'delta_xyz_quat_xyzw',
    'delta_xyz_axis_angle_added',
    'delta_xyz',
    'absolute_xyz_rpy',
    'absolute_xyz_quat_xyzw',
    'absolute_xyz_quat_wxyz',
]

WIDTHS: dict[str, int] = {
    'xyz_rpy': 6,
    'xyz_euler_zxy': 6,
    'xyz_quat_xyzw': 7,
    'xyz_quat_wxyz': 7,
    'xyz_axis_angle': 6,
    'xyz': 3,
    'matrix_columns': 16,
    'matrix_rows': 16,
    'integrated_xyz_rpy': 6,
    'delta_xyz_rpy': 6,
    'delta_xyz_quat_xyzw': 7,
    'delta_xyz_axis_angle_added': 6,
    'delta_xyz': 3,
    'absolute_xyz_rpy': 6,
    'absolute_xyz_quat_xyzw': 7,
    'absolute_xyz_quat_wxyz': 7,
}

Poses = tuple[FloatArray, FloatArray]

_BEYOND = 0.5
"""Of the way from closed to open: overshoot of a sensor, not another unit."""


def decode_poses(raw: FloatArray, encoding: str, robot: str = '') -> Poses:
    """Raw rows (n, k) to positions (n, 3) and quaternions (n, 4) wxyz.

    Args:
        raw: numbers as recorded.
        encoding: one of :data:`PoseEncoding`. Angles in radians. ``xyz_rpy`` is extrinsic x, y, z;
            ``xyz_euler_zxy`` is ``scipy Rotation.as_euler('zxy')``, angles about the fixed axes z,
            then x, then y; ``matrix_columns`` is a 4x4 flattened column by column;
            ``integrated_xyz_rpy`` sums per-step deltas from the origin, so only differences mean
            something.
        robot: for ``joints``, the name of the robot whose kinematics apply.

    Raises:
        UserError: the width does not fit the encoding.
    """
    raw = np.asarray(raw, float)
    if encoding == 'joints':
        return _forward(raw, robot)
    _check_width(raw, encoding)
    p = raw[:, :3]
    if encoding == 'xyz_rpy':
        return p, matrix_to_quat(rpy_to_matrix(raw[:, 3:6]))
    if encoding == 'xyz_euler_zxy':
        about_z, about_x, about_y = (
            _axis_turn(raw[:, 3 + i], axis) for i, axis in enumerate('zxy')
        )
        return p, quat_multiply(about_y, quat_multiply(about_x, about_z))
    if encoding == 'xyz_quat_xyzw':
        return p, _unit(raw[:, [6, 3, 4, 5]])
    if encoding == 'xyz_quat_wxyz':
        return p, _unit(raw[:, 3:7])
    if encoding == 'xyz_axis_angle':
        return p, quat_exp(raw[:, 3:6])
    if encoding == 'xyz':
        return p, np.tile([1.0, 0.0, 0.0, 0.0], (len(raw), 1))
    if encoding in ('matrix_columns', 'matrix_rows'):
        T = raw.reshape(-1, 4, 4)
        T = T.swapaxes(1, 2) if encoding == 'matrix_columns' else T
        return T[:, :3, 3].copy(), matrix_to_quat(T[:, :3, :3])
    assert encoding == 'integrated_xyz_rpy', encoding
    return _integrate(p, raw[:, 3:6])


def decode_commands(raw: FloatArray, encoding: str, reached: Poses) -> Poses:
    """Commands (n, k) to absolute targets; command i is to be reached at sample i + 1.

    Deltas are composed on the pose measured when the command was given: translation in the base
    frame, rotation about the base axes (left multiplication), except ``axis_angle_added``, where
    BC-Z adds the residual to the rotation vector itself.
    """
    raw = np.asarray(raw, float)
    if encoding.startswith('absolute_'):
        return decode_poses(raw, encoding.removeprefix('absolute_'))
    _check_width(raw, encoding)
    p, q = reached
    target = p + raw[:, :3]
    if encoding == 'delta_xyz_rpy':
        return target, quat_multiply(matrix_to_quat(rpy_to_matrix(raw[:, 3:6])), q)
    if encoding == 'delta_xyz_quat_xyzw':
        return target, quat_multiply(_unit(raw[:, [6, 3, 4, 5]]), q)
    if encoding == 'delta_xyz_axis_angle_added':
        return target, quat_exp(quat_log(q) + raw[:, 3:6])
    assert encoding == 'delta_xyz', encoding
    return target, q.copy()


def opening(raw: FloatArray, open_value: float, closed_value: float) -> FloatArray:
    """Scale recorded values (n,) so that ``open_value`` is 1 and ``closed_value`` is 0, clipped.

    Raises:
        UserError: a value is not finite, or so far outside that the unit must be another one.
    """
    scaled = (np.asarray(raw, float) - closed_value) / (open_value - closed_value)
    strange = ~(abs(scaled - 0.5) <= 0.5 + _BEYOND)
    if strange.any():
        frame = int(strange.argmax())
        raise UserError(
            f'the gripper is {np.asarray(raw)[frame]:g} in frame {frame}, and the row says open = '
            f'{open_value:g}, closed = {closed_value:g}; write the values that the recording has.'
        )
    return np.clip(scaled, 0.0, 1.0)


def opening_from_pulses(raw: FloatArray, open_value: float, closed_value: float) -> FloatArray:
    """Relative commands (n,) to the opening in force after each.

    A value on the side of ``open_value`` opens, one on the side of ``closed_value`` closes, values
    within a tenth of zero change nothing. The first pulse is taken to change something, so before
    it the gripper is in the other state; without any pulse it is open throughout.
    """
    towards_open = np.asarray(raw, float) * np.sign(open_value - closed_value)
    pulse = np.where(towards_open > 0.1, 1, np.where(towards_open < -0.1, -1, 0))
    fired = np.flatnonzero(pulse)
    if not len(fired):
        return np.ones(len(pulse))
    index = np.searchsorted(fired, np.arange(len(pulse)), side='right') - 1
    state = np.where(index >= 0, pulse[fired[np.maximum(index, 0)]], -pulse[fired[0]])
    return (state > 0).astype(float)


def settle(values: FloatArray, low: float = 0.05, high: float = 0.95) -> FloatArray:
    """Binarise openings (n,): values on their way take the next state that is clearly open or shut.

    Real Bridge commands contain 0.16, 0.56, 0.98 for a single step while the gripper moves; a plain
    threshold would make some of these a moment of the wrong command. Where the recording ends on
    the way, 0.5 decides.
    """
    values = np.asarray(values, float)
    clear = (values <= low) | (values >= high)
    settled = np.flatnonzero(clear)
    following = np.searchsorted(settled, np.arange(len(values)))
    has = following < len(settled)
    if not len(settled):
        return (values > 0.5).astype(float)
    chosen = values[settled[np.minimum(following, len(settled) - 1)]]
    return (np.where(has, chosen, values) > 0.5).astype(float)


def command_from_motion(values: FloatArray, swing: float = 0.15) -> FloatArray:
    """Guess the binary command (n,) from the measured openings (n,) where none was recorded.

    A grasped object stops the fingers half-way (0.54 on real Bridge data), so a threshold on the
    opening would miss the grasp. Here the gripper counts as commanded shut from the moment it
    begins to close by more than ``swing`` until the moment it begins to open by more than that.
    """
    values = np.asarray(values, float)
    command = np.empty(len(values))
    is_open = bool(values[0] > 0.5)
    extreme, since = values[0], 0
    for i, value in enumerate(values):
        command[i] = float(is_open)
        further = value >= extreme if is_open else value <= extreme
        if further:
            extreme, since = value, i
        elif abs(value - extreme) > swing:
            is_open = not is_open
            command[since : i + 1] = float(is_open)
            extreme, since = value, i
    return command


def _integrate(steps: FloatArray, rpy: FloatArray) -> Poses:
    """Poses before each step: sample 0 is the origin; the last step leads past the end."""
    p = np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)[:-1]])
    turns = matrix_to_quat(rpy_to_matrix(rpy))
    q = np.tile([1.0, 0.0, 0.0, 0.0], (len(steps), 1))
    for i in range(1, len(q)):
        q[i] = quat_multiply(turns[i - 1], q[i - 1])
    return p, quat_normalize(q)


def _axis_turn(angle: FloatArray, axis: str) -> FloatArray:
    return quat_exp(np.asarray(angle)[:, None] * np.eye(3)['xyz'.index(axis)])


def _unit(q: FloatArray) -> NDArray[np.float64]:
    norms = np.linalg.norm(q, axis=-1)
    if len(norms) and not (np.abs(norms - 1) < 0.05).all():
        worst = int(np.argmax(np.abs(norms - 1)))
        raise UserError(
            f'quaternion {q[worst].tolist()} of sample {worst} has norm {norms[worst]:.3f}; '
            'the columns of the row do not hold a quaternion.'
        )
    return quat_normalize(q)


def _forward(raw: FloatArray, robot: str) -> Poses:
    spec = get_robot(robot)
    if raw.ndim != 2 or raw.shape[1] != len(spec.joints):
        raise UserError(
            f'robot "{robot}" has {len(spec.joints)} joints, got an array of shape '
            f'{list(raw.shape)}; mend the column of the row.'
        )
    T = np.stack([forward(spec, q) for q in raw])
    return T[:, :3, 3].copy(), matrix_to_quat(T[:, :3, :3])


def _check_width(raw: FloatArray, encoding: str) -> None:
    expected = WIDTHS[encoding]
    if raw.ndim != 2 or raw.shape[1] != expected:
        raise UserError(
            f'encoding "{encoding}" needs {expected} columns, got an array of shape '
            f'{list(raw.shape)}; mend the column of the row.'
        )
