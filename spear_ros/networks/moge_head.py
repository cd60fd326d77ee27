"""MoGe-1 as a whole: the convolutional head on top of the encoder, and camera recovery.

Only the annotation of images with 3-D points needs this; SPEAR-VLM uses the encoder alone.
Submodules of the head carry the published names (``projects``, ``upsample_blocks``,
``output_block``), so that ``head.*`` of a MoGe checkpoint is its state dict. Source: microsoft/MoGe
v1.

Shapes: B batch, C channels, H x W the image, h x w a feature map.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spear_ros.networks import moge_geometry
from spear_ros.networks.config import VitConfig
from spear_ros.networks.moge import MogeEncoder, imagenet_normalize


@dataclass(frozen=True, kw_only=True)
class MogeHeadConfig:
    """Sizes of the head; the defaults are moge-vitl's."""

    projected: int = 512
    upsampled: tuple[int, ...] = (256, 128, 64)
    residual_blocks: int = 2
    residual_factor: int = 2
    last_channels: int = 32
    last_kernel: int = 1


@dataclass(frozen=True, kw_only=True)
class MogeConfig:
    """The whole model; the defaults are moge-vitl's (314.2 M parameters)."""

    encoder: VitConfig = field(
        default_factory=lambda: VitConfig(
            width=1024, layers=24, heads=16, mlp_width=4096, table_rows=37, table_columns=37
        )
    )
    head: MogeHeadConfig = field(default_factory=MogeHeadConfig)
    intermediate_layers: int = 4
    """The last n blocks feed the head."""
    num_tokens_range: tuple[int, int] = (1200, 2500)
    mask_threshold: float = 0.5
    """On the raw mask output, no sigmoid."""

    def num_tokens(self, resolution_level: int) -> int:
        """Image tokens of a level from 0 (coarse) to 9 (fine, MoGe's default)."""
        low, high = self.num_tokens_range
        return int(low + resolution_level / 9 * (high - low))


@dataclass(frozen=True, kw_only=True)
class MogeResult:
    """Camera and geometry of one batch; scale is arbitrary, not metric."""

    points: Tensor
    """(B, H, W, 3) camera frame; infinite outside the mask where masking was asked for."""
    depth: Tensor
    """(B, H, W)."""
    mask: Tensor
    """(B, H, W) bool: where the model trusts its geometry."""
    intrinsics: Tensor
    """(B, 3, 3) normalised by image width and height."""
    focal: Tensor
    """(B,) in units of half the diagonal."""
    shift: Tensor
    """(B,) that was added to z."""


def _conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    padding = kernel // 2
    return nn.Conv2d(inputs, outputs, kernel, padding=padding, padding_mode='replicate')


class ResidualBlock(nn.Module):
    """Norm, ReLU, convolution, twice; added to the input."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(1, channels),
            nn.ReLU(),
            _conv(channels, hidden),
            nn.GroupNorm(hidden // 32, hidden),
            nn.ReLU(),
            _conv(hidden, channels),
        )

    def forward(self, x_BChw: Tensor) -> Tensor:
        """Same shape in and out."""
        return x_BChw + self.layers(x_BChw)


class MogeHead(nn.Module):
    """Features of several encoder blocks to a point map and a mask."""

    def __init__(self, config: MogeConfig) -> None:
        super().__init__()
        head = config.head
        self.projects = nn.ModuleList(
            nn.Conv2d(config.encoder.width, head.projected, 1)
            for _ in range(config.intermediate_layers)
        )
        self.upsample_blocks = nn.ModuleList(
            nn.Sequential(
                nn.Sequential(
                    nn.ConvTranspose2d(before + 2, after, 2, stride=2), _conv(after, after)
                ),
                *(
                    ResidualBlock(after, head.residual_factor * after)
                    for _ in range(head.residual_blocks)
                ),
            )
            for before, after in zip(
                (head.projected, *head.upsampled[:-1]), head.upsampled, strict=True
            )
        )
        self.output_block = nn.ModuleList(
            nn.Sequential(
                _conv(head.upsampled[-1] + 2, head.last_channels),
                nn.ReLU(),
                _conv(head.last_channels, outputs, head.last_kernel),
            )
            for outputs in (3, 1)
        )

    def stages(self, features: list[Tensor], grid: tuple[int, int], aspect: float) -> list[Tensor]:
        """Return the output of every upsampling stage, the last one finest.

        ``features`` are (B, N, W) without class token, ``grid`` their rows and columns, ``aspect``
        width / height of the picture.
        """
        x = torch.stack(
            [
                project(f.transpose(1, 2).unflatten(2, grid).contiguous())
                for project, f in zip(self.projects, features, strict=True)
            ]
        ).sum(0)
        outputs = []
        for block in self.upsample_blocks:
            x = block(_with_uv(x, aspect))
            outputs.append(x)
        return outputs

    def outputs(self, x_BChw: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Resize the last stage to ``size``; return raw points (B, 3, h, w), mask (B, 1, h, w)."""
        x = F.interpolate(x_BChw, size, mode='bilinear', align_corners=False)
        x = _with_uv(x, size[1] / size[0])
        points, mask = (block(x) for block in self.output_block)
        return points, mask


