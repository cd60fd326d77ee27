"""Robotiq 2F-85 behind ros2_robotiq_gripper: one action, control_msgs/ParallelGripperCommand.

The controller pre-empts its own goal, so a new target is just sent. Positions are those of the
left knuckle joint: 0.0 rad open, 0.8 closed.
"""

import time
from collections.abc import Callable
from typing import Any

from rclpy.action import ActionClient
from rclpy.node import Node
from sensor_msgs.msg import JointState

from spear_ros.ros.config import GripperStateConfig, Robotiq2f85Config
from spear_ros.ros.drivers.base import GripperFeed, StateSink, messages
from spear_ros.ros.drivers.grippers import BinaryTarget, JamWatch


class Robotiq2f85:
    """Gripper adapter of the Robotiq 2F-85."""

    def __init__(
        self,
        node: Node,
        config: Robotiq2f85Config,
        state: GripperStateConfig,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node, self._config, self._state = node, config, state
        self._monotonic = monotonic
        self._action = messages('control_msgs.action').ParallelGripperCommand
        self._target, self._jam = BinaryTarget(), JamWatch()
        self._trouble = ''

    def start(self, sink: StateSink) -> None:
        """Subscribe to the knuckle joint and create the action client."""
        node = self._node
        self._client = ActionClient(node, self._action, self._config.action)
        self._wake = node.create_guard_condition(self._act)

        self._feed = GripperFeed(node, self._state, sink)

    def command(self, opening: float) -> None:
        """Take the wanted opening (control thread)."""
        if self._target.update(opening):
            self._wake.trigger()

    def poll(self) -> str:
        """Watch the fingers."""
        if self._trouble:
            return self._trouble
        return self._jam.update(self._target.wanted_open, self._feed.opening, self._monotonic())

    def hold(self) -> None:
        """Forget the target; the gripper keeps its last one."""
        self._target.forget()

    def release(self) -> None:
        """The same, and forget the trouble."""
        self.hold()
        self._trouble = ''

    def close(self) -> None:
        """Destroy the client."""
        self._client.destroy()

    def _act(self) -> None:
        wanted = self._target.wanted_open
        if wanted is None:
            return
        if not self._client.server_is_ready():
            self._trouble = (
                f'the gripper action {self._config.action} is not there: start '
                'ros2_robotiq_gripper in the namespace /robotiq, then reset.'
            )
            return
        command = JointState(
            name=[self._state.joint], position=[self._state.joint_value(1.0 if wanted else 0.0)]
        )
        if self._config.max_velocity > 0:
            command.velocity = [self._config.max_velocity]
        if self._config.max_effort > 0:
            command.effort = [self._config.max_effort]
        future = self._client.send_goal_async(self._action.Goal(command=command))
        future.add_done_callback(self._on_answer)

    def _on_answer(self, future: Any) -> None:
        if not future.result().accepted:
            self._trouble = 'the Robotiq controller refused the goal: activate it, then reset.'
