"""Stop-watches for benchmarks: device time by events on a GPU, wall-clock time on a CPU.

Device work is asynchronous, so a host's clock around a launch measures the launch. What is timed
here is warmed up first, repeated for a budget of seconds, and reported as median and 99th
percentile. A stage of many small kernels is captured first, so that the figure is the card's and
not Python's.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch

from spear_ros.core.errors import root_cause
from spear_ros.inference.kernels import end_broken_capture, running_on

Function = Callable[[], object]

WARM_UP_RUNS = 3
MIN_RUNS, MAX_RUNS = 3, 1000
# The first is a guess at how long a host takes to launch a graph; if it is too short it is doubled.
FIRST_HOLD_MS, LONGEST_HOLD_MS = 0.25, 64.0
CYCLES_PER_MS = 2e6
"""Of a multiprocessor at 2 GHz; at a faster clock a hold is shorter, and doubled if need be."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of repeated runs."""

    runs: int
    p50: float
    p99: float
    """With fewer than 100 runs: the interpolated upper end, close to the largest."""
    least: float
    greatest: float

    def as_dict(self) -> dict[str, float | int]:
        """Rounded to microseconds, for JSON."""
        return {k: v if k == 'runs' else round(v, 4) for k, v in asdict(self).items()}


def timing_of(milliseconds: list[float]) -> Timing:
    """Summarise runs; at least one."""
    assert milliseconds, 'nothing was timed'
    p50, p99 = np.percentile(milliseconds, (50, 99))
    return Timing(len(milliseconds), float(p50), float(p99), min(milliseconds), max(milliseconds))


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How long something may be repeated."""

    seconds: float = 2.0
    least: int = MIN_RUNS
    most: int = MAX_RUNS
    warm_up: int = WARM_UP_RUNS


def time_host(function: Function, budget: Budget, device: torch.device | None = None) -> Timing:
    """Time from call to finished result on the host's clock; the device is waited for."""

    def once() -> float:
        started = time.perf_counter()
        function()
        synchronize(device)
        return (time.perf_counter() - started) * 1e3

    return timing_of(_repeat(once, budget))


def time_device(
    function: Function, budget: Budget, device: torch.device, *, one_launch: bool = True
) -> Timing:
    """Time on the device: between two events on a GPU, on the host's clock on a CPU.

    Args:
        function: what is timed.
        budget: how often.
        device: where it runs.
        one_launch: it is a graph's replay or a single kernel. The device is then kept busy while
            the host launches it, so that the figure is the device's alone. Eager calls leave gaps
            between kernels, and these count.
    """
    if device.type != 'cuda':
        return time_host(function, budget)
    with torch.cuda.device(device):
        synchronize(device)
        watch = DeviceWatch(_CudaQueue(), hold=one_launch)
        return timing_of(_repeat(lambda: watch.time(function), budget))


class Queue(Protocol):
    """What a device does one after the other; a fake of it stands in where there is no GPU."""

    def sleep(self, milliseconds: float) -> None:
        """Queue a pause of at least that long."""

    def event(self) -> 'Event':
        """Queue a mark that keeps the time when the device passes it."""


class Event(Protocol):
    """A mark in a queue."""

    def query(self) -> bool:
        """Whether the device has passed it."""

    def synchronize(self) -> None:
        """Wait until it has."""

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this mark to a later one."""


class DeviceWatch:
    """Times work between two marks in a device's queue.

    Args:
        queue: the device's.
        hold: keep the device busy before the first mark until the host has queued everything.
            A hold that ended too soon is doubled, and the run repeated.
    """

    def __init__(self, queue: Queue, *, hold: bool) -> None:
        self._queue = queue
        self._hold_ms = FIRST_HOLD_MS if hold else 0.0

    def time(self, function: Function) -> float:
        """Milliseconds of the device for one call of ``function``."""
        while True:
            if self._hold_ms:
                self._queue.sleep(self._hold_ms)
            begin = self._queue.event()
            function()
            end = self._queue.event()
            late = begin.query()
            end.synchronize()
            if not (late and 0 < self._hold_ms < LONGEST_HOLD_MS):
                return float(begin.elapsed_time(end))
            self._hold_ms *= 2


class _CudaQueue:
    """The current stream of the current device."""

    def sleep(self, milliseconds: float) -> None:
        torch.cuda._sleep(int(milliseconds * CYCLES_PER_MS))

    def event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def capture(function: Function, device: torch.device) -> tuple[Function, str]:
    """Return (what replays ``function``, '') or (``function``, why it is not captured).

    The graph writes the same memory in every replay; whoever needs a result keeps the tensors.
    """
    if device.type != 'cuda':
        return function, 'no graphs on a CPU'
    pool = torch.cuda.graph_pool_handle()
    try:
        with running_on(device):
            stream, capturing = (torch.cuda.Stream(device) for _ in range(2))
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_RUNS):
                    function()
            torch.cuda.current_stream(device).wait_stream(stream)
            synchronize(device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=capturing):
                function()
    except RuntimeError as error:
        end_broken_capture(device, pool)
        synchronize(device)

        def line_by_line() -> None:
            with running_on(device):
                function()

        return line_by_line, f'not captured: {root_cause(error)}'
    return graph.replay, ''


def synchronize(device: torch.device | None) -> None:
    """Wait for a GPU; nothing to do on a CPU."""
    if device is not None and device.type == 'cuda':
        torch.cuda.synchronize(device)


def _repeat(once: Callable[[], float], budget: Budget) -> list[float]:
    for _ in range(budget.warm_up):
        once()
    results: list[float] = []
    end = time.perf_counter() + budget.seconds
    while len(results) < budget.most:
        results.append(once())
        if time.perf_counter() > end and len(results) >= budget.least:
            break
    return results
