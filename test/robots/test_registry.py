"""Robots by name, their start poses, and that every spec is consistent in itself."""

import numpy as np
import pytest

from spear_ros.core.errors import UserError
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot, robot_names


def test_known_names():
    assert robot_names() == ('fr3', 'panda', 'wx250s', 'vx300s')


def test_unknown_name_suggests_the_closest():
    with pytest.raises(UserError, match='did you mean "wx250s"'):
        get_robot('wx250')


def test_unknown_gripper_names_the_possible_ones():
    with pytest.raises(UserError, match='choose franka_hand, robotiq_2f85'):
        get_robot('fr3', 'widowx')


@pytest.mark.parametrize(('gripper', 'q7'), [('franka_hand', np.pi / 4), ('robotiq_2f85', 0.0)])
def test_gripper_decides_how_the_flange_is_turned_at_the_start(gripper, q7):
    robot = get_robot('fr3', gripper)
    assert robot.q_home_rad[6] == pytest.approx(q7)
    assert robot.q_home_rad[:6] == pytest.approx(
        (0, -np.pi / 5, 0, -4 * np.pi / 5, 0, 3 * np.pi / 5)
    )


def test_fr3_and_panda_share_kinematics_and_differ_in_limits():
    fr3, panda = get_robot('fr3'), get_robot('panda')
    q = np.array(fr3.q_home_rad)
    np.testing.assert_array_equal(forward(fr3, q), forward(panda, q))
    assert [j.upper_rad for j in fr3.joints] != [j.upper_rad for j in panda.joints]


@pytest.mark.parametrize('name', robot_names())
def test_spec_is_consistent(name):
    robot = get_robot(name)
    assert robot.joint_names == tuple(j.name for j in robot.joints)
    for joint, home in zip(robot.joints, robot.q_home_rad, strict=True):
        assert joint.lower_rad < home < joint.upper_rad
        assert joint.velocity_rad_s > 0
        assert joint.acceleration_rad_s2 > 0
        assert np.linalg.norm(joint.axis) == pytest.approx(1.0)
    p = forward(robot, robot.q_home_rad)[:3, 3]
    assert (p > robot.workspace_min_m).all()
    assert (p < robot.workspace_max_m).all()
    for field in robot.nominal.__dataclass_fields__:
        assert getattr(robot.nominal, field) <= getattr(robot.hard, field)
    assert set(robot.driver_frames) == {robot.base_frame, robot.ee_frame}
    assert robot.q_home_rad in robot.homes_rad.values()
    assert all(0 <= s.after_joint <= robot.n_joints for s in robot.link_spheres)


@pytest.mark.parametrize('name', robot_names())
def test_hard_step_at_the_nominal_rate_is_within_the_hard_speed(name):
    robot = get_robot(name)
    axes = np.sqrt(3)
    linear = min(robot.step.norm_m, axes * robot.step.axis_m) / robot.step.per_s
    angular = min(robot.step.norm_rad, axes * robot.step.axis_rad) / robot.step.per_s
    assert linear <= robot.hard.linear_m_s * (1 + 1e-9)
    assert angular <= robot.hard.angular_rad_s * (1 + 1e-9)
