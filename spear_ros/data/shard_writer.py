"""Writes training shards, episode by episode, so that a killed conversion goes on where it was."""

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from spear_ros.core.config import to_mapping
from spear_ros.core.errors import UserError
from spear_ros.data.samples import Sample, sample_info
from spear_ros.data.shards import (
    BLOCK,
    MAX_KEY,
    MEMBERS,
    DatasetCard,
    file_sha256,
    read_card,
    read_manifest,
    write_json,
)


class ShardWriter:
    """Writes samples episode by episode; a killed run goes on after its last finished shard."""

    def __init__(
        self, root: Path, card: DatasetCard, *, part: tuple[int, int] = (0, 1), shard_mb: int = 256
    ) -> None:
        """Open a folder, or take up a conversion that was cut short.

        Args:
            root: folder; created where absent.
            card: must equal the card that is there.
            part: (index, count) of this process among those writing into the folder.
            shard_mb: a shard is closed at the end of the episode in which it reaches this size.

        Raises:
            UserError: the folder holds other data, with the field that differs.
        """
        self.root, self.part = root, part
        self._limit = shard_mb << 20
        root.mkdir(parents=True, exist_ok=True)
        self._check_card(card)
        self._prefix = f'shard-{part[0]:03d}-'
        self._manifest = root / f'manifest-{part[0]:03d}-of-{part[1]:03d}.jsonl'
        lines = read_manifest(self._manifest)
        if lines:
            # A line cut off by a crash must not stay in front of the next one.
            _rewrite(self._manifest, lines)
        self.complete = any('complete' in line for line in lines)
        self.done_keys = {key for line in lines for key in line.get('episodes', ())}
        self._number = sum('shard' in line for line in lines)
        self._stream: io.BufferedWriter | None = None
        self._places: list[list[tuple[int, int]]] = []
        self._keys: list[str] = []
        self._at = 0
        for stray in root.glob(f'{self._prefix}*.part'):
            stray.unlink()

    def _check_card(self, card: DatasetCard) -> None:
        path = self.root / 'dataset.json'
        if not path.exists():
            write_json(path, to_mapping(card))
            return
        there, ours = to_mapping(read_card(self.root)), to_mapping(card)
        for key in ours:
            if there.get(key) != ours[key]:
                raise UserError(
                    f'{path}: {key} is {there.get(key)!r} in the folder and {ours[key]!r} in this '
                    'run; use another output folder, or the same settings.'
                )

    def add_episode(self, key: str, samples: Iterable[Sample]) -> int:
        """Write the samples of one episode; returns how many there were."""
        assert key not in self.done_keys, key
        count = 0
        for sample in samples:
            self._add(sample)
            count += 1
        self._keys.append(key)
        if self._at >= self._limit:
            self._finish_shard()
        return count

    def close(self) -> None:
        """Finish the last shard and mark this part complete."""
        self._finish_shard()
        if not self.complete:
            self._append({'complete': True})
            self.complete = True

    def abandon(self) -> None:
        """Stop without the unfinished shard; its episodes are done again next time."""
        if self._stream is not None:
            name = self._stream.name
            self._stream.close()
            os.unlink(name)
            self._stream = None

    def __enter__(self) -> 'ShardWriter':
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

    def _add(self, sample: Sample) -> None:
        if not re.fullmatch(rf'[A-Za-z0-9_-]{{1,{MAX_KEY}}}', sample.key):
            raise UserError(f'sample key "{sample.key}" must be 1 to {MAX_KEY} of A-Z a-z 0-9 _ -')
        numbers = io.BytesIO()
        np.save(numbers, sample.numbers)
        blobs = (sample.external, sample.wrist, numbers.getvalue(), sample_info(sample))
        places = []
        for suffix, blob in zip(MEMBERS, blobs, strict=True):
            places.append((0, 0) if blob is None else self._member(f'{sample.key}.{suffix}', blob))
        self._places.append(places)

    def _member(self, name: str, blob: bytes) -> tuple[int, int]:
        if self._stream is None:
            path = self.root / f'{self._prefix}{self._number:05d}.tar.part'
            self._stream = open(path, 'wb')  # noqa: SIM115  closed by _finish_shard or abandon
            self._at = 0
        header = tarfile.TarInfo(name)
        header.size = len(blob)
        data = header.tobuf(tarfile.USTAR_FORMAT)
        place = (self._at + len(data), len(blob))
        padding = b'\0' * (-len(blob) % BLOCK)
        self._stream.write(data + blob + padding)
        self._at += len(data) + len(blob) + len(padding)
        return place

    def _finish_shard(self) -> None:
        if self._stream is None:
            if self._keys:  # episodes without a sample: remembered, so they are not tried again
                self._append({'episodes': self._keys})
            self._keys = []
            return
        self._stream.write(b'\0' * (2 * BLOCK))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self._stream = None
        name = f'{self._prefix}{self._number:05d}.tar'
        temporary = self.root / f'{name}.part'
        digest = file_sha256(temporary)
        np.save(self.root / f'{name[:-4]}.index.npy', np.array(self._places, np.int64))
        os.replace(temporary, self.root / name)
        self._append(
            {
                'shard': name,
                'samples': len(self._places),
                'sha256': digest,
                'episodes': self._keys,
            }
        )
        self._number += 1
        self._places, self._keys, self._at = [], [], 0

    def _append(self, line: dict[str, Any]) -> None:
        with open(self._manifest, 'a', encoding='utf-8') as stream:
            stream.write(json.dumps(line) + '\n')
            stream.flush()
            os.fsync(stream.fileno())
        self.done_keys.update(line.get('episodes', ()))


def _rewrite(path: Path, lines: list[dict[str, Any]]) -> None:
    temporary = path.with_suffix('.part')
    temporary.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    os.replace(temporary, path)
