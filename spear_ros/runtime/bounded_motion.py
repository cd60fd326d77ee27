"""A pose that follows another one with bounded speed and acceleration, whatever the other does.

State: pose and velocity. Each step picks an acceleration inside a ball, keeps the velocity inside a
ball, then integrates exactly (constant acceleration over the step). So the limits hold for every
reference, jumps included; nothing has to be proved about the chunks. Balls, not boxes: the result
does not depend on how the base frame is turned.

Why the velocity ball does not break the acceleration ball: projecting onto a convex set moves two
points no further apart, and the old velocity is inside the set already.
"""

from dataclasses import dataclass
from math import sqrt

from spear_ros.robots.spec import MotionLimits
from spear_ros.runtime.quaternion import (
    ZERO,
    Quaternion,
    Vector,
    add,
    between,
    exp,
    limit,
    multiply,
    norm,
    normalize,
    scale,
    subtract,
)

# Cascade: speed towards the reference = 4/s times the error, acceleration = 16/s times the speed
# error. That is critically damped with a time constant of 1/8 s, short against one chunk step.
POSITION_GAIN_S = 4.0
VELOCITY_GAIN_S = 16.0
# Corrections approach along a curve that half of the acceleration can brake.
_APPROACH_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Reference:
    """What to follow at the end of a step, per second of real time."""

    p: Vector
    q: Quaternion
    v: Vector
    w: Vector
    dv: Vector = ZERO
    """Acceleration of the reference over the step [m/s^2]."""
    dw: Vector = ZERO


class BoundedMotion:
    """Pose and velocity under speed and acceleration limits.

    Args:
        limits: nominal limits (``joint_fraction`` is not used).
    """

    def __init__(self, limits: MotionLimits) -> None:
        self._limits = limits
        self.p: Vector = ZERO
        self.q: Quaternion = (1.0, 0.0, 0.0, 0.0)
        self.v: Vector = ZERO
        self.w: Vector = ZERO
        """Angular velocity in base axes [rad/s]."""

    @property
    def standstill(self) -> bool:
        """Neither moves nor turns."""
        return self.v == ZERO and self.w == ZERO

    @property
    def stop_time_s(self) -> float:
        """Time to standstill when braking now."""
        lim = self._limits
        return max(norm(self.v) / lim.linear_m_s2, norm(self.w) / lim.angular_rad_s2)

    def place(self, p: Vector, q: Quaternion) -> None:
        """Put the pose somewhere, at rest."""
        self.p, self.q, self.v, self.w = p, q, ZERO, ZERO

    def brake(self, dt: float) -> None:
        """Decelerate along the current motion at the nominal deceleration for ``dt`` seconds."""
        if self.standstill:
            return
        self.v, moved = _brake(self.v, self._limits.linear_m_s2, dt)
        self.w, turned = _brake(self.w, self._limits.angular_rad_s2, dt)
        self._move(moved, turned)

    def shed_speed(self, dt: float) -> None:
        """Lose the speed that ``dt`` seconds of braking take, without moving (after a gap)."""
        self.v, _ = _brake(self.v, self._limits.linear_m_s2, dt)
        self.w, _ = _brake(self.w, self._limits.angular_rad_s2, dt)

    def error(self, p: Vector, q: Quaternion) -> tuple[float, float]:
        """Distance [m] and angle [rad] to a pose."""
        return norm(subtract(p, self.p)), norm(between(self.q, q))

    def follow(self, reference: Reference, dt: float, speed_scale: float) -> None:
        """Move for ``dt`` seconds towards and along ``reference``.

        ``speed_scale`` multiplies the speed limits and not the accelerations.
        """
        lim = self._limits
        # The errors are those that would remain if the velocity did not change in this step.
        e = subtract(reference.p, add(self.p, scale(dt, self.v)))
        turn = exp(scale(dt, self.w))
        r = between(multiply(turn, self.q), reference.q)
        v = _steer(
            self.v,
            (e, reference.v, reference.dv),
            (speed_scale * lim.linear_m_s, lim.linear_m_s2),
            dt,
        )
        w = _steer(
            self.w,
            (r, reference.w, reference.dw),
            (speed_scale * lim.angular_rad_s, lim.angular_rad_s2),
            dt,
        )
        moved = scale(0.5 * dt, add(self.v, v))
        turned = scale(0.5 * dt, add(self.w, w))
        self.v, self.w = v, w
        self._move(moved, turned)

    def _move(self, moved: Vector, turned: Vector) -> None:
        self.p = add(self.p, moved)
        self.q = normalize(multiply(exp(turned), self.q))


def _brake(v: Vector, deceleration: float, dt: float) -> tuple[Vector, Vector]:
    """New velocity and exact displacement of braking from ``v`` for ``dt`` seconds."""
    speed = norm(v)
    if speed == 0.0:
        return ZERO, ZERO
    left = speed - deceleration * dt
    if left <= 1e-12:
        return ZERO, scale(0.5 * speed / deceleration, v)
    return scale(left / speed, v), scale(0.5 * dt * (1.0 + left / speed), v)


def _steer(
    v: Vector, target: tuple[Vector, Vector, Vector], limits: tuple[float, float], dt: float
) -> Vector:
    """Next velocity: towards the reference within the speed and acceleration balls."""
    (error, v_ref, dv_ref), (fastest, strongest) = target, limits
    speed = norm(v)
    if speed > fastest:  # the limit was lowered while moving: brake towards it
        return scale(max(fastest, speed - strongest * dt) / speed, v)
    start = subtract(v_ref, scale(dt, dv_ref))  # the feed-forward covers the change over the step
    wanted = limit(add(start, _approach(error, _APPROACH_SHARE * strongest)), fastest)
    push = scale(min(VELOCITY_GAIN_S, 1.0 / dt), subtract(wanted, v))
    push = limit(add(push, dv_ref), strongest)
    return limit(add(v, scale(dt, push)), fastest)


def _approach(error: Vector, deceleration: float) -> Vector:
    """Speed towards the reference: linear near it, the square-root braking curve far from it."""
    distance = norm(error)
    knee = deceleration / (POSITION_GAIN_S * POSITION_GAIN_S)
    if distance <= knee:
        return scale(POSITION_GAIN_S, error)
    return scale(sqrt(2.0 * deceleration * (distance - 0.5 * knee)) / distance, error)
