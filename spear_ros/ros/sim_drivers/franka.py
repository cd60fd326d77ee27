"""Twin of franka_ros2 3.4 with a crisp CartesianController, on the simulated Panda or FR3.

Names, types, QoS and rates are those of the real drivers, but for ``robot_state``: 1 kHz there,
``sim.robot_state_rate_hz`` here. The target sink behaves like crisp: the header's frame is ignored,
the last target is held for ever, and everything is ignored while more than one node publishes.
With ``command: joint_trajectory`` it is a JointTrajectoryController instead, which does not count
publishers and refuses messages that are not a trajectory of all its joints that ends at rest.
"""

from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from sensor_msgs.msg import JointState

from spear_ros.core.geometry import is_unit_quaternion, pose, quat_exp
from spear_ros.core.types import FloatArray
from spear_ros.robots.spec import RobotSpec
from spear_ros.ros.config import FrankaHandConfig, RobotConfig, Robotiq2f85Config
from spear_ros.ros.conversions import header, joint_state_msg, pose_from_msg, pose_stamped
from spear_ros.ros.drivers.base import count_publishers, messages
from spear_ros.ros.qos import COMMAND, JOINTS_BEST_EFFORT, JOINTS_RELIABLE, LATCHED
from spear_ros.ros.sim_drivers.base import (
    CommandInput,
    Every,
    Job,
    JobAction,
    Outcome,
    Twin,
    TwinClock,
    publish_joints,
)
from spear_ros.ros.sim_drivers.faults import FaultBoard
from spear_ros.ros.sim_drivers.franka_gripper import FrankaHandTwin, RobotiqTwin
from spear_ros.ros.sim_drivers.lines import JointLine, JointSample
from spear_ros.simulation.world import World

_IDLE, _MOVE, _GUIDING, _REFLEX, _USER_STOPPED = 1, 2, 3, 4, 5
_T_LINK8_HAND_TCP = pose(np.array([0.0, 0.0, 0.1034]), quat_exp(np.array([0.0, 0.0, -np.pi / 4])))
_STATES = {'unconfigured': 1, 'inactive': 2, 'active': 3}


