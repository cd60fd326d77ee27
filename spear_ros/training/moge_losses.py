"""MoGe-1's losses (arXiv 2410.19115): point maps that are right up to one scale and a depth shift.

The prediction is aligned to the truth before it is compared, so the network is not asked for what a
picture cannot tell. Alignment minimises a weighted sum of absolute errors; the publication solves
it exactly, here it is solved by reweighted least squares (error below 1 % of the optimum after ten
rounds, see the test). Like there, no gradient goes through the alignment.

Shapes: B pictures, N points, H x W pixels. Points are (..., 3) in the camera frame, z forward.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

ROUNDS = 10
SAMPLES = 32
"""Points per side of the grid on which a picture is aligned."""
_TINY = 1e-6


def align(
    points_BN3: Tensor, truth_BN3: Tensor, weight_BN: Tensor, shift_xy: bool
) -> tuple[Tensor, Tensor]:
    """Scale (B,) and shift (B, 3) that minimise sum w |s p + t - p*|_1.

    Args:
        points_BN3: prediction.
        truth_BN3: truth.
        weight_BN: >= 0; 0 leaves a point out.
        shift_xy: allow a shift along x and y too (patches); else along z only (whole pictures).

    Returns:
        The scale is at least a small positive number: a picture is never turned inside out.
    """
    points, truth = points_BN3.detach().float(), truth_BN3.float()
    axes = points.new_tensor([1.0, 1.0, 1.0] if shift_xy else [0.0, 0.0, 1.0])
    weight = weight_BN.float()[..., None].expand_as(points)
    scale = points.new_ones(len(points))
    shift = points.new_zeros(len(points), 3)
    robust = weight
    for _ in range(ROUNDS):
        scale, shift = _least_squares(points, truth, robust, axes)
        error = (scale[:, None, None] * points + shift[:, None] - truth).abs()
        floor = 1e-3 * truth[..., 2:].abs().mean(dim=(1, 2), keepdim=True) + _TINY
        robust = weight / error.clamp_min(floor)
    return scale, shift


def _least_squares(
    points: Tensor, truth: Tensor, weight: Tensor, axes: Tensor
) -> tuple[Tensor, Tensor]:
    """Closed form of the weighted squares, each axis with its own shift (or none)."""
    total = weight.sum(1).clamp_min(_TINY)
    mean_p = (weight * points).sum(1) / total * axes
    mean_t = (weight * truth).sum(1) / total * axes
    p, t = points - mean_p[:, None], truth - mean_t[:, None]
    square = (weight * p * p).sum(dim=(1, 2))
    scale = ((weight * p * t).sum(dim=(1, 2)) / square.clamp_min(_TINY)).clamp_min(1e-3)
    return scale, mean_t - scale[:, None] * mean_p


def sample_grid(height: int, width: int, device: torch.device) -> Tensor:
    """Flat indices of an even grid of at most SAMPLES x SAMPLES pixels."""
    rows = torch.arange(min(SAMPLES, height), device=device) * height // min(SAMPLES, height)
    columns = torch.arange(min(SAMPLES, width), device=device) * width // min(SAMPLES, width)
    return (rows[:, None] * width + columns).flatten()


def align_pictures(points: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Scale (B,) and z-shift (B, 3) of whole pictures (B, H, W, 3), weights 1 / z."""
    index = sample_grid(points.shape[1], points.shape[2], points.device)
    p, t = (x.flatten(1, 2)[:, index] for x in (points, truth))
    weight = valid.flatten(1)[:, index] / t[..., 2].clamp_min(_TINY)
    return align(p, t, weight, shift_xy=False)


