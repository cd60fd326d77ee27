"""Training SPEAR-1: shards in, a checkpoint that a robot loads out."""

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spear_ros.checkpoints.spear1 import (
    CheckpointContents,
    read_norm_stats,
    save_checkpoint,
)
from spear_ros.core.errors import UserError
from spear_ros.core.geometry import pose
from spear_ros.data.mixtures import action_specs
from spear_ros.networks.flow_matching import make_sample, sample_noise, sample_tau
from spear_ros.networks.spear1 import PrefixInputs
from spear_ros.processing.action_space import GRIPPER, ROTATION, TRANSLATION
from spear_ros.processing.normalization import denormalize_translation
from spear_ros.processing.tokens import TextTokenizer
from spear_ros.training.config import VlaConfig
from spear_ros.training.distributed import Place, agree, barrier
from spear_ros.training.estimates import StackCost, spear1_stacks
from spear_ros.training.grounding import GroundingHeads, GroundingLabels, make_labels
from spear_ros.training.lora import add_lora, lora_state, merge_lora
from spear_ros.training.pictures import network_pictures, to_device
from spear_ros.training.start import (
    check_started_specs,
    check_vocabulary,
    run_tokenizer,
    spear1_weights,
    without_depth,
)
from spear_ros.training.task import Batch, BatchStream, Task
from spear_ros.training.vla_data import (
    TextBatcher,
    encode_batch,
    make_stream,
    open_mixture,
    run_statistics,
)
from spear_ros.training.vla_module import (
    VlaModule,
    choose_trained,
    freeze_unused,
    language_blocks,
)

PREFIX, HEADS = 'model.', 'grounding.'
OPEN_LOOP_BATCHES = 4


