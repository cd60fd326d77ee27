"""Writes rosbag2 bags (MCAP) from serialised messages, without ROS.

``ros2 bag play`` and every MCAP viewer read them: each topic carries its message definition and the
RIHS01 hash of its type. Definitions come from the ``share/<package>/msg/*.msg`` files of the
installed message packages; what rosbags knows of Jazzy by itself is the fall-back.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.errors import WriterError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from spear_ros.core.errors import UserError


class BagWriter:
    """One bag; a context manager. Not safe for several threads at once.

    Args:
        folder: made by this writer; must not exist.
        custom: text that ``metadata.yaml`` keeps under ``custom_data``.

    Raises:
        UserError: the folder exists or cannot be made.
    """

    def __init__(self, folder: Path, custom: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.bytes = 0
        """Sum of the messages written."""
        self._types = TypeDefinitions()
        self._connections: dict[str, Any] = {}
        try:
            self._writer = Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP)
            for key, value in (custom or {}).items():
                self._writer.set_custom_data(key, value)
            self._writer.open()
        except (OSError, WriterError) as error:
            raise UserError(f'cannot record into {folder}: {error}') from None

    def write(self, topic: str, type_name: str, stamp_ns: int, data: bytes) -> None:
        """Append one message of type ``package/msg/Name`` as it came over the wire (CDR).

        Raises:
            UserError: the definition of the type is nowhere.
            OSError: the disk is full or gone; call :meth:`abort`.
        """
        connection = self._connections.get(topic)
        if connection is None:
            store = self._types.store_with(type_name)
            connection = self._writer.add_connection(topic, type_name, typestore=store)
            self._connections[topic] = connection
        self._writer.write(connection, stamp_ns, data)
        self.bytes += len(data)

    def close(self) -> None:
        """Write the index and ``metadata.yaml``.

        Raises:
            OSError: the disk is full or gone; call :meth:`abort`.
        """
        self._writer.close()

    def abort(self) -> None:
        """Give up what could not be written; the bag is left without an index."""
        try:
            self._writer.abort()
        except OSError:
            return

    def __enter__(self) -> 'BagWriter':
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class TypeDefinitions:
    """Message definitions, looked up in the installed packages when they are first needed."""

    def __init__(self) -> None:
        self._store = get_typestore(Stores.ROS2_JAZZY)
        self._known: set[str] = set()

    def store_with(self, type_name: str) -> Any:
        """Return a type store that knows ``type_name`` and everything it contains.

        Raises:
            UserError: the definition is nowhere.
        """
        self._add(type_name)
        return self._store

    def _add(self, type_name: str) -> None:
        if type_name in self._known or type_name in self._store.types:
            return
        package, _, name = type_name.split('/')
        path = _definition_file(package, name)
        if path is None:
            raise UserError(
                f'the definition {package}/msg/{name}.msg is not installed, so messages of this '
                'type cannot be recorded; build and source the package.'
            )
        self._known.add(type_name)
        found = get_types_from_msg(path.read_text(encoding='utf-8'), type_name)
        for definition in found.values():
            for _, (kind, value) in definition[1]:
                nested = _nested_type(int(kind), value)
                if nested is not None:
                    self._add(nested)
        self._store.register(found)


def _nested_type(kind: int, value: Any) -> str | None:
    """Name of the message type in a field description of rosbags, None for a plain field."""
    # rosbags: 1 = base type, 2 = name, 3 = array, 4 = sequence of a (kind, value) pair.
    if kind == 2:
        return str(value)
    if kind in (3, 4):
        inner_kind, inner_value = value[0]
        return _nested_type(int(inner_kind), inner_value)
    return None


def _definition_file(package: str, name: str) -> Path | None:
    prefixes = [p for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    for prefix in [*prefixes, sys.prefix]:
        path = Path(prefix) / 'share' / package / 'msg' / f'{name}.msg'
        if path.is_file():
            return path
    return None
