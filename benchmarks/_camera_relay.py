"""A camera driver for the fault bench: passes the simulated pictures on from a process of its own.

    python benchmarks/_camera_relay.py SOURCE_TOPIC TOPIC

Frozen or killed it takes the pictures away and leaves the robot alone.
"""

import contextlib
import sys

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import Image

from spear_ros.ros import qos


def main() -> None:
    source, topic = sys.argv[1:3]
    rclpy.init(args=[])
    node = Node('external_camera', enable_rosout=False, start_parameter_services=False)
    out = node.create_publisher(Image, topic, qos.IMAGE_OUTPUT)
    # Raw: bytes in, bytes out.
    node.create_subscription(Image, source, out.publish, qos.IMAGE_INPUT, raw=True)
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(node)
    rclpy.try_shutdown()


if __name__ == '__main__':
    main()
