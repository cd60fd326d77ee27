"""WidowX-250s behind interbotix xs_sdk: joint targets, PWM gripper, effort and error guards.

Source: interbotix_ros_core jazzy, xs_sdk_obj.cpp. The driver checks neither limits nor NaN, answers
bad service requests with an empty response, and on a serial read error publishes zero ticks with a
fresh stamp (all joints near -pi), which the executor's jump and limit checks catch. Switching the
torque off is never a stop: the arm would drop.
"""

import time
from collections.abc import Callable

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import JointState

from spear_ros.core.reasons import Reason
from spear_ros.robots.spec import RobotSpec
from spear_ros.ros.config import RobotConfig, WidowxGripperConfig
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
)
from spear_ros.ros.drivers.grippers import BinaryTarget, JamWatch, PwmGripper
from spear_ros.ros.drivers.widowx_services import RegisterWatch, SetUp
from spear_ros.ros.qos import COMMAND_QUEUE, JOINTS_INPUT
from spear_ros.runtime.effort_guard import EffortGuard

_SILENT_S = 1.0
# Polled at 20 Hz: a longer interval is a pause of this process, in which it could hear nobody.
_PAUSED_S = 0.5
_BLIND_S = 0.5


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
        self._efforts_s: float | None = None
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
        """See to position mode and profile times; :meth:`poll` follows the answers."""
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
            self._efforts_s = None if self._efforts_s is None else now
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
        if self._efforts_s is None or now - self._efforts_s > _BLIND_S:
            return DriverReport(
                Reason.MOTOR_ERROR,
                f'{self._arm.topic} carries no motor currents of {", ".join(self._names)}: the '
                'guard against pushing is blind; check arm.joint_names and xs_sdk.',
            )
        report = self._registers.poll(now)
        if report.reason != Reason.NONE:
            return report
        jam = self._jam.update(self._target.wanted_open, self._opening, now)
        return DriverReport(Reason.GRIPPER_FAULT, jam) if jam else HEALTHY

    def publisher_count(self) -> int:
        """Publishers on the busiest of the arm's command topics, one of ours on each."""
        topic = f'{self._config.namespace}/commands/joint_'
        ours, single = (count_publishers(self._node, topic + kind) for kind in ('group', 'single'))
        return max(ours, single, 1 + count_publishers(self._node, topic + 'trajectory'))

    def hold_gripper(self) -> None:
        """Forget the gripper's target; a closed one is held with the smaller PWM."""
        self._target.forget()

    def release(self) -> None:
        """Forget the gripper's target and clear the latched effort guard."""
        self.hold_gripper()
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
        progress('recover 2/2: check the operating mode ...')
        self._effort.tripped = ''
        problem = self._modes.run()
        if problem:
            return DriverReport(Reason.DRIVER_LOST, problem)
        progress('recover 2/2: check the operating mode done')
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
            if not np.isfinite(efforts).all():
                return
            self._efforts_s = now_s
            self._effort.update(self._names, efforts, now_s)
            self._sink.on_efforts(now, np.asarray(efforts, float))
