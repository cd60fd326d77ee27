"""One input stream: its recent samples in stamp order, its age, its rate, what is wrong with it."""

from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from spear_ros.core.reasons import Reason
from spear_ros.core.types import CameraFrame, ImageArray

T = TypeVar('T')

NEVER_S = -1.0
"""Age of a stream that has not delivered anything (as in StreamStatus.msg)."""
RATE_WINDOW_NS = 2_000_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamHealth:
    """The fields of ``spear_msgs/StreamStatus``."""

    name: str
    topic: str
    age_s: float
    """max(now - header stamp, time since receipt); -1 = nothing received."""
    rate_hz: float
    """Messages per second over the last two seconds."""
    stale: bool
    frozen: bool
    shape: str
    problem: str
    """Empty = healthy, else one sentence with the mend."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamLimits:
    """What a stream is judged by."""

    max_age_s: float
    clock_skew_s: float
    history_s: float
    max_samples: int
    """Bound on memory, whatever the rate."""


class Stream(Generic[T]):
    """Samples of one topic, sorted by stamp; late ones are put where they belong.

    Not thread-safe: the buffer that owns it holds a lock. All times are nanoseconds of one clock.
    """

    def __init__(self, name: str, topic: str, limits: StreamLimits) -> None:
        self.name = name
        self.topic = topic
        self.limits = limits
        self.stamps: list[int] = []
        self.values: list[T] = []
        self.ever = False
        self.late = 0
        """Samples that came after a newer one."""
        self.refused = 0
        """Messages that could not be used: decoding failed, or the clock was off."""
        self.last_refusal = ''
        """Why the newest refused message was refused; stays."""
        self.bad: tuple[Reason, str] | None = None
        """What was wrong with the newest message; None when it was good."""
        self.last_received_ns: int | None = None
        """Receipt of the newest message, usable or not."""
        self._received_ns = 0
        self._arrivals: deque[int] = deque(maxlen=4096)

    def clear(self) -> None:
        """Forget all samples (the clock jumped); the counters stay."""
        self.stamps.clear()
        self.values.clear()
        self._arrivals.clear()
        self._received_ns = 0
        self.last_received_ns = None
        self.bad = None

    def _arrive(self, received_ns: int) -> None:
        self._arrivals.append(received_ns)
        self.last_received_ns = received_ns

    def add(self, stamp_ns: int, received_ns: int, value: T) -> bool:
        """Store a sample; False when it is not stored (clock skew, a stamp seen before)."""
        self._arrive(received_ns)
        skew_s = (stamp_ns - received_ns) / 1e9
        if abs(skew_s) > self.limits.clock_skew_s:
            what = 'carries no stamp (0)' if stamp_ns == 0 else f'is stamped {skew_s:+.1f} s'
            self._refuse(
                Reason.CLOCK_SKEW,
                f'{self.label} {what} from the time of receipt; synchronise the clocks (chrony) '
                'or set use_sim_time alike on all nodes.',
            )
            return False
        index = bisect_right(self.stamps, stamp_ns)
        if index and self.stamps[index - 1] == stamp_ns:
            return False
        if index < len(self.stamps):
            self.late += 1
        self.stamps.insert(index, stamp_ns)
        self.values.insert(index, value)
        self._received_ns = max(self._received_ns, received_ns)
        self.ever = True
        self.bad = None
        self._trim()
        return True

    def refuse(self, received_ns: int, reason: Reason, text: str) -> None:
        """Note a message that could not be decoded; the samples before it stay."""
        self._arrive(received_ns)
        self._refuse(reason, f'{self.label}: {text}')

    def _refuse(self, reason: Reason, text: str) -> None:
        self.refused += 1
        self.last_refusal = text
        self.bad = (reason, text)

    def _trim(self) -> None:
        oldest = self.stamps[-1] - round(self.limits.history_s * 1e9)
        keep_from = max(
            bisect_left(self.stamps, oldest), len(self.stamps) - self.limits.max_samples
        )
        if keep_from > 0:
            del self.stamps[:keep_from]
            del self.values[:keep_from]

    @property
    def label(self) -> str:
        """Name for sentences: ``arm (/joint_states)``."""
        return f'{self.name} ({self.topic})' if self.topic else self.name

    def age_s(self, now_ns: int) -> float:
        """max(now - newest stamp, now - its receipt) in seconds; :data:`NEVER_S` when empty."""
        if not self.stamps:
            return NEVER_S
        return max(now_ns - self.stamps[-1], now_ns - self._received_ns) / 1e9

    def stale(self, now_ns: int) -> bool:
        """Tell whether nothing is there, or the newest sample is older than the limit."""
        return not self.stamps or self.age_s(now_ns) > self.limits.max_age_s

    def rate_hz(self, now_ns: int) -> float:
        """Messages per second over the last two seconds (since the first one, if that is less)."""
        if not self._arrivals:
            return 0.0
        start = now_ns - RATE_WINDOW_NS
        count = sum(1 for t in self._arrivals if t > start)
        if self._arrivals[0] > start:  # fewer than two seconds so far: count the intervals
            span = now_ns - self._arrivals[0]
            return (count - 1) * 1e9 / span if span > 0 else 0.0
        return count * 1e9 / RATE_WINDOW_NS

    def at_or_before(self, time_ns: int) -> int | None:
        """Index of the newest sample whose stamp is <= ``time_ns``."""
        index = bisect_right(self.stamps, time_ns) - 1
        return index if index >= 0 else None

    def problem(self, now_ns: int) -> str:
        """Say in one sentence why the stream cannot be used now; empty when it can."""
        if self.bad is not None:
            return self.bad[1]
        if not self.stamps:
            return f'{self.label}: nothing received yet; check that the driver runs and the topic.'
        if self.stale(now_ns):
            return (
                f'{self.label}: newest sample is {self.age_s(now_ns) * 1e3:.0f} ms old, limit '
                f'{self.limits.max_age_s * 1e3:.0f} ms; check the driver and the network.'
            )
        return ''


class CameraStream(Stream[CameraFrame]):
    """A stream of images that also counts identical ones."""

    identical = 0
    """Byte-identical frames with advancing stamps at the newest end; 1 = all is well."""

    def add_frame(self, frame: CameraFrame) -> None:
        """Store a frame and compare it with the one before."""
        previous = self.values[-1] if self.values else None
        newest = previous is None or frame.stamp_ns > previous.stamp_ns
        same = newest and previous is not None and _same_image(previous.image, frame.image)
        if self.add(frame.stamp_ns, frame.received_ns, frame) and newest:
            self.identical = self.identical + 1 if same else 1

    def clear(self) -> None:
        """Forget all frames."""
        super().clear()
        self.identical = 0

    def frozen_text(self) -> str:
        """Say that the picture stands still."""
        return (
            f'{self.label}: the last {self.identical} images are byte for byte the same; '
            'restart the camera driver.'
        )


def _same_image(a: ImageArray, b: ImageArray) -> bool:
    """Byte for byte; a sparse look first settles almost every pair in microseconds."""
    if a.shape != b.shape or not np.array_equal(a[::16, ::16], b[::16, ::16]):
        return False
    return bool(np.array_equal(a, b))
