"""Pictures of a training batch on the device: augmentation, then the network's size."""

from typing import Any

import torch
from torch import Tensor

from spear_ros.processing.images import ImageFit, ImageSize, fit_image

_GREY = (0.299, 0.587, 0.114)


def to_device(array: Any, device: torch.device) -> Tensor:
    """A numpy array or tensor as a tensor on the device."""
    tensor = array if isinstance(array, Tensor) else torch.from_numpy(array)
    return tensor.to(device, non_blocking=True)


def network_pictures(
    pictures: Any,
    size: tuple[int, int],
    device: torch.device,
    *,
    fit: ImageFit = 'crop',
    jitter: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Pictures (B, H, W, 3) uint8 as (B, 3, h, w) float32 in [0, 1], colours jittered.

    Geometry is left alone: where things are in the picture is what the actions depend on.
    """
    fitted = fit_image(to_device(pictures, device), ImageSize(*size), fit)
    if jitter > 0:
        assert generator is not None
        factors = 1 + jitter * (2 * torch.rand(3, len(fitted), generator=generator) - 1)
        fitted = jitter_colours(fitted, factors.to(device, non_blocking=True))
    return fitted


def jitter_colours(pictures: Tensor, factors: Tensor) -> Tensor:
    """Scale brightness, contrast (about the mean grey) and saturation by ``factors`` (3, B)."""
    brightness, contrast, saturation = factors[..., None, None, None]
    pictures = pictures * brightness
    grey = sum(w * pictures[:, i : i + 1] for i, w in enumerate(_GREY))
    assert isinstance(grey, Tensor)
    pictures = grey + (pictures - grey) * saturation
    mean = grey.mean(dim=(1, 2, 3), keepdim=True)
    return (mean + (pictures - mean) * contrast).clamp(0, 1)
