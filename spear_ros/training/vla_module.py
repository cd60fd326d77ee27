"""SPEAR-1 with its loss as one module: what FSDP wraps and the optimiser sees.

The joint pass is that of :meth:`spear_ros.networks.spear1.Spear1.forward`, with two additions: the
layers may be computed again in the backward pass instead of being kept, and several flow times of
one sample may share its prefix. The prefix does not look at the suffix, so n groups of action
tokens beside each other, blind to one another, cost little more than one. A test pins both passes
to each other.

Shapes: B batch, n flow times per sample, H horizon, A action dim, P prefix tokens, S = 1 + n H.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spear_ros.core.errors import UserError
from spear_ros.networks.flow_matching import FlowSample, euler_times, flow_loss, integrate
from spear_ros.networks.spear1 import (
    PrefixInputs,
    Spear1,
    Spear1Config,
    joint_layer,
    last_joint_layer,
)
from spear_ros.networks.spear_vlm import SpearVlm, prefix_positions
from spear_ros.training.config import GroundingConfig
from spear_ros.training.grounding import GroundingHeads, GroundingLabels

PROJECTORS = ('vlm.siglip_projector', 'vlm.moge_projector')
PARTS = ('expert', 'vlm.siglip', 'vlm.moge', 'vlm.language', 'projector', *PROJECTORS)


class VlaModule(nn.Module):
    """Holds SPEAR-1 as ``model`` and returns losses."""

    def __init__(
        self,
        config: Spear1Config,
        recompute: bool = False,
        grounding: GroundingConfig | None = None,
    ) -> None:
        super().__init__()
        self.model = Spear1(config)
        self.grounding: GroundingHeads | None = None
        if grounding is not None and grounding.asked:
            self.grounding = GroundingHeads(config.language.width, grounding)
        self.recompute = recompute
        if recompute:
            recompute_blocks(self.model.vlm.siglip.blocks)

    def forward(
        self,
        inputs: PrefixInputs,
        proprio: Tensor,
        sample: FlowSample | None = None,
        valid_BH: Tensor | None = None,
        noise: Tensor | None = None,
        labels: GroundingLabels | None = None,
    ) -> Any:
        """Losses of :func:`spear_ros.networks.flow_matching.flow_loss`, or chunks from ``noise``.

        ``sample`` and ``valid_BH`` have B n rows, the n of one sample next to each other. With
        ``noise`` (B, H, A) instead, chunks (B, H, A) are sampled by full passes, slowly: FSDP
        gathers the weights of what runs inside of ``forward`` only. With ``labels`` the losses of
        :mod:`spear_ros.training.grounding` are added.
        """
        if noise is not None:
            return self._sample(inputs, proprio, noise)
        assert sample is not None
        velocity, embedded, features = self._joint(inputs, proprio, sample.actions, sample.tau)
        losses = flow_loss(velocity, sample, self.model.config.flow, valid_BH)
        if labels is not None and self.grounding is not None:
            text = inputs.tokens.shape[1]
            mask = inputs.token_mask
            if mask is None:
                mask = torch.ones_like(inputs.tokens, dtype=torch.bool)
            asked = features[-self.grounding.config.layers :]
            further = self.grounding(embedded[:, :-text], asked, mask, labels)
            losses |= further
            losses['loss'] = torch.stack([losses['loss'], *further.values()]).sum()
            losses |= self.grounding.figures(features[-1], mask, labels)
        return losses

    def velocity(
        self, inputs: PrefixInputs, proprio: Tensor, actions: Tensor, tau: Tensor
    ) -> Tensor:
        """Velocities (B n, H, A) of noisy actions (B n, H, A) at flow times (B n,)."""
        return self._joint(inputs, proprio, actions, tau)[0]

    def _joint(
        self, inputs: PrefixInputs, proprio: Tensor, actions: Tensor, tau: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Velocities, the prefix as it was embedded, and as every layer sees it (B, P, D)."""
        model = self.model
        x_BPD, valid_BP = model.vlm.embed_prefix(inputs)
        embedded = x_BPD
        prefix, horizon = x_BPD.shape[1], actions.shape[1]
        count = actions.shape[0] // x_BPD.shape[0]
        s_BSD = self._embed_suffix(proprio, actions, tau, count)
        mask = group_mask(x_BPD, (count, horizon), valid_BP)
        positions = group_positions(x_BPD, (count, horizon), valid_BP)
        factors = (
            model.vlm.language.rotary(positions[:, :prefix]),
            model.vlm.language.rotary(positions[:, prefix:]),
        )
        pairs = list(zip(model.vlm.language.blocks, model.expert.blocks, strict=True))
        seen = [x_BPD]
        for pair in pairs[:-1]:
            x_BPD, s_BSD = self._run(joint_layer, pair, (x_BPD, s_BSD), factors, mask)
            seen.append(x_BPD)
        s_BSD = self._run(last_joint_layer, pairs[-1], (x_BPD, s_BSD), factors, mask[:, :, prefix:])
        velocity = model.expert.velocity(s_BSD[:, 1:].reshape(len(actions), horizon, -1))
        return velocity, embedded, seen

    def _sample(self, inputs: PrefixInputs, proprio: Tensor, noise: Tensor) -> Tensor:
        flow = self.model.config.flow
        times = euler_times(flow.steps)

        def velocity(actions: Tensor, i: int) -> Tensor:
            return self.velocity(inputs, proprio, actions, noise.new_full((len(noise),), times[i]))

        return integrate(velocity, noise, flow)

    def _embed_suffix(self, proprio: Tensor, actions: Tensor, tau: Tensor, count: int) -> Tensor:
        """Proprioception and all groups of actions as tokens (B, 1 + n H, D)."""
        expert = self.model.expert
        proprio_B1D = expert.embed_proprio(proprio)
        tokens = expert.embed_actions(actions, expert.embed_time(tau))
        groups = tokens.unflatten(0, (-1, count)).flatten(1, 2)
        return torch.cat([proprio_B1D, groups.to(proprio_B1D.dtype)], dim=1)

    def _run(self, layer: Callable[..., Any], *arguments: object) -> Any:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(layer, *arguments, use_reentrant=False)
        return layer(*arguments)


