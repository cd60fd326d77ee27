"""Which topics belong into a recording, and how a picture becomes an entry of a bag."""

from typing import Any

import cv2
import numpy as np
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage

from spear_ros.core.errors import UserError
from spear_ros.ros.config import RobotConfig
from spear_ros.ros.conversions import jpeg_to_msg, ns_from_time
from spear_ros.ros.drivers.base import messages
from spear_ros.runtime.decode import decode_image

_SMALL_PX = 320
_QUALITY = 85

OUR_TOPICS = {
    '/spear/action_chunk': 'spear_msgs/msg/ActionChunk',
    '/spear/policy_status': 'spear_msgs/msg/PolicyStatus',
    '/spear/executor_status': 'spear_msgs/msg/ExecutorStatus',
    '/spear/preview': 'nav_msgs/msg/Path',
    '/diagnostics': 'diagnostic_msgs/msg/DiagnosticArray',
    '/rosout': 'rcl_interfaces/msg/Log',
    '/sim/object_poses': 'spear_msgs/msg/ObjectPoses',
    '/sim/task_state': 'spear_msgs/msg/TaskState',
    '/sim/external_camera_pose': 'geometry_msgs/msg/PoseStamped',
    '/sim/fault': 'std_msgs/msg/String',
}


def robot_topics(config: RobotConfig) -> dict[str, str]:
    """Topics of the robot and its driver that belong into a recording, with their types."""
    topics = {
        config.arm.topic: 'sensor_msgs/msg/JointState',
        config.gripper_state.topic: 'sensor_msgs/msg/JointState',
    }
    if config.franka is not None:
        poses = config.franka.command == 'target_pose'
        kind = 'geometry_msgs/msg/PoseStamped' if poses else 'trajectory_msgs/msg/JointTrajectory'
        topics[config.franka.command_topic] = kind
        activity = f'{config.franka.controller_manager}/activity'
        topics[activity] = 'controller_manager_msgs/msg/ControllerManagerActivity'
    if config.widowx is not None:
        commands = f'{config.widowx.namespace}/commands'
        topics[f'{commands}/joint_group'] = 'interbotix_xs_msgs/msg/JointGroupCommand'
        topics[f'{commands}/joint_single'] = 'interbotix_xs_msgs/msg/JointSingleCommand'
    for camera in config.camera_topics.values():
        topics[camera.info_topic] = 'sensor_msgs/msg/CameraInfo'
    return topics


def message_type(type_name: str) -> Any:
    """Class of a message type such as ``sensor_msgs/msg/JointState``.

    Raises:
        UserError: not of that form, or the package is not installed.
    """
    parts = type_name.split('/')
    if len(parts) != 3 or parts[1] != 'msg':
        raise UserError(f'{type_name!r} is no message type; write it like sensor_msgs/msg/Image.')
    kind = getattr(messages(f'{parts[0]}.msg'), parts[2], None)
    if kind is None:
        raise UserError(f'the package {parts[0]} has no message {parts[2]}.')
    return kind


def pack(message: Any, small: bool) -> bytes | None:
    """Serialised CompressedImage of an image message; None for one that cannot be decoded.

    ``small``: at most 320 pixels wide, for flight recordings.
    """
    if not small and isinstance(message, CompressedImage):
        return bytes(serialize_message(message))
    try:
        image = decode_image(message)
    except UserError:
        return None  # the policy's status says what is wrong with it
    if small and image.shape[1] > _SMALL_PX:
        height = round(image.shape[0] * _SMALL_PX / image.shape[1])
        size = (_SMALL_PX, height)
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    ok, jpeg = cv2.imencode(
        '.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    )
    if not ok:
        return None
    stamp = ns_from_time(message.header.stamp)
    packed = jpeg_to_msg(jpeg.tobytes(), stamp, message.header.frame_id)
    return bytes(serialize_message(packed))
