"""Draws a scene from a seed: which objects, where, under which light, seen from where. No mujoco.

The same (seed, family, robot family, variant) always gives the same layout. Variants: ``standard``;
``held_out_combinations`` asks for colour and shape pairs that training never shows;
``shifted_camera`` is the standard scene of the seed seen by cameras moved beyond their training
range.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.types import FloatArray
from spear_ros.simulation.catalogue import (
    COLOURS,
    GRASPABLE,
    HELD_OUT_COMBINATIONS,
    N_GRASPABLE_SLOTS,
    RECEPTACLES,
    SHAPES,
    Shape,
    object_name,
    split_name,
)
from spear_ros.simulation.tasks import DIRECTIONS, PUSH, PUT, Task, check_family, words

STANDARD, HELD_OUT, SHIFTED = 'standard', 'held_out_combinations', 'shifted_camera'
VARIANTS = (STANDARD, HELD_OUT, SHIFTED)

TABLE_STYLES = 6
MAX_DRAWS = 400


@dataclass(frozen=True, slots=True)
class Arena:
    """Where objects may stand on the table, in the base frame, m."""

    x: tuple[float, float]
    y: tuple[float, float]
    gap: float
    """Free space between the footprints of two objects: room for the fingers."""
    push: float
    """How far a pushed object must go to count."""
    scale: float

    def holds(self, xy: Sequence[float] | FloatArray, margin: float = 0.0) -> bool:
        """Tell whether a point lies inside the arena grown by ``margin``."""
        return bool(
            self.x[0] - margin <= xy[0] <= self.x[1] + margin
            and self.y[0] - margin <= xy[1] <= self.y[1] + margin
        )


ARENAS = {
    'franka': Arena(x=(0.40, 0.64), y=(-0.22, 0.22), gap=0.048, push=0.07, scale=1.0),
    'widowx': Arena(x=(0.19, 0.37), y=(-0.16, 0.16), gap=0.032, push=0.05, scale=0.72),
}


@dataclass(frozen=True, slots=True)
class PlacedObject:
    """One object on the table, upright."""

    name: str
    slot: int
    """Graspable: index of the model's slot (its size); receptacle: unused, -1."""
    x_m: float
    y_m: float
    yaw_rad: float


@dataclass(frozen=True, slots=True)
class Look:
    """Appearance: everything that a policy should not care about."""

    table_style: int
    wall_rgb: tuple[float, float, float]
    light_pos: tuple[float, float, float]
    light_level: float
    ambient: float
    tint: tuple[float, ...]
    """Brightness factor of each object's colour."""
    camera_shift_m: dict[str, FloatArray]
    """(3,) per camera, base axes."""
    camera_turn_rad: dict[str, FloatArray]
    """(3,) rotation vector per camera, its own axes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A scene, ready to be laid out."""

    seed: int
    family: str
    variant: str
    task: Task
    instruction: str
    objects: tuple[PlacedObject, ...]
    look: Look


def draw_layout(
    robot_family: str,
    seed: int,
    family: str = '',
    variant: str = STANDARD,
    target_xy: Sequence[float] | FloatArray | None = None,
) -> Layout:
    """Draw the scene of ``seed``; with ``target_xy`` (2,) m, base frame, the same things with the
    task's target there, wherever that is, and the others placed around it.

    Raises:
        UserError: unknown family or variant, negative seed, robot family without an arena.
    """
    if variant not in VARIANTS:
        raise UserError(f'variant "{variant}" is not one of {", ".join(VARIANTS)}.')
    if seed < 0:
        raise UserError(f'seed = {seed} must not be negative.')
    if robot_family not in ARENAS:
        raise UserError(f'robot family "{robot_family}" has no simulated table.')
    family = check_family(family, seed)
    held_out = variant == HELD_OUT
    key = [seed, *(zlib.crc32(t.encode()) for t in (robot_family, family)), int(held_out)]
    rng = np.random.default_rng(key)
    arena = ARENAS[robot_family]
    task, names = _draw_things(rng, family, held_out)
    slots = rng.permutation(N_GRASPABLE_SLOTS)
    places = _draw_places(rng, arena, task, names, target_xy)
    graspable = 0
    objects = []
    for name, (x, y, yaw) in zip(names, places, strict=True):
        is_receptacle = split_name(name)[1].receptacle
        objects.append(
            PlacedObject(name, -1 if is_receptacle else int(slots[graspable]), x, y, yaw)
        )
        graspable += not is_receptacle
    look = _draw_look(rng, len(objects), shifted=variant == SHIFTED)
    return Layout(seed, family, variant, task, words(task), tuple(objects), look)