class FrankaTwin:
    """The Franka's drivers over a simulated world."""

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
        assert config.franka is not None
        assert config.sim is not None
        self._node, self._world, self._spec = node, world, spec
        self._config, self._faults, self._clock = config.franka, faults, clock
        self._line = JointLine(spec.joint_names, faults)
        self._hardware, self._controller = 'active', 'active'
        self._reflex = False
        self._kept: FloatArray | None = None
        self._publishers, self._publishers_checked_ns = 1, 0
        self._base = spec.driver_frames.get(spec.base_frame, spec.base_frame)
        self._every_state = Every(config.sim.joint_rate_hz, config.sim.robot_state_rate_hz)
        self._create_topics(config)
        self._create_services()
        self._gripper = _gripper_twin(node, world, config, faults, clock)
        self._send_activity()

    def _create_topics(self, config: RobotConfig) -> None:
        node, franka = self._node, self._config
        self._msgs = messages('franka_msgs.msg')
        self._cm_msgs = messages('controller_manager_msgs.msg')
        self._cm_srvs = messages('controller_manager_msgs.srv')
        self._joints = node.create_publisher(JointState, config.arm.topic, JOINTS_BEST_EFFORT)
        self._robot_state = node.create_publisher(
            self._msgs.FrankaRobotState, franka.robot_state_topic, JOINTS_RELIABLE
        )
        self._activity = node.create_publisher(
            self._cm_msgs.ControllerManagerActivity,
            f'{franka.controller_manager}/activity',
            LATCHED,
        )
        self._state_message = self._new_robot_state()
        if franka.command == 'joint_trajectory':
            self._world.control_by_trajectories()
            kind = messages('trajectory_msgs.msg').JointTrajectory
            topic = (kind, franka.command_topic, COMMAND)
            self._targets = CommandInput(node, self._faults, topic, self._on_trajectory)
        else:
            topic = (PoseStamped, franka.command_topic, COMMAND)
            self._targets = CommandInput(node, self._faults, topic, self._on_target)

    def _create_services(self) -> None:
        node, franka = self._node, self._config
        manager = franka.controller_manager
        node.create_service(
            self._cm_srvs.SetHardwareComponentState,
            f'{manager}/set_hardware_component_state',
            self._on_set_hardware,
        )
        node.create_service(
            self._cm_srvs.SwitchController, f'{manager}/switch_controller', self._on_switch
        )
        self._recovery_type = messages('franka_msgs.action').ErrorRecovery
        self._recovery = JobAction(
            node, self._recovery_type, franka.error_recovery_action, self._on_recovery
        )

    # ------------------------------------------------------------------------------------ running

    def publish(self, now_ns: int) -> None:
        """Joint states every tick, robot_state and fingers at their own rates."""
        world, stamp = self._world, self._clock()
        effort = tuple(world.effort)
        sample = JointSample(
            stamp, self._spec.joint_names, tuple(world.q_rad), tuple(world.dq_rad_s), effort
        )
        publish_joints(self._joints, self._line.pass_on(sample))
        if self._every_state.due() and not self._faults.active('robot_state_silent'):
            self._robot_state.publish(self._fill_robot_state(stamp))
        self._gripper.publish(stamp)

    def poll(self) -> None:
        """Let faults change the robot's mode, and finish goals."""
        self._recovery.poll()
        self._gripper.poll()
        self._targets.poll()
        if self._faults.active('reflex') and not self._reflex:
            self._reflex = True
            self._lose_control()
        stopped = self._faults.active('user_stop') or self._faults.active('guiding')
        if stopped and self._hardware == 'active':
            self._lose_control()
        if self._faults.active('controller_inactive') and self._controller == 'active':
            self._set('active', 'inactive')

    def close(self) -> None:
        """Destroy the action servers."""
        self._recovery.close()
        self._gripper.close()

    @property
    def mode(self) -> int:
        """robot_mode of FrankaRobotState."""
        if self._faults.active('user_stop'):
            return _USER_STOPPED
        if self._faults.active('guiding'):
            return _GUIDING
        if self._reflex:
            return _REFLEX
        return _MOVE if (self._hardware, self._controller) == ('active', 'active') else _IDLE

    def _lose_control(self) -> None:
        """franka_ros2 >= 3.3: hardware unconfigured, controllers off; the robot brakes itself."""
        self._set('unconfigured', 'inactive')

    def _set(self, hardware: str, controller: str) -> None:
        self._hardware, self._controller = hardware, controller
        with self._world.lock:
            self._world.arm.settle()  # brakes engage, or the controller starts where it measures
        if controller == 'active' and self._kept is not None:
            self._world.set_target_pose(self._kept)
            self._kept = None
        self._send_activity()

    def _send_activity(self) -> None:
        named = self._cm_msgs.NamedLifecycleState
        message = self._cm_msgs.ControllerManagerActivity(header=header(self._clock()))
        for target, name, state in (
            (message.controllers, self._config.controller, self._controller),
            (message.hardware_components, self._config.hardware_component, self._hardware),
        ):
            entry = named(name=name)
            entry.state.id, entry.state.label = _STATES[state], state
            target.append(entry)
        self._activity.publish(message)

    def _on_target(self, message: PoseStamped) -> None:
        if self._more_than_one_publisher():
            return
        p, q = pose_from_msg(message.pose)
        if not (np.isfinite(p).all() and is_unit_quaternion(q, 0.1)):
            # crisp does not check: torques become NaN, which the real robot answers by a reflex.
            self._node.get_logger().error('target_pose is not finite: reflex')
            self._faults.command('reflex')
            return
        target = pose(p, q / np.linalg.norm(q))
        if self._controller != 'active':
            self._kept = target  # taken over at activation, however old: crisp's on_activate
        elif self.mode == _MOVE:
            self._world.set_target_pose(target)

    def _on_trajectory(self, message: Any) -> None:
        if self.mode != _MOVE:
            return
        points = message.points
        whole = list(message.joint_names) == list(self._spec.joint_names) and all(
            len(p.positions) == len(p.velocities) == len(message.joint_names) for p in points
        )
        # One point is all that our driver sends; the real controller takes any number.
        if not (whole and len(points) == 1 and not any(points[0].velocities)):
            self._node.get_logger().error('the trajectory was refused')
            return
        q = np.array(points[0].positions)
        if not np.isfinite(q).all():
            self._node.get_logger().error('the trajectory is not finite: reflex')
            self._faults.command('reflex')
            return
        ahead = points[0].time_from_start
        self._world.set_joint_trajectory(q, np.zeros(len(q)), ahead.sec + 1e-9 * ahead.nanosec)

    def _more_than_one_publisher(self) -> bool:
        now = self._clock.now()
        if now - self._publishers_checked_ns > 50_000_000:
            self._publishers_checked_ns = now
            self._publishers = count_publishers(self._node, self._config.command_topic)
        return self._publishers > 1

    # ---------------------------------------------------------------------------------- recovery

    def _on_recovery(self, goal: Any) -> Job | Outcome:
        if self._faults.active('user_stop'):
            return Outcome(False, self._recovery_type.Result())
        self._faults.command('clear reflex')
        self._reflex = False
        return Outcome(True, self._recovery_type.Result())

    def _on_set_hardware(self, request: Any, response: Any) -> Any:
        known = request.name == self._config.hardware_component
        response.ok = known and self.mode == _IDLE and not self._reflex
        if response.ok:
            self._set(request.target_state.label or 'active', self._controller)
            response.state.label = self._hardware
        return response

    def _on_switch(self, request: Any, response: Any) -> Any:
        on = self._config.controller in request.activate_controllers
        off = self._config.controller in request.deactivate_controllers
        response.ok = off or (on and self._hardware == 'active')
        if response.ok:
            self._faults.command('clear controller_inactive')
            self._set(self._hardware, 'active' if on else 'inactive')
        else:
            response.message = 'unknown controller or hardware not active'
        return response

    # ------------------------------------------------------------------------------- robot_state

    def _new_robot_state(self) -> Any:
        state = self._msgs.FrankaRobotState()
        state.control_command_success_rate = 1.0
        hand = self._world.gripper.name == 'franka_hand'
        self._T_flange_ee = _T_LINK8_HAND_TCP if hand else np.eye(4)
        state.f_t_ee = pose_stamped(self._T_flange_ee, 0, self._base)
        return state

    def _fill_robot_state(self, stamp_ns: int) -> Any:
        state, world = self._state_message, self._world
        head = header(stamp_ns, self._base)
        state.header = head
        state.measured_joint_state = joint_state_msg(
            stamp_ns,
            self._spec.joint_names,
            tuple(world.q_rad),
            tuple(world.dq_rad_s),
            tuple(world.effort),
        )
        T = world.T_base_ee @ self._T_flange_ee
        state.o_t_ee = pose_stamped(T, stamp_ns, self._base)
        state.time = world.time_ns * 1e-9
        state.robot_mode = self.mode
        state.current_errors.cartesian_reflex = self._reflex
        return state


def _gripper_twin(
    node: Node,
    world: World,
    config: RobotConfig,
    faults: FaultBoard,
    clock: TwinClock,
) -> Twin:
    assert config.sim is not None
    every = Every(config.sim.joint_rate_hz, config.sim.gripper_rate_hz)
    section = config.gripper_config
    if isinstance(section, FrankaHandConfig):
        return FrankaHandTwin(
            node, world, section, config.gripper_state, faults=faults, clock=clock, every=every
        )
    assert isinstance(section, Robotiq2f85Config), config.gripper
    return RobotiqTwin(
        node, world, section, config.gripper_state, faults=faults, clock=clock, every=every
    )
