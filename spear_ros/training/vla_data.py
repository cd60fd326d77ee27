"""Batches of shards in model units, and shards that stay decoded in memory."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spear_ros.core.errors import UserError
from spear_ros.core.types import ActionSpec, NormStats
from spear_ros.data.loader import (
    Batch,
    BatchLoader,
    DecodedSample,
    LoaderSettings,
    collate,
    load_sample,
)
from spear_ros.data.mixtures import (
    Address,
    Mixture,
    MixturePart,
    MixtureSampler,
    StreamId,
    load_mixture,
)
from spear_ros.data.shards import ShardDataset, open_datasets
from spear_ros.data.statistics import check_data_hash, compute, load_norm_stats, save_norm_stats
from spear_ros.processing.action_space import Pose, Targets, encode_actions, encode_proprio
from spear_ros.processing.tokens import DEFAULT_BUCKETS, TextTokenizer, pad_right
from spear_ros.training.config import VlaDataConfig
from spear_ros.training.distributed import Place, barrier
from spear_ros.training.task import BatchStream

MANY = 1_000_000
"""Open shards: all."""


def open_mixture(
    folders: tuple[str, ...], mixture: str, where: str
) -> tuple[Mixture, dict[str, ShardDataset]]:
    """Open shard folders and the mixture over them (every sample alike where none is named).

    Raises:
        UserError: no folder, or one that is not a finished conversion.
    """
    if not folders:
        raise UserError(f'{where} is empty; give folders, such as {where}=[DIR,DIR].')
    datasets = open_datasets([Path(f).expanduser() for f in folders])
    if mixture:
        return load_mixture(mixture), datasets
    parts = tuple(
        MixturePart(dataset=name, weight=1.0, weight_from='ours') for name in sorted(datasets)
    )
    return Mixture(name='all-samples-alike', weight_is='size_multiplier', parts=parts), datasets


def run_statistics(
    config: VlaDataConfig,
    folder: Path,
    data: tuple[Mixture, dict[str, ShardDataset]],
    place: Place,
) -> NormStats:
    """The ONE NormStats of a run: the given file, or computed once and kept in the run folder.

    Raises:
        UserError: the statistics are of other data.
    """
    mixture, datasets = data
    if config.stats:
        stats = load_norm_stats(Path(config.stats).expanduser())
        check_data_hash(stats, mixture, datasets)
        if stats.kind != config.stats_kind:
            raise UserError(
                f'data.stats_kind = {config.stats_kind}, but {config.stats} holds {stats.kind}; '
                f'set data.stats_kind={stats.kind}, or compute the others.'
            )
        return stats
    path = folder / 'norm_stats.json'
    if place.first and not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_norm_stats(path, compute(mixture, datasets, config.stats_kind), mixture)
    barrier(place)
    stats = load_norm_stats(path)
    check_data_hash(stats, mixture, datasets)
    return stats


def make_stream(
    config: VlaDataConfig,
    data: tuple[Mixture, dict[str, ShardDataset]],
    place: Place,
    batch: int,
    seed: int,
) -> BatchStream:
    """Batches of ``batch`` samples for this process."""
    mixture, datasets = data
    sampler = MixtureSampler(
        mixture,
        datasets,
        seed=seed,
        stream=StreamId(rank=place.rank, world=place.world),
        # What is in memory anyway can be mixed as a whole: a shard is an episode or two.
        open_shards=MANY if config.resident else config.open_shards,
    )
    settings = LoaderSettings(
        batch_size=batch,
        external_size=config.external_size,
        wrist_size=config.wrist_size,
        wrist=config.wrist,
        threads=config.threads,
    )
    if batch % config.per_picture:
        raise UserError(
            f'{batch} samples a step and process are no multiple of data.per_picture = '
            f'{config.per_picture}; change batch_size.'
        )
    if config.resident:
        return ResidentStream(sampler, datasets, settings, place.device, config.per_picture)
    return BatchLoader(sampler, datasets, settings)


class ResidentStream:
    """The batches of :class:`BatchLoader`, from pictures that were decoded once.

    For data sets that fit on the device: a small model on a large GPU outruns any JPEG decoder.

    With ``per_picture`` > 1 every draw stands for so many samples of its picture: itself and those
    that follow it in the shard with the same bytes, over again where there are fewer. ``external``
    and ``wrist`` then hold each picture once and ``picture`` (B,) says which one a sample sees.
    """

    def __init__(
        self,
        sampler: MixtureSampler,
        datasets: Mapping[str, ShardDataset],
        settings: LoaderSettings,
        device: torch.device,
        per_picture: int = 1,
    ) -> None:
        """Decode everything.

        Raises:
            UserError: a sample is damaged; the sentence names it.
        """
        self._sampler, self._settings, self._per_picture = sampler, settings, per_picture
        self._first: dict[tuple[str, int], int] = {}
        addresses: list[Address] = []
        for name in sampler.probabilities:
            for shard, size in enumerate(datasets[name].sizes):
                self._first[name, shard] = len(addresses)
                addresses += [Address(name, shard, index, 0) for index in range(int(size))]
        height, width = settings.external_size
        self._external = torch.empty(len(addresses), height, width, 3, dtype=torch.uint8)
        height, width = settings.wrist_size
        wrists = len(addresses) if settings.wrist else 0
        self._wrist = torch.zeros(wrists, height, width, 3, dtype=torch.uint8)
        self._rest: list[DecodedSample] = []
        self._siblings: list[list[int]] = []
        """Rows of each picture: neighbours in a shard may share one."""
        self._picture: list[int] = []
        """Picture of each row."""
        with ThreadPoolExecutor(settings.threads) as pool:
            for item in pool.map(lambda a: load_sample(datasets, a, settings), addresses):
                self._keep(item)
        pictures = len(self._siblings)
        self._external = self._external[:pictures].to(device)
        self._wrist = self._wrist[:pictures].to(device)

    def _keep(self, item: DecodedSample) -> None:
        """Move the pictures of a sample into the large arrays, unless they are there."""
        row = len(self._rest)
        if not row or _bytes(item) != _bytes(self._rest[-1]):
            picture = len(self._siblings)
            self._external[picture] = torch.from_numpy(np.ascontiguousarray(item.external))
            if item.wrist is not None:
                self._wrist[picture] = torch.from_numpy(np.ascontiguousarray(item.wrist))
            self._siblings.append([])
        self._siblings[-1].append(row)
        self._picture.append(len(self._siblings) - 1)
        tiny = np.zeros((1, 1, 3), np.uint8)
        self._rest.append(
            DecodedSample(item.sample, tiny, tiny if item.wrist is not None else None, 0)
        )

    def __next__(self) -> Batch:
        """Next batch; ``external`` and ``wrist`` are tensors on the device."""
        count = self._per_picture
        draws = [next(self._sampler) for _ in range(self._settings.batch_size // count)]
        drawn = [self._first[d.dataset, d.shard] + d.index for d in draws]
        pictures = [self._picture[row] for row in drawn]
        rows = [sibling for row in drawn for sibling in self._of_picture(row)]
        items = [
            DecodedSample(r.sample, r.external, r.wrist, draws[i // count].seed)
            for i, r in enumerate(self._rest[row] for row in rows)
        ]
        settings = LoaderSettings(
            batch_size=len(rows), wrist=self._settings.wrist, wrist_size=(1, 1)
        )
        batch = collate(items, settings)
        index = torch.tensor(pictures, device=self._external.device)
        if count > 1:
            batch['picture'] = np.arange(len(pictures)).repeat(count)
        batch['external'] = self._external[index]
        if self._settings.wrist:
            batch['wrist'] = self._wrist[index]
        return batch

    def _of_picture(self, row: int) -> list[int]:
        """Rows that share the picture of ``row``, itself first."""
        siblings = self._siblings[self._picture[row]]
        first = row - siblings[0]
        return [siblings[(first + i) % len(siblings)] for i in range(self._per_picture)]

    def state_dict(self) -> dict[str, Any]:
        """Position after the last batch."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batch that ``state`` was saved with."""
        self._sampler.load_state_dict(state)

    def close(self) -> None:
        """Nothing to stop."""


