"""SPEAR-1: SPEAR-VLM and the action expert, joined layer by layer.

Attention is block-wise causal over [images, text] | [proprioception] | [actions]: both ways inside
a block, never to a later block. So the prefix does not depend on the suffix, and proprioception
not on the actions: at inference their keys and values are computed once (:meth:`Spear1.prefill`)
and only the action tokens run through the expert in each :meth:`Spear1.denoise_step`. In training
one joint pass does it all (:meth:`Spear1.forward`). A test pins both to each other.

Shapes: B batch, P prefix tokens, S = 1 + H suffix tokens, T = P + S, A action dim, G K/V heads,
K head dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spear_ros.networks import flow_matching
from spear_ros.networks.action_expert import ActionExpert
from spear_ros.networks.config import Spear1Config as Spear1Config
from spear_ros.networks.gemma import GemmaBlock, Rotary, attend
from spear_ros.networks.spear_vlm import PrefixInputs as PrefixInputs
from spear_ros.networks.spear_vlm import SpearVlm, prefix_positions


@dataclass(frozen=True, kw_only=True)
class ChunkCache:
    """Static buffers between prefill and denoise steps; prefill writes them in place."""

    kv: Tensor
    """(layers, 2, B, G, T, K): prefix, proprioception, then room for the actions."""
    key_mask: Tensor | None
    """(B, 1, 1, T) bool, False on padding; None = no padding anywhere."""
    cos: Tensor
    """(B or 1, H, 1, 1, K / 2) float32, rotary factors of the action tokens."""
    sin: Tensor
    """(B or 1, H, 1, 2, K / 2) float32."""
    prefix: int
    """P."""


class Spear1(nn.Module):
    """The vision-language-action model. Parameters: ``vlm.*`` and ``expert.*``."""

    def __init__(self, config: Spear1Config) -> None:
        """Build and initialise; under ``torch.device('meta')`` nothing is initialised."""
        super().__init__()
        self.config = config
        self.vlm = SpearVlm(config)
        self.expert = ActionExpert(config.expert, config.language)

    def initialize(self) -> None:
        """Initialise every parameter for training from scratch (after ``to_empty``)."""
        self.vlm.initialize()
        self.expert.initialize()

    def bake(self) -> None:
        """Keep the positional tables of both cameras' grids, rounded once to the weights' dtype.

        For inference. ``train()`` and loading weights undo it; weights changed in place by other
        means need a new call.
        """
        patch = self.config.siglip.patch
        grids = [
            (h // patch, w // patch) for h, w in (self.config.external_size, self.config.wrist_size)
        ]
        for encoder in (self.vlm.siglip, self.vlm.moge):
            encoder.position.unbake()
            encoder.position.bake(grids, encoder.patch.weight.dtype)

    def forward(
        self, inputs: PrefixInputs, proprio: Tensor, actions_BHA: Tensor, tau_B: Tensor
    ) -> Tensor:
        """Joint pass: velocities (B, H, A), float32, for noisy actions at flow times ``tau_B``.

        ``proprio`` is (B, proprio_dim). The last language layer gives keys and values only, so its
        q, output and MLP weights and the final language norm get no gradient here.
        """
        x_BPD, valid_BP = self.vlm.embed_prefix(inputs)
        proprio_B1D = self.expert.embed_proprio(proprio)
        time_B1D = self.expert.embed_time(tau_B)
        s_BSD = torch.cat([proprio_B1D, self.expert.embed_actions(actions_BHA, time_B1D)], dim=1)
        mask = block_mask(x_BPD, s_BSD.shape[1], valid_BP)
        positions = joint_positions(x_BPD, s_BSD.shape[1], valid_BP)
        prefix = x_BPD.shape[1]
        factors = (
            self.vlm.language.rotary(positions[:, :prefix]),
            self.vlm.language.rotary(positions[:, prefix:]),
        )
        pairs = list(zip(self.vlm.language.blocks, self.expert.blocks, strict=True))
        for language_block, expert_block in pairs[:-1]:
            x_BPD, s_BSD = joint_layer(
                (language_block, expert_block), (x_BPD, s_BSD), factors, mask
            )
        s_BSD = last_joint_layer(pairs[-1], (x_BPD, s_BSD), factors, mask[:, :, prefix:])
        return self.expert.velocity(s_BSD[:, 1:])

    def make_cache(self, batch: int, prefix: int, padded: bool) -> ChunkCache:
        """Allocate buffers for a batch, a prefix length and whether masks are used."""
        config = self.config.language
        weight = self.vlm.language.norm.weight
        total = prefix + self.config.suffix_tokens
        shape = (config.layers, 2, batch, config.kv_heads, total, config.head_dim)
        rows = (batch if padded else 1, self.config.flow.horizon, 1)
        key_mask = None
        if padded:
            key_mask = torch.ones(batch, 1, 1, total, dtype=torch.bool, device=weight.device)
        return ChunkCache(
            kv=weight.new_zeros(shape),
            key_mask=key_mask,
            cos=weight.new_zeros((*rows, 1, config.head_dim // 2), dtype=torch.float32),
            sin=weight.new_zeros((*rows, 2, config.head_dim // 2), dtype=torch.float32),
            prefix=prefix,
        )

    def prefill(
        self, inputs: PrefixInputs, proprio: Tensor, cache: ChunkCache | None = None
    ) -> ChunkCache:
        """Compute keys and values of prefix and proprioception into ``cache`` (or a new one)."""
        x_BPD, valid_BP = self.vlm.embed_prefix(inputs)
        batch, prefix, _ = x_BPD.shape
        if cache is None:
            cache = self.make_cache(batch, prefix, padded=valid_BP is not None)
        assert cache.prefix == prefix, f'cache made for {cache.prefix} prefix tokens, got {prefix}'
        assert (cache.key_mask is None) == (valid_BP is None), 'cache and inputs differ in masks'
        if cache.key_mask is not None and valid_BP is not None:
            cache.key_mask[..., :prefix] = valid_BP[:, None, None]
        positions = joint_positions(x_BPD, self.config.suffix_tokens, valid_BP)
        rotary = self.vlm.language.rotary
        cos, sin = rotary(positions[:, prefix + 1 :])
        cache.cos.copy_(cos)
        cache.sin.copy_(sin)
        self._prefill_language(x_BPD, rotary(positions[:, :prefix]), cache)
        self._prefill_proprio(proprio, rotary(positions[:, prefix : prefix + 1]), cache)
        return cache

    def denoise_step(self, actions_BHA: Tensor, time_B1D: Tensor, cache: ChunkCache) -> Tensor:
        """Velocities (B, H, A), float32, of noisy actions on top of a prefilled cache.

        ``time_B1D`` comes from ``expert.embed_time``; (1, 1, D) serves the whole batch. Overwrites
        the cache's action slots, leaves the rest.
        """
        x_BHD = self.expert.embed_actions(actions_BHA, time_B1D)
        first = cache.prefix + 1
        for i, block in enumerate(self.expert.blocks):
            q, k, v = block.project(x_BHD, (cache.cos, cache.sin))
            cache.kv[i, 0, :, :, first:] = k
            cache.kv[i, 1, :, :, first:] = v
            y = attend(q, cache.kv[i, 0], cache.kv[i, 1], cache.key_mask)
            x_BHD = block.finish(x_BHD, y)
        return self.expert.velocity(x_BHD)

    def time_table(self, steps: int | None = None) -> Tensor:
        """Time embeddings of all Euler steps (steps, 1, D): constants of a trained model."""
        times = flow_matching.euler_times(self.config.flow.steps if steps is None else steps)
        tau = torch.tensor(times[:-1], dtype=torch.float64)
        return self.expert.embed_time(tau.to(self.expert.norm.weight.device))

    @torch.no_grad()
    def sample(
        self,
        inputs: PrefixInputs,
        proprio: Tensor,
        noise_BHA: Tensor,
        committed: tuple[Tensor, Tensor] | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Compute a chunk (B, H, A) in model units from noise; see ``flow_matching.integrate``.

        The reference for every faster engine: prefill, then eager Euler steps.
        """
        cache = self.prefill(inputs, proprio)
        table = self.time_table(steps)
        return flow_matching.integrate(
            lambda actions, i: self.denoise_step(actions, table[i : i + 1], cache),
            noise_BHA,
            self.config.flow,
            committed,
            steps,
        )

    def _prefill_language(self, x_BPD: Tensor, factors: Rotary, cache: ChunkCache) -> None:
        prefix = cache.prefix
        mask = None if cache.key_mask is None else cache.key_mask[..., :prefix]
        blocks = self.vlm.language.blocks
        for i, block in enumerate(blocks):
            if i == len(blocks) - 1:
                k, v = block.project_kv(x_BPD, factors)
            else:
                q, k, v = block.project(x_BPD, factors)
                x_BPD = block.finish(x_BPD, attend(q, k, v, mask))
            cache.kv[i, 0, :, :, :prefix] = k
            cache.kv[i, 1, :, :, :prefix] = v

    def _prefill_proprio(self, proprio: Tensor, factors: Rotary, cache: ChunkCache) -> None:
        end = cache.prefix + 1
        mask = None if cache.key_mask is None else cache.key_mask[..., :end]
        x_B1D = self.expert.embed_proprio(proprio)
        blocks = self.expert.blocks
        for i, block in enumerate(blocks):
            last = i == len(blocks) - 1
            if last:
                k, v = block.project_kv(x_B1D, factors)
            else:
                q, k, v = block.project(x_B1D, factors)
            cache.kv[i, 0, :, :, end - 1 : end] = k
            cache.kv[i, 1, :, :, end - 1 : end] = v
            if not last:
                y = attend(q, cache.kv[i, 0, :, :, :end], cache.kv[i, 1, :, :, :end], mask)
                x_B1D = block.finish(x_B1D, y)


