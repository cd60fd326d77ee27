"""What is in a converted data set and what looks wrong with it: the numbers of `spear data check`.

Each figure answers a complaint that people have brought to other projects: statistics that do not
fit the data, axes that never move, a gripper whose sign is flipped, rates that are not what the
metadata says, steps that no arm can make, instructions that are empty.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import (
    quat_angle,
    quat_conjugate,
    quat_log,
    quat_multiply,
    quat_rotate,
)
from spear_ros.core.types import ActionSpec, FloatArray, NormStats
from spear_ros.data.samples import GRIPPER, TARGETS, VALID, P, Q, jpeg_size
from spear_ros.data.shards import ShardDataset
from spear_ros.data.statistics import positions, sample_places, translation_deltas

AXES = ('x', 'y', 'z')
NEAR_CONSTANT_M = 1e-3
NEAR_CONSTANT_RAD = 1e-2
JUMP_M_PER_S = 1.5
JUMP_RAD_PER_S = 4.0
"""Steps faster than these are taken for errors: both arms' hands stay well below."""
OUTSIDE_SHARE = 0.05
"""More than this share beyond q01..q99 says that the statistics are of other data."""
MANY_IDLE = 0.5
FAR_M = 1.3
"""No arm of the published sets reaches farther from its base."""
LONG_WORDS = 22
"""A rule of thumb for SPEAR-1's 32 tokens; the tokenizer alone knows, and is not at hand here."""
Q99_SIGMAS = 2.326
"""Between so many standard deviations on both sides lie 98 % of a normal distribution, as between
q01 and q99."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something to look at."""

    severity: str
    """``error``: training on it would be wrong; ``warning``: look before use."""
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFacts:
    """What the conversion noted about the recordings."""

    rate_hz: tuple[float, float, float] | None = None
    """Smallest, median and largest measured rate of the poses; None where not noted."""
    worst_gap_s: float = 0.0
    left_out: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetReport:
    """Figures of one data set."""

    name: str
    embodiment: str
    samples: int
    looked_at: int
    episodes: int
    rate_hz: float
    hours: float
    instructions: int
    """Different texts among the samples looked at."""
    without_instruction: float
    long_instructions: float
    """Share of samples with more than :data:`LONG_WORDS` words."""
    picture_sizes: Mapping[str, int]
    wrist_share: float
    delta_q: FloatArray
    """(3, 3) m: q01, median, q99 of the translation deltas by axis."""
    position_q: FloatArray
    """(3, 3) m."""
    outside: FloatArray
    """(2, 3) share of deltas and of positions beyond the statistics, by axis; NaN without any. For
    mean and deviation: beyond 2.33 deviations."""
    gripper_open: float
    gripper_between: float
    """Share of target openings between 0.05 and 0.95."""
    gripper_switches: float
    """Changes of the command within a chunk, per sample."""
    gripper_follows: float
    """Mean measured opening where the command says open, minus that where it says shut: positive
    where command and state have the same sign; NaN where that cannot be told."""
    padded: float
    """Share of knots past the end of an episode."""
    idle: float
    jumps: int
    largest_step_m: float
    largest_step_rad: float
    image_age_s: float
    frames: str
    """What poses and deltas are of, as the card says."""
    hand_axes: FloatArray
    """(3, 3) mean direction of the hand's x, y and z axis (rows) in the base frame."""
    farthest_m: float
    """Largest distance of a measured position from the base."""
    source: SourceFacts
    findings: tuple[Finding, ...] = field(default=())


