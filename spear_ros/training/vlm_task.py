"""Training SPEAR-VLM in two phases; the export is a checkpoint that SPEAR-1 starts from."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from spear_ros.checkpoints.spear1 import SPATIAL_BINS, CheckpointContents, save_checkpoint
from spear_ros.core.errors import UserError
from spear_ros.data.mixtures import load_mixture
from spear_ros.networks.gemma import GemmaBlock, Rotary, attend
from spear_ros.networks.spear1 import PrefixInputs, Spear1Config
from spear_ros.networks.spear_vlm import SpearVlm, prefix_lm_mask, prefix_positions
from spear_ros.processing.embodiments import default_action_specs, default_norm_stats
from spear_ros.processing.tokens import TextTokenizer
from spear_ros.training.config import VlmConfig
from spear_ros.training.distributed import Place, agree, barrier
from spear_ros.training.estimates import StackCost, spear1_stacks
from spear_ros.training.indexed_stream import IndexedStream
from spear_ros.training.pictures import network_pictures, to_device
from spear_ros.training.question_data import (
    NO_TARGET,
    Question,
    encode_questions,
    find_bins,
    packs,
    read_picture,
    read_questions,
    same_bins,
)
from spear_ros.training.question_mixture import MixedOrder
from spear_ros.training.start import (
    check_vocabulary,
    run_tokenizer,
    spear1_weights,
    without_depth,
)
from spear_ros.training.task import Batch, BatchStream, Task
from spear_ros.training.vla_module import (
    choose_trained,
    language_blocks,
    recompute_blocks,
)

EVALUATED = 256
MOST_IN_PACK = 8


class VlmModule(nn.Module):
    """Holds SPEAR-VLM as ``vlm`` (names as in SPEAR-1) and returns losses."""

    def __init__(
        self,
        config: Spear1Config,
        spatial: range,
        spatial_weight: float,
        recompute: bool = False,
        spread: tuple[float, tuple[range, ...]] = (0.0, ()),
    ) -> None:
        super().__init__()
        self.vlm = SpearVlm(config)
        self.spatial, self.spatial_weight = spatial, spatial_weight
        self.recompute, self.spread = recompute, spread
        if recompute:
            recompute_blocks([*self.vlm.siglip.blocks, *self.vlm.moge.blocks])

    def forward(
        self,
        inputs: PrefixInputs,
        answer: Tensor,
        targets: Tensor,
        picture: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Cross entropy of the answers; 3-D tokens count ``spatial_weight`` times.

        ``picture`` (B,) names the row of ``inputs.external`` that each question is about; None: its
        own one.

        Also 'spatial', the cross entropy of 3-D tokens alone (unweighted, of the right token), and
        'correct', the share of answer tokens that are the likeliest (no gradient).
        """
        features = self._text_features(inputs, answer, picture)
        asked = targets != NO_TARGET
        logits = self.vlm.logits(features[asked]).float()
        wanted = targets[asked]
        likely = F.log_softmax(logits, dim=-1)
        each = -likely.gather(1, wanted[:, None])[:, 0]
        spatial = (wanted >= self.spatial.start) & (wanted < self.spatial.stop)
        spatial_loss = (each * spatial).sum().detach() / spatial.sum().clamp_min(1)
        width, groups = self.spread
        for numbers in groups if width > 0 else ():
            here = (wanted >= numbers.start) & (wanted < numbers.stop)
            each = torch.where(here, _spread_loss(likely, wanted, numbers, width), each)
        weight = torch.where(spatial, self.spatial_weight, 1.0)
        return {
            'loss': (weight * each).sum() / len(each),
            'spatial': spatial_loss,
            'correct': (logits.argmax(-1) == wanted).float().mean().detach(),
        }

    def _text_features(
        self, inputs: PrefixInputs, answer: Tensor, picture: Tensor | None
    ) -> Tensor:
        """:meth:`SpearVlm.text_features`, layers computed again where that is asked for."""
        vlm = self.vlm
        x_BPD, valid_BP = self._prefix(inputs, picture)
        mask = prefix_lm_mask(x_BPD.shape[1], valid_BP, answer)
        positions = prefix_positions(x_BPD, valid_BP)
        text = inputs.tokens.shape[1]
        if not (self.recompute and torch.is_grad_enabled()):
            return vlm.language(x_BPD, mask, positions)[:, x_BPD.shape[1] - text :]
        factors = vlm.language.rotary(positions)
        for block in vlm.language.blocks:
            x_BPD = checkpoint(_layer, block, x_BPD, factors, mask, use_reentrant=False)
        return vlm.language.norm(x_BPD)[:, x_BPD.shape[1] - text :]

    def _prefix(self, inputs: PrefixInputs, picture: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """:meth:`SpearVlm.embed_prefix`; pictures that several questions share are encoded once."""
        if picture is None:
            return self.vlm.embed_prefix(inputs)
        text = self.vlm.language.embed(inputs.tokens)
        images = self.vlm.encode_image(inputs.external)[picture].to(text.dtype)
        x_BPD = torch.cat([images, text], dim=1)
        valid_BP = torch.ones(x_BPD.shape[:2], dtype=torch.bool, device=x_BPD.device)
        if inputs.token_mask is not None:
            valid_BP[:, images.shape[1] :] = inputs.token_mask
        return x_BPD, valid_BP


def _spread_loss(likely: Tensor, wanted: Tensor, numbers: range, width: float) -> Tensor:
    """Cross entropy (N,) with a bell of tokens around the right one; anything for other tokens."""
    bins = torch.arange(len(numbers), device=likely.device)
    away = (bins - (wanted[:, None] - numbers.start).clamp(0, len(numbers) - 1)).float()
    target = torch.softmax(-0.5 * (away / width).square(), dim=-1)
    return -(target * likely[:, numbers.start : numbers.stop]).sum(-1)


def _layer(block: GemmaBlock, x_BPD: Tensor, factors: Rotary, mask: Tensor) -> Tensor:
    q, k, v = block.project(x_BPD, factors)
    return block.finish(x_BPD, attend(q, k, v, mask))


class VlmTask(Task[VlmConfig]):
    """See :class:`spear_ros.training.task.Task`."""

    def prepare(self, place: Place) -> None:
        """Read the questions, fetch the tokenizer."""
        config = self.config
        self.questions = read_questions(config.data.questions, 'data.questions')
        self.held_out = (
            read_questions(config.data.validation, 'data.validation')
            if config.data.validation
            else []
        )
        if place.first:
            run_tokenizer(self.folder, config.tokenizer, config.init)
        barrier(place)
        self.tokenizer_path = run_tokenizer(self.folder, config.tokenizer, config.init)
        self.tokenizer = TextTokenizer(self.tokenizer_path)
        check_vocabulary(self.tokenizer, config.model)
        if self.tokenizer.ids.spatial is None:
            raise UserError(
                f'{self.tokenizer_path}: no 3-D tokens in it; give the tokenizer of a converted '
                'checkpoint.'
            )
        self.spatial = self.tokenizer.ids.spatial
        self.bins = self._find_bins()
        alone = [(i,) for i in range(len(self.questions))]
        self.packs = packs(self.questions, MOST_IN_PACK) if config.data.by_picture else alone

    def _find_bins(self) -> Path | None:
        """What the 3-D tokens of the questions mean; None where no answer has any.

        Raises:
            UserError: nobody knows, or the weights to start from mean something else.
        """
        config = self.config
        if not any('<3d' in q.answer for q in (*self.questions, *self.held_out)):
            return None
        bins = find_bins([*config.data.questions, *config.data.validation], 'data.questions')
        before = Path(config.init).expanduser() / SPATIAL_BINS
        if config.init and before.is_file() and not same_bins(before, bins):
            raise UserError(
                f'init: the 3-D tokens of {config.init} mean other lengths than those of {bins}; '
                'annotate with --bins of that file, or start from weights before 3-D training.'
            )
        return bins

    def make_module(self) -> nn.Module:
        """SPEAR-VLM with its loss; in phase 1 only the new weights and the projectors learn."""
        config = self.config
        weight = config.spatial_weight if config.phase == 2 else 1.0
        numbers = tuple(r for r in (self.spatial, self.tokenizer.ids.loc) if r is not None)
        spread = (config.number_spread, numbers)
        module = VlmModule(config.model, self.spatial, weight, config.recompute, spread)
        choose_trained(module, ('projector',) if config.phase == 1 else config.train)
        if config.phase == 1:
            module.vlm.language.embedding.weight.requires_grad_(True)
        if config.depth_branch == 'absent':
            for part in (module.vlm.moge, module.vlm.moge_projector):
                part.requires_grad_(False)
        return module

    def initial_state(self) -> dict[str, Tensor]:
        """The VLM part of the weights of ``init``, or fresh ones."""
        config = self.config
        whole = spear1_weights(config.model, config.seed, config.init, config.moge)
        if config.depth_branch == 'absent':
            whole = without_depth(whole)
        return {name: t for name, t in whole.items() if name.startswith('vlm.')}

    def blocks(self, module: nn.Module) -> Iterable[nn.Module]:
        """Blocks of both encoders and the language stack."""
        assert isinstance(module, VlmModule)
        return language_blocks(module.vlm)

    def stream(self, place: Place) -> BatchStream:
        """Pairs in seeded order."""
        config = self.config
        count = config.batch_size // place.world // config.accumulate
        return IndexedStream(
            len(self.packs), count, place, config.seed, self._load, config.data.threads,
            order=self._order(),
        )  # fmt: skip

    def _order(self) -> MixedOrder | None:
        """Shares of the sources, where the configuration names a mixture."""
        name = self.config.data.mixture
        if not name:
            return None
        sources = [q.source for q in self.questions]
        return MixedOrder(sources, load_mixture(name), self.config.seed)

    def _load(self, numbers: list[int]) -> Batch:
        chosen = [self.packs[i] for i in numbers]
        batch = self._batch([self.questions[i] for pack in chosen for i in pack], chosen)
        if self.config.data.by_picture:
            rows = [row for row, pack in enumerate(chosen) for _ in pack]
            batch['picture'] = np.array(rows, np.int64)
        return batch

    def _batch(self, pairs: list[Question], chosen: Sequence[Sequence[int]] = ()) -> Batch:
        """Texts of all pairs; a picture for each, or one for each pack that they come in."""
        size = self.config.model.external_size
        starts = np.cumsum([0, *map(len, chosen)])[:-1] if chosen else range(len(pairs))
        return {
            'pictures': np.stack([read_picture(pairs[i], size) for i in starts]),
            'text': encode_questions(pairs, self.tokenizer, self.config.data.text_length),
            'key': [pair.key for pair in pairs],
        }

    def inputs(self, batch: Batch, device: torch.device, seed: int) -> Mapping[str, Any]:
        """Augmented pictures and text."""
        generator = torch.Generator().manual_seed(seed)
        return self._inputs(batch, device, generator)

    def _inputs(
        self, batch: Batch, device: torch.device, generator: torch.Generator | None
    ) -> dict[str, Any]:
        config = self.config
        text = batch['text']
        pictures = network_pictures(
            batch['pictures'],
            config.model.external_size,
            device,
            jitter=config.data.jitter if generator is not None else 0.0,
            generator=generator,
        )
        return {
            'inputs': PrefixInputs(
                external=pictures,
                tokens=to_device(text.tokens, device),
                token_mask=to_device(text.mask, device),
            ),
            'answer': to_device(text.answer, device),
            'targets': to_device(text.targets, device),
            'picture': to_device(batch['picture'], device) if 'picture' in batch else None,
        }

    def after_backward(self, module: nn.Module) -> None:
        """In phase 1 only the rows of the 3-D tokens learn: the gradient of the others is zeroed.

        Moments of rows that never had a gradient stay zero and move nothing.
        """
        if self.config.phase != 1:
            return
        assert isinstance(module, VlmModule)
        gradient = module.vlm.language.embedding.weight.grad
        if gradient is None:
            return
        rows, start = gradient, 0
        if isinstance(gradient, DTensor):
            rows, start = gradient.to_local(), _first_row(gradient)
        index = torch.arange(start, start + len(rows), device=rows.device)
        frozen = (index < self.spatial.start) | (index >= self.spatial.stop)
        rows[frozen] = 0

    def stacks(self) -> list[StackCost]:
        """Sizes for the estimates."""
        config = self.config
        trained = config.train if config.phase == 2 else ('vlm.language',)
        siglip, moge, language, _ = spear1_stacks(config.model, False, trained)
        return [siglip, moge, language]

    def export(self, folder: Path, state: Mapping[str, Tensor], *, ema: bool) -> str:
        """A SPEAR-1 checkpoint whose action expert is fresh: the start of the next stage."""
        config = self.config
        whole = spear1_weights(config.model, config.seed, '', '')
        whole |= state
        contents = CheckpointContents(
            model=config.model,
            specs={
                name: spec
                for name, spec in default_action_specs().items()
                if spec.horizon == config.model.flow.horizon
            },
            stats=default_norm_stats(),
            tokenizer=self.tokenizer_path,
            trained=False,
            ema=ema,
            recipe=config.recipe,
            spatial_bins=self.bins,
        )
        dtype = torch.bfloat16 if config.export_dtype == 'bfloat16' else None
        return save_checkpoint(folder, contents, whole, dtype=dtype, overwrite=True)

    @torch.no_grad()
    def evaluate(self, module: nn.Module, place: Place) -> dict[str, float]:
        """Loss and token accuracy on held-out pairs, with the right answer so far given."""
        if not self.held_out:
            return {}
        mine = self.held_out[:EVALUATED]
        totals: dict[str, float] = {}
        batches = [mine[i : i + 16] for i in range(0, len(mine), 16)]
        for pairs in batches:
            losses = module(**self._inputs(self._batch(pairs), place.device, None))
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + float(value) / len(batches)
        return {f'held_out_{name}': agree([v], place)[0] for name, v in totals.items()}


def _first_row(tensor: DTensor) -> int:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return int(offset[0])
