"""Where the Franka's targets go: to crisp as poses, or to a joint trajectory controller.

Both get the executor's command at 100 Hz; the pose and the joint angles in it are one target. The
joint path is the fall-back where crisp cannot be loaded: a JointTrajectoryController of
ros2_controllers on the effort interface. A new message replaces the running trajectory, a stamp of
zero means "now", and the end velocity must be zero; so each message holds one point, a little ahead
in time, with velocity zero. Until the next message comes the controller is on the first tenth of a
cubic from where it is and how fast it is, which keeps the velocity continuous; if none comes it
brakes along that cubic and stands at the last target. The price is a lag of two thirds of
``trajectory_time_s``.

Source: ros2_controllers jazzy, joint_trajectory_controller/doc/trajectory.rst.
"""

from typing import Protocol

from builtin_interfaces.msg import Duration
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node

from spear_ros.ros.config import FrankaDriverConfig
from spear_ros.ros.conversions import pose_stamped
from spear_ros.ros.drivers.base import Target, messages
from spear_ros.ros.qos import COMMAND


class TargetOutput(Protocol):
    """Publishes targets on the command topic."""

    def start(self, node: Node) -> None:
        """Create the publisher."""
        ...

    def send(self, target: Target) -> None:
        """Publish one target (control thread)."""
        ...


class PoseOutput:
    """PoseStamped of link8 for a crisp CartesianController."""

    def __init__(self, config: FrankaDriverConfig, frame_id: str) -> None:
        self._topic, self._frame_id = config.command_topic, frame_id

    def start(self, node: Node) -> None:
        """Create the publisher."""
        self._publisher = node.create_publisher(PoseStamped, self._topic, COMMAND)

    def send(self, target: Target) -> None:
        """Publish one pose."""
        self._publisher.publish(pose_stamped(target.T_base_ee, target.stamp_ns, self._frame_id))


class TrajectoryOutput:
    """JointTrajectory of one point for a JointTrajectoryController."""

    def __init__(self, config: FrankaDriverConfig, joint_names: tuple[str, ...]) -> None:
        self._topic, self._names = config.command_topic, list(joint_names)
        self._msgs = messages('trajectory_msgs.msg')
        whole, part = divmod(round(config.trajectory_time_s * 1e9), 10**9)
        self._time = Duration(sec=whole, nanosec=part)

    def start(self, node: Node) -> None:
        """Create the publisher."""
        self._publisher = node.create_publisher(self._msgs.JointTrajectory, self._topic, COMMAND)

    def send(self, target: Target) -> None:
        """Publish one set of joint angles, to be reached at rest."""
        point = self._msgs.JointTrajectoryPoint(
            positions=[float(q) for q in target.q_rad],
            velocities=[0.0] * len(self._names),
            time_from_start=self._time,
        )
        self._publisher.publish(self._msgs.JointTrajectory(joint_names=self._names, points=[point]))


def make_output(
    config: FrankaDriverConfig, joint_names: tuple[str, ...], frame_id: str
) -> TargetOutput:
    """Build the output that ``config.command`` chooses."""
    if config.command == 'joint_trajectory':
        return TrajectoryOutput(config, joint_names)
    return PoseOutput(config, frame_id)
