"""Simulated robot (robot:=franka or robot:=widowx) with policy_node and executor_node."""

from launch import LaunchDescription

from spear_ros.ros.launching import launch_description


def generate_launch_description() -> LaunchDescription:
    return launch_description({'sim': True, 'bag': '', 'map': ''}, {'policy': 'scripted'})
