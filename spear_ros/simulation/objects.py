"""Bodies of the things on the table: a fixed pool, of which a scene shows four to six.

Nothing is compiled again between scenes: each graspable slot carries one geom per shape and shows
one of them, each receptacle exists once, and what a scene does not use is parked out of sight with
collisions off. That keeps a reset under a millisecond and the renderer's context alive.
"""

from collections.abc import Sequence

import numpy as np

from spear_ros.simulation.backend import mujoco
from spear_ros.simulation.catalogue import (
    GRASPABLE,
    RECEPTACLES,
    SHAPES,
    SIZE_VARIATION,
)
from spear_ros.simulation.robots.joint_tree import COLLISION_GROUP, OBJECT, ROBOT, set_inertia

OBJECT_MASS_KG = 0.06
RECEPTACLE_MASS_KG = 0.35
PARKED_Z_M = -6.0
SEGMENTS = 32


def add_object_pool(spec: 'mujoco.MjSpec', scale: float) -> None:
    """Add bodies ``slot0`` ... and ``plate``, ``bowl``, ``tray``, each with a free joint."""
    for index, size in enumerate(SIZE_VARIATION):
        body = _free_body(spec, f'slot{index}', index, OBJECT_MASS_KG * scale**3, 0.02 * scale)
        for shape in GRASPABLE:
            half = [h * scale * size for h in SHAPES[shape].half_extents]
            _add_shape(body, f'slot{index}_{shape}', shape, half)
    for offset, shape in enumerate(RECEPTACLES):
        body = _free_body(
            spec, shape, len(SIZE_VARIATION) + offset, RECEPTACLE_MASS_KG * scale**3, 0.05 * scale
        )
        {'plate': _add_plate, 'bowl': _add_bowl, 'tray': _add_tray}[shape](spec, body, scale)


def _free_body(
    spec: 'mujoco.MjSpec', name: str, index: int, mass: float, gyration: float
) -> 'mujoco.MjsBody':
    body = spec.worldbody.add_body(name=name, pos=[0.5 * index, 0, PARKED_Z_M], gravcomp=1)
    body.add_freejoint()
    set_inertia(body, mass, (0, 0, 0), [0.6 * mass * gyration**2] * 3)
    return body


def _collide(geom: 'mujoco.MjsGeom') -> 'mujoco.MjsGeom':
    geom.contype, geom.conaffinity = OBJECT, ROBOT | OBJECT
    geom.condim = 4
    geom.friction = [0.8, 0.005, 0.0005]
    geom.solref, geom.solimp = [0.008, 1.0], [0.95, 0.99, 0.001, 0.5, 2.0]
    return geom


def _add_shape(body: 'mujoco.MjsBody', name: str, shape: str, half: list[float]) -> None:
    kinds = {
        'cube': (mujoco.mjtGeom.mjGEOM_BOX, half),
        'block': (mujoco.mjtGeom.mjGEOM_BOX, half),
        'cylinder': (mujoco.mjtGeom.mjGEOM_CYLINDER, [half[0], half[2], 0]),
        'ball': (mujoco.mjtGeom.mjGEOM_SPHERE, [half[0], 0, 0]),
    }
    kind, size = kinds[shape]
    geom = _collide(body.add_geom(name=name, type=kind, size=size, rgba=[0.5, 0.5, 0.5, 1]))
    if shape == 'ball':
        geom.condim = 6
        geom.friction = [0.8, 0.005, 0.002]


def _add_plate(spec: 'mujoco.MjSpec', body: 'mujoco.MjsBody', scale: float) -> None:
    """A disc with a sloping rim; the inside is flat."""
    radius, _, half = (h * scale for h in SHAPES['plate'].half_extents)
    _collide(
        body.add_geom(
            name='plate_disc',
            type=mujoco.mjtGeom.mjGEOM_CYLINDER,
            size=[radius, half, 0],
            group=COLLISION_GROUP,
        )
    )
    profile = [
        (0.0, -half), (0.66 * radius, -half), (radius, 1.9 * half), (0.94 * radius, 2.2 * half),
        (0.76 * radius, half), (0.70 * radius, half), (0.0, half),
    ]  # fmt: skip
    _add_lathe(spec, body, 'plate_look', profile)


