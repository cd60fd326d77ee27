"""Results of stages on disk, found by the content that they were made from.

The key of a result is the SHA-256 of the stage's name, its settings and the digests of its inputs.
So a second run finds what the first one made, a changed setting makes only what depends on it, and
any number of processes may share a folder: files appear whole (written aside, then renamed), and
two that make the same one write the same bytes. Failures that would come again are stored as well;
transient ones are not. A damaged file counts as missing.
"""

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spear_ros.annotation.types import AnnotationError, FailureKind
from spear_ros.core.errors import UserError

_META = 'json'


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored result."""

    data: Mapping[str, Any]
    """JSON."""
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def digest_of(*parts: object) -> str:
    """Hexadecimal SHA-256 of JSON values, independent of the order of keys."""
    text = json.dumps(parts, sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomically(path: Path, blob: bytes) -> None:
    """Write a file whole or not at all, safe against a kill and against a second writer.

    Raises:
        UserError: the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, building = tempfile.mkstemp(prefix='.', suffix='.part', dir=path.parent)
        try:
            with os.fdopen(handle, 'wb') as stream:
                stream.write(blob)
                stream.flush()
                os.fsync(stream.fileno())
            # mkstemp makes files for the owner alone; results are shared between processes.
            os.chmod(building, 0o644)
            os.replace(building, path)
        except BaseException:
            Path(building).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror}); free or mend the disk.') \
            from None  # fmt: skip


class Store:
    """A folder of results.

    Args:
        folder: made when the first result is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hits: dict[str, int] = {}
        self.made: dict[str, int] = {}
        """Results per stage that were found and that were computed, by this process."""

    def run(
        self,
        stage: str,
        settings: Mapping[str, object],
        inputs: Sequence[str],
        compute: Callable[[], Entry],
    ) -> tuple[str, Entry]:
        """Return the digest of a result and the result, computed only if it is not there.

        Raises:
            AnnotationError: the stage failed, now or when it was first run.
        """
        key = digest_of(stage, dict(settings), list(inputs))
        path = self._path(stage, key)
        entry = self._read(path)
        if entry is not None:
            self.hits[stage] = self.hits.get(stage, 0) + 1
        else:
            self.made[stage] = self.made.get(stage, 0) + 1
            try:
                entry = compute()
            except AnnotationError as error:
                if not error.transient:
                    failed = {'failure': error.kind.value, 'text': error.text}
                    write_atomically(path, _pack(Entry(failed)))
                raise
            write_atomically(path, _pack(entry))
        if 'failure' in entry.data:
            raise AnnotationError(FailureKind(entry.data['failure']), str(entry.data['text']))
        return key, entry

    def has(self, stage: str, settings: Mapping[str, object], inputs: Sequence[str]) -> bool:
        """Whether a result (or a lasting failure) is stored, without reading it."""
        return self._path(stage, digest_of(stage, dict(settings), list(inputs))).is_file()

    def load(self, stage: str, key: str) -> Entry | None:
        """A stored result by its key; None where it is gone or damaged."""
        return self._read(self._path(stage, key))

    def _path(self, stage: str, key: str) -> Path:
        return self.folder / stage / key[:2] / f'{key}.npz'

    def _read(self, path: Path) -> Entry | None:
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
                data = json.loads(archive[_META].tobytes().decode())
                arrays = {name: archive[name] for name in archive.files if name != _META}
            if 'failure' in data:
                FailureKind(data['failure'])
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
            return None
        return Entry(data, arrays)


def _pack(entry: Entry) -> bytes:
    assert _META not in entry.arrays
    stream = io.BytesIO()
    meta = np.frombuffer(json.dumps(dict(entry.data), sort_keys=True).encode(), np.uint8)
    np.savez_compressed(stream, **{_META: meta}, **dict(entry.arrays))
    return stream.getvalue()
