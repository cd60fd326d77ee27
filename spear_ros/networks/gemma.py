"""Gemma blocks: RMSNorm, rotary positions, attention with few K/V heads, gated MLP.

The same block serves the language stack and the action expert: a joint layer takes queries, keys
and values from both and attends once. Storage is fused, rows ordered [q heads | k heads | v heads]
and [gate | up], so that inference needs no repacking.

Shapes: B batch, S query tokens, T key tokens, N query heads, G key/value heads, K head dim,
D model width.
"""

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spear_ros.networks.config import GemmaConfig

Rotary = tuple[Tensor, Tensor]
"""cos (B|1, S, 1, 1, K/2) and signed sin (B|1, S, 1, 2, K/2), float32."""


class RmsNorm(nn.Module):
    """x / rms(x) * (1 + w) in float32, cast to x's dtype at the end (Gemma's convention)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) in and out."""
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * (1.0 + self.weight.float())).to(x.dtype)


def rotary(positions_BS: Tensor, head_dim: int, theta: float) -> Rotary:
    """Rotary factors of integer positions (B, S); positions shared by the batch are (1, S)."""
    half = head_dim // 2
    index = torch.arange(half, dtype=torch.float32, device=positions_BS.device)
    frequency = torch.exp(index * (-2.0 / head_dim * math.log(theta)))
    angle = (positions_BS.float()[..., None] * frequency)[:, :, None, None]
    sin = angle.sin()
    return angle.cos(), torch.cat([-sin, sin], dim=-2)


def rotate(x_BSNK: Tensor, factors: Rotary) -> Tensor:
    """Apply rotary positions (first half with second half) in float32, cast back."""
    cos, sin = factors
    halves = x_BSNK.float().unflatten(-1, (2, -1))
    return (halves * cos + halves.flip(-2) * sin).flatten(-2).to(x_BSNK.dtype)


def attend(q_BSNK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of all heads; returns (B, S, N * K).

    ``mask`` is None or boolean, True = may look, broadcastable to (B, 1, S, T). Where it has one
    query row (or is None) the N / G heads that share a K/V head are folded into the query rows:
    one matrix product per K/V head, K and V are read once and never repeated.
    """
    batch, queries, heads, dim = q_BSNK.shape
    groups = k_BGTK.shape[1]
    if mask is None or mask.shape[-2] == 1:
        q = q_BSNK.reshape(batch, queries, groups, heads // groups, dim).transpose(1, 2)
        q = q.reshape(batch, groups, queries * (heads // groups), dim)
        y = F.scaled_dot_product_attention(q, k_BGTK, v_BGTK, attn_mask=mask)
        y = y.view(batch, groups, queries, heads // groups, dim).transpose(1, 2)
        return y.reshape(batch, queries, heads * dim)
    keys = k_BGTK.shape[2]
    shape = (batch, groups, heads // groups, keys, dim)
    k_BNTK = k_BGTK[:, :, None].expand(shape).flatten(1, 2)
    v_BNTK = v_BGTK[:, :, None].expand(shape).flatten(1, 2)
    y = F.scaled_dot_product_attention(q_BSNK.transpose(1, 2), k_BNTK, v_BNTK, attn_mask=mask)
    return y.transpose(1, 2).reshape(batch, queries, heads * dim)


class GemmaAttention(nn.Module):
    """Fused projections of one block; the attention itself is :func:`attend`."""

    def __init__(self, width: int, config: GemmaConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = config.heads, config.kv_heads, config.head_dim
        rows = (config.heads + 2 * config.kv_heads) * config.head_dim
        self.qkv = nn.Linear(width, rows, bias=False)
        self.out = nn.Linear(config.heads * config.head_dim, width, bias=False)

    def project(self, x_BSD: Tensor, factors: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated q (B, S, N, K), rotated k and plain v (B, G, S, K)."""
        y = self.qkv(x_BSD).unflatten(-1, (-1, self.dim))
        qk = rotate(y[:, :, : self.heads + self.kv_heads], factors)
        v_BSGK = y[:, :, self.heads + self.kv_heads :]
        return (
            qk[:, :, : self.heads],
            qk[:, :, self.heads :].transpose(1, 2),
            v_BSGK.transpose(1, 2),
        )

    def project_kv(self, x_BSD: Tensor, factors: Rotary) -> tuple[Tensor, Tensor]:
        """Return rotated k and plain v (B, G, S, K) only: all that the last prefix layer owes."""
        y = F.linear(x_BSD, self.qkv.weight[self.heads * self.dim :]).unflatten(-1, (-1, self.dim))
        k_BSGK = rotate(y[:, :, : self.kv_heads], factors)
        return k_BSGK.transpose(1, 2), y[:, :, self.kv_heads :].transpose(1, 2)


class GemmaMlp(nn.Module):
    """down(gelu_tanh(gate x) * up x)."""

    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * mlp_width, bias=False)
        self.down = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) in and out."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.gelu(gate, approximate='tanh') * up)


