"""The services of interbotix xs_sdk that the driver asks: operating mode and error registers.

Source: interbotix_ros_core jazzy, xs_sdk_obj.cpp; bad requests are answered by an empty response.
"""

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.task import Future

from spear_ros.core.reasons import Reason
from spear_ros.ros.config import WidowxDriverConfig
from spear_ros.ros.drivers.base import HEALTHY, DriverReport, wait_for

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
