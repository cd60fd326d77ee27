import pytest

from spear_ros.core.errors import UserError
from spear_ros.robots.registry import get_robot
from spear_ros.simulation.grippers import get_gripper
from spear_ros.simulation.meshes import PANDA, WX250S, mesh_file, mesh_root


def test_a_missing_mesh_package_is_named_with_its_mend():
    with pytest.raises(UserError, match='pip install rtb-data'):
        mesh_root('no_such_mesh_package')


def test_a_missing_mesh_is_named_with_its_place(tmp_path):
    with pytest.raises(UserError, match=r'link0\.stl is not at'):
        mesh_file(PANDA, 'link0.stl', tmp_path)


def test_the_meshes_are_where_the_package_puts_them():
    pytest.importorskip('rtbdata')
    assert mesh_file(PANDA, 'hand.stl').endswith('hand.stl')
    assert mesh_file(WX250S, 'WXSA-250-M-10-Finger.stl')


def test_a_gripper_that_does_not_fit_the_robot_is_refused():
    with pytest.raises(UserError, match='franka_hand, robotiq_2f85'):
        get_gripper(get_robot('fr3'), 'widowx')
    assert get_gripper(get_robot('wx250s')).name == 'widowx'
    assert get_gripper(get_robot('fr3')).name == 'franka_hand'


def test_without_a_name_the_gripper_of_the_start_pose_is_taken():
    assert get_gripper(get_robot('fr3', 'robotiq_2f85')).name == 'robotiq_2f85'


def test_openings_and_finger_positions_are_inverse():
    for robot, name in (('fr3', 'franka_hand'), ('fr3', 'robotiq_2f85'), ('wx250s', 'widowx')):
        gripper = get_gripper(get_robot(robot), name)
        for opening in (0.0, 0.3, 1.0):
            assert gripper.opening(gripper.finger(opening)) == pytest.approx(opening)
        assert gripper.opening_for(gripper.max_width_m) == pytest.approx(1.0, abs=0.01)
