"""Fuzz the message callbacks: what a broken or hostile node may send must not crash or move.

    python benchmarks/fuzz_messages.py --messages 100000 --seed 0

Messages of the real types are changed in one to three fields at random depth (numbers that are not
finite or at the ends of their type, texts, lists cut, emptied, doubled, names exchanged), go once
through serialisation, so that only what a wire can carry is tried, and reach the callbacks that the
nodes use: joint states, gripper states, controller activity, chunks and policy status in bursts
into an executor that follows good ones, judged command by command as in ``fuzz_executor``; pictures
(raw and JPEG), joint states and object poses into the policy's inputs. An exception that leaves a
callback counts as a crash. The last line is one JSON object; the exit status is 1 after a crash or
an unsafe command.
"""

import argparse
import json
import math
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from rclpy.serialization import deserialize_message, serialize_message

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _machine import machine
from executor_rig import Rig
from fuzz_executor import Judge

from spear_ros.core.reasons import Reason
from spear_ros.ros.config import load_robot_config
from spear_ros.ros.conversions import (
    chunk_from_msg,
    chunk_to_msg,
    header,
    image_to_msg,
    joint_state_msg,
    jpeg_to_msg,
    object_poses_to_msg,
    policy_health_from_msg,
)
from spear_ros.ros.drivers.base import GripperFeed, messages
from spear_ros.ros.drivers.franka import FrankaDriver
from spear_ros.ros.drivers.widowx import WidowxDriver
from spear_ros.ros.policy_inputs import PolicyInputs
from spear_ros.runtime.executor import DriverState, ExecutorSettings
from spear_ros.runtime.state_machine import State

BURST, PER_TICK = 40, 2
REST_TICKS, RUN_TICKS, AFTER_TICKS = 60, 30, 10
"""A bad sample counts as present for half a second: rest, arm, run, burst, look on."""
WEIRD = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e-9, 1e9, 1e300, -1e300, 0.1)
TEXTS = ('', ' ', 'x', 'active', 'nan', '0', '\n', '\u00e9\u4e16', '/', '../..', 'a' * 10_000)
ENCODINGS = ('rgb8', 'bgr8', 'rgba8', 'mono8', '16UC1', '32FC1', 'yuv422', 'bayer_rggb8', 'jpeg')
BITS = {'int8': 7, 'int16': 15, 'int32': 31, 'int64': 63}

# ------------------------------------------------------------------------------------- mutation


def mutated(rng: np.random.Generator, message: Any) -> Any:
    """Return a copy with one to three changes, as it would come out of the middleware."""
    copy = deserialize_message(serialize_message(message), type(message))
    for _ in range(int(rng.integers(1, 4))):
        change(rng, copy)
    return deserialize_message(serialize_message(copy), type(message))


def change(rng: np.random.Generator, message: Any) -> None:
    """Change one field somewhere below ``message``."""
    fields = message.get_fields_and_field_types()
    name = str(rng.choice(list(fields)))
    value, kind = getattr(message, name), fields[name]
    if hasattr(value, 'get_fields_and_field_types'):
        change(rng, value)
    elif '[' in kind:  # an array of fixed length
        new = [scalar(rng, kind.split('[')[0], v) for v in value]
        setattr(message, name, new)
    elif kind.startswith('sequence'):
        inner = kind.removeprefix('sequence<').split('>')[0].split(',')[0]
        setattr(message, name, sequence(rng, inner, value))
    else:
        setattr(message, name, scalar(rng, kind, value))


def sequence(rng: np.random.Generator, kind: str, value: Any) -> Any:
    """Cut, double, empty or shuffle a list, or change one of its elements."""
    if kind in ('uint8', 'octet'):
        return data(rng, bytes(value))
    items = list(value)
    how = int(rng.integers(6))
    if how == 0 or not items:
        return []
    i = int(rng.integers(len(items)))
    if how == 1:
        return items[:i]
    if how == 2:
        return items + items[: i + 1]
    if how == 3:
        return [items[k] for k in rng.permutation(len(items))]
    if hasattr(items[i], 'get_fields_and_field_types'):
        change(rng, items[i])
    else:
        items[i] = scalar(rng, kind, items[i])
    return items


def data(rng: np.random.Generator, value: bytes) -> Any:
    """Cut, lengthen or spoil bytes."""
    how = int(rng.integers(4))
    if how == 0 or not value:
        return b''
    if how == 1:
        return value[: int(rng.integers(len(value)))]
    if how == 2:
        return value + value[:100]
    spoiled = bytearray(value)
    for i in rng.integers(len(value), size=int(rng.integers(1, 50))):
        spoiled[i] = int(rng.integers(256))
    return bytes(spoiled)


