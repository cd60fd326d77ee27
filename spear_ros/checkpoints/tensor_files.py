"""Safetensors files, read with distrust and written as a stream.

The header of every file is checked by hand before a library or the kernel's page cache sees the
data: a wrong length, an offset past the end or two tensors on the same bytes is one sentence to the
user and never a crash. Reading is memory-mapped and copies tensor by tensor into its final type and
device, so that the only anonymous memory is the weights themselves. Copying (and not keeping the
mapping) is deliberate: a file that is replaced under a running policy must not change its weights.

Format: https://huggingface.co/docs/safetensors (8-byte little-endian header length, JSON header,
data).
"""

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from spear_ros.core.errors import UserError

MAX_HEADER_BYTES = 32 << 20
MAX_INDEX_BYTES = 32 << 20
MAX_DIMENSIONS = 8

DTYPES: Mapping[str, torch.dtype] = {
    'F64': torch.float64,
    'F32': torch.float32,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
    'I64': torch.int64,
    'I32': torch.int32,
    'I16': torch.int16,
    'I8': torch.int8,
    'U8': torch.uint8,
    'BOOL': torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """One tensor as its header describes it."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Offset of the first byte behind the header."""
    stop: int

    @property
    def n_bytes(self) -> int:
        """Bytes on disk."""
        return self.stop - self.start


class TensorFiles:
    """Tensors of one safetensors file, or of the shards that an ``index.json`` lists.

    Args:
        path: a ``.safetensors`` file, an ``.index.json``, or a folder with either.

    Raises:
        UserError: nothing there, a pickle, a damaged header, shards that do not fit their index.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.files, wanted = _locate(self.path)
        self.entries: dict[str, TensorEntry] = {}
        for file in self.files:
            for name, entry in read_header(file).items():
                if name in self.entries:
                    raise UserError(
                        f'{file}: the tensor "{name}" is also in {self.entries[name].file.name}; '
                        'copy the checkpoint again.'
                    )
                self.entries[name] = entry
        _check_index(self.path, self.entries, wanted)
        self._open: dict[Path, Any] = {}

    def names(self) -> Iterable[str]:
        """Names of the tensors, in the order of the files."""
        return self.entries.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self.entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Type of one tensor."""
        return self.entries[name].dtype

    def get(self, name: str) -> torch.Tensor:
        """Read one tensor as a view of the mapped file: copy it before keeping it."""
        file = self.entries[name].file
        if file not in self._open:
            self._open[file] = safe_open(str(file), framework='pt', device='cpu')
        return self._open[file].get_tensor(name)

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(e.n_bytes for e in self.entries.values())


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Read and check the header of one safetensors file.

    Raises:
        UserError: anything that a sound file cannot be; one sentence with the name and the mend.
    """
    size, length, raw = _raw_header(path)

    def refuse(what: str) -> UserError:
        return UserError(f'{path}: {what}; the file is damaged, copy or export it again.')

    try:
        header = json.loads(raw, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise refuse(f'the header is not valid JSON ({str(error)[:80]})') from None
    if not isinstance(header, dict):
        raise refuse('the header is not a table of tensors')
    header.pop('__metadata__', None)
    entries = {name: _entry(path, name, value, refuse) for name, value in header.items()}
    at, previous = 0, 'the header'
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start != at:
            what = 'overlaps' if entry.start < at else 'leaves a gap behind'
            raise refuse(f'the tensor "{name}" at byte {entry.start} {what} {previous}')
        at, previous = entry.stop, f'"{name}"'
    expected = 8 + length + at
    if size != expected:
        kind = 'truncated' if size < expected else 'longer than its header says'
        raise refuse(f'{kind} ({size} bytes instead of {expected})')
    return entries


def write_safetensors(
    path: Path,
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    produce: Callable[[str], torch.Tensor],
) -> str:
    """Write tensors one after another and return the SHA-256 of the file in hex.

    Args:
        path: the file to write.
        layout: name -> (dtype, shape), in file order.
        produce: gives the tensor of a name; called once per name, in order, so that a conversion
            never holds more than one tensor.
    """
    header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
    at = 0
    for name, (dtype, shape) in layout.items():
        stop = at + math.prod(shape) * dtype.itemsize
        header[name] = {'dtype': _NAMES[dtype], 'shape': list(shape), 'data_offsets': [at, stop]}
        at = stop
    raw = json.dumps(header, separators=(',', ':')).encode()
    raw += b' ' * (-len(raw) % 8)
    digest = hashlib.sha256()
    with path.open('wb') as file:
        for block in (struct.pack('<Q', len(raw)), raw):
            file.write(block)
            digest.update(block)
        for name, (dtype, shape) in layout.items():
            tensor = produce(name)
            assert tensor.dtype == dtype, (name, tensor.dtype, dtype)
            assert tuple(tensor.shape) == tuple(shape), (name, tensor.shape, shape)
            for piece in _pieces(tensor):
                file.write(piece)
                digest.update(piece)
    return digest.hexdigest()


def write_sharded(
    folder: Path,
    stem: str,
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    produce: Callable[[str], torch.Tensor],
    max_shard_bytes: int,
) -> dict[str, str]:
    """Write one file, or shards with an ``index.json`` where it grows too large.

    Returns:
        File name -> SHA-256 in hex, for the files with weights and the index.
    """
    shards = _split(layout, max_shard_bytes)
    if len(shards) == 1:
        name = f'{stem}.safetensors'
        return {name: write_safetensors(folder / name, layout, produce)}
    hashes, weight_map = {}, {}
    for i, shard in enumerate(shards, 1):
        name = f'{stem}-{i:05d}-of-{len(shards):05d}.safetensors'
        hashes[name] = write_safetensors(folder / name, shard, produce)
        weight_map.update(dict.fromkeys(shard, name))
    total = sum(math.prod(s) * d.itemsize for d, s in layout.values())
    index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
    path = folder / f'{stem}.safetensors.index.json'
    path.write_text(json.dumps(index, indent=1) + '\n', encoding='utf-8')
    hashes[path.name] = file_sha256(path)
    return hashes


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hex, read in blocks."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _split(
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], limit: int
) -> list[dict[str, tuple[torch.dtype, tuple[int, ...]]]]:
    shards: list[dict[str, tuple[torch.dtype, tuple[int, ...]]]] = [{}]
    filled = 0
    for name, (dtype, shape) in layout.items():
        size = math.prod(shape) * dtype.itemsize
        if shards[-1] and filled + size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = (dtype, shape)
        filled += size
    return shards


def _pieces(tensor: torch.Tensor, block: int = 1 << 24) -> Iterator[memoryview]:
    """Raw bytes of a tensor in blocks, without a second copy of it on the CPU."""
    flat = tensor.detach().to('cpu').contiguous().reshape(-1).view(torch.uint8)
    data = memoryview(flat.numpy())  # type: ignore[arg-type]
    for at in range(0, len(data), block):
        yield data[at : at + block]


def _locate(path: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Find the files of a checkpoint and, for shards, which file each tensor should be in."""
    if path.is_dir():
        indices = sorted(path.glob('*.safetensors.index.json'))
        singles = sorted(path.glob('*.safetensors'))
        if len(indices) == 1:
            path = indices[0]
        elif not indices and len(singles) == 1:
            path = singles[0]
        else:
            pickles = [p.name for suffix in ('*.pt', '*.pth', '*.bin') for p in path.glob(suffix)]
            found = ', '.join(pickles) or f'{len(singles)} .safetensors, {len(indices)} indices'
            raise UserError(
                f'{path}: expected one model.safetensors or one .safetensors.index.json with its '
                f'shards, found {found}; give the file itself or complete the folder.'
            )
    if not path.name.endswith('.index.json'):
        return [path], None
    return _read_index(path)


def _read_index(path: Path) -> tuple[list[Path], dict[str, str]]:
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise UserError(f'{path}: too large for an index; copy the checkpoint again.')
        weight_map = json.loads(path.read_text(encoding='utf-8'))['weight_map']
        names = sorted(set(weight_map.values()))
        plain = all(re.fullmatch(r'[\w.\-]+\.safetensors', name) for name in names)
    except OSError as error:
        raise UserError(f'{path}: cannot read it ({error.strerror}); check the path.') from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f'{path}: not a safetensors index (no weight_map); copy the checkpoint again.'
        ) from None
    if not names or not plain:
        raise UserError(
            f'{path}: the index must name .safetensors files of its own folder; copy the '
            'checkpoint again.'
        )
    return [path.parent / name for name in names], weight_map


