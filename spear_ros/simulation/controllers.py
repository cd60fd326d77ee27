"""The robots' own low-level controllers, as the simulator's physics meets them. Pure numpy.

Franka: the Cartesian impedance law of crisp_controllers (8093548) with crisp_py's default gains.
WidowX: the time-based profile of Dynamixel X motors in position mode under xs_sdk. Grippers:
Franka's hand with its Move and Grasp semantics, the Robotiq's position command, the Interbotix
fingers under PWM.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from spear_ros.core.geometry import FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class ImpedanceGains:
    """crisp_py ``default_cartesian_impedance.yaml`` and crisp's own defaults."""

    stiffness: tuple[float, float] = (600.0, 30.0)
    """N/m and Nm/rad."""
    damping: tuple[float, float] = (60.0, 10.0)
    """Ns/m and Nms/rad."""
    clip: tuple[float, float] = (0.1, 0.5)
    """Largest error that is acted on, m and rad, per axis of the end-effector frame."""
    filter_per_ms: float = 0.1
    """Exponential filter of the target, per 1 kHz step."""
    nullspace_stiffness: float = 5.0
    """Nm/rad towards the posture at activation; the damping is crisp's 2 sqrt(stiffness)."""
    max_torque_rate_nm_ms: float = 0.5
    """crisp's ``max_delta_tau`` per 1 kHz cycle."""

    @property
    def nullspace_damping(self) -> float:
        """Nms/rad."""
        return 2.0 * math.sqrt(self.nullspace_stiffness)


@dataclass(slots=True)
class CartesianImpedance:
    """Torques that pull the end-effector to a filtered target pose. No time-out, no NaN check.

    Left out of crisp's law: the repulsion from joint limits (the simulated joints have stops) and
    the friction model (the simulated joints have none).
    """

    torque_limit_nm: FloatArray
    q_posture_rad: FloatArray
    gains: ImpedanceGains = field(default_factory=ImpedanceGains)
    target_p: FloatArray = field(init=False)
    target_R: FloatArray = field(init=False)
    filtered_p: FloatArray = field(init=False)
    filtered_R: FloatArray = field(init=False)
    torque_nm: FloatArray = field(init=False)
    _stiffness: FloatArray = field(init=False)
    _damping: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        self._stiffness = np.repeat(self.gains.stiffness, 3)
        self._damping = np.repeat(self.gains.damping, 3)

    def reset(self, T_base_ee: FloatArray) -> None:
        """Start (or start again) with the measured pose as the target."""
        self.set_target(T_base_ee)
        self.filtered_p, self.filtered_R = self.target_p.copy(), self.target_R.copy()
        self.torque_nm = np.zeros(len(self.torque_limit_nm))

    def set_target(self, T_base_ee: FloatArray) -> None:
        """Take a new target pose (4, 4); it is held until the next one."""
        self.target_p = np.array(T_base_ee[:3, 3], float)
        self.target_R = np.array(T_base_ee[:3, :3], float)

    def torque(
        self, T_base_ee: FloatArray, J: FloatArray, q: FloatArray, dq: FloatArray, dt_s: float
    ) -> FloatArray:
        """Joint torques (n,) for one step of ``dt_s``; gravity is compensated elsewhere.

        ``J`` is (6, n), linear rows first, base axes at the end-effector.
        """
        g = self.gains
        steps = dt_s * 1e3
        self._filter(1.0 - (1.0 - g.filter_per_ms) ** steps)
        wrench = self._stiffness * self._error(T_base_ee) - self._damping * (J @ dq)
        posture = g.nullspace_stiffness * (self.q_posture_rad - q) - g.nullspace_damping * dq
        # Damped pseudo-inverse: stays finite where the arm is stretched.
        JJt = J @ J.T
        JJt.flat[::7] += 1e-4
        tau = posture + J.T @ (wrench - np.linalg.solve(JJt, J @ posture))
        step = g.max_torque_rate_nm_ms * steps
        tau = np.minimum(np.maximum(tau, self.torque_nm - step), self.torque_nm + step)
        limit = self.torque_limit_nm
        self.torque_nm = np.minimum(np.maximum(tau, -limit), limit)
        return self.torque_nm

    def _filter(self, mix: float) -> None:
        """Move the filtered target towards the target by the share ``mix``, short way round."""
        self.filtered_p += mix * (self.target_p - self.filtered_p)
        turn = rotation_vector(self.target_R @ self.filtered_R.T)
        if turn @ turn > 1e-18:
            self.filtered_R = rotation_matrix(mix * turn) @ self.filtered_R

    def _error(self, T_base_ee: FloatArray) -> FloatArray:
        """Clipped error (6,) of the filtered target, base axes."""
        R, (metres, radians) = T_base_ee[:3, :3], self.gains.clip
        offset = R.T @ (self.filtered_p - T_base_ee[:3, 3])
        turn = R.T @ rotation_vector(self.filtered_R @ R.T)
        error = np.empty(6)
        error[:3] = R @ np.minimum(np.maximum(offset, -metres), metres)
        error[3:] = R @ np.minimum(np.maximum(turn, -radians), radians)
        return error


