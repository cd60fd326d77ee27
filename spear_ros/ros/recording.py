"""Whole-run bags and flight recordings of the last minute, in a thread of their own. No rclpy.

A flight recording holds everything but the pictures as it came, and the pictures at 5 Hz and small
(what the model saw, not what the camera sent). Disk trouble never reaches the robot side: it is
said in :attr:`Recorder.problems`, memory stays bounded, and recording goes on when there is space.
"""

import json
import queue
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from spear_ros.core.errors import UserError
from spear_ros.data.bag_writer import BagWriter

_RETRY_S = 10.0
_QUEUE = 600


@dataclass(frozen=True, kw_only=True, slots=True)
class RecorderSettings:
    """Where and how much to record; ``None`` switches a kind off."""

    record: Path | None = None
    """The whole-run bag. If the folder exists, a new one beside it gets the time in its name."""
    flight: Path | None = None
    """Flight recordings go into folders below this one, named by time and reason."""
    window_s: float = 60.0
    tail_s: float = 2.0
    """Time after the fault that belongs to the recording: how the robot came to rest."""
    image_rate_hz: float = 5.0
    max_flight_bytes: int = 20_000_000
    keep_flights: int = 20
    """Older flight recordings are deleted."""
    min_free_bytes: int = 500_000_000
    """Recording stops when less than this is free on the disk."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One message as it goes into a bag."""

    topic: str
    type_name: str
    stamp_ns: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Picture:
    """One image message, not encoded yet; ``encode(small)`` gives the bytes of the message."""

    topic: str
    type_name: str
    stamp_ns: int
    encode: Callable[[bool], bytes | None]


class FlightBuffer:
    """Ring of the last seconds, bounded in time and in bytes.

    The last message of a topic stays, however old: what is sent on change only (the activity of the
    controllers) belongs into the recording too.
    """

    def __init__(self, window_s: float, max_bytes: int) -> None:
        self._window_ns, self._max_bytes = round(window_s * 1e9), max_bytes
        self._entries: deque[Entry] = deque()
        self._left: dict[str, Entry] = {}
        self.bytes = 0

    def add(self, entry: Entry) -> None:
        """Append; what is too old or too much leaves at the other end."""
        self._entries.append(entry)
        self.bytes += len(entry.data)
        oldest = entry.stamp_ns - self._window_ns
        while self._entries and (
            self._entries[0].stamp_ns < oldest or self.bytes > self._max_bytes
        ):
            gone = self._entries.popleft()
            self.bytes -= len(gone.data)
            self._left[gone.topic] = gone

    def entries(self) -> list[Entry]:
        """Everything in the ring, in order of arrival, after what each silent topic said last."""
        present = {entry.topic for entry in self._entries}
        silent = [entry for topic, entry in self._left.items() if topic not in present]
        return [*silent, *self._entries]


class Throttle:
    """Lets a topic through at most at a rate, judged on stamps."""

    def __init__(self, rate_hz: float) -> None:
        self._period_ns = round(0.9e9 / rate_hz)
        self._last: dict[str, int] = {}

    def due(self, topic: str, stamp_ns: int) -> bool:
        """Tell whether this message of the topic is wanted."""
        last = self._last.get(topic)
        if last is not None and 0 <= stamp_ns - last < self._period_ns:
            return False
        self._last[topic] = stamp_ns
        return True


@dataclass
class _Flight:
    reason: str
    details: dict[str, Any]
    due_s: float


