"""A damaged or foreign weights file is one sentence, before any byte of it is used.

Every case here is a file that somebody will have one day: a copy that broke off, an editor's or a
proxy's damage, a pickle under another name, a Git LFS pointer, shards of two different exports.
"""

import hashlib
import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from spear_ros.checkpoints.tensor_files import (
    DTYPES,
    TensorFiles,
    read_header,
    write_safetensors,
    write_sharded,
)
from spear_ros.core.errors import UserError


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        'b.weight': torch.randn(3, 5, generator=generator),
        'a': torch.randn(7, generator=generator).to(torch.bfloat16),
        'scalar': torch.tensor(3.5, dtype=torch.float64),
        'empty': torch.zeros(0, 4),
        'flags': torch.tensor([True, False]),
    }


def layout_of(state):
    return {name: (t.dtype, tuple(t.shape)) for name, t in state.items()}


def write_raw(path, header, data=b'', length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(raw) if length is None else length) + raw + data)
    return path


def entry(start, stop, shape=(1,), dtype='F32'):
    return {'dtype': dtype, 'shape': list(shape), 'data_offsets': [start, stop]}


def test_what_we_write_the_library_reads_and_the_hash_is_of_the_file(tmp_path):
    state = tensors()
    path = tmp_path / 'w.safetensors'
    digest = write_safetensors(path, layout_of(state), state.__getitem__)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_file(path)
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_what_the_library_writes_we_read(tmp_path):
    save_file(tensors(), tmp_path / 'w.safetensors', metadata={'format': 'pt'})
    files = TensorFiles(tmp_path / 'w.safetensors')
    assert set(files.names()) == set(tensors())
    for name, tensor in tensors().items():
        assert files.shape(name) == tuple(tensor.shape)
        assert torch.equal(files.get(name), tensor)


def test_shards_are_found_through_their_index_and_read_as_one(tmp_path):
    state = {f'layer.{i}': torch.full((100,), float(i)) for i in range(10)}
    hashes = write_sharded(tmp_path, 'model', layout_of(state), state.__getitem__, 1000)
    assert len(hashes) == 6
    files = TensorFiles(tmp_path)
    assert len(files.files) == 5
    assert all(torch.equal(files.get(n), t) for n, t in state.items())


CASES = {
    'absent': (lambda p: None, 'cannot read it'),
    'empty': (lambda p: p.write_bytes(b''), '0 bytes is no safetensors'),
    'torch zip': (lambda p: torch.save({'a': torch.ones(2)}, p), 'spear checkpoint convert'),
    'pickle': (lambda p: p.write_bytes(b'\x80\x04\x95' + bytes(50)), 'PyTorch pickle'),
    'lfs pointer': (
        lambda p: p.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\n'),
        'git lfs pull',
    ),
    'header length beyond reason': (
        lambda p: write_raw(p, {}, length=1 << 40),
        'claims 1099511627776 bytes',
    ),
    'header length beyond the file': (lambda p: write_raw(p, {}, length=5000), 'truncated'),
    'header no json': (lambda p: write_raw(p, b'{"a": '), 'not valid JSON'),
    'header bytes': (lambda p: write_raw(p, b'\xff' * 64), 'not valid JSON'),
    'header nested without end': (lambda p: write_raw(p, b'[' * 200_000), 'not valid JSON'),
    'header a list': (lambda p: write_raw(p, b'[1, 2]'), 'not a table'),
    'name twice': (
        lambda p: write_raw(p, b'{"a":{"dtype":"F32"},"a":{"dtype":"F32"}}'),
        'a name occurs twice',
    ),
    'entry no table': (lambda p: write_raw(p, {'a': 3}), '"a" has no description'),
    'unknown type': (lambda p: write_raw(p, {'a': entry(0, 4, dtype='F7')}, bytes(4)), "'F7'"),
    'negative shape': (lambda p: write_raw(p, {'a': entry(0, 4, [-1])}, bytes(4)), 'shape'),
    'shape of floats': (lambda p: write_raw(p, {'a': entry(0, 4, [1.0])}, bytes(4)), 'shape'),
    'forty dimensions': (lambda p: write_raw(p, {'a': entry(0, 4, [1] * 40)}, bytes(4)), 'shape'),
    'offsets no pair': (
        lambda p: write_raw(p, {'a': {'dtype': 'F32', 'shape': [1], 'data_offsets': [0]}}),
        'offsets',
    ),
    'bytes and shape differ': (
        lambda p: write_raw(p, {'a': entry(0, 8, [1])}, bytes(8)),
        '"a" has 8 bytes where its shape needs 4',
    ),
    'astronomic shape': (
        lambda p: write_raw(p, {'a': entry(0, 4, [1 << 60, 1 << 60])}, bytes(4)),
        'where its shape needs',
    ),
    'overlap': (
        lambda p: write_raw(p, {'a': entry(0, 4), 'b': entry(2, 6)}, bytes(6)),
        '"b" at byte 2 overlaps "a"',
    ),
    'gap': (
        lambda p: write_raw(p, {'a': entry(0, 4), 'b': entry(8, 12)}, bytes(12)),
        'leaves a gap',
    ),
    'starts late': (lambda p: write_raw(p, {'a': entry(4, 8)}, bytes(8)), 'gap'),
    'data truncated': (lambda p: write_raw(p, {'a': entry(0, 4)}, bytes(3)), 'truncated'),
    'data too long': (lambda p: write_raw(p, {'a': entry(0, 4)}, bytes(5)), 'longer than'),
}


