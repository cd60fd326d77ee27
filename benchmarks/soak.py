"""A long run with a random fault every 20 seconds: no unsafe command, flat memory.

    python benchmarks/soak.py --minutes 60 --robot franka

Every fault of the table that a switch, a signal or a second publisher can throw is drawn at random;
between faults the robot follows chunks. Counted: commands that the judge of ``_commands`` finds
outside the hard limits, targets that move (or are sent) after detection, faults that did not end
where the table says. Memory is the unique set size per process; the slope is that of the longest
life of each process without its first tenth. The last line is one JSON object; the exit status is 1
if anything unsafe was seen, or if most faults were masked by a busy machine.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _fault_bench import FaultBench, MaskedError
from _fault_table import FAULTS, RESUMES, TOLERATED, Fault
from _machine import machine, uss_mb

from spear_ros.core.errors import UserError

_SAMPLE_S = 10.0


class Memory:
    """Unique set size of the processes over time, by process id."""

    def __init__(self, bench: FaultBench) -> None:
        self._bench = bench
        self._series: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
        self._next = 0.0

    def sample(self) -> None:
        """Take a sample of each process when it is time."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _SAMPLE_S
        for name in self._bench.processes.alive():
            pid = self._bench.processes.pid(name)
            self._series[name, pid].append((now, uss_mb(pid)))

    def report(self) -> dict[str, dict[str, float]]:
        """Per process: MB at the end, MB per hour, hours watched."""
        longest: dict[str, list[tuple[float, float]]] = {}
        for (name, _), series in self._series.items():
            if len(series) > len(longest.get(name, [])):
                longest[name] = series
        return {name: _slope(series) for name, series in longest.items()}


def _slope(series: list[tuple[float, float]]) -> dict[str, float]:
    kept = np.array(series[len(series) // 10 :])
    hours = (kept[:, 0] - kept[0, 0]) / 3600.0
    slope = float(np.polyfit(hours, kept[:, 1], 1)[0]) if len(kept) > 2 else 0.0
    return {
        'mb': round(float(kept[-1, 1]), 1),
        'mb_per_hour': round(slope, 2),
        'hours': round(float(hours[-1]), 3),
    }


class Tally:
    """What came of the faults."""

    def __init__(self) -> None:
        self.as_expected: Counter[str] = Counter()
        self.masked: Counter[str] = Counter()
        self.unsafe: list[str] = []


def throw(bench: FaultBench, fault: Fault, tally: Tally) -> None:
    """Throw one fault, judge what follows, and take its cause away."""
    try:
        bench.run()
        first = len(bench.changes)
        bench.inject(fault.inject)
        if fault.then == TOLERATED:
            bench.goes_on(first)
        else:
            change = bench.outcome(fault, first)
            if fault.then != RESUMES:
                tally.unsafe += [f'{fault.id}: {text}' for text in bench.held(fault, change)]
        bench.heal()
    except (MaskedError, UserError) as error:
        tally.masked[fault.id] += 1
        print(f'{fault.id}: masked: {str(error)[:160]}', flush=True)
    else:
        tally.as_expected[fault.id] += 1


def run(bench: FaultBench, seconds: float, every_s: float = 20.0, seed: int = 0) -> dict:
    """Soak a bench; returns the figures."""
    draw = random.Random(seed)
    faults = [f for f in FAULTS.values() if f.inject and bench.robot in f.robots]
    memory, tally = Memory(bench), Tally()
    begin = time.monotonic()
    count = 0
    while time.monotonic() < begin + seconds:
        due = begin + (count + 1) * every_s
        throw(bench, draw.choice(faults), tally)
        count += 1
        try:
            bench.run()
        except UserError as error:
            tally.masked['run'] += 1
            print(f'not running: {error}', flush=True)
        while time.monotonic() < due:
            memory.sample()
            time.sleep(0.05)
        memory.sample()
        if count % 30 == 0:
            print(f'{(time.monotonic() - begin) / 60:.1f} min, {count} faults', flush=True)
    judge = bench.log.judge
    return {
        'minutes': round((time.monotonic() - begin) / 60, 2),
        'faults': count,
        'as_expected': sum(tally.as_expected.values()),
        'masked': dict(tally.masked),
        'kinds': len(tally.as_expected),
        'commands_judged': judge.judged,
        'heard_late_s': round(bench.log.worst_lag_s, 2),
        'top_speed_m_s': round(judge.top_speed_m_s, 3),
        'unsafe_commands': len(judge.violations),
        'unsafe': (judge.violations + tally.unsafe)[:20],
        'moved_after_detection': len(tally.unsafe),
        'memory': memory.report(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--minutes', type=float, default=1.0)
    parser.add_argument('--robot', choices=('franka', 'widowx'), default='franka')
    parser.add_argument('--every', type=float, default=20.0, help='seconds between faults')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--domain', type=int, help='ROS_DOMAIN_ID; default: one by chance')
    args = parser.parse_args()
    environment = {} if args.domain is None else {'ROS_DOMAIN_ID': str(args.domain)}
    with tempfile.TemporaryDirectory(prefix='soak-') as folder:
        bench = FaultBench(args.robot, Path(folder), camera_process=True, environment=environment)
        try:
            result = run(bench, 60.0 * args.minutes, args.every, args.seed)
        finally:
            bench.close()
    print(json.dumps({'benchmark': 'soak', 'robot': args.robot, **result, **machine()}))
    # A soak in which the machine was too busy for most faults has shown nothing.
    sys.exit(1 if result['unsafe'] or 2 * result['as_expected'] < result['faults'] else 0)


if __name__ == '__main__':
    main()
