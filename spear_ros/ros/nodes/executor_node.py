"""executor_node: the safety boundary, around runtime.executor.Executor, whose logic has no ROS.

Two threads: this node's executor stores messages and answers services; the control thread ticks and
sends. The node never writes to disk and never loads torch.
"""

import gc
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nav_msgs.msg import Path as PathMsg
from rcl_interfaces.msg import SetParametersResult
from rclpy.parameter import Parameter
from spear_msgs.msg import ActionChunk, ExecutorStatus, PolicyStatus
from std_srvs.srv import Trigger

from spear_ros.core.errors import UserError
from spear_ros.core.reasons import SILENT_REASONS, Reason
from spear_ros.robots.registry import get_robot
from spear_ros.ros import qos
from spear_ros.ros.config import WiringParameters, robot_config
from spear_ros.ros.control_loop import ControlLoop, prepare_process
from spear_ros.ros.conversions import chunk_from_msg, path_to_msg, policy_health_from_msg
from spear_ros.ros.diagnostics import Diagnosis, Diagnostics
from spear_ros.ros.drivers.base import DriverReport
from spear_ros.ros.drivers.registry import make_driver
from spear_ros.ros.executor_report import diagnoses, status
from spear_ros.ros.lifecycle import AutostartNode, run_node
from spear_ros.ros.parameters import declare_parameters
from spear_ros.runtime.executor import Executor
from spear_ros.runtime.executor_types import Answer, DriverState, ExecutorSettings
from spear_ros.runtime.safety import load_limits
from spear_ros.runtime.state_machine import State

_STATUS_HZ, _DRIVER_HZ, _PREVIEW_HZ = 10.0, 20.0, 5.0
_COME_TO_REST_S = 2.0
_Handler = Callable[[Trigger.Request, Trigger.Response], Trigger.Response]
_REQUESTS = ('arm', 'disarm', 'stop', 'reset', 'home', 'recover')


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutorParameters:
    """ROS parameters of this node beside the wiring."""

    speed_scale: float = field(
        default=1.0,
        metadata={
            'description': 'multiplies velocities, not braking',
            'min': 0.05,
            'max': 1.0,
            'read_only': False,
        },
    )
    safety: str = field(
        default='', metadata={'description': 'YAML of limits instead of config/safety/<family>'}
    )
    preview_only: bool = field(
        default=False,
        metadata={'description': 'never arm: chunks are judged and previewed (replay of a bag)'},
    )
    require_policy: bool = field(
        default=True, metadata={'description': 'false: arm without a policy, to home and jog'}
    )


