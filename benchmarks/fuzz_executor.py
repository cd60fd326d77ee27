"""Fuzz the safety boundary with hostile chunks, timing and inputs: no command may be unsafe.

    python benchmarks/fuzz_executor.py --checks 1000000 --chunks 20000 --seed 0

Part 1 sends mutated chunks through the checks that need no inverse kinematics and judges every
verdict with an oracle written apart from the gate (per knot, plain loops). Part 2 drives the whole
executor (gate, player, kinematics, state machine) with random chunks at random times, lost streams,
late ticks, stops, disarms and speed changes, and judges every command that comes out. The last line
is one JSON object; the exit status is 1 if anything unsafe got through.
"""

import argparse
import json
import math
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from executor_rig import CHECKPOINT, SESSION, START_NS, STEP_S, Rig

from spear_ros.core.geometry import pose_parts, quat_angle
from spear_ros.core.reasons import Reason
from spear_ros.core.types import ActionChunk
from spear_ros.robots.kinematics import forward, link_transforms
from spear_ros.runtime.command_stage import Source
from spear_ros.runtime.executor import ExecutorSettings
from spear_ros.runtime.give_way import GiveWaySettings
from spear_ros.runtime.safety import ChunkContext, SafetyGate, load_limits
from spear_ros.runtime.state_machine import State

TOLERANCE = 1.0 + 1e-3

# -------------------------------------------------------------------------------------- mutations


def _poke(rng, array, value):
    out = np.array(array, float)
    out.flat[int(rng.integers(out.size))] = value
    return out


def mutations(rng: np.random.Generator):
    """Name -> function from a good chunk to a changed one; not every change makes it bad."""
    weird = float(rng.choice([math.nan, math.inf, -math.inf, 1e300, -1e300, 1e9]))
    field = str(rng.choice(['p_base_ee', 'q_base_ee', 'gripper', 'anchor_p', 'anchor_q']))
    return {
        'none': lambda c: c,
        'value': lambda c: replace(c, **{field: _poke(rng, getattr(c, field), weird)}),
        'scale_q': lambda c: replace(c, q_base_ee=c.q_base_ee * rng.uniform(0.0, 2.0)),
        'flip_q': lambda c: replace(c, q_base_ee=-c.q_base_ee),
        'flip_one_q': lambda c: replace(
            c, q_base_ee=c.q_base_ee * np.where(np.arange(c.horizon) == 2, -1.0, 1.0)[:, None]
        ),
        'shape': lambda c: replace(c, p_base_ee=c.p_base_ee[: int(rng.integers(0, 5))]),
        'short': lambda c: replace(
            c, p_base_ee=c.p_base_ee[:3], q_base_ee=c.q_base_ee[:3], gripper=c.gripper[:3]
        ),
        'empty': lambda c: replace(
            c, p_base_ee=np.zeros((0, 3)), q_base_ee=np.zeros((0, 4)), gripper=np.zeros(0)
        ),
        'step_s': lambda c: replace(c, step_s=float(rng.choice([0.0, -0.2, 1e-9, 0.1, 5, weird]))),
        'embodiment': lambda c: replace(c, embodiment='another'),
        'frame': lambda c: replace(c, ee_frame='hand_tcp'),
        'checkpoint': lambda c: replace(c, checkpoint_id='ffffffffffff'),
        'session': lambda c: replace(c, policy_session='00000000'),
        'old': lambda c: replace(c, t_obs_ns=c.t_obs_ns - int(rng.integers(0, 3e9))),
        'future': lambda c: replace(c, t_obs_ns=c.t_obs_ns + int(rng.integers(0, 3e9))),
        'sequence': lambda c: replace(c, sequence=int(rng.integers(0, c.sequence + 1))),
        'anchor': lambda c: replace(c, anchor_p=c.anchor_p + rng.normal(0, 0.05, 3)),
        'far_knot': lambda c: replace(
            c, p_base_ee=_poke(rng, c.p_base_ee, float(rng.uniform(-2, 2)))
        ),
        'shift': lambda c: replace(c, p_base_ee=c.p_base_ee + rng.normal(0, 0.3, 3)),
        'spin': lambda c: replace(c, q_base_ee=np.roll(c.q_base_ee, int(rng.integers(4)), axis=1)),
    }


def mutate(rng: np.random.Generator, chunk: ActionChunk) -> tuple[str, ActionChunk]:
    """One mutation, drawn at random: its name and the changed chunk."""
    table = mutations(rng)
    name = str(rng.choice(list(table)))
    return name, table[name](chunk)


# ----------------------------------------------------------------------------------- part 1: oracle