def _check_index(
    path: Path, entries: Mapping[str, TensorEntry], wanted: Mapping[str, str] | None
) -> None:
    if wanted is None:
        return
    for name in {**wanted, **entries}:
        file = entries[name].file.name if name in entries else 'no file'
        if wanted.get(name, 'no file') != file:
            raise UserError(
                f'{path}: the tensor "{name}" is in {file} and the index says '
                f'{wanted.get(name, "nothing of it")}; copy the checkpoint again.'
            )


def _raw_header(path: Path) -> tuple[int, int, bytes]:
    """File size, header length and header bytes; refuses what is no safetensors file at all."""
    try:
        size = path.stat().st_size
        with path.open('rb') as file:
            start = file.read(8)
            _refuse_other_formats(path, start + file.read(64))
            if len(start) < 8:
                raise UserError(f'{path}: {size} bytes is no safetensors file; copy it again.')
            (length,) = struct.unpack('<Q', start)
            if not 2 <= length <= MAX_HEADER_BYTES:
                raise UserError(
                    f'{path}: the header claims {length} bytes (limit {MAX_HEADER_BYTES}); this is '
                    'not a safetensors file or it is damaged, copy it again.'
                )
            if 8 + length > size:
                raise UserError(
                    f'{path}: truncated, the header alone needs {8 + length} bytes of {size}; copy '
                    'it again.'
                )
            file.seek(8)
            return size, length, file.read(length)
    except OSError as error:
        raise UserError(f'{path}: cannot read it ({error.strerror}); check the path.') from None


