"""Keeps simulated time in step with real time, and reports when the machine is too slow."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Pacer:
    """Absolute deadlines of a fixed period; what was missed is skipped, not caught up.

    A simulator that tries to catch up after a stall runs its physics faster than real time, and a
    watchdog on the other side sees commands and states that never happened at that pace.
    """

    period_s: float
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    lag_s: float = 0.0
    """Simulated time lost so far."""
    worst_s: float = 0.0
    """Longest single delay since :meth:`take_worst`."""
    _next: float | None = None

    def wait(self) -> None:
        """Sleep until the next deadline."""
        now = self.monotonic()
        if self._next is None:
            self._next = now
        self._next += self.period_s
        late = now - self._next
        if late < 0:
            self.sleep(-late)
            return
        self.worst_s = max(self.worst_s, late)
        if late > self.period_s:
            self.lag_s += late
            self._next = now

    def take_worst(self) -> float:
        """Return and forget the longest delay."""
        worst, self.worst_s = self.worst_s, 0.0
        return worst
