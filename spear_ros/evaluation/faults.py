"""Faults put into a recording on its way to the policy: what a bad day at the lab looks like.

A plan is YAML, for example::

    faults:
      - {stream: external, kind: freeze, from_s: 2.0, to_s: 4.0}
      - {stream: arm, kind: delay, from_s: 5.0, to_s: 6.0, delay_s: 0.1}

``freeze`` repeats the last content before the window with advancing stamps, ``drop`` withholds
messages, ``delay`` delivers them later with their old stamps, ``reorder`` swaps neighbours, ``nan``
replaces the numbers of arm or gripper. Times are bag time since the recording's first message.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.data.bags import BagSample


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One thing that goes wrong on one stream for a while."""

    stream: Literal['external', 'wrist', 'arm', 'gripper', 'instruction']
    kind: Literal['freeze', 'drop', 'delay', 'reorder', 'nan']
    from_s: float = 0.0
    to_s: float | None = None
    """End of the window; null = to the end of the recording."""
    delay_s: float = 0.0
    """For ``delay`` only."""

    def __post_init__(self) -> None:
        if self.from_s < 0 or (self.to_s is not None and self.to_s <= self.from_s):
            raise UserError(
                f'from_s = {self.from_s:g} and to_s = {self.to_s} must be 0 <= from_s < to_s.'
            )
        if (self.kind == 'delay') != (self.delay_s > 0) or self.delay_s > 60:
            raise UserError(
                f'delay_s = {self.delay_s:g} must lie between 0 and 60 for kind "delay" '
                'and be left out for the others.'
            )
        if self.kind == 'nan' and self.stream not in ('arm', 'gripper'):
            raise UserError(f'kind "nan" fits arm and gripper, not {self.stream}.')

    def active(self, sample: BagSample, start_ns: int) -> bool:
        """Tell whether this fault hits ``sample``."""
        time_s = (sample.received_ns - start_ns) / 1e9
        end_s = float('inf') if self.to_s is None else self.to_s
        return sample.stream == self.stream and self.from_s <= time_s < end_s


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultPlan:
    """The schema of the file given by ``--faults``."""

    faults: tuple[Fault, ...] = ()


class FaultInjector:
    """Applies a plan to a stream of samples; deterministic, memory bounded by the delays.

    Args:
        plan: What goes wrong, and when.
        start_ns: Bag time that the plan's windows are counted from.
    """

    def __init__(self, plan: FaultPlan, start_ns: int) -> None:
        self._plan, self._start_ns = plan, start_ns
        self.hits: Counter[str] = Counter()
        """``stream kind`` -> number of samples that were hit."""
        self._last: dict[str, BagSample] = {}
        self._held: dict[str, BagSample] = {}

    def apply(self, samples: Iterable[BagSample]) -> Iterator[BagSample]:
        """Yield the samples as they arrive with the faults, in order of the time of receipt."""
        queue: list[tuple[int, int, BagSample]] = []
        number = 0
        for sample in samples:
            while queue and queue[0][0] <= sample.received_ns:
                yield heapq.heappop(queue)[2]
            for out in self._transform(sample):
                number += 1
                heapq.heappush(queue, (out.received_ns, number, out))
        for held in self._held.values():
            number += 1
            heapq.heappush(queue, (held.received_ns, number, held))
        while queue:
            yield heapq.heappop(queue)[2]

    def _transform(self, sample: BagSample) -> list[BagSample]:
        frozen, reorder = False, False
        for fault in self._plan.faults:
            if not fault.active(sample, self._start_ns):
                continue
            self.hits[f'{fault.stream} {fault.kind}'] += 1
            if fault.kind == 'drop':
                return []
            if fault.kind == 'freeze':
                frozen = True
                last = self._last.get(sample.stream, sample)
                sample = replace(sample, value=last.value, problem=last.problem)
            elif fault.kind == 'delay':
                late_ns = sample.received_ns + round(fault.delay_s * 1e9)
                sample = replace(sample, received_ns=late_ns)
            elif fault.kind == 'nan':
                sample = replace(sample, value=_not_a_number(sample))
            else:
                reorder = True
        if not frozen:
            self._last[sample.stream] = sample
        return self._swap(sample, reorder)

    def _swap(self, sample: BagSample, reorder: bool) -> list[BagSample]:
        """Hold every other sample back until the one after it has gone out."""
        held = self._held.pop(sample.stream, None)
        if held is not None:
            return [sample, replace(held, received_ns=sample.received_ns)]
        if reorder:
            self._held[sample.stream] = sample
            return []
        return [sample]


def _not_a_number(sample: BagSample) -> np.ndarray | float | None:
    if isinstance(sample.value, np.ndarray):
        return np.full_like(sample.value, np.nan)
    return float('nan') if sample.value is not None else None
