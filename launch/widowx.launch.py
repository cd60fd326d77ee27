"""Live WidowX-250s: xs_sdk and cameras run already; starts policy_node and executor_node."""

from launch import LaunchDescription

from spear_ros.ros.launching import launch_description


def generate_launch_description() -> LaunchDescription:
    return launch_description({'robot': 'widowx', 'sim': False, 'bag': '', 'map': ''})
