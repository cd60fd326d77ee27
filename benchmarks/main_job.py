"""The main job's times with everything loaded: two cameras, executor, policy, network, recorder.

Runs the whole system twice, with real-time priority and without (SPEAR_REALTIME=0). The robot
follows a policy that costs nothing, so that it moves; beside it SPEAR-1 at debug size (untrained:
its chunks go nowhere) infers from the same pictures, and the flight recorder writes.

    python benchmarks/main_job.py --robot franka --seconds 60

Figures: newest picture received to chunk published, minus inference (overhead); inference of the
debug network; camera stamp to the first command of the chunk; interval between commands; unique set
size per process; start of executor_node. The last line is one JSON object.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _fault_bench import EXECUTOR, FaultBench
from _load import Load, load_process
from _machine import machine, percentiles, uss_mb

from spear_ros.core.errors import UserError
from spear_ros.ros.bringup import BringupOptions, processes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--robot', choices=('franka', 'widowx'), default='franka')
    parser.add_argument('--seconds', type=float, default=60.0)
    parser.add_argument('--patient', action='store_true', help='age limits for a loaded machine')
    args = parser.parse_args()
    results = {}
    for name, value in (('realtime', '1'), ('ordinary', '0')):
        with tempfile.TemporaryDirectory(prefix='main-job-') as folder:
            bench = FaultBench(
                args.robot,
                Path(folder),
                patient=args.patient,
                environment={'SPEAR_REALTIME': value},
            )
            try:
                results[name] = run(bench, args.seconds)
            finally:
                bench.close()
        print(f'{name}: {json.dumps(results[name])}', flush=True)
    result = {'benchmark': 'main_job', 'robot': args.robot, 'patient': args.patient, **results}
    print(json.dumps({**result, **machine()}))


def run(bench: FaultBench, seconds: float) -> dict:
    start_s = executor_start(bench)
    load = load_process(bench)
    recorder(bench)
    intervals, stops, running_s = [], 0, 0.0
    while running_s < seconds:
        try:
            bench.run()
        except UserError as error:
            print(f'not running: {error}', flush=True)
            continue
        begin, first = time.monotonic(), len(bench.changes)
        while bench.state == 'RUNNING' and running_s + time.monotonic() - begin < seconds:
            time.sleep(0.05)
        running_s += time.monotonic() - begin
        stamps = np.array([s.stamp_ns for s in bench.log.since(begin)])
        intervals += (np.diff(stamps) * 1e-6).tolist()
        stops += len(bench.changes) > first
    return figures(bench, load, intervals, stops, start_s)


def figures(
    bench: FaultBench, load: Load, intervals: list[float], stops: int, start_s: float
) -> dict:
    executor, policy = bench.operator.executor_status, bench.operator.policy_status
    network = load.status
    period = 1e3 / bench.spec.control_rate_hz
    spread = percentiles(intervals)
    return {
        'command_interval_ms': spread,
        'command_interval_p99_over_period': round(spread.get('p99', 0.0) / period, 3),
        'overhead_ms': pair(policy, 'overhead'),
        'debug_network_inference_ms': pair(network, 'inference'),
        'debug_network_overhead_ms': pair(network, 'overhead'),
        'debug_network_chunks': network.chunks,
        'camera_stamp_to_first_command_ms': pair(executor, 'first_command_age'),
        'holds_and_faults': stops,
        'executor_start_s': round(start_s, 2),
        'unsafe_commands': len(bench.log.judge.violations),
        'uss_mb': {
            name: round(uss_mb(bench.processes.pid(name)), 1) for name in bench.processes.alive()
        },
    }


def pair(status: object, name: str) -> dict[str, float]:
    """The two percentiles of a status message."""
    return {p: round(getattr(status, f'{name}_{p}_ms'), 2) for p in ('p50', 'p99')}


def recorder(bench: FaultBench) -> None:
    """Start the flight recorder."""
    options = BringupOptions(
        robot=bench.robot,
        sim=True,
        flight=str(bench.folder / 'flight'),
        record=str(bench.folder / 'run'),
    )
    spec = next(s for s in processes(options) if s.name == 'recorder_node')
    bench.processes.start_one(spec)


def executor_start(bench: FaultBench) -> float:
    """Seconds from the start of the process to its first status (active or not)."""
    bench.processes.stop([EXECUTOR])
    count = bench.statuses
    begin = time.monotonic()
    bench.start(EXECUTOR)
    bench.until(lambda: bench.statuses > count, 'executor_status', 30)
    return time.monotonic() - begin


if __name__ == '__main__':
    main()
