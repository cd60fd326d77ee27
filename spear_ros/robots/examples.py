"""An example observation per robot: what tests, warm-up and benchmarks feed to a policy."""

import numpy as np

from spear_ros.core.types import (
    EXTERNAL,
    WRIST,
    CameraFrame,
    ImageArray,
    Observation,
    RobotState,
)
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot

_STAMP_NS = 1_700_000_000_000_000_000


def make_example_observation(robot_name: str, *, seed: int = 0) -> Observation:
    """Build an observation of the robot at its start pose, gripper open.

    Images are 480x640 (external and wrist), drawn from numpy alone and the same for the same seed:
    smooth gradients, a coloured square, noise of one level, so that neither a constant nor a
    frozen picture is tested by accident.
    """
    spec = get_robot(robot_name)
    rng = np.random.default_rng(seed)
    q = np.asarray(spec.q_home_rad)
    state = RobotState(stamp_ns=_STAMP_NS, T_base_ee=forward(spec, q), gripper=1.0, q_rad=q)
    images = {
        name: CameraFrame(
            image=_picture(rng), stamp_ns=_STAMP_NS, received_ns=_STAMP_NS + 20_000_000
        )
        for name in (EXTERNAL, WRIST)
    }
    return Observation(
        t_obs_ns=_STAMP_NS,
        embodiment=spec.embodiment,
        images=images,
        state=state,
        instruction='put the red cube on the plate',
        instruction_id='0badcafe',
    )


def _picture(rng: np.random.Generator, height: int = 480, width: int = 640) -> ImageArray:
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([255 * x / width, 255 * y / height, 128 + 64 * np.sin(x / 40.0)], axis=-1)
    top, left = int(rng.integers(0, height - 120)), int(rng.integers(0, width - 120))
    image[top : top + 100, left : left + 100] = rng.integers(0, 256, 3)
    image += rng.integers(-1, 2, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)
