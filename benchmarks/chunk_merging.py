"""How chunks are joined: plain switching, our splice, and real-time chunking by prefix.

    python benchmarks/chunk_merging.py --chunks 200 --seed 0

A noisy policy (an own draw of offset and curvature per chunk, as a sampled flow has) steers a
lagging arm around a circle; its chunks arrive 0, 50, 150 and 300 ms after their observation. It
computes one chunk at a time: at 300 ms every second 5 Hz slot is missed. At every change of chunk
the target's jump in position, angle and velocity and the peak jerk within 50 ms are taken by
differences at 100 Hz, whatever the method; off_circle is how far the arm is from the circle
(radius and height), so that smoothness is not bought with the path. The last line is one JSON
object.

Methods:
    plain         sample the newest chunk at now, straight lines between knots
    prefix        plain, but the policy is given the knots of its own last chunk that pass while it
                  computes, and continues from them (training-time real-time chunking, 2512.05964)
    splice        ChunkPlayer on the chunks of ``plain``
    prefix+splice ChunkPlayer on the chunks of ``prefix``
"""

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from spear_ros.core.geometry import (
    matrix_to_quat,
    pose,
    pose_interpolate,
    pose_parts,
    quat_conjugate,
    quat_exp,
    quat_log,
    quat_multiply,
    quat_slerp,
)
from spear_ros.core.types import ActionChunk
from spear_ros.robots.registry import get_robot
from spear_ros.runtime.chunk_player import ChunkPlayer

DT_S = 0.01
STEP_S = 0.2
HORIZON = 5
DELAYS_MS = (0, 50, 150, 300)
METHODS = ('plain', 'prefix', 'splice', 'prefix+splice')
RADIUS_M, TURN_RATE = 0.10, 1.5
LAG_S = 0.06
NOISE_M, NOISE_RAD = 0.010, math.radians(3.0)


