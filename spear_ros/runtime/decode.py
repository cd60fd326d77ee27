"""ROS messages to arrays, duck-typed: the one place where what came over a wire is checked.

The nodes, the offline replay and the conversion of recordings use exactly these functions, on rclpy
messages and on ``rosbags`` messages alike; no message package is imported. Each refusal is a
:class:`DecodeError`: one sentence for the operator, and the reason code.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from spear_ros.core import geometry
from spear_ros.core.reasons import Reason
from spear_ros.core.types import FloatArray
from spear_ros.runtime.decode_image import DecodeError, decode_image

__all__ = [
    'DecodeError',
    'check_instruction',
    'decode_image',
    'decode_joints',
    'decode_object_poses',
    'decode_opening',
    'decode_pose',
    'decode_text',
    'decode_value',
    'stamp_ns',
]

MAX_INSTRUCTION_CHARACTERS = 500
MAX_POSITION_M = 10.0
"""Farther than this from the base is no pose of a table-top arm but a wrong unit or garbage."""
QUATERNION_TOLERANCE = 1e-2
"""Drivers that send float32 or rounded text are within this of unit norm; zeros are not."""
OPENING_RANGE = (-0.5, 1.5)
"""Readings lie slightly outside [0, 1] (Bridge: up to 1.01); far outside, open/closed are wrong."""


def stamp_ns(msg: Any, received_ns: int | None = None) -> int:
    """Return the header stamp in nanoseconds, or ``received_ns`` for a message without a header.

    Raises:
        DecodeError: there is no header and no time of receipt was given.
    """
    header = getattr(msg, 'header', None)
    if header is None:
        if received_ns is None:
            raise DecodeError(
                f'message of type {type(msg).__name__} has no header stamp; use a stamped type.'
            )
        return received_ns
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)


def decode_joints(msg: Any, names: Sequence[str]) -> FloatArray:
    """Pick the positions of ``names`` out of a ``sensor_msgs/JointState``, in that order.

    Args:
        msg: The message; further joints (fingers) and any order are accepted.
        names: Joint names, base to wrist, as the driver calls them.

    Returns:
        (n,) positions in the message's unit (rad, or m for fingers).

    Raises:
        DecodeError: not a JointState, a name missing or given twice, fewer positions than names,
            a value that is not finite.
    """
    if not hasattr(msg, 'position') or not hasattr(msg, 'name'):
        raise DecodeError(
            f'message of type {type(msg).__name__} is not a sensor_msgs/JointState; '
            'set the topic or its kind.',
            Reason.JOINTS_NAMES,
        )
    have = list(msg.name)
    if len(msg.position) != len(have):
        raise DecodeError(
            f'joint state has {len(have)} names but {len(msg.position)} positions; '
            'check the driver that publishes it.',
            Reason.JOINTS_NAMES,
        )
    missing = [name for name in names if have.count(name) != 1]
    if missing:
        raise DecodeError(
            f'joint state lacks {", ".join(missing)} (or has it twice), it carries '
            f'{", ".join(have[:20]) or "no names"}; choose the topic or the robot that fits.',
            Reason.JOINTS_NAMES,
        )
    values = np.array([msg.position[have.index(name)] for name in names], float)
    if not np.isfinite(values).all():
        bad = names[int(np.argmin(np.isfinite(values)))]
        raise DecodeError(
            f'position of joint {bad} is not finite; check the driver.', Reason.JOINTS_NOT_FINITE
        )
    return values


def decode_pose(msg: Any) -> FloatArray:
    """Turn a pose message into a (4, 4) array.

    Takes Pose, PoseStamped, PoseWithCovarianceStamped, Odometry and TransformStamped.

    Returns:
        The pose as the message has it, in metres, with its quaternion scaled to unit norm.

    Raises:
        DecodeError: another type, a value that is not finite, a position beyond
            :data:`MAX_POSITION_M`, a quaternion that is not of unit norm.
    """
    body = msg
    for name in ('transform', 'pose', 'pose'):  # Odometry: pose.pose
        body = getattr(body, name, body)
    position = getattr(body, 'position', getattr(body, 'translation', None))
    rotation = getattr(body, 'orientation', getattr(body, 'rotation', None))
    if position is None or rotation is None or not hasattr(position, 'z'):
        raise DecodeError(
            f'message of type {type(msg).__name__} is not a pose; use geometry_msgs/PoseStamped.'
        )
    p = np.array([position.x, position.y, position.z], float)
    q = np.array([rotation.w, rotation.x, rotation.y, rotation.z], float)
    if not (np.isfinite(p).all() and np.isfinite(q).all()):
        raise DecodeError(
            'pose holds a value that is not finite; check the driver.', Reason.JOINTS_NOT_FINITE
        )
    if np.abs(p).max() > MAX_POSITION_M:
        raise DecodeError(
            f'position {np.round(p, 3).tolist()} is more than {MAX_POSITION_M:g} m from the base; '
            'poses are expected in metres.',
            Reason.JOINTS_LIMIT,
        )
    if not geometry.is_unit_quaternion(q, QUATERNION_TOLERANCE):
        raise DecodeError(
            f'quaternion of norm {np.linalg.norm(q):.3g} is not a rotation; '
            'the publisher must send unit quaternions.',
            Reason.JOINTS_NOT_FINITE,
        )
    return geometry.pose(p, geometry.quat_normalize(q))


def decode_value(msg: Any) -> float:
    """Read one number out of a ``std_msgs`` Float32, Float64, an integer or a one-element array.

    Raises:
        DecodeError: there is no such number, or it is not finite.
    """
    data = getattr(msg, 'data', None)
    values = np.atleast_1d(np.asarray(data)) if data is not None else np.zeros(0)
    if values.size != 1 or values.dtype.kind not in 'biuf':
        raise DecodeError(
            f'message of type {type(msg).__name__} does not hold one number; '
            'use std_msgs/Float32 or Float64, or kind "joints".'
        )
    value = float(values[0])
    if not np.isfinite(value):
        raise DecodeError('value is not finite; check the driver.', Reason.GRIPPER_STALE)
    return value


def decode_opening(raw: float, raw_open: float, raw_closed: float) -> float:
    """Convert a gripper reading into an opening: 1 = open, 0 = closed, not clipped.

    Raises:
        DecodeError: the result lies outside :data:`OPENING_RANGE`.
    """
    opening = (raw - raw_closed) / (raw_open - raw_closed)
    if not OPENING_RANGE[0] <= opening <= OPENING_RANGE[1]:
        raise DecodeError(
            f'gripper reading {raw:g} is an opening of {opening:.2f} with open = {raw_open:g} and '
            f'closed = {raw_closed:g}; mend these two numbers.',
            Reason.GRIPPER_STALE,
        )
    return opening


def decode_object_poses(msg: Any) -> dict[str, FloatArray]:
    """Turn a ``spear_msgs/ObjectPoses`` into name -> (4, 4) pose in the base frame.

    Raises:
        DecodeError: names and poses differ in number, or a pose is unusable.
    """
    names, poses = list(msg.names), list(msg.poses)
    if len(names) != len(poses):
        raise DecodeError(
            f'object poses carry {len(names)} names but {len(poses)} poses; check the publisher.'
        )
    return {str(name): decode_pose(pose) for name, pose in zip(names, poses, strict=True)}


def decode_text(msg: Any) -> str:
    """Read an instruction out of a ``std_msgs/String``.

    Raises:
        DecodeError: another type, or the text is no instruction (:func:`check_instruction`).
    """
    text = getattr(msg, 'data', None)
    if not isinstance(text, str):
        raise DecodeError(
            f'message of type {type(msg).__name__} holds no text; use a std_msgs/String topic.'
        )
    return check_instruction(text)


def check_instruction(text: str) -> str:
    """Return the instruction with white space tidied up.

    Raises:
        DecodeError: it is empty, longer than :data:`MAX_INSTRUCTION_CHARACTERS`, or holds
            characters that cannot be printed.
    """
    tidy = ' '.join(text.split())
    if not tidy:
        raise DecodeError('the instruction is empty; send a sentence such as "pick up the cube".')
    if len(tidy) > MAX_INSTRUCTION_CHARACTERS:
        raise DecodeError(
            f'the instruction has {len(tidy)} characters, the limit is '
            f'{MAX_INSTRUCTION_CHARACTERS}; shorten it.'
        )
    if not tidy.isprintable():
        raise DecodeError('the instruction holds characters that cannot be printed; retype it.')
    return tidy
