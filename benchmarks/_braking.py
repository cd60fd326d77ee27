"""Finds in recorded commands when the robot began to brake and when the target stood still."""

from dataclasses import dataclass

import numpy as np
from _commands import Sent

_SLOWER = 0.97
_SLOWER_UNSTAMPED = 0.85
"""Messages without a stamp are timed by their publication, which jitters by a tenth of a period."""
_STEADY_NS = 200_000_000
_LEAST = 8


@dataclass(frozen=True, slots=True)
class Braking:
    """Times by the clock of the commands, ns."""

    first_ns: int
    """The first command that is slower than the steady motion and leads to standstill."""
    still_ns: int
    """The first command of those that do not change any more."""


def braking(commands: list[Sent], after_ns: int) -> Braking | None:
    """Analyse commands around an event; None = no standstill, or no motion before the event.

    Args:
        commands: in order; some of them before the event.
        after_ns: time of the event.
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
    first = still + 1  # the first that repeats its predecessor: an abrupt stop within one period
    while first >= 2 and t[first - 1] > after_ns and speed[first - 2] < slower * steady:
        first -= 1
    first = min(first, len(commands) - 1)
    return Braking(int(t[first]), int(t[min(still, len(t) - 1)]))
