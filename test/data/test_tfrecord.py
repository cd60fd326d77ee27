import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_ros.core.errors import UserError
from spear_ros.data.tfrecord import Example, crc32c, masked_crc32c, read_records


def test_crc32c_agrees_with_the_vectors_of_rfc_3720():
    assert crc32c(b'123456789') == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b'\xff' * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


@given(st.binary(max_size=700))
def test_crc32c_by_lanes_equals_the_bitwise_definition(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    assert crc32c(data) == crc ^ 0xFFFFFFFF


def test_records_come_back_in_order(tmp_path, rlds):
    payloads = [b'', b'a' * 70, bytes(range(256)) * 40]
    rlds.write_records(tmp_path / 'x', payloads)
    assert [bytes(r) for r in read_records(tmp_path / 'x')] == payloads


@pytest.mark.parametrize('cut', [3, 11, 12, 20, -1])
def test_a_truncated_file_is_reported_with_its_record_and_byte(tmp_path, rlds, cut):
    rlds.write_records(tmp_path / 'x', [b'a' * 100, b'b' * 100])
    whole = (tmp_path / 'x').read_bytes()
    (tmp_path / 'x').write_bytes(whole[: 116 + cut] if cut > 0 else whole[:cut])
    reader = read_records(tmp_path / 'x')
    assert bytes(next(reader)) == b'a' * 100
    with pytest.raises(UserError, match=r'record 1 at byte 116 is cut off'):
        next(reader)


@pytest.mark.parametrize(('at', 'what'), [(4, 'length checksum'), (40, 'payload checksum')])
def test_a_flipped_bit_is_found(tmp_path, rlds, at, what):
    rlds.write_records(tmp_path / 'x', [b'a' * 100])
    data = bytearray((tmp_path / 'x').read_bytes())
    data[at] ^= 1
    (tmp_path / 'x').write_bytes(data)
    with pytest.raises(UserError, match=what):
        list(read_records(tmp_path / 'x'))


def test_an_absurd_length_with_a_right_checksum_is_not_allocated(tmp_path):
    header = struct.pack('<Q', 1 << 40)
    (tmp_path / 'x').write_bytes(header + struct.pack('<I', masked_crc32c(header)))
    with pytest.raises(UserError, match='cut off'):
        list(read_records(tmp_path / 'x'))


def test_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match='cannot read the TFRecord file'):
        list(read_records(tmp_path / 'none'))


def test_example_holds_every_kind_of_value(rlds):
    ints = np.array([0, 1, -1, 300, 2**63 - 1, -(2**63)], np.int64)
    floats = np.array([0.0, -1.5, 3e38], np.float32)
    blobs = [b'', b'x' * 300, b'\x00\xff']
    example = Example(rlds.example({'i': ints, 'f': floats, 'b': blobs}))
    assert example.names() == ['i', 'f', 'b']
    np.testing.assert_array_equal(example.ints('i'), ints)
    np.testing.assert_array_equal(example.floats('f'), floats)
    assert [bytes(b) for b in example.bytes_list('b')] == blobs
    assert [example.kind(n) for n in 'ifb'] == ['int64', 'float', 'bytes']


def test_unpacked_lists_are_read_too():
    floats = b''.join(b'\x0d' + struct.pack('<f', v) for v in (1.0, 2.0))
    ints = b'\x08\x05\x08\xac\x02'

    def field(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    entries = field(1, field(1, b'f') + field(2, field(2, floats)))
    entries += field(1, field(1, b'i') + field(2, field(3, ints)))
    example = Example(field(1, entries))
    np.testing.assert_array_equal(example.floats('f'), [1.0, 2.0])
    np.testing.assert_array_equal(example.ints('i'), [5, 300])


def test_a_wrong_kind_or_name_is_a_sentence(rlds):
    example = Example(rlds.example({'f': np.zeros(2, np.float32)}))
    with pytest.raises(UserError, match='no feature "g"'):
        example.floats('g')
    with pytest.raises(UserError, match='holds float values, expected int64'):
        example.ints('f')


@given(st.binary(min_size=1, max_size=200))
def test_arbitrary_bytes_never_raise_anything_but_a_user_error(data):
    try:
        example = Example(data)
        for name in example.names():
            for read in (example.floats, example.ints, example.bytes_list):
                read(name)
    except UserError:
        pass
