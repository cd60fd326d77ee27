"""recorder_node: whole-run bags, and the last minute on every fault. A process of its own.

It subscribes to what the robot's configuration names and to everything of ours; nothing depends on
it, and it publishes diagnostics only.
"""

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image
from spear_msgs.msg import ExecutorStatus

from spear_ros.core.errors import UserError
from spear_ros.core.reasons import Reason
from spear_ros.ros import qos
from spear_ros.ros.config import RobotConfig, WiringParameters, robot_config
from spear_ros.ros.conversions import ns_from_time
from spear_ros.ros.diagnostics import ERROR, OK, Diagnosis, Diagnostics
from spear_ros.ros.lifecycle import run_node
from spear_ros.ros.parameters import declare_parameters
from spear_ros.ros.recording import Entry, Picture, Recorder, RecorderSettings
from spear_ros.ros.recording_topics import OUR_TOPICS, message_type, pack, robot_topics

_POLL_HZ = 20.0
_COMPRESSED = 'sensor_msgs/msg/CompressedImage'


@dataclass(frozen=True, kw_only=True, slots=True)
class RecorderParameters:
    """ROS parameters of this node beside the wiring."""

    record: str = field(
        default='', metadata={'description': 'folder of the whole-run bag; empty: none'}
    )
    flight: str = field(
        default='', metadata={'description': 'folder of flight recordings; empty: none'}
    )
    topics: tuple[str, ...] = field(
        default=('',),
        metadata={'description': 'further topics, each "name=package/msg/Type"'},
    )
    min_free_mb: int = field(
        default=500, metadata={'description': 'stop recording below this', 'min': 1, 'max': 10**6}
    )


class RecorderNode(Node):
    """Subscriptions in, entries out to the Recorder's thread."""

    def __init__(self) -> None:
        super().__init__('recorder_node')
        config = robot_config(declare_parameters(self, WiringParameters))
        parameters = declare_parameters(self, RecorderParameters)
        settings = RecorderSettings(
            record=_folder(parameters.record),
            flight=_folder(parameters.flight),
            min_free_bytes=parameters.min_free_mb * 1_000_000,
        )
        if settings.record is None and settings.flight is None:
            raise UserError('parameters record and flight are both empty; give one of them.')
        self._recorder = Recorder(settings, _versions(config))
        self._was_fault = False
        self._said: dict[str, str] = {}
        self._polled: list[tuple[Subscription, str, str]] = []
        self._poll_node = Node(
            'recorder_node_polled',
            context=self.context,
            use_global_arguments=False,
            start_parameter_services=False,
            enable_rosout=False,
        )
        self._subscribe(config, parameters)
        self.create_timer(1.0 / _POLL_HZ, self._poll)
        self._diagnostics = Diagnostics(self, config.model, self._diagnose)
        self._recorder.start()

    def close(self) -> None:
        """Write what is left."""
        self._recorder.close()
        self._poll_node.destroy_node()
        for folder in self._recorder.written:
            self.get_logger().info(f'recorded {folder}')

    def _subscribe(self, config: RobotConfig, parameters: RecorderParameters) -> None:
        topics = {**OUR_TOPICS, **robot_topics(config), **_extra(parameters.topics)}
        for topic, type_name in topics.items():
            profile = qos.STATUS if topic in OUR_TOPICS else qos.JOINTS_INPUT
            if topic.endswith('/activity'):
                profile = qos.LATCHED
            kind = message_type(type_name)
            self.create_subscription(
                kind, topic, self._raw_handler(topic, type_name), profile, raw=True
            )
        self.create_subscription(
            ExecutorStatus, '/spear/executor_status', self._on_status, qos.STATUS
        )
        for camera in config.camera_topics.values():
            kind = CompressedImage if camera.compressed else Image
            self.create_subscription(
                kind, camera.topic, self._image_handler(camera.topic), qos.IMAGE_INPUT
            )
        if config.franka is not None:
            self._poll_topic(config.franka.robot_state_topic, 'franka_msgs/msg/FrankaRobotState')

    def _poll_topic(self, topic: str, type_name: str) -> None:
        """A topic of 1 kHz: the newest message at 20 Hz, taken raw."""
        subscription = self._poll_node.create_subscription(
            message_type(type_name), topic, lambda _: None, qos.RAW_POLL
        )
        self._polled.append((subscription, topic, type_name))

    def _poll(self) -> None:
        for subscription, topic, type_name in self._polled:
            taken = subscription.handle.take_message(subscription.msg_type, True)
            if taken is not None:
                self._recorder.put(Entry(topic, type_name, self._now(), bytes(taken[0])))
        for kind, text in self._recorder.problems.items():
            if self._said.get(kind) != text:
                self._said[kind] = text
                self.get_logger().error(text, throttle_duration_sec=5.0)

    def _raw_handler(self, topic: str, type_name: str) -> Callable[[bytes], None]:
        def handle(data: bytes) -> None:
            self._recorder.put(Entry(topic, type_name, self._now(), bytes(data)))

        return handle

    def _image_handler(self, topic: str) -> Callable[[Any], None]:
        name = topic if topic.endswith('/compressed') else f'{topic}/compressed'

        def handle(message: Any) -> None:
            picture = Picture(name, _COMPRESSED, self._now(), lambda small: pack(message, small))
            self._recorder.put(picture)

        return handle

    def _on_status(self, message: ExecutorStatus) -> None:
        fault = message.state == ExecutorStatus.FAULT
        if fault and not self._was_fault:
            names = {int(r): r.name for r in Reason}
            self._recorder.trigger(
                names.get(message.reason, str(message.reason)),
                {
                    'text': message.text,
                    'checkpoint_id': message.checkpoint_id,
                    'policy_session': message.policy_session,
                    'instruction_id': message.instruction_id,
                    'sequence': message.sequence,
                    'fault_stamp_ns': ns_from_time(message.header.stamp),
                },
            )
        self._was_fault = fault

    def _diagnose(self) -> list[Diagnosis]:
        problems = list(self._recorder.problems.values())
        level = ERROR if problems else OK
        values = {'dropped': self._recorder.dropped, 'files': len(self._recorder.written)}
        return [Diagnosis('recorder', level, ' '.join(problems) or 'recording', values)]

    def _now(self) -> int:
        return int(self.get_clock().now().nanoseconds)


def _extra(texts: tuple[str, ...]) -> dict[str, str]:
    topics = {}
    for text in filter(None, texts):
        name, separator, type_name = text.partition('=')
        if not separator:
            raise UserError(f'parameter topics: {text!r} must look like /topic=package/msg/Type.')
        topics[name.strip()] = type_name.strip()
    return topics


def _folder(text: str) -> Path | None:
    return Path(text).expanduser().resolve() if text else None


def _versions(config: RobotConfig) -> dict[str, Any]:
    versions = {'python': platform.python_version(), 'system': platform.platform()}
    for package in ('spear_ros', 'numpy', 'rosbags', 'torch'):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {'robot': config.model, 'gripper': config.gripper, 'versions': versions}


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    return run_node(RecorderNode, args)


if __name__ == '__main__':
    sys.exit(main())