def scalar(rng: np.random.Generator, kind: str, value: Any) -> Any:
    """Another value of the same type."""
    if kind.startswith('string'):
        return str(rng.choice(ENCODINGS if value in ENCODINGS else [*TEXTS, value[::-1]]))
    if kind == 'boolean':
        return not value
    if kind in ('double', 'float'):
        weird = float(rng.choice([*WEIRD, float(value) * 2, float(value) + rng.normal()]))
        return weird if kind == 'double' or abs(weird) < 3e38 or weird != weird else math.inf
    if kind in BITS:
        low, high = -(1 << BITS[kind]), (1 << BITS[kind]) - 1
    else:
        low, high = 0, (1 << int(kind.removeprefix('uint') or 8)) - 1
    near = [int(value) + int(rng.integers(-3, 4)), low, high, 0]
    return min(max(near[int(rng.integers(len(near)))], low), high)


# ---------------------------------------------------------------------------- into the executor


class Wires:
    """The callbacks of executor_node and its driver around one executor of the rig."""

    def __init__(self, robot: str) -> None:
        wiring = load_robot_config({'fr3': 'franka', 'wx250s': 'widowx'}[robot])
        self.rig = rig = Rig(robot, ExecutorSettings(control_rate_hz=100.0, arm_max_age_s=0.1))
        rig.send_joints = rig.send_gripper = rig.send_policy = rig.send_driver = False
        now = SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=rig.now_ns))
        node = SimpleNamespace(
            get_clock=lambda: now,
            create_subscription=lambda *_: None,
            destroy_subscription=lambda *_: None,
        )
        self.state, self.names = wiring.gripper_state, rig.robot.joint_names
        clock = lambda: rig.steady_ns * 1e-9  # noqa: E731
        self.driver: Any
        if robot == 'fr3':
            self.driver = FrankaDriver(node, rig.robot, wiring, None, clock)
            self.gripper = GripperFeed(node, self.state, rig.executor).on_message
        else:
            self.driver = WidowxDriver(node, rig.robot, wiring, clock)
        self.driver._sink, self.driver._joints = rig.executor, None
        self.franka = robot == 'fr3'

    def good(self) -> dict[str, Any]:
        """One message of each kind, as it should be now."""
        rig = self.rig
        names, q = list(self.names), list(rig.q)
        finger = self.state.joint_value(rig.opening)
        if not self.franka:
            names, q = [*names, self.state.joint], [*q, finger]
        health = rig.health
        status = messages('spear_msgs.msg').PolicyStatus(
            header=header(rig.now_ns),
            lifecycle_state='active',
            policy_session=health.policy_session,
            checkpoint_id=health.checkpoint_id,
            embodiment=health.embodiment,
            ee_frame=health.ee_frame,
            step_s=health.step_s,
            horizon=health.horizon,
            instruction_id=health.instruction_id,
            ready=True,
        )
        kinds = {
            'joints': joint_state_msg(rig.now_ns, names, q, [0.0] * len(q), [0.0] * len(q)),
            'status': status,
        }
        if self.franka:
            kinds['gripper'] = joint_state_msg(rig.now_ns, [self.state.joint], [finger])
            kinds['activity'] = self._activity()
        return kinds

    def _activity(self) -> Any:
        msgs, health = messages('controller_manager_msgs.msg'), self.driver.health
        message = msgs.ControllerManagerActivity()
        for target, name in (
            (message.controllers, health.controller),
            (message.hardware_components, health.hardware_component),
        ):
            entry = msgs.NamedLifecycleState(name=name)
            entry.state.label = 'active'
            target.append(entry)
        return message

    def take(self, kind: str, message: Any) -> None:
        """Hand a message to its callback."""
        rig = self.rig
        if kind == 'joints':
            self.driver._on_joints(message)
        elif kind == 'gripper':
            self.gripper(message)
        elif kind == 'activity':
            self.driver._on_activity(message)
        elif kind == 'status':
            rig.executor.on_policy_status(policy_health_from_msg(message, rig.now_ns))
        else:
            chunk = chunk_from_msg(message)
            with np.errstate(all='ignore'):
                if rig.executor.on_chunk(chunk, rig.now_ns) is None:
                    self.expiry_ns = max(self.expiry_ns, chunk.expiry_ns)

    expiry_ns = 0

    def poll(self) -> None:
        """What executor_node does at 20 Hz, without the services of a real driver."""
        reason, text = Reason.NONE, ''
        if self.franka:
            health = self.driver.health
            health.robot_mode, health.mode_seen_s = 2, self.rig.steady_ns * 1e-9
            report = health.judge(health.mode_seen_s)
            reason, text = report.reason, report.text
        state = DriverState(received_ns=self.rig.now_ns, reason=reason, text=text)
        self.rig.executor.on_driver(state)


