"""The services of interbotix xs_sdk that the driver asks: operating mode and error registers.

Source: interbotix_ros_core jazzy, xs_sdk_obj.cpp; bad requests are answered by an empty response.
"""

from collections.abc import Generator
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


Talk = Generator[tuple[Any, Any], Any, str]
"""Yields (client, request), is sent each answer, and returns what is in the way."""


class SetUp:
    """Sees to position mode with profile times; sets them only where they are not.

    xs_sdk switches a motor's torque off and on again while it sets its mode. So it is asked first,
    and told only if something differs: once after xs_sdk was started, with the arm resting. An
    executor that is started again beside a running xs_sdk leaves the arm alone.
    """

    def __init__(self, config: WidowxDriverConfig) -> None:
        self._config = config
        self._talk: Talk | None = None
        self._asked: tuple[Any, Any] | None = None
        self._future: Future | None = None
        self._asked_s = 0.0
        self._problem = 'the operating mode has not been set yet: activate the executor.'

    def connect(self, node: Node, srvs: Any) -> None:
        """Create the service clients."""
        namespace = self._config.namespace
        self._srvs = srvs
        self._set = node.create_client(srvs.OperatingModes, f'{namespace}/set_operating_modes')
        self._info = node.create_client(srvs.RobotInfo, f'{namespace}/get_robot_info')
        self._read = node.create_client(srvs.RegisterValues, f'{namespace}/get_motor_registers')

    def begin(self, now_s: float) -> None:
        """Start over."""
        self._talk = self._conversation()
        self._asked, self._future, self._asked_s = next(self._talk), None, now_s
        self._problem = 'the operating mode of the arm is being checked: wait a moment.'

    def doubt(self) -> None:
        """The driver fell silent: it may come back as a new process with its own profile times.

        Not set again by itself, because that switches the torque off for a moment, and the arm may
        be in mid-air by now.
        """
        if self._talk is None and not self._problem:
            self._problem = (
                'xs_sdk was away and may have lost the operating mode: support the arm (its torque '
                'is off for a moment), call stop, then recover.'
            )

    def poll(self, now_s: float) -> str:
        """Take the next step; return what is still in the way."""
        if self._talk is None or self._asked is None:
            return self._problem
        client, request = self._asked
        if self._future is None:
            if not client.service_is_ready():
                return f'the service {client.srv_name} is not there: start xs_sdk.'
            self._future, self._asked_s = client.call_async(request), now_s
        elif self._future.done():
            answer, self._future = self._future.result(), None
            self._next(self._talk, answer)
        elif now_s - self._asked_s > self._config.service_timeout_s:
            self._future = None
            return f'the service {client.srv_name} does not answer.'
        return self._problem

    def run(self) -> str:
        """Do it all in a thread that does not spin; return what is in the way."""
        self._talk = None  # the polling thread keeps its hands off meanwhile
        talk = self._conversation()
        asked: tuple[Any, Any] | None = next(talk)
        while asked is not None:
            client, request = asked
            if not client.service_is_ready():
                return f'the service {client.srv_name} is not there: start xs_sdk.'
            answer = wait_for(client.call_async(request), self._config.service_timeout_s)
            if answer is None:
                return f'the service {client.srv_name} does not answer.'
            asked = self._next(talk, answer)
        return self._problem

    def _next(self, talk: Talk, answer: Any) -> tuple[Any, Any] | None:
        """Hand an answer over; returns the next question, None at the end."""
        try:
            self._asked = talk.send(answer)
        except StopIteration as end:
            self._problem, self._talk, self._asked = end.value, None, None
        return self._asked

    def _conversation(self) -> Talk:
        config, srvs = self._config, self._srvs
        about = srvs.RobotInfo.Request(cmd_type='group', name=config.group)
        state = yield self._info, about
        right = state.mode == 'position' and state.profile_type == 'time'
        times = {
            'Profile_Velocity': config.profile_velocity_ms,
            'Profile_Acceleration': config.profile_acceleration_ms,
        }
        for register, wanted in times.items():
            request = srvs.RegisterValues.Request(cmd_type='group', name=config.group, reg=register)
            values = (yield self._read, request).values
            right = right and len(values) > 0 and all(v == wanted for v in values)
        if not right:
            # The answer has no fields: ask again what has become of it.
            yield self._set, self._modes()
            state = yield self._info, about
        if (state.mode, state.profile_type) != ('position', 'time'):
            return (
                f'group {config.group!r} is in mode {state.mode!r} with profile '
                f'{state.profile_type!r} instead of position and time: check the group name and '
                "the driver's log."
            )
        gripper = srvs.RobotInfo.Request(cmd_type='single', name=config.gripper)
        mode = (yield self._info, gripper).mode
        # In another mode the figures that are meant as PWM would be angles or currents.
        return '' if mode == 'pwm' else (
            f'the gripper {config.gripper!r} is in mode {mode!r} instead of pwm: set it so in '
            "xs_sdk's modes.yaml and restart it."
        )  # fmt: skip

    def _modes(self) -> Any:
        return self._srvs.OperatingModes.Request(
            cmd_type='group',
            name=self._config.group,
            mode='position',
            profile_type='time',
            profile_velocity=self._config.profile_velocity_ms,
            profile_acceleration=self._config.profile_acceleration_ms,
        )


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
