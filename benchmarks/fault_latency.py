"""From the moment that a fault could be known to the first braking command, per fault.

"Could be known": the last good sample plus its age limit for streams that end, the publication of
the first bad message for those that lie. With reasons after which nothing may be sent, the time of
the last command counts instead. Shipped limits, the whole system running.

    python benchmarks/fault_latency.py --robot franka --trials 10

The last line is one JSON object.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _braking import braking
from _fault_bench import FaultBench, MaskedError
from _fault_table import FAULTS, RECOVER
from _machine import machine, percentiles
from sensor_msgs.msg import JointState
from spear_msgs.msg import ActionChunk, PolicyStatus

from spear_ros.core.errors import UserError
from spear_ros.ros import qos
from spear_ros.ros.conversions import ns_from_time
from spear_ros.ros.drivers.base import messages
from spear_ros.runtime.executor_types import ExecutorSettings

REFLEX = 4


@dataclass(frozen=True, slots=True)
class Heard:
    """One message of a stream."""

    sent_ns: int
    stamp_ns: int
    good: bool


class Wire:
    """Listens to what the faults spoil."""

    def __init__(self, bench: FaultBench) -> None:
        self.heard: dict[str, deque[Heard]] = {}
        config, spec = bench.config, bench.spec
        names, finger = set(spec.joint_names), config.gripper_state.joint
        self._q: np.ndarray | None = None

        def joints_good(message: JointState) -> bool:
            q = np.array([p for n, p in zip(message.name, message.position) if n in names])  # noqa: B905
            previous, self._q = self._q, q
            return (
                len(q) == len(names)
                and bool(np.isfinite(q).all())
                and (previous is None or previous.shape != q.shape or abs(q - previous).max() < 0.2)
            )

        joints = qos.JOINTS_INPUT
        self._listen(bench, 'arm', JointState, config.arm.topic, joints, joints_good)
        gripper = config.gripper_state.topic
        self._listen(bench, 'gripper', JointState, gripper, joints, lambda m: finger in m.name)
        self._listen(
            bench,
            'chunk',
            ActionChunk,
            '/spear/action_chunk',
            qos.CHUNK,
            lambda m: all(np.isfinite(p.position.y) for p in m.poses),
        )
        status = qos.STATUS
        self._listen(bench, 'policy', PolicyStatus, '/spear/policy_status', status, lambda m: True)
        self._picture: deque[int] = deque(maxlen=200)
        bench.peer.node.create_subscription(
            PolicyStatus, '/spear/policy_status', self._on_policy, qos.STATUS
        )
        if config.franka:
            kind = messages('franka_msgs.msg').FrankaRobotState
            topic = config.franka.robot_state_topic
            self._listen(bench, 'robot', kind, topic, joints, lambda m: m.robot_mode != REFLEX)

    def _listen(
        self,
        bench: FaultBench,
        name: str,
        kind: Any,
        topic: str,
        profile: Any,
        good: Callable[[Any], bool],
    ) -> None:
        heard = self.heard[name] = deque(maxlen=2000)

        def on_message(message: Any, info: Mapping[str, int]) -> None:
            stamp = ns_from_time(message.header.stamp)
            heard.append(Heard(info['source_timestamp'], stamp, good(message)))

        bench.peer.node.create_subscription(kind, topic, on_message, profile)

    def _on_policy(self, message: PolicyStatus) -> None:
        for stream in message.streams:
            if stream.name == 'external' and stream.age_s >= 0.0:
                now = ns_from_time(message.header.stamp)
                self._picture.append(now - round(stream.age_s * 1e9))

    def last_good(self, name: str, after_ns: int) -> int | None:
        """Stamp of the newest good message when a stream has ended or lies."""
        good = [h for h in tuple(self.heard[name]) if h.good]
        return good[-1].stamp_ns if good and good[-1].stamp_ns > after_ns - 10**9 else None

    def first_bad(self, name: str, after_ns: int) -> int | None:
        """Publication of the first bad message."""
        return next(
            (h.sent_ns for h in tuple(self.heard[name]) if not h.good and h.sent_ns > after_ns),
            None,
        )

    def last_picture(self, after_ns: int) -> int | None:
        """Stamp of the newest external picture."""
        return max(self._picture) if self._picture else None


def onsets(bench: FaultBench, wire: Wire) -> dict[str, Callable[[int], int | None]]:
    """Per fault: time from which it could be known, given the time of its injection."""
    config, settings = bench.config, ExecutorSettings()

    def ends(name: str, limit_s: float) -> Callable[[int], int | None]:
        def onset(after_ns: int) -> int | None:
            last = wire.last_good(name, after_ns)
            return None if last is None else last + round(limit_s * 1e9)

        return onset

    def lies(name: str) -> Callable[[int], int | None]:
        return lambda after_ns: wire.first_bad(name, after_ns)

    def pictures(after_ns: int) -> int | None:
        last = wire.last_picture(after_ns)
        limit = config.cameras.external.max_age_s
        return None if last is None else last + round(limit * 1e9)

    table: dict[str, Callable[[int], int | None]] = {
        'joints_drop': ends('arm', config.arm.max_age_s),
        'joints_nan': lies('arm'),
        'joints_jump': lies('arm'),
        'joints_missing': lies('arm'),
        'joints_zero_ticks': lies('arm'),
        'policy_stopped': ends('policy', settings.policy_max_age_s),
        'chunk_nan_once': lies('chunk'),
        'camera_drop_external': pictures,
        'gripper_silent': ends('gripper', config.gripper_state.max_age_s),
        'second_publisher': lambda after_ns: after_ns,
    }
    if config.franka:
        table['reflex'] = lies('robot')
    return table


def measure(bench: FaultBench, wire: Wire, name: str, onset: Callable[[int], int | None]) -> float:
    """One trial; milliseconds.

    Raises:
        MaskedError: something else happened, or the commands show no clear brake.
    """
    fault = FAULTS[name]
    bench.run()
    time.sleep(random.uniform(0.35, 0.6))
    if bench.state != 'RUNNING':
        raise MaskedError(bench.state)
    first, begin, injected_ns = len(bench.changes), time.monotonic(), time.time_ns()
    bench.inject(fault.inject)
    bench.outcome(fault, first)
    known = onset(injected_ns)
    # A chunk that is followed again soon leaves no standstill behind: look at it at once.
    time.sleep(0.12 if name == 'chunk_nan_once' else 0.35)
    commands = bench.log.since(begin - 0.35)
    if known is None or not commands:
        raise MaskedError('no onset seen')
    if fault.silent:
        bench.heal()
        if fault.then == RECOVER:
            bench.recover()
        return (commands[-1].sent_ns - known) * 1e-6
    found = braking(commands, min(known, commands[-1].stamp_ns), bench.drop_m_s)
    if found is None:
        raise MaskedError('no clear brake')
    return (found.first_ns - known) * 1e-6


def run(bench: FaultBench, trials: int) -> dict:
    random.seed(0)
    wire = Wire(bench)
    latencies: dict[str, list[float]] = {}
    lost = 0
    for name, onset in onsets(bench, wire).items():
        values = latencies[name] = []
        for _ in range(3 * trials):
            if len(values) == trials:
                break
            try:
                values.append(measure(bench, wire, name, onset))
            except (MaskedError, UserError) as error:
                lost += 1
                print(f'{name}: lost: {str(error)[:120]}', flush=True)
        print(f'{name}: {percentiles(values)}', flush=True)
    return {
        'period_ms': 1e3 / bench.spec.control_rate_hz,
        'latency_ms': {name: percentiles(values) for name, values in latencies.items()},
        'lost_trials': lost,
        'unsafe_commands': len(bench.log.judge.violations),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--robot', choices=('franka', 'widowx'), default='franka')
    parser.add_argument('--trials', type=int, default=10)
    parser.add_argument('--patient', action='store_true', help='age limits for a loaded machine')
    parser.add_argument('--domain', type=int, help='ROS_DOMAIN_ID; default: one by chance')
    args = parser.parse_args()
    environment = {} if args.domain is None else {'ROS_DOMAIN_ID': str(args.domain)}
    with tempfile.TemporaryDirectory(prefix='latency-') as folder:
        bench = FaultBench(args.robot, Path(folder), patient=args.patient, environment=environment)
        try:
            result = run(bench, args.trials)
        finally:
            bench.close()
    result = {'benchmark': 'fault_latency', 'robot': args.robot, 'patient': args.patient, **result}
    print(json.dumps({**result, **machine()}))


if __name__ == '__main__':
    main()