def _refuse_other_formats(path: Path, start: bytes) -> None:
    if start[:4] == b'PK\x03\x04' or (start[:1] == b'\x80' and start[1:2] in b'\x02\x03\x04\x05'):
        raise UserError(
            f'{path}: this is a PyTorch pickle, which can run code when it is opened; turn it into '
            'safetensors with "spear checkpoint convert".'
        )
    if start.startswith(b'version https://git-lfs'):
        raise UserError(f'{path}: only a Git LFS pointer; run "git lfs pull" to get the weights.')
    if start[:4] == b'GGUF':
        raise UserError(f'{path}: a GGUF file; give the weights as .safetensors.')


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError('a name occurs twice')
    return table


def _entry(path: Path, name: str, value: object, refuse: Callable[[str], UserError]) -> TensorEntry:
    if not isinstance(value, dict):
        raise refuse(f'the tensor "{name}" has no description')
    dtype = DTYPES.get(str(value.get('dtype')))
    if dtype is None:
        raise refuse(f'the tensor "{name}" has the unknown type {value.get("dtype")!r}')
    shape, offsets = value.get('shape'), value.get('data_offsets')
    if not _whole_numbers(shape) or len(shape) > MAX_DIMENSIONS:  # type: ignore[arg-type]
        raise refuse(f'the tensor "{name}" has the shape {str(shape)[:60]}')
    if not _whole_numbers(offsets) or len(offsets) != 2:  # type: ignore[arg-type]
        raise refuse(f'the tensor "{name}" has the offsets {str(offsets)[:60]}')
    start, stop = offsets  # type: ignore[misc]
    needed = math.prod(shape) * dtype.itemsize  # type: ignore[arg-type]
    if stop - start != needed:
        raise refuse(f'the tensor "{name}" has {stop - start} bytes where its shape needs {needed}')
    return TensorEntry(file=path, dtype=dtype, shape=tuple(shape), start=start, stop=stop)  # type: ignore[arg-type]


def _whole_numbers(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 1 << 62 for v in value
    )
