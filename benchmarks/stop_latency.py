"""Stop service -> first braking command -> standstill, while a policy infers.

The whole system runs (simulated robot with both cameras, executor, policy), and beside it a second
policy process computes chunks of SPEAR-1 at debug size from the same pictures, with torch, as load
(--load none: without). Each trial drives, calls stop at a random moment, and reads the commands.

    python benchmarks/stop_latency.py --robot franka --stops 100

The last line is one JSON object.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _braking import braking
from _fault_bench import FaultBench, MaskedError
from _load import load_process
from _machine import machine, percentiles

from spear_ros.core.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--robot', choices=('franka', 'widowx'), default='franka')
    parser.add_argument('--stops', type=int, default=100)
    parser.add_argument('--load', choices=('spear1_debug', 'none'), default='spear1_debug')
    parser.add_argument('--domain', type=int, help='ROS_DOMAIN_ID; default: one by chance')
    args = parser.parse_args()
    environment = {} if args.domain is None else {'ROS_DOMAIN_ID': str(args.domain)}
    with tempfile.TemporaryDirectory(prefix='stop-') as folder:
        bench = FaultBench(args.robot, Path(folder), environment=environment)
        try:
            if args.load != 'none':
                load_process(bench)
            result = run(bench, args.stops)
        finally:
            bench.close()
    result = {'benchmark': 'stop_latency', 'robot': args.robot, 'load': args.load, **result}
    print(json.dumps({**result, **machine()}))


def run(bench: FaultBench, stops: int) -> dict:
    random.seed(0)
    latencies, standstills, answers, lost = [], [], [], 0
    while len(latencies) < stops:
        try:
            bench.run()
            time.sleep(random.uniform(0.35, 0.6))
            if bench.state != 'RUNNING':
                raise MaskedError(bench.state)
            begin = time.monotonic()
            asked_ns = time.time_ns()
            bench.operator.require('stop')
            answers.append((time.time_ns() - asked_ns) * 1e-6)
            time.sleep(0.4)
        except (MaskedError, UserError) as error:
            lost += 1
            print(f'lost: {error}', flush=True)
            continue
        found = braking(bench.log.since(begin - 0.35), asked_ns, bench.drop_m_s)
        if found is None:
            lost += 1
            continue
        latencies.append((found.first_ns - asked_ns) * 1e-6)
        standstills.append((found.still_ns - asked_ns) * 1e-6)
        if len(latencies) % 10 == 0:
            print(f'{len(latencies)} stops: {percentiles(latencies)}', flush=True)
    return {
        'first_braking_command_ms': percentiles(latencies),
        'standstill_of_the_target_ms': percentiles(standstills),
        'service_answer_ms': percentiles(answers),
        'lost_trials': lost,
        'unsafe_commands': len(bench.log.judge.violations),
    }


if __name__ == '__main__':
    main()
