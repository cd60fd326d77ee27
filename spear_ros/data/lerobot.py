"""Reads LeRobotDataset directories, format v3 and v2.1, without the lerobot package.

v3: ``meta/info.json``, ``meta/tasks.parquet``, ``meta/episodes/*/*.parquet`` (where each episode
lies in the shared data and video files), ``data/*/*.parquet``, ``videos/<key>/*/*.mp4``. v2.1: one
parquet and one MP4 per episode, ``meta/episodes.jsonl`` and ``meta/tasks.jsonl``.

Traps: every camera has its own ``from_timestamp`` in its own file; ``fps`` may be a float; the
``timestamp`` column is float32, so times are taken from ``frame_index / fps``; pictures may be
video or bytes inside the parquet.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spear_ros.core.errors import UserError
from spear_ros.core.types import FloatArray
from spear_ros.data.episodes import ArrayFrames, EncodedFrames, Episode, Frames, IntArray
from spear_ros.data.rows import DatasetRow, build_episode
from spear_ros.data.video import VideoReader

SUPPORTED = ('v2.0', 'v2.1', 'v3.0')
MAX_OPEN_VIDEOS = 8


@dataclass(frozen=True, slots=True)
class EpisodeEntry:
    """Where one episode lies."""

    index: int
    length: int
    tasks: tuple[str, ...]
    data_file: Path
    first_row: int
    """Row of the data file at which the episode begins (v2.1: 0)."""
    videos: Mapping[str, tuple[Path, float]]
    """Camera -> (file, seconds at which the episode begins in it)."""


class LeRobotDataset:
    """One dataset directory."""

    def __init__(self, root: Path) -> None:
        """Read the metadata.

        Raises:
            UserError: not a LeRobot directory, or of a version that is not supported.
        """
        self.root = root
        self.info = _read_json(root / 'meta' / 'info.json')
        self.version = str(self.info.get('codebase_version', ''))
        if self.version not in SUPPORTED:
            raise UserError(
                f'{root}: codebase_version "{self.version}" is not one of {", ".join(SUPPORTED)}; '
                'convert it with the lerobot package first.'
            )
        for name in ('fps', 'features'):
            if name not in self.info:
                raise UserError(f'{root}: {name} is missing in meta/info.json; export it again.')
        self.fps = float(self.info['fps'])
        if not 0 < self.fps <= 1000:
            raise UserError(f'{root}: fps = {self.info["fps"]} in info.json is not a frame rate.')
        self.features: dict[str, dict[str, Any]] = self.info['features']
        self.video_keys = [k for k, f in self.features.items() if f['dtype'] == 'video']
        self.image_keys = [k for k, f in self.features.items() if f['dtype'] == 'image']
        self.tasks = self._read_tasks()
        self.episodes = self._read_episodes()
        self._videos: OrderedDict[Path, VideoReader] = OrderedDict()
        self._table: tuple[Path, pa.Table] | None = None

    def __len__(self) -> int:
        return len(self.episodes)

    def columns(self, number: int) -> 'LeRobotColumns':
        """Columns of episode ``number`` (position in the list, not the recorded index)."""
        entry = self.episodes[number]
        rows = self._data_file(entry.data_file).slice(entry.first_row, entry.length)
        if rows.num_rows != entry.length:
            raise UserError(
                f'{entry.data_file}: {rows.num_rows} of {entry.length} rows of episode '
                f'{entry.index} are there; copy the file again.'
            )
        recorded = set(rows['episode_index'].to_pylist())
        if recorded != {entry.index}:
            raise UserError(
                f'{entry.data_file}: rows from {entry.first_row} belong to episodes '
                f'{sorted(recorded)}, the episode table says {entry.index}.'
            )
        return LeRobotColumns(self, entry, rows)

    def video(self, path: Path) -> VideoReader:
        """Open video, kept among the few most recent."""
        reader = self._videos.pop(path, None) or VideoReader(path, self.fps)
        self._videos[path] = reader
        while len(self._videos) > MAX_OPEN_VIDEOS:
            self._videos.popitem(last=False)[1].close()
        return reader

    def close(self) -> None:
        """Close the videos."""
        for reader in self._videos.values():
            reader.close()
        self._videos.clear()

    def _data_file(self, path: Path) -> pa.Table:
        if self._table is None or self._table[0] != path:
            self._table = (path, _read_parquet(path))
        return self._table[1]

    def _read_tasks(self) -> dict[int, str]:
        parquet = self.root / 'meta' / 'tasks.parquet'
        if parquet.exists():
            # The task is the index of a pandas frame: a column whose name varies.
            table = _read_parquet(parquet)
            names = [n for n in table.column_names if n != 'task_index']
            if len(names) != 1:
                raise UserError(f'{parquet}: expected one text column, found {names}.')
            return dict(
                zip(table['task_index'].to_pylist(), table[names[0]].to_pylist(), strict=True)
            )
        lines = _read_jsonl(self.root / 'meta' / 'tasks.jsonl')
        return {int(line['task_index']): str(line['task']) for line in lines}

    def _read_episodes(self) -> list[EpisodeEntry]:
        if self.version == 'v3.0':
            entries = [self._entry_v3(row) for row in _episode_rows(self.root)]
            return _with_first_rows(entries)
        return [self._entry_v2(line) for line in _read_jsonl(self.root / 'meta' / 'episodes.jsonl')]

    def _entry_v3(self, row: dict[str, Any]) -> EpisodeEntry:
        videos = {}
        for key in self.video_keys:
            place = {
                'video_key': key,
                'chunk_index': row[f'videos/{key}/chunk_index'],
                'file_index': row[f'videos/{key}/file_index'],
            }
            path = self.root / self.info['video_path'].format(**place)
            videos[key] = (path, float(row[f'videos/{key}/from_timestamp']))
        path = self.info['data_path'].format(
            chunk_index=row['data/chunk_index'], file_index=row['data/file_index']
        )
        return EpisodeEntry(
            index=int(row['episode_index']),
            length=int(row['length']),
            tasks=tuple(row.get('tasks') or ()),
            data_file=self.root / path,
            first_row=int(row['dataset_from_index']),
            videos=videos,
        )

    def _entry_v2(self, line: dict[str, Any]) -> EpisodeEntry:
        index = int(line['episode_index'])
        chunk = index // int(self.info.get('chunks_size', 1000))
        place = {'episode_chunk': chunk, 'episode_index': index}
        videos = {
            key: (self.root / self.info['video_path'].format(video_key=key, **place), 0.0)
            for key in self.video_keys
        }
        return EpisodeEntry(
            index=index,
            length=int(line['length']),
            tasks=tuple(line.get('tasks') or ()),
            data_file=self.root / self.info['data_path'].format(**place),
            first_row=0,
            videos=videos,
        )


@dataclass(frozen=True, slots=True)
class LeRobotColumns:
    """One episode as columns for a row; paths are feature names."""

    dataset: LeRobotDataset
    entry: EpisodeEntry
    rows: pa.Table
    cache: dict[str, FloatArray] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.rows.num_rows

    def numbers(self, path: str) -> FloatArray:
        """(n, k) of a numeric feature."""
        if path not in self.rows.column_names:
            raise UserError(f'feature "{path}" is not in {sorted(self.rows.column_names)}.')
        if path not in self.cache:
            column = self.rows[path].combine_chunks()
            if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
                values = column.flatten().to_numpy(zero_copy_only=False)
            else:
                values = column.to_numpy(zero_copy_only=False)
            self.cache[path] = np.asarray(values, float).reshape(len(self), -1)
        return self.cache[path]

    def texts(self, path: str) -> list[str]:
        """``task``: the task of each frame; any other name: a text feature."""
        if path == 'task':
            return [str(self.dataset.tasks[int(i)] or '') for i in self.numbers('task_index')[:, 0]]
        return (
            [str(v) for v in self.rows[path].to_pylist()] if path in self.rows.schema.names else []
        )

    def frames(self, path: str, stamps_ns: IntArray) -> Frames:
        """Pictures of a video or image feature."""
        if path in self.entry.videos:
            file, start_s = self.entry.videos[path]

            def read(index: int) -> Any:
                return self.dataset.video(file).rgb(start_s + index / self.dataset.fps)

            return ArrayFrames(stamps_ns, read)
        if path in self.dataset.image_keys:
            blobs = [cell['bytes'] for cell in self.rows[path].to_pylist()]
            if any(b is None for b in blobs):
                raise UserError(f'feature "{path}" refers to picture files outside of the parquet.')
            return EncodedFrames(stamps_ns, blobs, path)
        known = self.dataset.video_keys + self.dataset.image_keys
        raise UserError(f'camera "{path}" is not in {known}.')

    def stamps(self, rate_hz: float) -> IntArray:
        """Frame number over fps; the float32 ``timestamp`` column must agree within half a frame.

        Raises:
            UserError: the recorded times stray, or the row's rate is not the data set's.
        """
        fps = self.dataset.fps
        if abs(rate_hz - fps) > 0.01 * fps:
            raise UserError(f'rate_hz = {rate_hz} in the row, fps = {fps} in info.json.')
        even = np.arange(len(self)) / fps
        if 'timestamp' in self.rows.column_names:
            recorded = self.numbers('timestamp')[:, 0]
            astray = np.flatnonzero(np.abs(recorded - even) > 0.5 / fps)
            if len(astray):
                first = int(astray[0])
                raise UserError(
                    f'frame {first} is stamped {recorded[first]:.3f} s instead of '
                    f'{even[first]:.3f} s; the recording has holes, leave this episode out.'
                )
        return np.round(even * 1e9).astype(np.int64)


def read_episodes(dataset: LeRobotDataset, row: DatasetRow) -> Iterator[Episode]:
    """Episodes of a directory, one in memory at a time."""
    for number, entry in enumerate(dataset.episodes):
        key = f'{row.name}-{entry.index:06d}'
        yield build_episode(row, dataset.columns(number), key)


def _episode_rows(root: Path) -> list[dict[str, Any]]:
    files = sorted((root / 'meta' / 'episodes').glob('*/*.parquet'))
    if not files:
        raise UserError(f'{root}/meta/episodes: no parquet file; the dataset is incomplete.')
    rows: list[dict[str, Any]] = []
    for file in files:
        names = pq.read_schema(file).names
        # The per-episode statistics would be most of the bytes and are not used.
        rows += _read_parquet(file, [n for n in names if not n.startswith('stats/')]).to_pylist()
    return sorted(rows, key=lambda row: int(row['episode_index']))


def _with_first_rows(entries: list[EpisodeEntry]) -> list[EpisodeEntry]:
    """Dataset-wide indices to rows of each episode's own data file."""
    first: dict[Path, int] = {}
    for entry in entries:
        first[entry.data_file] = min(first.get(entry.data_file, entry.first_row), entry.first_row)
    return [
        EpisodeEntry(
            e.index, e.length, e.tasks, e.data_file, e.first_row - first[e.data_file], e.videos
        )
        for e in entries
    ]


def _read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        text = str(error).splitlines()[0][:160]
        raise UserError(f'{path}: cannot read the parquet file ({text}).') from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise UserError(
            f'{path}: cannot read it ({error.strerror}); give the dataset folder that holds meta/.'
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f'{path}: not JSON ({error}).') from None


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except OSError as error:
        raise UserError(f'{path}: cannot read it ({error.strerror}).') from None
    except json.JSONDecodeError as error:
        raise UserError(f'{path}: a line is not JSON ({error}).') from None
