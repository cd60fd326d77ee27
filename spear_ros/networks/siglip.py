"""SigLIP image encoder (so400m/14 in PaliGemma), on any grid of 14-pixel patches.

Shapes: B batch, N tokens (row-major), W width.
"""

from typing import Literal

from torch import Tensor, nn

from spear_ros.networks.config import VitConfig
from spear_ros.networks.vit import PatchEmbedding, PositionTable, VitBlock, initialize_vit


class SiglipEncoder(nn.Module):
    """Patches, positional table, blocks with tanh-GELU, final norm. No pooling head.

    Source: SiglipVisionModel of transformers with ``vision_use_head=False``. Pixels are expected in
    [-1, 1] (mean and standard deviation 0.5).
    """

    def __init__(self, config: VitConfig, table: Literal['size', 'scale'] = 'size') -> None:
        super().__init__()
        self.patch = PatchEmbedding(config)
        self.position = PositionTable(config, rule=table)
        self.blocks = nn.ModuleList(
            VitBlock(config, gelu='tanh', layer_scale=False) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        if not self.norm.weight.is_meta:
            self.initialize()

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Return normed features (B, N, W)."""
        x_BNW, rows, columns = self.patch(pixels_B3HW)
        x_BNW = x_BNW + self.position(rows, columns).to(x_BNW.dtype)
        for block in self.blocks:
            x_BNW = block(x_BNW)
        return self.norm(x_BNW)

    def initialize(self) -> None:
        """Initialise every parameter for training from scratch."""
        initialize_vit(self, len(self.blocks))
