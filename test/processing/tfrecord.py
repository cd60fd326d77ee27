"""Reads the few fields of an RLDS TFRecord that tests need: framing and protobuf by hand.

Kept apart from the package's own reader on purpose: a test of conventions should not share the
code that it checks.
"""

import struct
from pathlib import Path

import numpy as np

BRIDGE = (
    Path(__file__).parents[2]
    / '../shared/data/real_recordings/bridge_rlds/bridge_dataset-train.tfrecord-00000-of-00001'
)


def records(path: Path):
    data = path.read_bytes()
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from('<Q', data, at)
        yield data[at + 12 : at + 12 + length]
        at += 16 + length


def fields(data: bytes):
    """Protobuf wire format: yields (field number, bytes) of length-delimited fields."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        assert key & 7 == 2, 'only length-delimited fields here'
        length, at = _varint(data, at)
        yield key >> 3, data[at : at + length]
        at += length


def float_features(record: bytes) -> dict[str, np.ndarray]:
    """Feature name -> float array, of a tf.train.Example."""
    found = {}
    for _, features in fields(record):
        for _, entry in fields(features):
            parts = dict(fields(entry))
            kind, payload = next(iter(fields(parts[2])), (0, b''))
            if kind == 2:
                found[parts[1].decode()] = np.frombuffer(next(fields(payload))[1], '<f4')
    return found


def bridge_states() -> list[np.ndarray]:
    """State [x y z roll pitch yaw gripper] of every episode, (T, 7)."""
    return [
        float_features(r)['steps/observation/state'].reshape(-1, 7).astype(float)
        for r in records(BRIDGE)
    ]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
