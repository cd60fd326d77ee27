"""The weights of a loaded SPEAR-1 in the form that inference streams through, made once.

What is folded, so that no call computes it again:

- the pixel normalisation of both encoders into their patch maps (both read pixel - 0.5);
- patch bias and class token into the positional tables, DINOv2's LayerScale into the two output
  maps of its blocks;
- SigLIP's final norm and MoGe's, both projectors and the mean of the two into ONE map over
  concatenated features;
- (1 + w) of every RMS norm into the map behind it: x / sqrt(mean x^2 + eps) is left;
- action embedding and the action half of the time mixer into one (D, 8) map, the other half into a
  table with a row per Euler step.

Products are formed in float32 and rounded once to the type that the weight is kept in.

Shapes: D width, W encoder width, N rows of a map, K columns, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from spear_ros.networks.action_expert import ActionExpert
from spear_ros.networks.config import Spear1Config
from spear_ros.networks.gemma import GemmaBlocks, RmsNorm
from spear_ros.networks.moge import IMAGENET_MEAN, IMAGENET_STD, MogeEncoder
from spear_ros.networks.siglip import SiglipEncoder
from spear_ros.networks.spear1 import Spear1
from spear_ros.networks.vit import PatchEmbedding, VitBlock

PIXEL_CENTRE = 0.5
"""Subtracted from pixels in [0, 1] before they are rounded to the compute type."""


class Dense(NamedTuple):
    """A map y = x W' + b."""

    weight: Tensor
    """(N, K)."""
    bias: Tensor | None
    """(N,)."""


class Affine(NamedTuple):
    """Weight and bias of a layer norm, (W,), and its epsilon."""

    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True, kw_only=True, slots=True)
class VitLayer:
    """One block of an image encoder."""

    norm1: Affine
    qkv: Dense
    out: Dense
    norm2: Affine
    up: Dense
    down: Dense


@dataclass(frozen=True, kw_only=True, slots=True)
class VitWeights:
    """One image encoder without its final norm."""

    patch: Tensor
    """(W, 3 * 14 * 14), channels first."""
    start: tuple[Tensor, ...]
    """Per image size what is added to the patches' rows (tokens, W): position, bias, and in MoGe
    the class token, which is the first row."""
    layers: tuple[VitLayer, ...]
    heads: int
    gelu: Literal['tanh', 'none']
    eps: float
    """Of the final norm."""
    classes: int
    """Rows per image that are no patches: 1 in MoGe, 0 in SigLIP."""