def check_dataset(
    dataset: ShardDataset, stats: NormStats | None = None, *, limit: int = 20_000, seed: int = 0
) -> DatasetReport:
    """Look at up to ``limit`` samples, in whole shards' order, spread evenly.

    Raises:
        UserError: the shards cannot be read, or hold NaN.
    """
    numbers, infos, sizes, wrist = _look(dataset, limit, seed)
    if not np.isfinite(numbers).all():
        raise UserError(f'{dataset.root}: some numbers are not finite; convert again.')
    texts = [str(info['instruction']) for info in infos]
    spec = dataset.card.spec
    deltas, places = translation_deltas(numbers, spec), positions(numbers)
    steps_m, steps_rad = _steps(numbers)
    jumps = (steps_m > JUMP_M_PER_S * spec.step_s) | (steps_rad > JUMP_RAD_PER_S * spec.step_s)
    figures = DatasetReport(
        name=dataset.card.name,
        embodiment=spec.embodiment,
        samples=len(dataset),
        looked_at=len(numbers),
        episodes=dataset.episodes,
        rate_hz=spec.rate_hz,
        hours=len(dataset) * spec.step_s / 3600,
        instructions=len(set(texts)),
        without_instruction=float(np.mean([not t.strip() for t in texts])),
        long_instructions=float(np.mean([len(t.split()) > LONG_WORDS for t in texts])),
        picture_sizes=sizes,
        wrist_share=wrist,
        delta_q=_quantiles(deltas),
        position_q=_quantiles(places),
        outside=np.stack(
            [_outside(deltas, stats, 'translation'), _outside(places, stats, 'position')]
        ),
        **_gripper_figures(numbers),
        padded=float(np.mean(numbers[:, TARGETS, VALID] < 0.5)),
        idle=_idle(numbers),
        jumps=int(jumps.sum()),
        largest_step_m=float(steps_m.max(initial=0.0)),
        largest_step_rad=float(steps_rad.max(initial=0.0)),
        image_age_s=float(np.mean([float(i.get('image_age_s', 0.0)) for i in infos])),
        frames=describe_frames(spec),
        hand_axes=_hand_axes(numbers),
        farthest_m=float(np.linalg.norm(places, axis=1).max(initial=0.0)),
        source=source_facts(dataset),
    )
    return _with_findings(figures, _rotation_spread(numbers))


def describe_frames(spec: ActionSpec) -> str:
    """One line: whose pose, deltas in which frames, against which reference."""
    turned = ', '.join(f'{c:.3f}' for c in spec.reference_rotation)
    return (
        f'{spec.ee_frame} in {spec.base_frame}; translation in {spec.translation_frame}, rotation '
        f'in {spec.rotation_frame}, relative to {spec.relative_to}; {spec.horizon} knots at '
        f'{spec.rate_hz:g} Hz; reference rotation wxyz {turned}'
    )


def source_facts(dataset: ShardDataset) -> SourceFacts:
    """Sum up the reports that the conversion wrote next to the shards."""
    reports = [json.loads(p.read_text()) for p in sorted(dataset.root.glob('report-*.json'))]
    rates = np.array([r['rate_hz_min_median_max'] for r in reports if r['rate_hz_min_median_max']])
    if not len(rates):
        return SourceFacts(left_out=sum(len(r['skipped']) for r in reports))
    return SourceFacts(
        rate_hz=(
            float(rates[:, 0].min()),
            float(np.median(rates[:, 1])),
            float(rates[:, 2].max()),
        ),
        worst_gap_s=max(r['worst_gap_s'] for r in reports),
        left_out=sum(len(r['skipped']) for r in reports),
    )


def _look(
    dataset: ShardDataset, limit: int, seed: int
) -> tuple[FloatArray, list[dict], dict[str, int], float]:
    places = sample_places(dataset, limit, seed)
    numbers, infos, wrist = [], [], 0
    sizes: dict[str, int] = {}
    for at, (shard, index) in enumerate(zip(*places, strict=True)):
        shard, index = int(shard), int(index)
        numbers.append(dataset.numbers(shard, index))
        infos.append(dataset.info(shard, index))
        if (
            at % 16 == 0
        ):  # pictures are most of the bytes; every sixteenth says what there is to say
            sample = dataset.sample(shard, index)
            size = jpeg_size(sample.external)
            label = 'unreadable' if size is None else f'{size[1]}x{size[0]}'
            sizes[label] = sizes.get(label, 0) + 1
            wrist += sample.wrist is not None
    return np.stack(numbers), infos, sizes, wrist / max(1, sum(sizes.values()))


def _quantiles(values: FloatArray) -> FloatArray:
    if not len(values):
        return np.full((3, 3), np.nan)
    return np.quantile(values, [0.01, 0.5, 0.99], axis=0)


def _outside(values: FloatArray, stats: NormStats | None, which: str) -> FloatArray:
    if stats is None or not len(values):
        return np.full(3, np.nan)
    low = np.array(getattr(stats, f'{which}_low'))
    high = np.array(getattr(stats, f'{which}_high'))
    if stats.kind == 'mean_std':
        low, high = low - Q99_SIGMAS * high, low + Q99_SIGMAS * high
    return np.mean((values < low) | (values > high), axis=0)


