"""TFRecord files and ``tf.train.Example`` messages without TensorFlow.

A TFRecord is a run of ``length (u64) | masked crc of length (u32) | payload | masked crc of payload
(u32)``, little endian; the checksum is CRC-32C (Castagnoli), masked as in TensorFlow's
``core/lib/hash/crc32c.h``. An Example is protobuf: ``features {map<string, Feature>}`` where a
Feature is one of a list of bytes, packed floats or packed varints.

The checksum runs over a whole record at once in numpy (lanes of 128 bytes, folded by the linearity
of the CRC), about a hundred times faster than a loop over bytes.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spear_ros.core.errors import UserError

MAX_RECORD_BYTES = 1 << 31
"""A length above this is taken for corruption (protobuf itself ends at 2 GiB)."""

_POLYNOMIAL = 0x82F63B78
_LANE_BYTES = 128

Uint32Array = NDArray[np.uint32]


@lru_cache(maxsize=1)
def _slicing_tables() -> Uint32Array:
    """(8, 256): row k advances the CRC of one byte by k further zero bytes."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    rows = [table.astype(np.uint32)]
    for _ in range(7):
        rows.append((rows[-1] >> 8) ^ rows[0][rows[-1] & 0xFF])
    return np.stack(rows)


@lru_cache(maxsize=64)
def _shift_tables(n_bytes: int) -> Uint32Array:
    """(4, 256): advance a CRC state over ``n_bytes`` (a power of two) zero bytes, byte by byte."""
    if n_bytes == 1:
        first = _slicing_tables()[0]
        columns = np.array([1 << b for b in range(32)], np.uint32)
        columns = (columns >> 8) ^ first[columns & 0xFF]
    else:
        half = _shift_tables(n_bytes // 2)
        columns = np.array([1 << b for b in range(32)], np.uint32)
        columns = _apply_shift(half, _apply_shift(half, columns))
    tables = np.zeros((4, 256), np.uint32)
    for byte in range(4):
        for bit in range(8):
            mask = (np.arange(256) >> bit) & 1 == 1
            tables[byte, mask] ^= columns[8 * byte + bit]
    return tables


def _apply_shift(tables: Uint32Array, state: Uint32Array) -> Uint32Array:
    return (
        tables[0][state & 0xFF]
        ^ tables[1][(state >> 8) & 0xFF]
        ^ tables[2][(state >> 16) & 0xFF]
        ^ tables[3][state >> 24]
    )


def crc32c(data: bytes | memoryview) -> int:
    """CRC-32C of ``data`` (RFC 3720); ``crc32c(b'123456789') == 0xE3069283``."""
    if len(data) < 64:
        table = _slicing_tables()[0]
        short = 0xFFFFFFFF
        for byte in bytes(data):
            short = (short >> 8) ^ int(table[(short ^ byte) & 0xFF])
        return short ^ 0xFFFFFFFF
    # Zero bytes in front of a zero state change nothing, so pad there and start from state zero;
    # the initial state of all ones is the same as inverting the first four bytes.
    pad = -len(data) % _LANE_BYTES
    buffer = np.zeros(len(data) + pad, np.uint8)
    buffer[pad:] = np.frombuffer(data, np.uint8)
    buffer[pad : pad + 4] ^= 0xFF
    lanes = buffer.reshape(-1, _LANE_BYTES // 8, 8)
    low = np.ascontiguousarray(lanes[..., :4]).view('<u4')[..., 0]
    t = _slicing_tables()
    state = np.zeros(len(lanes), np.uint32)
    for word in range(lanes.shape[1]):
        x = state ^ low[:, word]
        state = t[7][x & 0xFF] ^ t[6][(x >> 8) & 0xFF] ^ t[5][(x >> 16) & 0xFF] ^ t[4][x >> 24]
        for k in range(4):
            state ^= t[3 - k][lanes[:, word, 4 + k]]
    size = _LANE_BYTES
    while len(state) > 1:
        if len(state) % 2:
            state = np.concatenate([np.zeros(1, np.uint32), state])
        state = _apply_shift(_shift_tables(size), state[0::2]) ^ state[1::2]
        size *= 2
    return int(state[0]) ^ 0xFFFFFFFF


def masked_crc32c(data: bytes | memoryview) -> int:
    """CRC-32C rotated and offset the way TFRecord stores it."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(path: Path, *, check_payload: bool = True) -> Iterator[memoryview]:
    """Iterate the payloads of a TFRecord file, one in memory at a time.

    Args:
        path: the file.
        check_payload: verify the payload's checksum too (the length's always is).

    Raises:
        UserError: unreadable, truncated or corrupt; the sentence says at which record and byte.
    """
    try:
        stream = open(path, 'rb')  # noqa: SIM115  closed below, the iterator outlives this line
    except OSError as error:
        raise UserError(f'{path}: cannot read the TFRecord file ({error.strerror}).') from None
    with stream:
        total = os.fstat(stream.fileno()).st_size
        index, at = 0, 0
        while at < total:
            header = stream.read(12)
            if len(header) < 12:
                raise _damaged(path, index, at, 'is cut off inside its header')
            length, length_crc = struct.unpack('<QI', header)
            if masked_crc32c(header[:8]) != length_crc:
                raise _damaged(path, index, at, 'has a wrong length checksum')
            if length > MAX_RECORD_BYTES or at + 16 + length > total:
                raise _damaged(path, index, at, f'is cut off (says {length} bytes)')
            payload = stream.read(length)
            (crc,) = struct.unpack('<I', stream.read(4))
            if check_payload and masked_crc32c(payload) != crc:
                raise _damaged(path, index, at, 'has a wrong payload checksum')
            yield memoryview(payload)
            index, at = index + 1, at + 16 + length


def _damaged(path: Path, index: int, at: int, what: str) -> UserError:
    return UserError(
        f'{path}: record {index} at byte {at} {what}; '
        f'copy the file again, or exclude it with --skip-damaged.'
    )


class Example:
    """One parsed ``tf.train.Example``: feature name -> values, decoded when asked for."""

    def __init__(self, payload: memoryview | bytes) -> None:
        """Index the features of a serialised Example.

        Raises:
            UserError: the bytes are not an Example.
        """
        self._features: dict[str, tuple[int, memoryview]] = {}
        try:
            self._index(memoryview(payload))
        except (IndexError, ValueError, UnicodeDecodeError) as error:
            raise UserError(f'a record is not a tf.train.Example ({error}).') from None

    def _index(self, payload: memoryview) -> None:
        for field, features in _messages(payload):
            if field != 1:
                continue
            for entry_field, entry in _messages(features):
                if entry_field != 1:
                    continue
                name, value = '', memoryview(b'')
                for part, content in _messages(entry):
                    if part == 1:
                        name = bytes(content).decode()
                    elif part == 2:
                        value = content
                # An absent oneof is an empty feature (kind 0).
                self._features[name] = next(iter(_messages(value)), (0, memoryview(b'')))

    def __contains__(self, name: str) -> bool:
        return name in self._features

    def names(self) -> list[str]:
        """Feature names in file order."""
        return list(self._features)

    def bytes_list(self, name: str) -> list[memoryview]:
        """Values of a bytes feature; views into the record, nothing is copied."""
        kind, content = self._get(name, 1, 'bytes')
        with _damage(name):
            return [v for field, v in _messages(content) if field == 1] if kind else []

    def floats(self, name: str) -> NDArray[np.float32]:
        """Values of a float feature, flat."""
        kind, content = self._get(name, 2, 'float')
        if not kind:
            return np.zeros(0, np.float32)
        with _damage(name):
            runs = [np.frombuffer(v, '<f4') for _, v in _packed(content, 5)]
        return np.concatenate([np.zeros(0, np.float32), *runs])

    def ints(self, name: str) -> NDArray[np.int64]:
        """Values of an int64 feature (bools too), flat."""
        kind, content = self._get(name, 3, 'int64')
        if not kind:
            return np.zeros(0, np.int64)
        with _damage(name):
            runs = [_decode_varints(v) for _, v in _packed(content, 0)]
        return np.concatenate([np.zeros(0, np.int64), *runs])

    def kind(self, name: str) -> str:
        """``bytes``, ``float``, ``int64`` or ``empty``."""
        return ('empty', 'bytes', 'float', 'int64')[self._features[name][0]]

    def _get(self, name: str, kind: int, label: str) -> tuple[int, memoryview]:
        if name not in self._features:
            raise UserError(f'the record has no feature "{name}"; it has {sorted(self._features)}.')
        found = self._features[name]
        if found[0] not in (0, kind):
            raise UserError(f'feature "{name}" holds {self.kind(name)} values, expected {label}.')
        return found


@contextmanager
def _damage(name: str) -> Iterator[None]:
    try:
        yield
    except (IndexError, ValueError) as error:
        raise UserError(f'feature "{name}" is damaged ({error}).') from None


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError('varint longer than 64 bits')


def _messages(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Length-delimited fields of a message as (field number, content)."""
    for field, wire, content in _fields(data):
        if wire == 2:
            yield field, content


def _fields(data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    at, size = 0, len(data)
    while at < size:
        tag, at = _varint(data, at)
        wire = tag & 7
        start = at
        if wire == 2:
            length, start = _varint(data, at)
            at = start + length
        elif wire == 0:
            _, at = _varint(data, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f'wire type {wire}')
        if at > size:
            raise ValueError('a field runs past the end')
        yield tag >> 3, wire, data[start:at]


def _packed(data: memoryview, unpacked_wire: int) -> Iterator[tuple[int, memoryview]]:
    """Field 1 as packed runs; writers may also emit one value per field (``unpacked_wire``)."""
    for field, wire, content in _fields(data):
        if field == 1 and wire in (2, unpacked_wire):
            yield field, content


def _decode_varints(data: memoryview) -> NDArray[np.int64]:
    """All varints of a packed run at once (two's complement 64 bit)."""
    raw = np.frombuffer(data, np.uint8)
    if not len(raw) or raw.max() < 0x80:
        return raw.astype(np.int64)
    ends = np.flatnonzero(raw < 0x80)
    if not len(ends) or ends[-1] != len(raw) - 1:
        raise ValueError('a varint is cut off')
    starts = np.concatenate([[0], ends[:-1] + 1])
    values = np.zeros(len(ends), np.uint64)
    for k in range(int((ends - starts).max()) + 1):
        live = starts + k <= ends
        part = raw[starts[live] + k].astype(np.uint64) & np.uint64(0x7F)
        values[live] |= part << np.uint64(7 * k)
    return values.view(np.int64)