def _bytes(item: DecodedSample) -> tuple[bytes, bytes | None]:
    return item.sample.external, item.sample.wrist


def encode_batch(
    batch: Batch, specs: Mapping[str, ActionSpec], stats: NormStats
) -> tuple[Tensor, Tensor]:
    """Actions (B, H, 8) and proprioception (B, 8) of a batch of any embodiments, float32.

    In float64 on the CPU, by the functions that serve the robot.
    """
    actions: np.ndarray | None = None
    proprio: np.ndarray | None = None
    embodiments = np.array(batch['embodiment'])
    for name in sorted(set(batch['embodiment'])):
        rows = np.flatnonzero(embodiments == name)
        anchor = Pose(batch['p'][rows], batch['q'][rows])
        targets = Targets(
            batch['target_p'][rows], batch['target_q'][rows], batch['target_gripper'][rows]
        )
        part = encode_actions(targets, anchor, specs[name], stats)
        own = encode_proprio(anchor, batch['gripper'][rows], specs[name], stats)
        if actions is None or proprio is None:
            actions = np.zeros((len(embodiments), *part.shape[1:]))
            proprio = np.zeros((len(embodiments), own.shape[1]))
        actions[rows], proprio[rows] = part, own
    assert actions is not None
    assert proprio is not None
    proprio *= batch['proprio_mask'][:, None]  # positions that mean nothing are zero: the middle
    return torch.from_numpy(actions).float(), torch.from_numpy(proprio).float()


class TextBatcher:
    """Instructions to padded ids; every text is encoded once."""

    def __init__(self, tokenizer: TextTokenizer, text_length: int) -> None:
        self._tokenizer = tokenizer
        self._buckets = (*(b for b in DEFAULT_BUCKETS if b < text_length), text_length)
        self._known: dict[str, list[int]] = {}

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, L), L the smallest bucket that holds all.

        Raises:
            UserError: a text is empty or longer than the model reads.
        """
        ids = [self._encode(text) for text in texts]
        longest = max(len(i) for i in ids)
        bucket = next(b for b in self._buckets if b >= longest)
        padded = [pad_right(i, self._tokenizer.ids.pad, (bucket,)) for i in ids]
        tokens = torch.from_numpy(np.stack([p.ids for p in padded]))
        return tokens, torch.from_numpy(np.stack([p.mask for p in padded]))

    def _encode(self, text: str) -> list[int]:
        if text not in self._known:
            tokens = self._tokenizer.instruction(text, self._buckets)
            self._known[text] = tokens.ids[tokens.mask].tolist()
        return self._known[text]
