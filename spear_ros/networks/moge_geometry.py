"""Cameras from MoGe's point maps: image-plane coordinates, focal and shift recovery, projection.

MoGe-1 predicts points up to one scale and one shift along the optical axis. Focal length and shift
are recovered by asking that the points project to the pixels they came from; the scale stays
unknown (points are not metric). Camera frame: x right, y down, z forward. Formulas:
microsoft/MoGe v1 (arXiv 2410.19115).
"""

import math

import torch
from torch import Tensor

SAMPLES = 64  # MoGe fits on a 64 x 64 subset of pixels
_MAX_ITERATIONS = 100


def image_plane_uv(height: int, width: int, aspect: float, like: Tensor) -> Tensor:
    """Pixel centres (H, W, 2) as (u, v), in units of half the image diagonal.

    ``aspect`` is width / height of the picture itself; a token grid of the picture differs.
    """
    span_u = aspect / math.sqrt(1 + aspect**2)
    span_v = 1 / math.sqrt(1 + aspect**2)
    edge_u, edge_v = span_u * (width - 1) / width, span_v * (height - 1) / height
    u = torch.linspace(-edge_u, edge_u, width, dtype=like.dtype, device=like.device)
    v = torch.linspace(-edge_v, edge_v, height, dtype=like.dtype, device=like.device)
    return torch.stack(torch.meshgrid(u, v, indexing='xy'), dim=-1)


def recover_focal_shift(
    points_HW3: Tensor, mask_HW: Tensor | None = None, focal: float | None = None
) -> tuple[float, float]:
    """Fit focal length and z-shift t of one point map: minimise |f xy / (z + t) - uv|.

    Args:
        points_HW3: affine-invariant points (H, W, 3).
        mask_HW: pixels to use (bool), all by default.
        focal: known focal length (in units of half the diagonal); fitted when None, in closed
            form for each t.

    Returns:
        (focal, shift); (1, 0) with fewer than two usable pixels, as MoGe does. MoGe stops its
        optimiser early, at a relative change of 1e-3; this one converges.
    """
    height, width = points_HW3.shape[:2]
    uv = image_plane_uv(height, width, width / height, points_HW3.double())
    rows, columns = (_sample_index(n, points_HW3.device) for n in (height, width))
    points = points_HW3.double()[rows][:, columns].reshape(-1, 3)
    uv = uv[rows][:, columns].reshape(-1, 2)
    if mask_HW is not None:
        chosen = mask_HW[rows][:, columns].reshape(-1)
        points, uv = points[chosen], uv[chosen]
    if len(points) < 2:
        return 1.0, 0.0
    return _fit(points[:, :2], points[:, 2:], uv, focal)


def focal_from_fov(fov_x_deg: float, aspect: float) -> float:
    """Focal length in units of half the diagonal from the horizontal field of view."""
    return aspect / math.sqrt(1 + aspect**2) / math.tan(math.radians(fov_x_deg / 2))


def intrinsics(focal: float, aspect: float, like: Tensor) -> Tensor:
    """Camera matrix (3, 3) normalised by image width and height, principal point in the centre."""
    fy = focal / 2 * math.sqrt(1 + aspect**2)
    matrix = [[fy / aspect, 0.0, 0.5], [0.0, fy, 0.5], [0.0, 0.0, 1.0]]
    return torch.tensor(matrix, dtype=like.dtype, device=like.device)


def unproject(depth_HW: Tensor, camera_33: Tensor) -> Tensor:
    """Points (H, W, 3) of a depth map seen through a normalised camera matrix."""
    height, width = depth_HW.shape
    u = (torch.arange(width, device=depth_HW.device).to(depth_HW) + 0.5) / width
    v = (torch.arange(height, device=depth_HW.device).to(depth_HW) + 0.5) / height
    x = (u - camera_33[0, 2]) / camera_33[0, 0]
    y = (v - camera_33[1, 2]) / camera_33[1, 1]
    rays = torch.stack([*torch.meshgrid(x, y, indexing='xy'), torch.ones_like(depth_HW)], dim=-1)
    return rays * depth_HW[..., None]


def _sample_index(count: int, device: torch.device) -> Tensor:
    """Indices floor(i * count / 64): nearest-neighbour downsampling as MoGe's."""
    return torch.arange(SAMPLES, device=device) * count // SAMPLES


def _residual(
    xy: Tensor, z: Tensor, uv: Tensor, shift: float, focal: float | None
) -> tuple[float, Tensor, Tensor]:
    """Focal, residual and its derivative by the shift (variable projection of the focal)."""
    p = xy / (z + shift)
    slope = -p / (z + shift)
    if focal is not None:
        return focal, focal * p - uv, focal * slope
    pp, pu = (p * p).sum(), (p * uv).sum()
    f = pu / pp
    df = ((slope * uv).sum() - 2 * f * (p * slope).sum()) / pp
    return float(f), f * p - uv, df * p + f * slope


def _fit(xy: Tensor, z: Tensor, uv: Tensor, focal: float | None) -> tuple[float, float]:
    """Levenberg-Marquardt on the shift, from 0, to convergence in float64."""
    shift, damping = 0.0, 1e-3
    f, residual, slope = _residual(xy, z, uv, shift, focal)
    cost = float(residual.square().sum())
    for _ in range(_MAX_ITERATIONS):
        curvature = float(slope.square().sum())
        if curvature == 0.0:
            break
        step = -float((slope * residual).sum()) / (curvature * (1 + damping))
        trial = _residual(xy, z, uv, shift + step, focal)
        trial_cost = float(trial[1].square().sum())
        if trial_cost <= cost:
            shift, cost, damping = shift + step, trial_cost, damping / 10
            f, residual, slope = trial
        else:
            damping *= 10
        if abs(step) <= 1e-13 * (1 + abs(shift)) or damping > 1e12:
            break
    return f, shift
