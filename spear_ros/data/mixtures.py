"""Which sample comes next: a seeded, weighted, resumable draw over many shard folders.

A stream is one consumer (a rank, or a worker of a rank). All streams share the seed; each sees its
own part of every data set. A draw first picks a data set by the mixture's probabilities, then one
of a few open shards of it by how much of each is left (else the large ones of an epoch would come
last), then that shard's next sample in a seeded order. The state is two
counters per open shard, so it is saved with a checkpoint and gives back exactly the same next
draws, and memory does not grow with the number of draws.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spear_ros.core.config import load_yaml
from spear_ros.core.errors import UserError
from spear_ros.core.resources import share_file
from spear_ros.core.types import ActionSpec
from spear_ros.data.episodes import IntArray
from spear_ros.data.samples import stable_hash
from spear_ros.data.shards import ShardDataset

STATE_FORMAT = 2
"""1 drew from the open shards alike, whatever was left of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixturePart:
    """One data set of a mixture."""

    dataset: str
    weight: float
    weight_from: Literal['paper', 'ours']
    """``paper`` only where the number is in the publication that the mixture follows."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < 1e6:
            raise UserError(f'{self.dataset}: weight = {self.weight} must be positive.')


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """A mixture as in ``config/training/mixtures``."""

    name: str
    weight_is: Literal['probability', 'size_multiplier']
    """``probability``: a sample is of this set with probability weight / sum of weights.
    ``size_multiplier``: the weight multiplies the set's number of samples first."""
    parts: tuple[MixturePart, ...]
    note: str = ''

    def __post_init__(self) -> None:
        names = [p.dataset for p in self.parts]
        doubles = sorted({n for n in names if names.count(n) > 1})
        if doubles:
            raise UserError(f'mixture {self.name}: {doubles[0]} is listed twice.')
        if not names:
            raise UserError(f'mixture {self.name}: parts is empty.')


def load_mixture(name_or_path: str) -> Mixture:
    """Mixture by file, or by name from the package's own."""
    path = Path(name_or_path)
    if path.suffix != '.yaml':
        path = share_file(f'config/training/mixtures/{name_or_path}.yaml')
    return load_yaml(path, Mixture)


def probabilities(mixture: Mixture, sizes: Mapping[str, int]) -> dict[str, float]:
    """Probability of every data set of the mixture, in its order.

    Args:
        mixture: the mixture.
        sizes: number of samples by data set; all parts must be there.

    Raises:
        UserError: a part has no data; the sentence lists all that are missing.
    """
    missing = [p.dataset for p in mixture.parts if not sizes.get(p.dataset)]
    if missing:
        raise UserError(
            f'mixture {mixture.name}: no converted data for {", ".join(missing)}; convert them, or '
            'use a mixture that leaves them out (their weight then goes to the others).'
        )
    times = {'probability': 0, 'size_multiplier': 1}[mixture.weight_is]
    weights = {p.dataset: p.weight * sizes[p.dataset] ** times for p in mixture.parts}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def without_missing(mixture: Mixture, present: set[str]) -> tuple[Mixture, list[str]]:
    """The mixture reduced to the data sets that are there, and the names of those left out."""
    parts = tuple(p for p in mixture.parts if p.dataset in present)
    gone = [p.dataset for p in mixture.parts if p.dataset not in present]
    note = f'{mixture.note} Left out: {", ".join(gone)}.'.strip() if gone else mixture.note
    name = f'{mixture.name}-partial' if gone else mixture.name
    return Mixture(name=name, weight_is=mixture.weight_is, parts=parts, note=note), gone


def mixture_hash(mixture: Mixture, datasets: Mapping[str, ShardDataset]) -> str:
    """Twelve hex digits of what is drawn from and how; ties statistics and runs to the data."""
    lines: list[str] = [mixture.weight_is]
    for part in sorted(mixture.parts, key=lambda p: p.dataset):
        lines.append(f'{part.dataset} {part.weight!r} {datasets[part.dataset].content_hash}')
    return sha256('\n'.join(lines).encode()).hexdigest()[:12]


