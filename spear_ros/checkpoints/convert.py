"""Conversion of published weights: the only place where something other than our format comes in.

``convert_spear1`` joins PaliGemma, MoGe-1 and a freshly initialised action expert into a SPEAR-1
checkpoint that is NOT trained: the starting point of training. It streams: each tensor is read from
its mapped file, cast and written before the next one is touched.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from spear_ros.checkpoints.embeddings import DEFAULT_COVARIANCE_SCALE, draw_embeddings
from spear_ros.checkpoints.key_map import (
    KeyReport,
    MappedSource,
    Shape,
    compare,
    expand,
)
from spear_ros.checkpoints.moge import IGNORABLE as MOGE_IGNORABLE
from spear_ros.checkpoints.moge import MogeWeights, moge_mend
from spear_ros.checkpoints.paligemma import open_paligemma
from spear_ros.checkpoints.spear1 import CheckpointContents, model_shapes, save_checkpoint
from spear_ros.checkpoints.vision_language_maps import dinov2_rules
from spear_ros.core.errors import UserError
from spear_ros.networks.action_expert import ActionExpert
from spear_ros.networks.config import Spear1Config

PALIGEMMA_PREFIXES = {
    'siglip': 'vlm.siglip.',
    'projector': 'vlm.siglip_projector.',
    'language': 'vlm.language.',
}
MOGE_PREFIX = 'vlm.moge.'
EMBEDDING = 'vlm.language.embedding.weight'


@dataclass(frozen=True, kw_only=True, slots=True)
class FreshParts:
    """How the parts that no publication has are initialised."""

    spatial_ids: range
    """Ids of the 3D tokens in the tokenizer that goes into the checkpoint."""
    seed: int = 0
    covariance_scale: float = DEFAULT_COVARIANCE_SCALE
    """See :mod:`spear_ros.checkpoints.embeddings`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """What came out."""

    checkpoint_id: str
    reports: dict[str, KeyReport]
    """Per publication: which of its tensors were not used."""


class _Assembly:
    """Tensors of a new checkpoint, each made when it is asked for."""

    def __init__(self) -> None:
        self._shapes: dict[str, Shape] = {}
        self._make: dict[str, Callable[[], torch.Tensor]] = {}

    def add(self, name: str, shape: Shape, make: Callable[[], torch.Tensor]) -> None:
        self._shapes[name] = shape
        self._make[name] = make

    def add_source(self, source: MappedSource) -> None:
        for name in source.names():
            self.add(name, source.shape(name), partial(source.get, name))

    def names(self) -> Iterable[str]:
        return self._make.keys()

    def shape(self, name: str) -> Shape:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32

    def get(self, name: str) -> torch.Tensor:
        return self._make[name]()


def convert_spear1(
    folder: Path | str,
    contents: CheckpointContents,
    paligemma: Path | str,
    moge: MogeWeights,
    fresh: FreshParts,
    *,
    dtype: torch.dtype = torch.bfloat16,
    overwrite: bool = False,
) -> Conversion:
    """Write an untrained SPEAR-1 checkpoint from published weights.

    Args:
        folder: see :func:`spear_ros.checkpoints.spear1.save_checkpoint`.
        contents: everything but the weights; ``trained`` is set to False whatever it says.
        paligemma: file, index or folder of google/paligemma-3b in any published layout.
        moge: opened MoGe-1 weights.
        fresh: how new rows, the second projector and the expert begin.
        dtype: type of the weights on disk.
        overwrite: replace an existing checkpoint.

    Raises:
        UserError: a publication does not fit the sizes of ``contents.model``.
    """
    config = contents.model
    shapes = model_shapes(config)
    language, report = open_paligemma(paligemma, config, PALIGEMMA_PREFIXES, shapes)
    report.require_fit(paligemma, 'give the PaliGemma weights that belong to the chosen sizes.')
    reports = {'paligemma': report}
    geometry, reports['moge'] = _moge_source(moge, config, shapes)
    assembly = _Assembly()
    assembly.add_source(language)
    assembly.add_source(geometry)
    assembly.add(
        EMBEDDING,
        shapes[EMBEDDING],
        lambda: extend_embedding(language.get(EMBEDDING), shapes[EMBEDDING][0], fresh, dtype),
    )
    for name, tensor in _fresh_state(config, shapes, fresh.seed).items():
        assembly.add(name, shapes[name], tensor.clone)
    contents = replace(contents, trained=False, ema=False)
    checkpoint_id = save_checkpoint(folder, contents, assembly, dtype=dtype, overwrite=overwrite)
    return Conversion(checkpoint_id=checkpoint_id, reports=reports)


def extend_embedding(
    published: torch.Tensor, rows: int, fresh: FreshParts, dtype: torch.dtype
) -> torch.Tensor:
    """Grow the table to ``rows`` and draw the rows of the 3D tokens and of the padding.

    PaliGemma's table is a little longer than its vocabulary, and the first 3D tokens fall on those
    never trained rows: they are drawn anew too, and left out of the law.

    Raises:
        UserError: the tokenizer's ids do not fit the table.
    """
    spatial = fresh.spatial_ids
    if spatial.stop > rows:
        raise UserError(
            f'the tokenizer gives 3D tokens the ids {spatial.start}..{spatial.stop - 1} and the '
            f'model has {rows} rows; choose the sizes or the tokenizer that belong together.'
        )
    trained = min(spatial.start, len(published))
    drawn = draw_embeddings(
        published[:trained],
        rows - trained,
        seed=fresh.seed,
        covariance_scale=fresh.covariance_scale,
    )
    table = torch.empty(rows, published.shape[1], dtype=dtype)
    table[:trained] = published[:trained]
    table[trained:] = drawn
    # A tokenizer may put the 3D tokens behind trained rows that it keeps (old ids above them).
    after = slice(spatial.stop, len(published))
    if after.start < after.stop:
        table[after] = published[after]
    return table


def _moge_source(
    moge: MogeWeights, config: Spear1Config, shapes: dict[str, Shape]
) -> tuple[MappedSource, KeyReport]:
    table = expand(dinov2_rules(MOGE_PREFIX, 'backbone.', config.moge))
    report = compare(table, moge.source, {n: shapes[n] for n in table}, MOGE_IGNORABLE)
    report.require_fit('MoGe weights', moge_mend(moge.encoder or 'the chosen config'))
    if moge.n_layers != config.moge_layers:
        raise UserError(
            f'MoGe weights: intermediate_layers is {moge.n_layers} and the model reads the last '
            f'{config.moge_layers} blocks; set moge_layers in the model config.'
        )
    return MappedSource(table, moge.source), report


def _fresh_state(
    config: Spear1Config, shapes: dict[str, Shape], seed: int
) -> dict[str, torch.Tensor]:
    """Initialise expert and second projector without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        expert = ActionExpert(config.expert, config.language)
        weight = torch.empty(shapes['vlm.moge_projector.weight'])
        # As SpearVlm initialises it: keeps the variance of its normed inputs.
        torch.nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]))
    state = {f'expert.{name}': tensor for name, tensor in expert.state_dict().items()}
    state['vlm.moge_projector.weight'] = weight
    state['vlm.moge_projector.bias'] = torch.zeros(shapes['vlm.moge_projector.bias'])
    return state
