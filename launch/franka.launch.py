"""Live Franka (FR3): drivers and cameras run already; starts policy_node and executor_node."""

from launch import LaunchDescription

from spear_ros.ros.launching import launch_description


def generate_launch_description() -> LaunchDescription:
    return launch_description({'robot': 'franka', 'sim': False, 'bag': '', 'map': ''})
