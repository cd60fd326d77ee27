"""What executor_node asks of a robot's driver, and what several drivers share.

Threads: everything here runs in the thread that spins the node, with two exceptions. ``send`` is
called by the control thread and only publishes or stores; ``recover`` is called by a thread of its
own and may block. Times are monotonic seconds unless a name says ``_ns`` (node clock).
"""

import importlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from rclpy.task import Future
from sensor_msgs.msg import JointState

from spear_ros.core.errors import UserError
from spear_ros.core.reasons import Reason
from spear_ros.core.types import FloatArray
from spear_ros.ros.config import GripperStateConfig
from spear_ros.ros.conversions import ns_from_time
from spear_ros.ros.qos import JOINTS_INPUT


class StateSink(Protocol):
    """Where measured states go: ``runtime.executor.Executor`` has these methods."""

    def on_joints(
        self, stamp_ns: int, received_ns: int, names: Sequence[str], q: FloatArray
    ) -> None:
        """Take the arm's joint positions as the message has them, names included."""
        ...

    def on_efforts(self, received_ns: int, efforts: FloatArray) -> None:
        """Take the arm's efforts (n,), base to wrist, in the unit of its joint states."""
        ...

    def on_gripper(self, stamp_ns: int, received_ns: int, opening: float) -> None:
        """Take the gripper's opening: 1 = open, 0 = closed."""
        ...


class Target(Protocol):
    """What a driver needs of ``runtime.executor.Command``."""

    @property
    def stamp_ns(self) -> int:
        """Node time of the command."""
        ...

    @property
    def T_base_ee(self) -> FloatArray:
        """(4, 4) target of the canonical end-effector frame in the canonical base frame."""
        ...

    @property
    def q_rad(self) -> FloatArray:
        """(n,) joint target."""
        ...

    @property
    def gripper(self) -> float | None:
        """1 = open, 0 = closed; None = leave it as it is."""
        ...


@dataclass(frozen=True, slots=True)
class DriverReport:
    """Health of the robot's own driver; ``NONE`` is healthy."""

    reason: Reason = Reason.NONE
    text: str = ''


HEALTHY = DriverReport()


class Driver(Protocol):
    """One robot behind its own topics, services and actions."""

    command_topic: str
    """Topic that only one node may publish on."""
    frame_id: str
    """The driver's name of the base frame, for headers."""

    def start(self, sink: StateSink) -> None:
        """Create publishers and subscriptions; states flow into ``sink`` from now on."""
        ...

    def activate(self) -> None:
        """Begin the one-time set-up of the hardware; :meth:`poll` says when it is done."""
        ...

    def send(self, target: Target) -> None:
        """Send one target (control thread)."""
        ...

    def poll(self) -> DriverReport:
        """Judge the driver; called at 20 Hz."""
        ...

    def publisher_count(self) -> int:
        """Return the publishers on the command topic, ours included."""
        ...

    def hold_gripper(self) -> None:
        """Begin nothing new with the gripper: called in every fault."""
        ...

    def release(self) -> None:
        """Forget targets that were not carried out yet: called when nothing may be sent."""
        ...

    def recover(self, progress: Callable[[str], None]) -> DriverReport:
        """Lead the robot out of its fault, step by step; blocks, never moves the robot."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class GripperAdapter(Protocol):
    """One gripper behind its own actions or topics."""

    def start(self, sink: StateSink) -> None:
        """Create subscriptions and clients."""
        ...

    def command(self, opening: float) -> None:
        """Take the wanted opening (control thread); carried out on change only."""
        ...

    def poll(self) -> str:
        """Carry on; return a sentence when the gripper is in trouble, else nothing."""
        ...

    def hold(self) -> None:
        """Forget what was not begun yet; a grasp that holds goes on holding."""
        ...

    def release(self) -> None:
        """The same, and forget the trouble: the fault is over."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


_SOURCES = {
    'franka_msgs': 'franka_ros2 (branch jazzy)',
    'interbotix_xs_msgs': 'interbotix_ros_core (branch jazzy)',
    'control_msgs': 'ros-jazzy-control-msgs',
    'controller_manager_msgs': 'ros-jazzy-controller-manager-msgs',
}


def messages(module: str) -> ModuleType:
    """Import a driver's message module such as ``franka_msgs.action`` when a robot needs it.

    Raises:
        UserError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split('.')[0]
        source = _SOURCES.get(package, package)
        raise UserError(
            f'the message package {package} is missing: build {source} and source it, or run '
            'tools/build_interfaces.py, which builds the subset that spear_ros uses.'
        ) from None


def wait_for(future: Future, timeout_s: float) -> Any:
    """Block a thread that does not spin until ``future`` is done; None on time-out."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    return future.result() if done.wait(timeout_s) else None


class RateMeter:
    """Messages per second over windows of one second."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._count = 0
        self.rate_hz = 0.0

    def tick(self, now_s: float) -> float:
        """Count one message; return the rate of the last full window."""
        if self._start is None:
            self._start = now_s
            return self.rate_hz
        self._count += 1
        elapsed = now_s - self._start
        if elapsed >= 1.0:
            self.rate_hz = self._count / elapsed
            self._start, self._count = now_s, 0
        return self.rate_hz


def count_publishers(node: Node, topic: str) -> int:
    """Publishers on ``topic`` as discovery knows them, those of this node included."""
    return int(node.count_publishers(node.resolve_topic_name(topic)))


def count_listeners(node: Node, topic: str) -> int:
    """Subscribers on ``topic`` that can be a controller.

    Controllers subscribe reliable and volatile (crisp depth 1, xs_sdk depth 10). A recorder listens
    best effort and must not pass for one; a transient-local subscriber never gets a message of our
    volatile publisher.
    """
    infos = node.get_subscriptions_info_by_topic(node.resolve_topic_name(topic))
    return sum(
        info.qos_profile.reliability == ReliabilityPolicy.RELIABLE
        and info.qos_profile.durability == DurabilityPolicy.VOLATILE
        for info in infos
    )


class GripperFeed:
    """Reads one joint of a JointState topic as the gripper's opening and passes it on."""

    def __init__(self, node: Node, state: GripperStateConfig, sink: StateSink) -> None:
        self._node, self._state, self._sink = node, state, sink
        self.opening: float | None = None
        node.create_subscription(JointState, state.topic, self.on_message, JOINTS_INPUT)

    def on_message(self, message: JointState) -> None:
        """Take one message; one that lacks the joint is left to the age check."""
        if self._state.joint not in message.name:
            return
        index = message.name.index(self._state.joint)
        if index < len(message.position):
            self.opening = self._state.opening(message.position[index])
            now = self._node.get_clock().now().nanoseconds
            self._sink.on_gripper(ns_from_time(message.header.stamp), now, self.opening)


def nobody_listens(topic: str) -> DriverReport:
    """Report of a command topic without a matching subscriber."""
    return DriverReport(
        Reason.DRIVER_LOST,
        f'nobody listens to {topic}, or only with another quality of service: start the '
        'controller, and let it subscribe reliable and volatile.',
    )
