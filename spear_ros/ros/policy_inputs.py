"""Which topics the policy listens to, and how their messages get into the observation buffer."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spear_ros.core.types import CameraFrame, ImageArray
from spear_ros.policies.base import PolicyInfo
from spear_ros.robots.spec import RobotSpec
from spear_ros.ros.config import RobotConfig
from spear_ros.runtime.decode import (
    DecodeError,
    decode_image,
    decode_joints,
    decode_object_poses,
    stamp_ns,
)
from spear_ros.runtime.observation_buffer import (
    ARM,
    GRIPPER,
    OBJECT_POSES,
    ObservationBuffer,
    ObservationConfig,
)

OBJECT_POSES_TOPIC = '/sim/object_poses'

_IMAGE_DEPTH = 4
"""Undecoded frames kept while the policy computes: enough to find a wrist image before t_obs."""
_STATE_DEPTH = 64


@dataclass(frozen=True, slots=True)
class InputTopic:
    """One subscription; the topic of two streams (WidowX: arm and gripper) has two names."""

    kind: str
    """image, compressed, joints, poses."""
    topic: str
    names: tuple[str, ...]


def exotic_decoder() -> Callable[[Any], ImageArray] | None:
    """Return cv_bridge's conversion to RGB for encodings that ours does not know, if there is one.

    Bayer, 16-bit and planar YUV come from cv_bridge alone; it is optional, because its apt build is
    compiled against numpy 1 and may not load beside numpy 2.
    """
    if importlib.util.find_spec('cv_bridge') is None:
        return None
    try:
        bridge = importlib.import_module('cv_bridge').CvBridge()
    except (ImportError, AttributeError):
        return None

    def convert(message: Any) -> ImageArray:
        return bridge.imgmsg_to_cv2(message, desired_encoding='rgb8')  # type: ignore[no-any-return]

    return convert


class PolicyInputs:
    """The inputs of one robot's wiring.

    Args:
        config: wiring; decides the topics.
        robot: joint names and kinematics.
    """

    def __init__(self, config: RobotConfig, robot: RobotSpec) -> None:
        self._config, self._robot = config, robot
        self._joint_names = config.arm.joint_names or robot.joint_names
        self._buffer: ObservationBuffer | None = None
        self._exotic = exotic_decoder()
        self.topics = self._topics()

    @property
    def depths(self) -> dict[str, int]:
        """Queue length per stream."""
        return {
            name: _IMAGE_DEPTH if topic.kind in ('image', 'compressed') else _STATE_DEPTH
            for topic in self.topics
            for name in topic.names
        }

    def make_buffer(self, info: PolicyInfo) -> ObservationBuffer:
        """Build the buffer for a policy: only the cameras that it looks at are waited for."""
        cameras = tuple(
            name
            for name in self._config.camera_topics
            if name in info.cameras or name == 'external'
        )
        self._buffer = ObservationBuffer(
            self._robot,
            ObservationConfig(
                cameras=cameras,  # type: ignore[arg-type]
                topics={name: t.topic for t in self.topics for name in t.names},
                image_max_age_s=max(self._config.camera_topics[name].max_age_s for name in cameras),
                arm_max_age_s=self._config.arm.max_age_s,
                gripper_max_age_s=self._config.gripper_state.max_age_s,
                needs_object_poses=info.privileged,
            ),
        )
        return self._buffer

    def decoders(self) -> dict[str, Callable[[Any, int], None]]:
        """Return a decoder per stream, for the buffer made last."""
        assert self._buffer is not None
        buffer = self._buffer
        decoders: dict[str, Callable[[Any, int], None]] = {}
        for topic in self.topics:
            for name in topic.names:
                decoders[name] = self._guarded(buffer, name)
        return decoders

    def _guarded(self, buffer: ObservationBuffer, name: str) -> Callable[[Any, int], None]:
        add = {ARM: self._add_arm, GRIPPER: self._add_gripper, OBJECT_POSES: self._add_objects}.get(
            name
        )
        if add is None and name not in buffer.config.cameras:
            return lambda message, received_ns: None

        def decode(message: Any, received_ns: int) -> None:
            try:
                if add is None:
                    self._add_image(buffer, name, message, received_ns)
                else:
                    add(buffer, message, received_ns)
            except DecodeError as error:
                buffer.refuse(name, received_ns, error.reason, str(error))

        return decode

    def _add_image(
        self, buffer: ObservationBuffer, name: str, message: Any, received_ns: int
    ) -> None:
        frame = CameraFrame(
            image=decode_image(message, self._exotic),
            stamp_ns=stamp_ns(message),
            received_ns=received_ns,
        )
        buffer.add_image(name, frame)

    def _add_arm(self, buffer: ObservationBuffer, message: Any, received_ns: int) -> None:
        q = decode_joints(message, self._joint_names)
        buffer.add_joints(stamp_ns(message), received_ns, q)

    def _add_gripper(self, buffer: ObservationBuffer, message: Any, received_ns: int) -> None:
        state = self._config.gripper_state
        value = decode_joints(message, (state.joint,))[0]
        buffer.add_gripper(stamp_ns(message), received_ns, state.opening(float(value)))

    @staticmethod
    def _add_objects(buffer: ObservationBuffer, message: Any, received_ns: int) -> None:
        buffer.add_object_poses(stamp_ns(message), received_ns, decode_object_poses(message))

    def _topics(self) -> list[InputTopic]:
        topics = [
            InputTopic('compressed' if camera.compressed else 'image', camera.topic, (name,))
            for name, camera in self._config.camera_topics.items()
        ]
        arm, gripper = self._config.arm.topic, self._config.gripper_state.topic
        if arm == gripper:
            topics.append(InputTopic('joints', arm, (ARM, GRIPPER)))
        else:
            topics += [
                InputTopic('joints', arm, (ARM,)),
                InputTopic('joints', gripper, (GRIPPER,)),
            ]
        topics.append(InputTopic('poses', OBJECT_POSES_TOPIC, (OBJECT_POSES,)))
        return topics
