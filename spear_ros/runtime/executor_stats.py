"""Running figures of the executor: command intervals and how old a picture is when it moves."""

from collections import deque

import numpy as np

_WINDOW_NS = 10_000_000_000
_CHUNKS = 100


class ExecutorStats:
    """Counts and percentiles; the caller holds the lock."""

    def __init__(self) -> None:
        self.commands = 0
        self._last_ns: int | None = None
        self._intervals: deque[tuple[int, int]] = deque(maxlen=10_000)
        self._ages_ms: deque[float] = deque(maxlen=_CHUNKS)

    def command(self, now_ns: int) -> None:
        """A command was produced."""
        self.commands += 1
        if self._last_ns is not None:
            self._intervals.append((now_ns, now_ns - self._last_ns))
        self._last_ns = now_ns
        while self._intervals and now_ns - self._intervals[0][0] > _WINDOW_NS:
            self._intervals.popleft()

    def silence(self) -> None:
        """No command in this period: the next interval does not count."""
        self._last_ns = None

    def first_command(self, now_ns: int, t_obs_ns: int) -> None:
        """The first command that follows a chunk."""
        self._ages_ms.append((now_ns - t_obs_ns) * 1e-6)

    def intervals_ms(self) -> tuple[float, float]:
        """50th and 99th percentile of the command interval over the last 10 s; 0 = none."""
        return _percentiles([x * 1e-6 for _, x in self._intervals])

    def first_ages_ms(self) -> tuple[float, float]:
        """50th and 99th percentile, camera stamp to first command, last 100 chunks; 0 = none."""
        return _percentiles(list(self._ages_ms))


def _percentiles(values: list[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 0.0
    p50, p99 = np.percentile(values, (50, 99))
    return float(p50), float(p99)
