"""Small motions for checks, through the same door as a policy's: chunks to the executor.

The jog plays the policy: it publishes policy_status and chunks that lead the measured pose to a
goal at a low speed, so player, gate and every watchdog stand between it and the robot.
"""

import secrets
from typing import Any

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import JointState
from spear_msgs.msg import ActionChunk as ActionChunkMsg
from spear_msgs.msg import PolicyStatus

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import pose_parts, quat_slerp
from spear_ros.core.types import ActionChunk, FloatArray
from spear_ros.robots.kinematics import forward
from spear_ros.robots.spec import RobotSpec
from spear_ros.ros import qos
from spear_ros.ros.config import RobotConfig
from spear_ros.ros.conversions import chunk_to_msg, header, ns_from_time
from spear_ros.runtime.decode import decode_joints

STEP_S, HORIZON = 0.2, 5
CHECKPOINT_ID = 'jog'


class JogPolicy:
    """A policy without cameras: go to ``goal`` in a straight line, then stay.

    Args:
        node: spun by somebody else.
        config: wiring.
        spec: robot.
        speed_m_s: of the end-effector.
    """

    def __init__(
        self, node: Node, config: RobotConfig, spec: RobotSpec, speed_m_s: float = 0.03
    ) -> None:
        self._node, self._spec, self._speed = node, spec, speed_m_s
        self._names = config.arm.joint_names or spec.joint_names
        self._session, self._sequence = secrets.token_hex(4), 0
        self._instruction_id = secrets.token_hex(4)
        self.T_base_ee: FloatArray | None = None
        """(4, 4) measured."""
        self.goal: FloatArray | None = None
        """(4, 4); None = send no chunks."""
        self.gripper = 1.0
        self._stamp_ns = 0
        self._chunks = node.create_publisher(ActionChunkMsg, '/spear/action_chunk', qos.CHUNK)
        self._status = node.create_publisher(PolicyStatus, '/spear/policy_status', qos.STATUS)
        self._entities: list[Any] = [
            node.create_subscription(
                JointState, config.arm.topic, self._on_joints, qos.JOINTS_INPUT
            ),
        ]
        node.create_timer(0.1, self._send_status)
        node.create_timer(STEP_S, self._send_chunk)

    def chunk(self) -> ActionChunk | None:
        """Return the next chunk from the measured pose towards the goal."""
        if self.goal is None or self.T_base_ee is None:
            return None
        p, q = pose_parts(self.T_base_ee)
        p_goal, q_goal = pose_parts(self.goal)
        distance = float(np.linalg.norm(p_goal - p))
        steps = np.arange(1, HORIZON + 1)
        share = np.minimum(steps * self._speed * STEP_S / max(distance, 1e-6), 1.0)
        self._sequence += 1
        return ActionChunk(
            t_obs_ns=self._stamp_ns,
            step_s=STEP_S,
            embodiment=self._spec.embodiment,
            base_frame=self._spec.base_frame,
            ee_frame=self._spec.ee_frame,
            p_base_ee=p + share[:, None] * (p_goal - p),
            q_base_ee=quat_slerp(np.tile(q, (HORIZON, 1)), np.tile(q_goal, (HORIZON, 1)), share),
            gripper=np.full(HORIZON, self.gripper),
            anchor_p=p,
            anchor_q=q,
            instruction_id=self._instruction_id,
            checkpoint_id=CHECKPOINT_ID,
            policy_session=self._session,
            sequence=self._sequence,
        )

    def _on_joints(self, message: JointState) -> None:
        try:
            q = decode_joints(message, self._names)
        except UserError:
            return  # the executor faults and says why
        self.T_base_ee = forward(self._spec, q)
        self._stamp_ns = ns_from_time(message.header.stamp)

    def _send_status(self) -> None:
        self._status.publish(
            PolicyStatus(
                header=header(self._node.get_clock().now().nanoseconds),
                lifecycle_state='active',
                policy='jog',
                policy_session=self._session,
                checkpoint_id=CHECKPOINT_ID,
                embodiment=self._spec.embodiment,
                ee_frame=self._spec.ee_frame,
                step_s=STEP_S,
                horizon=HORIZON,
                instruction='jog',
                instruction_id=self._instruction_id,
                ready=True,
            )
        )

    def _send_chunk(self) -> None:
        chunk = self.chunk()
        if chunk is not None:
            self._chunks.publish(chunk_to_msg(chunk))
