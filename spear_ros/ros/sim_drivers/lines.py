"""Where faults are put between the simulated sensors and the wire.

A line takes each message that a healthy driver would send and gives back those that the faulty one
sends now. Duck-typed messages, no ROS imports.
"""

import copy
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from spear_ros.ros.sim_drivers.faults import FaultBoard

_HUGE = 100_000


class CameraLine:
    """Faults of one camera, on sensor_msgs/Image or CompressedImage."""

    def __init__(self, camera: str, faults: FaultBoard) -> None:
        self._camera, self._faults = camera, faults
        self._frozen: Any = None
        self._late: deque[tuple[int, Any]] = deque()
        self._waiting: Any = None

    def pass_on(self, message: Any, now_ns: int) -> list[Any]:
        """Return the messages to publish now, in this order."""
        message = self._corrupt(self._freeze(message))
        delay = self._on('camera_delay')
        if delay is not None:
            self._late.append((now_ns + round(delay * 1e9), message))
        ready = [] if delay is not None else [message]
        while self._late and (self._late[0][0] <= now_ns or delay is None):
            ready.insert(len(ready) - (delay is None), self._late.popleft()[1])
        if self._on('camera_drop') is not None:
            return []
        if self._on('camera_duplicate') is not None:
            ready = [m for m in ready for _ in range(2)]
        return self._reorder(ready)

    def _on(self, name: str) -> float | None:
        return self._faults.value(name, self._camera)

    def _freeze(self, message: Any) -> Any:
        if self._on('camera_freeze') is None:
            self._frozen = None
            return message
        if self._frozen is None:
            self._frozen = message
        repeated = copy.copy(self._frozen)
        repeated.header = message.header
        return repeated

    def _corrupt(self, message: Any) -> Any:
        if self._on('camera_short') is not None:
            message = copy.copy(message)
            message.data = message.data[: len(message.data) // 2]
        is_raw = hasattr(message, 'encoding')
        if self._on('camera_encoding') is not None:
            message = copy.copy(message)
            if is_raw:
                message.encoding = '32FC1'
            else:
                message.format = '32FC1; compressedDepth png'
        if self._on('camera_size') is not None and is_raw:
            message = copy.copy(message)
            message.width, message.height, message.step = _HUGE, _HUGE, 3 * _HUGE
        return message

    def _reorder(self, messages: list[Any]) -> list[Any]:
        if self._on('camera_reorder') is None:
            waiting, self._waiting = self._waiting, None
            return messages if waiting is None else [waiting, *messages]
        out = []
        for message in messages:
            if self._waiting is None:
                self._waiting = message
            else:
                out += [message, self._waiting]
                self._waiting = None
        return out


@dataclass(frozen=True, slots=True)
class JointSample:
    """One joint state before it becomes a message."""

    stamp_ns: int
    names: tuple[str, ...]
    position: tuple[float, ...]
    velocity: tuple[float, ...] = ()
    effort: tuple[float, ...] = ()


class JointLine:
    """Faults of the joint states; ``arm`` are the names of the arm's joints among them."""

    def __init__(self, arm: Sequence[str], faults: FaultBoard) -> None:
        self._arm, self._faults = tuple(arm), faults
        self._frozen: JointSample | None = None

    def pass_on(self, sample: JointSample) -> JointSample | None:
        """Return the sample to publish, or None for none."""
        faults = self._faults
        if faults.active('joints_drop'):
            return None
        if not faults.active('joints_freeze'):
            self._frozen = sample
        elif self._frozen is not None:
            sample = replace(self._frozen, stamp_ns=sample.stamp_ns)
        delay = faults.value('joints_delay')
        if delay is not None:
            sample = replace(sample, stamp_ns=sample.stamp_ns - round(delay * 1e9))
        return self._names(self._positions(sample))

    def _positions(self, sample: JointSample) -> JointSample:
        faults, q = self._faults, list(sample.position)
        arm = [sample.names.index(name) for name in self._arm]
        if faults.active('joints_zero_ticks'):
            q = [-math.pi] * len(q)
        if faults.active('joints_nan'):
            q[arm[2]] = math.nan
        jump = faults.value('joints_jump')
        if jump is not None:
            q[arm[0]] += jump
        effort = list(sample.effort)
        overload = faults.value('overload')
        if overload is not None and effort:
            effort[arm[1]] = overload
        return replace(sample, position=tuple(q), effort=tuple(effort))

    def _names(self, sample: JointSample) -> JointSample:
        faults = self._faults
        if faults.active('joints_rename'):
            renamed = {name: f'other_joint{i}' for i, name in enumerate(self._arm)}
            sample = replace(sample, names=tuple(renamed.get(n, n) for n in sample.names))
        if faults.active('joints_missing'):
            keep = [i for i, n in enumerate(sample.names) if n != self._arm[-1]]
            sample = _select(sample, keep)
        if faults.active('joints_reorder'):
            sample = _select(sample, list(range(len(sample.names)))[::-1])
        return sample


def _select(sample: JointSample, keep: Sequence[int]) -> JointSample:
    def take(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[i] for i in keep) if values else ()

    return replace(
        sample,
        names=take(sample.names),
        position=take(sample.position),
        velocity=take(sample.velocity),
        effort=take(sample.effort),
    )
