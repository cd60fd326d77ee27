"""`spear data convert`: recordings of any supported format to shards or to a LeRobot directory.

Conversion is keyed by episode and resumable: what a finished shard (or group of files) holds is not
done again. An episode that cannot be used is left out with its reason, and the list is shown and
written next to the data; when more than half of the episodes tried so far are bad, the run stops,
because then the row or the map is wrong, not the data.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.types import EXTERNAL, ActionSpec, ImageArray
from spear_ros.data.episodes import Episode, decode_image_bytes
from spear_ros.data.lerobot_v21_writer import LeRobotV21Writer
from spear_ros.data.lerobot_writer import LeRobotEpisode, LeRobotWriter
from spear_ros.data.resampling import ResampleSettings, Steps, resample
from spear_ros.data.samples import PictureSettings, Sample, samples_of, store_picture
from spear_ros.data.shard_writer import ShardWriter
from spear_ros.data.shards import DatasetCard, write_json

MIN_TRIED = 10
MAX_BAD_SHARE = 0.5
NO_INSTRUCTION = 'no instruction'


class PendingEpisode(NamedTuple):
    """An episode that is not read yet, so that one already converted costs nothing."""

    key: str
    load: Callable[[], list[Episode]]
    """Usually one; a bag may hold several instructions. UserError where it cannot be used."""


class Source(NamedTuple):
    """Recordings to convert."""

    name: str
    spec: ActionSpec
    description: str
    """Row or map, version and fingerprint of the schema; goes into the card."""
    episodes: Callable[[tuple[int, int]], Iterable[PendingEpisode]]
    """Those of one part (index, count), in a fixed order."""
    robot: str = ''
    drop_idle: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversionSettings:
    """What a conversion does."""

    resample: ResampleSettings = field(default_factory=ResampleSettings)
    pictures: PictureSettings = field(default_factory=PictureSettings)
    part: tuple[int, int] = (0, 1)
    """(index, count): which share of the source this process takes."""
    shard_mb: int = 256
    lerobot: Literal['v3.0', 'v2.1'] = 'v3.0'
    """Layout of a LeRobot directory."""
    limit: int = 0
    """Stop after so many episodes; 0 = all."""
    require_instruction: bool = True

    def __post_init__(self) -> None:
        index, count = self.part
        if not 0 <= index < count <= 999:
            raise UserError(f'part {index}/{count}: the first counts from 0 and is the smaller.')


@dataclass(slots=True)
class ConversionReport:
    """What a conversion did."""

    episodes: int = 0
    samples: int = 0
    already_there: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    """Episode key -> why it was left out."""
    rates_hz: list[float] = field(default_factory=list)
    """Measured rate of the poses of each converted episode."""
    worst_gap_s: float = 0.0
    """Longest hole between two poses."""
    faults: int = 0
    """Episodes that could not be used in this run, those without an instruction not counted."""

    def add_timing(self, episode: Episode) -> None:
        """Note the rate and the longest hole of an episode."""
        gaps = np.diff(episode.reached.stamps_ns) / 1e9
        self.rates_hz.append(float(1.0 / np.median(gaps)))
        self.worst_gap_s = max(self.worst_gap_s, float(gaps.max()))

    def text(self) -> str:
        """A few lines for people."""
        lines = [
            f'{self.episodes} episodes, {self.samples} samples written; '
            f'{self.already_there} episodes were there already; {len(self.skipped)} left out.'
        ]
        if self.rates_hz:
            low, middle, high = np.quantile(self.rates_hz, [0.0, 0.5, 1.0])
            lines.append(
                f'rate of the poses {middle:.2f} Hz (from {low:.2f} to {high:.2f}), '
                f'longest hole {self.worst_gap_s:.3f} s.'
            )
        reasons = Counter(reason for reason in self.skipped.values())
        lines += [f'  {count} x {reason}' for reason, count in reasons.most_common(10)]
        return '\n'.join(lines)

    def save(self, path: Path) -> None:
        """Write the figures and every episode left out with its reason."""
        rates = np.quantile(self.rates_hz, [0.0, 0.5, 1.0]).tolist() if self.rates_hz else []
        write_json(
            path,
            {
                'episodes': self.episodes,
                'samples': self.samples,
                'rate_hz_min_median_max': rates,
                'worst_gap_s': self.worst_gap_s,
                'skipped': self.skipped,
            },
        )


ProgressCallback = Callable[[ConversionReport], None]


def convert_to_shards(
    source: Source,
    out: Path,
    settings: ConversionSettings,
    progress: ProgressCallback | None = None,
) -> ConversionReport:
    """Write shards; see the module's text.

    Raises:
        UserError: the folder holds other data, the source is damaged, or most episodes are bad.
    """
    card = DatasetCard(
        name=source.name,
        spec=source.spec,
        label=settings.resample.label,
        anchor=settings.resample.anchor,
        pictures=settings.pictures,
        source=source.description,
    )
    report = ConversionReport()
    report_path = out / f'report-{settings.part[0]:03d}.json'
    with ShardWriter(out, card, part=settings.part, shard_mb=settings.shard_mb) as writer:
        _restore(report, report_path)
        for pending in _chosen(source, settings, writer.done_keys, report):
            left_out, faults = len(report.skipped), report.faults
            samples = _samples(pending, source, settings, report)
            first = list(islice(samples, 1))  # a bag's many episodes are written one by one
            if first or report.faults == faults:  # a fault may be mended until the next run
                report.samples += writer.add_episode(pending.key, chain(first, samples))
            if len(report.skipped) != left_out:
                report.save(report_path)
            if progress is not None:
                progress(report)
        report.save(report_path)
    return report


def convert_to_lerobot(
    source: Source,
    out: Path,
    settings: ConversionSettings,
    progress: ProgressCallback | None = None,
) -> ConversionReport:
    """Write a LeRobot directory on an even grid; the last instant of an episode has no target
    and is left out.

    Raises:
        UserError: as for shards.
    """
    report = ConversionReport()
    grid = ResampleSettings(
        rate_hz=settings.resample.rate_hz,
        horizon=1,
        label=settings.resample.label,
        anchor='grid',
    )
    kind = LeRobotV21Writer if settings.lerobot == 'v2.1' else LeRobotWriter
    robot_type = source.robot or source.spec.embodiment
    with kind(out, source.spec, robot_type=robot_type) as writer:
        done = {key.rsplit('.', 1)[0] for key in writer.done_keys}
        for pending in _chosen(source, settings, done, report):
            for episode in _load(pending, settings, report):
                for number, run in enumerate(_even_runs(resample(episode, grid), grid.step_ns)):
                    try:  # pictures are read here: a video may be missing or damaged
                        ours = _lerobot_episode(episode, run, f'{pending.key}.{number}', settings)
                    except UserError as error:
                        report.episodes -= number == 0  # nothing of it was written
                        _skip(report, episode.key, str(error))
                        break
                    writer.add(ours)
                    report.samples += len(run[1])
            if progress is not None:
                progress(report)
        report.save(out / 'meta' / 'spear_report.json')
    return report


def throttled(show: Callable[[str], None], every_s: float = 2.0) -> ProgressCallback:
    """Progress that shows a line every few seconds."""
    started = last = time.monotonic()

    def callback(report: ConversionReport) -> None:
        """Show a line if the last one is old enough."""
        nonlocal last
        now = time.monotonic()
        if now - last >= every_s:
            last = now
            rate = report.samples / max(now - started, 1e-9)
            show(
                f'{report.episodes} episodes, {report.samples} samples, {rate:.0f} samples/s, '
                f'{len(report.skipped)} left out'
            )

    return callback


def _restore(report: ConversionReport, path: Path) -> None:
    """Keep the list of left-out episodes of an earlier, interrupted run."""
    if path.exists():
        report.skipped.update(json.loads(path.read_text(encoding='utf-8'))['skipped'])


def _chosen(
    source: Source,
    settings: ConversionSettings,
    done: set[str],
    report: ConversionReport,
) -> Iterator[PendingEpisode]:
    for pending in source.episodes(settings.part):
        if settings.limit and report.episodes >= settings.limit:
            return
        if pending.key in done:
            report.already_there += 1
        else:
            yield pending


def _load(
    pending: PendingEpisode, settings: ConversionSettings, report: ConversionReport
) -> list[Episode]:
    """Episodes of a recording that can be used; the others are noted."""
    report.skipped.pop(pending.key, None)  # of an earlier run
    try:
        episodes = pending.load()
    except UserError as error:
        _skip(report, pending.key, str(error))
        return []
    usable = []
    for episode in episodes:
        report.skipped.pop(episode.key, None)
        if settings.require_instruction and not episode.instruction:
            _skip(report, episode.key, NO_INSTRUCTION)
        else:
            report.episodes += 1
            report.add_timing(episode)
            usable.append(episode)
    return usable


def _skip(report: ConversionReport, key: str, reason: str) -> None:
    # The same fault in every episode is one line of the summary, so the key is taken out.
    report.skipped[key] = reason.replace(f'episode {key}', 'episode')
    # Sets such as DROID leave many episodes without an instruction: that is no fault of the row.
    report.faults += reason != NO_INSTRUCTION
    tried = report.faults + report.episodes + report.already_there
    if tried >= MIN_TRIED and report.faults > MAX_BAD_SHARE * tried:
        raise UserError(
            f'{report.faults} of {tried} episodes cannot be used, the last because: {reason} '
            'Mend the row or map first.'
        )


def _samples(
    pending: PendingEpisode, source: Source, settings: ConversionSettings, report: ConversionReport
) -> Iterator[Sample]:
    for episode in _load(pending, settings, report):
        steps = resample(episode, settings.resample)
        if not len(steps):
            _skip(report, episode.key, 'not one sample (too short, or pictures and poses apart)')
        try:  # pictures are read here: a video may be missing or damaged
            samples = list(
                samples_of(episode, steps, settings.pictures, drop_idle=source.drop_idle)
            )
        except UserError as error:
            report.episodes -= 1
            _skip(report, episode.key, str(error))
            continue
        yield from samples


def _even_runs(steps: Steps, step_ns: int) -> Iterator[tuple[Steps, np.ndarray]]:
    """Stretches without a hole, of two instants or more, as (steps, their numbers)."""
    if len(steps) == 0:
        return
    cuts = np.flatnonzero(np.diff(steps.t_ns) != step_ns) + 1
    for run in np.split(np.arange(len(steps)), cuts):
        if len(run) >= 2:
            yield steps, run


def _lerobot_episode(
    episode: Episode, run: tuple[Steps, np.ndarray], key: str, settings: ConversionSettings
) -> LeRobotEpisode:
    steps, index = run
    state = np.column_stack([steps.p[index], steps.q[index], steps.gripper[index]])
    action = np.column_stack(
        [steps.target_p[index, 0], steps.target_q[index, 0], steps.target_gripper[index, 0]]
    )
    names = [n for n, frames in steps.image_index.items() if (frames[index] >= 0).all()]
    return LeRobotEpisode(
        key=key,
        task=episode.instruction,
        state=state,
        action=action,
        images={n: _pictures(episode, n, steps.image_index[n][index], settings) for n in names},
    )


def _pictures(
    episode: Episode, camera: str, frames: np.ndarray, settings: ConversionSettings
) -> Iterator[ImageArray]:
    """Pictures in the stored size, decoded when they are asked for.

    Raises:
        UserError: one of them cannot be read; at once, before the writer has begun an episode.
    """
    pictures = settings.pictures
    external = camera.split('_')[0] == EXTERNAL
    bound = pictures.external_size if external else pictures.wrist_size
    aspect = episode.stored_aspect if external else None
    blobs = []
    for frame in frames:
        blob = store_picture(episode, camera, int(frame), (pictures, bound), aspect)
        decode_image_bytes(blob, f'{episode.key} {camera} {frame}')
        blobs.append(blob)
    return (decode_image_bytes(blob, f'{episode.key} {camera}') for blob in blobs)
