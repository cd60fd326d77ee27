"""Metadata files of a LeRobotDataset v3: tasks, statistics, features."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spear_ros.core.types import FloatArray

QUANTILES = {'q01': 0.01, 'q10': 0.1, 'q50': 0.5, 'q90': 0.9, 'q99': 0.99}


def write_tasks(path: Path, tasks: Mapping[str, int]) -> None:
    """A pandas frame whose index is the text, as lerobot expects it, without pandas."""
    table = pa.table({'task_index': list(tasks.values()), '__index_level_0__': list(tasks)})
    pandas = {
        'index_columns': ['__index_level_0__'],
        'column_indexes': [
            {
                'name': None,
                'field_name': None,
                'pandas_type': 'unicode',
                'numpy_type': 'object',
                'metadata': {'encoding': 'UTF-8'},
            }
        ],
        'columns': [
            {
                'name': 'task_index',
                'field_name': 'task_index',
                'pandas_type': 'int64',
                'numpy_type': 'int64',
                'metadata': None,
            },
            {
                'name': None,
                'field_name': '__index_level_0__',
                'pandas_type': 'unicode',
                'numpy_type': 'object',
                'metadata': None,
            },
        ],
        'creator': {'library': 'pyarrow', 'version': pa.__version__},
        'pandas_version': '2.0.0',
    }
    pq.write_table(table.replace_schema_metadata({'pandas': json.dumps(pandas)}), path)


def video_feature(height: int, width: int, fps: float, codec: str) -> dict[str, Any]:
    """Entry of a camera in ``info.json``."""
    names = {'libx264': 'h264', 'libsvtav1': 'av1'}
    return {
        'dtype': 'video',
        'shape': [height, width, 3],
        'names': ['height', 'width', 'channels'],
        'info': {
            'video.height': height,
            'video.width': width,
            'video.codec': names.get(codec, codec),
            'video.pix_fmt': 'yuv420p',
            'video.is_depth_map': False,
            'video.fps': fps,
            'video.channels': 3,
            'has_audio': False,
        },
    }


def number_stats(values: FloatArray) -> dict[str, Any]:
    """Entry of ``stats.json`` for numbers (n, k)."""
    stats = {
        'min': values.min(axis=0),
        'max': values.max(axis=0),
        'mean': values.mean(axis=0),
        'std': values.std(axis=0),
        **{name: np.quantile(values, q, axis=0) for name, q in QUANTILES.items()},
    }
    return {**{k: v.tolist() for k, v in stats.items()}, 'count': [len(values)]}


def pixel_stats(sums: list[dict[str, Any]]) -> dict[str, Any]:
    """Entry of ``stats.json`` for a camera, from the sums of all groups; pixels in [0, 1]."""
    count = sum(s['count'] for s in sums)
    mean = np.sum([s['sum'] for s in sums], axis=0) / count
    square = np.sum([s['squares'] for s in sums], axis=0) / count
    stats = {
        'min': np.min([s['low'] for s in sums], axis=0),
        'max': np.max([s['high'] for s in sums], axis=0),
        'mean': mean,
        'std': np.sqrt(np.maximum(square - mean**2, 0.0)),
    }
    return {**{k: v.reshape(3, 1, 1).tolist() for k, v in stats.items()}, 'count': [count]}
