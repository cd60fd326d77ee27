"""The parts of a chunk that run on Triton kernels; everything else is :class:`TorchOps`.

Matrix products of the prefill stay with the vendor's library, whose kernels are the best there are
at 400 rows; the kernels here are what stands between them, and the whole of the expert, whose five
tokens such libraries serve badly. Importing this needs triton.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from spear_ros.inference import triton_kernels as kernels
from spear_ros.inference.fused_weights import (
    Affine,
    Dense,
    ExpertWeights,
    FusedWeights,
    GemmaLayer,
)
from spear_ros.inference.kernels import MAX_TOKENS
from spear_ros.inference.ops import SuffixKeys, TorchOps
from spear_ros.networks.config import FlowConfig

# Chosen by arithmetic (H200: 132 multiprocessors, 4.3 TB/s), not by measurement; see
# doc/decisions/engine.md. Rows of a weight per program, columns per load.
BLOCK_N, BLOCK_K, STAGES = 16, 256, 4
KEYS_PER_PIECE = 32


class SuffixTile(NamedTuple):
    """How the suffix' attention is cut into programs."""

    rows: int
    """Of queries, at most; 0 = all of them."""
    warps: int

    @staticmethod
    def of(capability: tuple[int, int], compute: torch.dtype) -> 'SuffixTile':
        """Choose by registers that do not spill (benchmarks/triton_resources.py).

        Hopper's and Blackwell's data-centre matrix units read two-byte queries from shared memory.
        Elsewhere each warp holds all rows in registers, in float32: 64 rows spill 4 KB per thread,
        and in float32 need more shared memory than most cards have.
        """
        whole = capability[0] in (9, 10) and compute != torch.float32
        return SuffixTile(0, 8) if whole else SuffixTile(16, 4)


