"""TensorBoard event files without TensorBoard: TFRecords of the protobuf message Event.

Of ``tensorflow/core/util/event.proto`` and ``summary.proto`` only what a scalar needs: Event has
wall_time (1, double), step (2, varint), file_version (3, text) and summary (5); a summary holds
values (1) of tag (1, text) and simple_value (2, float). So every run has curves, whatever is
installed on the machine that trains.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from spear_ros.data.tfrecord import masked_crc32c

VERSION = b'brain.Event:2'


class ScalarWriter:
    """Appends scalars to one ``events.out.tfevents`` file; TensorBoard joins those of a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f'events.out.tfevents.{int(now)}.{socket.gethostname()}.{os.getpid()}'
        self._stream = open(folder / name, 'ab')  # noqa: SIM115  closed by close()
        self._write(_double(1, now) + _bytes(3, VERSION))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Write the figures of a step, on the disk before the next."""
        summary = b''.join(
            _bytes(1, _bytes(1, tag.encode()) + _float(2, value)) for tag, value in values.items()
        )
        self._write(_double(1, time.time()) + _integer(2, step) + _bytes(5, summary))

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _write(self, payload: bytes) -> None:
        length = struct.pack('<Q', len(payload))
        self._stream.write(length + struct.pack('<I', masked_crc32c(length)))
        self._stream.write(payload + struct.pack('<I', masked_crc32c(payload)))
        self._stream.flush()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack('<d', value)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack('<f', value)