def oracle(chunk: ActionChunk, gate_limits, robot, now_ns: int, T_measured) -> bool:
    """Whether a chunk may pass the checks without kinematics: plain loops, no code of the gate."""
    h = len(chunk.p_base_ee)
    if (chunk.q_base_ee.shape, chunk.gripper.shape) != ((h, 4), (h,)) or h != 5:
        return False
    if chunk.step_s != STEP_S or chunk.embodiment != robot.embodiment:
        return False
    ids = (chunk.ee_frame, chunk.checkpoint_id, chunk.policy_session)
    if ids != (robot.ee_frame, CHECKPOINT, SESSION):
        return False
    age = (now_ns - chunk.t_obs_ns) * 1e-9
    if not -0.05 <= age <= gate_limits.max_chunk_age_s or chunk.sequence <= 10:
        return False
    numbers = [*chunk.p_base_ee.flat, *chunk.q_base_ee.flat, *chunk.gripper.flat]
    numbers += [*chunk.anchor_p, *chunk.anchor_q]
    if not all(math.isfinite(x) for x in numbers):
        return False
    for q in (*chunk.q_base_ee, chunk.anchor_q):
        if abs(math.hypot(*q) - 1.0) > 1.1e-3:
            return False
    p_m, q_m = pose_parts(T_measured)
    if math.dist(p_m, chunk.anchor_p) > gate_limits.anchor_tolerance_m * TOLERANCE:
        return False
    if quat_angle(q_m, chunk.anchor_q) > gate_limits.anchor_tolerance_rad * TOLERANCE:
        return False
    p, q = chunk.anchor_p, chunk.anchor_q
    for i in range(h):
        if math.dist(p, chunk.p_base_ee[i]) > gate_limits.step.norm_m * TOLERANCE:
            return False
        if max(abs(chunk.p_base_ee[i] - p)) > gate_limits.step.axis_m * TOLERANCE:
            return False
        if quat_angle(q, chunk.q_base_ee[i]) > gate_limits.step.norm_rad * TOLERANCE + 2e-3:
            return False
        p, q = chunk.p_base_ee[i], chunk.q_base_ee[i]
        for x, low, high in zip(
            p, gate_limits.workspace_min_m, gate_limits.workspace_max_m, strict=True
        ):
            if not low <= x <= high:
                return False
    return True


def fuzz_checks(n: int, seed: int) -> dict:
    """Part 1: ``n`` chunks through the checks without inverse kinematics."""
    rng = np.random.default_rng(seed)
    reasons: Counter[str] = Counter()
    wrong: list[str] = []
    started = time.process_time()
    rigs = [Rig(name) for name in ('fr3', 'wx250s')]
    benches = [(rig, SafetyGate(rig.robot, rig.limits), forward(rig.robot, rig.q)) for rig in rigs]
    for rig in rigs:
        rig.sequence = 1000
    for k in range(n):
        rig, gate, T = benches[k % 2]
        chunk = rig.chunk(rng.normal(0, 0.25, 3), rng.normal(0, 0.5, 3))
        name, chunk = mutate(rng, chunk)
        context = ChunkContext(
            received_ns=rig.now_ns + int(rng.integers(0, 5e8)),
            q_measured=rig.q,
            policy_session=SESSION,
            checkpoint_id=CHECKPOINT,
            last_sequence=10,
            horizon=5,
            step_s=STEP_S,
        )
        with np.errstate(all='ignore'):
            rejection = gate.check_fields(chunk, context)
        reasons['ACCEPTED' if rejection is None else rejection.reason.name] += 1
        if rejection is None and not oracle(chunk, rig.limits, rig.robot, context.received_ns, T):
            wrong.append(f'accepted: {name} {chunk}'[:400])
    return {
        'chunks': n,
        'accepted_against_oracle': len(wrong),
        'examples': wrong[:3],
        'reasons': dict(reasons),
        'cpu_s': round(time.process_time() - started, 1),
    }


# ----------------------------------------------------------------------------- part 2: the executor