def _draw_things(rng: np.random.Generator, family: str, held_out: bool) -> tuple[Task, list[str]]:
    """Choose the task and the names of all objects, target first, receptacle second."""
    receptacle = ''
    if family == PUT:
        receptacle = _draw_name(rng, RECEPTACLES, (), held_out)
    shapes = [s for s in GRASPABLE if family != PUSH or SHAPES[s].pushable]
    if receptacle.endswith('plate'):
        shapes.remove('ball')
    target = _draw_name(rng, shapes, (), held_out)
    direction = str(rng.choice(list(DIRECTIONS))) if family == PUSH else ''
    names = [target] + ([receptacle] if receptacle else [])
    total = int(rng.integers(4, 7))
    if not receptacle and rng.random() < 0.5:
        names.append(_draw_name(rng, RECEPTACLES, names, False))
    while len(names) < total:
        names.append(_draw_name(rng, GRASPABLE, names, False))
    return Task(family, target, direction, receptacle), names


def _draw_name(
    rng: np.random.Generator, shapes: Sequence[str], taken: Sequence[str], held_out: bool
) -> str:
    """Choose a colour and shape; a held-out pair where there is one, if asked for."""
    pairs = [
        (c, s)
        for s in shapes
        for c in COLOURS
        if object_name(c, s) not in taken and ((c, s) in HELD_OUT_COMBINATIONS) == held_out
    ]
    if not pairs:  # more objects than held-out pairs: fill up with ordinary ones
        return _draw_name(rng, shapes, taken, False)
    shape = str(rng.choice(sorted({s for _, s in pairs})))
    colour = str(rng.choice([c for c, s in pairs if s == shape]))
    return object_name(colour, shape)


def _draw_places(
    rng: np.random.Generator,
    arena: Arena,
    task: Task,
    names: Sequence[str],
    target_xy: Sequence[float] | FloatArray | None,
) -> list[tuple[float, float, float]]:
    """Place the objects one after another; start again when one finds no room."""
    while True:
        places: list[tuple[float, float, float]] = []
        circles: list[tuple[FloatArray, float]] = []
        for name in names:
            shape = split_name(name)[1]
            place: tuple[float, float, float] | None
            if name == task.target and target_xy is not None:
                place = (float(target_xy[0]), float(target_xy[1]), _draw_yaw(rng))
            else:
                place = _draw_place(rng, arena, task, name == task.target, shape, circles)
            if place is None:
                break
            places.append(place)
            xy = np.array(place[:2])
            circles.append((xy, shape.radius_m * arena.scale))
            if name == task.target and task.family == PUSH:
                circles += _push_lane(arena, task, shape, xy)
        else:
            return places


def _draw_place(
    rng: np.random.Generator,
    arena: Arena,
    task: Task,
    is_target: bool,
    shape: Shape,
    circles: Sequence[tuple[FloatArray, float]],
) -> tuple[float, float, float] | None:
    radius = shape.radius_m * arena.scale
    for _ in range(MAX_DRAWS):
        xy = np.array([rng.uniform(*arena.x), rng.uniform(*arena.y)])
        yaw = _draw_yaw(rng)
        if any(np.linalg.norm(xy - c) < radius + r + arena.gap for c, r in circles):
            continue
        if is_target and task.family == PUSH:
            ends = [c for c, _ in _push_lane(arena, task, shape, xy)]
            if not all(arena.holds(c, 0.03 * arena.scale) for c in ends):
                continue
        return float(xy[0]), float(xy[1]), yaw
    return None


def _draw_yaw(rng: np.random.Generator) -> float:
    return float(rng.uniform(-np.pi / 4, np.pi / 4))


def _push_lane(
    arena: Arena, task: Task, shape: Shape, xy: FloatArray
) -> list[tuple[FloatArray, float]]:
    """Circles to keep free: where the tool comes down, and where the object goes."""
    direction = np.array(DIRECTIONS[task.direction])
    radius = shape.radius_m * arena.scale
    tool = 0.025 * arena.scale
    lane = [(xy - direction * (radius + tool), tool)]
    for step in (0.5, 1.0):
        lane.append((xy + direction * step * (arena.push + 0.02), 0.6 * radius))
    return lane


def _draw_look(rng: np.random.Generator, n_objects: int, shifted: bool) -> Look:
    cameras = ('external', 'wrist')
    shift = {c: rng.uniform(-1, 1, 3) * (0.015 if c == 'external' else 0.003) for c in cameras}
    turn = {c: rng.uniform(-1, 1, 3) * np.deg2rad(1.5) for c in cameras}
    look = Look(
        table_style=int(rng.integers(TABLE_STYLES)),
        wall_rgb=_triple(rng.uniform(0.55, 0.9) + rng.uniform(-0.06, 0.06, 3)),
        light_pos=(float(rng.uniform(-0.3, 1.2)), float(rng.uniform(-1, 1)), 2.0),
        light_level=float(rng.uniform(0.35, 0.65)),
        ambient=float(rng.uniform(0.30, 0.45)),
        tint=tuple(float(v) for v in rng.uniform(0.85, 1.1, n_objects)),
        camera_shift_m=shift,
        camera_turn_rad=turn,
    )
    if shifted:
        # Three to five times the range of training, in a direction drawn per seed.
        side = rng.normal(size=3)
        shift['external'] = shift['external'] + 0.06 * side / np.linalg.norm(side)
        turn['external'] = turn['external'] + rng.choice([-1, 1], 3) * np.deg2rad([3.0, 3.0, 2.0])
    return look


def _triple(values: FloatArray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
