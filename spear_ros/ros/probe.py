"""What of ROS 2 works in this process and what is on the wire: the eyes of ``spear doctor``.

Nothing here commands a robot: it subscribes, and publishes text on a topic of its own.
"""

import argparse
import importlib
import os
import secrets
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

# Best effort hears reliable and best-effort publishers alike.
LISTEN_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
TALK_PERIOD_S = 0.05
# Types whose first field is a std_msgs/Header, which stands at a fixed place in the raw bytes.
STAMPED = frozenset(
    {
        'sensor_msgs/msg/Image',
        'sensor_msgs/msg/CompressedImage',
        'sensor_msgs/msg/JointState',
        'franka_msgs/msg/FrankaRobotState',
        'geometry_msgs/msg/PoseStamped',
    }
)


def rmw_implementation() -> str:
    """Return the name of the middleware that this process talks through."""
    return str(rclpy.get_rmw_implementation_identifier())


def load_message_package(package: str, types: tuple[str, ...]) -> Path:
    """Import every type, its compiled support included; return the package's folder.

    Args:
        package: such as ``franka_msgs``.
        types: such as ``action/Grasp``.

    Raises:
        ImportError: the package, a type or its compiled support is absent.
    """
    for name in types:
        kind, _, stem = name.partition('/')
        message = getattr(importlib.import_module(f'{package}.{kind}'), stem, None)
        if message is None:
            raise ImportError(f'{package} has no {name}')
        support = message.__class__
        support.__import_type_support__()
        if getattr(support, '_TYPE_SUPPORT', None) is None:
            raise ImportError(f'the compiled support of {package}/{name} does not load')
    return Path(str(importlib.import_module(package).__file__)).parent


@contextmanager
def listening_node(name: str) -> Iterator[tuple[Node, SingleThreadedExecutor]]:
    """Give a node with a context and an executor of its own; all are taken down at the end."""
    context = Context()
    rclpy.init(context=context)
    node = Node(f'{name}_{secrets.token_hex(3)}', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        yield node, executor
    finally:
        executor.shutdown()
        node.destroy_node()
        context.try_shutdown()


def talk(topic: str, seconds: float) -> None:
    """Publish a text on ``topic`` for a while: the other half of :func:`seconds_until_heard`."""
    from std_msgs.msg import String

    with listening_node('spear_doctor_talker') as (node, executor):
        publisher = node.create_publisher(String, topic, 10)
        node.create_timer(TALK_PERIOD_S, lambda: publisher.publish(String(data='hello')))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            executor.spin_once(timeout_sec=0.1)


def seconds_until_heard(timeout_s: float) -> float | None:
    """Start a second process that talks; return the time until it is heard, None = never."""
    from std_msgs.msg import String

    topic = f'/spear_doctor/hello_{secrets.token_hex(4)}'
    command = [sys.executable, '-m', 'spear_ros.ros.probe', topic, str(timeout_s)]
    heard: list[object] = []
    with listening_node('spear_doctor_listener') as (node, executor):
        node.create_subscription(String, topic, heard.append, 10)
        talker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            begun = time.monotonic()
            while not heard and time.monotonic() - begun < timeout_s:
                executor.spin_once(timeout_sec=0.05)
            return time.monotonic() - begun if heard else None
        finally:
            talker.kill()
            talker.wait()


@dataclass(kw_only=True, slots=True)
class TopicReport:
    """What was seen of one topic."""

    topic: str
    type_name: str = ''
    """Empty: nobody publishes it."""
    publishers: int = 0
    problem: str = ''
    """Why it could not be listened to."""
    count: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    ages_s: list[float] = field(default_factory=list)
    """Header stamp to receipt, by this machine's clock; empty for messages without a header."""

    @property
    def rate_hz(self) -> float:
        """Mean rate over what was seen; 0 with fewer than two messages."""
        span = self.last_s - self.first_s
        return (self.count - 1) / span if self.count > 1 and span > 0 else 0.0

    @property
    def age_s(self) -> float | None:
        """Median age."""
        return median(self.ages_s) if self.ages_s else None


def stamp_of(raw: bytes) -> float | None:
    """Return the header stamp [s] in a serialised message whose first field is a Header.

    Four bytes of encapsulation come first; bit 0 of the second says little endian (CDR).
    """
    if len(raw) < 12:
        return None
    order = '<' if raw[1] & 1 else '>'
    seconds, nanoseconds = struct.unpack_from(f'{order}iI', raw, 4)
    return float(seconds) + nanoseconds * 1e-9


def _note(report: TopicReport, raw: Any) -> None:
    now = time.monotonic()
    report.first_s = now if report.count == 0 else report.first_s
    report.last_s = now
    report.count += 1
    if report.type_name in STAMPED:
        stamp = stamp_of(raw)
        if stamp is not None:
            report.ages_s.append(time.time() - stamp)


def _listen(node: Node, report: TopicReport) -> None:
    package, kind, name = report.type_name.split('/')
    try:
        message = getattr(importlib.import_module(f'{package}.{kind}'), name)
        node.create_subscription(
            message, report.topic, lambda raw: _note(report, raw), LISTEN_QOS, raw=True
        )
    except (ImportError, AttributeError) as error:
        report.problem = f'its type {report.type_name} is not installed here ({error})'


def observe(topics: Mapping[str, str], discover_s: float, listen_s: float) -> list[TopicReport]:
    """Listen to topics without decoding them.

    Args:
        topics: label -> absolute topic name.
        discover_s: how long to look for publishers [s]; ends early when all are found.
        listen_s: how long to listen from then on [s].

    Returns:
        One report per topic, in the order given.
    """
    reports = [TopicReport(topic=topic) for topic in topics.values()]
    with listening_node('spear_doctor_topics') as (node, executor):
        end = time.monotonic() + discover_s
        pending = list(reports)
        while pending and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.1)
            types = dict(node.get_topic_names_and_types())
            for report in list(pending):
                report.publishers = node.count_publishers(report.topic)
                if report.publishers and report.topic in types:
                    report.type_name = types[report.topic][0]
                    _listen(node, report)
                    pending.remove(report)
        if len(pending) < len(reports):
            end = time.monotonic() + listen_s
            while time.monotonic() < end:
                executor.spin_once(timeout_sec=0.1)
    return reports


def domain() -> tuple[int, str]:
    """Return (ROS_DOMAIN_ID, discovery range) as this process uses them."""
    with listening_node('spear_doctor_domain') as (node, _):
        number = node.context.get_domain_id()
    return int(number), os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET')


def main() -> int:
    """Talk, as the second process of :func:`seconds_until_heard`."""
    parser = argparse.ArgumentParser(description=talk.__doc__)
    parser.add_argument('topic')
    parser.add_argument('seconds', type=float)
    arguments = parser.parse_args()
    talk(arguments.topic, arguments.seconds)
    return 0


if __name__ == '__main__':
    sys.exit(main())
