"""Batches over a list of items in seeded order, epoch after epoch, with an exact position."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.training.distributed import Place
from spear_ros.training.task import Batch


class IndexedStream:
    """Each process takes its own share of every epoch's order.

    Args:
        count: number of items.
        batch: items per batch of this process.
        place: this process.
        seed: of the order, the same on all processes.
        load: items' numbers to a batch; may raise UserError.
        threads: so many batches are made at the same time, in advance.
        order: the items' numbers in the order of an epoch, ``count`` of them, some twice or not at
            all; None = each once, shuffled.
    """

    def __init__(
        self,
        count: int,
        batch: int,
        place: Place,
        seed: int,
        load: Callable[[list[int]], Batch],
        threads: int = 2,
        *,
        order: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        if count < place.world:
            raise UserError(f'{count} items for {place.world} processes; give more data.')
        self._count, self._batch, self._place, self._seed = count, batch, place, seed
        self._load, self._ahead = load, max(2, threads)
        self._shuffled = order or self._each_once
        self._position = 0
        """Items of this process handed out."""
        self._next = 0
        """Items of this process drawn, some of them ahead."""
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix='stream')
        self._waiting: list[Future[Batch]] = []

    def __next__(self) -> Batch:
        """Next batch."""
        while len(self._waiting) <= self._ahead:
            self._waiting.append(self._pool.submit(self._load, self._draw()))
        future = self._waiting.pop(0)
        self._position += self._batch
        return future.result()

    def _draw(self) -> list[int]:
        numbers = [self._item(self._next + i) for i in range(self._batch)]
        self._next += self._batch
        return numbers

    def _item(self, position: int) -> int:
        share = self._count // self._place.world
        epoch, within = divmod(position, share)
        if self._order[0] != epoch:
            self._order = (epoch, self._shuffled(epoch)[self._place.rank :: self._place.world])
        return int(self._order[1][within])

    def _each_once(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(self._count)

    def state_dict(self) -> dict[str, Any]:
        """Position after the last batch handed out."""
        return {
            'position': self._position,
            'count': self._count,
            'seed': self._seed,
            'world': self._place.world,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a position.

        Raises:
            UserError: it belongs to other data; names the field with both values.
        """
        for name, value in self.state_dict().items():
            if name != 'position' and state.get(name) != value:
                raise UserError(
                    f'saved position of the data: {name} is {state.get(name)!r}, this run has '
                    f'{value!r}; resume with the same data, seed and processes.'
                )
        for future in self._waiting:
            future.cancel()
        self._waiting.clear()
        self._position = self._next = int(state['position'])

    def close(self) -> None:
        """Stop the thread."""
        for future in self._waiting:
            future.cancel()
        self._pool.shutdown(wait=True)
