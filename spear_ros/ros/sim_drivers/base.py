"""What sim_robot_node asks of a robot's simulated twin, and what both twins share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription

from spear_ros.ros.conversions import joint_state_msg
from spear_ros.ros.qos import LATCHED
from spear_ros.ros.sim_drivers.faults import FaultBoard
from spear_ros.ros.sim_drivers.lines import JointSample


class Twin(Protocol):
    """Speaks a robot's driver's names, types, QoS and rates over a simulated world."""

    def publish(self, now_ns: int) -> None:
        """Publish what is due; called by the physics thread after every tick."""
        ...

    def poll(self) -> None:
        """Carry on with goals and faults; called by the spinning thread at 50 Hz."""
        ...

    def close(self) -> None:
        """Destroy action servers."""
        ...


@dataclass(frozen=True, slots=True)
class TwinClock:
    """Stamps of the twin: the node's clock, off by the fault ``clock_skew``."""

    now: Callable[[], int]
    faults: FaultBoard

    def __call__(self) -> int:
        """Nanoseconds."""
        return self.now() + round((self.faults.value('clock_skew') or 0.0) * 1e9)


class CommandInput:
    """Subscription of a command topic that the fault ``qos_mismatch`` makes incompatible."""

    def __init__(
        self,
        node: Node,
        faults: FaultBoard,
        topic: tuple[Any, str, QoSProfile],
        handler: Callable[[Any], None],
    ) -> None:
        kind, name, usual = topic
        self._node, self._faults = node, faults
        self._create = lambda profile: node.create_subscription(kind, name, handler, profile)
        self._usual = usual
        self._mismatched = faults.active('qos_mismatch')
        self._subscription: Subscription = self._create(LATCHED if self._mismatched else usual)

    def poll(self) -> None:
        """Subscribe anew when the fault was switched; by the spinning thread."""
        wanted = self._faults.active('qos_mismatch')
        if wanted != self._mismatched:
            self._mismatched = wanted
            self._node.destroy_subscription(self._subscription)
            self._subscription = self._create(LATCHED if wanted else self._usual)


class Every:
    """Tells every how manyth tick of a base rate something is due."""

    def __init__(self, base_hz: float, rate_hz: float) -> None:
        self._step = min(rate_hz / base_hz, 1.0)
        self._sum = 1.0

    def due(self) -> bool:
        """Count one tick."""
        self._sum += self._step
        if self._sum < 1.0:
            return False
        self._sum -= 1.0
        return True


def publish_joints(publisher: Publisher, sample: JointSample | None) -> None:
    """Send a sample that passed its line."""
    if sample is not None:
        publisher.publish(
            joint_state_msg(
                sample.stamp_ns, sample.names, sample.position, sample.velocity, sample.effort
            )
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a goal ended."""

    success: bool
    result: Any
    cancelled: bool = False


Job = Callable[[bool], Outcome | None]
"""Polled with "cancel requested" until it returns the outcome."""


class JobAction:
    """Action server whose goals are polled instead of awaited.

    A coroutine that waits makes rclpy's executor spin without sleeping, so goals are accepted,
    kept, and executed only when their outcome is known. As in the real drivers every goal is
    accepted and several may be under way.
    """

    def __init__(
        self, node: Node, kind: Any, name: str, begin: Callable[[Any], Job | Outcome]
    ) -> None:
        self._begin = begin
        self._jobs: list[tuple[ServerGoalHandle, Job]] = []
        self._server = ActionServer(
            node,
            kind,
            name,
            execute_callback=lambda handle: kind.Result(),
            goal_callback=lambda goal: GoalResponse.ACCEPT,
            handle_accepted_callback=self._accepted,
            cancel_callback=lambda handle: CancelResponse.ACCEPT,
        )

    def poll(self) -> None:
        """Finish the goals whose jobs are done."""
        for entry in list(self._jobs):
            handle, job = entry
            outcome = job(handle.is_cancel_requested)
            if outcome is not None:
                self._jobs.remove(entry)
                _finish(handle, outcome)

    def close(self) -> None:
        """Destroy the server."""
        self._server.destroy()

    def _accepted(self, handle: ServerGoalHandle) -> None:
        begun = self._begin(handle.request)
        if isinstance(begun, Outcome):
            _finish(handle, begun)
        else:
            self._jobs.append((handle, begun))


def _finish(handle: ServerGoalHandle, outcome: Outcome) -> None:
    def execute(goal: ServerGoalHandle) -> Any:
        if outcome.cancelled and goal.is_cancel_requested:
            goal.canceled()
        elif outcome.success:
            goal.succeed()
        else:
            goal.abort()
        return outcome.result

    handle.execute(execute)
