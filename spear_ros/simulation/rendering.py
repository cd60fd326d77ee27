"""The simulated cameras: pictures with a grain of noise, intrinsics, poses."""

import threading
from dataclasses import dataclass

import numpy as np

from spear_ros.core.types import EXTERNAL, WRIST, FloatArray, ImageArray
from spear_ros.simulation.backend import mujoco, new_renderer
from spear_ros.simulation.scene import IMAGE_SIZE

CAMERAS = (EXTERNAL, WRIST)
_NOISE_ROWS = 97


@dataclass(frozen=True, slots=True)
class CameraModel:
    """A pinhole camera without distortion."""

    width: int
    height: int
    K: FloatArray
    """(3, 3), pixels; the centre of the first pixel is (0, 0)."""
    T_base_camera: FloatArray
    """(4, 4) of the optical frame (x right, y down, z into the scene)."""

    def project(self, p_base: FloatArray) -> FloatArray:
        """Pixels (..., 2) of points (..., 3) in the base frame; NaN behind the camera."""
        R, t = self.T_base_camera[:3, :3], self.T_base_camera[:3, 3]
        p = (np.asarray(p_base, float) - t) @ R
        uvw = p @ self.K.T
        depth = np.where(uvw[..., 2:] > 1e-6, uvw[..., 2:], np.nan)
        return uvw[..., :2] / depth


class CameraRig:
    """Renders both cameras of a model.

    The OpenGL context belongs to the thread that renders first: every later call must come from
    it. It is opened lazily, so that a world without pictures needs no OpenGL.
    """

    def __init__(self, model: 'mujoco.MjModel', seed: int, shadows: bool) -> None:
        self._model = model
        self._shadows = shadows
        self._rng = np.random.default_rng([seed, 0x5EED])
        self._renderer: mujoco.Renderer | None = None
        self._thread = 0
        self._grain = np.zeros((0, 0, 0), np.uint8)

    def render(
        self, data: 'mujoco.MjData', camera: str, lock: 'threading.Lock | threading.RLock'
    ) -> ImageArray:
        """Return (480, 640, 3) uint8 RGB, never twice the same bytes.

        ``lock`` guards ``data`` and is held only while the scene is copied out of it.

        Raises:
            UserError: off-screen rendering is not possible here.
        """
        assert camera in CAMERAS, camera
        renderer = self._open()
        with lock:
            renderer.update_scene(data, camera=camera)
        return self._add_grain(renderer.render())

    def camera_model(self, data: 'mujoco.MjData', camera: str) -> CameraModel:
        """Intrinsics, and the pose at this instant."""
        assert camera in CAMERAS, camera
        width, height = IMAGE_SIZE
        index = self._model.camera(camera).id
        focal = 0.5 * height / np.tan(0.5 * np.deg2rad(self._model.cam_fovy[index]))
        K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
        T = np.eye(4)
        # MuJoCo cameras look along -z with y up.
        T[:3, :3] = data.cam_xmat[index].reshape(3, 3) * np.array([1.0, -1.0, -1.0])
        T[:3, 3] = data.cam_xpos[index]
        return CameraModel(width, height, K, T)

    def close(self) -> None:
        """Release the OpenGL context; in the thread that rendered."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _open(self) -> 'mujoco.Renderer':
        if self._renderer is None:
            self._renderer = new_renderer(self._model, *IMAGE_SIZE)
            self._thread = threading.get_ident()
            flags = self._renderer.scene.flags
            flags[mujoco.mjtRndFlag.mjRND_SHADOW] = self._shadows
            flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
            width, height = IMAGE_SIZE
            self._grain = self._rng.integers(0, 2, (height + _NOISE_ROWS, width, 3), dtype=np.uint8)
        assert threading.get_ident() == self._thread, (
            'World.render must always be called from the thread that called it first: '
            'the OpenGL context is bound to it'
        )
        return self._renderer

    def _add_grain(self, image: ImageArray) -> ImageArray:
        """Add sensor noise of one grey level, as real cameras have.

        A real picture is never byte-identical to the last, which is how a frozen camera is found;
        the grain slides over a fixed seeded field, since drawing 921,600 numbers costs 3 ms.
        """
        row = int(self._rng.integers(_NOISE_ROWS))
        column = int(self._rng.integers(IMAGE_SIZE[0]))
        grain = np.roll(self._grain[row : row + IMAGE_SIZE[1]], column, axis=1)
        np.minimum(image, 254, out=image)
        image += grain
        return image
