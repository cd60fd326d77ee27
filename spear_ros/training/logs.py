"""Where a run's figures go: ``metrics.jsonl`` and TensorBoard's event files."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spear_ros.training.distributed import Place
from spear_ros.training.tensorboard import ScalarWriter


class RunLog:
    """Writes on process 0 only; every line is whole on the disk before the next step.

    A disk that refuses a line is said once and ends nothing: the checkpoints have their own words.
    """

    def __init__(self, folder: Path, place: Place, *, tensorboard: bool = True) -> None:
        self._quiet = not place.first
        self._path = folder / 'metrics.jsonl'
        self._board: ScalarWriter | None = None
        self._refused = False
        if place.first:
            folder.mkdir(parents=True, exist_ok=True)
            _drop_half_line(self._path)
            self._board = ScalarWriter(folder / 'tensorboard') if tensorboard else None

    def say(self, sentence: str) -> None:
        """One line for the person who watches."""
        if not self._quiet:
            sys.stderr.write(f'{sentence}\n')
            sys.stderr.flush()

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append figures of a step; numbers also go to TensorBoard as ``kind/name``."""
        if self._quiet:
            return
        line = {'kind': kind, 'step': step, 'time': round(time.time(), 3), **values}
        self.append(self._path, line)
        if self._board is not None and not self._refused:
            numbers = {f'{kind}/{n}': v for n, v in values.items() if isinstance(v, (int, float))}
            try:
                self._board.add(numbers, step)
            except OSError as error:
                self._complain(error)

    def append(self, path: Path, line: Mapping[str, Any]) -> None:
        """Append one line of JSON to a file of the run, on whichever process."""
        try:
            _drop_half_line(path)
            with open(path, 'a', encoding='utf-8') as stream:
                stream.write(json.dumps(line, default=float) + '\n')
        except OSError as error:
            self._complain(error)
        else:
            self._refused = False

    def _complain(self, error: OSError) -> None:
        if not self._refused:
            self._refused = True
            self.say(f'figures cannot be written ({error.strerror}); the run goes on without.')

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def read_metrics(folder: Path, kind: str = '') -> list[dict[str, Any]]:
    """Lines of ``metrics.jsonl``, of one kind where it is named.

    A run that was resumed repeats the steps after its checkpoint; the later line counts.
    """
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    path = folder / 'metrics.jsonl'
    for text in path.read_text(encoding='utf-8').splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        lines[line['kind'], line['step']] = line
    found = sorted(lines.values(), key=lambda line: line['step'])
    return [line for line in found if not kind or line['kind'] == kind]


def _drop_half_line(path: Path) -> None:
    """A kill while writing leaves a line without an end; the next one must not join it."""
    if not path.exists() or not path.stat().st_size:
        return
    with open(path, 'rb+') as stream:
        stream.seek(-1, os.SEEK_END)
        if stream.read(1) != b'\n':
            stream.write(b'\n')
