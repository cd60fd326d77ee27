"""The operations that a fused chunk is made of, in plain torch: any device, any type.

:class:`TorchOps` is the fall-back and the reference of the kernels in ``triton_ops.py``, which
replace single methods of it. Which of the two a network uses is decided once, by
:func:`choose_ops`.

Nothing in here reads a value back to the host or branches on one. Batch is 1 throughout.

Shapes: M tokens of this call, T rows of the cache, D width, N query heads, G key/value heads,
K head dim, H horizon.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from spear_ros.inference.fused_weights import (
    Affine,
    Dense,
    ExpertWeights,
    FusedWeights,
    GemmaLayer,
)
from spear_ros.networks import flow_matching
from spear_ros.networks.config import FlowConfig
from spear_ros.networks.gemma import rotary

# Rows of a narrow weight that are widened at a time on a CPU: the piece stays in the cache.
BLOCK_ROWS = 1024

# x sigmoid(line x + cube x^3) is gelu by tanh: 2 sqrt(2 / pi) and 0.044715 of it.
GELU_LINE = 2 * (2 / math.pi) ** 0.5
GELU_CUBE = 0.044715 * GELU_LINE
FEW_ELEMENTS = 1 << 14


@dataclass(frozen=True, kw_only=True, slots=True)
class SuffixKeys:
    """What the suffix looks at, one layer."""

    kv: Tensor
    """(T, 2 G K) cache rows [k | v] of this layer."""
    first: int
    """Row of the first token of this call; it and the following are written."""
    bias: Tensor
    """(T,) float32, minus infinity where nobody looks."""
    mask: Tensor
    """The same for torch's attention, (1, 1, 1, T), or (1, 1, M R, T) with R = N / G while
    proprioception is a token."""
    causal: bool
    """The first token is proprioception: it must not look at the others."""


class TorchOps:
    """See the module's docstring."""

    adjacent_pairs = True
    """Rotary pairs stand side by side (see ``FuseOptions``): one complex product turns them."""

    def __init__(self, weights: FusedWeights) -> None:
        self.config = weights.config.language
        self.compute, self.device = weights.compute, weights.device
        # Constants on the device, made once: a call must not copy from the host.
        widths = (weights.config.language.width, weights.config.expert.width)
        self._floors = {
            d: torch.full((), (d * self.config.norm_eps) ** 0.5, device=self.device) for d in widths
        }
        self._scratch: Tensor | None = None

    # ------------------------------------------------------------------------------ shared parts

    def rotary_table(self, rows: int) -> Tensor:
        """Rotary factors of positions 0 .. rows - 1, (rows, K / 2) complex."""
        cos, sin = self._angles(rows)
        return torch.complex(cos, sin)

    def linear(self, x: Tensor, dense: Dense) -> Tensor:
        """(M, K) -> (M, N)."""
        if dense.weight.dtype == x.dtype:
            return F.linear(x, dense.weight, dense.bias)
        return self._linear_in_blocks(x, dense)

    def layer_norm(self, x: Tensor, eps: float) -> Tensor:
        """Layer norm without weight and bias."""
        return F.layer_norm(x, x.shape[-1:], eps=eps)

    def add_layer_norm(self, x: Tensor, y: Tensor | None, norm: Affine) -> Tensor:
        """Add ``y`` to ``x`` in place; return the norm of the sum."""
        if y is not None:
            x.add_(y)
        return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)

    def add_rms_norm(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Add ``y`` to ``x`` in place; return the sum over sqrt(sum of squares + D eps).

        The missing factor 1 + w is in the map behind the norm.
        """
        if y is not None:
            x.add_(y)
        return self._rms(x).to(self.compute)

    def gelu(self, x: Tensor, approximate: str) -> Tensor:
        """Activation of the image encoders."""
        return _gelu_tanh(x) if approximate == 'tanh' else F.gelu(x)

    def geglu(self, gate_up: Tensor) -> Tensor:
        """(M, 2 F) rows [gate | up] -> gelu(gate) up, (M, F)."""
        gate, up = gate_up.chunk(2, dim=-1)
        return _gelu_tanh(gate).mul_(up)

    def rotate_and_store(self, qkv: Tensor, factors: Tensor, kv_rows: Tensor) -> Tensor:
        """Turn q and k by their positions, write [k | v] to the cache, return q (M, N, K).

        Args:
            qkv: (M, (N + 2 G) K), or without the N query heads.
            factors: rows of :meth:`rotary_table`, (M, K / 2).
            kv_rows: (M, 2 G K) rows of the cache.
        """
        dim, groups = self.config.head_dim, self.config.kv_heads
        turned = qkv.shape[1] - groups * dim
        pairs = qkv[:, :turned].unflatten(1, (-1, dim // 2, 2))
        if qkv.dtype == torch.float32:
            torch.view_as_complex(pairs).mul_(factors[:, None])
        else:
            wide = torch.view_as_complex(pairs.float()) * factors[:, None]
            pairs.copy_(torch.view_as_real(wide))
        kv_rows.copy_(qkv[:, qkv.shape[1] - 2 * groups * dim :])
        heads = turned // dim - groups
        return qkv[:, : heads * dim].unflatten(1, (heads, dim))

    def attend(self, q: Tensor, kv: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of (M, N, K) over cache rows (T, 2 G K); (M, N K).

        The R = N / G heads that share a key are folded into the query rows: K and V are read once
        and never repeated.
        """
        tokens, heads, dim = q.shape
        groups = self.config.kv_heads
        q = q.view(tokens, groups, heads // groups, dim).transpose(0, 1)
        k, v = kv.unflatten(1, (2, groups, dim)).unbind(1)
        y = F.scaled_dot_product_attention(
            q.reshape(1, groups, -1, dim), k.transpose(0, 1)[None], v.transpose(0, 1)[None], mask
        )
        y = y.view(groups, tokens, heads // groups, dim).transpose(0, 1)
        return y.reshape(tokens, heads * dim)

    # ---------------------------------------------------------------------------- the expert

    def embed_actions(self, actions: Tensor, step: int, expert: ExpertWeights) -> Tensor:
        """Actions (H, 8) float32 at step ``step`` as tokens (H, D)."""
        mixed = F.linear(actions.to(self.compute), expert.action_in, expert.times[step])
        return self.linear(F.silu(mixed), expert.time_out)

    def expert_layer(
        self, x: Tensor, layer: GemmaLayer, factors: Tensor, keys: SuffixKeys
    ) -> Tensor:
        """One block of the expert: tokens (M, D) in and out; ``x`` is overwritten."""
        qkv = self.linear(self.add_rms_norm(x, None), layer.qkv)
        rows = keys.kv[keys.first : keys.first + len(x)]
        q = self.rotate_and_store(qkv, factors, rows)
        y = self.attend(q, keys.kv, keys.mask)
        x.addmm_(y, layer.out.weight.T)
        h = self.geglu(self.linear(self.add_rms_norm(x, None), layer.gate_up))
        return x.addmm_(h, layer.down.weight.T)

    def head(self, x: Tensor, head: Dense) -> Tensor:
        """Final norm and velocity head: (H, D) -> (H, 8) float32."""
        return F.linear(self.add_rms_norm(x, None), head.weight, head.bias).float()

    def euler(
        self, actions: Tensor, velocity: Tensor, step: float, owed: tuple[Tensor, Tensor],
        flow: FlowConfig,
    ) -> Tensor:  # fmt: skip
        """One step of the flow (H, 8); committed actions are put on their path.

        Args:
            actions: (H, 8) float32.
            velocity: (H, 8) float32.
            step: of flow time.
            owed: the committed actions' points at the end of the step (H, 8), and where they
                count, (H, 1) bool.
            flow: what the rotation follows.
        """
        moved = flow_matching.flow_step(actions, velocity, step, flow)
        return torch.where(owed[1], owed[0], moved)

    # ------------------------------------------------------------------------------- internals

    def _angles(self, rows: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(rows, device=self.device)[None]
        cos, sin = rotary(positions, self.config.head_dim, self.config.rope_theta)
        return cos[0, :, 0, 0].contiguous(), sin[0, :, 0, 1].contiguous()

    def _rms(self, x: Tensor) -> Tensor:
        wide = x.float()
        # hypot adds the epsilon inside the root: four operations instead of six.
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        root_d = x.shape[-1] ** 0.5
        return wide / (torch.hypot(length, self._floors[x.shape[-1]]) / root_d)

    def _linear_in_blocks(self, x: Tensor, dense: Dense) -> Tensor:
        """Widen a bfloat16 weight piece by piece: CPUs without bfloat16 units multiply slowly."""
        rows, columns = dense.weight.shape
        if self._scratch is None or self._scratch.numel() < BLOCK_ROWS * columns:
            self._scratch = x.new_empty(BLOCK_ROWS * columns)
        y = x.new_empty(len(x), rows)
        for start in range(0, rows, BLOCK_ROWS):
            piece = dense.weight[start : start + BLOCK_ROWS]
            wide = self._scratch[: piece.numel()].view(piece.shape)
            torch.mm(x, wide.copy_(piece).T, out=y[:, start : start + len(piece)])
        return y if dense.bias is None else y.add_(dense.bias)


def _gelu_tanh(x: Tensor) -> Tensor:
    """GELU by tanh; for many elements on a CPU by the sigmoid that it equals, 2.5 times as fast."""
    if x.device.type != 'cpu' or x.dtype != torch.float32 or x.numel() < FEW_ELEMENTS:
        return F.gelu(x, approximate='tanh')
    z = (x * x).mul_(GELU_CUBE).add_(GELU_LINE)
    return z.mul_(x).sigmoid_().mul_(x)