class Recorder:
    """Takes messages from callbacks and writes them from a thread of its own.

    Args:
        settings: see :class:`RecorderSettings`.
        details: versions, robot, parameters: kept with every recording.
        monotonic: seconds.
    """

    def __init__(
        self,
        settings: RecorderSettings,
        details: Mapping[str, Any],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._details, self._monotonic = settings, dict(details), monotonic
        self._queue: queue.Queue[Entry | Picture | None] = queue.Queue(_QUEUE)
        # Room for the bag's own overhead, so that the file stays under the limit.
        self._ring = FlightBuffer(
            settings.window_s + settings.tail_s, round(0.93 * settings.max_flight_bytes)
        )
        self._throttle = Throttle(settings.image_rate_hz)
        self._flight: _Flight | None = None
        self._bag: BagWriter | None = None
        self._next_try_s = 0.0
        self._lock = threading.Lock()
        self.problems: dict[str, str] = {}
        """What is wrong now, by kind: ``record``, ``flight``, ``queue``."""
        self.dropped = 0
        self.written: list[Path] = []
        """Bags begun and flight recordings finished."""
        self._thread = threading.Thread(target=self._run, name='recorder')

    # ----------------------------------------------------------------------------- from callbacks

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, item: Entry | Picture) -> None:
        """Hand over a message; dropped and counted when the disk cannot keep up."""
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self.dropped += 1
            self.problems['queue'] = f'{self.dropped} messages were not recorded: disk too slow.'

    def trigger(self, reason: str, details: Mapping[str, Any]) -> None:
        """Ask for a flight recording; while one is due, further faults are part of it."""
        with self._lock:
            if self._settings.flight is not None and self._flight is None:
                due = self._monotonic() + self._settings.tail_s
                self._flight = _Flight(reason, dict(details), due)

    def close(self) -> None:
        """Write what is left and end the thread."""
        self._queue.put(None)
        self._thread.join(20.0)

    # ------------------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=0.1)
            except queue.Empty:
                self._write_flight_if_due()
                continue
            if item is None:
                break
            self._take(item)
            self._write_flight_if_due()
        with self._lock:
            if self._flight is not None:
                self._flight.due_s = 0.0
        self._write_flight_if_due()
        self._close_bag()

    def _take(self, item: Entry | Picture) -> None:
        if isinstance(item, Entry):
            self._ring.add(item)
            self._write(item)
            return
        small = self._throttle.due(item.topic, item.stamp_ns)
        for wanted, size in (
            (small and self._settings.flight is not None, True),
            (self._settings.record is not None, False),
        ):
            data = item.encode(size) if wanted else None
            if data is not None:
                entry = Entry(item.topic, item.type_name, item.stamp_ns, data)
                if size:
                    self._ring.add(entry)
                else:
                    self._write(entry)

    def _write(self, entry: Entry) -> None:
        if self._settings.record is None or not self._open_bag():
            return
        assert self._bag is not None
        try:
            self._bag.write(entry.topic, entry.type_name, entry.stamp_ns, entry.data)
        except UserError as error:
            self.problems['record'] = str(error)
        except OSError as error:
            self._bag.abort()
            self._bag = None
            self._give_up('record', f'the recording stopped: {error.strerror or error}.')

    def _open_bag(self) -> bool:
        now = self._monotonic()
        if self._bag is not None:
            if now >= self._next_try_s:
                self._next_try_s = now + 1.0
                if not self._enough_space(self._bag.folder):
                    self._close_bag()
                    self._give_up('record', self._space_text(self._settings.record))
            return self._bag is not None
        if now < self._next_try_s:
            return False
        assert self._settings.record is not None
        folder = self._settings.record
        if folder.exists():
            folder = folder.with_name(f'{folder.name}_{_time_name()}')
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            if not self._enough_space(folder.parent):
                self._give_up('record', self._space_text(folder))
                return False
            self._bag = BagWriter(folder, _texts(self._details))
        except (OSError, UserError) as error:
            self._give_up('record', f'the recording cannot begin: {error}')
            return False
        self.problems.pop('record', None)
        self.written.append(folder)
        return True

    def _close_bag(self) -> None:
        if self._bag is None:
            return
        try:
            self._bag.close()
        except OSError as error:
            self._bag.abort()
            self.problems['record'] = f'the bag has no index: {error.strerror or error}.'
        self._bag = None

    def _give_up(self, kind: str, text: str) -> None:
        self.problems[kind] = text
        self._next_try_s = self._monotonic() + _RETRY_S

    def _enough_space(self, folder: Path) -> bool:
        return shutil.disk_usage(folder).free >= self._settings.min_free_bytes

    def _space_text(self, folder: Path | None) -> str:
        limit = self._settings.min_free_bytes // 1_000_000
        return f'less than {limit} MB are free for {folder}: make room; recording goes on then.'

    def _write_flight_if_due(self) -> None:
        with self._lock:
            flight = self._flight
            if flight is None or self._monotonic() < flight.due_s:
                return
            self._flight = None
        parent = self._settings.flight
        assert parent is not None
        folder = parent / f'{_time_name()}_{flight.reason}'
        try:
            parent.mkdir(parents=True, exist_ok=True)
            if not self._enough_space(parent):
                self.problems['flight'] = self._space_text(parent)
                return
            self._write_flight(folder, flight)
        except (OSError, UserError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            self.problems['flight'] = f'the flight recording could not be written: {error}'
            return
        self.problems.pop('flight', None)
        self.written.append(folder)
        self._delete_old(parent)

    def _write_flight(self, folder: Path, flight: _Flight) -> None:
        details = {**self._details, **flight.details, 'reason': flight.reason}
        entries = self._ring.entries()
        counts: dict[str, int] = {}
        with BagWriter(folder, _texts(details)) as bag:
            for entry in entries:
                bag.write(entry.topic, entry.type_name, entry.stamp_ns, entry.data)
                counts[entry.topic] = counts.get(entry.topic, 0) + 1
        text = json.dumps({**details, 'messages': counts}, indent=2, default=str)
        part = folder / 'flight.json.part'
        part.write_text(text + '\n', encoding='utf-8')
        part.replace(folder / 'flight.json')  # whoever sees the file sees all of it

    def _delete_old(self, parent: Path) -> None:
        flights = sorted(p.parent for p in parent.glob('*/flight.json'))
        for folder in flights[: -self._settings.keep_flights]:
            shutil.rmtree(folder, ignore_errors=True)


def _time_name() -> str:
    return datetime.now().astimezone().strftime('%Y-%m-%dT%H-%M-%S-%f')[:-3]


def _texts(details: Mapping[str, Any]) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value, default=str)
            for key, value in details.items()}  # fmt: skip
