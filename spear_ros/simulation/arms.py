"""Joins a robot's low-level controller to the physics: one class per kind of robot."""

from typing import Protocol

import numpy as np

from spear_ros.core.types import FloatArray
from spear_ros.robots.spec import RobotSpec
from spear_ros.simulation.backend import mujoco
from spear_ros.simulation.controllers import CartesianImpedance, MotorGains, TimeProfile
from spear_ros.simulation.robots import franka, widowx
from spear_ros.simulation.robots.joint_tree import EE_SITE


class Arm(Protocol):
    """What the world asks of an arm."""

    def actuate(self, dt_s: float) -> None:
        """Write the torques of one physics step; kinematics are those of the present state."""
        ...

    def settle(self) -> None:
        """Take the present state as the target."""
        ...

    def effort(self) -> FloatArray:
        """(n,) in the unit of the robot's joint-state message."""
        ...


class JointIndex:
    """Addresses of the arm's joints in a compiled model."""

    def __init__(self, model: 'mujoco.MjModel', robot: RobotSpec) -> None:
        names = robot.joint_names
        self.qpos = np.array([model.joint(n).qposadr[0] for n in names])
        self.dof = np.array([model.joint(n).dofadr[0] for n in names])
        self.actuator = np.array([model.actuator(n).id for n in names])


class ImpedanceArm:
    """Franka under crisp's Cartesian controller: follows a target pose, and keeps the last one."""

    def __init__(self, model: 'mujoco.MjModel', data: 'mujoco.MjData', robot: RobotSpec) -> None:
        self._model, self._data = model, data
        self._index = JointIndex(model, robot)
        self._site = model.site(EE_SITE).id
        self._jacobian = np.zeros((6, model.nv))
        self.controller = CartesianImpedance(
            torque_limit_nm=np.array(franka.TORQUE_LIMIT_NM),
            q_posture_rad=np.array(robot.q_home_rad, float),
        )

    def T_base_ee(self) -> FloatArray:
        """(4, 4) of the end-effector frame as of the last kinematics pass."""
        return site_pose(self._data, self._site)

    def settle(self) -> None:
        """Take the present pose as the target and the present posture as the null space's."""
        self.controller.q_posture_rad = self._data.qpos[self._index.qpos]
        self.controller.reset(self.T_base_ee())

    def actuate(self, dt_s: float) -> None:
        """Write crisp's torques."""
        data, index = self._data, self._index
        mujoco.mj_jacSite(self._model, data, self._jacobian[:3], self._jacobian[3:], self._site)
        data.ctrl[index.actuator] = self.controller.torque(
            self.T_base_ee(),
            self._jacobian[:, index.dof],
            data.qpos[index.qpos],
            data.qvel[index.dof],
            dt_s,
        )

    def effort(self) -> FloatArray:
        """Measured torques in Nm, gravity included, as the arm reports them."""
        return self.controller.torque_nm + self._data.qfrc_gravcomp[self._index.dof]


class ServoArm:
    """WidowX under xs_sdk: motors in position mode with a time-based profile."""

    AMPERES_PER_NM = 2.3 / 4.1
    """Dynamixel XM430-W350 at 12 V: 4.1 Nm at 2.3 A (e-Manual)."""
    PAIRED = (1, 2)
    """Shoulder and elbow have a second motor (shadow) of which no current is reported."""

    def __init__(self, model: 'mujoco.MjModel', data: 'mujoco.MjData', robot: RobotSpec) -> None:
        self._data = data
        self._index = JointIndex(model, robot)
        self._gains = MotorGains()
        self._motors = np.ones(len(robot.joints))
        self._motors[list(self.PAIRED)] = 2.0
        self._limit = np.array(widowx.TORQUE_LIMIT_NM)
        self._torque = np.zeros(len(robot.joints))
        self.profile = TimeProfile(data.qpos[self._index.qpos])

    def settle(self) -> None:
        """Take the present joint angles as the goal."""
        time_ms, acceleration_ms = self.profile.time_ms, self.profile.acceleration_ms
        self.profile = TimeProfile(self._data.qpos[self._index.qpos], time_ms, acceleration_ms)

    def actuate(self, dt_s: float) -> None:
        """Move the set point along its profile and write the motors' torques."""
        data, index = self._data, self._index
        goal = self.profile.advance(dt_s)
        self._torque = self._gains.torque(
            goal, self.profile.velocity_rad_s, data.qpos[index.qpos], data.qvel[index.dof]
        )
        self._torque = np.clip(self._torque, -self._limit, self._limit)
        data.ctrl[index.actuator] = self._torque

    def effort(self) -> FloatArray:
        """Motor currents in mA, as xs_sdk reports them."""
        total = self._torque + self._data.qfrc_gravcomp[self._index.dof]
        return 1e3 * self.AMPERES_PER_NM * total / self._motors


def site_pose(data: 'mujoco.MjData', site: int) -> FloatArray:
    """(4, 4) pose of a site in the world, which is the base frame."""
    T = np.eye(4)
    T[:3, :3] = data.site_xmat[site].reshape(3, 3)
    T[:3, 3] = data.site_xpos[site]
    return T