class NoisyPolicy:
    """Circle follower whose every chunk has an offset and a bend of its own."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._sequence = 0

    def infer(self, t: float, T_measured, prefix: list) -> ActionChunk:
        """Chunk for the observation at ``t``; ``prefix`` holds the committed poses of its start."""
        rng = self._rng
        end_p, end_r = rng.normal(0, NOISE_M, 3), rng.normal(0, NOISE_RAD, 3)
        poses = list(prefix)
        last = poses[-1] if poses else T_measured
        for i in range(len(poses), HORIZON):
            goal = circle(t + (i + 1) * STEP_S)
            share = (i + 1) / HORIZON
            goal = goal @ pose(share * end_p, quat_exp(share * end_r))
            # What a policy does: take out a part of the distance to where it wants to be.
            last = pose_interpolate(last, goal, min(1.0, 0.5 + 0.25 * (i - len(prefix))))
            poses.append(last)
        p, q = pose_parts(np.array(poses))
        anchor_p, anchor_q = pose_parts(T_measured)
        self._sequence += 1
        return ActionChunk(
            t_obs_ns=round(t * 1e9), step_s=STEP_S, embodiment='franka_droid', base_frame='base',
            ee_frame='link8', p_base_ee=p, q_base_ee=q, gripper=np.ones(HORIZON),
            anchor_p=anchor_p, anchor_q=anchor_q, sequence=self._sequence,
        )  # fmt: skip


def circle(t: float):
    """Pose on the circle at time ``t``."""
    angle = TURN_RATE * t
    p = [0.5 + RADIUS_M * math.cos(angle), RADIUS_M * math.sin(angle), 0.4]
    return pose(p, quat_exp([0.0, 0.0, 0.4 * math.sin(angle)]))


def sample_plain(chunk: ActionChunk, t: float):
    """Straight lines between anchor and knots at ``t``, the last knot after the end."""
    x = min(max((t - chunk.t_obs_ns * 1e-9) / STEP_S, 0.0), HORIZON)
    p = np.vstack([chunk.anchor_p, chunk.p_base_ee])
    q = np.vstack([chunk.anchor_q, chunk.q_base_ee])
    i = min(int(x), HORIZON - 1)
    s = x - i
    return pose((1 - s) * p[i] + s * p[i + 1], quat_slerp(q[i], q[i + 1], s))


def run(method: str, delay_s: float, chunks: int, seed: int) -> dict:
    """One method at one delay."""
    policy = NoisyPolicy(seed)
    player = ChunkPlayer(get_robot('fr3').nominal)
    measured = target = circle(0.0)
    player.reset(target, None, 0)
    current, waiting, switches, targets = None, [], [], []
    per_chunk = round(STEP_S / DT_S) * max(1, math.ceil(delay_s / STEP_S))
    arm = []
    for k in range(1, chunks * per_chunk + 1):
        t, now = k * DT_S, round(k * DT_S * 1e9)
        if k % per_chunk == 0:
            prefix = []
            if method.startswith('prefix') and current is not None:
                count = min(math.ceil(delay_s / STEP_S), HORIZON - 1)
                prefix = [sample_plain(current, t + (i + 1) * STEP_S) for i in range(count)]
            waiting.append((t + delay_s, policy.infer(t, measured, prefix)))
        while waiting and waiting[0][0] <= t + 1e-9:
            current = waiting.pop(0)[1]
            switches.append(k - 1)
            player.load(replace(current), now)
        if 'splice' in method:
            target = player.sample(now).T_base_ee
        elif current is not None:
            target = sample_plain(current, t)
        targets.append(target)
        measured = pose_interpolate(measured, target, 1.0 - math.exp(-DT_S / LAG_S))
        arm.append(measured[:3, 3])
    p = np.array(arm[4 * per_chunk :]) - [0.5, 0.0, 0.4]
    off = np.hypot(np.hypot(p[:, 0], p[:, 1]) - RADIUS_M, p[:, 2]) * 1e3
    found = figures(np.array(targets), [s for s in switches if 2 * per_chunk < s])
    return {**found, 'off_circle_mm': _both(off)}


def figures(T, switches: list[int]) -> dict:
    """Medians and 95th percentiles over the changes of chunk."""
    p, q = T[:, :3, 3], matrix_to_quat(T[:, :3, :3])
    d = np.diff(p, axis=0)
    r = quat_log(quat_multiply(q[1:], quat_conjugate(q[:-1])))
    v, w = d / DT_S, r / DT_S
    jerk = np.linalg.norm(np.diff(v, n=2, axis=0), axis=1) / DT_S**2
    inside = [s for s in switches if s + 6 < len(T)]
    # d[s - 1] is the step into sample s; the step before it is what continuing would have given
    jump = np.array([np.linalg.norm(d[s - 1] - d[s - 2]) for s in inside]) * 1e3
    angle = np.degrees([np.linalg.norm(r[s - 1] - r[s - 2]) for s in inside])
    dv = np.array([np.linalg.norm(v[s] - v[s - 2]) for s in inside])
    peak = np.array([jerk[max(s - 6, 0) : s + 5].max() for s in inside])
    acceleration = np.linalg.norm(np.diff(v, axis=0), axis=1) / DT_S
    return {
        'changes': len(inside),
        'jump_mm': _both(jump),
        'jump_deg': _both(angle),
        'velocity_step_m_s': _both(dv),
        'peak_jerk_m_s3': _both(peak),
        'peak_speed_m_s': round(float(np.linalg.norm(v, axis=1).max()), 3),
        'peak_turn_rad_s': round(float(np.linalg.norm(w, axis=1).max()), 3),
        'peak_acceleration_m_s2': round(float(acceleration.max()), 2),
    }


def _both(x) -> dict:
    p50, p95 = np.percentile(x, (50, 95))
    return {'p50': round(float(p50), 3), 'p95': round(float(p95), 3)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--chunks', type=int, default=200)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    started = time.process_time()
    rows = [
        {'delay_ms': d, 'method': m, **run(m, d * 1e-3, args.chunks, args.seed)}
        for d in DELAYS_MS
        for m in METHODS
    ]
    print(
        '| delay ms | method | jump mm p50 / p95 | jump deg | velocity step m/s | peak jerk m/s^3 '
        '| off circle mm | peak m/s^2 |'
    )
    print('|---|---|---|---|---|---|---|---|')
    for r in rows:
        cells = [
            f'{r[k]["p50"]:g} / {r[k]["p95"]:g}'
            for k in (
                'jump_mm',
                'jump_deg',
                'velocity_step_m_s',
                'peak_jerk_m_s3',
                'off_circle_mm',
            )
        ]
        cells.append(f'{r["peak_acceleration_m_s2"]:g}')
        print(f'| {r["delay_ms"]} | {r["method"]} | ' + ' | '.join(cells) + ' |')
    result = {
        'benchmark': 'chunk_merging',
        'seed': args.seed,
        'chunks': args.chunks,
        'rows': rows,
        'cpu_s': round(time.process_time() - started, 1),
    }
    print(json.dumps(result))
    return 0


if __name__ == '__main__':
    sys.exit(main())
