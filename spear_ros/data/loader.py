"""Batches of numpy arrays from shards, read and decoded ahead by threads, with an exact position.

Reading and JPEG decoding release the interpreter lock, so threads suffice; addresses are drawn in
one place, in order, and a batch carries the position after it. What was read ahead but not handed
out is drawn again after a resume: the position is that of the last batch handed out.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.types import ImageArray
from spear_ros.data.episodes import decode_image_bytes
from spear_ros.data.mixtures import Address, MixtureSampler
from spear_ros.data.samples import GRIPPER, TARGETS, VALID, P, Q, Sample, shrink
from spear_ros.data.shards import ShardDataset

Batch = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderSettings:
    """How batches are made."""

    batch_size: int
    external_size: tuple[int, int] = (240, 320)
    """Rows and columns of the stacked pictures; the network's own resize follows on the device.
    A stored picture of this size is handed over pixel by pixel."""
    wrist_size: tuple[int, int] = (160, 160)
    wrist: bool = True
    threads: int = 2
    batches_ahead: int = 2

    def __post_init__(self) -> None:
        for name in ('batch_size', 'threads', 'batches_ahead'):
            if not 1 <= getattr(self, name) <= 65536:
                raise UserError(f'{name} = {getattr(self, name)} must be at least 1.')


@dataclass(frozen=True, slots=True)
class DecodedSample:
    """A sample with its pictures decoded and brought to the loader's sizes."""

    sample: Sample
    external: ImageArray
    wrist: ImageArray | None
    seed: int


def load_sample(
    datasets: Mapping[str, ShardDataset], address: Address, settings: LoaderSettings
) -> DecodedSample:
    """Read and decode one sample; UserError naming shard and key where it is damaged."""
    dataset = datasets[address.dataset]
    sample = dataset.sample(address.shard, address.index)
    where = f'{dataset.shards[address.shard].path}: {sample.key}'
    external = resize_cover(
        decode_image_bytes(sample.external, f'{where} external'), settings.external_size
    )
    wrist = None
    if settings.wrist and sample.wrist is not None:
        wrist = resize_cover(
            decode_image_bytes(sample.wrist, f'{where} wrist'), settings.wrist_size
        )
    return DecodedSample(sample, external, wrist, address.seed)


def resize_cover(image: ImageArray, size: tuple[int, int]) -> ImageArray:
    """Centre-crop to the ratio of ``size`` (rows, columns) and scale, up too; never stretched."""
    image = shrink(image, size, 'crop')
    if image.shape[:2] != size:
        grown = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        return np.asarray(grown, np.uint8)
    return image


def collate(items: Sequence[DecodedSample], settings: LoaderSettings) -> Batch:
    """Stack samples.

    Returns:
        ``external`` (B, H, W, 3) and ``wrist`` (B, h, w, 3) uint8 RGB with ``wrist_mask`` (B,) bool
        (black where absent: the mask must drop its tokens); ``p`` (B, 3), ``q`` (B, 4) wxyz,
        ``gripper`` (B,), ``proprio_mask`` (B,) bool; ``target_p`` (B, K, 3), ``target_q``
        (B, K, 4), ``target_gripper`` (B, K), ``target_mask`` (B, K) bool; float64 where not bool;
        ``instruction``, ``dataset``, ``embodiment``, ``key`` lists of str; ``info`` the samples'
        facts; ``seed`` (B,) uint64.
    """
    numbers = np.stack([item.sample.numbers for item in items])
    batch: Batch = {
        'external': np.stack([item.external for item in items]),
        'p': numbers[:, 0, P],
        'q': numbers[:, 0, Q],
        'gripper': numbers[:, 0, GRIPPER],
        'proprio_mask': numbers[:, 0, VALID] > 0.5,
        'target_p': numbers[:, TARGETS, P],
        'target_q': numbers[:, TARGETS, Q],
        'target_gripper': numbers[:, TARGETS, GRIPPER],
        'target_mask': numbers[:, TARGETS, VALID] > 0.5,
        'seed': np.array([item.seed for item in items], np.uint64),
    }
    if settings.wrist:
        batch['wrist_mask'] = np.array([item.wrist is not None for item in items])
        blank = np.zeros((*settings.wrist_size, 3), np.uint8)
        batch['wrist'] = np.stack([blank if i.wrist is None else i.wrist for i in items])
    for name in ('instruction', 'dataset', 'embodiment', 'key', 'info'):
        batch[name] = [getattr(item.sample, name) for item in items]
    return batch


class BatchLoader:
    """Endless batches of one stream."""

    def __init__(
        self,
        sampler: MixtureSampler,
        datasets: Mapping[str, ShardDataset],
        settings: LoaderSettings,
    ) -> None:
        horizons = {name: datasets[name].card.spec.horizon for name in sampler.probabilities}
        if len(set(horizons.values())) > 1:
            raise UserError(f'the data sets differ in their horizon: {horizons}; convert again.')
        self._sampler, self._datasets, self._settings = sampler, datasets, settings
        self._state = sampler.state_dict()
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix='loader')
        self._ahead: deque[tuple[list[Future[DecodedSample]], dict[str, Any]]] = deque()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Next batch.

        Raises:
            UserError: a sample is damaged; the sentence names its shard and key.
        """
        while len(self._ahead) <= self._settings.batches_ahead:
            self._submit()
        futures, state = self._ahead.popleft()
        batch = collate([f.result() for f in futures], self._settings)
        self._state = state
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Position after the last batch handed out, in plain JSON types."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batch that ``state`` was saved with; see MixtureSampler."""
        self._drop_ahead()
        self._sampler.load_state_dict(state)
        self._state = self._sampler.state_dict()

    def close(self) -> None:
        """Stop the threads."""
        self._drop_ahead()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> 'BatchLoader':
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _submit(self) -> None:
        futures = [
            self._pool.submit(load_sample, self._datasets, next(self._sampler), self._settings)
            for _ in range(self._settings.batch_size)
        ]
        self._ahead.append((futures, self._sampler.state_dict()))

    def _drop_ahead(self) -> None:
        for futures, _ in self._ahead:
            for future in futures:
                future.cancel()
        self._ahead.clear()