def action_specs(mixture: Mixture, datasets: Mapping[str, ShardDataset]) -> dict[str, ActionSpec]:
    """ActionSpecs of a mixture by embodiment, as a checkpoint carries them.

    Raises:
        UserError: two data sets of one embodiment differ in a field; the sentence names it.
    """
    specs: dict[str, ActionSpec] = {}
    for part in mixture.parts:
        spec = datasets[part.dataset].card.spec
        known = specs.setdefault(spec.embodiment, spec)
        for name in ActionSpec.__dataclass_fields__:
            if getattr(known, name) != getattr(spec, name):
                raise UserError(
                    f'{part.dataset}: {name} = {getattr(spec, name)} for embodiment '
                    f'{spec.embodiment}, another data set of the mixture has '
                    f'{getattr(known, name)}; convert one of them again.'
                )
    return specs


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamId:
    """Which consumer a stream is."""

    rank: int = 0
    world: int = 1
    worker: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.world, self
        assert 0 <= self.worker < self.workers, self

    @property
    def index(self) -> int:
        """Number of this stream among all."""
        return self.rank * self.workers + self.worker

    @property
    def count(self) -> int:
        """Number of all streams."""
        return self.world * self.workers


@dataclass(frozen=True, slots=True)
class Address:
    """Where a sample lies, and the seed that goes with this draw of it (for augmentation)."""

    dataset: str
    shard: int
    index: int
    seed: int


def _check_enough(names: list[str], sizes: Mapping[str, int], stream: StreamId) -> None:
    for name in names:
        if sizes[name] < stream.count:
            raise UserError(
                f'{name} has {sizes[name]} samples for {stream.count} streams; use fewer workers.'
            )


