"""Twins of franka_gripper (Franka hand) and of ros2_robotiq_gripper (Robotiq 2F-85)."""

from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from spear_ros.ros.config import FrankaHandConfig, GripperStateConfig, Robotiq2f85Config
from spear_ros.ros.conversions import joint_state_msg
from spear_ros.ros.drivers.base import messages
from spear_ros.ros.qos import JOINTS_RELIABLE
from spear_ros.ros.sim_drivers.base import Every, Job, JobAction, Outcome, TwinClock
from spear_ros.ros.sim_drivers.faults import FaultBoard
from spear_ros.simulation.finger_drive import GripperResult
from spear_ros.simulation.world import World

_HOMING_SPEED_M_S = 0.05


class _Fingers:
    """The fingers of the world, with the fault ``gripper_jam``."""

    def __init__(self, world: World, faults: FaultBoard) -> None:
        self.world, self._faults = world, faults

    @property
    def jammed(self) -> bool:
        """Commands have no effect."""
        return self._faults.active('gripper_jam')

    def move(self, finger_m: float, speed_m_s: float) -> None:
        """Travel to a finger position; nothing happens while jammed."""
        if not self.jammed:
            with self.world.lock:
                self.world.fingers.move(finger_m, speed_m_s)

    def stop(self) -> None:
        """Hold where the fingers are."""
        with self.world.lock:
            self.world.fingers.stop(self.world.finger_m)

    def result(self) -> GripperResult | None:
        """Outcome of the last command, None while it is under way or jammed."""
        return None if self.jammed else self.world.fingers.result


class FrankaHandTwin:
    """Actions homing, move, grasp; service stop; both finger joints at 15 Hz."""

    def __init__(
        self,
        node: Node,
        world: World,
        config: FrankaHandConfig,
        state: GripperStateConfig,
        *,
        faults: FaultBoard,
        clock: TwinClock,
        every: Every,
    ) -> None:
        self._fingers = _Fingers(world, faults)
        self._world, self._faults, self._clock, self._every = world, faults, clock, every
        stem = state.joint.removesuffix('1')
        self._names = (f'{stem}1', f'{stem}2')
        self._types = messages('franka_msgs.action')
        self._publisher = node.create_publisher(JointState, state.topic, QoSProfile(depth=1))
        self._actions = [
            JobAction(node, self._types.Homing, f'{config.namespace}/homing', self._homing),
            JobAction(node, self._types.Move, f'{config.namespace}/move', self._move),
            JobAction(node, self._types.Grasp, f'{config.namespace}/grasp', self._grasp),
        ]
        node.create_service(Trigger, f'{config.namespace}/stop', self._stop)

    def publish(self, now_ns: int) -> None:
        """Publish both fingers, each half the width."""
        if self._every.due() and not self._faults.active('gripper_silent'):
            position = (self._world.finger_m,) * 2
            message = joint_state_msg(now_ns, self._names, position, (0.0, 0.0), (0.0, 0.0))
            self._publisher.publish(message)

    def poll(self) -> None:
        """Finish goals."""
        for action in self._actions:
            action.poll()

    def close(self) -> None:
        """Destroy the servers."""
        for action in self._actions:
            action.close()

    def _homing(self, goal: Any) -> Job:
        legs = [0.0, self._world.gripper.finger_open_m]
        self._fingers.move(legs[0], _HOMING_SPEED_M_S)

        def job(cancel: bool) -> Outcome | None:
            if cancel:
                self._fingers.stop()
                return Outcome(False, self._types.Homing.Result(error='cancelled'), cancelled=True)
            if self._fingers.result() is None:
                return None
            legs.pop(0)
            if legs:
                self._fingers.move(legs[0], _HOMING_SPEED_M_S)
                return None
            return Outcome(True, self._types.Homing.Result(success=True))

        return job

    def _move(self, goal: Any) -> Job | Outcome:
        result = self._types.Move.Result
        if not 0.0 <= goal.width <= 2 * self._world.gripper.finger_open_m + 1e-3:
            return Outcome(False, result(error=f'width {goal.width} is out of range'))
        self._fingers.move(goal.width / 2, goal.speed / 2)
        return self._job(result)

    def _grasp(self, goal: Any) -> Job | Outcome:
        if not self._fingers.jammed:
            with self._world.lock:
                self._world.fingers.grasp(
                    goal.width, goal.speed / 2, goal.force, goal.epsilon.inner, goal.epsilon.outer
                )
        return self._job(self._types.Grasp.Result)

    def _job(self, make_result: Any) -> Job:
        def job(cancel: bool) -> Outcome | None:
            if cancel:
                self._fingers.stop()
                return Outcome(False, make_result(error='cancelled'), cancelled=True)
            end = self._fingers.result()
            if end is None:
                return None
            return Outcome(end.success, make_result(success=end.success, error=end.error))

        return job

    def _stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._fingers.stop()
        response.success = True
        return response


class RobotiqTwin:
    """Action gripper_cmd; the left knuckle joint in /robotiq/joint_states."""

    def __init__(
        self,
        node: Node,
        world: World,
        config: Robotiq2f85Config,
        state: GripperStateConfig,
        *,
        faults: FaultBoard,
        clock: TwinClock,
        every: Every,
    ) -> None:
        self._fingers = _Fingers(world, faults)
        self._world, self._faults, self._state = world, faults, state
        self._clock, self._every = clock, every
        self._type = messages('control_msgs.action').ParallelGripperCommand
        self._publisher = node.create_publisher(JointState, state.topic, JOINTS_RELIABLE)
        self._action = JobAction(node, self._type, config.action, self._command)

    def publish(self, now_ns: int) -> None:
        """Publish the knuckle joint."""
        if self._every.due() and not self._faults.active('gripper_silent'):
            self._publisher.publish(self._joint_state(now_ns))

    def poll(self) -> None:
        """Finish goals."""
        self._action.poll()

    def close(self) -> None:
        """Destroy the server."""
        self._action.close()

    def _joint_state(self, now_ns: int) -> JointState:
        value = self._state.joint_value(self._world.gripper_opening)
        return joint_state_msg(now_ns, (self._state.joint,), (value,), (0.0,), (0.0,))

    def _command(self, goal: Any) -> Job | Outcome:
        if len(goal.command.position) != 1:
            return Outcome(False, self._type.Result())
        opening = self._state.opening(goal.command.position[0])
        self._fingers.move(self._world.gripper.finger(min(max(opening, 0.0), 1.0)), 0.075)

        def job(cancel: bool) -> Outcome | None:
            if cancel:
                self._fingers.stop()
                return Outcome(False, self._type.Result(), cancelled=True)
            end = self._fingers.result()
            if end is None:
                return None
            result = self._type.Result(
                state=self._joint_state(self._clock()),
                stalled=end.stalled,
                reached_goal=not end.stalled,
            )
            return Outcome(True, result)

        return job
