"""Where a run's figures go: ``metrics.jsonl`` always, TensorBoard where it is installed."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spear_ros.training.distributed import Place


class RunLog:
    """Writes on process 0 only; every line is whole on the disk before the next step."""

    def __init__(self, folder: Path, place: Place, *, tensorboard: bool = True) -> None:
        self._quiet = not place.first
        self._path = folder / 'metrics.jsonl'
        self._board: Any = None
        if place.first:
            folder.mkdir(parents=True, exist_ok=True)
            _drop_half_line(self._path)
            self._board = _open_board(folder) if tensorboard else None

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
        with open(self._path, 'a', encoding='utf-8') as stream:
            stream.write(json.dumps(line, default=float) + '\n')
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(f'{kind}/{name}', value, step)

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
    if path.exists() and not path.read_bytes().endswith(b'\n') and path.stat().st_size:
        with open(path, 'a', encoding='utf-8') as stream:
            stream.write('\n')


def _open_board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / 'tensorboard'))
