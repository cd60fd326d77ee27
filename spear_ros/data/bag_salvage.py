"""Reads what is left of recordings whose writer never finished: power loss, full disk, kill -9.

Such an MCAP file has no summary and often half a chunk at its end; such a SQLite file lacks pages.
``rosbags`` refuses both. The two sources here walk over the records that are whole. Nothing is
written to disk. MCAP's records: mcap.dev/spec; rosbag2's SQLite tables: ros2/rosbag2.
"""

import heapq
import sqlite3
import struct
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import lz4.frame
from rosbags.rosbag2.storage_mcap import zstd

MAGIC = b'\x89MCAP0\r\n'
MAX_CHUNK_BYTES = 1 << 30
"""rosbag2 writes chunks of about a megabyte; one that claims more than this is corrupt."""
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _DATA_END = 3, 4, 5, 6, 15
_ZSTD_ERRORS = (RuntimeError, EOFError, ValueError, zstd.ZstdError)

Message = tuple[str, int, bytes]
"""Topic, time of receipt in ns, serialised message."""


class NotABagError(ValueError):
    """Nothing can be read; the text says why, as the end of a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BagTopic:
    """What a recording says about one of its topics."""

    name: str
    type: str
    """Message type in today's spelling, ``package/msg/Name``."""
    definition: str = ''
    """Text of the message definition; empty where the recording holds none."""
    definition_format: str = ''
    """``msg`` or ``idl``."""
    count: int = 0


class DamagedMcap:
    """An MCAP file without its end.

    Raises:
        NotABagError: it is no MCAP file, or holds no complete record.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.topics: dict[str, BagTopic] = {}
        self.start_ns, self.end_ns = 1 << 62, 0
        self._schemas: dict[int, tuple[str, str, str]] = {}
        self._channels: dict[int, str] = {}
        for block in self._blocks():
            for channel, time_ns, _ in self._parse(block):
                topic = self.topics[self._channels[channel]]
                self.topics[topic.name] = replace(topic, count=topic.count + 1)
                self.start_ns, self.end_ns = min(self.start_ns, time_ns), max(self.end_ns, time_ns)

    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        """Yield the messages of ``topics`` in order of time.

        Chunks overlap in time where several topics are recorded: one chunk is held back, so that
        its messages mix with those of the next.
        """
        held: list[tuple[int, int, str, bytes]] = []
        number = 0
        for block in self._blocks():
            emit = len(held)
            for channel, time_ns, data in self._parse(block):
                if self._channels[channel] in topics:
                    number += 1
                    heapq.heappush(held, (time_ns, number, self._channels[channel], data))
            for _ in range(emit):
                time_ns, _, topic, data = heapq.heappop(held)
                yield topic, time_ns, data
        while held:
            time_ns, _, topic, data = heapq.heappop(held)
            yield topic, time_ns, data

    def close(self) -> None:
        """Nothing is kept open."""

    def _blocks(self) -> Iterator[bytes]:
        """Yield runs of complete records: the content of each chunk, or single records."""
        size = self._path.stat().st_size
        with self._path.open('rb') as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise NotABagError('it does not start like an MCAP file')
            position = len(MAGIC)
            while position + 9 <= size:
                file.seek(position)
                op, length = struct.unpack('<BQ', file.read(9))
                if op in (0, _DATA_END):
                    return
                whole = position + 9 + length <= size
                if op == _CHUNK:
                    yield _complete_records(_chunk(file, min(length, size - position - 9)))
                elif whole and op in (_SCHEMA, _CHANNEL, _MESSAGE):
                    if length > MAX_CHUNK_BYTES:
                        raise NotABagError(f'a record claims {length} bytes')
                    yield struct.pack('<BQ', op, length) + file.read(length)
                if not whole:
                    return
                position += 9 + length

    def _parse(self, block: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Yield channel, time and data of a block's messages; learn its schemas and channels."""
        position = 0
        while position < len(block):
            op, length = struct.unpack_from('<BQ', block, position)
            content = block[position + 9 : position + 9 + length]
            position += 9 + length
            if op == _SCHEMA:
                self._add_schema(content)
            elif op == _CHANNEL:
                self._add_channel(content)
            elif op == _MESSAGE and length >= 22:
                channel, _, time_ns, _ = struct.unpack_from('<HIQQ', content)
                if channel in self._channels:
                    yield channel, time_ns, content[22:]

    def _add_schema(self, content: bytes) -> None:
        (number,) = struct.unpack_from('<H', content)
        name, position = _string(content, 2)
        encoding, position = _string(content, position)
        text, _ = _string(content, position)
        self._schemas[number] = (name, encoding, text)

    def _add_channel(self, content: bytes) -> None:
        number, schema = struct.unpack_from('<HH', content)
        topic, position = _string(content, 4)
        encoding, _ = _string(content, position)
        if encoding != 'cdr':
            return  # JSON, protobuf, ROS 1: nothing that a ROS 2 type could read
        self._channels[number] = topic
        if topic not in self.topics:
            name, language, text = self._schemas.get(schema, ('', '', ''))
            form = {'ros2msg': 'msg', 'ros2idl': 'idl', 'omgidl': 'idl'}.get(language, '')
            self.topics[topic] = BagTopic(
                name=topic, type=name, definition=text if form else '', definition_format=form
            )


