"""Recordings on disk as something that `spear data convert` can work through."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import NoReturn, TypeVar

from spear_ros.core.config import to_mapping
from spear_ros.core.errors import UserError
from spear_ros.core.types import ActionSpec
from spear_ros.data.bag_episodes import bag_episodes
from spear_ros.data.conversion import PendingEpisode, Source
from spear_ros.data.episodes import Episode
from spear_ros.data.lerobot import LeRobotDataset
from spear_ros.data.rlds import (
    Feature,
    RldsColumns,
    read_schema,
    record_files,
    schema_fingerprint,
)
from spear_ros.data.rows import DatasetRow, action_spec, build_episode
from spear_ros.data.tfrecord import Example, read_records
from spear_ros.data.topic_map import TopicMap
from spear_ros.processing.embodiments import default_action_specs

T = TypeVar('T')
BAG_SUFFIXES = ('.mcap', '.db3', '.bag')


def rlds_source(
    folder: Path, row: DatasetRow, *, split: str = 'train', skip_damaged: bool = False
) -> Source:
    """A published RLDS version folder (features.json and TFRecords).

    Args:
        folder: the version's folder.
        row: how to read it.
        split: ``train``, ``val`` or ``test``.
        skip_damaged: go on with the next file after a damaged record, which ends its file, and
            accept that files are missing; otherwise both stop the conversion.
    """
    schema = read_schema(folder)
    files = record_files(folder, split, allow_missing=skip_damaged)

    def episodes(part: tuple[int, int]) -> Iterator[PendingEpisode]:
        index, count = part
        by_file = len(files) >= count
        for number, file in enumerate(files):
            if by_file and number % count != index:
                continue
            pending = _rlds_file(file, number, row, schema)
            if skip_damaged:
                pending = _mark_damage(pending, f'{row.name}-{number:05d}-damaged')
            yield from pending if by_file else every(pending, part)

    fingerprint = schema_fingerprint(schema)
    return Source(
        row.name,
        action_spec(row),
        f'rlds {row.name} {row.version} {split} schema {fingerprint} row {reading_hash(row)}',
        episodes,
        row.robot,
        row.drop_idle,
    )


def lerobot_source(root: Path, row: DatasetRow) -> Source:
    """A LeRobot v3 or v2.1 directory.

    Raises:
        UserError: it is damaged, or our own writer noted another ActionSpec than the row's.
    """
    dataset = LeRobotDataset(root)
    check_noted_spec(root, action_spec(row))

    def load(number: int, key: str) -> Callable[[], list[Episode]]:
        return lambda: [build_episode(row, dataset.columns(number), key)]

    def episodes(part: tuple[int, int]) -> Iterator[PendingEpisode]:
        for number, entry in every(list(enumerate(dataset.episodes)), part):
            key = f'{row.name}-{entry.index:06d}'
            yield PendingEpisode(key, load(number, key))

    count, reading = len(dataset), reading_hash(row)
    description = f'lerobot {row.name} {dataset.version} {count} episodes row {reading}'
    return Source(row.name, action_spec(row), description, episodes, row.robot, row.drop_idle)


def bag_source(paths: Sequence[Path], topic_map: TopicMap, name: str) -> Source:
    """Bags (rosbag2 folders or files, ROS 1 files), or folders that hold such."""
    bags = [bag for path in paths for bag in find_bags(path)]

    def load(path: Path) -> Callable[[], list[Episode]]:
        return lambda: list(bag_episodes(path, topic_map, name))

    def episodes(part: tuple[int, int]) -> Iterator[PendingEpisode]:
        for path in every(bags, part):
            yield PendingEpisode(f'{name}-{path.name}', load(path))

    names = [bag.name for bag in bags]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UserError(f'two bags are named {twice[0]}; rename one, names make the keys.')
    spec = default_action_specs()[topic_map.embodiment]
    description = f'bags {name} map {reading_hash(topic_map)}'
    return Source(name, spec, description, episodes, topic_map.robot_name)


def reading_hash(how: DatasetRow | TopicMap) -> str:
    """Eight hex digits of what a row or a map says about the numbers; remarks do not count.

    It stands in the card, so that a folder is not filled further by a row or map that was changed
    in between: what an earlier run has done, or given up on, would silently stay as it was.
    """
    told = to_mapping(how)
    for remark in ('traps', 'unverified', 'tried_on_real_data', 'limits'):
        told.pop(remark, None)
    return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]


def check_noted_spec(root: Path, spec: ActionSpec) -> None:
    """Compare a row's ActionSpec with the one that our LeRobot writer left in the directory.

    Raises:
        UserError: names the field with both values.
    """
    path = root / 'meta' / 'spear_settings.json'
    if not path.exists():
        return
    there = json.loads(path.read_text(encoding='utf-8')).get('action_spec', {})
    ours = json.loads(json.dumps(to_mapping(spec)))
    for name, value in ours.items():
        if name in there and there[name] != value:
            raise UserError(
                f'{path}: action_spec.{name} is {there[name]!r} there and {value!r} by the row; '
                'mend embodiment or ee_frame of the row.'
            )


def find_bags(path: Path) -> list[Path]:
    """The bag at a path, or all bags one level below a folder.

    Raises:
        UserError: there is none.
    """
    if path.suffix in BAG_SUFFIXES or (path / 'metadata.yaml').exists():
        return [path]
    children = sorted(path.iterdir()) if path.is_dir() else []
    bags = [c for c in children if c.suffix in BAG_SUFFIXES or (c / 'metadata.yaml').exists()]
    if not bags:
        raise UserError(
            f'{path}: no bag here; give a .mcap, .db3 or .bag file, a rosbag2 folder with '
            'metadata.yaml, or a folder of such.'
        )
    return bags


def every(items: Iterable[T], part: tuple[int, int]) -> Iterator[T]:
    """Items index, index + count, index + 2 count, ..."""
    return islice(items, part[0], None, part[1])


def _rlds_file(
    file: Path, number: int, row: DatasetRow, schema: dict[str, Feature]
) -> Iterator[PendingEpisode]:
    for record, payload in enumerate(read_records(file)):
        key = f'{row.name}-{number:05d}-{record:06d}'
        yield PendingEpisode(key, _load_record(payload, schema, row, key))


def _load_record(
    payload: memoryview, schema: dict[str, Feature], row: DatasetRow, key: str
) -> Callable[[], list[Episode]]:
    return lambda: [build_episode(row, RldsColumns(Example(payload), schema), key)]


def _mark_damage(pending: Iterator[PendingEpisode], key: str) -> Iterator[PendingEpisode]:
    """Turn a damaged file into one more episode that cannot be used, and stop there."""
    try:
        yield from pending
    except UserError as error:
        message = str(error)

        def fail() -> NoReturn:
            raise UserError(message)

        yield PendingEpisode(key, fail)
