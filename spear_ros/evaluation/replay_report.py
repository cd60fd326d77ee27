"""What a replay is judged by: planned against recorded motion, ages, latency, dropped inputs.

``chunks.jsonl`` holds the chunks alone, one line each, and is byte-identical between two runs with
the same seed on CPU; everything that a clock or a machine decides is in ``report.json``.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spear_ros.core import geometry
from spear_ros.core.types import ActionChunk, FloatArray
from spear_ros.evaluation.replay import ReplayResult
from spear_ros.policies.base import PolicyInfo
from spear_ros.policies.recorded import MotionTrack

CHUNK_AGE_LIMIT_S = 0.4
"""The executor's gate rejects an older chunk at receipt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deviation:
    """Planned minus recorded, knot by knot, for the chunks whose knots lie inside the recording."""

    times_ns: NDArray[np.int64]
    """(K,) of the knots."""
    knot: NDArray[np.int64]
    """(K,) 0 .. H - 1."""
    position_m: FloatArray
    """(K, 3) in the base frame."""
    rotation_rad: FloatArray
    """(K, 3) rotation vector from the recorded to the planned pose, in the end-effector frame."""
    gripper_agrees: NDArray[np.bool_]
    """(K,) both on the same side of one half."""

    def per_knot(self, values: FloatArray) -> dict[str, list[float]]:
        """Median and maximum of the norms of ``values`` (K, 3), by knot."""
        norms, last = np.linalg.norm(values, axis=1), int(self.knot.max(initial=-1))
        groups = [norms[self.knot == i] for i in range(last + 1)]
        return {
            'median': [float(np.median(g)) if len(g) else 0.0 for g in groups],
            'max': [float(g.max()) if len(g) else 0.0 for g in groups],
        }


def deviation(chunks: Sequence[ActionChunk], track: MotionTrack) -> Deviation:
    """Compare every knot with the recorded motion at the knot's own time."""
    rows = [(c, i) for c in chunks for i in range(c.horizon)]
    times = np.array(
        [c.t_obs_ns + round((i + 1) * c.step_s * 1e9) for c, i in rows], np.int64
    ).reshape(-1)
    inside = track.covers(times)
    rows = [row for row, keep in zip(rows, inside, strict=True) if keep]
    times = times[inside]
    T, gripper = track.at(times)
    p, q = geometry.pose_parts(T)
    planned_p = np.array([c.p_base_ee[i] for c, i in rows]).reshape(-1, 3)
    planned_q = np.array([c.q_base_ee[i] for c, i in rows]).reshape(-1, 4)
    planned_gripper = np.array([c.gripper[i] for c, i in rows])
    return Deviation(
        times_ns=times,
        knot=np.array([i for _, i in rows], np.int64),
        position_m=planned_p - p,
        rotation_rad=geometry.quat_log(
            geometry.quat_multiply(geometry.quat_conjugate(q), planned_q)
        ),
        gripper_agrees=(planned_gripper > 0.5) == (gripper > 0.5),
    )


def chunk_lines(chunks: Sequence[ActionChunk]) -> str:
    """Write chunks as JSON lines, floats in full precision."""
    lines = []
    for chunk in chunks:
        row = {
            't_obs_ns': chunk.t_obs_ns,
            'step_s': chunk.step_s,
            'embodiment': chunk.embodiment,
            'ee_frame': chunk.ee_frame,
            'checkpoint_id': chunk.checkpoint_id,
            'instruction_id': chunk.instruction_id,
            'p_base_ee': np.asarray(chunk.p_base_ee, float).tolist(),
            'q_base_ee_wxyz': np.asarray(chunk.q_base_ee, float).tolist(),
            'gripper': np.asarray(chunk.gripper, float).tolist(),
            'anchor_p': np.asarray(chunk.anchor_p, float).tolist(),
            'anchor_q_wxyz': np.asarray(chunk.anchor_q, float).tolist(),
        }
        lines.append(json.dumps(row) + '\n')
    return ''.join(lines)