def fuzz_executor_messages(n: int, seed: int, robot: str) -> dict:
    """Send ``n`` fuzzed messages in bursts to an executor that follows good chunks."""
    rng = np.random.default_rng(seed)
    wires = Wires(robot)
    rig, judge = wires.rig, Judge(wires.rig)
    sent: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    crashes: list[str] = []
    armed, rounds = 0, 0
    burst = range(REST_TICKS + RUN_TICKS, REST_TICKS + RUN_TICKS + BURST // PER_TICK)
    while sent.total() < n:
        for k in range(burst.stop + AFTER_TICKS):
            if k == REST_TICKS:
                rig.executor.reset()
                armed += rig.executor.arm().accepted
            good = wires.good()
            if k % 20 == 0:
                good['chunk'] = chunk_to_msg(rig.chunk(rng.normal(0, 0.08, 3)))
            for kind, message in good.items():
                wires.take(kind, message)
            good.setdefault('chunk', chunk_to_msg(rig.chunk(rng.normal(0, 0.08, 3))))
            # Spoiled joints end most rounds at once: every other round leaves them alone.
            kinds = [name for name in good if rounds % 2 or name != 'joints']
            for _ in range(PER_TICK if k in burst else 0):
                kind = str(rng.choice(kinds))
                try:
                    wires.take(kind, mutated(rng, good[kind]))
                except Exception:
                    crashes.append(f'{kind}: {traceback.format_exc(limit=-2)}')
                sent[kind] += 1
            if k % 5 == 0:
                wires.poll()
            judge.expiry_ns = wires.expiry_ns
            judge.look(rig.tick())
        rig.commands.clear()
        rounds += 1
        ends[rig.executor.snapshot().reason.name] += 1
        if rig.executor.snapshot().state not in (State.FAULT, State.DISARMED):
            rig.executor.stop()
    return {
        'robot': robot,
        'messages': dict(sent),
        'rounds': rounds,
        'armed': armed,
        'commands': sum(judge.sources.values()),
        'unsafe': len(judge.unsafe),
        'examples': judge.unsafe[:5],
        'crashes': len(crashes) + bool(rig.executor.internal_error),
        'crash_examples': [*crashes[:3], rig.executor.internal_error][:4],
        'ends': dict(ends.most_common()),
    }


# ------------------------------------------------------------------------------ into the policy


def fuzz_policy_messages(n: int, seed: int, robot: str) -> dict:
    """Send ``n`` fuzzed messages to the decoders and the buffer of policy_node."""
    rng = np.random.default_rng(seed)
    rig = Rig(robot)
    config = load_robot_config({'fr3': 'franka', 'wx250s': 'widowx'}[robot])
    inputs = PolicyInputs(config, rig.robot)
    info: Any = SimpleNamespace(cameras=('external', 'wrist'), privileged=True)
    buffer = inputs.make_buffer(info)
    buffer.set_instruction('push the cube', 'aaaaaaaa')
    decoders = inputs.decoders()
    state = config.gripper_state
    names = [*rig.robot.joint_names, state.joint]
    results: Counter[str] = Counter()
    crashes: list[str] = []
    for k in range(n):
        now = rig.now_ns = rig.now_ns + 10_000_000
        picture = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        jpeg = cv2.imencode('.jpg', picture)[1].tobytes()
        good: dict[str, list[Any]] = {
            'external': [image_to_msg(picture, now, 'c'), jpeg_to_msg(jpeg, now, 'c')],
            'wrist': [image_to_msg(picture, now, 'c', 'bgra8')],
            'arm': [joint_state_msg(now, names, [*rig.q, state.open])],
            'gripper': [joint_state_msg(now, names, [*rig.q, state.open])],
            'object_poses': [object_poses_to_msg({'cube': np.eye(4)}, now, 'base')],
        }
        stream = str(rng.choice(list(good)))
        message = good[stream][int(rng.integers(len(good[stream])))]
        try:
            for name, choices in good.items():
                decoders[name](choices[0], now)
            decoders[stream](mutated(rng, message), now)
            built = buffer.build(now)
            results[getattr(getattr(built, 'reason', None), 'name', 'observation')] += 1
            if k % 50 == 0:
                buffer.stream_status(now)
        except Exception:
            crashes.append(f'{stream}: {traceback.format_exc(limit=-2)}')
    return {
        'robot': robot,
        'messages': n,
        'results': dict(results.most_common()),
        'crashes': len(crashes),
        'crash_examples': crashes[:3],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--messages', type=int, default=100_000)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    started = time.process_time()
    parts = []
    for i, robot in enumerate(('fr3', 'wx250s')):
        parts.append(fuzz_executor_messages(args.messages * 7 // 20, args.seed + i, robot))
        print(json.dumps(parts[-1], indent=1), flush=True)
        parts.append(fuzz_policy_messages(args.messages * 3 // 20, args.seed + i, robot))
        print(json.dumps(parts[-1], indent=1), flush=True)
    result = {
        'benchmark': 'fuzz_messages',
        'seed': args.seed,
        'messages': args.messages,
        'crashes': sum(p['crashes'] for p in parts),
        'unsafe': sum(p.get('unsafe', 0) for p in parts),
        'cpu_s': round(time.process_time() - started, 1),
        'parts': parts,
    }
    print(json.dumps({**result, **machine()}))
    return 1 if result['crashes'] or result['unsafe'] else 0


if __name__ == '__main__':
    sys.exit(main())