class VlaTask(Task[VlaConfig]):
    """See :class:`spear_ros.training.task.Task`."""

    def prepare(self, place: Place) -> None:
        """Open the data, compute the statistics, fetch the tokenizer."""
        config = self.config
        if any(part.startswith('vlm.moge') and part != 'vlm.moge_projector'
               for part in config.train):  # fmt: skip
            raise UserError(
                'train: vlm.moge is frozen in this stage; leave it out, or set '
                'depth_branch=trained for an experiment.'
            )
        if config.lora.rank and place.world > 1:
            raise UserError('lora.rank: low-rank updates run on one process; use lora.rank=0.')
        self.mixture, self.datasets = open_mixture(
            config.data.shards, config.data.mixture, 'data.shards'
        )
        self.specs = action_specs(self.mixture, self.datasets)
        for spec in self.specs.values():
            if spec.horizon != config.model.flow.horizon:
                raise UserError(
                    f'the data of {spec.embodiment} have horizon {spec.horizon} and the model '
                    f'{config.model.flow.horizon}; convert the data or change model.flow.horizon.'
                )
        if config.init:
            check_started_specs(config.init, self.specs, always=config.data.stats == 'init')
        self._check_validation()
        self._prepare_files(place)

    def _check_validation(self) -> None:
        """Refuse validation data that mean something else than the training data.

        Raises:
            UserError: names the embodiment, or the field with both values.
        """
        if not self.config.data.validation:
            return
        mixture, datasets = open_mixture(self.config.data.validation, '', 'data.validation')
        for name, spec in action_specs(mixture, datasets).items():
            if name not in self.specs:
                raise UserError(
                    f'data.validation: embodiment {name} is not among those trained on '
                    f'({", ".join(self.specs)}).'
                )
            for field in type(spec).__dataclass_fields__:
                ours, theirs = getattr(self.specs[name], field), getattr(spec, field)
                if ours != theirs:
                    raise UserError(
                        f'data.validation: {field} = {theirs!r} for embodiment {name}, the '
                        f'training data have {ours!r}; convert one of them again.'
                    )

    def _prepare_files(self, place: Place) -> None:
        config = self.config
        data = self.mixture, self.datasets
        if config.data.stats == 'init':
            if not config.init:
                raise UserError('data.stats = init needs init=FOLDER, whose statistics are taken.')
            self.stats = read_norm_stats(Path(config.init).expanduser())
        else:
            self.stats = run_statistics(config.data, self.folder, data, place)
        if place.first:
            run_tokenizer(self.folder, config.tokenizer, config.init)
        barrier(place)
        self.tokenizer_path = run_tokenizer(self.folder, config.tokenizer, config.init)
        tokenizer = TextTokenizer(self.tokenizer_path)
        check_vocabulary(tokenizer, config.model)
        self._texts = TextBatcher(tokenizer, config.model.text_length)

    def make_module(self) -> nn.Module:
        """SPEAR-1 with its loss."""
        module = VlaModule(self.config.model, self.config.recompute, self.config.grounding)
        choose_trained(module.model, self._trained_parts())
        freeze_unused(module.model)
        if self.config.depth_branch == 'absent':
            module.model.vlm.moge_projector.requires_grad_(False)
        if self.config.lora.rank:
            vlm = module.model.vlm
            parts = {'siglip': vlm.siglip.blocks, 'language': vlm.language.blocks}
            add_lora(parts, self.config.lora)
            freeze_unused(module.model)
        return module

    def _trained_parts(self) -> tuple[str, ...]:
        depth = ('vlm.moge',) if self.config.depth_branch == 'trained' else ()
        return (*self.config.train, *depth)

    def initial_state(self) -> dict[str, Tensor]:
        """Fresh weights, or those of ``init`` and ``moge``."""
        config = self.config
        plain = spear1_weights(
            config.model, config.seed, config.init, config.moge, config.fresh_expert
        )
        if config.depth_branch == 'absent':
            plain = without_depth(plain)
        state = {PREFIX + name: tensor for name, tensor in plain.items()}
        if config.grounding.asked:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                heads = GroundingHeads(config.model.language.width, config.grounding)
            state |= {HEADS + name: tensor for name, tensor in heads.state_dict().items()}
        if config.lora.rank:
            with torch.device('meta'):
                module = self.make_module()
            return lora_state(module, state, config.seed)
        return state

    def blocks(self, module: nn.Module) -> Iterable[nn.Module]:
        """Blocks of both encoders, the language stack and the expert."""
        assert isinstance(module, VlaModule)
        return [*language_blocks(module.model.vlm), *module.model.expert.blocks]

    def stream(self, place: Place) -> BatchStream:
        """Batches of this process's part of the shards."""
        config = self.config
        count = config.batch_size // place.world // config.accumulate
        data = self.mixture, self.datasets
        return make_stream(config.data, data, place, count, config.seed)

    def inputs(self, batch: Batch, device: torch.device, seed: int) -> Mapping[str, Any]:
        """Pictures (augmented), text, proprioception, and a point of the flow for each sample."""
        generator = torch.Generator().manual_seed(seed)
        return self._asked(batch, device, generator, self.prefix(batch, device, generator))

    def _asked(
        self, batch: Batch, device: torch.device, generator: torch.Generator, prefix: PrefixInputs
    ) -> dict[str, Any]:
        config, flow = self.config, self.config.model.flow
        actions, proprio = encode_batch(batch, self.specs, self.stats)
        count = config.tau_per_sample
        noise = sample_noise(count * len(actions), flow, generator)
        tau = sample_tau(count * len(actions), flow, generator)
        sample = make_sample(actions.repeat_interleave(count, 0), noise, tau, flow)
        valid = torch.from_numpy(batch['target_mask']).repeat_interleave(count, 0)
        return {
            'labels': self._labels(batch, device),
            'inputs': prefix,
            'proprio': to_device(proprio, device),
            'sample': replace(
                sample,
                tau=to_device(sample.tau, device),
                actions=to_device(sample.actions, device),
                velocity=to_device(sample.velocity, device),
            ),
            'valid_BH': to_device(valid, device),
        }

    def _labels(self, batch: Batch, device: torch.device) -> GroundingLabels | None:
        config = self.config
        if not config.grounding.asked:
            return None
        words = config.grounding.words
        poses = [
            pose(p, q) if known else None
            for p, q, known in zip(batch['p'], batch['q'], batch['proprio_mask'], strict=True)
        ]
        labels = make_labels(batch['info'], poses, config.model, words, config.data.wrist)
        moved = {f.name: to_device(getattr(labels, f.name), device) for f in fields(labels)}
        return GroundingLabels(**moved)

    def prefix(
        self, batch: Batch, device: torch.device, generator: torch.Generator | None = None
    ) -> PrefixInputs:
        """What the model sees and is told; augmented where a generator is given."""
        data, model = self.config.data, self.config.model
        jitter = data.jitter if generator is not None else 0.0
        external = network_pictures(
            batch['external'], model.external_size, device, jitter=jitter, generator=generator
        )
        wrist, wrist_mask = None, None
        if data.wrist:
            wrist = network_pictures(
                batch['wrist'], model.wrist_size, device, jitter=jitter, generator=generator
            )
            seen = torch.from_numpy(batch['wrist_mask'])
            if generator is not None:
                seen = seen & (torch.rand(len(seen), generator=generator) >= data.hide_wrist)
            wrist_mask = to_device(seen, device)
        tokens, mask = self._texts(batch['instruction'])
        return PrefixInputs(
            external=external,
            tokens=to_device(tokens, device),
            wrist=wrist,
            token_mask=to_device(mask, device),
            wrist_mask=wrist_mask,
            picture=to_device(batch['picture'], device) if 'picture' in batch else None,
        )

    def stacks(self) -> list[StackCost]:
        """Sizes for the estimates; the suffix counts with all its flow times."""
        config = self.config
        parts = self._trained_parts()
        if config.lora.rank:  # the updates' own products are not counted, the way to them is
            parts = (*parts, 'vlm.siglip', 'vlm.language')
        data = config.data
        *prefix, expert = spear1_stacks(config.model, data.wrist, parts, data.per_picture)
        tokens = 1 + config.tau_per_sample * config.model.flow.horizon
        return [*prefix, replace(expert, tokens=tokens)]

    def export(self, folder: Path, state: Mapping[str, Tensor], *, ema: bool) -> str:
        """A SPEAR-1 checkpoint with specs, statistics and tokenizer; returns its id."""
        config = self.config
        plain = merge_lora(state, config.lora) if config.lora.rank else state
        contents = CheckpointContents(
            model=config.model,
            specs=self.specs,
            stats=self.stats,
            tokenizer=self.tokenizer_path,
            # A frozen depth branch with random weights is not SPEAR-1.
            trained=bool(config.moge or config.init),
            ema=ema,
            recipe=config.recipe,
            sampling=config.sampling,
        )
        weights = {n.removeprefix(PREFIX): t for n, t in plain.items() if n.startswith(PREFIX)}
        dtype = torch.bfloat16 if config.export_dtype == 'bfloat16' else None
        return save_checkpoint(folder, contents, weights, dtype=dtype, overwrite=True)

    @torch.no_grad()
    def evaluate(self, module: nn.Module, place: Place) -> dict[str, float]:
        """Open-loop error: sampled chunks against the recorded ones, over all valid knots; and
        the losses of the same samples as they are, without augmentation."""
        config = self.config
        name = 'open_loop' if config.data.validation else 'open_loop_on_training_data'
        data = self.mixture, self.datasets
        if config.data.validation:
            data = open_mixture(config.data.validation, '', 'data.validation')
        count = max(1, min(64, config.batch_size // place.world))
        settings = replace(config.data, resident=False, per_picture=1)
        totals = torch.zeros(4, dtype=torch.float64)
        losses: dict[str, float] = {}
        with closing(make_stream(settings, data, place, count, config.seed + 1)) as stream:
            for number in range(OPEN_LOOP_BATCHES):
                batch = next(stream)
                totals += self._errors(module, batch, place, number)
                generator = torch.Generator().manual_seed(number)
                prefix = self.prefix(batch, place.device)
                asked = self._asked(batch, place.device, generator, prefix)
                for key, value in module(**asked).items():
                    losses[key] = losses.get(key, 0.0) + float(value) / OPEN_LOOP_BATCHES
        means = agree(list(losses.values()), place, 'sum')
        sums = agree(totals.tolist(), place, 'sum')
        knots = max(sums[3], 1.0)
        return {
            f'{name}_mm': sums[0] / knots,
            f'{name}_deg': sums[1] / knots,
            f'{name}_gripper_wrong': sums[2] / knots,
            **{f'{name}_{k}': v / place.world for k, v in zip(losses, means, strict=True)},
        }

    def _errors(self, module: nn.Module, batch: Batch, place: Place, number: int) -> Tensor:
        """Sums over valid knots: position error (mm), rotation (degrees), wrong gripper, knots."""
        actions, proprio = encode_batch(batch, self.specs, self.stats)
        generator = torch.Generator().manual_seed(number)
        noise = sample_noise(len(actions), self.config.model.flow, generator)
        device = place.device
        found = module(
            inputs=self.prefix(batch, device),
            proprio=to_device(proprio, device),
            noise=to_device(noise, device),
        ).cpu()
        metres = [
            denormalize_translation(a[..., TRANSLATION], self.stats) for a in (found, actions)
        ]
        position = 1e3 * (metres[0] - metres[1]).norm(dim=-1)
        cosine = (found[..., ROTATION] * actions[..., ROTATION]).sum(-1).abs().clamp(max=1.0)
        angle = torch.rad2deg(2 * torch.acos(cosine))
        wrong = (found[..., GRIPPER] > 0) != (actions[..., GRIPPER] > 0)
        valid = torch.from_numpy(batch['target_mask'])
        parts = (position, angle, wrong, torch.ones_like(position))
        return torch.stack([(p * valid).sum().double() for p in parts])