def global_loss(points: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean of |s p + t - p*|_1 / z over the valid pixels of whole pictures."""
    scale, shift = align_pictures(points, truth, valid)
    aligned = scale[:, None, None, None] * points + shift[:, None, None]
    error = (aligned - truth).abs().sum(-1) / truth[..., 2].clamp_min(_TINY)
    return _mean(error, valid)


def local_loss(
    points: Tensor,
    truth: Tensor,
    valid: Tensor,
    *,
    level: int,
    patches: int,
    focal: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The same for balls around random anchors, each aligned on its own.

    A ball's radius is z / focal / level times half the diagonal: it covers about 1 / level of the
    picture. Its pixels are looked for in the square that holds its image.

    Args:
        points: (B, H, W, 3) prediction.
        truth: (B, H, W, 3).
        valid: (B, H, W) bool.
        level: 4, 16, 64 in the publication.
        patches: anchors per picture.
        focal: (B,) in units of half the diagonal.
        generator: of the anchors, on the CPU.
    """
    batch, height, width = valid.shape
    reach = max(2, round(0.5 * (height**2 + width**2) ** 0.5 / level))
    pick = torch.rand(batch, patches, 2, generator=generator).to(points.device)
    row = (pick[..., 0] * height).long().clamp(max=height - 1)
    column = (pick[..., 1] * width).long().clamp(max=width - 1)
    offset = torch.linspace(-reach, reach, 16, device=points.device).round().long()
    rows = row[..., None, None] + offset[:, None]
    columns = column[..., None, None] + offset
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    index = index.flatten(2)
    picture = torch.arange(batch, device=points.device)[:, None, None]
    p, t, ok = (x.flatten(1, 2)[picture, index] for x in (points, truth, valid[..., None]))
    anchor = truth[picture[..., 0], row, column]
    anchor_ok = valid[picture[..., 0], row, column]
    radius = anchor[..., 2] / focal[:, None] / level
    near = (t - anchor[:, :, None]).norm(dim=-1) < radius[..., None]
    used = ok[..., 0] & near & inside.flatten(2) & anchor_ok[..., None]
    weight = used / anchor[..., 2:].clamp_min(_TINY)
    flat = [x.flatten(0, 1) for x in (p, t, weight)]
    scale, shift = align(flat[0], flat[1], flat[2], shift_xy=True)
    aligned = scale[:, None, None] * flat[0] + shift[:, None]
    error = (aligned - flat[1]).abs().sum(-1) / radius.flatten()[:, None].clamp_min(_TINY)
    # Alone a few points are aligned perfectly whatever was predicted.
    enough = (used.flatten(0, 1).sum(1, keepdim=True) >= 16).expand_as(error)
    return _mean(error, used.flatten(0, 1) & enough)


def normals(points_BHW3: Tensor) -> Tensor:
    """Unit normals (B, H - 1, W - 1, 3) of a point map, from neighbouring pixels."""
    right = points_BHW3[:, :-1, 1:] - points_BHW3[:, :-1, :-1]
    down = points_BHW3[:, 1:, :-1] - points_BHW3[:, :-1, :-1]
    cross = torch.linalg.cross(right, down, dim=-1)
    return cross / (cross.square().sum(-1, keepdim=True) + 1e-18).sqrt()


def normal_loss(points: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean of 1 - cos between normals, away from edges of depth.

    Scale and z-shift are applied first: a shift turns surfaces.
    """
    scale, shift = align_pictures(points, truth, valid)
    aligned = scale[:, None, None, None] * points + shift[:, None, None]
    z = truth[..., 2]
    smooth = (z[:, 1:, :-1] - z[:, :-1, :-1]).abs() < 0.02 * z[:, :-1, :-1]
    smooth &= (z[:, :-1, 1:] - z[:, :-1, :-1]).abs() < 0.02 * z[:, :-1, :-1]
    ok = valid[:, :-1, :-1] & valid[:, 1:, :-1] & valid[:, :-1, 1:] & smooth
    return _mean(1 - (normals(aligned) * normals(truth)).sum(-1), ok)


def mask_loss(mask: Tensor, valid: Tensor) -> Tensor:
    """Squared error of the raw mask (B, H, W) against 0 and 1, as published."""
    return F.mse_loss(mask.float(), valid.float())


def depth_figures(points: Tensor, truth: Tensor, valid: Tensor) -> dict[str, float]:
    """Depth errors after the alignment of whole pictures: mean relative error, share within 25 %.

    Also those of a depth that is the same everywhere (the best constant, by the same alignment),
    for comparison.
    """
    scale, shift = align_pictures(points, truth, valid)
    depth = scale[:, None, None] * points[..., 2] + shift[:, 2, None, None]
    z = truth[..., 2]
    middle = torch.stack(
        [t[m].median() if m.any() else t.new_ones(()) for t, m in zip(z, valid, strict=True)]
    )
    figures = {}
    for name, guess in (('', depth), ('constant_', middle[:, None, None].expand_as(z))):
        guess = guess.clamp_min(1e-3)
        ratio = torch.maximum(guess / z.clamp_min(_TINY), z / guess)
        error = (guess - z).abs() / z.clamp_min(_TINY)
        figures[f'{name}depth_rel'] = float(_mean(error, valid))
        figures[f'{name}delta1'] = float(_mean((ratio < 1.25).float(), valid))
    return figures


def _mean(value: Tensor, valid: Tensor) -> Tensor:
    """Mean over valid entries, 0 where there are none; what is not valid may be anything."""
    kept = torch.where(valid, value, torch.zeros_like(value))
    return kept.sum() / valid.sum().clamp_min(1)
