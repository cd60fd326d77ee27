"""Franka FR3 behind franka_ros2 and a crisp CartesianController (or a trajectory controller).

Commands are PoseStamped on ``/target_pose``: crisp ignores the header's frame, holds its last
target for ever, checks neither NaN nor age, and ignores everything while more than one node
publishes there; all of that is ours to guard. The fall-back stands in ``franka_targets``. The
robot's mode and errors exist only in the 1 kHz ``robot_state``: one raw best-effort subscription
on a node that nothing spins is polled, at 3-4 % of a core instead of the 48 % of a callback.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rclpy.action import ActionClient
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import JointState

from spear_ros.core.reasons import Reason
from spear_ros.robots.kinematics import forward
from spear_ros.robots.spec import RobotSpec
from spear_ros.ros.config import FrankaDriverConfig, RobotConfig
from spear_ros.ros.conversions import ns_from_time
from spear_ros.ros.drivers.base import (
    HEALTHY,
    DriverReport,
    GripperAdapter,
    RateMeter,
    StateSink,
    Target,
    count_listeners,
    count_publishers,
    messages,
    nobody_listens,
    wait_for,
)
from spear_ros.ros.drivers.franka_targets import make_output
from spear_ros.ros.qos import JOINTS_INPUT, LATCHED, RAW_POLL
from spear_ros.runtime.executor_types import Command

_ACTIVE = 3  # lifecycle_msgs/State.PRIMARY_STATE_ACTIVE

_CAUSE_WAIT_S = 0.15
_MODE_LAG_S = 0.03
_FRESH_S = 0.5
_ARRIVES_S = 0.2
"""A message to a controller of the same computer."""

# franka_msgs/FrankaRobotState, constants of robot_mode.
_OTHER, _IDLE, _MOVE, _GUIDING, _REFLEX, _USER_STOPPED, _AUTOMATIC_RECOVERY = range(7)


@dataclass
class FrankaHealth:
    """What franka_ros2 says about the robot; judged without ROS types."""

    hardware_component: str
    controller: str
    max_age_s: float
    robot_mode: int | None = None
    mode_seen_s: float | None = None
    errors: list[str] = field(default_factory=list)
    activity: dict[str, str] | None = None
    """Controllers and hardware components -> lifecycle label."""
    activity_seen_s: float = 0.0
    rate_problem: str = ''
    command_topic: str = ''
    listeners: int = 1
    """Subscribers of the target topic that can be the controller."""

    def judge(self, now_s: float) -> DriverReport:
        """Return the first thing that keeps the robot from being driven."""
        if self.mode_seen_s is None or now_s - self.mode_seen_s > self.max_age_s:
            seen = 'never' if self.mode_seen_s is None else f'{now_s - self.mode_seen_s:.1f} s ago'
            return DriverReport(
                Reason.DRIVER_LOST,
                f'robot_state was last heard {seen}: start franka_ros2 and its '
                'franka_robot_state_broadcaster.',
            )
        errors = f' ({", ".join(self.errors)})' if self.errors else ''
        if self.robot_mode in (_REFLEX, _AUTOMATIC_RECOVERY):
            return DriverReport(
                Reason.ROBOT_REFLEX,
                f'the robot stopped by reflex{errors}: look for the cause, then call recover.',
            )
        if self.robot_mode == _USER_STOPPED:
            return DriverReport(
                Reason.USER_STOP, 'the user stop is pressed: release it, then call recover.'
            )
        if self.robot_mode == _GUIDING:
            return DriverReport(
                Reason.USER_STOP, 'somebody guides the robot by hand: let go, then call recover.'
            )
        if self.rate_problem:
            return DriverReport(Reason.DRIVER_LOST, self.rate_problem)
        if not self.listeners:
            return nobody_listens(self.command_topic)
        return self._judge_activity(now_s) or self._judge_mode()

    def _cause_is_known(self, now_s: float) -> bool:
        """A reflex also takes the controllers down: wait a moment for the mode that says so."""
        fresh = self.mode_seen_s is not None and (
            self.mode_seen_s > self.activity_seen_s + _MODE_LAG_S
        )
        return fresh or now_s - self.activity_seen_s > _CAUSE_WAIT_S

    def _judge_activity(self, now_s: float) -> DriverReport | None:
        if self.activity is None:
            return DriverReport(
                Reason.DRIVER_LOST,
                'the activity of the controller_manager is unknown: is franka_ros2 (jazzy) up?',
            )
        for kind, name in (
            ('hardware component', self.hardware_component),
            ('controller', self.controller),
        ):
            state = self.activity.get(name, 'not loaded')
            if state != 'active' and self._cause_is_known(now_s):
                return DriverReport(
                    Reason.DRIVER_LOST, f'the {kind} {name} is {state}: activate it (recover).'
                )
        return None

    def _judge_mode(self) -> DriverReport:
        if self.robot_mode != _MOVE:
            name = {_OTHER: 'OTHER', _IDLE: 'IDLE'}.get(self.robot_mode or 0, str(self.robot_mode))
            return DriverReport(
                Reason.DRIVER_LOST,
                f'the robot is in mode {name} although its controller is active: call recover.',
            )
        return HEALTHY


class FrankaDriver:
    """Driver of FR3 (and, in simulation, Panda)."""

    def __init__(
        self,
        node: Node,
        spec: RobotSpec,
        config: RobotConfig,
        gripper: GripperAdapter,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        assert config.franka is not None
        self._node, self._spec, self._gripper = node, spec, gripper
        self._config: FrankaDriverConfig = config.franka
        self._arm, self._monotonic = config.arm, monotonic
        self.command_topic = self._config.command_topic
        self.frame_id = spec.driver_frames.get(spec.base_frame, spec.base_frame)
        names = self._arm.joint_names or spec.joint_names
        self._output = make_output(self._config, names, self.frame_id)
        self._msgs = messages('franka_msgs.msg')
        self._actions = messages('franka_msgs.action')
        self._cm_msgs = messages('controller_manager_msgs.msg')
        self._cm_srvs = messages('controller_manager_msgs.srv')
        self._rate = RateMeter()
        self.health = FrankaHealth(
            hardware_component=self._config.hardware_component,
            controller=self._config.controller,
            max_age_s=self._config.robot_state_max_age_s,
            command_topic=self.command_topic,
        )
        self._next_state_poll = 0.0
        self._names = names
        self._measured: tuple[float, JointState] | None = None

    # ------------------------------------------------------------------------------------- set-up

    def start(self, sink: StateSink) -> None:
        """Create everything on the node, and the raw subscription on a node of its own."""
        node, config = self._node, self._config
        self._sink = sink
        self._output.start(node)
        self._joints = node.create_subscription(
            JointState, self._arm.topic, self._on_joints, JOINTS_INPUT
        )
        manager = config.controller_manager
        node.create_subscription(
            self._cm_msgs.ControllerManagerActivity,
            f'{manager}/activity',
            self._on_activity,
            LATCHED,
        )
        self._recovery = ActionClient(
            node, self._actions.ErrorRecovery, config.error_recovery_action
        )
        self._set_hardware = node.create_client(
            self._cm_srvs.SetHardwareComponentState, f'{manager}/set_hardware_component_state'
        )
        self._switch = node.create_client(
            self._cm_srvs.SwitchController, f'{manager}/switch_controller'
        )
        self._poll_node = Node(
            f'{node.get_name()}_robot_state',
            namespace=node.get_namespace(),
            context=node.context,
            use_global_arguments=False,
            start_parameter_services=False,
            enable_rosout=False,
        )
        self._robot_state: Any = self._poll_node.create_subscription(
            self._msgs.FrankaRobotState, config.robot_state_topic, lambda _: None, RAW_POLL
        )
        self._gripper.start(sink)

    def activate(self) -> None:
        """Nothing to set up: gains and frames belong to the controller's own file."""

    def close(self) -> None:
        """Destroy the polled node and the clients."""
        self._gripper.close()
        self._recovery.destroy()
        self._poll_node.destroy_node()

    # ------------------------------------------------------------------------------------ running

    def send(self, target: Target) -> None:
        """Publish one target of the arm, and hand the gripper its own."""
        self._output.send(target)
        if target.gripper is not None:
            self._gripper.command(target.gripper)

    def poll(self) -> DriverReport:
        """Take the newest robot_state and judge."""
        now = self._monotonic()
        if now >= self._next_state_poll:
            self._next_state_poll = now + 1.0 / self._config.robot_state_poll_hz - 0.005
            self._take_robot_state(now)
        self.health.listeners = count_listeners(self._node, self.command_topic)
        report = self.health.judge(now)
        gripper = self._gripper.poll()
        if report.reason == Reason.NONE and gripper:
            return DriverReport(Reason.GRIPPER_FAULT, gripper)
        return report

    def publisher_count(self) -> int:
        """Publishers on the target topic."""
        return count_publishers(self._node, self.command_topic)

    def hold_gripper(self) -> None:
        """Begin nothing new with the gripper."""
        self._gripper.hold()

    def release(self) -> None:
        """Forget the gripper's target and its trouble."""
        self._gripper.release()

    # ----------------------------------------------------------------------------------- recovery

    def recover(self, progress: Callable[[str], None]) -> DriverReport:
        """Error recovery, hardware component, controller; each step is reported.

        Source: franka_hardware/doc/index.rst of franka_ros2. Whatever the controller has kept from
        before, it is told where the arm stands just before it is activated.
        """
        if self.health.robot_mode in (_USER_STOPPED, _GUIDING):
            return self.health.judge(self._monotonic())
        steps = (
            ('error recovery', self._recover_errors),
            ('hardware component', self._activate_hardware),
            ('controller', self._activate_controller),
        )
        for number, (name, step) in enumerate(steps, start=1):
            progress(f'recover {number}/3: {name} ...')
            problem = step()
            if problem:
                return DriverReport(Reason.DRIVER_LOST, f'recover stopped at {name}: {problem}')
            progress(f'recover {number}/3: {name} done')
        return self._wait_until_healthy()

    def _recover_errors(self) -> str:
        if self.health.robot_mode not in (_REFLEX, _AUTOMATIC_RECOVERY) and not self.health.errors:
            return ''
        timeout = self._config.recover_timeout_s
        if not self._recovery.server_is_ready():
            return f'the action {self._config.error_recovery_action} is not there.'
        goal = self._actions.ErrorRecovery.Goal()
        handle = wait_for(self._recovery.send_goal_async(goal), timeout)
        if handle is None or not handle.accepted:
            return 'the robot did not accept the error recovery.'
        answer = wait_for(handle.get_result_async(), timeout)
        if answer is None or answer.status != 4:  # GoalStatus.STATUS_SUCCEEDED
            return 'the error recovery did not succeed; acknowledge the error in Desk.'
        return ''

    def _activate_hardware(self) -> str:
        name = self._config.hardware_component
        if (self.health.activity or {}).get(name) == 'active':
            return ''
        request = self._cm_srvs.SetHardwareComponentState.Request(name=name)
        request.target_state.id, request.target_state.label = _ACTIVE, 'active'
        return self._ask(self._set_hardware, request)

    def _activate_controller(self) -> str:
        name = self._config.controller
        if (self.health.activity or {}).get(name) == 'active':
            return ''
        problem = self._stand_where_measured()
        if problem:
            return problem
        request = self._cm_srvs.SwitchController.Request(
            activate_controllers=[name],
            strictness=self._cm_srvs.SwitchController.Request.STRICT,
            activate_asap=True,
        )
        request.timeout.sec = int(self._config.recover_timeout_s)
        return self._ask(self._switch, request)

    def _stand_where_measured(self) -> str:
        """Replace the target that crisp has kept.

        Targets that reach an inactive crisp controller are followed once it is activated, however
        old: the last ones from before a reflex, though the arm may have been led away since
        (crisp_controllers, cartesian_controller.cpp: ``new_target_pose_``).
        """
        heard_s, message = self._measured or (-_FRESH_S, JointState())
        index = {name: i for i, name in enumerate(message.name)}
        if (
            self._monotonic() - heard_s > _FRESH_S
            or len(message.position) != len(index)
            or not all(name in index for name in self._names)
        ):
            return f'{self._arm.topic} does not say where the arm stands.'
        q = np.array([message.position[index[name]] for name in self._names])
        if not np.isfinite(q).all():
            return f'{self._arm.topic} has an angle that is not finite.'
        now = self._node.get_clock().now().nanoseconds
        T = forward(self._spec, q)
        self._output.send(Command(stamp_ns=now, T_base_ee=T, q_rad=q, gripper=None, holding=True))
        time.sleep(_ARRIVES_S)
        return ''

    def _ask(self, client: Any, request: Any) -> str:
        if not client.service_is_ready():
            return f'the service {client.srv_name} is not there.'
        answer = wait_for(client.call_async(request), self._config.recover_timeout_s)
        if answer is None:
            return f'the service {client.srv_name} did not answer.'
        return '' if answer.ok else f'{client.srv_name} refused {getattr(answer, "message", "")}.'

    def _wait_until_healthy(self) -> DriverReport:
        deadline = self._monotonic() + self._config.recover_timeout_s
        while True:
            report = self.health.judge(self._monotonic())
            if report.reason == Reason.NONE or self._monotonic() > deadline:
                return report
            time.sleep(0.05)

    # ---------------------------------------------------------------------------------- callbacks

    def _on_joints(self, message: JointState) -> None:
        if self._rate.tick(self._monotonic()) > self._arm.max_rate_hz:
            self.health.rate_problem = (
                f'{self._arm.topic} arrives at {self._rate.rate_hz:.0f} Hz, more than the '
                f'{self._arm.max_rate_hz:.0f} Hz that this process can take: set the '
                "broadcaster's convenience_publish_rate to 100 and restart the executor."
            )
            self._node.destroy_subscription(self._joints)
            return
        now = self._node.get_clock().now().nanoseconds
        q = np.asarray(message.position, float)
        self._measured = (self._monotonic(), message)
        self._sink.on_joints(ns_from_time(message.header.stamp), now, message.name, q)

    def _on_activity(self, message: Any) -> None:
        entries = [*message.controllers, *message.hardware_components]
        self.health.activity = {entry.name: entry.state.label for entry in entries}
        self.health.activity_seen_s = self._monotonic()

    def _take_robot_state(self, now_s: float) -> None:
        taken = self._robot_state.handle.take_message(self._msgs.FrankaRobotState, True)
        if taken is None:
            return
        state = deserialize_message(bytes(taken[0]), self._msgs.FrankaRobotState)
        self.health.robot_mode, self.health.mode_seen_s = int(state.robot_mode), now_s
        errors = state.current_errors
        names = errors.get_fields_and_field_types()
        self.health.errors = [name for name in names if getattr(errors, name)]