def joint_layer(
    blocks: tuple[GemmaBlock, GemmaBlock],
    tokens: tuple[Tensor, Tensor],
    factors: tuple[Rotary, Rotary],
    mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """One layer of both stacks with one attention over all tokens; prefix first in each pair.

    A function of tensors and one layer, so that activation checkpointing can wrap it.
    """
    (xq, xk, xv), (sq, sk, sv) = (
        block.project(x, f) for block, x, f in zip(blocks, tokens, factors, strict=True)
    )
    y_BTE = attend(torch.cat([xq, sq], 1), torch.cat([xk, sk], 2), torch.cat([xv, sv], 2), mask)
    prefix = tokens[0].shape[1]
    return blocks[0].finish(tokens[0], y_BTE[:, :prefix]), blocks[1].finish(
        tokens[1], y_BTE[:, prefix:]
    )


def last_joint_layer(
    blocks: tuple[GemmaBlock, GemmaBlock],
    tokens: tuple[Tensor, Tensor],
    factors: tuple[Rotary, Rotary],
    mask: Tensor,
) -> Tensor:
    """The last layer: the prefix gives keys and values, only the suffix goes on."""
    xk, xv = blocks[0].project_kv(tokens[0], factors[0])
    q, sk, sv = blocks[1].project(tokens[1], factors[1])
    return blocks[1].finish(
        tokens[1], attend(q, torch.cat([xk, sk], 2), torch.cat([xv, sv], 2), mask)
    )


def block_mask(x_BPD: Tensor, suffix: int, valid_BP: Tensor | None) -> Tensor:
    """Block-wise causal mask (B or 1, 1, T, T), True = may look; padding is looked at by nobody."""
    prefix = x_BPD.shape[1]
    index = torch.arange(prefix + suffix, device=x_BPD.device)
    block_of = (index >= prefix).long() + (index > prefix).long()
    allowed = (block_of[None, :] <= block_of[:, None])[None, None]
    if valid_BP is None:
        return allowed
    keys = torch.nn.functional.pad(valid_BP, (0, suffix), value=True)
    return allowed & keys[:, None, None]


def joint_positions(x_BPD: Tensor, suffix: int, valid_BP: Tensor | None) -> Tensor:
    """Rotary positions (B or 1, T): the suffix goes on after the last valid prefix token."""
    positions = prefix_positions(x_BPD, valid_BP)
    index = torch.arange(1, suffix + 1, device=x_BPD.device)
    return torch.cat([positions, positions[:, -1:] + index], dim=1)
