"""The example observation of every robot is complete, deterministic and at the start pose."""

import numpy as np
import pytest

from spear_ros.robots.examples import make_example_observation
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot, robot_names


@pytest.mark.parametrize('name', robot_names())
def test_example_is_what_a_policy_expects(name):
    robot = get_robot(name)
    observation = make_example_observation(name)
    assert observation.embodiment == robot.embodiment
    for camera in ('external', 'wrist'):
        frame = observation.images[camera]
        assert frame.image.shape == (480, 640, 3)
        assert frame.image.dtype == np.uint8
        assert frame.image.std() > 10
    np.testing.assert_allclose(observation.state.T_base_ee, forward(robot, robot.q_home_rad))
    assert observation.state.gripper == 1.0


def test_same_seed_same_picture_other_seed_other_picture():
    a, b, c = (make_example_observation('fr3', seed=s).images['wrist'].image for s in (1, 1, 2))
    assert (a == b).all()
    assert (a != c).any()