class _Cursor:
    """Position of one stream in one data set."""

    def __init__(
        self, name: str, sizes: IntArray, seed: int, stream: StreamId, window: int
    ) -> None:
        self._name, self._sizes, self._seed = name, sizes, seed
        self._stream, self._window = stream, window
        # Shards are dealt out where there are enough; else every stream takes its share of each.
        self._deal_shards = len(sizes) >= stream.count
        self.epoch = -1
        self.next_shard = 0
        self.open: list[list[int]] = []
        """[shard, number of its samples already taken], at most ``window`` of them."""
        self._shards: IntArray = np.zeros(0, np.int64)
        self._orders: dict[int, IntArray] = {}
        self._left: IntArray = np.zeros(0, np.int64)
        """Samples not yet taken of each open shard."""
        self._start_epoch(0)

    def take(self, pick: float) -> tuple[int, int]:
        """Next (shard, index); ``pick`` in [0, 1) chooses among the open shards."""
        while not self.open:
            self._start_epoch(self.epoch + 1)
        edges = np.cumsum(self._left)
        slot = int(np.searchsorted(edges, int(pick * edges[-1]), side='right'))
        shard, taken = self.open[slot]
        self._left[slot] -= 1
        order = self._orders[shard]
        index = int(order[taken])
        self.open[slot][1] = taken + 1
        if taken + 1 == len(order):
            del self._orders[shard]
            del self.open[slot]
            self._fill()
        return shard, index

    def state(self) -> dict[str, Any]:
        return {
            'epoch': self.epoch,
            'next_shard': self.next_shard,
            'open': [list(entry) for entry in self.open],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._set_epoch(int(state['epoch']))
        self.next_shard = int(state['next_shard'])
        self.open = [[int(a), int(b)] for a, b in state['open']]
        self._orders = {shard: self._order(shard) for shard, _ in self.open}
        self._count_left()

    def _start_epoch(self, epoch: int) -> None:
        self._set_epoch(epoch)
        self.next_shard, self.open, self._orders = 0, [], {}
        self._fill()

    def _count_left(self) -> None:
        left = [len(self._orders[shard]) - taken for shard, taken in self.open]
        self._left = np.array(left, np.int64)

    def _set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        rng = np.random.default_rng([self._seed, stable_hash('shards', self._name), epoch])
        order = rng.permutation(len(self._sizes))
        step = slice(self._stream.index, None, self._stream.count)
        self._shards = order[step] if self._deal_shards else order

    def _fill(self) -> None:
        while len(self.open) < self._window and self.next_shard < len(self._shards):
            shard = int(self._shards[self.next_shard])
            self.next_shard += 1
            order = self._order(shard)
            if len(order):
                self._orders[shard] = order
                self.open.append([shard, 0])
        self._count_left()

    def _order(self, shard: int) -> IntArray:
        seed = [self._seed, stable_hash('samples', self._name), self.epoch, shard]
        order = np.random.default_rng(seed).permutation(int(self._sizes[shard]))
        if not self._deal_shards:
            order = order[self._stream.index :: self._stream.count]
        return order.astype(np.int32)


class MixtureSampler:
    """Endless draws of addresses for one stream."""

    def __init__(
        self,
        mixture: Mixture,
        datasets: Mapping[str, ShardDataset],
        *,
        seed: int,
        stream: StreamId | None = None,
        open_shards: int = 8,
    ) -> None:
        """Start at the first draw.

        Args:
            mixture: what to draw, by data set.
            datasets: folders by name; more than the mixture's are ignored.
            seed: of all streams together.
            stream: which consumer this is.
            open_shards: shards of a data set that are drawn from at a time; more mixes better and
                reads from more places.

        Raises:
            UserError: a part is missing, or a data set has fewer samples than there are streams.
        """
        self.mixture = mixture
        self.stream = stream or StreamId()
        self.drawn = 0
        self._seed = seed
        sizes = {name: len(dataset) for name, dataset in datasets.items()}
        self.probabilities = probabilities(mixture, sizes)
        self._names = list(self.probabilities)
        _check_enough(self._names, sizes, self.stream)
        self._edges = np.cumsum(list(self.probabilities.values()))
        self._rng = np.random.default_rng([seed, 0x5BEA2, self.stream.index, self.stream.count])
        self._cursors = {
            name: _Cursor(name, datasets[name].sizes, seed, self.stream, open_shards)
            for name in self._names
        }
        self._identity = {
            'seed': seed,
            'stream': self.stream.index,
            'streams': self.stream.count,
            'open_shards': open_shards,
            'data': mixture_hash(mixture, datasets),
        }

    def __iter__(self) -> 'MixtureSampler':
        return self

    def __next__(self) -> Address:
        """Draw the next address; there is always one."""
        which, where = self._rng.random(2)
        number = min(int(np.searchsorted(self._edges, which, side='right')), len(self._names) - 1)
        name = self._names[number]
        shard, index = self._cursors[name].take(float(where))
        seed = stable_hash(self._seed, self.stream.index, self.stream.count, self.drawn)
        self.drawn += 1
        return Address(name, shard, index, seed)

    def advance(self, count: int) -> None:
        """Skip draws, for a run whose position is known only as a number of samples."""
        for _ in range(count):
            next(self)

    def epochs(self) -> dict[str, int]:
        """How often each data set has been gone through by this stream."""
        return {name: cursor.epoch for name, cursor in self._cursors.items()}

    def state_dict(self) -> dict[str, Any]:
        """Position in plain JSON types; the next draw after restoring it is the same."""
        return {
            'format': STATE_FORMAT,
            **self._identity,
            'drawn': self.drawn,
            'rng': self._rng.bit_generator.state,
            'datasets': {name: cursor.state() for name, cursor in self._cursors.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved position.

        Raises:
            UserError: it belongs to other data, another seed or another number of streams; the
                sentence names the field with both values.
        """
        if state.get('format') != STATE_FORMAT:
            raise UserError(
                f'saved position of the data: format is {state.get("format")!r}, this version of '
                f'spear_ros has {STATE_FORMAT} and draws in another order; start a new run with '
                'init=EXPORT, or go on with the version that began this one.'
            )
        expected = self._identity
        for key, value in expected.items():
            if state.get(key) != value:
                raise UserError(
                    f'saved position of the data: {key} is {state.get(key)!r}, this run has '
                    f'{value!r}; resume with the same data, seed, processes and workers.'
                )
        self.drawn = int(state['drawn'])
        self._rng.bit_generator.state = state['rng']
        for name, cursor in self._cursors.items():
            cursor.restore(state['datasets'][name])
