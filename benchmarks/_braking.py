"""Finds in recorded commands when the robot began to brake and when the target stood still."""

from dataclasses import dataclass

import numpy as np
from _commands import Sent

_SLOWER = 0.97
_SLOWER_UNSTAMPED = 0.93
"""Messages without a stamp are timed by their publication, which jitters by some per cent."""
_STEADY_NS = 200_000_000
_LEAST = 8


def usual_drop_m_s(acceleration_m_s2: float, period_s: float) -> float:
    """Return a drop for :func:`braking`: the first command of a brake shows half of a period's."""
    return 0.35 * acceleration_m_s2 * period_s


@dataclass(frozen=True, slots=True)
class Braking:
    """Times by the clock of the commands, ns."""

    first_ns: int
    """The first command that is slower than the steady motion and leads to standstill."""
    still_ns: int
    """The first command of those that do not change any more."""


def braking(commands: list[Sent], after_ns: int, drop_m_s: float = 0.0) -> Braking | None:
    """Analyse commands around an event; None = no standstill, or no motion before the event.

    Args:
        commands: in order; some of them before the event.
        after_ns: time of the event.
        drop_m_s: a command this much slower than the one before begins the brake; it must be less
            than half of nominal acceleration times period, and more than the motion's own changes.
            Without it, or where the motion was too slow for it: the first that is slower than the
            motion of before, which in an accelerating motion is one period late.
    """
    if len(commands) < _LEAST:
        return None
    slower = _SLOWER if commands[0].joints is None else _SLOWER_UNSTAMPED
    p = np.array([s.p for s in commands])
    t = np.array([s.stamp_ns for s in commands])
    steps = np.linalg.norm(np.diff(p, axis=0), axis=1)
    if steps[-1] > 1e-7:
        return None
    moving = np.flatnonzero(steps > 1e-7)
    if not len(moving):
        return None
    still = int(moving[-1]) + 1  # command after which nothing changes
    speed = steps / np.maximum(np.diff(t) * 1e-9, 1e-3)
    begin, end = np.searchsorted(t, (after_ns - _STEADY_NS, after_ns))
    before = speed[int(begin) : int(end)]
    steady = float(np.median(before)) if len(before) else 0.0
    if steady < 0.01:
        return None
    dropped = np.flatnonzero((np.diff(speed) < -drop_m_s) & (t[2:] > after_ns))
    if drop_m_s > 0.0 and len(dropped) and dropped[0] + 2 <= still:
        return Braking(int(t[dropped[0] + 2]), int(t[min(still, len(t) - 1)]))
    first = still + 1  # the first that repeats its predecessor: an abrupt stop within one period
    while first >= 2 and t[first - 1] > after_ns and speed[first - 2] < slower * steady:
        first -= 1
    first = min(first, len(commands) - 1)
    return Braking(int(t[first]), int(t[min(still, len(t) - 1)]))
