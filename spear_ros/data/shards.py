"""Training shards: WebDataset-style tar files of 5 Hz samples, written once, read at random.

A folder holds ``dataset.json`` (the card: what the samples mean), ``shard-*.tar`` and, per writing
process, ``manifest-PPP-of-NNN.jsonl`` with one line per finished shard. Members of a sample are
``KEY.external.jpg``, ``KEY.wrist.jpg`` (optional), ``KEY.numbers.npy`` and ``KEY.info.json``: any
WebDataset tool reads them. Next to each tar lies ``shard-*.index.npy`` with the places of the
members, so that a sample costs a few reads at known offsets; it is made again from the tar where
absent.
"""

import io
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np

from spear_ros.core.config import from_mapping, to_mapping
from spear_ros.core.errors import UserError
from spear_ros.core.types import ActionSpec, FloatArray
from spear_ros.data.episodes import IntArray
from spear_ros.data.samples import PictureSettings, Sample

FORMAT = 1
MEMBERS = ('external.jpg', 'wrist.jpg', 'numbers.npy', 'info.json')
EXTERNAL_MEMBER, WRIST_MEMBER, NUMBERS_MEMBER, INFO_MEMBER = range(4)
BLOCK = 512
MAX_KEY = 80
MAX_OPEN_FILES = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetCard:
    """What the samples of a folder mean; a mismatch between folders or runs names the field."""

    format: int = FORMAT
    name: str
    spec: ActionSpec
    """Frames, rate and horizon; how deltas are taken from the stored absolute poses."""
    label: Literal['reached', 'commanded']
    anchor: Literal['image', 'grid'] = 'image'
    pictures: PictureSettings
    source: str
    """Row, version and schema fingerprint that the samples were made from."""


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One finished shard."""

    path: Path
    samples: int
    sha256: str


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a crash leaves the old file or the new one, never half of it."""
    temporary = path.with_suffix(path.suffix + '.part')
    with open(temporary, 'w', encoding='utf-8') as stream:
        json.dump(value, stream, indent=1, ensure_ascii=False)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def read_card(root: Path) -> DatasetCard:
    """Card of a shard folder; UserError where it is missing, damaged or of another format."""
    path = root / 'dataset.json'
    try:
        data = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise UserError(
            f'{path}: cannot read the card ({error.strerror}); is this a folder that '
            '"spear data convert" wrote?'
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f'{path}: not JSON ({error}); convert again.') from None
    if data.get('format') != FORMAT:
        raise UserError(
            f'{path}: format {data.get("format")}, this version reads {FORMAT}; convert again.'
        )
    return from_mapping(DatasetCard, data, str(path))


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = sha256()
    with open(path, 'rb') as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """Lines of a manifest; a half-written last one is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding='utf-8').splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            # Only the last line can be half-written; its shard is then unknown and made again.
            break
    return lines


class ShardDataset:
    """Random access to the samples of a folder; safe to use from several threads."""

    def __init__(self, root: Path, *, allow_partial: bool = False) -> None:
        """Open a finished conversion.

        Raises:
            UserError: no card, no shard, a shard is missing, or the conversion was cut short.
        """
        self.root = root
        self.card = read_card(root)
        self.shards = self._read_manifests(allow_partial)
        self.sizes = np.array([s.samples for s in self.shards], np.int64)
        self._files: OrderedDict[Path, int] = OrderedDict()
        self._indices: OrderedDict[int, IntArray] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return int(self.sizes.sum())

    @property
    def episodes(self) -> int:
        """Number of episodes that were converted."""
        manifests = self.root.glob('manifest-*.jsonl')
        return sum(len(line.get('episodes', ())) for m in manifests for line in read_manifest(m))

    @property
    def content_hash(self) -> str:
        """Twelve hex digits of card and shards."""
        lines = sorted(s.sha256 for s in self.shards)
        card = json.dumps(to_mapping(self.card), sort_keys=True)
        return sha256('\n'.join([card, *lines]).encode()).hexdigest()[:12]

    def _read_manifests(self, allow_partial: bool) -> list[ShardFile]:
        manifests = sorted(self.root.glob('manifest-*-of-*.jsonl'))
        counts = {int(m.stem.rsplit('-', 1)[1]) for m in manifests}
        if len(counts) > 1:
            raise UserError(
                f'{self.root}: parts of several conversions ({sorted(counts)} parts) are mixed; '
                'convert into an empty folder.'
            )
        shards, unfinished = [], set(range(max(counts, default=1)))
        for manifest in manifests:
            lines = read_manifest(manifest)
            if any('complete' in line for line in lines):
                unfinished.discard(int(manifest.stem.split('-')[1]))
            shards += [
                ShardFile(self.root / line['shard'], int(line['samples']), line['sha256'])
                for line in lines
                if 'shard' in line
            ]
        if unfinished and not allow_partial:
            raise UserError(
                f'{self.root}: part {min(unfinished)} of {max(counts, default=1)} is not finished; '
                'run the same "spear data convert" again (data check takes --allow-partial).'
            )
        if not shards:
            raise UserError(f'{self.root}: no finished shard.')
        missing = [s.path for s in shards if not s.path.exists()]
        if missing:
            raise UserError(f'{missing[0]} is in the manifest but not on disk; copy it again.')
        return shards

    def numbers(self, shard: int, index: int) -> FloatArray:
        """(1 + H, 9) of one sample, without its pictures.

        Raises:
            UserError: the shard is damaged.
        """
        try:
            return np.load(io.BytesIO(self._read(shard, index, NUMBERS_MEMBER)))
        except (ValueError, OSError, EOFError) as error:
            raise self._damaged(shard, index, error) from None

    def info(self, shard: int, index: int) -> dict[str, Any]:
        """The JSON member of one sample."""
        return json.loads(self._read(shard, index, INFO_MEMBER))

    def sample(self, shard: int, index: int) -> Sample:
        """One sample, pictures still encoded.

        Raises:
            UserError: the shard is damaged; the sentence names it and the sample.
        """
        try:
            info = self.info(shard, index)
            numbers = self.numbers(shard, index)
        except (ValueError, OSError) as error:
            raise self._damaged(shard, index, error) from None
        wrist = self._read(shard, index, WRIST_MEMBER)
        return Sample(
            key=info.pop('key'),
            dataset=info.pop('dataset'),
            embodiment=info.pop('embodiment'),
            instruction=info.pop('instruction'),
            numbers=numbers,
            external=self._read(shard, index, EXTERNAL_MEMBER),
            wrist=wrist or None,
            info=info,
        )

    def _damaged(self, shard: int, index: int, error: Exception) -> UserError:
        return UserError(
            f'{self.shards[shard].path}: sample {index} is damaged ({error}); convert or copy the '
            'data again.'
        )

    def damaged_shards(self) -> Iterator[Path]:
        """Shards whose content no longer has the recorded checksum."""
        for shard in self.shards:
            if file_sha256(shard.path) != shard.sha256:
                yield shard.path

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files.clear()
            self._indices.clear()

    def _read(self, shard: int, index: int, member: int) -> bytes:
        with self._lock:
            offset, size = self._index(shard)[index, member]
            if size == 0:
                return b''
            # A copy of the descriptor stays valid if another thread's eviction closes the original.
            descriptor = os.dup(self._descriptor(self.shards[shard].path))
        try:
            return os.pread(descriptor, int(size), int(offset))
        finally:
            os.close(descriptor)

    def _descriptor(self, path: Path) -> int:
        if path in self._files:
            self._files.move_to_end(path)
        else:
            self._files[path] = os.open(path, os.O_RDONLY)
            if len(self._files) > MAX_OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        return self._files[path]

    def _index(self, shard: int) -> IntArray:
        if shard in self._indices:
            self._indices.move_to_end(shard)
            return self._indices[shard]
        tar = self.shards[shard].path
        path = tar.with_suffix('.index.npy')
        index = np.load(path, mmap_mode='r') if path.exists() else scan_tar(tar)
        if index.shape != (self.shards[shard].samples, len(MEMBERS), 2):
            index = scan_tar(tar)
        self._indices[shard] = index
        if len(self._indices) > MAX_OPEN_FILES:
            self._indices.popitem(last=False)
        return index


def scan_tar(path: Path) -> IntArray:
    """Places of the members of every sample, (n, 4, 2), from the tar itself."""
    places: dict[str, list[tuple[int, int]]] = {}
    try:
        with tarfile.open(path, 'r:') as tar:
            for member in tar:
                key, _, suffix = member.name.partition('.')
                if suffix in MEMBERS:
                    row = places.setdefault(key, [(0, 0)] * len(MEMBERS))
                    row[MEMBERS.index(suffix)] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f'{path}: not a readable tar file ({error}); convert again.') from None
    return np.array(list(places.values()), np.int64)


def open_datasets(roots: Sequence[Path], *, allow_partial: bool = False) -> dict[str, ShardDataset]:
    """Several folders by the names on their cards; UserError when two share a name."""
    datasets: dict[str, ShardDataset] = {}
    for root in roots:
        dataset = ShardDataset(root, allow_partial=allow_partial)
        if dataset.card.name in datasets:
            raise UserError(
                f'{root} and {datasets[dataset.card.name].root} both hold "{dataset.card.name}".'
            )
        datasets[dataset.card.name] = dataset
    return datasets