def _add_bowl(spec: 'mujoco.MjSpec', body: 'mujoco.MjsBody', scale: float) -> None:
    """A floor and a ring of slanted boards; drawn as a turned surface."""
    radius, _, half = (h * scale for h in SHAPES['bowl'].half_extents)
    floor = SHAPES['bowl'].floor_m * scale
    inner = 0.72 * radius
    _collide(
        body.add_geom(
            name='bowl_floor',
            type=mujoco.mjtGeom.mjGEOM_CYLINDER,
            size=[inner, floor / 2, 0],
            pos=[0, 0, -half + floor / 2],
            group=COLLISION_GROUP,
        )
    )
    boards = 12
    slant = float(np.arctan2(radius - inner, 2 * half))
    length = float(np.hypot(radius - inner, 2 * half)) / 2
    for k in range(boards):
        turn = 2 * np.pi * k / boards
        middle = (radius + inner) / 2
        quat = np.zeros(4)
        # Upper case: fixed axes; lean outwards about y, then go round about z.
        mujoco.mju_euler2Quat(quat, np.array([0, slant, turn]), 'XYZ')
        _collide(
            body.add_geom(
                name=f'bowl_wall{k}',
                type=mujoco.mjtGeom.mjGEOM_BOX,
                size=[0.003 * scale, middle * np.tan(np.pi / boards), length],
                pos=[middle * np.cos(turn), middle * np.sin(turn), 0],
                quat=quat,
                group=COLLISION_GROUP,
            )
        )
    wall = 0.004 * scale
    profile = [
        (0.0, -half), (inner, -half), (radius + wall, half), (radius - wall, half),
        (inner - wall, -half + floor), (0.0, -half + floor),
    ]  # fmt: skip
    _add_lathe(spec, body, 'bowl_look', profile)


def _add_tray(spec: 'mujoco.MjSpec', body: 'mujoco.MjsBody', scale: float) -> None:
    """A square floor with four low walls."""
    side, _, half = (h * scale for h in SHAPES['tray'].half_extents)
    floor = SHAPES['tray'].floor_m * scale
    wall = 0.004 * scale
    boxes: list[tuple[str, Sequence[float], Sequence[float]]] = [
        ('floor', (side, side, floor / 2), (0, 0, -half + floor / 2))
    ]
    for k, (x, y) in enumerate(((1, 0), (-1, 0), (0, 1), (0, -1))):
        walls = (wall if x else side, wall if y else side, half)
        boxes.append((f'wall{k}', walls, (x * (side - wall), y * (side - wall), 0)))
    for name, size, pos in boxes:
        _collide(
            body.add_geom(name=f'tray_{name}', type=mujoco.mjtGeom.mjGEOM_BOX, size=size, pos=pos)
        )


def _add_lathe(
    spec: 'mujoco.MjSpec', body: 'mujoco.MjsBody', name: str, profile: list[tuple[float, float]]
) -> None:
    """Draw the closed profile [(radius, height), ...] turned about z."""
    angles = 2 * np.pi * np.arange(SEGMENTS) / SEGMENTS
    vertices = [(r * np.cos(a), r * np.sin(a), z) for r, z in profile for a in angles]
    faces = []
    for ring in range(len(profile) - 1):
        for k in range(SEGMENTS):
            a, b = ring * SEGMENTS + k, ring * SEGMENTS + (k + 1) % SEGMENTS
            c, d = a + SEGMENTS, b + SEGMENTS
            # Triangles at the axis have no area and are left out.
            if profile[ring][0] > 0:
                faces.append((a, b, d))
            if profile[ring + 1][0] > 0:
                faces.append((a, d, c))
    mesh = spec.add_mesh(name=name)
    mesh.uservert = np.array(vertices, np.float32).ravel()
    mesh.userface = np.array(faces, np.int32).ravel()
    mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_MESH,
        meshname=name,
        contype=0,
        conaffinity=0,
        rgba=[0.5, 0.5, 0.5, 1],
    )