class TritonOps(TorchOps):
    """See the module's docstring."""

    adjacent_pairs = False

    def __init__(self, weights: FusedWeights) -> None:
        super().__init__(weights)
        assert weights.config.suffix_tokens <= MAX_TOKENS, 'expert kernels hold 16 tokens'
        cuda = self.device.type == 'cuda'
        capability = torch.cuda.get_device_capability(self.device) if cuda else (9, 0)
        self.tile = SuffixTile.of(capability, self.compute)

    def rotary_table(self, rows: int) -> Tensor:
        """Cosines and sines of positions 0 .. rows - 1, (rows, 2, K / 2) float32."""
        return torch.stack(self._angles(rows), dim=1)

    def add_layer_norm(self, x: Tensor, y: Tensor | None, norm: Affine) -> Tensor:
        """See :meth:`TorchOps.add_layer_norm`."""
        return self._add_norm(x, y, norm, norm.eps)

    def layer_norm(self, x: Tensor, eps: float) -> Tensor:
        """See :meth:`TorchOps.layer_norm`."""
        return self._add_norm(x, None, Affine(x, x, eps), eps, affine=False)

    def add_rms_norm(self, x: Tensor, y: Tensor | None) -> Tensor:
        """See :meth:`TorchOps.add_rms_norm`."""
        return self._add_norm(x, y, None, self._rms_floor(x))

    def geglu(self, gate_up: Tensor) -> Tensor:
        """See :meth:`TorchOps.geglu`."""
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, width)
        kernels.geglu_kernel[(rows, triton.cdiv(width, 1024))](gate_up, out, width, BLOCK=1024)
        return out

    def rotate_and_store(self, qkv: Tensor, factors: Tensor, kv_rows: Tensor) -> Tensor:
        """See :meth:`TorchOps.rotate_and_store`; factors are (M, 2, K / 2)."""
        dim, groups = self.config.head_dim, self.config.kv_heads
        heads = qkv.shape[1] // dim - 2 * groups
        kernels.rotate_store_kernel[(len(qkv), heads + 2 * groups)](
            qkv, factors, kv_rows, heads, groups,
            HALF=dim // 2, BLOCK=triton.next_power_of_2(dim // 2),
        )  # fmt: skip
        return qkv[:, : heads * dim].unflatten(1, (heads, dim))

    # ---------------------------------------------------------------------------- the expert

    def embed_actions(self, actions: Tensor, step: int, expert: ExpertWeights) -> Tensor:
        """See :meth:`TorchOps.embed_actions`."""
        mixed = self._skinny(
            actions, Dense(expert.action_in, expert.times[step]), silu=True, dtype=self.compute
        )
        return self._skinny(mixed, expert.time_out)

    def expert_layer(
        self, x: Tensor, layer: GemmaLayer, factors: Tensor, keys: SuffixKeys
    ) -> Tensor:
        """See :meth:`TorchOps.expert_layer`: six launches, each weight read once."""
        x = x.contiguous()
        qkv = self._skinny(x, layer.qkv, norm=True)
        self._skinny(self._attend_suffix(qkv, factors, keys), layer.out, add_to=x)
        width = layer.down.weight.shape[1]
        h = x.new_empty(len(x), width)
        kernels.skinny_geglu_kernel[(triton.cdiv(width, BLOCK_N),)](
            x, layer.gate_up.weight, h, width, x.shape[1], self._rms_floor(x),
            M=len(x), BLOCK_N=BLOCK_N, BLOCK_K=_block_k(layer.gate_up.weight), num_stages=STAGES,
        )  # fmt: skip
        return self._skinny(h, layer.down, add_to=x)

    def head(self, x: Tensor, head: Dense) -> Tensor:
        """See :meth:`TorchOps.head`."""
        return self._skinny(x.contiguous(), head, norm=True, dtype=torch.float32)

    def euler(
        self, actions: Tensor, velocity: Tensor, step: float, owed: tuple[Tensor, Tensor],
        flow: FlowConfig,
    ) -> Tensor:  # fmt: skip
        """See :meth:`TorchOps.euler`; the linear ablation stays with torch."""
        if flow.rotation_path != 's3':
            return super().euler(actions, velocity, step, owed, flow)
        out = torch.empty_like(actions)
        rows = len(actions)
        kernels.euler_kernel[(1,)](
            actions, velocity, owed[0], owed[1].view(torch.uint8), out, step, rows,
            BLOCK=triton.next_power_of_2(rows),
        )  # fmt: skip
        return out

    # ------------------------------------------------------------------------------- internals

    def _rms_floor(self, x: Tensor) -> float:
        return x.shape[-1] * self.config.norm_eps

    def _add_norm(
        self, x: Tensor, y: Tensor | None, norm: Affine | None, floor: float, affine: bool = True
    ) -> Tensor:
        out = torch.empty_like(x)
        weight, bias = (x, x) if norm is None else (norm.weight, norm.bias)
        kernels.add_norm_kernel[(len(x),)](
            x, x if y is None else y, weight, bias, out, x.shape[1], floor,
            HAS_Y=y is not None, LAYER=norm is not None, AFFINE=affine,
            BLOCK=triton.next_power_of_2(x.shape[1]),
        )  # fmt: skip
        return out

    def _skinny(
        self, x: Tensor, dense: Dense, *, norm: bool = False, silu: bool = False,
        add_to: Tensor | None = None, dtype: torch.dtype | None = None,
    ) -> Tensor:  # fmt: skip
        rows, columns = dense.weight.shape
        out = x.new_empty(len(x), rows, dtype=dtype or x.dtype) if add_to is None else add_to
        bias = dense.weight if dense.bias is None else dense.bias
        kernels.skinny_linear_kernel[(triton.cdiv(rows, BLOCK_N),)](
            x, dense.weight, bias, out, rows, columns, columns * self.config.norm_eps, M=len(x),
            NORM=norm, HAS_BIAS=dense.bias is not None, SILU=silu, ADD=add_to is not None,
            BLOCK_N=BLOCK_N, BLOCK_K=_block_k(dense.weight), num_stages=STAGES,
        )  # fmt: skip
        return out

    def _attend_suffix(self, qkv: Tensor, factors: Tensor, keys: SuffixKeys) -> Tensor:
        config, tokens = self.config, len(qkv)
        groups, dim = config.kv_heads, config.head_dim
        fold = config.heads // groups
        pieces = triton.cdiv(keys.first, KEYS_PER_PIECE) + 1
        acc = torch.empty(pieces, groups, tokens * fold, dim, device=qkv.device)
        peak, total = (acc.new_empty(pieces, groups, tokens * fold) for _ in range(2))
        rows = _block(tokens * fold)
        rows = min(rows, self.tile.rows or rows)
        kernels.suffix_attention_kernel[(pieces, groups, triton.cdiv(tokens * fold, rows))](
            qkv, keys.kv, keys.bias, factors, acc, peak, total, keys.first, dim**-0.5,
            M=tokens, FOLD=fold, GROUPS=groups, HALF=dim // 2, CAUSAL=keys.causal,
            SPLIT=rows < tokens * fold, BLOCK_R=rows, BLOCK_H=_block(dim // 2),
            BLOCK_T=KEYS_PER_PIECE, num_warps=self.tile.warps,
        )  # fmt: skip
        y = qkv.new_empty(tokens, config.heads * dim)
        kernels.join_attention_kernel[(tokens * fold, groups)](
            acc, peak, total, y, pieces, GROUPS=groups, FOLD=fold, ROWS=tokens * fold, DIM=dim,
            BLOCK_S=triton.next_power_of_2(pieces), BLOCK_D=triton.next_power_of_2(dim),
        )  # fmt: skip
        return y


def _block(size: int) -> int:
    """Smallest side of a tile that a matrix unit takes and that holds ``size``."""
    return max(16, triton.next_power_of_2(size))


def _block_k(weight: Tensor) -> int:
    """Columns per load; four-byte weights take half, so that all stages fit into shared memory."""
    return min(BLOCK_K * 2 // weight.element_size(), _block(weight.shape[1]))