class GemmaLayer(NamedTuple):
    """One block of the language stack or of the expert, norms folded away, no biases."""

    qkv: Dense
    """Rows [q heads | k heads | v heads]; in the last language layer [k heads | v heads], and
    nothing else is in there."""
    out: Dense
    gate_up: Dense
    """Rows [gate | up]."""
    down: Dense


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertWeights:
    """The action expert; kept in the compute type."""

    layers: tuple[GemmaLayer, ...]
    proprio_in: Dense
    action_in: Tensor
    """(D, 8)."""
    times: Tensor
    """(steps, D): what the flow time adds to the embedded actions."""
    time_out: Dense
    head: Dense
    """(8, D), final norm folded in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedWeights:
    """Everything a chunk reads."""

    config: Spear1Config
    steps: int
    compute: torch.dtype
    """Type of activations, biases, tables and the expert. The other maps may be narrower."""
    siglip: VitWeights
    moge: VitWeights
    projector: Dense
    """(D, W_siglip + layers * W_moge)."""
    embedding: Tensor
    """(vocabulary, D)."""
    embedding_scale: float
    """sqrt(D), rounded as the published weights expect it."""
    language: tuple[GemmaLayer, ...]
    expert: ExpertWeights

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device


@dataclass(frozen=True, kw_only=True, slots=True)
class FuseOptions:
    """How to fuse."""

    compute: torch.dtype
    steps: int
    adjacent_pairs: bool
    """Reorder the head dims of q and k so that the two of a rotary pair stand side by side (one
    complex product rotates them); otherwise they stay half a head apart."""
    consume: bool = False
    """Empty the model's parameters as they are folded, so that no second copy is held. The model
    cannot be used afterwards."""


@torch.no_grad()
def fuse(model: Spear1, options: FuseOptions) -> FusedWeights:
    """Make the fused form of a loaded model; weights that need no folding are shared with it."""
    config = model.config
    language = model.vlm.language
    folder = _Folder(config, options)
    scale = torch.tensor(config.language.width**0.5, dtype=language.embedding.weight.dtype)
    return FusedWeights(
        config=config,
        steps=options.steps,
        compute=options.compute,
        siglip=folder.siglip(model.vlm.siglip),
        moge=folder.moge(model.vlm.moge),
        projector=folder.projector(model),
        embedding=language.embedding.weight.detach(),
        embedding_scale=float(scale),
        language=folder.gemma(language.blocks, None, only_kv_last=True),
        expert=folder.expert(model.expert),
    )


class _Folder:
    """The folding of each part; see :func:`fuse`."""

    def __init__(self, config: Spear1Config, options: FuseOptions) -> None:
        self.config, self.options = config, options
        patch = config.siglip.patch
        self.grids = [
            (h // patch, w // patch) for h, w in (config.external_size, config.wrist_size)
        ]

    def siglip(self, encoder: SiglipEncoder) -> VitWeights:
        """SigLIP, without its final norm."""
        tables = [encoder.position.interpolate(*grid) for grid in self.grids]
        # 2 x - 1 with x = p + 1/2 is 2 p.
        patch, bias = _fold_pixels(encoder.patch, [2.0] * 3, [0.0] * 3)
        return VitWeights(
            patch=self._computed(patch),
            start=tuple(self._computed(t + bias) for t in tables),
            layers=tuple(self._vit_layer(b) for b in encoder.blocks),  # type: ignore[arg-type]
            heads=self.config.siglip.heads,
            gelu='tanh',
            eps=encoder.norm.eps,
            classes=0,
        )

    def moge(self, encoder: MogeEncoder) -> VitWeights:
        """MoGe's DINOv2, LayerScale in its output maps, without its final norm."""
        tables = [encoder.position.interpolate(*grid) for grid in self.grids]
        offsets = [(PIXEL_CENTRE - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
        patch, bias = _fold_pixels(encoder.patch, [1 / s for s in IMAGENET_STD], offsets)
        first = encoder.cls_token.float()[None]
        return VitWeights(
            patch=self._computed(patch),
            start=tuple(self._computed(torch.cat([t[:1] + first, t[1:] + bias])) for t in tables),
            layers=tuple(self._vit_layer(b) for b in encoder.blocks),  # type: ignore[arg-type]
            heads=self.config.moge.heads,
            gelu='none',
            eps=encoder.norm.eps,
            classes=1,
        )

    def projector(self, model: Spear1) -> Dense:
        """Both final norms, both projectors and their mean: one map over all features."""
        vlm, layers = model.vlm, self.config.moge_layers
        weights, biases = [], []
        for projector, norm, times in (
            (vlm.siglip_projector, vlm.siglip.norm, 1),
            (vlm.moge_projector, vlm.moge.norm if self.config.moge_norm else None, layers),
        ):
            weight, bias = projector.weight.float(), projector.bias.float()
            if norm is not None:
                bias = bias + weight @ norm.bias.float().repeat(times)
                weight = weight * norm.weight.float().repeat(times)
            weights.append(0.5 * weight)
            biases.append(0.5 * bias)
        weight = self._stored(torch.cat(weights, dim=1), vlm.siglip_projector.weight)
        return Dense(weight, self._computed(biases[0] + biases[1]))

    def gemma(
        self, blocks: GemmaBlocks, kept: torch.dtype | None, only_kv_last: bool
    ) -> tuple[GemmaLayer, ...]:
        """Blocks of the language stack or of the expert, kept in ``kept`` or in their own type."""
        layers = []
        for i, block in enumerate(blocks):
            attention, mlp = block.attention, block.mlp
            dtype = kept or attention.qkv.weight.dtype
            qkv = _fold_rms(block.norm1, attention.qkv.weight)
            if self.options.adjacent_pairs:
                qkv = _pair_up(qkv, attention.heads + attention.kv_heads, attention.dim)
            if only_kv_last and i == len(blocks) - 1:
                qkv = qkv[attention.heads * attention.dim :].clone()
                rest = [Dense(attention.out.weight.new_empty(0), None)] * 3
            else:
                gate_up = _fold_rms(block.norm2, mlp.gate_up.weight)
                rest = [
                    Dense(self._take(attention.out.weight, dtype), None),
                    Dense(self._take(gate_up, dtype), None),
                    Dense(self._take(mlp.down.weight, dtype), None),
                ]
            layers.append(GemmaLayer(Dense(self._take(qkv, dtype), None), *rest))
            self._release(attention.qkv.weight, attention.out.weight)
            self._release(mlp.gate_up.weight, mlp.down.weight)
        return tuple(layers)

    def expert(self, expert: ActionExpert) -> ExpertWeights:
        """The action expert, with a row of the time mixer per Euler step."""
        compute = self.options.compute
        width = self.config.expert.width
        mix = expert.time_mix_in.weight.float()[:, :width]
        tau = torch.arange(self.options.steps, dtype=torch.float64) / self.options.steps
        times = expert.embed_time(tau.to(mix.device))[:, 0].float()
        times = times + mix @ expert.action_in.bias.float()
        head = _fold_rms(expert.norm, expert.action_out.weight)
        return ExpertWeights(
            layers=self.gemma(expert.blocks, compute, only_kv_last=False),
            proprio_in=self._dense(expert.proprio_in),
            action_in=(mix @ expert.action_in.weight.float()).to(compute),
            times=times.to(compute),
            time_out=self._dense(expert.time_mix_out),
            head=Dense(head.to(compute), expert.action_out.bias.detach().to(compute)),
        )

    def _vit_layer(self, block: VitBlock) -> VitLayer:
        out, down = block.attention.out, block.mlp.fc2
        maps = []
        for layer, scale in ((out, block.scale1), (down, block.scale2)):
            weight, bias = layer.weight.detach(), layer.bias.float()
            if scale is not None:
                weight = self._take(weight.float() * scale.float()[:, None], weight.dtype)
                bias = bias * scale.float()
                self._release(layer.weight)
            maps.append(Dense(weight, self._computed(bias)))
        return VitLayer(
            norm1=self._affine(block.norm1),
            qkv=self._shared(block.attention.qkv),
            out=maps[0],
            norm2=self._affine(block.norm2),
            up=self._shared(block.mlp.fc1),
            down=maps[1],
        )

    def _affine(self, norm: nn.LayerNorm) -> Affine:
        return Affine(self._computed(norm.weight), self._computed(norm.bias), norm.eps)

    def _shared(self, layer: nn.Linear) -> Dense:
        return Dense(layer.weight.detach(), self._computed(layer.bias))

    def _dense(self, layer: nn.Linear) -> Dense:
        return Dense(self._computed(layer.weight), self._computed(layer.bias))

    def _computed(self, x: Tensor) -> Tensor:
        return x.detach().to(self.options.compute)

    @staticmethod
    def _stored(x: Tensor, like: Tensor) -> Tensor:
        return x.detach().to(like.dtype).contiguous()

    @staticmethod
    def _take(x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.detach().to(dtype).contiguous()

    def _release(self, *sources: Tensor) -> None:
        if self.options.consume:
            for source in sources:
                source.data = source.data.new_empty(0)


def _fold_pixels(
    patch: PatchEmbedding, factors: Sequence[float], offsets: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Fold x_c = factor_c p_c + offset_c into a patch map: (W, 3 * side * side) and bias (W,)."""
    weight = patch.weight.float()
    factor = torch.tensor(factors, device=weight.device).view(1, 3, 1, 1)
    offset = torch.tensor(offsets, device=weight.device).view(1, 3, 1, 1)
    bias = patch.bias.float() + (weight * offset).sum((1, 2, 3))
    return (weight * factor).flatten(1), bias


def _fold_rms(norm: RmsNorm, weight: Tensor) -> Tensor:
    """Fold 1 + w into the columns of the map behind a norm, float32.

    Not sqrt(D) too: unless it is a power of two, every weight would be rounded once more, which
    costs half of bfloat16's accuracy again.
    """
    return weight.float() * (1 + norm.weight.float())


def _pair_up(weight: Tensor, heads: int, dim: int) -> Tensor:
    """Rows of the first ``heads`` heads: (i, i + dim / 2) become neighbours (2 i, 2 i + 1)."""
    turned, rest = weight[: heads * dim], weight[heads * dim :]
    turned = turned.view(heads, 2, dim // 2, -1).transpose(1, 2).reshape(heads * dim, -1)
    return torch.cat([turned, rest])
