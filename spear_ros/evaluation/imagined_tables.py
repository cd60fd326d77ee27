"""Draws the tables that demonstrations imagine under the robot as it stands.

A picture of a demonstration costs a tenth of a second of physics and control, a further table under
the same robot two renderings. Three kinds: any table; one chosen for an object close to the tool
(``close``); a moment of a task (``moments``), where the thing that the instruction names stands in,
under, beside or, for a push, behind or before the closed fingers: there a policy must be exact, and
plain episodes are hardly ever there. A held object is shown over other tables with other
receptacles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from spear_ros.core.types import FloatArray
from spear_ros.evaluation.disturbance import DemonstrationSettings
from spear_ros.simulation.catalogue import TABLE_Z_M, split_name
from spear_ros.simulation.expert import Expert
from spear_ros.simulation.layout import ARENAS, Layout, draw_layout
from spear_ros.simulation.tasks import DIRECTIONS, PICK, PUSH, PUT, TRAINING_SEEDS, Task

CANDIDATES = 6
"""Tables that one with an object close to the tool is chosen from."""
NEAR_M, FAR_M, FAR_SHARE = 0.022, 0.05, 0.25
"""Standard deviations of where a target stands in a moment, per axis, at scale 1."""
LANE_M = 0.02
"""Standard deviation of how far beside the middle of its lane a push begins, at scale 1."""
LOW_M = 0.06
"""Height of the tool below which a push can be under way, at scale 1."""
CLOSED = 0.3
"""Opening below which fingers are taken for closed."""
ROOM_M = 0.5
"""Objects farther than this outside of the arena, or higher, are lost."""
PUSH_ROOM_M = 0.06
"""Longest gap between closed fingers and what they are about to push, at scale 1."""


@dataclass(frozen=True, slots=True)
class Imagined:
    """A table to show."""

    layout: Layout
    task: Task
    close: bool = False
    """The instruction should be about the object closest to the tool instead."""
    lifted: Mapping[str, FloatArray] = field(default_factory=dict)
    """Name and (4, 4) pose, base frame, of what the fingers hold."""


class ImaginedTables:
    """Draws tables for one world.

    Args:
        robot_family: whose arena.
        expert: knows where fingers meet an object.
        settings: ``families``, ``close``, ``moments``.
        rng: every choice comes from it.
    """

    def __init__(
        self,
        robot_family: str,
        expert: Expert,
        settings: DemonstrationSettings,
        rng: np.random.Generator,
    ) -> None:
        self._robot_family, self._expert = robot_family, expert
        self._settings, self._rng = settings, rng
        self._scale = ARENAS[robot_family].scale

    def draw(self, tool_p: FloatArray, opening: float) -> Imagined:
        """A table for a robot whose tool, at (3,) m, base frame, holds nothing; 1 = open."""
        rng, settings, tool_xy = self._rng, self._settings, tool_p[:2]
        family = str(rng.choice(settings.families))
        seed = self._seed()
        if rng.random() < settings.moments:
            # Closed fingers are seldom down among the objects; pushing is what needs them there.
            low = tool_p[2] < TABLE_Z_M + LOW_M * self._scale and opening < CLOSED
            if low and PUSH in settings.families and rng.random() < 0.7:
                family = PUSH
            return self._moment(seed, family, tool_xy)
        close = bool(rng.random() < settings.close)
        if close:
            others = [self._seed() for _ in range(CANDIDATES - 1)]
            seed = self._closest_table([seed, *others], family, tool_xy)
        layout = draw_layout(self._robot_family, seed, family)
        return Imagined(layout, layout.task, close)

    def draw_held(self, held: str, slot: int, T_base_held: FloatArray) -> Imagined | None:
        """Another table for a robot that holds an object of the shape of ``held``.

        Returns:
            None where ``put`` is not among the families, or no table with that shape was found.
        """
        if PUT not in self._settings.families:
            return None
        shape = split_name(held)[1]
        for _ in range(CANDIDATES * 2):
            seed, xy = self._seed(), T_base_held[:2, 3]
            task = draw_layout(self._robot_family, seed, PUT).task
            if split_name(task.target)[1] != shape:
                continue
            layout = _with_slot(draw_layout(self._robot_family, seed, PUT, target_xy=xy), slot)
            if self._rng.random() < 0.2 and PICK in self._settings.families:
                task = Task(PICK, task.target)
            return Imagined(layout, task, lifted={task.target: T_base_held})
        return None

    def _seed(self) -> int:
        return int(self._rng.integers(TRAINING_SEEDS.stop))

    def _moment(self, seed: int, family: str, tool_xy: FloatArray) -> Imagined:
        rng, scale = self._rng, self._scale
        task = draw_layout(self._robot_family, seed, family).task
        spread = (FAR_M if rng.random() < FAR_SHARE else NEAR_M) * scale
        xy = np.asarray(tool_xy) + spread * rng.standard_normal(2)
        if family == PUSH and spread < FAR_M * scale:
            d = np.array(DIRECTIONS[task.direction])
            # Its turn is drawn with its place: the reach of one that is not turned is near enough.
            reach = self._expert.push_reach(task, np.eye(4))
            gap = rng.uniform(-0.2 * reach, PUSH_ROOM_M * scale)
            across = LANE_M * scale * rng.standard_normal()
            xy = tool_xy + (reach + gap) * d + across * np.array([-d[1], d[0]])
        layout = draw_layout(self._robot_family, seed, family, target_xy=xy)
        return Imagined(layout, layout.task)

    def _closest_table(self, seeds: Sequence[int], family: str, tool_xy: FloatArray) -> int:
        """The seed whose table has a graspable object closest to the tool, seen from above."""

        def distance(seed: int) -> float:
            layout = draw_layout(self._robot_family, seed, family)
            return min(
                float(np.hypot(o.x_m - tool_xy[0], o.y_m - tool_xy[1]))
                for o in layout.objects
                if o.slot >= 0
            )

        return min(seeds, key=distance)


def _with_slot(layout: Layout, slot: int) -> Layout:
    """The same scene with the target in size slot ``slot``; who had that one takes its."""
    old = next(o.slot for o in layout.objects if o.name == layout.task.target)
    swap = {old: slot, slot: old}
    objects = (replace(o, slot=swap.get(o.slot, o.slot)) for o in layout.objects)
    return replace(layout, objects=tuple(objects))


def off_table(robot_family: str, poses: Mapping[str, FloatArray]) -> str:
    """Name of an object that has left the table, '' if none has.

    Fingers that close on an edge can shoot an object away, in the simulator for kilometres.
    """
    arena = ARENAS[robot_family]
    for name, T in poses.items():
        if not arena.holds(T[:2, 3], ROOM_M) or not -0.05 < T[2, 3] < ROOM_M:
            return name
    return ''
