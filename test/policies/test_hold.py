"""Policy hold: no motion, whatever it sees."""

import numpy as np

from spear_ros.core import geometry
from spear_ros.policies.registry import create_policy
from spear_ros.robots.examples import make_example_observation
from spear_ros.robots.registry import get_robot


def test_every_knot_is_the_measured_pose_and_the_gripper_stays():
    observation = make_example_observation('wx250s')
    chunk = create_policy('hold', robot=get_robot('wx250s')).infer(observation)
    p, q = geometry.pose_parts(observation.state.T_base_ee)
    np.testing.assert_array_equal(chunk.p_base_ee, np.tile(p, (5, 1)))
    np.testing.assert_array_equal(chunk.q_base_ee, np.tile(q, (5, 1)))
    np.testing.assert_array_equal(chunk.gripper, np.full(5, observation.state.gripper))
