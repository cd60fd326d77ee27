"""Training MoGe-1's structure at any width on exact depth: SPEAR-1's frozen branch."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spear_ros.checkpoints.moge import HEAD_FIELDS
from spear_ros.checkpoints.moge_export import save_moge
from spear_ros.core.errors import UserError
from spear_ros.data.depth_scenes import DepthScenes, shrink
from spear_ros.networks import moge_geometry
from spear_ros.networks.moge_head import MogeModel
from spear_ros.training import moge_losses
from spear_ros.training.config import MogeTrainConfig
from spear_ros.training.distributed import Place, agree
from spear_ros.training.estimates import StackCost, vit_weights
from spear_ros.training.indexed_stream import IndexedStream
from spear_ros.training.pictures import jitter_colours, to_device
from spear_ros.training.task import Batch, BatchStream, Task

PREFIX = 'model.'
HELD_OUT_PICTURES = 512


class MogeModule(nn.Module):
    """Holds the model as ``model`` and returns losses."""

    def __init__(self, config: MogeTrainConfig) -> None:
        super().__init__()
        self.config = config
        self.model = MogeModel(config.model)

    def forward(
        self, image: Tensor, truth: Tensor, valid: Tensor, focal: Tensor, seed: int = 0
    ) -> dict[str, Tensor]:
        """Losses on pictures (B, 3, H, W) with points (B, H, W, 3), valid (B, H, W), focal (B,)."""
        config = self.config
        generator = torch.Generator().manual_seed(seed)
        points, mask = self.points(image, self._any_tokens(generator))
        with torch.autocast(image.device.type, enabled=False):
            losses = {
                'global': moge_losses.global_loss(points, truth, valid),
                'normal': moge_losses.normal_loss(points, truth, valid),
                'mask': moge_losses.mask_loss(mask, valid),
            }
            parts = [
                moge_losses.local_loss(
                    points,
                    truth,
                    valid,
                    level=level,
                    patches=config.local_patches,
                    focal=focal,
                    generator=generator,
                )
                for level in config.local_levels
            ]
            losses['local'] = torch.stack(parts).mean() if parts else points.new_zeros(())
            weights = {
                'global': config.global_weight,
                'normal': config.normal_weight,
                'mask': config.mask_weight,
                'local': config.local_weight,
            }
            total = torch.stack([weights[n] * v for n, v in losses.items()]).sum()
        return {'loss': total, **losses}

    def points(self, image: Tensor, tokens: int | None = None) -> tuple[Tensor, Tensor]:
        """Points (B, H, W, 3) and raw mask (B, H, W), float32; by default at full resolution."""
        points, mask = self.model(image, tokens or self.config.model.num_tokens(9))
        return points.float(), mask.float()

    def _any_tokens(self, generator: torch.Generator) -> int:
        """A resolution of the range, one per batch, as published: the encoder serves them all."""
        low, high = self.config.model.num_tokens_range
        return int(torch.randint(low, high + 1, (1,), generator=generator))


class MogeTask(Task[MogeTrainConfig]):
    """See :class:`spear_ros.training.task.Task`."""

    def prepare(self, place: Place) -> None:
        """Open the scenes."""
        data = self.config.data
        self.scenes = open_scenes(data.scenes, 'data.scenes')
        self.held_out = open_scenes(data.validation, 'data.validation') if data.validation else None

    def make_module(self) -> nn.Module:
        """MoGe with its losses."""
        return MogeModule(self.config)

    def initial_state(self) -> dict[str, Tensor]:
        """Fresh weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return MogeModule(self.config).state_dict()

    def blocks(self, module: nn.Module) -> Iterable[nn.Module]:
        """The encoder's blocks."""
        assert isinstance(module, MogeModule)
        return list(module.model.encoder.blocks)

    def stream(self, place: Place) -> BatchStream:
        """Pictures in seeded order."""
        config = self.config
        count = config.batch_size // place.world // config.accumulate
        return IndexedStream(
            len(self.scenes), count, place, config.seed, self._load, config.data.threads
        )

    def _load(self, numbers: list[int]) -> Batch:
        return load_pictures(self.scenes, numbers, self.config.image_size)

    def inputs(self, batch: Batch, device: torch.device, seed: int) -> Mapping[str, Any]:
        """Augmented pictures and exact points."""
        data = self.config.data
        generator = torch.Generator().manual_seed(seed)
        inputs = point_maps(batch, device)
        if data.jitter > 0:
            factors = 1 + data.jitter * (
                2 * torch.rand(3, len(batch['key']), generator=generator) - 1
            )
            inputs['image'] = jitter_colours(inputs['image'], factors.to(device))
        if data.mirror:
            flip = (torch.rand(len(batch['key']), generator=generator) < 0.5).to(device)
            inputs = mirrored(inputs, flip)
        return {**inputs, 'seed': seed}

    def stacks(self) -> list[StackCost]:
        """The encoder; the head's convolutions are not counted."""
        config = self.config.model
        height, width = self.config.image_size
        return [
            StackCost(
                tokens=height * width // config.encoder.patch**2,
                width=config.encoder.width,
                layers=config.encoder.layers,
                weights=vit_weights(config.encoder),
                trained=True,
            )
        ]

    def export(self, folder: Path, state: Mapping[str, Tensor], *, ema: bool) -> str:
        """A folder in the published layout of MoGe-1; returns the hash of its weights."""
        config = self.config.model
        weights = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
        facts = {published: getattr(config.head, ours) for published, ours in HEAD_FIELDS.items()}
        facts |= {
            'encoder': self.config.recipe,
            'intermediate_layers': config.intermediate_layers,
            'num_tokens_range': list(config.num_tokens_range),
        }
        return save_moge(folder, weights, config.encoder, facts, overwrite=True)

    @torch.no_grad()
    def evaluate(self, module: nn.Module, place: Place) -> dict[str, float]:
        """Depth errors on held-out scenes (on training scenes, and named so, without any)."""
        assert isinstance(module, MogeModule)
        scenes = self.held_out or self.scenes
        name = 'held_out' if self.held_out else 'training_scenes'
        if place.world > 1:
            return {}
        numbers = list(range(min(HELD_OUT_PICTURES, len(scenes))))
        totals: dict[str, float] = {}
        for start in range(0, len(numbers), 16):
            some = numbers[start : start + 16]
            inputs = point_maps(load_pictures(scenes, some, self.config.image_size), place.device)
            points, mask = module.points(inputs['image'])
            found = moge_losses.depth_figures(points, inputs['truth'], inputs['valid'])
            agreed = (mask > self.config.model.mask_threshold) == inputs['valid']
            found['mask_right'] = float(agreed.float().mean())
            for key, value in found.items():
                totals[key] = totals.get(key, 0.0) + value * len(some) / len(numbers)
        return {f'{name}_{key}': agree([value], place)[0] for key, value in totals.items()}


