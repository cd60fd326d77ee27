"""Reads published RLDS data sets (TFRecord + features.json) without TensorFlow.

A record is one episode; nested features arrive flat (``steps/observation/image_0``), steps run
along the first axis. ``features.json`` of TensorFlow Datasets says shapes, types and encodings
(Kuka's state is zlib-compressed).
"""

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.types import FloatArray
from spear_ros.data.episodes import EncodedFrames, Episode, Frames, IntArray
from spear_ros.data.rows import DatasetRow, build_episode
from spear_ros.data.tfrecord import Example, read_records

STEPS = 'steps/'
_NUMPY = {'float32': '<f4', 'float64': '<f8', 'int32': '<i4', 'int64': '<i8', 'uint8': 'u1'}


@dataclass(frozen=True, slots=True)
class Feature:
    """What features.json says about one leaf."""

    kind: str
    """``tensor``, ``image`` or ``text``."""
    shape: tuple[int, ...]
    dtype: str
    zlib: bool


def read_schema(folder: Path) -> dict[str, Feature]:
    """Leaves of ``features.json`` by flat path.

    Raises:
        UserError: the file is missing or not of TensorFlow Datasets' form.
    """
    path = folder / 'features.json'
    try:
        root = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise UserError(
            f'{path}: cannot read the schema ({error.strerror}); give the folder of one version, '
            'which holds features.json and *.tfrecord-* files.'
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f'{path}: not JSON ({error}); copy the file again.') from None
    leaves: dict[str, Feature] = {}
    _walk(root, '', leaves)
    return leaves


def schema_fingerprint(schema: dict[str, Feature]) -> str:
    """Twelve hex digits that change when a published version changes its features."""
    lines = [f'{k} {f.kind} {f.shape} {f.dtype} {f.zlib}' for k, f in sorted(schema.items())]
    return sha256('\n'.join(lines).encode()).hexdigest()[:12]


def _walk(node: dict, path: str, leaves: dict[str, Feature]) -> None:
    if 'featuresDict' in node:
        for name, child in node['featuresDict']['features'].items():
            _walk(child, f'{path}/{name}' if path else name, leaves)
    elif 'sequence' in node:
        _walk(node['sequence']['feature'], path, leaves)
    elif 'image' in node:
        shape = tuple(int(d) for d in node['image'].get('shape', {}).get('dimensions', ()))
        leaves[path] = Feature('image', shape, 'uint8', False)
    elif 'text' in node or 'Text' in node.get('pythonClassName', ''):
        leaves[path] = Feature('text', (), 'string', False)
    elif 'tensor' in node:
        tensor = node['tensor']
        shape = tuple(int(d) for d in tensor.get('shape', {}).get('dimensions', ()))
        text = tensor.get('dtype') == 'string'
        kind, packed = ('text' if text else 'tensor'), tensor.get('encoding') == 'zlib'
        leaves[path] = Feature(kind, shape, tensor.get('dtype', 'float32'), packed)


class RldsColumns:
    """One parsed record as columns for a row; paths are relative to ``steps/``."""

    def __init__(self, example: Example, schema: dict[str, Feature]) -> None:
        self._example = example
        self._schema = schema
        marks = [n for n in ('is_first', 'is_last', 'is_terminal') if STEPS + n in example]
        if not marks:
            raise UserError('the record has none of steps/is_first, is_last, is_terminal.')
        self._n = len(example.ints(STEPS + marks[0]))

    def __len__(self) -> int:
        return self._n

    def numbers(self, path: str) -> FloatArray:
        """(n, k) of a tensor feature."""
        name = STEPS + path
        feature = self._schema.get(name)
        kind = self._example.kind(name) if name in self._example else 'float'
        if kind == 'bytes':
            values = self._zlib(name, feature)
        elif kind == 'int64':
            values = self._example.ints(name).astype(float)
        else:
            values = self._example.floats(name).astype(float)
        if not self._n or values.size % self._n:
            raise UserError(f'"{path}" holds {values.size} values for {self._n} steps.')
        width = values.size // self._n
        if feature is not None and feature.kind == 'tensor':
            expected = int(np.prod(feature.shape, dtype=int))
            if width != expected:
                raise UserError(
                    f'"{path}" has {width} values a step, features.json says {expected}.'
                )
        return values.reshape(self._n, width)

    def _zlib(self, name: str, feature: Feature | None) -> FloatArray:
        if feature is None or not feature.zlib:
            raise UserError(f'"{name}" is stored as bytes, but features.json does not say zlib.')
        try:
            rows = [
                np.frombuffer(zlib.decompress(blob), _NUMPY[feature.dtype])
                for blob in self._example.bytes_list(name)
            ]
        except (zlib.error, ValueError) as error:
            raise UserError(f'"{name}" does not decompress ({error}).') from None
        return np.concatenate([r.ravel() for r in rows] or [np.zeros(0)]).astype(float)

    def texts(self, path: str) -> list[str]:
        """Texts of a step feature, or of the episode with ``/episode_metadata/...``."""
        name = path[1:] if path.startswith('/') else STEPS + path
        if name not in self._example:
            return []
        if self._example.kind(name) == 'int64':
            # Language-Table stores code points, zero-padded, instead of a string.
            codes = self._example.ints(name).reshape(max(self._n, 1), -1)
            return [''.join(map(chr, row[row > 0])) for row in codes]
        return [bytes(v).decode('utf-8', 'replace') for v in self._example.bytes_list(name)]

    def frames(self, path: str, stamps_ns: IntArray) -> Frames:
        """JPEG or PNG pictures as stored."""
        blobs = self._example.bytes_list(STEPS + path)
        if len(blobs) != self._n:
            raise UserError(f'camera "{path}" has {len(blobs)} pictures for {self._n} steps.')
        return EncodedFrames(stamps_ns, blobs, path)

    def stamps(self, rate_hz: float) -> IntArray:
        """RLDS has no time: step k is at k / rate."""
        return np.round(np.arange(self._n) * (1e9 / rate_hz)).astype(np.int64)


def record_files(folder: Path, split: str = 'train', *, allow_missing: bool = False) -> list[Path]:
    """TFRecord files of a split, in order.

    Raises:
        UserError: there are none, or their names say that some are missing.
    """
    files = sorted(folder.glob(f'*-{split}.tfrecord*'))
    if not files:
        raise UserError(
            f'{folder}: no file *-{split}.tfrecord-* found; check the folder and the split.'
        )
    match = re.search(r'-of-(\d+)$', files[0].name)
    if match and int(match[1]) != len(files) and not allow_missing:
        raise UserError(
            f'{folder}: {len(files)} of {int(match[1])} files of split "{split}" are here; '
            'copy the rest, or pass --skip-damaged to convert what there is.'
        )
    return files


def read_episodes(path: Path, row: DatasetRow, schema: dict[str, Feature]) -> Iterator[Episode]:
    """Episodes of one TFRecord file, one in memory at a time."""
    for number, payload in enumerate(read_records(path)):
        key = f'{row.name}-{number:06d}'
        yield build_episode(row, RldsColumns(Example(payload), schema), key)
