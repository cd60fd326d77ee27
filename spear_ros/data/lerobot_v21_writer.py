"""Writes the older LeRobot layout, v2.1, which many training codes still read.

One parquet file and one video per camera for every episode, metadata as lines of JSON. The numbers
are those of v3; the lerobot package from 0.4 on reads this layout only after its own conversion.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spear_ros.core.types import ActionSpec
from spear_ros.data.lerobot_writer import CHUNK_FILES, LeRobotWriter

DATA_PATH = 'data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet'
VIDEO_PATH = 'videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4'


class LeRobotV21Writer(LeRobotWriter):
    """The writer of v3 with groups of one episode and other file names."""

    version = 'v2.1'
    data_path, video_path = DATA_PATH, VIDEO_PATH

    def __init__(
        self, root: Path, spec: ActionSpec, *, robot_type: str, codec: str = 'libx264'
    ) -> None:
        """See :class:`LeRobotWriter`."""
        super().__init__(root, spec, robot_type=robot_type, episodes_per_file=1, codec=codec)

    def _write_tables(self, rows: list[dict[str, Any]], tasks: Mapping[str, int]) -> None:
        meta = self.root / 'meta'
        write_lines(
            meta / 'tasks.jsonl', [{'task_index': i, 'task': task} for task, i in tasks.items()]
        )
        write_lines(
            meta / 'episodes.jsonl',
            [
                {'episode_index': n, 'tasks': [row['task']], 'length': row['length']}
                for n, row in enumerate(rows)
            ],
        )
        write_lines(
            meta / 'episodes_stats.jsonl',
            [{'episode_index': n, 'stats': self._stats([n])} for n in range(len(rows))],
        )

    def _info(self, rows: list[dict[str, Any]], tasks: int) -> dict[str, Any]:
        info = super()._info(rows, tasks)
        del info['data_files_size_in_mb'], info['video_files_size_in_mb']
        info['total_videos'] = len(rows) * len(self._sizes)
        info['total_chunks'] = -(-len(rows) // CHUNK_FILES)
        return info


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    temporary = path.with_suffix('.part')
    text = ''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines)
    temporary.write_text(text, encoding='utf-8')
    temporary.replace(path)