def open_scenes(folders: tuple[str, ...], where: str) -> DepthScenes:
    """Open folders of depth scenes.

    Raises:
        UserError: none given, or one without scenes.
    """
    if not folders:
        raise UserError(f'{where} is empty; give folders, such as {where}=[DIR,DIR].')
    return DepthScenes([Path(f).expanduser() for f in folders])


def load_pictures(scenes: DepthScenes, numbers: list[int], size: tuple[int, int]) -> Batch:
    """Decode pictures into arrays: ``image`` uint8, ``depth_m`` float32, ``fov_y_rad``, ``key``.

    Args:
        scenes: pictures of ``size`` or of a whole multiple of it.
        numbers: which ones.
        size: (rows, columns) to bring them to.

    Raises:
        UserError: a picture is damaged or has another size.
    """
    pictures = [shrink(scenes[i], size, scenes.names[i]) for i in numbers]
    return {
        'image': np.stack([p.image for p in pictures]),
        'depth_m': np.stack([p.depth_m for p in pictures]).astype(np.float32),
        'fov_y_rad': np.array([p.fov_y_rad for p in pictures], np.float32),
        'key': [scenes.names[i] for i in numbers],
    }


def point_maps(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """Pictures in [0, 1], exact points in the camera frame, where they are, focal lengths."""
    image = to_device(batch['image'], device).movedim(-1, 1).float() / 255.0
    depth = to_device(batch['depth_m'], device)
    fov_y = to_device(batch['fov_y_rad'], device)
    height, width = depth.shape[1:]
    aspect = width / height
    # In units of half the diagonal, as MoGe counts.
    focal = 1 / (torch.tan(fov_y / 2) * (1 + aspect**2) ** 0.5)
    cameras = [moge_geometry.intrinsics(float(f), aspect, depth) for f in focal.cpu()]
    truth = torch.stack(
        [moge_geometry.unproject(d, k) for d, k in zip(depth, cameras, strict=True)]
    )
    return {'image': image, 'truth': truth, 'valid': depth > 0, 'focal': focal}


def mirrored(inputs: dict[str, Tensor], flip_B: Tensor) -> dict[str, Tensor]:
    """Exchange left and right of some pictures and of what they show."""
    found = dict(inputs)
    truth = inputs['truth'].flip(2) * inputs['truth'].new_tensor([-1.0, 1.0, 1.0])
    for name, value, other in (
        ('image', inputs['image'], inputs['image'].flip(3)),
        ('truth', inputs['truth'], truth),
        ('valid', inputs['valid'], inputs['valid'].flip(2)),
    ):
        shape = (-1,) + (1,) * (value.ndim - 1)
        found[name] = torch.where(flip_B.view(shape), other, value)
    return found
