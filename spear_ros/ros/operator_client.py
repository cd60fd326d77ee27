"""What an operator does by hand with ``ros2 service call``, as a small client for scripts.

Used by ``spear demo``, by the evaluation through ROS and by the cross-process tests. It spins in a
thread of its own, keeps the newest status of both nodes and turns every failed wait into one
sentence that says what was waited for and what was seen instead.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from spear_msgs.msg import ActionChunk, ExecutorStatus, PolicyStatus, TaskState
from spear_msgs.srv import ResetScene, SetInstruction
from std_srvs.srv import Trigger

from spear_ros.core.errors import UserError
from spear_ros.core.reasons import Reason

STATE_NAMES = {
    getattr(ExecutorStatus, name): name
    for name in ('DISARMED', 'ARMED', 'RUNNING', 'HOLD', 'FAULT', 'HOMING')
}


@dataclass(frozen=True, slots=True)
class StateChange:
    """One entry of the executor's history."""

    time_s: float
    """Monotonic, seconds."""
    state: str
    reason: Reason
    text: str


class OperatorClient:
    """Calls the services of the two nodes and watches their status topics.

    Args:
        domain_id: None = the environment's.
        name: node name; unique per client in a graph.
    """

    def __init__(self, domain_id: int | None = None, name: str = 'operator') -> None:
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain_id)
        self.node = Node(name, context=self._context, namespace='/spear')
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._arrived = threading.Condition()
        self.executor_status: ExecutorStatus | None = None
        self.policy_status: PolicyStatus | None = None
        self.task_state: TaskState | None = None
        self.history: list[StateChange] = []
        self.chunks: deque[ActionChunk] = deque(maxlen=10_000)
        reliable = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        for kind, topic, handler in (
            (ExecutorStatus, '/spear/executor_status', self._on_executor),
            (PolicyStatus, '/spear/policy_status', self._on_policy),
            (ActionChunk, '/spear/action_chunk', self._on_chunk),
            (TaskState, '/sim/task_state', self._on_task),
        ):
            self.node.create_subscription(kind, topic, handler, reliable)
        triggers = ('arm', 'disarm', 'stop', 'reset', 'home', 'recover')
        self._triggers = {
            name: self.node.create_client(Trigger, f'/spear/executor_node/{name}')
            for name in triggers
        }
        self._instruct = self.node.create_client(
            SetInstruction, '/spear/policy_node/set_instruction'
        )
        self._scene = self.node.create_client(ResetScene, '/sim/reset')
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and leave the graph."""
        self._executor.shutdown(timeout_sec=2.0)
        rclpy.try_shutdown(context=self._context)
        self._thread.join(2.0)

    def subscribe(self, kind: type, topic: str, handler: Callable[[Any], None]) -> None:
        """Listen to one more topic, best effort (pairs with every publisher)."""
        self.node.create_subscription(kind, topic, handler, qos_profile_sensor_data)

    # ----------------------------------------------------------------------------------- services

    def trigger(self, name: str, timeout_s: float = 5.0) -> tuple[bool, str]:
        """Call one of the executor's services and return (success, message)."""
        answer = self._call(self._triggers[name], Trigger.Request(), timeout_s)
        return answer.success, answer.message

    def require(self, name: str) -> None:
        """Call a service that must be accepted.

        Raises:
            UserError: it was refused; the text holds the executor's reason.
        """
        success, message = self.trigger(name)
        if not success:
            raise UserError(f'{name} was refused: {message}')

    def set_instruction(self, text: str) -> SetInstruction.Response:
        """Give the policy an instruction."""
        return self._call(self._instruct, SetInstruction.Request(instruction=text), 5.0)

    def reset_scene(self, seed: int, family: str = '') -> str:
        """Rearrange the simulator's objects and return the task in words."""
        answer = self._call(self._scene, ResetScene.Request(seed=seed, family=family), 10.0)
        if not answer.success:
            raise UserError(f'/sim/reset was refused: {answer.message}')
        return answer.instruction

    # -------------------------------------------------------------------------------------- waits

    def wait_for(self, what: str, condition: Callable[[], bool], timeout_s: float) -> None:
        """Block until ``condition`` holds, judged on every arriving message.

        Raises:
            UserError: time-out; names ``what`` and the newest states.
        """
        deadline = time.monotonic() + timeout_s
        with self._arrived:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise UserError(
                        f'waited {timeout_s:.0f} s in vain for {what}; {self.describe()}'
                    )
                self._arrived.wait(min(left, 0.1))

    def wait_for_state(self, *states: str, timeout_s: float = 15.0) -> str:
        """Block until the executor is in one of ``states``; return it."""
        self.wait_for(f'state {" or ".join(states)}', lambda: self.state in states, timeout_s)
        return self.state

    @property
    def state(self) -> str:
        """The executor's state by name, empty before its first message."""
        status = self.executor_status
        return '' if status is None else STATE_NAMES[status.state]

    @property
    def reason(self) -> Reason:
        """The executor's reason."""
        status = self.executor_status
        return Reason.NONE if status is None else Reason(status.reason)

    def describe(self) -> str:
        """Return the newest states in one sentence."""
        if self.executor_status is None:
            executor = 'executor_node silent'
        else:
            executor = f'executor {self.state} {self.reason.name} "{self.executor_status.text}"'
        policy = self.policy_status
        if policy is None:
            return f'{executor}; policy_node silent.'
        return f'{executor}; policy {policy.lifecycle_state} ready={policy.ready} "{policy.text}".'

    # ------------------------------------------------------------------------------------ private

    def _call(self, client: Any, request: Any, timeout_s: float) -> Any:
        if not client.wait_for_service(timeout_sec=10.0):
            raise UserError(
                f'service {client.srv_name} is not there; is the node running in ROS domain '
                f'{self._context.get_domain_id()}?'
            )
        future = client.call_async(request)
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        if not done.wait(timeout_s):
            raise UserError(f'service {client.srv_name} did not answer within {timeout_s:.0f} s.')
        return future.result()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            return

    def _on_executor(self, message: ExecutorStatus) -> None:
        with self._arrived:
            before = self.executor_status
            self.executor_status = message
            changed = before is None or (before.state, before.reason) != (
                message.state,
                message.reason,
            )
            if changed:
                entry = StateChange(
                    time.monotonic(),
                    STATE_NAMES[message.state],
                    Reason(message.reason),
                    message.text,
                )
                self.history.append(entry)
            self._arrived.notify_all()

    def _on_policy(self, message: PolicyStatus) -> None:
        with self._arrived:
            self.policy_status = message
            self._arrived.notify_all()

    def _on_chunk(self, message: ActionChunk) -> None:
        with self._arrived:
            self.chunks.append(message)
            self._arrived.notify_all()

    def _on_task(self, message: TaskState) -> None:
        with self._arrived:
            self.task_state = message
            self._arrived.notify_all()
