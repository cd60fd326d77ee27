"""Opens recordings of every kind with ``rosbags``: rosbag2 (MCAP, SQLite) and ROS 1 bags.

No ROS is needed. Storage files are opened one by one and merged by time, instead of through
``metadata.yaml``: that file is missing after a crash, and where its QoS text differs from the
storage file's, ``rosbags`` silently yields nothing. What is wrong with a recording is collected in
:attr:`Bag.damage` while everything readable is still delivered.
"""

import difflib
import heapq
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from rosbags import rosbag1, rosbag2
from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.msg import normalize_msgtype

from spear_ros.core.errors import UserError
from spear_ros.data.bag_salvage import (
    BagTopic,
    DamagedMcap,
    DamagedSqlite,
    Message,
    NotABagError,
)

MAX_MESSAGE_BYTES = 64 << 20
"""A 4K picture in four channels has half of this."""
MAX_NOTES = 20
_SUFFIXES = ('.mcap', '.db3', '.bag')


class Source(Protocol):
    """One storage file."""

    topics: dict[str, BagTopic]
    start_ns: int
    end_ns: int

    def messages(self, topics: Collection[str]) -> Iterator[Message]: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class _RosbagsSource:
    """A file (or a compressed rosbag2 folder) that ``rosbags`` reads."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.topics: dict[str, BagTopic] = {}
        for connection in reader.connections:
            topic = _topic(connection)
            known = self.topics.get(topic.name)
            if known is not None:
                topic = replace(topic, count=topic.count + known.count)
            self.topics[topic.name] = topic
        self.start_ns, self.end_ns = reader.start_time, reader.end_time

    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        chosen = [c for c in self._reader.connections if c.topic in topics]
        if chosen:
            for connection, time_ns, data in self._reader.messages(connections=chosen):
                yield connection.topic, time_ns, data

    def close(self) -> None:
        self._reader.close()


class Bag:
    """A recording, open for reading; use it as a context manager.

    Args:
        path: A rosbag2 folder, an ``.mcap``, ``.db3`` or ``.bag`` file, or a folder of these.
        max_message_bytes: Larger messages are skipped and counted as damage.

    Raises:
        UserError: nothing can be read; the sentence says why.
    """

    def __init__(self, path: Path | str, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self.path = Path(path)
        self.damage: list[str] = []
        """What was lost, one clause each, no clause twice; filled further while reading."""
        self.unreadable = 0
        """Messages that could not be read in the last pass over :meth:`messages`."""
        self.notes: list[str] = []
        """What was odd but cost nothing."""
        self._max_message_bytes = max_message_bytes
        self._sources: list[Source] = []
        self._stores: dict[str, tuple[Any, str]] = {}
        files = _files(self.path)
        self.ros1 = files[0].suffix == '.bag'
        try:
            self._open(files)
        except BaseException:
            self.close()
            raise
        self.topics = _merge_topics(self._sources)
        self.message_count = sum(t.count for t in self.topics.values())
        self.start_ns = min((s.start_ns for s in self._sources), default=0)
        self.end_ns = max((s.end_ns for s in self._sources), default=0)

    def __enter__(self) -> 'Bag':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for source in self._sources:
            source.close()
        self._sources.clear()

    # -- reading -----------------------------------------------------------------------------

    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        """Yield (topic, time of receipt in ns, serialised message) in order of time.

        Memory is bounded by one storage chunk per file. Damage ends the file that it is in, is
        noted in :attr:`damage`, and leaves the others unharmed.
        """
        self.unreadable = 0
        streams = [self._guarded(source, topics) for source in self._sources]
        for message in heapq.merge(*streams, key=lambda m: m[1]):
            if len(message[2]) > self._max_message_bytes:
                self.skip_message(
                    f'a message of {len(message[2])} bytes on {message[0]} exceeds the limit of '
                    f'{self._max_message_bytes} and was skipped'
                )
                continue
            yield message

    def _guarded(self, source: Source, topics: Collection[str]) -> Iterator[Message]:
        try:
            yield from source.messages(topics)
        except Exception as error:  # parsers of four formats, on arbitrary bytes
            self._note_damage(f'reading stopped at damaged data ({_brief(error)})')

    def skip_message(self, why: str) -> None:
        """Count a message that cannot be used, and keep the reason."""
        self.unreadable += 1
        self._note_damage(why)

    def _note_damage(self, why: str) -> None:
        if why not in self.damage and len(self.damage) < MAX_NOTES:
            self.damage.append(why)

    def check_type(self, topic: str) -> None:
        """Make sure that the messages of ``topic`` can be turned into objects.

        Raises:
            UserError: the type is neither known here nor defined in the recording.
        """
        self._typestore(topic)

    def deserialize(self, topic: str, data: bytes) -> Any:
        """Turn a serialised message into an object with the fields of its type.

        Raises:
            UserError: the type is unknown, or the bytes do not fit it.
        """
        store, kind = self._typestore(topic)
        try:
            if self.ros1:
                return store.deserialize_ros1(data, kind)
            return store.deserialize_cdr(data, kind)
        except Exception as error:  # generated code, on arbitrary bytes
            raise UserError(
                f'{self.path}: a message on {topic} does not fit its type {kind} ({_brief(error)}).'
            ) from None

    def _typestore(self, topic: str) -> tuple[Any, str]:
        """Types of one topic: its own definitions where the bag has them, else Jazzy's.

        One store per topic, so that a definition that cannot be parsed harms no other topic.
        """
        if topic not in self._stores:
            info = self.topics[topic]
            kind = normalize_msgtype(info.type)
            store = get_typestore(Stores.ROS1_NOETIC if self.ros1 else Stores.ROS2_JAZZY)
            if info.definition:
                own = _parse_definition(info, kind)
                if own is None:
                    self.notes.append(f'the definition of {kind} in the bag cannot be parsed')
                else:
                    store = get_typestore(Stores.EMPTY)
                    store.register(own)
            if kind not in store.fielddefs:
                raise UserError(
                    f'{self.path}: topic {topic} has the type {kind}, which is not known here and '
                    'not defined in the bag; record it as MCAP, which stores definitions.'
                )
            self._stores[topic] = (store, kind)
        return self._stores[topic]

    # -- opening -----------------------------------------------------------------------------

    def _open(self, files: list[Path]) -> None:
        folder = self.path if self.path.is_dir() and not self.ros1 else None
        if folder is not None and not (folder / 'metadata.yaml').is_file():
            self.notes.append('metadata.yaml is missing; the storage files were read directly')
        elif folder is not None:
            compressed = self._open_compressed(folder)
            if compressed:
                return
        failures = []
        for file in files:
            try:
                self._sources.append(self._open_file(file))
            except NotABagError as error:
                failures.append(f'{file.name}: {error}')
        if not self._sources:
            raise UserError(
                f'{self.path}: nothing can be read from this recording ({"; ".join(failures)}); '
                'record it again or restore it from a copy.'
            )
        self.damage += failures

    def _open_compressed(self, folder: Path) -> bool:
        """Open through metadata.yaml where only that knows how messages are compressed."""
        reader: Any = rosbag2.Reader(folder)
        try:
            reader.open()
        except Exception as error:  # see _guarded
            text = _brief(error)
            if 'missing' in text and 'key' not in text:
                self.damage.append(f'files named in metadata.yaml are missing ({text})')
            else:
                self.notes.append(f'metadata.yaml cannot be used ({text})')
            return False
        if reader.compression_mode in ('file', 'message'):
            self._sources.append(_RosbagsSource(reader))
            return True
        reader.close()
        return False

    def _open_file(self, file: Path) -> Source:
        if file.stat().st_size == 0:
            raise NotABagError('the file is empty')
        reader: Any = None
        try:
            reader = rosbag1.Reader(file) if file.suffix == '.bag' else rosbag2.Reader(file)
            reader.open()
            source: Source = _RosbagsSource(reader)
        except Exception as error:  # see _guarded
            return self._salvage(file, _brief(error))
        wal = file.with_name(file.name + '-wal')
        if wal.is_file() and wal.stat().st_size:
            self.damage.append(
                f'{wal.name} holds messages that were never merged; run '
                f'"sqlite3 {file.name} \'PRAGMA wal_checkpoint\'" on a copy and read that'
            )
        return source

    def _salvage(self, file: Path, why: str) -> Source:
        if file.suffix == '.bag':
            raise NotABagError(f'{why}; try "rosbag reindex" on a copy')
        source: Source = DamagedMcap(file) if file.suffix == '.mcap' else DamagedSqlite(file)
        if not any(topic.count for topic in source.topics.values()):
            raise NotABagError(f'{why}, and no complete message is in it')
        self.damage.append(f'{file.name} was not finished or is cut ({why})')
        return source


def _files(path: Path) -> list[Path]:
    """Storage files of a recording, or one sentence why there are none."""
    if not path.exists():
        folder = path.parent if path.parent.is_dir() else Path('.')
        near = difflib.get_close_matches(path.name, [p.name for p in folder.iterdir()], n=1)
        hint = f'did you mean "{folder / near[0]}"?' if near else 'check the path.'
        raise UserError(f'{path}: there is no such recording; {hint}')
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise UserError(
                f'{path}: a file ending in "{path.suffix}" is not a recording; give an .mcap, .db3 '
                'or .bag file, or the folder of a rosbag2 recording.'
            )
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES)
    packed = [p for p in path.iterdir() if p.suffix == '.zstd']
    if len({p.suffix == '.bag' for p in found}) == 2:
        raise UserError(f'{path}: holds ROS 1 and rosbag2 files; give one recording at a time.')
    if not found and packed and (path / 'metadata.yaml').is_file():
        return packed
    if not found:
        raise UserError(
            f"{path}: this folder holds no .mcap, .db3 or .bag file; give a recording's folder."
        )
    return found


def _topic(connection: Connection) -> BagTopic:
    forms = {MessageDefinitionFormat.MSG: 'msg', MessageDefinitionFormat.IDL: 'idl'}
    return BagTopic(
        name=connection.topic,
        type=connection.msgtype,
        definition=connection.msgdef.data,
        definition_format=forms.get(connection.msgdef.format, ''),
        count=connection.msgcount,
    )


def _merge_topics(sources: list[Source]) -> dict[str, BagTopic]:
    topics: dict[str, BagTopic] = {}
    for source in sources:
        for name, topic in source.topics.items():
            known = topics.get(name)
            topics[name] = (
                topic if known is None else replace(known, count=known.count + topic.count)
            )
    return topics


def _parse_definition(info: BagTopic, kind: str) -> Any:
    """Types of a definition text, or None when it cannot be parsed."""
    separator = '=' * 80 + '\n'
    try:
        if info.definition_format == 'msg':
            return get_types_from_msg(info.definition, kind)
        if not info.definition.startswith(f'{separator}IDL: '):
            return get_types_from_idl(info.definition)
        types: dict = {}
        for part in info.definition.split(separator)[1:]:
            types.update(get_types_from_idl(part.split('\n', 1)[1]))
    except Exception:  # a grammar on arbitrary text
        return None
    return types


def _brief(error: BaseException) -> str:
    text = ' '.join(str(error).split()) or type(error).__name__
    return text[:160]
