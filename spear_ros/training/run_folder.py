"""What a run folder promises: one config, and a stop that is asked for politely."""

import dataclasses
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from spear_ros.core.config import to_mapping
from spear_ros.core.errors import UserError
from spear_ros.data.shards import file_sha256, write_json
from spear_ros.training.distributed import Place, barrier

CHECKPOINT_CONFIG = 'config.json'
CHANGEABLE = ('max_minutes', 'saving', 'logging', 'validate_every', 'check_memory', 'device',
              'max_bad', 'parallel')  # fmt: skip
"""Fields that may differ when a run goes on: they do not change its result."""


def keep_config(folder: Path, config: Any, place: Place) -> None:
    """Write ``config.json`` into the folder, or hold it against the one of the run that is there.

    A command that failed before its first figures and checkpoint left no run: what it noted is
    replaced, so that mended settings may use the folder.

    Raises:
        UserError: the folder belongs to a run with another value; names the field.
    """
    path = folder / 'config.json'
    ours = json.loads(json.dumps(to_mapping(config)))
    difference = _difference(path, ours, config) if path.exists() else None
    if difference is not None and _has_begun(folder):
        name, old, new = difference
        raise UserError(
            f'{folder}: a run with {name} = {old!r} is there and this one has {new!r}; choose '
            'another folder, or the same settings to go on.'
        )
    barrier(place)
    if place.first:
        folder.mkdir(parents=True, exist_ok=True)
        if difference is not None:
            for stale in ('start.json', 'norm_stats.json'):  # of the settings that failed
                (folder / stale).unlink(missing_ok=True)
        write_json(path, ours)


def keep_start(folder: Path, config: Any, place: Place) -> None:
    """Note which checkpoints the run starts from, or hold it against what was noted.

    Frozen weights are read again from ``init`` and ``moge`` whenever a run goes on, so another
    checkpoint in the same place would be mixed with what was trained on the first one.

    Raises:
        UserError: one of them holds another checkpoint now.
    """
    path = folder / 'start.json'
    ours = {
        name: file_sha256(Path(value) / CHECKPOINT_CONFIG)  # it holds the hashes of the weights
        for name in ('init', 'moge')
        if (value := getattr(config, name, '')) and (Path(value) / CHECKPOINT_CONFIG).is_file()
    }
    if path.exists():
        theirs = json.loads(path.read_text(encoding='utf-8'))
        for name, now in ours.items():
            if theirs.get(name, now) != now:
                raise UserError(
                    f'{folder}: {name} = {getattr(config, name)} holds another checkpoint than '
                    'when this run began; put the first one back, or choose another --out.'
                )
    barrier(place)
    if place.first:
        write_json(path, ours)


def _difference(path: Path, ours: dict[str, Any], config: Any) -> tuple[str, Any, Any] | None:
    """The first field that changes a result and differs: its name, the old value, the new one."""
    theirs = _with_new_fields(json.loads(path.read_text(encoding='utf-8')), config)
    for name in ours:
        was, now = _without_threads(theirs.get(name)), _without_threads(ours[name])
        if name not in CHANGEABLE and was != now:
            return _first_difference(name, was, now)
    return None


def _has_begun(folder: Path) -> bool:
    metrics = folder / 'metrics.jsonl'
    written = metrics.is_file() and metrics.stat().st_size > 0
    return written or any((folder / 'checkpoints').glob('*')) or (folder / 'export').exists()


def _with_new_fields(saved: Any, config: Any) -> Any:
    """Fill in the defaults of fields that did not exist when a run began."""
    if not (dataclasses.is_dataclass(config) and isinstance(saved, dict)):
        return saved
    filled = dict(saved)
    for f in dataclasses.fields(config):
        if f.name in saved:
            filled[f.name] = _with_new_fields(saved[f.name], getattr(config, f.name))
        elif f.default is not dataclasses.MISSING:
            filled[f.name] = json.loads(json.dumps(to_mapping(f.default)))
        elif f.default_factory is not dataclasses.MISSING:
            filled[f.name] = json.loads(json.dumps(to_mapping(f.default_factory())))
    return filled


def _without_threads(value: Any) -> Any:
    """How many threads prepare the data changes nothing that comes out."""
    if isinstance(value, dict):
        return {name: v for name, v in value.items() if name != 'threads'}
    return value


def _first_difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return _first_difference(f'{name}.{key}', old.get(key), new.get(key))
    return name, old, new


@contextmanager
def stop_signals(ask: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and the first Ctrl-C ask for a checkpoint; a second Ctrl-C ends at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        ask()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, handle)
    except ValueError:  # not the main thread: somebody else looks after signals
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
