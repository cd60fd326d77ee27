"""WidowX-250s behind interbotix xs_sdk: joint targets, PWM gripper, effort and error guards.

Source: interbotix_ros_core jazzy, xs_sdk_obj.cpp. The driver checks neither limits nor NaN, answers
bad service requests with an empty response, and on a serial read error publishes zero ticks with a
fresh stamp (all joints near -pi), which the executor's jump and limit checks catch. Switching the
torque off is never a stop: the arm would drop.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.task import Future
from sensor_msgs.msg import JointState

from spear_ros.core.reasons import Reason
from spear_ros.robots.spec import RobotSpec
from spear_ros.ros.config import RobotConfig, WidowxDriverConfig, WidowxGripperConfig
from spear_ros.ros.conversions import ns_from_time
from spear_ros.ros.drivers.base import (
    HEALTHY,
    DriverReport,
    RateMeter,
    StateSink,
    Target,
    count_listeners,
    count_publishers,
    messages,
    nobody_listens,
    wait_for,
)
from spear_ros.ros.drivers.grippers import BinaryTarget, JamWatch, PwmGripper
from spear_ros.ros.qos import COMMAND_QUEUE, JOINTS_INPUT

_SILENT_S = 1.0
# Polled at 20 Hz: a longer interval is a pause of this process, in which it could hear nobody.
_PAUSED_S = 0.5

# Dynamixel X series, register Hardware_Error_Status.
_ERROR_BITS = {
    0: 'input voltage',
    2: 'overheating',
    3: 'motor encoder',
    4: 'electrical shock',
    5: 'overload',
}


def error_text(value: int) -> str:
    """Names of the bits of Hardware_Error_Status; empty for 0."""
    names = [name for bit, name in _ERROR_BITS.items() if value & (1 << bit)]
    return ', '.join(names) if names else (f'code {value}' if value else '')


@dataclass
class EffortGuard:
    """Trips when a joint's effort stays above its limit; Bridge's stack does the same."""

    limits_ma: tuple[float, ...]
    time_s: float
    _since: dict[int, float] = field(default_factory=dict)
    tripped: str = ''

    def update(self, names: tuple[str, ...], effort_ma: list[float], now_s: float) -> None:
        """Take the efforts of the arm's joints in the order of ``names``."""
        for i, (name, value, limit) in enumerate(
            zip(names, effort_ma, self.limits_ma, strict=True)
        ):
            if abs(value) <= limit:
                self._since.pop(i, None)
            elif now_s - self._since.setdefault(i, now_s) >= self.time_s and not self.tripped:
                self.tripped = (
                    f'joint {name} pushes with {abs(value):.0f} mA, more than its limit of '
                    f'{limit:.0f} mA: free the arm, then reset.'
                )


