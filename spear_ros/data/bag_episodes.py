"""Bags to episodes: the same topic map, decoding and checks as replay and the live nodes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import pose_parts
from spear_ros.core.types import EXTERNAL, WRIST, ImageArray
from spear_ros.data.bags import BagReader, BagSample, Progress
from spear_ros.data.conventions import command_from_motion
from spear_ros.data.episodes import (
    EncodedFrames,
    Episode,
    Frames,
    IntArray,
    PoseTrack,
    ValueTrack,
    check_episode,
)
from spear_ros.data.resampling import BoolArray
from spear_ros.data.topic_map import ARM, COMMAND, GRIPPER, INSTRUCTION, TopicMap
from spear_ros.processing.embodiments import default_action_specs
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot
from spear_ros.robots.spec import RobotSpec

JPEG_QUALITY = 95


@dataclass(slots=True)
class _Stream:
    """Samples of one stream, in order of receipt."""

    stamps: list[int] = field(default_factory=list)
    values: list = field(default_factory=list)
    problems: int = 0
    first_problem: str = ''

    def add(self, stamp_ns: int, value: object) -> None:
        self.stamps.append(stamp_ns)
        self.values.append(value)

    def sorted(self) -> tuple[IntArray, list]:
        """By stamp; of equal stamps the first."""
        stamps, index = np.unique(np.array(self.stamps, np.int64), return_index=True)
        return stamps, [self.values[i] for i in index]


def bag_episodes(
    path: Path, topic_map: TopicMap, dataset: str, progress: Progress | None = None
) -> Iterator[Episode]:
    """Episodes of one recording: one for every stretch with the same instruction.

    The first instruction counts from the beginning of the recording. Camera bytes are kept as they
    came; raw images are packed as JPEG at once, so memory holds no pixels.

    Raises:
        UserError: see :class:`~spear_ros.data.bags.BagReader`; or a stretch is no demonstration.
    """
    robot = get_robot(topic_map.robot_name)
    spec = default_action_specs()[topic_map.embodiment]
    with BagReader(path, topic_map, robot, reference_rotation=spec.reference_rotation) as reader:
        streams = _collect(reader.samples(progress=progress, keep_encoded=True))
        reader.raise_damage()
    texts = _instructions(streams.get(INSTRUCTION), topic_map)
    poses = _poses(path, streams, ARM, robot)
    for number, (start, end, text) in enumerate(texts):
        key = f'{dataset}-{_slug(path.stem)}-{number:03d}'
        commanded = _poses(path, streams, COMMAND, robot) if COMMAND in streams else None
        gripper = _openings(path, streams)
        episode = Episode(
            key=key,
            dataset=dataset,
            embodiment=topic_map.embodiment,
            rate_hz=_rate(poses.stamps_ns),
            instruction=text,
            reached=_cut_poses(poses, start, end),
            commanded=None if commanded is None else _cut_poses(commanded, start, end),
            gripper=_cut_values(gripper, start, end),
            gripper_command=_cut_values(
                ValueTrack(stamps_ns=gripper.stamps_ns, values=command_from_motion(gripper.values)),
                start,
                end,
            ),
            cameras={
                name: _frames(path, streams, name, (start, end))
                for name in (EXTERNAL, WRIST)
                if name in streams
            },
            provenance={'bag': path.name, 'problems': _problems(streams)},
        )
        check_episode(episode)
        yield episode


def _collect(samples: Iterator[BagSample]) -> dict[str, _Stream]:
    streams: dict[str, _Stream] = {}
    for sample in samples:
        stream = streams.setdefault(sample.stream, _Stream())
        if sample.problem:
            stream.problems += 1
            stream.first_problem = stream.first_problem or sample.problem
        elif sample.encoded is not None:
            stream.add(sample.stamp_ns, sample.encoded)
        elif sample.stream in (EXTERNAL, WRIST):
            stream.add(sample.stamp_ns, _pack(np.asarray(sample.value, np.uint8)))
        else:
            stream.add(sample.stamp_ns, sample.value)
    return streams


def _pack(image: ImageArray) -> bytes:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    ok, blob = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert ok
    return blob.tobytes()


def _usable(path: Path, streams: dict[str, _Stream], name: str) -> _Stream:
    stream = streams.get(name, _Stream())
    if not stream.stamps:
        why = stream.first_problem or 'no message'
        raise UserError(f'{path}: stream {name} has nothing usable ({why}); mend the map.')
    return stream


def _poses(path: Path, streams: dict[str, _Stream], name: str, robot: RobotSpec) -> PoseTrack:
    stamps, values = _usable(path, streams, name).sorted()
    T = np.stack([v if v.shape == (4, 4) else forward(robot, v) for v in values])
    p, q = pose_parts(T)
    return PoseTrack(stamps_ns=stamps, p=p, q=q)


def _openings(path: Path, streams: dict[str, _Stream]) -> ValueTrack:
    stamps, values = _usable(path, streams, GRIPPER).sorted()
    return ValueTrack(stamps_ns=stamps, values=np.clip(np.array(values, float), 0.0, 1.0))


def _frames(path: Path, streams: dict[str, _Stream], name: str, span: tuple[int, int]) -> Frames:
    stamps, blobs = _usable(path, streams, name).sorted()
    keep = _inside(stamps, *span)
    chosen = [b for b, k in zip(blobs, keep, strict=True) if k]
    return EncodedFrames(stamps[keep], chosen, f'{path.name} {name}')


def _instructions(stream: _Stream | None, topic_map: TopicMap) -> list[tuple[int, int, str]]:
    """Stretches (start, end, text); ends are exclusive."""
    first, last = -(1 << 62), 1 << 62
    if topic_map.instruction_topic is None:
        return [(first, last, topic_map.instruction)]
    if stream is None or not stream.stamps:
        return [(first, last, '')]
    stamps, texts = stream.sorted()
    changes = [i for i in range(len(texts)) if i == 0 or texts[i] != texts[i - 1]]
    starts = [first, *(int(stamps[i]) for i in changes[1:])]
    ends = [*starts[1:], last]
    return [(s, e, str(texts[i])) for s, e, i in zip(starts, ends, changes, strict=True)]


def _inside(stamps: IntArray, start: int, end: int) -> BoolArray:
    return (stamps >= start) & (stamps < end)


def _cut_poses(track: PoseTrack, start: int, end: int) -> PoseTrack:
    keep = _inside(track.stamps_ns, start, end)
    return PoseTrack(stamps_ns=track.stamps_ns[keep], p=track.p[keep], q=track.q[keep])


def _cut_values(track: ValueTrack, start: int, end: int) -> ValueTrack:
    keep = _inside(track.stamps_ns, start, end)
    return ValueTrack(stamps_ns=track.stamps_ns[keep], values=track.values[keep])


def _rate(stamps: IntArray) -> float:
    return 1e9 / float(np.median(np.diff(stamps))) if len(stamps) > 1 else 1.0


def _problems(streams: dict[str, _Stream]) -> str:
    return '; '.join(
        f'{n}: {s.problems} ({s.first_problem})' for n, s in streams.items() if s.problems
    )


def _slug(name: str) -> str:
    return ''.join(c if c.isalnum() and c.isascii() else '-' for c in name)[:40]
