"""Motions that live in joint space: the way to the start pose, and the brake of last resort.

Both give joint angles, from which the pose follows, so that they serve a sink of poses and a sink
of joints alike and never need inverse kinematics.
"""

from dataclasses import dataclass

import numpy as np

from spear_ros.core.geometry import matrix_to_quat, quat_angle
from spear_ros.core.types import FloatArray
from spear_ros.robots.kinematics import chain_of
from spear_ros.robots.spec import MotionLimits, RobotSpec

# s(x) = 10 x^3 - 15 x^4 + 6 x^5 on [0, 1]: largest first and second derivative.
_PEAK_SPEED = 1.875
_PEAK_ACCELERATION = 10.0 / np.sqrt(3.0)
_SAMPLES = 40
_SHORTEST_S = 0.5


@dataclass(frozen=True, slots=True)
class JointMove:
    """Straight line in joint space at rest at both ends, timed by a quintic."""

    q_start: FloatArray
    q_goal: FloatArray
    start_ns: int
    duration_s: float

    def at(self, now_ns: int) -> FloatArray:
        """Joint angles (n,) at a time; the goal after the end."""
        x = min(max((now_ns - self.start_ns) * 1e-9 / self.duration_s, 0.0), 1.0)
        s = x * x * x * (10.0 - 15.0 * x + 6.0 * x * x)
        return self.q_start + s * (self.q_goal - self.q_start)

    def share(self, now_ns: int) -> float:
        """Elapsed share of the duration, 0 to 1."""
        return min(max((now_ns - self.start_ns) * 1e-9 / self.duration_s, 0.0), 1.0)

    def finished(self, now_ns: int) -> bool:
        """The goal is reached."""
        return now_ns - self.start_ns >= self.duration_s * 1e9

    def waypoints(self) -> FloatArray:
        """Joint angles (K, n) along the line, ends included: what a check looks at."""
        s = np.linspace(0.0, 1.0, _SAMPLES + 1)[:, None]
        return self.q_start + s * (self.q_goal - self.q_start)


def plan_joint_move(
    robot: RobotSpec,
    q: tuple[FloatArray, FloatArray],
    limits: MotionLimits,
    start_ns: int,
    speed_scale: float = 1.0,
) -> JointMove:
    """Time the straight joint-space line so that joints and end-effector stay under ``limits``.

    Args:
        robot: kinematics and joint limits.
        q: start and goal (n,).
        limits: of the end-effector; ``joint_fraction`` of the joints' own limits.
        start_ns: when it starts.
        speed_scale: multiplies speeds; accelerations fall with its square.
    """
    q_start, q_goal = (np.asarray(x, float) for x in q)
    distance = abs(q_goal - q_start)
    velocity = limits.joint_fraction * np.array([j.velocity_rad_s for j in robot.joints])
    strength = limits.joint_fraction * np.array([j.acceleration_rad_s2 for j in robot.joints])
    linear, angular = _slopes(robot, q_start, q_goal)
    by_speed = max(
        (distance / velocity).max(), linear / limits.linear_m_s, angular / limits.angular_rad_s
    )
    by_acceleration = max(
        (distance / strength).max(), linear / limits.linear_m_s2, angular / limits.angular_rad_s2
    )
    duration = max(
        _PEAK_SPEED * by_speed, np.sqrt(_PEAK_ACCELERATION * by_acceleration), _SHORTEST_S
    )
    return JointMove(q_start, q_goal, start_ns, float(duration / speed_scale))


class JointBrake:
    """Comes to rest along the joint-space direction of the current motion.

    Args:
        q: joint angles now (n,).
        dq: joint speeds now (n,).
        deceleration: (n,) nominal deceleration of each joint; one factor slows all joints, so the
            direction stays and no joint brakes harder than its own figure.
    """

    def __init__(
        self, q: FloatArray, dq: FloatArray, deceleration: FloatArray, start_ns: int
    ) -> None:
        self._q, self._dq, self._start_ns = q, dq, start_ns
        self.duration_s = float((abs(dq) / deceleration).max())

    def at(self, now_ns: int) -> FloatArray:
        """Joint angles (n,) at a time."""
        if self.duration_s <= 0.0:
            return self._q
        t = min(max((now_ns - self._start_ns) * 1e-9, 0.0), self.duration_s)
        return self._q + (t - 0.5 * t * t / self.duration_s) * self._dq

    def finished(self, now_ns: int) -> bool:
        """At rest."""
        return now_ns - self._start_ns >= self.duration_s * 1e9


def _slopes(robot: RobotSpec, q_start: FloatArray, q_goal: FloatArray) -> tuple[float, float]:
    """Largest end-effector travel [m, rad] per unit of the line's parameter."""
    chain = chain_of(robot)
    s = np.linspace(0.0, 1.0, _SAMPLES + 1)[:, None]
    poses = np.stack([chain.links(q)[-1] for q in q_start + s * (q_goal - q_start)])
    moved = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    turned = quat_angle(*(matrix_to_quat(x[:, :3, :3]) for x in (poses[:-1], poses[1:])))
    return _SAMPLES * float(moved.max()), _SAMPLES * float(turned.max())