class Judge:
    """Looks at every command with its own eyes."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.unsafe: list[str] = []
        self.sources: Counter[str] = Counter()
        self._last = None
        self._velocity = None
        self._source = None
        self._drawn = self.drawn_commands = 0
        self._lower = np.array([j.lower_rad for j in rig.robot.joints])
        self._upper = np.array([j.upper_rad for j in rig.robot.joints])
        self._fast = np.array([j.velocity_rad_s for j in rig.robot.joints])
        self.expiry_ns = 0

    def look(self, command) -> None:
        """Judge one command; None means that the arm was told nothing this period."""
        if command is None:
            self._last = self._velocity = None
            return
        rig, limits = self.rig, self.rig.limits
        source = rig.executor._cycle.stage.source
        self.sources[source.name] += 1
        T, q = command.T_base_ee, command.q_rad
        self._expect(np.isfinite(T).all() and np.isfinite(q).all(), 'not finite', command)
        p = T[:3, 3]
        self._expect(
            (p >= np.array(limits.workspace_min_m) - 1e-5).all()
            and (p <= np.array(limits.workspace_max_m) + 1e-5).all(),
            f'outside the workspace {p}',
            command,
        )
        self._expect(
            (q >= self._lower - 1e-5).all() and (q <= self._upper + 1e-5).all(), 'joints', command
        )
        self._expect(abs(forward(rig.robot, q) - T).max() < 1e-4, 'pose and joints differ', command)
        links = link_transforms(rig.robot, q)
        for s in rig.robot.link_spheres:
            z = (links[s.after_joint] @ np.array([*s.center_m, 1.0]))[2] - s.radius_m
            self._expect(z >= limits.table_z_m - 1e-5, 'link below the table', command)
        self._motion(command, source)

    def _motion(self, command, source) -> None:
        last, limits, rig = self._last, self.rig.limits, self.rig
        self._last = command
        if last is None or rig.executor._cycle.stage.sent.dt_s == 0.0:  # anchored anew
            self._velocity = None
            return
        dt = (command.stamp_ns - last.stamp_ns) * 1e-9
        v = (command.T_base_ee[:3, 3] - last.T_base_ee[:3, 3]) / dt
        w = quat_angle(*(pose_parts(x.T_base_ee)[1] for x in (last, command))) / dt
        dq = abs(command.q_rad - last.q_rad) / dt
        self._expect((dq <= self._fast * TOLERANCE).all(), f'joint speed {dq.max():.2f}', command)
        step = min(dt, 2.5e-9 * rig.period_ns)  # after a gap the receiver sees one step
        speed = float(np.linalg.norm(v)) * dt / step
        self._expect(speed <= limits.hard.linear_m_s * TOLERANCE, f'speed {speed:.3f}', command)
        self._expect(w <= limits.hard.angular_rad_s * TOLERANCE, f'turning {w:.3f}', command)
        give_way = rig.executor._cycle.stage.give_way
        drawn = give_way is not None and (give_way.gives_way or bool(give_way.pushing))
        self._drawn = 3 if drawn else max(0, self._drawn - 1)  # differences look three back
        if source is Source.PLAYER and not self._drawn:
            nominal = limits.nominal
            self._expect(speed <= nominal.linear_m_s * TOLERANCE, f'nominal {speed:.3f}', command)
            self._expect(w <= nominal.angular_rad_s * TOLERANCE, f'nominal turn {w:.3f}', command)
        self.drawn_commands += drawn
        regular = dt <= 1.5e-9 * rig.period_ns
        if self._velocity is not None and regular and source is Source.PLAYER and not self._drawn:
            v0, dt0, source0 = self._velocity
            if source0 is Source.PLAYER:
                a = float(np.linalg.norm(v - v0)) / (0.5 * (dt + dt0))
                ok = a <= limits.nominal.linear_m_s2 * 1.01
                self._expect(ok, f'acceleration {a:.3f}', command)
        self._velocity = (v, dt, source) if regular else None
        steady = source is Source.PLAYER and self._source is Source.PLAYER
        self._source = source
        if command.stamp_ns - 2 * rig.period_ns > self.expiry_ns and steady:
            self._expect(speed < 1e-9 and w < 1e-6, f'moves past expiry {speed:.4f}', command)

    def _expect(self, good: bool, what: str, command) -> None:
        if not good:
            self.unsafe.append(f'{what} at {(command.stamp_ns - START_NS) * 1e-9:.3f} s')


def storm(rig: Rig, rng: np.random.Generator) -> None:
    """One random disturbance, rarely."""
    executor = rig.executor
    give_way = executor._cycle.stage.give_way
    if give_way is not None and rng.random() < 0.5:
        pushes = rng.random() < 0.7 * (rig.now_ns // 3_000_000_000 % 2)  # 3 s free, 3 s in contact
        executor.on_efforts(rig.now_ns, rng.normal(0, 1500.0 if pushes else 200.0, 6))
    dice = rng.random()
    if dice < 0.002:
        rig.send_joints = rig.send_gripper = rig.send_policy = rig.send_driver = True
        setattr(rig, str(rng.choice(['send_joints', 'send_gripper', 'send_policy'])), False)
    elif dice < 0.03:
        rig.send_joints = rig.send_gripper = rig.send_policy = rig.send_driver = True
    elif dice < 0.031:
        executor.stop()
    elif dice < 0.032:
        executor.disarm()
    elif dice < 0.033:
        executor.home()
    elif dice < 0.036:
        executor.set_speed_scale(float(rng.uniform(0.05, 1.0)))
    elif dice < 0.037:
        rig.health = replace(rig.health, instruction_id=f'{int(rng.integers(1 << 32)):08x}')
    elif dice < 0.0375:
        executor.on_publisher_count(2)
    if executor.snapshot().state in (State.FAULT, State.DISARMED):
        rig.send_joints = rig.send_gripper = rig.send_policy = rig.send_driver = True
        executor.on_publisher_count(1)
        executor.reset()
        executor.arm()
    elif rng.random() < 0.02:
        executor.arm()


def wild_chunk(rig: Rig, rng: np.random.Generator, target: np.ndarray) -> ActionChunk:
    """A chunk roughly towards ``target`` (3,), too fast, wobbling or mutated now and then."""
    fastest = min(rig.limits.step.norm_m, rig.limits.step.axis_m) / rig.limits.step.per_s
    p = forward(rig.robot, rig.q)[:3, 3]
    pull = rng.uniform(0.2, 3.0) * (target - p) + rng.normal(0, 0.1, 3)
    pull *= min(1.0, rng.choice([0.3, 0.9, 1.1]) * fastest / max(np.linalg.norm(pull), 1e-9))
    chunk = rig.chunk(pull, rng.normal(0, rng.choice([0.1, 0.8]), 3))
    if rng.random() < 0.3:
        wobble = rng.normal(0, 0.01, chunk.p_base_ee.shape)
        chunk = replace(chunk, p_base_ee=chunk.p_base_ee + wobble)
    return mutate(rng, chunk)[1] if rng.random() < 0.15 else chunk


def fuzz_executor(n: int, seed: int, robot: str) -> dict:
    """Part 2: ``n`` chunks into one executor that ticks at 100 Hz."""
    rng = np.random.default_rng(seed)
    give_way = GiveWaySettings(soft_effort=(750.0,) * 6) if robot == 'wx250s' else None
    rig = Rig(
        robot,
        ExecutorSettings(control_rate_hz=100.0, home_opens_gripper=True, give_way=give_way),
    )
    rig.ready()
    judge = Judge(rig)
    states: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    ticks, accepted = 0, 0
    started = time.process_time()
    target = np.zeros(3)
    for k in range(n):
        if k % 40 == 0:
            target = rng.uniform(rig.limits.workspace_min_m, rig.limits.workspace_max_m)
        chunk = wild_chunk(rig, rng, target)
        delay = int(rng.integers(1, 25))
        for i in range(delay):
            storm(rig, rng)
            late = 1 if rng.random() > 0.01 else int(rng.choice([2, 3, 5, 8, 40]))
            jitter = int(rng.normal(0, 3e5))
            judge.look(rig.tick(late * rig.period_ns + jitter))
            ticks += 1
            if i == delay // 2:
                with np.errstate(all='ignore'):
                    rejection = rig.executor.on_chunk(chunk, rig.now_ns)
                if rejection is None:
                    accepted += 1
                    judge.expiry_ns = max(judge.expiry_ns, chunk.expiry_ns)
        rig.commands.clear()
        snapshot = rig.executor.snapshot()
        states[snapshot.state.name] += 1
        reasons[Reason(snapshot.reason).name] += 1
        assert not rig.executor.internal_error, rig.executor.internal_error
    cpu = time.process_time() - started
    return {
        'robot': robot,
        'chunks': n,
        'accepted': accepted,
        'ticks': ticks,
        'commands': sum(judge.sources.values()),
        'drawn_back': judge.drawn_commands,
        'unsafe': len(judge.unsafe),
        'examples': judge.unsafe[:5],
        'sources': dict(judge.sources),
        'states': dict(states),
        'reasons': dict(reasons.most_common()),
        'cpu_s': round(cpu, 1),
    }


def main() -> int:
    """Run both parts; exit status 1 if anything unsafe got through."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--checks', type=int, default=1_000_000)
    parser.add_argument('--chunks', type=int, default=20_000)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    load_limits(Rig('fr3').robot)
    result = {
        'benchmark': 'fuzz_executor',
        'seed': args.seed,
        'checks': fuzz_checks(args.checks, args.seed),
        'executors': [
            fuzz_executor(args.chunks // 2, args.seed + i, robot)
            for i, robot in enumerate(('fr3', 'wx250s'))
        ],
    }
    result['unsafe'] = result['checks']['accepted_against_oracle'] + sum(
        r['unsafe'] for r in result['executors']
    )
    for part in (result['checks'], *result['executors']):
        print(json.dumps(part, indent=1))
    print(json.dumps(result))
    return 1 if result['unsafe'] else 0


if __name__ == '__main__':
    sys.exit(main())