def _string(content: bytes, position: int) -> tuple[str, int]:
    (length,) = struct.unpack_from('<I', content, position)
    start = position + 4
    return content[start : start + length].decode(errors='replace'), start + length


def _chunk(file: BinaryIO, available: int) -> bytes:
    """Return the content of a chunk, as much of it as is there."""
    if available < 40:
        return b''
    head = file.read(28)
    size = struct.unpack('<QQQI', head)[2]
    (name_length,) = struct.unpack('<I', file.read(4))
    if size > MAX_CHUNK_BYTES or name_length > 16:
        raise NotABagError(f'a chunk claims {size} bytes, more than {MAX_CHUNK_BYTES}')
    compression = file.read(name_length).decode(errors='replace')
    file.read(8)  # compressed size: the record's own length says the same
    data = file.read(max(0, available - 40 - name_length))
    try:
        if compression == 'lz4':
            return lz4.frame.LZ4FrameDecompressor().decompress(data, size)
        if compression == 'zstd':
            return zstd.ZstdDecompressor().decompress(data, size)
    except _ZSTD_ERRORS:
        return b''
    return data if compression == '' else b''


def _complete_records(data: bytes) -> bytes:
    position = 0
    while position + 9 <= len(data):
        (length,) = struct.unpack_from('<Q', data, position + 1)
        if position + 9 + length > len(data):
            break
        position += 9 + length
    return data[:position]


class DamagedSqlite:
    """A rosbag2 SQLite file with missing pages, read row by row as far as it goes.

    Raises:
        NotABagError: its table of topics cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.topics: dict[str, BagTopic] = {}
        self.start_ns, self.end_ns = 1 << 62, 0
        self._order: list[tuple[int, int, int]] = []  # time, row, topic id: 24 bytes a message
        try:
            with closing(self._connect()) as database:
                rows = database.execute('SELECT id, name, type FROM topics').fetchall()
                self._names = {number: name for number, name, _ in rows}
                self.topics = {name: BagTopic(name=name, type=kind) for _, name, kind in rows}
                self._index(database)
        except sqlite3.DatabaseError as error:
            raise NotABagError(f'its tables cannot be read ({error})') from None
        self._order.sort()
        for time_ns, _, number in self._order:
            topic = self.topics[self._names[number]]
            self.topics[topic.name] = replace(topic, count=topic.count + 1)
            self.start_ns, self.end_ns = min(self.start_ns, time_ns), max(self.end_ns, time_ns)

    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        """Yield the readable messages of ``topics`` in order of time."""
        with closing(self._connect()) as database:
            for time_ns, row, number in self._order:
                if self._names[number] not in topics:
                    continue
                try:
                    query = 'SELECT data FROM messages WHERE rowid = ?'
                    (data,) = database.execute(query, (row,)).fetchone()
                except sqlite3.DatabaseError:
                    continue
                yield self._names[number], time_ns, data

    def close(self) -> None:
        """Nothing is kept open."""

    def _index(self, database: sqlite3.Connection) -> None:
        try:
            for row in database.execute('SELECT timestamp, rowid, topic_id FROM messages'):
                if row[2] in self._names:
                    self._order.append(row)
        except sqlite3.DatabaseError:
            return

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(f'file:{self._path}?mode=ro&immutable=1', uri=True)
        # Without this SQLite refuses any file that is shorter than its header says.
        database.execute('PRAGMA writable_schema=ON')
        return database
