"""When a task counts as done, as a function of poses and contacts. No mujoco here."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from spear_ros.core.types import FloatArray
from spear_ros.simulation.catalogue import split_name
from spear_ros.simulation.tasks import DIRECTIONS, PICK, PUSH, TOUCH, Task

HOLD_S = 0.3
"""A lifted or placed object must stay so for this long."""
LIFT_M = 0.05
"""Height of a lift at scale 1."""


@dataclass(frozen=True, slots=True)
class SceneFacts:
    """What the world looks like to the judge at one instant."""

    time_s: float
    poses: Mapping[str, FloatArray]
    """Object name to (4, 4), base frame."""
    gripper_touches: frozenset[str]
    """Objects in contact with the hand or the fingers."""
    contacts: frozenset[tuple[str, str]]
    """Pairs of object names (sorted), and ``(name, 'table')``."""

    def touching(self, a: str, b: str) -> bool:
        """Tell whether two named things are in contact."""
        return (a, b) in self.contacts or (b, a) in self.contacts


@dataclass(slots=True)
class SuccessMonitor:
    """Watches one episode; feed it at a steady rate (every 20 ms or finer)."""

    task: Task
    start: Mapping[str, FloatArray]
    """Poses when the scene was laid out."""
    scale: float
    push_m: float
    success: bool = field(default=False, init=False)
    """The criterion holds now."""
    succeeded: bool = field(default=False, init=False)
    """It has held since the scene was laid out."""
    first_touched: str = field(default='', init=False)
    """The first object that the gripper touched."""
    _since_s: float | None = field(default=None, init=False)

    def update(self, facts: SceneFacts) -> None:
        """Judge one instant."""
        if not self.first_touched and facts.gripper_touches:
            touched = sorted(facts.gripper_touches)
            self.first_touched = self.task.target if self.task.target in touched else touched[0]
        if self.task.family == TOUCH:
            self.success = self.task.target in facts.gripper_touches and (
                self.first_touched == self.task.target
            )
        elif self.task.family == PUSH:
            self.success = self._pushed(facts)
        else:
            condition = self._lifted(facts) if self.task.family == PICK else self._placed(facts)
            if not condition:
                self._since_s = None
            elif self._since_s is None:
                self._since_s = facts.time_s
            self.success = self._since_s is not None and facts.time_s - self._since_s >= HOLD_S
        self.succeeded = self.succeeded or self.success

    def _pushed(self, facts: SceneFacts) -> bool:
        """Far enough in the direction, and no more than half as far to the side."""
        direction = np.array(DIRECTIONS[self.task.direction])
        moved = (facts.poses[self.task.target] - self.start[self.task.target])[:2, 3]
        along = float(moved @ direction)
        side = float(np.linalg.norm(moved - along * direction))
        return along >= self.push_m and side <= 0.5 * along

    def _lifted(self, facts: SceneFacts) -> bool:
        """In the gripper, clear of the table and of everything else."""
        name = self.task.target
        height = facts.poses[name][2, 3] - self.start[name][2, 3]
        held = name in facts.gripper_touches and height >= LIFT_M * self.scale
        return held and not any(name in pair for pair in facts.contacts)

    def _placed(self, facts: SceneFacts) -> bool:
        """Let go, resting on the receptacle, its centre well inside; the receptacle is level."""
        name, on = self.task.target, self.task.receptacle
        shape = split_name(on)[1]
        offset = facts.poses[name][:2, 3] - facts.poses[on][:2, 3]
        return bool(
            name not in facts.gripper_touches
            and facts.touching(name, on)
            and not facts.touching(name, 'table')
            and np.linalg.norm(offset) <= shape.inner_radius_m * self.scale
            and facts.poses[on][2, 2] > 0.9
        )
