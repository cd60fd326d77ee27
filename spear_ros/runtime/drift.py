"""Alarm on inference that has become slower than it was: a hot, throttled or shared device.

The first measured times after the start are the reference; the newest ones, of a window of time,
are compared with it by their 99th percentile, which is what late chunks are made of. A device that
was slow from the start is not seen here (the benchmark and the status show that).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftSettings:
    """When to raise and when to end the alarm."""

    skip: int = 5
    """First times that are not counted: caches and clocks are still cold."""
    reference: int = 100
    """Times that make the reference: 20 s at 5 Hz."""
    window_s: float = 30.0
    """What "newest" means."""
    least: int = 50
    """Times in the window before anything is judged."""
    raise_ratio: float = 1.5
    """The alarm is raised above this multiple of the reference, if also ``margin_ms`` above it."""
    end_ratio: float = 1.2
    """and ended below this one, so that it does not flicker."""
    margin_ms: float = 5.0


class DriftAlarm:
    """See the module's docstring.

    Args:
        clock_ns: injected; sim time works.
        settings: see :class:`DriftSettings`.
    """

    def __init__(
        self,
        clock_ns: Callable[[], int],
        settings: DriftSettings = DriftSettings(),
    ) -> None:
        self._clock_ns, self._settings = clock_ns, settings
        self._skipped = 0
        self._first: list[float] = []
        self._newest: deque[tuple[int, float]] = deque()
        self._reference_ms: float | None = None
        self._p99_ms = 0.0
        self._raised = False

    @property
    def raised(self) -> bool:
        """Whether inference is slower than it was."""
        return self._raised

    @property
    def text(self) -> str:
        """One sentence while the alarm is raised, else empty."""
        if not self._raised or self._reference_ms is None:
            return ''
        return (
            f'inference has become slower: p99 {self._p99_ms:.1f} ms over the last '
            f'{self._settings.window_s:.0f} s, {self._reference_ms:.1f} ms after the start; check '
            "the device's temperature, clocks and other programs on it."
        )

    def add(self, inference_ms: float) -> None:
        """Take one measured time."""
        settings = self._settings
        if self._skipped < settings.skip:
            self._skipped += 1
            return
        if self._reference_ms is None:
            self._first.append(inference_ms)
            if len(self._first) == settings.reference:
                self._reference_ms = _p99(self._first)
                self._first.clear()
            return
        now = self._clock_ns()
        if self._newest and now < self._newest[-1][0]:
            self._newest.clear()  # the clock went back: a looping bag, restarted simulation time
        self._newest.append((now, inference_ms))
        while now - self._newest[0][0] > settings.window_s * 1e9:
            self._newest.popleft()
        if len(self._newest) >= settings.least:
            self._judge(self._reference_ms)

    def _judge(self, reference_ms: float) -> None:
        settings = self._settings
        self._p99_ms = _p99([ms for _, ms in self._newest])
        ratio = settings.end_ratio if self._raised else settings.raise_ratio
        margin = 0.0 if self._raised else settings.margin_ms
        self._raised = self._p99_ms > max(reference_ms * ratio, reference_ms + margin)


def _p99(values: list[float]) -> float:
    return float(np.percentile(values, 99))
