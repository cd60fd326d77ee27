"""Camera recovery from point maps: synthetic truth, and MoGe's own answers where they are."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from spear_ros.networks import moge_geometry as geometry

VECTORS = Path(__file__).parents[2] / '../shared/data/moge_vectors'


def synthetic(height, width, focal, shift, seed=0):
    """Points that project exactly to their pixels once ``shift`` is added to z."""
    generator = torch.Generator().manual_seed(seed)
    depth = 1 + torch.rand(height, width, generator=generator, dtype=torch.float64)
    uv = geometry.image_plane_uv(height, width, width / height, depth)
    return torch.cat([uv * depth[..., None] / focal, depth[..., None] - shift], dim=-1)


@pytest.mark.parametrize('size', [(48, 64), (80, 50), (200, 300)])
@pytest.mark.parametrize(('focal', 'shift'), [(0.7, 0.3), (1.5, -0.4), (3.0, 0.0)])
def test_focal_and_shift_of_a_synthetic_camera_are_exact(size, focal, shift):
    found = geometry.recover_focal_shift(synthetic(*size, focal, shift))
    assert found == pytest.approx((focal, shift), abs=1e-9)


def test_a_known_focal_leaves_only_the_shift():
    found = geometry.recover_focal_shift(synthetic(48, 64, 1.7, 0.25), focal=1.7)
    assert found == pytest.approx((1.7, 0.25), abs=1e-9)


def test_masked_pixels_have_no_say():
    points = synthetic(128, 128, 1.2, 0.3)
    mask = torch.ones(128, 128, dtype=torch.bool)
    mask[:40] = False
    points[:40] = 1e3
    assert geometry.recover_focal_shift(points, mask) == pytest.approx((1.2, 0.3), abs=1e-9)


@pytest.mark.parametrize('count', [0, 1])
def test_fewer_than_two_pixels_give_a_neutral_camera(count):
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask.view(-1)[:count] = True
    assert geometry.recover_focal_shift(synthetic(64, 64, 1.2, 0.3), mask) == (1.0, 0.0)


def test_unprojecting_and_projecting_gives_the_pixel_centres_back():
    depth = 1 + torch.rand(30, 40, dtype=torch.float64)
    camera = geometry.intrinsics(1.3, 40 / 30, depth)
    points = geometry.unproject(depth, camera)
    image = points @ camera.T
    u = image[..., 0] / image[..., 2] * 40 - 0.5
    assert torch.allclose(u, torch.arange(40, dtype=torch.float64).expand(30, 40), atol=1e-12)
    assert torch.equal(points[..., 2], depth)


@pytest.mark.parametrize('size', [(480, 640), (640, 480)])
def test_field_of_view_and_intrinsics_agree(size):
    height, width = size
    focal = geometry.focal_from_fov(62.5, width / height)
    camera = geometry.intrinsics(focal, width / height, torch.zeros(1, dtype=torch.float64))
    assert 2 * math.degrees(math.atan(0.5 / camera[0, 0])) == pytest.approx(62.5)
    assert (camera[0, 0] * width).item() == pytest.approx((camera[1, 1] * height).item())


@pytest.fixture(scope='module')
def recover_vectors():
    if not (VECTORS / 'recover.npz').exists():
        pytest.skip('../shared/data/moge_vectors/recover.npz is absent')
    return np.load(VECTORS / 'recover.npz')


@pytest.mark.parametrize('name', ['landscape', 'portrait'])
@pytest.mark.parametrize('case', ['free', 'masked', 'given_focal', 'empty_mask'])
def test_noisy_point_maps_give_the_answers_of_moge(recover_vectors, name, case):
    """MoGe stops early (relative change 1e-3), so a converged fit may be 3e-3 away from it."""
    points = torch.from_numpy(recover_vectors[f'{name}/points'])
    mask = torch.from_numpy(recover_vectors[f'{name}/mask'])
    mask = {'free': None, 'empty_mask': torch.zeros_like(mask)}.get(case, mask)
    found = geometry.recover_focal_shift(points, mask, 1.7 if case == 'given_focal' else None)
    np.testing.assert_allclose(found, recover_vectors[f'{name}/{case}/focal_shift'], atol=3e-3)


@pytest.mark.parametrize('name', ['landscape', 'portrait'])
def test_noisy_point_maps_converge_where_an_independent_solver_does(recover_vectors, name):
    optimize = pytest.importorskip('scipy.optimize')
    points = recover_vectors[f'{name}/points'].astype(float)
    height, width = points.shape[:2]
    uv = geometry.image_plane_uv(height, width, width / height, torch.zeros(1).double()).numpy()
    rows, columns = (np.floor(np.arange(64) * n / 64).astype(int) for n in (height, width))
    xy, z, uv = points[rows][:, columns, :2], points[rows][:, columns, 2:], uv[rows][:, columns]

    def residual(shift):
        p = xy / (z + shift)
        return ((p * uv).sum() / (p * p).sum() * p - uv).ravel()

    fit = optimize.least_squares(residual, 0.0, method='lm', ftol=1e-15, xtol=1e-15, gtol=1e-15)
    _, shift = geometry.recover_focal_shift(torch.from_numpy(points))
    assert shift == pytest.approx(fit.x[0], abs=1e-6)
