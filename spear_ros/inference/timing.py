"""Stop-watches for benchmarks: device time by events on a GPU, wall-clock time on a CPU.

Device work is asynchronous, so a host's clock around a launch measures the launch. What is timed
here is warmed up first, repeated for a budget of seconds, and reported as median and 99th
percentile. A stage of many small kernels is captured first, so that the figure is the card's and
not Python's.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

Function = Callable[[], object]

WARM_UP_RUNS = 3
MIN_RUNS, MAX_RUNS = 3, 1000


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


def time_device(function: Function, budget: Budget, device: torch.device) -> Timing:
    """Time on the device: between two events on a GPU, on the host's clock on a CPU.

    For a GPU ``function`` should be a graph's replay: eager calls leave gaps between kernels, and
    these count.
    """
    if device.type != 'cuda':
        return time_host(function, budget)

    def once() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    with torch.cuda.device(device):
        synchronize(device)
        return timing_of(_repeat(once, budget))


def capture(function: Function, device: torch.device) -> tuple[Function, str]:
    """Return (what replays ``function``, '') or (``function``, why it is not captured).

    The graph writes the same memory in every replay; whoever needs a result keeps the tensors.
    """
    if device.type != 'cuda':
        return function, 'no graphs on a CPU'
    try:
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                function()
        torch.cuda.current_stream(device).wait_stream(stream)
        synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
    except RuntimeError as error:
        synchronize(device)
        return function, f'not captured: {" ".join(str(error).split())[:120]}'
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
