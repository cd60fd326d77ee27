"""Lays out scenes on a compiled model and reads objects and contacts back."""

from collections.abc import Iterable

import numpy as np

from spear_ros.core.geometry import pose_parts, quat_exp, quat_multiply
from spear_ros.core.types import FloatArray
from spear_ros.simulation.backend import mujoco
from spear_ros.simulation.catalogue import (
    COLOURS,
    GRASPABLE,
    RECEPTACLES,
    SHAPES,
    SIZE_VARIATION,
    TABLE_Z_M,
    split_name,
)
from spear_ros.simulation.layout import Layout, Look, PlacedObject
from spear_ros.simulation.objects import PARKED_Z_M
from spear_ros.simulation.robots.joint_tree import OBJECT, ROBOT

_GRIPPER_BODIES = ('hand', 'finger_left_body', 'finger_right_body')


class Table:
    """Objects, light and camera mounts of one model."""

    def __init__(self, model: 'mujoco.MjModel', data: 'mujoco.MjData', scale: float) -> None:
        self._model, self._data = model, data
        self._scale = scale
        self._pool = [f'slot{k}' for k in range(len(SIZE_VARIATION))] + list(RECEPTACLES)
        self._bodies = {name: model.body(name).id for name in self._pool}
        self._names: dict[str, int] = {}
        """Object name -> body id of the present scene."""
        self.ghosts: frozenset[str] = frozenset()
        """Objects of the scene that are not solid yet."""
        self._camera_home = (model.cam_pos.copy(), model.cam_quat.copy())
        solid = (model.geom_contype > 0) | (model.geom_conaffinity > 0)
        self._solid = {b: np.flatnonzero(solid & (model.geom_bodyid == b)) for b in
                       self._bodies.values()}  # fmt: skip
        self._kind = self._classify()
        self._park_all()

    # -- laying out ------------------------------------------------------------------------------

    def lay_out(self, layout: Layout, ghosts: bool = False) -> None:
        """Show the objects of ``layout`` at rest, park the others, set light and cameras.

        With ``ghosts`` nothing can touch the objects until ``set_ghosts(())``.
        """
        self._park_all()
        self._names = {}
        for item, tint in zip(layout.objects, layout.look.tint, strict=True):
            self._place(item, tint)
        self._apply_look(layout.look)
        self.set_ghosts(self._names if ghosts else ())
        mujoco.mj_forward(self._model, self._data)

    def lift(self, name: str, T_base_object: FloatArray) -> None:
        """Put an object of the scene at a (4, 4) pose, in the fingers for instance."""
        address, _ = self._addresses(self._names[name])
        p, q = pose_parts(T_base_object)
        self._data.qpos[address : address + 3], self._data.qpos[address + 3 : address + 7] = p, q
        mujoco.mj_forward(self._model, self._data)

    def set_ghosts(self, names: Iterable[str]) -> None:
        """Make these objects of the scene intangible and weightless, all others solid."""
        self.ghosts = frozenset(names)
        for name, body in self._names.items():
            self._set_solid(name, body, name not in self.ghosts)

    def _park_all(self) -> None:
        for index, body in enumerate(self._bodies.values()):
            address, dof = self._addresses(body)
            self._data.qpos[address : address + 7] = [0.5 * index, 0, PARKED_Z_M, 1, 0, 0, 0]
            self._data.qvel[dof : dof + 6] = 0
            self._model.body_gravcomp[body] = 1
            for geom in self._geoms(body):
                self._model.geom_rgba[geom, 3] = 0
                self._model.geom_contype[geom] = self._model.geom_conaffinity[geom] = 0

    def _place(self, item: PlacedObject, tint: float) -> None:
        colour, shape = split_name(item.name)
        body = self._bodies[shape.name if shape.receptacle else f'slot{item.slot}']
        size = self._scale * (1.0 if shape.receptacle else SIZE_VARIATION[item.slot])
        height = TABLE_Z_M + SHAPES[shape.name].half_extents[2] * size
        address, _ = self._addresses(body)
        self._data.qpos[address : address + 3] = [item.x_m, item.y_m, height]
        self._data.qpos[address + 3 : address + 7] = quat_exp([0, 0, item.yaw_rad])
        rgb = np.clip(np.array(COLOURS[colour]) * tint, 0, 1)
        for geom in self._shape_geoms(body, shape.name):
            self._model.geom_rgba[geom] = [*rgb, 1.0]
        self._names[item.name] = body

    def _set_solid(self, name: str, body: int, solid: bool) -> None:
        shape = split_name(name)[1].name
        self._model.body_gravcomp[body] = 0 if solid else 1
        for geom in np.intersect1d(self._shape_geoms(body, shape), self._solid[body]):
            self._model.geom_contype[geom] = OBJECT if solid else 0
            self._model.geom_conaffinity[geom] = (ROBOT | OBJECT) if solid else 0

    def _apply_look(self, look: Look) -> None:
        model = self._model
        model.geom('table').matid = model.material(f'table{look.table_style}').id
        for name in ('wall', 'side_wall', 'front_wall', 'left_wall'):
            model.geom(name).rgba[:3] = look.wall_rgb
        lamp = model.light('lamp')
        lamp.pos[:] = look.light_pos
        aim = np.array([0.4, 0.0, 0.0]) - np.array(look.light_pos)
        lamp.dir[:] = aim / np.linalg.norm(aim)
        lamp.diffuse[:] = look.light_level
        model.vis.headlight.ambient[:] = look.ambient
        model.vis.headlight.diffuse[:] = 0.35
        positions, quats = self._camera_home
        for camera, shift in look.camera_shift_m.items():
            index = model.camera(camera).id
            turn = quat_exp(look.camera_turn_rad[camera])
            model.cam_pos[index] = positions[index] + shift
            model.cam_quat[index] = quat_multiply(quats[index], turn)

    # -- reading ---------------------------------------------------------------------------------

    def poses(self) -> dict[str, FloatArray]:
        """Name -> (4, 4) pose of every object of the scene."""
        poses = {}
        for name, body in self._names.items():
            T = np.eye(4)
            T[:3, 3] = self._data.xpos[body]
            T[:3, :3] = self._data.xmat[body].reshape(3, 3)
            poses[name] = T
        return poses

    def contacts(self) -> tuple[frozenset[str], frozenset[tuple[str, str]]]:
        """Objects that the gripper touches; and pairs of objects, or object and 'table'."""
        names = {body: name for name, body in self._names.items()}
        touched: set[str] = set()
        pairs: set[tuple[str, str]] = set()
        for pair in self._model.geom_bodyid[self._data.contact.geom]:
            first, second = (int(b) for b in pair)
            a, b = names.get(first), names.get(second)
            if a and b:
                pairs.add((a, b) if a < b else (b, a))
            elif a or b:
                name, other = (a, second) if a else (b, first)
                assert name is not None
                if self._kind[other] == 'gripper':
                    touched.add(name)
                elif self._kind[other] == 'table':
                    pairs.add((name, 'table'))
        return frozenset(touched), frozenset(pairs)

    # -- addresses -------------------------------------------------------------------------------

    def _classify(self) -> list[str]:
        kinds = ['other'] * self._model.nbody
        kinds[0] = 'table'
        for name in _GRIPPER_BODIES:
            kinds[self._model.body(name).id] = 'gripper'
        # Rigid parts of the hand may hang on the last link (the WidowX carriage does).
        kinds[int(self._model.body_parentid[self._model.body('hand').id])] = 'gripper'
        return kinds

    def _addresses(self, body: int) -> tuple[int, int]:
        joint = self._model.body_jntadr[body]
        return int(self._model.jnt_qposadr[joint]), int(self._model.jnt_dofadr[joint])

    def _geoms(self, body: int) -> range:
        start = int(self._model.body_geomadr[body])
        return range(start, start + int(self._model.body_geomnum[body]))

    def _shape_geoms(self, body: int, shape: str) -> list[int]:
        """Geoms of ``body`` that belong to ``shape`` (all of a receptacle's)."""
        if shape not in GRASPABLE:
            return list(self._geoms(body))
        return [g for g in self._geoms(body) if self._model.geom(g).name.endswith(f'_{shape}')]