def _gripper_figures(numbers: FloatArray) -> dict[str, Any]:
    valid = numbers[:, TARGETS, VALID] > 0.5
    command = numbers[:, TARGETS, GRIPPER]
    shown = command[valid]
    changes = (np.abs(np.diff(command, axis=1)) > 0.5) & valid[:, 1:]
    return {
        'gripper_open': float(np.mean(shown > 0.5)),
        'gripper_between': float(np.mean((shown > 0.05) & (shown < 0.95))),
        'gripper_switches': float(changes.sum() / len(numbers)),
        'gripper_follows': _gripper_follows(numbers),
    }


def _gripper_follows(numbers: FloatArray) -> float:
    """Mean measured opening where the command says open, minus that where it says shut."""
    command, state = numbers[:, 1, GRIPPER], numbers[:, 0, GRIPPER]
    opened, closed = command > 0.95, command < 0.05
    if opened.sum() < 5 or closed.sum() < 5 or np.ptp(state) < 0.05:
        return float('nan')
    return float(state[opened].mean() - state[closed].mean())


def _steps(numbers: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Length and angle of every valid step from knot to knot, the first from the measured pose."""
    valid = numbers[:, TARGETS, VALID] > 0.5
    p, q = numbers[..., P], numbers[..., Q]
    metres = np.linalg.norm(np.diff(p, axis=1), axis=-1)
    return metres[valid], quat_angle(q[:, :-1], q[:, 1:])[valid]


def _hand_axes(numbers: FloatArray) -> FloatArray:
    q = numbers[:, 0, Q]
    return np.stack([quat_rotate(q, axis).mean(axis=0) for axis in np.eye(3)])


def _idle(numbers: FloatArray) -> float:
    moved = np.linalg.norm(numbers[:, TARGETS, P] - numbers[:, :1, P], axis=-1).max(axis=1)
    turned = quat_angle(numbers[:, :1, Q], numbers[:, TARGETS, Q]).max(axis=1)
    same = np.ptp(numbers[:, TARGETS, GRIPPER], axis=1) < 0.05
    return float(np.mean((moved < 1e-3) & (turned < 5e-3) & same))


def _rotation_spread(numbers: FloatArray) -> FloatArray:
    """(3,) standard deviation of the last knot's rotation vector in the end-effector frame."""
    delta = quat_multiply(quat_conjugate(numbers[:, 0, Q]), numbers[:, -1, Q])
    return quat_log(delta).std(axis=0)


def _with_findings(report: DatasetReport, rotation_spread: FloatArray) -> DatasetReport:
    findings = [*_content_findings(report), *_motion_findings(report, rotation_spread)]
    values = {name: getattr(report, name) for name in report.__dataclass_fields__}
    return DatasetReport(**{**values, 'findings': tuple(findings)})


def _content_findings(r: DatasetReport) -> list[Finding]:
    findings = []
    if r.without_instruction > 0:
        findings.append(_warn(f'{100 * r.without_instruction:.1f} % of the samples have no text'))
    if r.long_instructions > 0:
        findings.append(
            _warn(
                f'{100 * r.long_instructions:.1f} % of the samples have more than {LONG_WORDS} '
                'words of text; SPEAR-1 reads 32 tokens and training passes over batches with more'
            )
        )
    if r.instructions == 1 and r.episodes > 1:
        findings.append(
            _warn('there is one instruction only: the policy will not learn to listen to it')
        )
    if 'unreadable' in r.picture_sizes:
        findings.append(_error(f'{r.picture_sizes["unreadable"]} pictures are not JPEG'))
    small = [s for s in r.picture_sizes if s != 'unreadable' and int(s.split('x')[1]) < 112]
    if small:
        findings.append(_warn(f'pictures are as small as {small[0]}; the network takes 280x210'))
    if not np.isnan(r.gripper_follows) and r.gripper_follows < -0.1:
        findings.append(
            _error(
                'the gripper is measured open where it is commanded shut '
                f'({r.gripper_follows:+.2f}): swap open and closed of one of its columns'
            )
        )
    if r.gripper_between > 0.05:
        findings.append(_warn(f'{100 * r.gripper_between:.1f} % of gripper targets are half-way'))
    if r.gripper_switches == 0:
        findings.append(_warn('the gripper is never switched in the samples looked at'))
    return findings


def _motion_findings(r: DatasetReport, rotation_spread: FloatArray) -> list[Finding]:
    findings = []
    for i, axis in enumerate(AXES):
        if r.delta_q[2, i] - r.delta_q[0, i] < NEAR_CONSTANT_M:
            findings.append(_warn(f'translation {axis} is nearly constant'))
        if rotation_spread[i] < NEAR_CONSTANT_RAD:
            findings.append(_warn(f"rotation about the hand's {axis} is nearly constant"))
        for row, what in enumerate(('translation', 'position')):
            share = r.outside[row, i]
            if share > OUTSIDE_SHARE:
                findings.append(
                    _warn(f'{100 * share:.1f} % of {what} {axis} lie beyond the statistics')
                )
    if r.jumps:
        findings.append(
            _error(
                f'{r.jumps} steps are too fast for an arm (up to {r.largest_step_m:.3f} m and '
                f'{r.largest_step_rad:.2f} rad in {1 / r.rate_hz:.2f} s): wrong unit, wrong '
                'rotation encoding, or two episodes in one'
            )
        )
    if r.farthest_m > FAR_M:
        findings.append(
            _error(
                f'positions lie up to {r.farthest_m:.2f} m from the base: wrong unit or wrong frame'
            )
        )
    if r.idle > MANY_IDLE:
        findings.append(_warn(f'{100 * r.idle:.0f} % of the chunks stand still'))
    if r.source.rate_hz is not None and r.source.rate_hz[0] < 0.8 * r.source.rate_hz[1]:
        findings.append(
            _warn(
                f'the poses of some recordings come at {r.source.rate_hz[0]:.2f} Hz, of most at '
                f'{r.source.rate_hz[1]:.2f} Hz'
            )
        )
    if r.image_age_s > 0.5 / r.rate_hz:
        findings.append(_warn(f'pictures are {r.image_age_s:.2f} s old on average'))
    return findings


def _warn(text: str) -> Finding:
    return Finding(severity='warning', text=text)


def _error(text: str) -> Finding:
    return Finding(severity='error', text=text)


def format_reports(reports: Sequence[DatasetReport]) -> str:
    """Text table of all data sets, then the findings."""
    head = (
        f'{"data set":28} {"embodiment":16} {"episodes":>8} {"samples":>9} {"hours":>6} '
        f'{"texts":>6} {"pictures":>10} {"wrist":>6} {"open":>5} {"sign":>6} {"padded":>6} '
        f'{"outside":>7} {"jumps":>5}'
    )
    lines = [head, '-' * len(head)]
    for r in reports:
        size = max(r.picture_sizes, key=lambda s: r.picture_sizes[s], default='-')
        finite = r.outside[np.isfinite(r.outside)]
        outside = f'{100 * finite.max():.1f}%' if len(finite) else '-'
        sign = '-' if np.isnan(r.gripper_follows) else f'{r.gripper_follows:+.2f}'
        lines.append(
            f'{r.name:28} {r.embodiment:16} {r.episodes:8d} {r.samples:9d} {r.hours:6.2f} '
            f'{r.instructions:6d} {size:>10} {100 * r.wrist_share:5.0f}% {r.gripper_open:5.2f} '
            f'{sign:>6} {100 * r.padded:5.1f}% {outside:>7} {r.jumps:5d}'
        )
    for r in reports:
        lines.append('')
        lines.append(f'{r.name} ({r.looked_at} samples looked at)')
        if r.source.rate_hz is not None:
            low, middle, high = r.source.rate_hz
            lines.append(
                f'  source    poses at {middle:.2f} Hz ({low:.2f} to {high:.2f}), longest hole '
                f'{r.source.worst_gap_s:.3f} s, {r.source.left_out} episodes left out'
            )
        lines.append(f'  frames    {r.frames}')
        for axis, mean in zip('xz', r.hand_axes[[0, 2]], strict=True):
            shown = ' '.join(f'{c:+.2f}' for c in mean)
            lines.append(f'  hand      its {axis} axis points on average to {shown} of the base')
        for name, q in (('delta', r.delta_q), ('position', r.position_q)):
            shown = '  '.join(
                f'{axis} {q[0, i]:+.3f} {q[1, i]:+.3f} {q[2, i]:+.3f}'
                for i, axis in enumerate(AXES)
            )
            lines.append(f'  {name:9} q01 median q99, m:  {shown}')
        lines += [f'  {f.severity}: {f.text}' for f in r.findings] or ['  nothing to report']
    return '\n'.join(lines)
