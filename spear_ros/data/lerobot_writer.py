"""Writes LeRobotDataset v3 directories that the lerobot package and our own reader can open.

The older layout v2.1 is :mod:`spear_ros.data.lerobot_v21_writer`.

State and action are eight numbers ``x y z qw qx qy qz gripper``: the measured pose and the absolute
target of the next step, so that no delta convention has to be guessed by whoever reads them.
Episodes are written in groups; a group is one parquet and one video file per camera, and a killed
run goes on after its last finished group.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spear_ros.core.config import to_mapping
from spear_ros.core.errors import UserError
from spear_ros.core.types import ActionSpec, FloatArray, ImageArray
from spear_ros.data.lerobot_meta import number_stats, pixel_stats, video_feature, write_tasks
from spear_ros.data.shards import write_json
from spear_ros.data.video import VideoWriter

NAMES = ('x', 'y', 'z', 'qw', 'qx', 'qy', 'qz', 'gripper')
STATE, ACTION = 'observation.state', 'action'
IMAGE_PREFIX = 'observation.images.'
GROUPS = 'meta/spear_groups'
DATA_PATH = 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
VIDEO_PATH = 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4'
EPISODES_PATH = 'meta/episodes/chunk-000/file-000.parquet'
CHUNK_FILES = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class LeRobotEpisode:
    """One evenly sampled episode, ready to be written."""

    key: str
    task: str
    state: FloatArray
    """(n, 8)."""
    action: FloatArray
    """(n, 8)."""
    images: Mapping[str, Iterator[ImageArray]]
    """Camera -> n pictures, made one at a time."""


@dataclass(slots=True)
class _Group:
    number: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    tables: list[pa.Table] = field(default_factory=list)
    videos: dict[str, VideoWriter] = field(default_factory=dict)
    pixels: dict[str, '_PixelSums'] = field(default_factory=dict)


class _PixelSums:
    """Mean, deviation and range of pixels per channel, from every tenth frame."""

    def __init__(self) -> None:
        self.count, self.frames = 0, 0
        self.sum, self.squares = np.zeros(3), np.zeros(3)
        self.low, self.high = np.full(3, np.inf), np.full(3, -np.inf)

    def add(self, image: ImageArray) -> None:
        if self.frames % 10 == 0:
            pixels = image[::4, ::4].reshape(-1, 3) / 255.0
            self.count += len(pixels)
            self.sum += pixels.sum(axis=0)
            self.squares += (pixels**2).sum(axis=0)
            self.low = np.minimum(self.low, pixels.min(axis=0))
            self.high = np.maximum(self.high, pixels.max(axis=0))
        self.frames += 1


class LeRobotWriter:
    """Writes one dataset directory; ``close`` completes it."""

    version = 'v3.0'
    data_path, video_path = DATA_PATH, VIDEO_PATH

    def __init__(
        self,
        root: Path,
        spec: ActionSpec,
        *,
        robot_type: str,
        episodes_per_file: int = 50,
        codec: str = 'libx264',
    ) -> None:
        """Open a folder, or take up a conversion that was cut short.

        Raises:
            UserError: the folder holds a dataset of other settings, or a finished one.
        """
        self.root, self.spec = root, spec
        self._per_file, self._codec = episodes_per_file, codec
        self._settings = {
            'robot_type': robot_type,
            'codec': codec,
            'action_spec': to_mapping(spec),
            'episodes_per_file': episodes_per_file,
            'version': self.version,
        }
        (root / GROUPS).mkdir(parents=True, exist_ok=True)
        self._check_settings()
        self._done = [json.loads(p.read_text()) for p in sorted((root / GROUPS).glob('*.json'))]
        self.done_keys = {row['key'] for group in self._done for row in group['rows']}
        self._sizes: dict[str, list[int]] = dict(self._done[0]['sizes']) if self._done else {}
        self._group = _Group(len(self._done))

    def _check_settings(self) -> None:
        if (self.root / 'meta' / 'info.json').exists():
            raise UserError(f'{self.root} holds a finished dataset; choose another output folder.')
        path = self.root / 'meta' / 'spear_settings.json'
        if not path.exists():
            write_json(path, self._settings)
        there = json.loads(path.read_text(encoding='utf-8'))
        for key, value in self._settings.items():
            if there.get(key, 'v3.0' if key == 'version' else None) != value:
                raise UserError(
                    f'{path}: {key} is {there.get(key)!r} there and {value!r} in this run; '
                    'use another output folder, or the same settings.'
                )

    def add(self, episode: LeRobotEpisode) -> None:
        """Append an episode.

        Raises:
            UserError: its cameras or picture sizes differ from the first episode's.
        """
        length = len(episode.state)
        assert episode.state.shape == episode.action.shape == (length, len(NAMES))
        index = len(self.done_keys) + len(self._group.rows)
        row: dict[str, Any] = {'key': episode.key, 'task': episode.task, 'length': length}
        row['episode_index'], row['videos'] = index, {}
        if self._sizes and set(self._sizes) != set(episode.images):
            raise UserError(
                f'episode {episode.key} has cameras {sorted(episode.images)}, the dataset has '
                f'{sorted(self._sizes)}; convert them into different folders.'
            )
        for camera, images in episode.images.items():
            row['videos'][camera] = self._add_video(camera, images, length)
        self._group.rows.append(row)
        self._group.tables.append(_numbers_table(episode, index, self.spec.rate_hz))
        if len(self._group.rows) >= self._per_file:
            self._finish_group()

    def close(self) -> None:
        """Finish the last files and write the metadata."""
        self._finish_group()
        if not self._done:
            raise UserError(f'{self.root}: no episode was written.')
        rows = [row for group in self._done for row in group['rows']]
        tasks = {task: i for i, task in enumerate(dict.fromkeys(row['task'] for row in rows))}
        self._write_task_indices(tasks)
        self._write_tables(rows, tasks)
        write_json(self.root / 'meta' / 'info.json', self._info(rows, len(tasks)))

    def _write_tables(self, rows: list[dict[str, Any]], tasks: Mapping[str, int]) -> None:
        """Everything in ``meta`` but ``info.json``, whose presence says that the rest is whole."""
        write_tasks(self.root / 'meta' / 'tasks.parquet', tasks)
        self._write_episode_table(rows)
        write_json(self.root / 'meta' / 'stats.json', self._stats(range(len(self._done))))

    def abandon(self) -> None:
        """Stop without the unfinished group; its episodes are done again next time."""
        for video in self._group.videos.values():
            video.close()
        self._group = _Group(len(self._done))

    def __enter__(self) -> 'LeRobotWriter':
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def _add_video(self, camera: str, images: Iterator[ImageArray], length: int) -> float:
        if camera not in self._group.videos:
            path = self._video_file(camera, self._group.number)
            self._group.videos[camera] = VideoWriter(path, self.spec.rate_hz, self._codec)
            self._group.pixels[camera] = _PixelSums()
        video = self._group.videos[camera]
        start_s = video.count / self.spec.rate_hz
        count = 0
        for image in images:
            even = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
            size = self._sizes.setdefault(camera, [even.shape[0], even.shape[1]])
            if size != [even.shape[0], even.shape[1]]:
                raise UserError(
                    f'camera {camera}: a picture has {even.shape[1]} x {even.shape[0]} pixels, the '
                    f'dataset has {size[1]} x {size[0]}.'
                )
            video.add(even)
            self._group.pixels[camera].add(even)
            count += 1
        assert count == length, (count, length)
        return start_s

    def _finish_group(self) -> None:
        group = self._group
        if not group.rows:
            return
        for video in group.videos.values():
            video.close()
        path = self._data_file(group.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(group.tables), path)
        pixels = {
            camera: {
                'count': sums.count,
                **{
                    k: list(map(float, getattr(sums, k))) for k in ('sum', 'squares', 'low', 'high')
                },
            }
            for camera, sums in group.pixels.items()
        }
        line = {'rows': group.rows, 'sizes': self._sizes, 'pixels': pixels}
        write_json(self.root / GROUPS / f'{group.number:05d}.json', line)
        self._done.append(json.loads(json.dumps(line)))
        self.done_keys.update(row['key'] for row in group.rows)
        self._group = _Group(len(self._done))

    def _write_task_indices(self, tasks: Mapping[str, int]) -> None:
        """Put the final task and frame numbers into the data files, one file at a time."""
        start = 0
        for number, group in enumerate(self._done):
            path = self._data_file(number)
            table = pq.read_table(path)
            index = np.concatenate([np.full(r['length'], tasks[r['task']]) for r in group['rows']])
            for name, values in (
                ('task_index', index),
                ('index', start + np.arange(table.num_rows)),
            ):
                at = table.column_names.index(name)
                table = table.set_column(at, name, pa.array(values, pa.int64()))
            temporary = path.with_suffix('.part')
            pq.write_table(table, temporary)
            temporary.replace(path)
            start += table.num_rows

    def _write_episode_table(self, rows: list[dict[str, Any]]) -> None:
        numbers = [n for n, group in enumerate(self._done) for _ in group['rows']]
        ends = np.cumsum([row['length'] for row in rows])
        columns: dict[str, Any] = {
            'episode_index': [row['episode_index'] for row in rows],
            'tasks': [[row['task']] for row in rows],
            'length': [row['length'] for row in rows],
            'data/chunk_index': [n // CHUNK_FILES for n in numbers],
            'data/file_index': [n % CHUNK_FILES for n in numbers],
            'dataset_from_index': [int(e) - r['length'] for e, r in zip(ends, rows, strict=True)],
            'dataset_to_index': [int(e) for e in ends],
            'meta/episodes/chunk_index': [0] * len(rows),
            'meta/episodes/file_index': [0] * len(rows),
        }
        for camera in self._sizes:
            key = f'videos/{IMAGE_PREFIX}{camera}'
            starts = [row['videos'][camera] for row in rows]
            columns[f'{key}/chunk_index'] = columns['data/chunk_index']
            columns[f'{key}/file_index'] = columns['data/file_index']
            columns[f'{key}/from_timestamp'] = starts
            columns[f'{key}/to_timestamp'] = [
                s + r['length'] / self.spec.rate_hz for s, r in zip(starts, rows, strict=True)
            ]
        path = self.root / EPISODES_PATH
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)

    def _data_file(self, number: int) -> Path:
        """Parquet file of a group."""
        return self.root / self.data_path.format(**_place(number))

    def _video_file(self, camera: str, number: int) -> Path:
        """Video file of a camera in a group."""
        return self.root / self.video_path.format(video_key=IMAGE_PREFIX + camera, **_place(number))

    def _stats(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Statistics over some groups, by feature."""
        files = [self._data_file(n) for n in numbers]
        stats = {}
        for name in (STATE, ACTION):
            parts = [pq.read_table(f, columns=[name])[name].combine_chunks() for f in files]
            values = np.concatenate([p.flatten().to_numpy().reshape(-1, len(NAMES)) for p in parts])
            stats[name] = number_stats(values.astype(float))
        for camera in self._sizes:
            sums = [self._done[n]['pixels'][camera] for n in numbers]
            stats[IMAGE_PREFIX + camera] = pixel_stats(sums)
        return stats

    def _info(self, rows: list[dict[str, Any]], tasks: int) -> dict[str, Any]:
        fps = self.spec.rate_hz
        whole = int(fps) if fps == int(fps) else fps
        features: dict[str, Any] = {
            name: {'dtype': 'float32', 'shape': [len(NAMES)], 'names': list(NAMES)}
            for name in (STATE, ACTION)
        }
        for camera, (height, width) in self._sizes.items():
            features[IMAGE_PREFIX + camera] = video_feature(height, width, whole, self._codec)
        for name, kind in (
            ('timestamp', 'float32'),
            ('frame_index', 'int64'),
            ('episode_index', 'int64'),
            ('index', 'int64'),
            ('task_index', 'int64'),
        ):
            features[name] = {'dtype': kind, 'shape': [1], 'names': None}
        return {
            'codebase_version': self.version,
            'robot_type': self._settings['robot_type'],
            'total_episodes': len(rows),
            'total_frames': sum(row['length'] for row in rows),
            'total_tasks': tasks,
            'chunks_size': CHUNK_FILES,
            'data_files_size_in_mb': 100,
            'video_files_size_in_mb': 500,
            'fps': whole,
            'splits': {'train': f'0:{len(rows)}'},
            'data_path': self.data_path,
            'video_path': self.video_path,
            'features': features,
        }


def _place(number: int) -> dict[str, int]:
    """What both layouts name their files by; in v2.1 a group is an episode."""
    chunk, place = number // CHUNK_FILES, number % CHUNK_FILES
    return {
        'chunk_index': chunk,
        'file_index': place,
        'episode_chunk': chunk,
        'episode_index': number,
    }


def _numbers_table(episode: LeRobotEpisode, index: int, rate_hz: float) -> pa.Table:
    n = len(episode.state)
    vector = pa.list_(pa.float32(), len(NAMES))

    def vectors(values: FloatArray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(
            pa.array(values.astype(np.float32).ravel()), type=vector
        )

    frames = np.arange(n)
    return pa.table(
        {
            STATE: vectors(episode.state),
            ACTION: vectors(episode.action),
            'timestamp': pa.array((frames / rate_hz).astype(np.float32)),
            'frame_index': pa.array(frames, pa.int64()),
            'episode_index': pa.array(np.full(n, index), pa.int64()),
            'index': pa.array(frames, pa.int64()),
            'task_index': pa.array(np.zeros(n), pa.int64()),
        }
    )