class ExecutorNode(AutostartNode):
    """Services, topics and threads around one Executor and one driver."""

    def __init__(self) -> None:
        super().__init__('executor_node')
        wiring = declare_parameters(self, WiringParameters)
        parameters = declare_parameters(self, ExecutorParameters)
        self._config = robot_config(wiring)
        self._preview_only = parameters.preview_only
        self._spec = get_robot(self._config.model, self._config.gripper)
        limits = load_limits(self._spec, Path(parameters.safety) if parameters.safety else None)
        self._executor = Executor(
            self._spec,
            limits,
            self._now,
            ExecutorSettings(
                speed_scale=parameters.speed_scale,
                arm_max_age_s=self._config.arm.max_age_s,
                gripper_max_age_s=self._config.gripper_state.max_age_s,
                require_policy=parameters.require_policy,
                joint_names=self._config.arm.joint_names,
                give_way=None if self._config.widowx is None else self._config.widowx.give_way,
            ),
            None if self.get_parameter('use_sim_time').value else time.monotonic_ns,
        )
        self._driver = make_driver(self, self._spec, self._config)
        self._loop: ControlLoop | None = None
        self._recovery: threading.Thread | None = None
        self._report = DriverReport(Reason.DRIVER_LOST, 'not configured yet')
        self._seen = (State.DISARMED, Reason.NONE, '')
        self.add_on_set_parameters_callback(self._on_parameters)
        self._create_outputs()

    # ---------------------------------------------------------------------------------- lifecycle

    def configure(self) -> None:
        """Listen to the robot and to the policy."""
        self._driver.start(self._executor)
        self.create_subscription(ActionChunk, '/spear/action_chunk', self._on_chunk, qos.CHUNK)
        self.create_subscription(PolicyStatus, '/spear/policy_status', self._on_policy, qos.STATUS)
        self.create_timer(1.0 / _DRIVER_HZ, self._poll_driver)

    def activate(self) -> None:
        """Set the robot's driver up and start the control thread."""
        self._driver.activate()
        self._loop = ControlLoop(
            self._executor,
            self._driver.send,
            self._spec.control_rate_hz,
            self._after_tick,
        )
        gc.collect()
        gc.freeze()  # what lives now lives for ever: spare the control thread its collection
        self._loop.start()
        self.get_logger().info(f'{self._spec.name}: active, disarmed')

    def deactivate(self) -> None:
        """Brake to standstill, then end the control thread."""
        if self._loop is None:
            return
        self._executor.disarm()
        deadline = time.monotonic() + _COME_TO_REST_S
        while time.monotonic() < deadline and not self._at_rest():
            time.sleep(0.01)
        self._loop.stop()
        self._loop = None
        # The arm may be moved by hand before the next activation.
        self._executor.drop_target()

    def cleanup(self) -> None:
        """Refuse: the driver's subscriptions live as long as the process."""
        raise UserError('executor_node cannot be cleaned up; end the process and start it again.')

    def close(self) -> None:
        """Bring the robot to rest before the process ends."""
        self.deactivate()
        if self._recovery is not None:
            self._recovery.join(1.0)
        if self.lifecycle_state != 'unconfigured':
            self._driver.close()

    def _at_rest(self) -> bool:
        now = self._executor.snapshot()
        return now.state == State.DISARMED or (now.state == State.FAULT and now.standstill)

    # -------------------------------------------------------------------------------------- inputs

    def _on_chunk(self, message: ActionChunk) -> None:
        rejection = self._executor.on_chunk(chunk_from_msg(message), self._now())
        if rejection is not None:
            self.get_logger().warning(
                f'chunk {message.sequence} rejected, {rejection.reason.name}: {rejection.text}',
                throttle_duration_sec=1.0,
            )

    def _on_policy(self, message: PolicyStatus) -> None:
        self._executor.on_policy_status(policy_health_from_msg(message, self._now()))

    def _poll_driver(self) -> None:
        self._report = report = self._driver.poll()
        state = DriverState(received_ns=self._now(), reason=report.reason, text=report.text)
        self._executor.on_driver(state)
        self._executor.on_publisher_count(self._driver.publisher_count())
        if self._executor.take_recovery():
            self._recovery = threading.Thread(target=self._recover, name='recovery', daemon=True)
            self._recovery.start()

    def _recover(self) -> None:
        report = DriverReport(Reason.INTERNAL_ERROR, 'see the log')
        try:
            report = self._driver.recover(self._executor.on_recovery)
        except Exception:  # reset waits for the end
            self.get_logger().error(traceback.format_exc())
        success = report.reason == Reason.NONE
        self._executor.on_recovery(report.text or 'recovered', finished=True, success=success)

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            if parameter.name == 'speed_scale':
                try:
                    self._executor.set_speed_scale(float(parameter.value))
                except UserError as error:
                    return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    # ------------------------------------------------------------------------------------- outputs

    def _create_outputs(self) -> None:
        self._status = self.create_publisher(ExecutorStatus, '/spear/executor_status', qos.STATUS)
        self._preview = self.create_publisher(PathMsg, '/spear/preview', qos.STATUS)
        self._changed = self.create_guard_condition(self._on_change)
        self.create_timer(1.0 / _STATUS_HZ, self._send_status)
        self.create_timer(1.0 / _PREVIEW_HZ, self._send_preview)
        for name in _REQUESTS:
            self.create_service(Trigger, f'/spear/executor_node/{name}', self._handler(name))
        Diagnostics(self, self._spec.name, self._diagnose)

    def _handler(self, name: str) -> _Handler:
        def handle(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            answer = self._request(name)
            response.success, response.message = answer.accepted, answer.text
            self.get_logger().info(f'{name}: {answer.text}')
            self._send_status()
            return response

        return handle

    def _request(self, name: str) -> Answer:
        if name == 'arm' and self._preview_only:
            return Answer(False, 'this is a replay: the executor stays disarmed (preview_only).')
        if self._loop is not None and self._loop.failure:
            return Answer(
                False,
                'the control thread has ended with an error (see the log) and nothing is sent any '
                'more: the arm stands at its last target; restart executor_node.',
            )
        if name in ('arm', 'home', 'recover') and self.lifecycle_state != 'active':
            return Answer(
                False, f'executor_node is {self.lifecycle_state}: activate it, then {name}.'
            )
        return getattr(self._executor, name)()  # type: ignore[no-any-return]

    def _after_tick(self) -> None:
        """In the control thread: wake the node when something changed."""
        seen = self._executor.status_key()
        if seen != self._seen or (self._loop is not None and self._loop.failure):
            self._seen = seen
            self._changed.trigger()

    def _on_change(self) -> None:
        if self._loop is not None and self._loop.failure:
            self.get_logger().error(self._loop.failure, once=True)
            self._executor.fail('the control thread has ended with an error; see the log.')
        snapshot = self._executor.snapshot()
        self.get_logger().info(f'{snapshot.state.name} {snapshot.reason.name} {snapshot.text}')
        if snapshot.reason == Reason.INTERNAL_ERROR:
            self.get_logger().error(self._executor.internal_error)
        if snapshot.reason in SILENT_REASONS or snapshot.state == State.DISARMED:
            self._driver.release()
        elif snapshot.state == State.FAULT:
            self._driver.hold_gripper()
        self._send_status()

    def _send_status(self) -> None:
        self._status.publish(status(self._executor.snapshot(), self._now(), self._loop))

    def _send_preview(self) -> None:
        poses = self._executor.preview()
        self._preview.publish(path_to_msg(poses, self._now(), self._driver.frame_id))

    def _diagnose(self) -> list[Diagnosis]:
        if self._loop is not None and not self._loop.realtime:
            self.get_logger().warning(self._loop.priority, once=True)
        return diagnoses(self._executor.snapshot(), self._report, self._loop)

    def _now(self) -> int:
        return int(self.get_clock().now().nanoseconds)


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    prepare_process()
    return run_node(ExecutorNode, args)


if __name__ == '__main__':
    sys.exit(main())