@pytest.mark.parametrize('case', CASES)
def test_a_file_that_is_not_sound_is_refused_with_its_fault(tmp_path, case):
    damage, words = CASES[case]
    path = tmp_path / 'w.safetensors'
    damage(path)
    with pytest.raises(UserError) as error:
        TensorFiles(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert '\n' not in str(error.value)


@given(data=st.data())
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_random_damage_to_a_header_never_crashes(tmp_path, data):
    state = {'a': torch.ones(4), 'b': torch.zeros(2, 3)}
    path = tmp_path / 'fuzz.safetensors'
    write_safetensors(path, layout_of(state), state.__getitem__)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 41))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    path.write_bytes(bytes(raw) if data.draw(st.booleans()) else bytes(raw[:cut]))
    try:
        entries = read_header(path)
    except UserError:
        return
    for e in entries.values():
        assert 0 <= e.start <= e.stop <= path.stat().st_size


def shards(folder):
    state = {f't{i}': torch.full((4,), float(i)) for i in range(4)}
    write_sharded(folder, 'model', layout_of(state), state.__getitem__, 32)
    index = folder / 'model.safetensors.index.json'
    return index, json.loads(index.read_text())


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda i: i['weight_map'].update(t0='model-00002-of-00002.safetensors'), '"t0" is in'),
        (
            lambda i: i['weight_map'].update(t9='model-00002-of-00002.safetensors'),
            '"t9" is in no file',
        ),
        (lambda i: i['weight_map'].pop('t3'), '"t3" is in'),
        (lambda i: i['weight_map'].update(t0='../../etc/passwd'), 'its own folder'),
        (
            lambda i: i['weight_map'].update(t0='other.safetensors'),
            'other.safetensors: cannot read',
        ),
        (lambda i: i.pop('weight_map'), 'no weight_map'),
        (lambda i: i.update(weight_map=[]), 'no weight_map'),
        (lambda i: i.update(weight_map={}), 'must name'),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path, change, words):
    path, index = shards(tmp_path)
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=words):
        TensorFiles(tmp_path)


def test_a_folder_without_weights_says_what_it_holds(tmp_path):
    (tmp_path / 'model.pt').touch()
    with pytest.raises(UserError, match=r'found model\.pt'):
        TensorFiles(tmp_path)


def test_every_type_that_we_read_can_be_written(tmp_path):
    state = {name: torch.ones(3).to(dtype) for name, dtype in DTYPES.items()}
    write_safetensors(tmp_path / 'w.safetensors', layout_of(state), state.__getitem__)
    assert {n: e.dtype for n, e in read_header(tmp_path / 'w.safetensors').items()} == DTYPES


def test_data_begins_on_eight_bytes_whatever_the_names(tmp_path):
    for n in range(1, 9):
        state = {'x' * n: torch.ones(1)}
        path = tmp_path / f'{n}.safetensors'
        write_safetensors(path, layout_of(state), state.__getitem__)
        (length,) = struct.unpack('<Q', path.read_bytes()[:8])
        assert (8 + length) % 8 == 0
        assert np.frombuffer(path.read_bytes()[8 + length :], '<f4') == [1.0]