class WidowxDriver:
    """Driver of the Interbotix X series arms (WidowX-250s, ViperX-300s)."""

    def __init__(
        self,
        node: Node,
        spec: RobotSpec,
        config: RobotConfig,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        assert config.widowx is not None
        gripper = config.gripper_config
        assert isinstance(gripper, WidowxGripperConfig), config.gripper
        self._node, self._spec, self._config = node, spec, config.widowx
        self._arm, self._state, self._monotonic = config.arm, config.gripper_state, monotonic
        self._names = config.arm.joint_names or spec.joint_names
        self._msgs, self._srvs = (
            messages('interbotix_xs_msgs.msg'),
            messages('interbotix_xs_msgs.srv'),
        )
        self.command_topic = f'{self._config.namespace}/commands/joint_group'
        self.frame_id = spec.driver_frames.get(spec.base_frame, spec.base_frame)
        self._pwm = PwmGripper(gripper.pwm, gripper.hold_pwm, gripper.closing_time_s)
        self._target, self._jam = BinaryTarget(), JamWatch()
        self._opening: float | None = None
        self._effort = EffortGuard(self._config.effort_limits_ma, self._config.effort_time_s)
        self._rate, self._rate_problem = RateMeter(), ''
        self._modes = SetUp(self._config)
        self._registers = RegisterWatch(self._config)
        self._heard_s: float | None = None
        self._polled_s: float | None = None

    # ------------------------------------------------------------------------------------- set-up

    def start(self, sink: StateSink) -> None:
        """Create publishers, subscriptions and clients on the node."""
        node, namespace = self._node, self._config.namespace
        self._sink = sink
        self._group = node.create_publisher(
            self._msgs.JointGroupCommand, self.command_topic, COMMAND_QUEUE
        )
        self._single = node.create_publisher(
            self._msgs.JointSingleCommand, f'{namespace}/commands/joint_single', COMMAND_QUEUE
        )
        self._joints = node.create_subscription(
            JointState, self._arm.topic, self._on_joints, JOINTS_INPUT
        )
        self._modes.connect(node, self._srvs)
        self._registers.connect(node, self._srvs)

    def activate(self) -> None:
        """Set position mode and the profile times once; :meth:`poll` follows the answers."""
        self._modes.begin(self._monotonic())

    def close(self) -> None:
        """Drop the gripper's PWM, so that nothing pushes when nobody watches."""
        self._send_pwm(0.0)

    # ------------------------------------------------------------------------------------ running

    def send(self, target: Target) -> None:
        """Publish one set of joint targets, and hand the gripper its target."""
        command = self._msgs.JointGroupCommand(
            name=self._config.group, cmd=[float(q) for q in target.q_rad]
        )
        self._group.publish(command)
        if target.gripper is not None:
            self._target.update(target.gripper)

    def poll(self) -> DriverReport:
        """Drive the gripper's PWM and judge services, efforts and error registers."""
        now = self._monotonic()
        polled, self._polled_s = self._polled_s, now
        if self._heard_s is not None and polled is not None and now - polled > _PAUSED_S:
            self._heard_s = now
        pwm = self._pwm.update(self._target.wanted_open, self._opening, now)
        if pwm is not None:
            self._send_pwm(pwm)
        if self._heard_s is None or now - self._heard_s > _SILENT_S:
            self._modes.doubt()
            return DriverReport(
                Reason.DRIVER_LOST, f'{self._arm.topic} is silent: start xs_sdk (xsarm_control).'
            )
        if not count_listeners(self._node, self.command_topic):
            return nobody_listens(self.command_topic)
        problem = self._rate_problem or self._modes.poll(now)
        if problem:
            return DriverReport(Reason.DRIVER_LOST, problem)
        if self._effort.tripped:
            return DriverReport(Reason.MOTOR_ERROR, self._effort.tripped)
        report = self._registers.poll(now)
        if report.reason != Reason.NONE:
            return report
        jam = self._jam.update(self._target.wanted_open, self._opening, now)
        return DriverReport(Reason.GRIPPER_FAULT, jam) if jam else HEALTHY

    def publisher_count(self) -> int:
        """Publishers on the arm's command topic."""
        return count_publishers(self._node, self.command_topic)

    def release(self) -> None:
        """Forget the gripper's target and clear the latched effort guard."""
        self._target.forget()
        self._effort.tripped = ''

    def recover(self, progress: Callable[[str], None]) -> DriverReport:
        """Look whether the fault has gone; a motor is never rebooted from here.

        A reboot lets the arm fall, so the operator does it by hand while supporting the arm.
        """
        progress('recover 1/2: read the error registers ...')
        report = self._registers.read_now()
        if report.reason != Reason.NONE:
            return DriverReport(
                report.reason,
                f'{report.text} Support the arm (it goes limp) and call the service '
                f'{self._config.namespace}/reboot_motors.',
            )
        progress('recover 1/2: read the error registers done')
        progress('recover 2/2: set the operating mode ...')
        self._effort.tripped = ''
        problem = self._modes.run(self._monotonic)
        if problem:
            return DriverReport(Reason.DRIVER_LOST, problem)
        progress('recover 2/2: set the operating mode done')
        return HEALTHY

    def _send_pwm(self, pwm: float) -> None:
        message = self._msgs.JointSingleCommand(name=self._config.gripper, cmd=float(pwm))
        self._single.publish(message)

    def _on_joints(self, message: JointState) -> None:
        now_s = self._monotonic()
        if self._rate.tick(now_s) > self._arm.max_rate_hz:
            self._rate_problem = (
                f'{self._arm.topic} arrives at {self._rate.rate_hz:.0f} Hz, more than the '
                f'{self._arm.max_rate_hz:.0f} Hz that this process can take: lower its rate.'
            )
            self._node.destroy_subscription(self._joints)
            return
        self._heard_s = now_s
        stamp = ns_from_time(message.header.stamp)
        now = self._node.get_clock().now().nanoseconds
        index = {name: i for i, name in enumerate(message.name)}
        self._sink.on_joints(stamp, now, message.name, np.asarray(message.position, float))
        finger = index.get(self._state.joint)
        if finger is not None and finger < len(message.position):
            self._opening = self._state.opening(message.position[finger])
            self._sink.on_gripper(stamp, now, self._opening)
        if len(message.effort) == len(message.name) and all(n in index for n in self._names):
            efforts = [message.effort[index[name]] for name in self._names]
            self._effort.update(self._names, efforts, now_s)


class SetUp:
    """Sets position mode with profile times through set_operating_modes, and checks the result.

    xs_sdk switches a motor's torque off and on again while it sets its mode, so this runs once, at
    activation or recover, with the arm resting; never in operation.
    """

    def __init__(self, config: WidowxDriverConfig) -> None:
        self._config = config
        self._future: Future | None = None
        self._asked_s = 0.0
        self._wanted = False
        self._step = ''
        self._problem = 'the operating mode has not been set yet: activate the executor.'

    def connect(self, node: Node, srvs: Any) -> None:
        """Create the service clients."""
        namespace = self._config.namespace
        self._srvs = srvs
        self._set = node.create_client(srvs.OperatingModes, f'{namespace}/set_operating_modes')
        self._info = node.create_client(srvs.RobotInfo, f'{namespace}/get_robot_info')

    def begin(self, now_s: float) -> None:
        """Start over."""
        self._wanted, self._step, self._future, self._asked_s = True, 'set', None, now_s
        self._problem = 'the operating mode of the arm is being set: wait a moment.'

    def doubt(self) -> None:
        """The driver fell silent: it may come back as a new process with its own profile times.

        Not set again by itself, because that switches the torque off for a moment, and the arm may
        be in mid-air by now.
        """
        if not self._wanted and not self._problem:
            self._problem = (
                'xs_sdk was away and may have lost the operating mode: support the arm (its torque '
                'is off for a moment), call stop, then recover.'
            )

    def poll(self, now_s: float) -> str:
        """Take the next step; return what is still in the way."""
        if not self._wanted:
            return self._problem
        client = self._set if self._step == 'set' else self._info
        if self._future is None:
            if not client.service_is_ready():
                return f'the service {client.srv_name} is not there: start xs_sdk.'
            self._future, self._asked_s = client.call_async(self._request()), now_s
        elif self._future.done():
            self._finish(self._future.result())
            self._future = None
        elif now_s - self._asked_s > self._config.service_timeout_s:
            self._future = None
            return f'the service {client.srv_name} does not answer.'
        return self._problem

    def run(self, monotonic: Callable[[], float]) -> str:
        """Do it all in a thread that does not spin; return what is in the way."""
        self._wanted = False  # the polling thread keeps its hands off meanwhile
        problem = ''
        for step, client in (('set', self._set), ('check', self._info)):
            self._step = step
            if not client.service_is_ready():
                return f'the service {client.srv_name} is not there: start xs_sdk.'
            answer = wait_for(client.call_async(self._request()), self._config.service_timeout_s)
            if answer is None:
                return f'the service {client.srv_name} does not answer.'
            self._finish(answer)
            problem = self._problem
        return problem

    def _request(self) -> Any:
        if self._step == 'set':
            return self._srvs.OperatingModes.Request(
                cmd_type='group',
                name=self._config.group,
                mode='position',
                profile_type='time',
                profile_velocity=self._config.profile_velocity_ms,
                profile_acceleration=self._config.profile_acceleration_ms,
            )
        return self._srvs.RobotInfo.Request(cmd_type='group', name=self._config.group)

    def _finish(self, answer: Any) -> None:
        if self._step == 'set':
            self._step = 'check'  # the answer has no fields: ask what has become of it
            return
        self._wanted = False
        ok = answer.mode == 'position' and answer.profile_type == 'time'
        self._problem = '' if ok else (
            f'group {self._config.group!r} is in mode {answer.mode!r} with profile '
            f'{answer.profile_type!r} instead of position and time: check the group name and the '
            "driver's log."
        )  # fmt: skip


class RegisterWatch:
    """Reads Hardware_Error_Status of the arm and of the gripper in turn."""

    def __init__(self, config: WidowxDriverConfig) -> None:
        self._config = config
        self._future: Future | None = None
        self._asked_s, self._next_s = 0.0, 0.0
        self._turn, self._first_round = 0, True
        self._reports = {
            name: DriverReport(
                Reason.DRIVER_LOST,
                f'{config.error_register} of {name!r} has not been read yet: is xs_sdk up?',
            )
            for name in (config.group, config.gripper)
        }

    def connect(self, node: Node, srvs: Any) -> None:
        """Create the service client."""
        self._srvs = srvs
        self._client = node.create_client(
            srvs.RegisterValues, f'{self._config.namespace}/get_motor_registers'
        )

    def poll(self, now_s: float) -> DriverReport:
        """Ask or take an answer; return the worst of the last two answers."""
        if self._future is not None:
            if self._future.done():
                self._judge(self._turn, self._future.result())
                self._turn, self._future = 1 - self._turn, None
                if self._first_round and self._turn:
                    self._next_s = now_s  # arm waits for both
                self._first_round = False
            elif now_s - self._asked_s > self._config.service_timeout_s:
                self._future = None
                self._reports[self._config.group] = DriverReport(
                    Reason.DRIVER_LOST, f'the service {self._client.srv_name} does not answer.'
                )
        elif now_s >= self._next_s and self._client.service_is_ready():
            self._next_s, self._asked_s = now_s + 1.0 / self._config.error_poll_hz, now_s
            self._future = self._client.call_async(self._request(self._turn))
        return next((r for r in self._reports.values() if r.reason != Reason.NONE), HEALTHY)

    def read_now(self) -> DriverReport:
        """Read both in a thread that does not spin."""
        for turn in (0, 1):
            answer = wait_for(
                self._client.call_async(self._request(turn)), self._config.service_timeout_s
            )
            if answer is None:
                return DriverReport(
                    Reason.DRIVER_LOST, f'the service {self._client.srv_name} does not answer.'
                )
            self._judge(turn, answer)
        return next((r for r in self._reports.values() if r.reason != Reason.NONE), HEALTHY)

    def _request(self, turn: int) -> Any:
        kind = ('group', 'single')[turn]
        name = (self._config.group, self._config.gripper)[turn]
        return self._srvs.RegisterValues.Request(
            cmd_type=kind, name=name, reg=self._config.error_register
        )

    def _judge(self, turn: int, answer: Any) -> None:
        name = (self._config.group, self._config.gripper)[turn]
        bad = [(i, v) for i, v in enumerate(answer.values) if v]
        if not answer.values:
            text = f'{self._config.error_register} of {name!r} could not be read: check the bus.'
            self._reports[name] = DriverReport(Reason.DRIVER_LOST, text)
        elif bad:
            which = ', '.join(f'motor {i + 1}: {error_text(v)}' for i, v in bad)
            reason = (Reason.MOTOR_ERROR, Reason.GRIPPER_FAULT)[turn]
            self._reports[name] = DriverReport(reason, f'hardware error of {name!r} ({which}).')
        else:
            self._reports[name] = HEALTHY
