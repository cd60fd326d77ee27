"""Vision transformer parts shared by SigLIP and the DINOv2 of MoGe.

Shapes: B batch, N tokens, W width, H heads, K head dim, R rows, C columns of the patch grid.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spear_ros.networks.config import VitConfig


class VitAttention(nn.Module):
    """Bidirectional self-attention with one fused projection, rows ordered [q | k | v]."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x_BNW: Tensor) -> Tensor:
        """Attend over all tokens of an image; (B, N, W) in and out."""
        batch, tokens, width = x_BNW.shape
        qkv = self.qkv(x_BNW).view(batch, tokens, 3, self.heads, width // self.heads)
        q_BHNK, k_BHNK, v_BHNK = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y_BHNK = F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK)
        return self.out(y_BHNK.transpose(1, 2).reshape(batch, tokens, width))


class VitMlp(nn.Module):
    """Two layers with GELU: 'tanh' approximates (SigLIP), 'none' is exact (DINOv2)."""

    def __init__(self, config: VitConfig, gelu: Literal['tanh', 'none']) -> None:
        super().__init__()
        self.gelu = gelu
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x_BNW: Tensor) -> Tensor:
        """(B, N, W) in and out."""
        return self.fc2(F.gelu(self.fc1(x_BNW), approximate=self.gelu))


class VitBlock(nn.Module):
    """Pre-norm transformer block; ``layer_scale`` adds the two per-channel factors of DINOv2."""

    def __init__(self, config: VitConfig, gelu: Literal['tanh', 'none'], layer_scale: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = VitAttention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = VitMlp(config, gelu)
        self.scale1: nn.Parameter | None = None
        self.scale2: nn.Parameter | None = None
        if layer_scale:
            self.scale1 = nn.Parameter(torch.ones(config.width))
            self.scale2 = nn.Parameter(torch.ones(config.width))

    def forward(self, x_BNW: Tensor) -> Tensor:
        """(B, N, W) in and out."""
        y = self.attention(self.norm1(x_BNW))
        x_BNW = x_BNW + (y if self.scale1 is None else y * self.scale1)
        y = self.mlp(self.norm2(x_BNW))
        return x_BNW + (y if self.scale2 is None else y * self.scale2)


class PositionTable(nn.Module):
    """Learnt positional table and its values on other grids.

    ``rule`` 'size' interpolates to the grid's size (transformers' SigLIP); 'scale' interpolates by
    the factors (R + 0.1) / table_rows, (C + 0.1) / table_columns (DINOv2, and so MoGe): the same
    output size, other sampling points. Both bicubic, without antialias, in float32. The two differ
    by several percent of the table's spread, so neither may stand in for the other.

    :meth:`bake` keeps the values of some grids, so that inference does not interpolate; training
    mode and loading weights drop them.
    """

    def __init__(self, config: VitConfig, rule: Literal['size', 'scale'], extra: int = 0) -> None:
        """``extra`` leading rows (the class token's) are never interpolated."""
        super().__init__()
        self.rows, self.columns = config.table_rows, config.table_columns
        self.rule = rule
        self.extra = extra
        self.table = nn.Parameter(torch.empty(extra + self.rows * self.columns, config.width))
        self._baked: dict[tuple[int, int], str] = {}

    def forward(self, rows: int, columns: int) -> Tensor:
        """Return (extra + rows * columns, W), row-major, in float32 unless baked."""
        name = self._baked.get((rows, columns))
        return self.interpolate(rows, columns) if name is None else getattr(self, name)

    def interpolate(self, rows: int, columns: int) -> Tensor:
        """Compute the table of a grid from the parameter, differentiably, in float32."""
        table = self.table.float()
        if (rows, columns) == (self.rows, self.columns):
            return table
        lead, grid = table[: self.extra], table[self.extra :]
        grid_1WRC = grid.view(1, self.rows, self.columns, -1).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / self.rows, (columns + 0.1) / self.columns)
        by_size = self.rule == 'size'
        with torch.autocast(table.device.type, enabled=False):
            grid_1WRC = F.interpolate(
                grid_1WRC,
                size=(rows, columns) if by_size else None,
                scale_factor=None if by_size else scale,
                mode='bicubic',
                antialias=False,
            )
        assert grid_1WRC.shape[-2:] == (rows, columns)
        return torch.cat([lead, grid_1WRC.flatten(2)[0].T])

    @torch.no_grad()
    def bake(self, grids: list[tuple[int, int]], dtype: torch.dtype) -> None:
        """Keep the values of these (rows, columns) as buffers of ``dtype``, rounded once."""
        for rows, columns in grids:
            name = f'grid_{rows}x{columns}'
            value = self.interpolate(rows, columns).to(dtype).clone()
            self.register_buffer(name, value, persistent=False)
            self._baked[rows, columns] = name

    def unbake(self) -> None:
        """Drop the kept values."""
        for name in self._baked.values():
            delattr(self, name)
        self._baked.clear()

    def train(self, mode: bool = True) -> 'PositionTable':
        """Training moves the parameter, so kept values would go stale."""
        if mode:
            self.unbake()
        return super().train(mode)

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        self.unbake()
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[arg-type]

    @torch.no_grad()
    def initialize(self) -> None:
        """Sines and cosines of row and column: place is known before anything is learnt."""
        width = self.table.shape[1]
        quarter = width // 4
        period = 10000.0 ** (-torch.arange(quarter) / quarter)
        row = torch.arange(self.rows)[:, None, None] * period
        column = torch.arange(self.columns)[None, :, None] * period
        full = (self.rows, self.columns, quarter)
        waves = torch.cat(
            [f(a.expand(full)) for a in (row, column) for f in (torch.sin, torch.cos)], -1
        )
        self.table.zero_()
        self.table[self.extra :, : 4 * quarter] = waves.flatten(0, 1).to(self.table)


class PatchEmbedding(nn.Module):
    """Non-overlapping patches through one linear map; row-major tokens."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.weight = nn.Parameter(torch.empty(config.width, 3, config.patch, config.patch))
        self.bias = nn.Parameter(torch.zeros(config.width))

    def forward(self, pixels_B3HW: Tensor) -> tuple[Tensor, int, int]:
        """Return tokens (B, rows * columns, W), rows, columns. H and W are patch multiples."""
        assert pixels_B3HW.shape[-1] % self.patch == 0
        assert pixels_B3HW.shape[-2] % self.patch == 0
        x_BWRC = F.conv2d(
            pixels_B3HW.to(self.weight.dtype), self.weight, self.bias, stride=self.patch
        )
        rows, columns = x_BWRC.shape[-2:]
        return x_BWRC.flatten(2).transpose(1, 2), rows, columns


@torch.no_grad()
def initialize_vit(module: nn.Module, layers: int) -> None:
    """Initialise for training from scratch: Xavier, outputs of residual branches scaled down."""
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            nn.init.zeros_(child.bias)
            if name.endswith(('attention.out', 'mlp.fc2')):
                child.weight.mul_(1 / math.sqrt(2 * layers))
        elif isinstance(child, PatchEmbedding):
            nn.init.xavier_uniform_(child.weight.view(child.weight.shape[0], -1))
            nn.init.zeros_(child.bias)
        elif isinstance(child, PositionTable):
            child.initialize()
        elif isinstance(child, nn.LayerNorm):
            nn.init.ones_(child.weight)
            nn.init.zeros_(child.bias)
        elif isinstance(child, VitBlock) and child.scale1 is not None:
            nn.init.ones_(child.scale1)
            nn.init.ones_(child.scale2)  # type: ignore[arg-type]