def build_report(
    result: ReplayResult,
    track: MotionTrack,
    info: PolicyInfo,
    latency_s: float,
    context: Mapping[str, object],
) -> dict[str, object]:
    """Collect the figures of ``report.json``; ``context`` (bag, seed, damage ...) goes in first."""
    chunks = result.chunks
    return {
        **context,
        'policy': info.name,
        'checkpoint_id': info.checkpoint_id,
        'trained': info.trained,
        'embodiment': info.spec.embodiment,
        'ee_frame': info.spec.ee_frame,
        'instruction': result.instruction,
        'grid_points': len(result.steps) + result.skipped_busy,
        'chunks': len(chunks),
        'chunks_sha256': hashlib.sha256(chunk_lines(chunks).encode()).hexdigest(),
        'skipped_while_inferring': result.skipped_busy,
        'problems': _problems(result),
        'planned_against_recorded': _deviation_figures(deviation(chunks, track)),
        'latency': _latency(result, latency_s),
        'ages_ms': _ages(result),
        'dropped_inputs': {
            'unusable': {k: {'count': n, 'newest': t} for k, (n, t) in result.refused.items()},
            'out_of_order': result.late,
            'wrist_left_out': result.wrist_left_out,
            'injected_faults': result.fault_hits,
        },
    }


def _problems(result: ReplayResult) -> dict[str, dict[str, object]]:
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for step in result.steps:
        if step.problem is not None:
            counts[step.problem.reason.name] += 1
            first.setdefault(step.problem.reason.name, step.problem.text)
    return {name: {'count': n, 'first': first[name]} for name, n in counts.items()}


def _deviation_figures(d: Deviation) -> dict[str, object]:
    if not len(d.times_ns):
        return {'knots': 0}
    rms_m = np.sqrt((d.position_m**2).mean(0))
    rms_rad = np.sqrt((d.rotation_rad**2).mean(0))
    return {
        'knots': len(d.times_ns),
        'max_position_m': float(np.linalg.norm(d.position_m, axis=1).max()),
        'max_rotation_rad': float(np.linalg.norm(d.rotation_rad, axis=1).max()),
        'rms_position_m': dict(zip('xyz', map(float, rms_m), strict=True)),
        'rms_rotation_rad': dict(zip('xyz', map(float, rms_rad), strict=True)),
        'position_m_by_knot': d.per_knot(d.position_m),
        'rotation_rad_by_knot': d.per_knot(d.rotation_rad),
        'gripper_agreement': float(d.gripper_agrees.mean()),
    }


def _latency(result: ReplayResult, latency_s: float) -> dict[str, object]:
    times = [s.inference_ms for s in result.steps if s.chunk is not None]
    ages = [
        (s.now_ns - s.chunk.t_obs_ns) / 1e9 + latency_s for s in result.steps if s.chunk is not None
    ]
    return {
        'fixed_ms': latency_s * 1e3,
        'inference_ms': _spread(times[1:] or times),  # the first one warms caches up
        'first_inference_ms': times[0] if times else None,
        'chunk_age_on_arrival_ms': _spread([a * 1e3 for a in ages]),
        'older_than_gate_allows': sum(a > CHUNK_AGE_LIMIT_S for a in ages),
        'knots_consumed_by_latency': _consumed(result, ages),
    }


def _consumed(result: ReplayResult, ages_s: list[float]) -> float | None:
    chunks = result.chunks
    if not chunks:
        return None
    # The small term keeps a latency of exactly one step from counting it twice in floating point.
    steps = [int(a / c.step_s + 1e-9) for a, c in zip(ages_s, chunks, strict=True)]
    return float(np.median(steps))


def _ages(result: ReplayResult) -> dict[str, dict[str, float]]:
    ages: dict[str, list[float]] = {}
    for step in result.steps:
        for stream, age in step.ages_s.items():
            if age >= 0:
                ages.setdefault(stream, []).append(age * 1e3)
    return {stream: _spread(values) for stream, values in ages.items()}


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    array = np.asarray(values)
    return {
        'p50': float(np.percentile(array, 50)),
        'p99': float(np.percentile(array, 99)),
        'max': float(array.max()),
    }


def write_outputs(folder: Path, result: ReplayResult, report: Mapping[str, object]) -> None:
    """Write ``chunks.jsonl`` and ``report.json`` into ``folder``, each in one go."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ('chunks.jsonl', chunk_lines(result.chunks)),
        ('report.json', json.dumps(report, indent=2) + '\n'),
    ):
        part = folder / f'{name}.part'
        part.write_text(text, encoding='utf-8')
        part.replace(folder / name)
