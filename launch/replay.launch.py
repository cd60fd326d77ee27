"""A recorded bag onto the robot's topics with /clock; the executor stays DISARMED."""

from launch import LaunchDescription

from spear_ros.ros.launching import launch_description


def generate_launch_description() -> LaunchDescription:
    return launch_description({'sim': False})
