"""The picture of a replay: ``report.png``, readable without the figures beside it."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from spear_ros.core import geometry
from spear_ros.core.types import FloatArray
from spear_ros.evaluation.replay import ReplayResult
from spear_ros.evaluation.replay_report import deviation
from spear_ros.policies.recorded import MotionTrack
from spear_ros.runtime.observation_buffer import ObservationConfig

_RECORDED, _PLANNED, _ANCHOR = '#9a9a9a', '#d1495b', '#2e7dd1'
_STREAM_COLOURS = {
    'external': '#2e7dd1',
    'wrist': '#7d4fb5',
    'arm': '#d1495b',
    'gripper': '#3a9d5d',
}
MAX_CHUNKS_DRAWN = 400


def draw_report(
    path: Path,
    result: ReplayResult,
    track: MotionTrack,
    report: Mapping[str, Any],
    config: ObservationConfig,
) -> None:
    """Draw planned against recorded motion per axis, latency, ages and dropped inputs."""
    matplotlib.use('Agg')
    figure = Figure(figsize=(16, 13), layout='constrained')
    axes = figure.subplots(4, 3)
    start_ns = result.steps[0].now_ns if result.steps else int(track.stamps_ns[0])
    _motion(axes, result, track, start_ns)
    _gripper(axes[2, 0], result, track, start_ns)
    _deviation(axes[2, 1], axes[2, 2], result, track)
    _latency(axes[3, 0], result, start_ns)
    _ages(axes[3, 1], result, config, start_ns)
    _outcomes(axes[3, 2], result, start_ns)
    figure.suptitle(_title(report), fontsize=12)
    figure.savefig(path, dpi=90)


def _title(report: Mapping[str, Any]) -> str:
    untrained = '' if report['trained'] else ' UNTRAINED WEIGHTS'
    lines = [
        f'{report["bag"]}   policy {report["policy"]} ({report["checkpoint_id"]}){untrained}   '
        f'seed {report["seed"]}',
        f'"{report["instruction"]}"   {report["chunks"]} chunks at {report["grid_points"]} grid '
        f'points{_worst(report["planned_against_recorded"])}',
    ]
    if report['damage']:
        lines.append(f'recording damaged: {report["damage"][0]}')
    return '\n'.join(lines)


def _worst(figures: Mapping[str, Any]) -> str:
    if not figures['knots']:
        return ''
    return (
        f'   planned against recorded: at most {figures["max_position_m"] * 1e3:.3g} mm, '
        f'{np.degrees(figures["max_rotation_rad"]):.3g} deg'
    )


def _seconds(times_ns: Any, start_ns: int) -> FloatArray:
    return (np.asarray(times_ns, np.int64) - start_ns) / 1e9


def _motion(axes: Any, result: ReplayResult, track: MotionTrack, start_ns: int) -> None:
    """Rows 1 and 2: three positions, three components of the rotation since the start."""
    p, q = geometry.pose_parts(track.T_base_ee)
    q0 = q[0]
    recorded = np.concatenate([p, _turned(q0, q)], 1)
    times = _seconds(track.stamps_ns, start_ns)
    stride = -(-max(1, len(result.chunks)) // MAX_CHUNKS_DRAWN)
    chunks = result.chunks[::stride]
    planned = []
    for chunk in chunks:
        knots_p = np.vstack([chunk.anchor_p, chunk.p_base_ee])
        knots_q = np.vstack([chunk.anchor_q, chunk.q_base_ee])
        knot_times = _seconds(chunk.t_obs_ns, start_ns) + chunk.step_s * np.arange(len(knots_p))
        planned.append((knot_times, np.concatenate([knots_p, _turned(q0, knots_q)], 1)))
    labels = [f'{a} [m]' for a in 'xyz'] + [
        f'turn about {a} of the start pose [deg]' for a in 'xyz'
    ]
    for i, label in enumerate(labels):
        axis: Axes = axes[i // 3, i % 3]
        axis.plot(times, recorded[:, i], color=_RECORDED, lw=4.5, label='recorded', zorder=2)
        lines = [np.column_stack([t, v[:, i]]) for t, v in planned]
        axis.add_collection(
            LineCollection(lines, colors=_PLANNED, linewidths=1.1, alpha=0.75, zorder=3)
        )
        axis.plot([], [], color=_PLANNED, label='planned chunks')
        anchors = ([t[0] for t, _ in planned], [v[0, i] for _, v in planned])
        axis.plot(*anchors, 'o', color=_ANCHOR, ms=3.5, label='measured at t_obs', zorder=4)
        axis.autoscale_view()
        _dress(axis, label)
    axes[0, 0].legend(fontsize=8, loc='best')


def _turned(q0: FloatArray, q: FloatArray) -> FloatArray:
    """Rotation vectors (N, 3) in degrees of q (N, 4) since q0."""
    return np.degrees(geometry.quat_log(geometry.quat_multiply(geometry.quat_conjugate(q0), q)))


def _gripper(axis: Axes, result: ReplayResult, track: MotionTrack, start_ns: int) -> None:
    axis.step(
        _seconds(track.stamps_ns, start_ns), track.gripper, where='post', color=_RECORDED, lw=4
    )
    for chunk in result.chunks:
        times = _seconds(chunk.t_obs_ns, start_ns) + chunk.step_s * np.arange(1, chunk.horizon + 1)
        axis.plot(times, chunk.gripper, '.', color=_PLANNED, ms=5, alpha=0.6)
    axis.set_ylim(-0.15, 1.25)
    _dress(axis, 'gripper (1 = open)')


def _deviation(left: Axes, right: Axes, result: ReplayResult, track: MotionTrack) -> None:
    d = deviation(result.chunks, track)
    panels = (
        (left, d.position_m * 1e3, 'planned - recorded [mm]'),
        (right, np.degrees(d.rotation_rad), 'planned - recorded [deg]'),
    )
    for axis, values, label in panels:
        if not len(d.times_ns):
            axis.text(0.5, 0.5, 'no knot lies inside the recording', ha='center', va='center')
            axis.set_axis_off()
            continue
        norms = np.linalg.norm(values, axis=1)
        knots = sorted(set(d.knot.tolist()))
        axis.boxplot(
            [norms[d.knot == k] for k in knots],
            positions=[k + 1 for k in knots],
            widths=0.6,
            medianprops={'color': _PLANNED},
        )
        axis.set_ylim(bottom=0)
        _dress(axis, label, 'knot of the chunk')


def _latency(axis: Axes, result: ReplayResult, start_ns: int) -> None:
    steps = [s for s in result.steps if s.chunk is not None]
    times = _seconds([s.now_ns for s in steps], start_ns)
    axis.plot(times, [s.inference_ms for s in steps], '.-', color=_ANCHOR, lw=0.8)
    axis.set_yscale('log')
    axis.axhline(200, color=_PLANNED, ls='--', lw=1, label='one step of 200 ms')
    axis.legend(fontsize=8, loc='best')
    _dress(axis, 'inference [ms], this machine')


def _ages(axis: Axes, result: ReplayResult, config: ObservationConfig, start_ns: int) -> None:
    limits = {
        'external': config.image_max_age_s,
        'wrist': config.image_max_age_s,
        'arm': config.arm_max_age_s,
        'gripper': config.gripper_max_age_s,
    }
    times = _seconds([s.now_ns for s in result.steps], start_ns)
    streams: Sequence[str] = list(result.steps[0].ages_s) if result.steps else []
    # Equal ages would hide each other: later streams are drawn thinner and smaller on top.
    for order, stream in enumerate(streams):
        ages = np.array([s.ages_s.get(stream, -1.0) for s in result.steps]) * 1e3
        colour = _STREAM_COLOURS.get(stream, '#888888')
        axis.plot(
            times,
            np.where(ages < 0, np.nan, ages),
            'o-',
            color=colour,
            lw=2.5 - 0.5 * order,
            ms=7 - 1.5 * order,
            label=f'{stream} (limit {limits.get(stream, 0) * 1e3:.0f})',
        )
        axis.axhline(limits.get(stream, 0) * 1e3, color=colour, ls=':', lw=1)
    axis.set_ylim(bottom=-5)
    axis.legend(fontsize=8, loc='best')
    _dress(axis, 'age of inputs [ms]')


def _outcomes(axis: Axes, result: ReplayResult, start_ns: int) -> None:
    """One row per outcome; beneath, what was lost per stream."""
    names = ['chunk', *dict.fromkeys(s.problem.reason.name for s in result.steps if s.problem)]
    for step in result.steps:
        name = step.problem.reason.name if step.problem else 'chunk'
        colour = _PLANNED if step.problem else '#3a9d5d'
        time_s = (step.now_ns - start_ns) / 1e9
        axis.plot(time_s, names.index(name), 's', color=colour, ms=5)
    outcomes = [s.problem.reason.name if s.problem else 'chunk' for s in result.steps]
    axis.set_yticks(range(len(names)), [f'{n}\n({outcomes.count(n)})' for n in names])
    axis.set_ylim(-0.7, len(names) - 0.3)
    axis.invert_yaxis()
    dropped = [f'{stream}: {count} unusable' for stream, (count, _) in result.refused.items()]
    dropped += [f'{stream}: {count} out of order' for stream, count in result.late.items()]
    dropped += [f'{what} (injected): {count}' for what, count in result.fault_hits.items()]
    text = textwrap.fill(f'dropped inputs: {"; ".join(dropped) or "none"}', 70)
    _dress(axis, 'outcome at each grid point', f't [s]\n{text}')


def _dress(axis: Axes, label: str, below: str = 't [s]') -> None:
    axis.set_title(label, fontsize=9)
    axis.set_xlabel(below, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(True, alpha=0.25)
