"""The simulated Franka under a joint trajectory controller instead of crisp. Pure numpy.

What ros2_controllers' JointTrajectoryController does on the effort interface with
``interpolate_from_desired_state``: a new trajectory replaces the old one, starts where the desired
state is now and as fast as it is now, and runs along a cubic to the given point; after its end the
last position is held for ever. Gains: franka_fr3_moveit_config, fr3_ros_controllers.yaml.
"""

from typing import TYPE_CHECKING

import numpy as np

from spear_ros.core.types import FloatArray
from spear_ros.robots.spec import RobotSpec
from spear_ros.simulation.arms import JointIndex
from spear_ros.simulation.robots import franka

if TYPE_CHECKING:
    from spear_ros.simulation.backend import mujoco

STIFFNESS_NM_RAD = (600.0, 600.0, 600.0, 600.0, 250.0, 150.0, 50.0)
DAMPING_NMS_RAD = (30.0, 30.0, 30.0, 30.0, 10.0, 10.0, 5.0)


class CubicTrajectory:
    """Desired joint state over time, for trajectories of one point."""

    def __init__(self, q_rad: FloatArray) -> None:
        self.position_rad = np.array(q_rad, float)
        self.velocity_rad_s = np.zeros_like(self.position_rad)
        self._coefficients = np.zeros((4, len(self.position_rad)))
        self._coefficients[0] = self.position_rad
        self._elapsed_s = self._duration_s = 0.0

    def set_goal(self, q_rad: FloatArray, velocity_rad_s: FloatArray, time_s: float) -> None:
        """Replace the trajectory: be at (n,) with a velocity (n,) ``time_s`` from now."""
        p0, v0, h = self.position_rad, self.velocity_rad_s, max(time_s, 1e-3)
        d = np.asarray(q_rad, float) - p0
        v1 = np.asarray(velocity_rad_s, float)
        self._coefficients = np.stack(
            [p0, v0, (3 * d / h - 2 * v0 - v1) / h, (v0 + v1 - 2 * d / h) / h**2]
        )
        self._elapsed_s, self._duration_s = 0.0, h

    def advance(self, dt_s: float) -> FloatArray:
        """Move on by ``dt_s`` and return the desired position (n,)."""
        self._elapsed_s += dt_s
        t = min(self._elapsed_s, self._duration_s)
        c = self._coefficients
        self.position_rad = c[0] + t * (c[1] + t * (c[2] + t * c[3]))
        self.velocity_rad_s = c[1] + t * (2 * c[2] + t * 3 * c[3])
        if self._elapsed_s >= self._duration_s:  # the end is held, whatever its velocity was
            self.velocity_rad_s = np.zeros_like(self.position_rad)
            self.set_end(self.position_rad)
        return self.position_rad

    def set_end(self, q_rad: FloatArray) -> None:
        """Hold (n,) from now on."""
        self._coefficients = np.zeros_like(self._coefficients)
        self._coefficients[0] = q_rad
        self._elapsed_s = self._duration_s = 0.0


class TrajectoryArm:
    """Franka whose joints are pulled to the desired state of a trajectory."""

    def __init__(self, model: 'mujoco.MjModel', data: 'mujoco.MjData', robot: RobotSpec) -> None:
        self._data = data
        self._index = JointIndex(model, robot)
        self._stiffness, self._damping = np.array(STIFFNESS_NM_RAD), np.array(DAMPING_NMS_RAD)
        self._limit = np.array(franka.TORQUE_LIMIT_NM)
        self._torque = np.zeros(len(robot.joints))
        self.profile = CubicTrajectory(data.qpos[self._index.qpos])

    def settle(self) -> None:
        """Hold the present joint angles."""
        self.profile = CubicTrajectory(self._data.qpos[self._index.qpos])

    def actuate(self, dt_s: float) -> None:
        """Move the desired state on and write the torques; gravity is compensated elsewhere."""
        data, index = self._data, self._index
        wanted = self.profile.advance(dt_s)
        torque = self._stiffness * (wanted - data.qpos[index.qpos])
        torque += self._damping * (self.profile.velocity_rad_s - data.qvel[index.dof])
        self._torque = np.clip(torque, -self._limit, self._limit)
        data.ctrl[index.actuator] = self._torque

    def effort(self) -> FloatArray:
        """Measured torques in Nm, gravity included, as the arm reports them."""
        return self._torque + self._data.qfrc_gravcomp[self._index.dof]
