"""MoGe-1's image encoder: DINOv2 without registers, with MoGe's own positional interpolation.

Shapes: B batch, N tokens (row-major), W width, F = layers * W concatenated features.
"""

import torch
from torch import Tensor, nn

from spear_ros.networks.config import VitConfig
from spear_ros.networks.vit import PatchEmbedding, PositionTable, VitBlock, initialize_vit

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def imagenet_normalize(image_B3HW: Tensor) -> Tensor:
    """RGB in [0, 1] to the pixels that the encoder was trained on, (B, 3, H, W).

    Written with Python numbers per channel: a constant tensor would be a copy from the host in
    every call, which a CUDA graph cannot hold.
    """
    channels = zip(image_B3HW.split(1, dim=1), IMAGENET_MEAN, IMAGENET_STD, strict=True)
    return torch.cat([(x - mean) / std for x, mean, std in channels], dim=1)


class MogeEncoder(nn.Module):
    """DINOv2 (ViT-L/14 in moge-vitl): class token, LayerScale, exact GELU, fused qkv as published.

    Source: microsoft/MoGe v1. Pixels are normalised with ImageNet's mean and deviation. DINOv2's
    ``mask_token`` belongs to its pre-training and is not part of this module.
    """

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.patch = PatchEmbedding(config)
        self.cls_token = nn.Parameter(torch.empty(config.width))
        self.position = PositionTable(config, rule='scale', extra=1)
        self.blocks = nn.ModuleList(
            VitBlock(config, gelu='none', layer_scale=True) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        if not self.norm.weight.is_meta:
            self.initialize()

    def embed(self, pixels_B3HW: Tensor) -> Tensor:
        """Return what enters block 0: (B, 1 + N, W), class token first."""
        x_BNW, rows, columns = self.patch(pixels_B3HW)
        position = self.position(rows, columns)
        cls = self.cls_token.to(x_BNW.dtype).expand(x_BNW.shape[0], 1, -1)
        return torch.cat([cls, x_BNW], dim=1) + position.to(x_BNW.dtype)

    def intermediate(self, pixels_B3HW: Tensor, layers: int, norm: bool = True) -> list[Tensor]:
        """Return the outputs of the last ``layers`` blocks, ascending, each (B, 1 + N, W).

        ``norm`` passes every one through the final norm (the same weights for each), as MoGe's
        ``get_intermediate_layers`` does.
        """
        x_BNW = self.embed(pixels_B3HW)
        first = len(self.blocks) - layers
        outputs = []
        for i, block in enumerate(self.blocks):
            x_BNW = block(x_BNW)
            if i >= first:
                outputs.append(self.norm(x_BNW) if norm else x_BNW)
        return outputs

    def forward(self, pixels_B3HW: Tensor, layers: int = 4, norm: bool = True) -> Tensor:
        """Return the patch features of the last blocks, concatenated on channels: (B, N, F)."""
        outputs = self.intermediate(pixels_B3HW, layers, norm)
        return torch.cat([x_BNW[:, 1:] for x_BNW in outputs], dim=-1)

    def initialize(self) -> None:
        """Initialise every parameter for training from scratch."""
        initialize_vit(self, len(self.blocks))
        nn.init.normal_(self.cls_token, std=0.02)
