"""Which driver a configuration gets, and which combinations are refused."""

from dataclasses import replace

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from spear_ros.core.errors import UserError
from spear_ros.robots.registry import get_robot
from spear_ros.ros.config import load_robot_config
from spear_ros.ros.drivers import base
from spear_ros.ros.drivers.registry import make_driver

FRANKA, WIDOWX = load_robot_config('franka'), load_robot_config('widowx')


def test_each_family_gets_its_driver_and_topic():
    assert make_driver(None, get_robot('fr3'), FRANKA).command_topic == '/target_pose'
    driver = make_driver(None, get_robot('wx250s'), WIDOWX)
    assert driver.command_topic == '/wx250s/commands/joint_group'


def test_third_robot_of_a_family_needs_no_code():
    config = replace(WIDOWX, model='vx300s', widowx=replace(WIDOWX.widowx, namespace='/vx300s'))
    driver = make_driver(None, get_robot('vx300s'), config)
    assert driver.command_topic == '/vx300s/commands/joint_group'


def test_robot_of_another_family_is_refused():
    with pytest.raises(UserError, match=r"'fr3' is of the family 'franka'.*'widowx'"):
        make_driver(None, get_robot('fr3'), replace(WIDOWX, model='fr3'))


def test_gripper_of_another_family_is_refused():
    grippers = replace(FRANKA.grippers, widowx=WIDOWX.grippers.widowx)
    config = replace(FRANKA, grippers=grippers, gripper='widowx')
    with pytest.raises(UserError, match='does not fit a Franka'):
        make_driver(None, get_robot('fr3'), config)


def test_missing_driver_messages_are_one_sentence(monkeypatch):
    def missing(module):
        raise ImportError(module)

    monkeypatch.setattr(base.importlib, 'import_module', missing)
    with pytest.raises(UserError, match='interbotix_xs_msgs is missing: build interbotix_ros_core'):
        make_driver(None, get_robot('wx250s'), WIDOWX)
