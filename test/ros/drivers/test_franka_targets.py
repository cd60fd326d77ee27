"""The two ways of a Franka's target: a pose of link8, or one trajectory point at rest."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from geometry_msgs.msg import PoseStamped
from trajectory_msgs.msg import JointTrajectory

from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot
from spear_ros.ros.config import load_robot_config
from spear_ros.ros.drivers.franka_targets import make_output
from spear_ros.ros.recording_topics import robot_topics

ROBOT = get_robot('fr3')
Q = np.array(ROBOT.q_home_rad) + 0.1


def send(file):
    """Send one target through the output of a robot file; return topic, type, QoS and message."""
    made, sent = [], []

    def create_publisher(kind, topic, qos):
        made.append((kind, topic, qos))
        return SimpleNamespace(publish=sent.append)

    output = make_output(load_robot_config(file).franka, ROBOT.joint_names, 'fr3_link0')
    output.start(SimpleNamespace(create_publisher=create_publisher))
    target = SimpleNamespace(stamp_ns=5, T_base_ee=forward(ROBOT, Q), q_rad=Q, gripper=None)
    output.send(target)
    return *made[0], *sent


def test_crisp_gets_the_pose():
    kind, topic, _, message = send('franka')
    assert (kind, topic, message.header.frame_id) == (PoseStamped, '/target_pose', 'fr3_link0')
    p = message.pose.position
    np.testing.assert_allclose([p.x, p.y, p.z], forward(ROBOT, Q)[:3, 3])


def test_trajectory_controller_gets_the_joints_a_little_ahead_and_at_rest():
    kind, topic, qos, message = send('franka_trajectory')
    assert (kind, topic) == (JointTrajectory, '/fr3_arm_controller/joint_trajectory')
    assert qos.depth == 1  # an old target has no value
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (0, 0)  # now
    assert message.joint_names == list(ROBOT.joint_names)
    (point,) = message.points
    np.testing.assert_allclose(point.positions, Q)
    assert list(point.velocities) == [0.0] * 7
    assert (point.time_from_start.sec, point.time_from_start.nanosec) == (0, 100_000_000)


@pytest.mark.parametrize(
    ('file', 'topic', 'kind'),
    [
        ('franka', '/target_pose', 'geometry_msgs/msg/PoseStamped'),
        (
            'franka_trajectory',
            '/fr3_arm_controller/joint_trajectory',
            'trajectory_msgs/msg/JointTrajectory',
        ),
    ],
)
def test_commands_are_recorded_whichever_way_they_go(file, topic, kind):
    assert robot_topics(load_robot_config(file))[topic] == kind
