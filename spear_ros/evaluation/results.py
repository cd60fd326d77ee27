"""What a roll-out leaves behind: one record per episode, sums per family."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from spear_ros.core.types import ImageArray
from spear_ros.evaluation.intervals import wilson

SUCCESS, TIMEOUT, WRONG_OBJECT, STOPPED = 'success', 'timeout', 'wrong_object', 'stopped'


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeResult:
    """One episode."""

    family: str
    seed: int
    variant: str
    instruction: str
    outcome: str
    """``success``, ``timeout``, ``wrong_object`` (touched another one first and did not succeed),
    ``stopped`` (the executor left RUNNING for good; ``reason`` says why)."""
    reason: str = ''
    duration_s: float
    """Simulated time from the instruction to the outcome."""
    target: str
    first_touched: str
    """First object that the gripper touched; '' = none."""
    chunks: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Rejected chunks by reason."""
    holds: Mapping[str, int] = field(default_factory=dict)
    """Entries into HOLD by reason."""
    worst_stretch: float = 1.0
    inference_ms: tuple[float, ...] = ()
    """Wall time of each inference."""
    frames: tuple[ImageArray, ...] = ()
    """A few small pictures for the contact sheet; not written to JSON."""

    @property
    def success(self) -> bool:
        """The task's criterion was met."""
        return self.outcome == SUCCESS

    def as_dict(self) -> dict[str, object]:
        """Return what goes into the JSON file."""
        skip = ('frames', 'inference_ms')
        record = {n: getattr(self, n) for n in self.__dataclass_fields__ if n not in skip}
        record['rejected'], record['holds'] = dict(self.rejected), dict(self.holds)
        record['duration_s'] = round(self.duration_s, 3)
        if self.inference_ms:
            record['inference_p50_ms'] = round(float(np.median(self.inference_ms)), 3)
        return record


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilySummary:
    """Success of one family, with a 95 % Wilson interval."""

    family: str
    episodes: int
    successes: int
    low: float
    high: float
    went_to_target: int
    """Episodes in which the first object touched was the one asked for."""
    median_s: float
    """Median duration of the successes; NaN without any."""
    chunks: int
    rejected: int
    holds: int
    inference_p50_ms: float
    inference_p99_ms: float
    missed: tuple[int, ...]
    """Seeds of the failures."""

    @property
    def rate(self) -> float:
        """Share of successes."""
        return self.successes / self.episodes if self.episodes else 0.0

    def as_dict(self) -> dict[str, object]:
        """Return what goes into the JSON file; NaN becomes None."""
        record: dict[str, object] = {'rate': round(self.rate, 4)}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, float):
                value = None if np.isnan(value) else round(value, 4)
            record[name] = list(value) if isinstance(value, tuple) else value
        return record


def summarize(results: Iterable[EpisodeResult]) -> list[FamilySummary]:
    """Sum up per family, in the order of first appearance."""
    families: dict[str, list[EpisodeResult]] = {}
    for result in results:
        families.setdefault(result.family, []).append(result)
    return [_summarize_one(name, group) for name, group in families.items()]


def _summarize_one(family: str, group: list[EpisodeResult]) -> FamilySummary:
    successes = [r for r in group if r.success]
    low, high = wilson(len(successes), len(group))
    times = [ms for r in group for ms in r.inference_ms]
    p50, p99 = np.percentile(times, [50, 99]) if times else (np.nan, np.nan)
    return FamilySummary(
        family=family,
        episodes=len(group),
        successes=len(successes),
        low=low,
        high=high,
        went_to_target=sum(r.first_touched == r.target for r in group),
        median_s=float(np.median([r.duration_s for r in successes])) if successes else np.nan,
        chunks=sum(r.chunks for r in group),
        rejected=sum(sum(r.rejected.values()) for r in group),
        holds=sum(sum(r.holds.values()) for r in group),
        inference_p50_ms=float(p50),
        inference_p99_ms=float(p99),
        missed=tuple(r.seed for r in group if not r.success),
    )
