"""Random views of the simulated tables with exact depth, to train a depth encoder on.

Every view has its own scene, arm pose, light, camera and field of view; in some the room has no
walls, so that there is a background without depth. Deterministic per seed and robot.
"""

from typing import NamedTuple

import cv2
import numpy as np

from spear_ros.core.types import FloatArray, ImageArray
from spear_ros.simulation.backend import mujoco, new_renderer
from spear_ros.simulation.layout import ARENAS
from spear_ros.simulation.robots.franka import look_at
from spear_ros.simulation.world import World

WALLS = ('wall', 'side_wall', 'front_wall', 'left_wall', 'floor')
OPEN_ROOM_SHARE = 0.25
OWN_CAMERA_SHARE = 0.3
"""Views through the external or wrist camera of the scene, as a policy sees it."""
FOV_Y_DEG = (30.0, 75.0)
CLEARANCE_M = 0.12
SUPERSAMPLING = 2
DEPTH_VIEWS_KEY = 0xDE97


class DepthView(NamedTuple):
    """One picture and what it shows."""

    image: ImageArray
    """(H, W, 3) uint8 RGB."""
    depth_m: FloatArray
    """(H, W) along the optical axis; far beyond 6.5 m where nothing is."""
    fov_y_rad: float


class DepthViewer:
    """Renders views of one world at one size; in the thread that made it.

    Args:
        world: its robot is posed at random, its objects are laid out anew for every view.
        size: rows and columns.

    Raises:
        UserError: off-screen rendering is not possible here.
    """

    def __init__(self, world: World, size: tuple[int, int]) -> None:
        self._world = world
        self._size = size
        height, width = size
        self._colour = new_renderer(world.model, SUPERSAMPLING * width, SUPERSAMPLING * height)
        self._depth = new_renderer(world.model, width, height)
        self._depth.enable_depth_rendering()
        self._camera = world.model.camera('external').id
        self._fov = float(world.model.cam_fovy[self._camera])

    def view(self, seed: int) -> DepthView:
        """Return the view of ``seed``."""
        world = self._world
        rng = np.random.default_rng([seed, DEPTH_VIEWS_KEY])
        world.reset_scene(seed)
        self._pose_robot(rng)
        self._set_room(rng)
        camera, fov = self._choose_camera(rng)
        mujoco.mj_forward(world.model, world.data)
        shadows = bool(rng.random() < 0.5)
        self._colour.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        self._colour.update_scene(world.data, camera=camera)
        height, width = self._size
        image = cv2.resize(self._colour.render(), (width, height), interpolation=cv2.INTER_AREA)
        self._depth.update_scene(world.data, camera=camera)
        depth = self._depth.render().astype(np.float64)
        noise = rng.integers(-2, 3, image.shape)
        image = np.clip(image.astype(np.int16) + noise, 0, 255).astype(np.uint8)
        return DepthView(image, depth, float(np.deg2rad(fov)))

    def close(self) -> None:
        """Release both renderers."""
        self._colour.close()
        self._depth.close()

    def _pose_robot(self, rng: np.random.Generator) -> None:
        """Put the arm anywhere around home, fingers anywhere."""
        robot = self._world.robot
        low = np.array([joint.lower_rad for joint in robot.joints])
        high = np.array([joint.upper_rad for joint in robot.joints])
        q = np.array(robot.q_home_rad) + rng.uniform(-0.6, 0.6, len(low))
        self._world.reset_robot(np.clip(q, low, high), float(rng.random()))

    def _set_room(self, rng: np.random.Generator) -> None:
        model = self._world.model
        open_room = rng.random() < OPEN_ROOM_SHARE
        for name in WALLS:
            colour = np.clip(rng.uniform(0.2, 0.9) + rng.uniform(-0.15, 0.15, 3), 0, 1)
            model.geom(name).rgba[:] = [*colour, 0.0 if open_room else 1.0]

    def _choose_camera(self, rng: np.random.Generator) -> tuple[str, float]:
        """Place the external camera at random, or take one of the scene's own."""
        model, arena = self._world.model, ARENAS[self._world.robot.family]
        model.cam_fovy[self._camera] = self._fov
        if rng.random() < OWN_CAMERA_SHARE:
            name = str(rng.choice(['external', 'wrist']))
            return name, float(model.cam_fovy[model.camera(name).id])
        target = np.array(
            [
                rng.uniform(arena.x[0] - 0.2, arena.x[1] + 0.1),
                rng.uniform(*arena.y),
                rng.uniform(0.0, 0.25),
            ]
        )
        azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(0.1, 1.3)
        distance = float(np.exp(rng.uniform(np.log(0.25), np.log(1.6))))
        direction = np.array(
            [
                np.cos(azimuth) * np.cos(elevation),
                np.sin(azimuth) * np.cos(elevation),
                np.sin(elevation),
            ]
        )
        eye = target + distance * direction
        # Never from inside the walls of the room, nor from under the table.
        eye = np.clip(eye, [-0.9, -1.5, CLEARANCE_M], [2.2, 2.2, 2.4])
        model.cam_pos[self._camera] = eye
        model.cam_quat[self._camera] = look_at(tuple(eye), tuple(target))
        fov = float(rng.uniform(*FOV_Y_DEG))
        model.cam_fovy[self._camera] = fov
        return 'external', fov
