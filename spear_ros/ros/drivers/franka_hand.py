"""The Franka hand behind franka_gripper: homing once, then grasp and move on change only.

Source of the names and of the behaviour: franka_ros2 jazzy, franka_gripper/src/
gripper_action_server.cpp (actions homing, move, grasp; state at 15 Hz, one joint per finger, each
half the width; a failing read repeats the old width with a fresh stamp).
"""

import time
from collections.abc import Callable
from typing import Any

from rclpy.action import ActionClient
from rclpy.node import Node

from spear_ros.ros.config import FrankaHandConfig, GripperStateConfig
from spear_ros.ros.drivers.actions import GoalSlot
from spear_ros.ros.drivers.base import GripperFeed, StateSink, messages
from spear_ros.ros.drivers.grippers import BinaryTarget, JamWatch

_HOMING_LIMIT_S = 20.0


class FrankaHand:
    """Gripper adapter of the Franka hand."""

    def __init__(
        self,
        node: Node,
        config: FrankaHandConfig,
        state: GripperStateConfig,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node, self._config, self._state = node, config, state
        self._monotonic = monotonic
        self._types = messages('franka_msgs.action')
        self._epsilon = messages('franka_msgs.msg').GraspEpsilon
        self._slot = GoalSlot(monotonic)
        self._target, self._jam = BinaryTarget(), JamWatch()
        self._homed = not config.homing
        self._homing_since: float | None = None
        self._trouble = ''

    def start(self, sink: StateSink) -> None:
        """Subscribe to the fingers and create the action clients."""
        node, namespace = self._node, self._config.namespace
        self._clients: dict[str, Any] = {
            name: ActionClient(node, getattr(self._types, name.title()), f'{namespace}/{name}')
            for name in ('homing', 'move', 'grasp')
        }
        self._wake = node.create_guard_condition(self._act)

        self._feed = GripperFeed(node, self._state, sink)

    def command(self, opening: float) -> None:
        """Take the wanted opening (control thread)."""
        if self._target.update(opening):
            self._wake.trigger()

    def poll(self) -> str:
        """Watch goals and fingers."""
        self._slot.poll()
        if self._trouble:
            return self._trouble
        if not self._homed:
            now = self._monotonic()
            self._jam.restart(now)
            if self._homing_since is not None and now - self._homing_since > _HOMING_LIMIT_S:
                return (
                    f'homing of the Franka hand takes more than {_HOMING_LIMIT_S:.0f} s: free it.'
                )
        return self._jam.update(self._target.wanted_open, self._feed.opening, self._monotonic())

    def hold(self) -> None:
        """Forget the target; a grasp that holds goes on holding."""
        self._target.forget()
        self._slot.drop_pending()

    def release(self) -> None:
        """The same, and forget the trouble."""
        self.hold()
        self._trouble = ''

    def close(self) -> None:
        """Destroy the clients."""
        for client in self._clients.values():
            client.destroy()

    def _act(self) -> None:
        wanted = self._target.wanted_open
        if wanted is None:
            return
        if not self._homed:
            if not self._slot.busy:
                self._homing_since = self._monotonic()
                self._slot.start(self._clients['homing'], self._types.Homing.Goal(), self._on_homed)
        elif wanted:
            goal = self._types.Move.Goal(
                width=self._config.open_width_m, speed=self._config.speed_m_s
            )
            self._slot.start(self._clients['move'], goal, self._on_moved)
        else:
            epsilon = self._epsilon(inner=self._config.epsilon_m, outer=self._config.epsilon_m)
            goal = self._types.Grasp.Goal(
                width=0.0, epsilon=epsilon, speed=self._config.speed_m_s, force=self._config.force_n
            )
            self._slot.start(self._clients['grasp'], goal, self._on_grasped)

    def _on_homed(self, ok: bool, error: str) -> None:
        self._homing_since = None
        if not ok:
            self._trouble = f'homing of the Franka hand failed ({error}): check it, then reset.'
            return
        self._homed = True
        self._jam.restart(self._monotonic())
        self._act()

    def _on_moved(self, ok: bool, error: str) -> None:
        # A cancelled move is not a failure: its target was replaced.
        if not ok and self._target.wanted_open and not self._slot.busy:
            self._trouble = f'the Franka hand did not open ({error}): free it, then reset.'

    def _on_grasped(self, ok: bool, error: str) -> None:
        # Any width counts as grasped, so a failure tells of a dead hand, which the jam watch and
        # the age of the finger state judge better than the error text does.
        if not ok and self._target.wanted_open is False and not self._slot.busy:
            self._node.get_logger().warning(f'grasp ended without success: {error}')
