"""Quality of service per kind of topic, in one place, with the reason for each choice.

Subscribers of sensor data ask for best effort: that matches reliable and best-effort publishers
alike (REP 2003 advises to publish reliable and subscribe best effort; franka_ros2 >= 3.3 publishes
its convenience topics best effort, which a reliable subscriber would never hear).
"""

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy


def _profile(depth: int, *, reliable: bool, latched: bool = False) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


IMAGE_INPUT = _profile(1, reliable=False)
"""Only the newest picture counts."""
IMAGE_OUTPUT = _profile(1, reliable=True)
"""As the RealSense and ZED drivers publish."""
JOINTS_INPUT = _profile(10, reliable=False)
"""Some history: the policy interpolates the pose at the time of the picture."""
JOINTS_BEST_EFFORT = _profile(1, reliable=False)
"""As franka_robot_state_broadcaster publishes its convenience topics."""
JOINTS_RELIABLE = _profile(10, reliable=True)
"""As xs_sdk and franka_gripper publish."""
RAW_POLL = _profile(1, reliable=False)
"""A fast topic that is polled: the middleware keeps the newest message for us."""
COMMAND = _profile(1, reliable=True)
"""Targets: crisp subscribes reliable with depth 1; an old target has no value."""
COMMAND_QUEUE = _profile(10, reliable=True)
"""xs_sdk's command topics."""
CHUNK = _profile(5, reliable=True)
"""Every chunk is checked, so that three rejects in a row are counted."""
STATUS = _profile(10, reliable=True)
"""executor_status, policy_status, preview, task state."""
LATCHED = _profile(1, reliable=True, latched=True)
"""controller_manager activity: sent on change only, late joiners get the last one."""
DIAGNOSTICS = _profile(10, reliable=True)
CLOCK = _profile(1, reliable=False)
"""/clock, as rosbag2 and Gazebo publish it: only the newest time counts."""
