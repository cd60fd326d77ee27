"""The curve through a chunk, and how fast it may be run: geometry first, time second.

Knots -1 (the anchor), 0 ... H-1 stand at chunk times 0, h, ... H h. Between two knots the curve is
a cubic in cumulative Bezier form (Kim, Kim and Shin, A General Construction Scheme for Unit
Quaternion Curves, SIGGRAPH 1995), positions by sums and rotations by products:

    p(s) = p0 + b1 c1 + b2 c2 + b3 c3          R(s) = R0 Exp(b1 w1) Exp(b2 w2) Exp(b3 w3)

which is C1, hits every knot, and does not know the base frame (left-invariant): the same chunk in
another base frame is the same curve. Knot velocities are Catmull-Rom, shortened where a neighbour
hardly moves, so that the curve does not swing past a knot at which the policy stops.

:class:`RateProfile` is the time half: u(tau) = d tau / dt in (0, 1] such that speed and
acceleration along the curve stay under the nominal limits (a backward pass as in time-optimal path
parameterisation). u < 1 is what "time stretching" means.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

from spear_ros.core.types import ActionChunk
from spear_ros.robots.spec import MotionLimits
from spear_ros.runtime.quaternion import (
    Quaternion,
    Vector,
    add,
    conjugate,
    exp,
    log,
    multiply,
    norm,
    normalize,
    rotate,
    scale,
    subtract,
)

# Shares of the nominal acceleration: bends of the curve, all of the reference motion; the rest is
# for the follower's corrections.
_BEND_SHARE = 0.7
_REFERENCE_SHARE = 0.9
_SPEED_SHARE = 0.95
_SAMPLES = 30
_TINY = 1e-9


@dataclass(frozen=True, slots=True)
class PathPoint:
    """Pose and velocity of the curve at one chunk time; velocities per second of chunk time."""

    p: Vector
    q: Quaternion
    v: Vector
    w: Vector
    """Angular velocity in base axes [rad/s]."""


@dataclass(frozen=True, slots=True)
class _Segment:
    p: Vector
    q: Quaternion
    c: tuple[Vector, Vector, Vector]
    """Position increments [m]."""
    w: tuple[Vector, Vector, Vector]
    """Rotation increments in body axes [rad]."""


class ChunkPath:
    """C1 curve on R^3 x SO(3) through the anchor and the knots of one chunk."""

    def __init__(self, chunk: ActionChunk) -> None:
        p = [_vector(chunk.anchor_p.tolist()), *(_vector(x) for x in chunk.p_base_ee.tolist())]
        q = [_quaternion(x) for x in (chunk.anchor_q.tolist(), *chunk.q_base_ee.tolist())]
        self.step_s = chunk.step_s
        self.duration_s = chunk.step_s * chunk.horizon
        dp = [subtract(b, a) for a, b in pairwise(p)]
        dr = [log(multiply(conjugate(a), b)) for a, b in pairwise(q)]
        mp, mr = _tangents(dp), _tangents(dr)
        self._segments = [
            _segment((p[i], q[i]), (dp[i], q[i + 1]), (mp[i], mp[i + 1]), (mr[i], mr[i + 1]))
            for i in range(len(dp))
        ]

    def at(self, tau_s: float) -> PathPoint:
        """Evaluate at chunk time ``tau_s`` (seconds after t_obs), clipped to the curve."""
        h = self.step_s
        position = min(max(tau_s / h, 0.0), float(len(self._segments)))
        index = min(int(position), len(self._segments) - 1)
        seg, s = self._segments[index], position - index
        r = 1.0 - s
        b1, b2, b3 = 1.0 - r * r * r, s * s * (3.0 - 2.0 * s), s * s * s
        d1, d2, d3 = 3.0 * r * r / h, 6.0 * s * r / h, 3.0 * s * s / h
        (c1x, c1y, c1z), (c2x, c2y, c2z), (c3x, c3y, c3z) = seg.c
        px, py, pz = seg.p
        p = (
            px + b1 * c1x + b2 * c2x + b3 * c3x,
            py + b1 * c1y + b2 * c2y + b3 * c3y,
            pz + b1 * c1z + b2 * c2z + b3 * c3z,
        )
        v = (
            d1 * c1x + d2 * c2x + d3 * c3x,
            d1 * c1y + d2 * c2y + d3 * c3y,
            d1 * c1z + d2 * c2z + d3 * c3z,
        )
        w1, w2, w3 = seg.w
        e1, e2, e3 = exp(scale(b1, w1)), exp(scale(b2, w2)), exp(scale(b3, w3))
        q = normalize(multiply(multiply(seg.q, e1), multiply(e2, e3)))
        body = add(scale(d2, w2), rotate(conjugate(e2), scale(d1, w1)))
        body = add(scale(d3, w3), rotate(conjugate(e3), body))
        return PathPoint(p, q, v, rotate(q, body))


class RateProfile:
    """Largest admissible rate u(tau) along a path, and how fast u may rise.

    Args:
        path: the curve.
        limits: nominal limits; ``joint_fraction`` is not used here.
        segment_rates: (H,) cap of u per segment from the joints' limits; None = 1.
    """

    def __init__(
        self, path: ChunkPath, limits: MotionLimits, segment_rates: Sequence[float] | None = None
    ) -> None:
        segments = round(path.duration_s / path.step_s)
        per_segment = max(2, _SAMPLES // segments)
        n = segments * per_segment
        dt = path.duration_s / n
        points = [path.at(i * dt) for i in range(n + 1)]
        self._limits = limits
        self._tau = [i * dt for i in range(n + 1)]
        self._speed = [(norm(x.v), norm(x.w)) for x in points]
        self._bend = [_bend(points, i, dt) for i in range(n + 1)]
        caps = [1.0] * segments if segment_rates is None else list(segment_rates)
        self._u = [
            min(
                self._cap(i),
                caps[min(i // per_segment, segments - 1)],
                caps[_before(i, per_segment)],
            )
            for i in range(n + 1)
        ]
        for i in range(n - 1, -1, -1):
            reachable = sqrt(self._u[i + 1] ** 2 + 2.0 * dt * self._slope(i, self._u[i + 1]))
            self._u[i] = min(self._u[i], reachable)

    def rate(self, tau_s: float) -> float:
        """Largest u at ``tau_s``."""
        i, s = self._locate(tau_s)
        return self._u[i] + s * (self._u[i + 1] - self._u[i])

    def slope(self, tau_s: float, u: float) -> float:
        """Largest du/dt [1/s] at ``tau_s`` when running at rate ``u``."""
        i, _ = self._locate(tau_s)
        return min(self._slope(i, u), self._slope(i + 1, u))

    def _locate(self, tau_s: float) -> tuple[int, float]:
        tau = self._tau
        i = min(max(bisect_right(tau, tau_s) - 1, 0), len(tau) - 2)
        return i, min(max((tau_s - tau[i]) / (tau[i + 1] - tau[i]), 0.0), 1.0)

    def _cap(self, i: int) -> float:
        (v, w), (a, b), lim = self._speed[i], self._bend[i], self._limits
        return min(
            1.0,
            _SPEED_SHARE * lim.linear_m_s / max(v, _TINY),
            _SPEED_SHARE * lim.angular_rad_s / max(w, _TINY),
            sqrt(_BEND_SHARE * lim.linear_m_s2 / max(a, _TINY)),
            sqrt(_BEND_SHARE * lim.angular_rad_s2 / max(b, _TINY)),
        )

    def _slope(self, i: int, u: float) -> float:
        (v, w), (a, b), lim = self._speed[i], self._bend[i], self._limits
        spare = _REFERENCE_SHARE - _BEND_SHARE
        linear = max(_REFERENCE_SHARE * lim.linear_m_s2 - a * u * u, spare * lim.linear_m_s2)
        angular = max(_REFERENCE_SHARE * lim.angular_rad_s2 - b * u * u, spare * lim.angular_rad_s2)
        return min(linear / max(v, _TINY), angular / max(w, _TINY), 100.0)


def _before(i: int, per_segment: int) -> int:
    """Segment that ends at or contains node i, seen from the left."""
    return max(i - 1, 0) // per_segment


def _bend(points: list[PathPoint], i: int, dt: float) -> tuple[float, float]:
    """Second derivatives by differences: |r''| at u = 1, linear and angular."""
    a, b = points[max(i - 1, 0)], points[min(i + 1, len(points) - 1)]
    span = dt * (min(i + 1, len(points) - 1) - max(i - 1, 0))
    return norm(subtract(b.v, a.v)) / span, norm(subtract(b.w, a.w)) / span


def _tangents(d: list[Vector]) -> list[Vector]:
    """Knot velocities [per step]: Catmull-Rom, at most 1.5 times the shorter neighbouring step."""
    inner = []
    for a, b in pairwise(d):
        m = scale(0.5, add(a, b))
        most, length = 1.5 * min(norm(a), norm(b)), norm(m)
        inner.append(m if length <= most else scale(most / length, m))
    return [d[0], *inner, d[-1]]


def _segment(
    start: tuple[Vector, Quaternion],
    end: tuple[Vector, Quaternion],
    mp: tuple[Vector, Vector],
    mr: tuple[Vector, Vector],
) -> _Segment:
    """Cubic from ``start`` over the position step end[0] to the rotation end[1]."""
    (p, q), (dp, q_end) = start, end
    c1, c3 = scale(1 / 3, mp[0]), scale(1 / 3, mp[1])
    c2 = subtract(dp, add(c1, c3))
    w1, w3 = scale(1 / 3, mr[0]), scale(1 / 3, mr[1])
    inner = multiply(multiply(exp(scale(-1.0, w1)), conjugate(q)), q_end)
    w2 = log(multiply(inner, exp(scale(-1.0, w3))))
    return _Segment(p, q, (c1, c2, c3), (w1, w2, w3))


def _vector(x: Sequence[float]) -> Vector:
    return (float(x[0]), float(x[1]), float(x[2]))


def _quaternion(x: Sequence[float]) -> Quaternion:
    return normalize((float(x[0]), float(x[1]), float(x[2]), float(x[3])))