def group_mask(x_BPD: Tensor, groups: tuple[int, int], valid_BP: Tensor | None) -> Tensor:
    """Mask (B or 1, 1, T, T) of [prefix | proprioception | n groups], groups blind to each other.

    With one group it is :func:`spear_ros.networks.spear1.block_mask`.
    """
    prefix, (count, horizon) = x_BPD.shape[1], groups
    index = torch.arange(prefix + 1 + count * horizon, device=x_BPD.device)
    group = torch.div(index - prefix - 1, horizon, rounding_mode='floor').clamp_min(-1) + 1
    block = (index >= prefix).long() + (index > prefix).long()
    same = (group[None, :] == 0) | (group[None, :] == group[:, None])
    allowed = ((block[None, :] <= block[:, None]) & same)[None, None]
    if valid_BP is None:
        return allowed
    keys = nn.functional.pad(valid_BP, (0, 1 + count * horizon), value=True)
    return allowed & keys[:, None, None]


def group_positions(x_BPD: Tensor, groups: tuple[int, int], valid_BP: Tensor | None) -> Tensor:
    """Rotary positions (B or 1, T): every group stands at the same places."""
    count, horizon = groups
    positions = prefix_positions(x_BPD, valid_BP)
    steps = torch.arange(2, horizon + 2, device=x_BPD.device).repeat(count)
    suffix = torch.cat([steps.new_ones(1), steps])
    return torch.cat([positions, positions[:, -1:] + suffix], dim=1)


def recompute_blocks(blocks: Iterable[nn.Module]) -> None:
    """Let blocks keep their input only and run again in the backward pass; names stay."""
    for block in blocks:
        block.forward = functools.partial(  # type: ignore[method-assign]
            _recomputed, block.forward
        )


def _recomputed(forward: Callable[..., Any], *arguments: object) -> Any:
    if torch.is_grad_enabled():
        return checkpoint(forward, *arguments, use_reentrant=False)
    return forward(*arguments)


def choose_trained(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Set ``requires_grad`` by parts; see :data:`PARTS`.

    Raises:
        UserError: a part that does not exist.
    """
    for part in parts:
        if part not in PARTS:
            raise UserError(f'train: "{part}" is none of {", ".join(PARTS)}.')
    names: list[str] = []
    for part in parts:
        names += PROJECTORS if part == 'projector' else (part,)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(name.startswith(f'{part}.') for part in names))


def freeze_unused(model: Spear1) -> None:
    """Freeze what the joint pass never uses: the language stack ends in keys and values."""
    last = list(model.vlm.language.blocks)[-1]
    for unused in (last.attention.out, last.norm2, last.mlp, model.vlm.language.norm):
        unused.requires_grad_(False)


def language_blocks(vlm: SpearVlm) -> list[nn.Module]:
    """Blocks of all three stacks of the VLM in the order in which they run."""
    return [*vlm.siglip.blocks, *vlm.moge.blocks, *vlm.language.blocks]
