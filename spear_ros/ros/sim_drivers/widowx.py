"""Twin of interbotix xs_sdk on the simulated WidowX: joint targets, PWM gripper, registers.

Like the real one it checks neither limits nor NaN, answers bad service requests with an empty
response, and under the fault ``joints_zero_ticks`` publishes -pi for every joint with fresh stamps.
"""

from typing import Any

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import JointState

from spear_ros.robots.spec import RobotSpec
from spear_ros.ros.config import RobotConfig
from spear_ros.ros.drivers.base import messages
from spear_ros.ros.qos import COMMAND_QUEUE, JOINTS_RELIABLE
from spear_ros.ros.sim_drivers.base import CommandInput, TwinClock, publish_joints
from spear_ros.ros.sim_drivers.faults import FaultBoard
from spear_ros.ros.sim_drivers.lines import JointLine, JointSample
from spear_ros.simulation.world import World

_PROFILE = ('Profile_Velocity', 'Profile_Acceleration')
_SLEEP_RAD = (0.0, -1.80, 1.55, 0.0, 0.8, 0.0)


class WidowxTwin:
    """xs_sdk over a simulated world."""

    def __init__(
        self,
        node: Node,
        world: World,
        spec: RobotSpec,
        config: RobotConfig,
        *,
        faults: FaultBoard,
        clock: TwinClock,
    ) -> None:
        assert config.widowx is not None
        self._node, self._world, self._spec = node, world, spec
        self._config, self._faults, self._clock = config.widowx, faults, clock
        self._line = JointLine(spec.joint_names, faults)
        self._names = (*spec.joint_names, self._config.gripper, 'left_finger', 'right_finger')
        self._mode, self._profile = 'position', ('time', 2000, 300)
        self._registers: dict[str, int] = {}
        self._pwm = 0.0
        self._create(config)

    def _create(self, config: RobotConfig) -> None:
        node, namespace = self._node, self._config.namespace
        msgs, srvs = messages('interbotix_xs_msgs.msg'), messages('interbotix_xs_msgs.srv')
        self._joints = node.create_publisher(JointState, config.arm.topic, JOINTS_RELIABLE)
        topic = (msgs.JointGroupCommand, f'{namespace}/commands/joint_group', COMMAND_QUEUE)
        self._groups = CommandInput(node, self._faults, topic, self._on_group)
        node.create_subscription(
            msgs.JointSingleCommand,
            f'{namespace}/commands/joint_single',
            self._on_single,
            COMMAND_QUEUE,
        )
        for kind, name, handler in (
            (srvs.OperatingModes, 'set_operating_modes', self._on_modes),
            (srvs.RobotInfo, 'get_robot_info', self._on_info),
            (srvs.RegisterValues, 'get_motor_registers', self._on_get_registers),
            (srvs.RegisterValues, 'set_motor_registers', self._on_set_registers),
            (srvs.Reboot, 'reboot_motors', self._on_reboot),
        ):
            node.create_service(kind, f'{namespace}/{name}', handler)

    # ------------------------------------------------------------------------------------ running

    def publish(self, now_ns: int) -> None:
        """One message with arm, gripper motor and both fingers, every tick."""
        world = self._world
        finger = world.finger_m
        zeros = (0.0, 0.0, 0.0)
        sample = JointSample(
            self._clock(),
            self._names,
            (*world.q_rad, world.gripper_opening, finger, -finger),
            (*world.dq_rad_s, *zeros),
            (*world.effort, *zeros),
        )
        if self._faults.active('gripper_silent'):
            n = len(self._spec.joints)
            sample = JointSample(
                sample.stamp_ns, sample.names[:n], sample.position[:n], sample.velocity[:n],
                sample.effort[:n],
            )  # fmt: skip
        publish_joints(self._joints, self._line.pass_on(sample))

    def poll(self) -> None:
        """A jam takes the force away from the fingers."""
        self._groups.poll()
        if self._faults.active('gripper_jam'):
            self._drive(0.0)

    def close(self) -> None:
        """Nothing to destroy: topics and services go with the node."""

    def _on_group(self, message: Any) -> None:
        joints = np.array(message.cmd, float)
        if message.name != self._config.group or len(joints) != len(self._spec.joints):
            self._node.get_logger().error(f'joint_group {message.name!r} ignored')
            return
        if np.isfinite(joints).all():  # the motor's register cannot hold NaN
            self._world.set_joint_targets(joints)

    def _on_single(self, message: Any) -> None:
        if message.name == self._config.gripper and not self._faults.active('gripper_jam'):
            self._drive(float(message.cmd))

    def _drive(self, pwm: float) -> None:
        if pwm != self._pwm:
            self._pwm = pwm
            self._world.set_gripper_pwm(pwm)

    # ----------------------------------------------------------------------------------- services

    def _on_modes(self, request: Any, response: Any) -> Any:
        if request.cmd_type == 'group' and request.name == self._config.group:
            self._mode = request.mode
            times = (request.profile_velocity, request.profile_acceleration)
            self._profile = (request.profile_type, *times)
            if request.profile_type == 'time':
                world = self._world
                world.set_joint_targets(world.q_rad, (float(times[0]), float(times[1])))
        return response

    def _on_info(self, request: Any, response: Any) -> Any:
        if request.name not in (self._config.group, self._config.gripper):
            return response  # xs_sdk logs an error and answers nothing
        joints = self._spec.joints
        response.mode, response.profile_type = self._mode, self._profile[0]
        if request.name == self._config.gripper:
            response.mode = 'pwm'
        response.joint_names = list(self._spec.joint_names)
        response.joint_ids = list(range(1, len(joints) + 1))
        response.joint_lower_limits = [j.lower_rad for j in joints]
        response.joint_upper_limits = [j.upper_rad for j in joints]
        response.joint_velocity_limits = [j.velocity_rad_s for j in joints]
        response.joint_sleep_positions = list(_SLEEP_RAD)
        response.joint_state_indices = list(range(len(joints)))
        response.num_joints = len(joints)
        response.name = [request.name]
        return response

    def _on_get_registers(self, request: Any, response: Any) -> Any:
        if request.name not in (self._config.group, self._config.gripper):
            return response
        count = len(self._spec.joints) if request.name == self._config.group else 1
        profile = dict(zip(_PROFILE, self._profile[1:], strict=True))
        values = [self._registers.get(request.reg, profile.get(request.reg, 0))] * count
        error = self._faults.value('motor_error')
        if request.reg == self._config.error_register and request.name == self._config.group:
            values[1] = round(error) if error is not None else 0
        response.values = values
        return response

    def _on_set_registers(self, request: Any, response: Any) -> Any:
        self._registers[request.reg] = request.value
        return response

    def _on_reboot(self, request: Any, response: Any) -> Any:
        self._faults.command('clear motor_error')
        return response
