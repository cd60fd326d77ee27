"""replay_node: a recorded bag onto the robot's own topics, with /clock. The robot stays disarmed.

The bag is read through the same topic map and decoding as ``spear replay``; what comes out are the
driver's messages, so that policy_node and executor_node run unchanged on bag time
(``use_sim_time``). Timers of such nodes stand still without a clock: until the policy is active the
clock runs an hour before the bag's start, then it leaps to it.
"""

import threading
import time
from dataclasses import dataclass, field

import rclpy
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from spear_msgs.msg import PolicyStatus
from spear_msgs.srv import SetInstruction

from spear_ros.core.errors import UserError
from spear_ros.data.bags import BagReader, load_topic_map
from spear_ros.processing.embodiments import default_action_specs
from spear_ros.robots.registry import get_robot
from spear_ros.ros import qos
from spear_ros.ros.config import WiringParameters, robot_config
from spear_ros.ros.conversions import image_to_msg, joint_state_msg, time_from_ns
from spear_ros.ros.lifecycle import run_node
from spear_ros.ros.parameters import declare_parameters
from spear_ros.ros.playback import ARM, GRIPPER, INSTRUCTION, Event, Playback

_CLOCK_STEP_S = 0.01
_PRELUDE_NS = 3600 * 1_000_000_000
_TAIL_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayParameters:
    """ROS parameters of replay_node beside those of the wiring."""

    bag: str = field(default='', metadata={'description': 'rosbag2 folder, .mcap, .db3 or .bag'})
    map: str = field(default='', metadata={'description': 'topic map (MAP.yaml)'})
    rate: float = field(
        default=1.0, metadata={'description': 'bag seconds per second', 'min': 0.1, 'max': 10.0}
    )
    wait_for_policy_s: float = field(
        default=90.0,
        metadata={'description': 'longest wait for an active policy', 'min': 0.0, 'max': 600.0},
    )


class ReplayNode(Node):
    """See the module's docstring."""

    def __init__(self) -> None:
        super().__init__('replay_node')
        self._config = robot_config(declare_parameters(self, WiringParameters))
        self._parameters = declare_parameters(self, ReplayParameters)
        if not self._parameters.bag or not self._parameters.map:
            raise UserError('parameters bag and map are needed: the recording and its MAP.yaml.')
        self._robot = get_robot(self._config.model)
        self._map = load_topic_map(self._parameters.map)
        self._readers = [self._open() for _ in range(2)]
        self._playback = Playback(*self._readers)
        self._clock = self.create_publisher(Clock, '/clock', qos.CLOCK)
        self._cameras = {
            name: self.create_publisher(Image, camera.topic, qos.IMAGE_OUTPUT)
            for name, camera in self._config.camera_topics.items()
        }
        arm = self._config.arm.topic
        self._arm = self.create_publisher(JointState, arm, qos.JOINTS_RELIABLE)
        self._gripper = self.create_publisher(
            JointState, self._config.gripper_state.topic, qos.JOINTS_RELIABLE
        )
        self._instruct = self.create_client(SetInstruction, '/spear/policy_node/set_instruction')
        self._policy_state = ''
        self.create_subscription(
            PolicyStatus, '/spear/policy_status', self._on_policy_status, qos.STATUS
        )
        self._opening = 1.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._play, name='playback', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop playing."""
        self._stop.set()
        self._thread.join(2.0)
        for reader in self._readers:
            reader.close()

    def _open(self) -> BagReader:
        spec = default_action_specs()[self._map.embodiment]
        return BagReader(
            self._parameters.bag,
            self._map,
            self._robot,
            reference_rotation=spec.reference_rotation,
        )

    def _on_policy_status(self, message: PolicyStatus) -> None:
        self._policy_state = message.lifecycle_state

    def _play(self) -> None:
        self._prelude()
        self.get_logger().info(f'playing {self._parameters.bag}')
        if self._map.instruction_topic is None:
            self._send_instruction(self._map.instruction)
        start = time.monotonic()
        origin_ns = self._readers[0].start_ns
        self._tick(origin_ns)
        clock_ns = origin_ns
        for event in self._playback.events():
            while clock_ns < event.time_ns and not self._stop.is_set():
                clock_ns = min(event.time_ns, clock_ns + round(_CLOCK_STEP_S * 1e9))
                self._sleep_until(start + (clock_ns - origin_ns) * 1e-9 / self._parameters.rate)
                self._tick(clock_ns)
            if self._stop.is_set():
                return
            self._publish(event)
        for _ in range(round(_TAIL_S / _CLOCK_STEP_S)):
            clock_ns += round(_CLOCK_STEP_S * 1e9)
            self._tick(clock_ns)
            self._stop.wait(_CLOCK_STEP_S)
        self._finish()

    def _prelude(self) -> None:
        origin_ns = self._readers[0].start_ns - _PRELUDE_NS
        start = time.monotonic()
        while not self._stop.wait(_CLOCK_STEP_S):
            elapsed = time.monotonic() - start
            self._tick(origin_ns + round(elapsed * 1e9))
            if self._policy_state == 'active':
                return
            if elapsed > self._parameters.wait_for_policy_s:
                self.get_logger().warning('no active policy_node; playing without one')
                return

    def _finish(self) -> None:
        c = self._playback.counts
        self.get_logger().info(
            f'the bag has been replayed: {c.events} messages out, {c.unusable} undecodable, '
            f'{c.unreachable} poses without joint angles, {c.gaps} gaps of the arm'
        )
        for damage in self._readers[0].damage:
            self.get_logger().error(damage)
        rclpy.try_shutdown()

    def _sleep_until(self, monotonic_s: float) -> None:
        left = monotonic_s - time.monotonic()
        if left > 0:
            self._stop.wait(left)

    def _tick(self, time_ns: int) -> None:
        self._clock.publish(Clock(clock=time_from_ns(time_ns)))

    def _publish(self, event: Event) -> None:
        if event.stream in self._cameras:
            camera = self._config.camera_topics[event.stream]
            message = image_to_msg(event.value, event.time_ns, camera.frame_id)  # type: ignore[arg-type]
            self._cameras[event.stream].publish(message)
        elif event.stream == INSTRUCTION:
            self._send_instruction(str(event.value))
        elif event.stream == GRIPPER:
            self._opening = float(event.value)  # type: ignore[arg-type]
            self._publish_gripper(event.time_ns)
        elif event.stream == ARM:
            self._publish_arm(event)

    def _publish_arm(self, event: Event) -> None:
        names = list(self._config.arm.joint_names or self._robot.joint_names)
        positions = [float(v) for v in event.value]  # type: ignore[union-attr]
        state = self._config.gripper_state
        if state.topic == self._config.arm.topic:  # xs_sdk: one message carries both
            names.append(state.joint)
            positions.append(self._joint_value())
        self._arm.publish(joint_state_msg(event.time_ns, names, positions))

    def _publish_gripper(self, time_ns: int) -> None:
        state = self._config.gripper_state
        if state.topic != self._config.arm.topic:
            self._gripper.publish(joint_state_msg(time_ns, [state.joint], [self._joint_value()]))

    def _joint_value(self) -> float:
        state = self._config.gripper_state
        return state.closed + self._opening * (state.open - state.closed)

    def _send_instruction(self, text: str) -> None:
        if self._instruct.service_is_ready():
            self._instruct.call_async(SetInstruction.Request(instruction=text))
        else:
            self.get_logger().warning(f'nobody takes the instruction "{text}"')


def main(args: list[str] | None = None) -> int:
    """Console script."""
    return run_node(ReplayNode, args)


if __name__ == '__main__':
    raise SystemExit(main())
