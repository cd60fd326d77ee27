"""Turns a recording into what the robot's drivers would have sent, in order of time. No ROS.

The arm comes out at the rate of a driver (100 Hz), interpolated between the recorded samples,
because a 5 Hz recording would look like a broken driver to every age check; where the recording
has a gap longer than ``max_gap_s`` nothing comes out, so that a real drop-out stays visible. Poses
become joint angles through the robot's inverse kinematics; what it cannot reach is counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import merge

import numpy as np

from spear_ros.core.geometry import pose_interpolate
from spear_ros.core.types import FloatArray, ImageArray
from spear_ros.data.bags import BagReader, BagSample
from spear_ros.robots.kinematics import InverseKinematics

ARM, GRIPPER, INSTRUCTION = 'arm', 'gripper', 'instruction'


@dataclass(frozen=True, slots=True)
class Event:
    """One thing to publish at ``time_ns`` of bag time."""

    time_ns: int
    stream: str
    value: ImageArray | FloatArray | float | str


@dataclass(kw_only=True, slots=True)
class PlaybackCounts:
    """What came out and what did not."""

    events: int = 0
    unusable: int = 0
    """Messages of the recording that could not be decoded."""
    unreachable: int = 0
    """Poses without joint angles."""
    gaps: int = 0


class Playback:
    """Events of one recording.

    Args:
        reader: for cameras, gripper and instruction.
        arm_reader: a second reader of the same recording, read ahead for interpolation.
        rate_hz: of the arm.
        max_gap_s: longer gaps between arm samples are left as they are.
    """

    def __init__(
        self,
        reader: BagReader,
        arm_reader: BagReader,
        *,
        rate_hz: float = 100.0,
        max_gap_s: float = 0.5,
    ) -> None:
        self._reader, self._arm_reader = reader, arm_reader
        self._period_ns = round(1e9 / rate_hz)
        self._max_gap_ns = round(max_gap_s * 1e9)
        self._ik = InverseKinematics(reader.robot)
        self._q = np.array(reader.robot.q_home_rad)
        self.counts = PlaybackCounts()

    def events(self) -> Iterator[Event]:
        """Yield everything in order of time."""
        for event in merge(self._others(), self._arm(), key=lambda e: e.time_ns):
            self.counts.events += 1
            yield event

    def _others(self) -> Iterator[Event]:
        last_gripper: Event | None = None
        for sample in self._reader.samples({'external', 'wrist', GRIPPER, INSTRUCTION}):
            # A driver repeats the gripper's position while nothing changes.
            if last_gripper is not None:
                yield from self._repeated(last_gripper, sample.received_ns)
            if sample.value is None:
                self.counts.unusable += 1
                continue
            event = Event(sample.received_ns, sample.stream, sample.value)
            if sample.stream == GRIPPER:
                last_gripper = event
            elif last_gripper is not None:
                last_gripper = Event(sample.received_ns, GRIPPER, last_gripper.value)
            yield event

    def _repeated(self, last: Event, until_ns: int) -> Iterator[Event]:
        if until_ns - last.time_ns > self._max_gap_ns:
            return
        step = 5 * self._period_ns
        for time_ns in range(last.time_ns + step, until_ns, step):
            yield Event(time_ns, GRIPPER, last.value)

    def _arm(self) -> Iterator[Event]:
        before: BagSample | None = None
        for sample in self._arm_reader.samples({ARM}):
            if sample.value is None:
                self.counts.unusable += 1
                continue
            if before is not None:
                yield from self._between(before, sample)
            before = sample
        if before is not None:
            yield from self._event(before.received_ns, self._array(before))

    def _between(self, a: BagSample, b: BagSample) -> Iterator[Event]:
        yield from self._event(a.received_ns, self._array(a))
        gap = b.received_ns - a.received_ns
        if gap > self._max_gap_ns:
            self.counts.gaps += 1
            return
        start, end = self._array(a), self._array(b)
        for time_ns in range(a.received_ns + self._period_ns, b.received_ns, self._period_ns):
            s = (time_ns - a.received_ns) / gap
            if start.ndim == 1:
                yield from self._event(time_ns, (1 - s) * start + s * end)
            else:
                yield from self._event(time_ns, pose_interpolate(start, end, s))

    def _event(self, time_ns: int, value: FloatArray) -> Iterator[Event]:
        if value.ndim == 1:
            yield Event(time_ns, ARM, value)
            return
        result = self._ik.solve(value, self._q)
        if not result.converged:
            self.counts.unreachable += 1
            return
        self._q = result.q_rad
        yield Event(time_ns, ARM, result.q_rad)

    @staticmethod
    def _array(sample: BagSample) -> FloatArray:
        assert isinstance(sample.value, np.ndarray)
        return np.asarray(sample.value, float)