class GemmaBlock(nn.Module):
    """Pre-norm block, split where a joint layer has to meet the other stack."""

    def __init__(self, width: int, mlp_width: int, config: GemmaConfig) -> None:
        """``config`` gives heads and head dim; the widths are the stack's own."""
        super().__init__()
        self.norm1 = RmsNorm(width, config.norm_eps)
        self.attention = GemmaAttention(width, config)
        self.norm2 = RmsNorm(width, config.norm_eps)
        self.mlp = GemmaMlp(width, mlp_width)

    def project(self, x_BSD: Tensor, factors: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Norm and project: q (B, S, N, K), k and v (B, G, S, K)."""
        return self.attention.project(self.norm1(x_BSD), factors)

    def project_kv(self, x_BSD: Tensor, factors: Rotary) -> tuple[Tensor, Tensor]:
        """Norm and project k and v (B, G, S, K) only."""
        return self.attention.project_kv(self.norm1(x_BSD), factors)

    def finish(self, x_BSD: Tensor, y_BSE: Tensor) -> Tensor:
        """Add the projected attention output ``y`` (B, S, N * K) and the MLP."""
        x_BSD = x_BSD + self.attention.out(y_BSE)
        return x_BSD + self.mlp(self.norm2(x_BSD))


class GemmaBlocks(nn.ModuleList):
    """The blocks of one stack, typed."""

    def __init__(self, width: int, mlp_width: int, config: GemmaConfig) -> None:
        super().__init__(GemmaBlock(width, mlp_width, config) for _ in range(config.layers))

    def __iter__(self) -> Iterator[GemmaBlock]:
        return cast(Iterator[GemmaBlock], super().__iter__())


class GemmaModel(nn.Module):
    """Embedding, blocks, final norm; the LM head is tied to the embedding."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = GemmaBlocks(config.width, config.mlp_width, config)
        self.norm = RmsNorm(config.width, config.norm_eps)
        if not self.norm.weight.is_meta:
            self.initialize()

    def embed(self, tokens_BL: Tensor) -> Tensor:
        """Embed token ids, times sqrt(D).

        The factor is rounded to the weights' dtype before it multiplies (45.25 instead of 45.2548
        in bfloat16), as the published weights were trained and as transformers does.
        """
        x_BLD = self.embedding(tokens_BL)
        factor = torch.full((), math.sqrt(x_BLD.shape[-1]), dtype=x_BLD.dtype, device=x_BLD.device)
        return x_BLD * factor

    def rotary(self, positions_BS: Tensor) -> Rotary:
        """Rotary factors for positions (B, S)."""
        return rotary(positions_BS, self.config.head_dim, self.config.rope_theta)

    def forward(self, x_BSD: Tensor, mask: Tensor | None, positions_BS: Tensor) -> Tensor:
        """Run embedded tokens through all blocks and the final norm: (B, S, D)."""
        factors = self.rotary(positions_BS)
        for block in self.blocks:
            q, k, v = block.project(x_BSD, factors)
            x_BSD = block.finish(x_BSD, attend(q, k, v, mask))
        return self.norm(x_BSD)

    def logits(self, x_BSD: Tensor) -> Tensor:
        """Scores of all tokens from normed features, with the tied embedding: (B, S, vocab)."""
        return F.linear(x_BSD, self.embedding.weight)

    @torch.no_grad()
    def initialize(self) -> None:
        """Initialise for training from scratch; scaled embeddings then have unit variance."""
        nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(self.config.width))
        initialize_blocks(self.blocks)
        nn.init.zeros_(self.norm.weight)


@torch.no_grad()
def initialize_blocks(blocks: nn.ModuleList) -> None:
    """Variance-keeping linear maps; outputs of residual branches scaled by 1 / sqrt(2 L)."""
    for name, child in blocks.named_modules():
        if isinstance(child, nn.Linear):
            std = 1 / math.sqrt(child.in_features)
            if name.endswith(('attention.out', 'mlp.down')):
                std /= math.sqrt(2 * len(blocks))
            nn.init.normal_(child.weight, std=std)
        elif isinstance(child, RmsNorm):
            nn.init.zeros_(child.weight)