class MogeModel(nn.Module):
    """MoGe-1: RGB images in [0, 1] of any size to affine-invariant points and a mask."""

    def __init__(self, config: MogeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = MogeEncoder(config.encoder)
        self.head = MogeHead(config)

    def resize(self, image_B3HW: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Return the normalised image for the head and the one for the encoder.

        The first has about ``num_tokens`` patches of area, its sides truncated to whole pixels;
        the second is the first, brought down to multiples of the patch.
        """
        height, width = image_B3HW.shape[-2:]
        patch = self.config.encoder.patch
        factor = math.sqrt(num_tokens * patch**2 / (height * width))
        size = (int(height * factor), int(width * factor))
        image = F.interpolate(image_B3HW, size, mode='bicubic', align_corners=False, antialias=True)
        image = imagenet_normalize(image)
        size14 = (size[0] // patch * patch, size[1] // patch * patch)
        return image, F.interpolate(
            image, size14, mode='bilinear', align_corners=False, antialias=True
        )

    def forward(self, image_B3HW: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Return points (B, H, W, 3), up to scale and z-shift, and the raw mask (B, H, W)."""
        image, image14 = self.resize(image_B3HW, num_tokens)
        patch = self.config.encoder.patch
        grid = (image14.shape[-2] // patch, image14.shape[-1] // patch)
        size = (image.shape[-2], image.shape[-1])
        hidden = self.encoder.intermediate(image14, self.config.intermediate_layers)
        features = [x_BNW[:, 1:] for x_BNW in hidden]
        stages = self.head.stages(features, grid, size[1] / size[0])
        outputs = self.head.outputs(stages[-1], size)
        points, mask = (
            F.interpolate(x, image_B3HW.shape[-2:], mode='bilinear', align_corners=False)
            for x in outputs
        )
        depth = points[:, 2:].exp()
        points = torch.cat([points[:, :2] * depth, depth], dim=1)
        return points.movedim(1, -1), mask[:, 0]

    @torch.no_grad()
    def infer(
        self,
        image_B3HW: Tensor,
        *,
        num_tokens: int | None = None,
        fov_x_deg: float | None = None,
        force_projection: bool = True,
        apply_mask: bool = True,
    ) -> MogeResult:
        """Points in the camera frame with the camera recovered (or given by its field of view).

        ``force_projection`` replaces x and y by the pixel's ray times the depth. Default number of
        tokens: level 9.
        """
        tokens = self.config.num_tokens(9) if num_tokens is None else num_tokens
        points, raw_mask = self(image_B3HW, tokens)
        mask = raw_mask > self.config.mask_threshold
        aspect = image_B3HW.shape[-1] / image_B3HW.shape[-2]
        known = None if fov_x_deg is None else moge_geometry.focal_from_fov(fov_x_deg, aspect)
        fits = [
            moge_geometry.recover_focal_shift(p, m, known)
            for p, m in zip(points, mask, strict=True)
        ]
        shift = points.new_tensor([t for _, t in fits])
        cameras = torch.stack([moge_geometry.intrinsics(f, aspect, points) for f, _ in fits])
        depth = points[..., 2] + shift[:, None, None]
        if force_projection:
            pairs = zip(depth, cameras, strict=True)
            points = torch.stack([moge_geometry.unproject(d, k) for d, k in pairs])
        else:
            points = torch.cat([points[..., :2], depth[..., None]], dim=-1)
        if apply_mask:
            points = torch.where(mask[..., None], points, torch.inf)
            depth = torch.where(mask, depth, torch.inf)
        return MogeResult(
            points=points,
            depth=depth,
            mask=mask,
            intrinsics=cameras,
            focal=points.new_tensor([f for f, _ in fits]),
            shift=shift,
        )


def _with_uv(x_BChw: Tensor, aspect: float) -> Tensor:
    """Append the image-plane coordinates as two channels after the features."""
    batch, _, height, width = x_BChw.shape
    uv = moge_geometry.image_plane_uv(height, width, aspect, x_BChw)
    return torch.cat([x_BChw, uv.movedim(-1, 0).expand(batch, -1, -1, -1)], dim=1)