@dataclass(slots=True)
class TimeProfile:
    """Dynamixel's time-based profile for n joints: every goal is reached in a fixed time.

    A new goal starts a trapezoid of velocity from the present position and velocity of the profile
    (Dynamixel e-Manual, Profile Velocity and Acceleration in time-based mode); xs_sdk sets both in
    milliseconds by ``set_operating_modes``.
    """

    position_rad: FloatArray
    """(n,) where the profile is now: the motor's set point."""
    time_ms: float = 2000.0
    acceleration_ms: float = 300.0
    velocity_rad_s: FloatArray = field(init=False)
    goal_rad: FloatArray = field(init=False)
    _start: FloatArray = field(init=False)
    _start_velocity: FloatArray = field(init=False)
    _elapsed_s: float = field(init=False)
    _duration_s: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        self.position_rad = np.array(self.position_rad, float)
        self.velocity_rad_s = np.zeros_like(self.position_rad)
        self.set_goal(self.position_rad)

    def set_goal(self, q_rad: FloatArray) -> None:
        """Aim at (n,) joint angles with the present profile times."""
        self.goal_rad = np.array(q_rad, float)
        self._start, self._start_velocity = self.position_rad.copy(), self.velocity_rad_s.copy()
        self._elapsed_s = 0.0
        total = max(self.time_ms, 0.0) / 1e3
        # The motor limits the acceleration time to half of the total.
        ramp = min(max(self.acceleration_ms, 0.0) / 1e3, total / 2)
        self._duration_s = (total, ramp if ramp > 1e-6 else 0.0)

    def advance(self, dt_s: float) -> FloatArray:
        """Move on by ``dt_s`` and return the set point (n,)."""
        self._elapsed_s += dt_s
        total, ramp = self._duration_s
        if self._elapsed_s >= total or total <= 0:
            self.position_rad = self.goal_rad.copy()
            self.velocity_rad_s = np.zeros_like(self.position_rad)
            return self.position_rad
        t, v0 = self._elapsed_s, self._start_velocity
        cruise = (self.goal_rad - self._start - 0.5 * v0 * ramp) / max(total - ramp, 1e-9)
        up = min(t, ramp)
        slope_up = (cruise - v0) / ramp if ramp > 0 else np.zeros_like(v0)
        position = self._start + v0 * up + 0.5 * slope_up * up * up
        self.velocity_rad_s = v0 + slope_up * up if ramp > 0 else cruise.copy()
        if t > ramp:
            flat = min(t, total - ramp) - ramp
            position = position + cruise * flat
            self.velocity_rad_s = cruise.copy()
        if t > total - ramp:
            down = t - (total - ramp)
            position = position + cruise * down - 0.5 * cruise / ramp * down * down
            self.velocity_rad_s = cruise * (1 - down / ramp)
        self.position_rad = position
        return position


@dataclass(frozen=True, slots=True)
class MotorGains:
    """Position loop of the WidowX motors as seen at the joints, per joint: Nm/rad and Nms/rad."""

    stiffness: tuple[float, ...] = (120.0, 220.0, 220.0, 60.0, 60.0, 40.0)
    damping: tuple[float, ...] = (4.0, 7.0, 6.0, 1.5, 1.5, 0.8)

    def torque(
        self, goal: FloatArray, goal_velocity: FloatArray, q: FloatArray, dq: FloatArray
    ) -> FloatArray:
        """Joint torques (n,)."""
        n = len(q)
        return np.array(self.stiffness[:n]) * (goal - q) + np.array(self.damping[:n]) * (
            goal_velocity - dq
        )


def rotation_vector(R: FloatArray) -> FloatArray:
    """Rotation matrix (3, 3) to rotation vector (3,).

    Scalar arithmetic: it runs at every physics step, where the vectorised one of core costs five
    times as much. At an angle of pi, which the clipping makes irrelevant, the axis is lost.
    """
    x = 0.5 * (R[2, 1] - R[1, 2])
    y = 0.5 * (R[0, 2] - R[2, 0])
    z = 0.5 * (R[1, 0] - R[0, 1])
    sine = math.sqrt(x * x + y * y + z * z)
    angle = math.atan2(sine, 0.5 * (R[0, 0] + R[1, 1] + R[2, 2] - 1.0))
    scale = angle / sine if sine > 1e-9 else 1.0
    return np.array([scale * x, scale * y, scale * z])


def rotation_matrix(v: FloatArray) -> FloatArray:
    """Rotation vector (3,) to rotation matrix (3, 3), by Rodrigues' formula."""
    x, y, z = float(v[0]), float(v[1]), float(v[2])
    square = x * x + y * y + z * z
    angle = math.sqrt(square)
    a = math.sin(angle) / angle if angle > 1e-8 else 1.0
    b = (1.0 - math.cos(angle)) / square if angle > 1e-8 else 0.5
    return np.array(
        [
            [1 - b * (y * y + z * z), b * x * y - a * z, b * x * z + a * y],
            [b * x * y + a * z, 1 - b * (x * x + z * z), b * y * z - a * x],
            [b * x * z - a * y, b * y * z + a * x, 1 - b * (x * x + y * y)],
        ]
    )
