"""MoGe-1's losses against what they must not see, and a short training on synthetic rooms."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_ros.checkpoints.moge import load_moge_model, open_moge
from spear_ros.core.errors import UserError
from spear_ros.data.depth_scenes import DepthPicture, DepthScenes, shrink, write_scenes
from spear_ros.networks.moge_geometry import recover_focal_shift
from spear_ros.training import moge_losses
from spear_ros.training.distributed import Place
from spear_ros.training.moge_task import MogeTask, load_pictures, mirrored, point_maps
from spear_ros.training.recipes import change, find_recipe
from spear_ros.training.trainer import Trainer

SIZE = (84, 112)


def room(seed, height=84, width=112):
    """A floor, a wall and a ball with exact depth; a sky where the wall ends."""
    rng = np.random.default_rng(seed)
    fov = float(rng.uniform(0.7, 1.2))
    v, u = np.mgrid[0:height, 0:width]
    half = np.tan(fov / 2)
    y = (2 * (v + 0.5) / height - 1) * half
    x = (2 * (u + 0.5) / width - 1) * half * width / height
    floor = np.where(y > 0.02, rng.uniform(0.2, 0.5) / np.maximum(y, 0.02), np.inf)
    wall = np.where(x < rng.uniform(-0.2, 0.2), rng.uniform(1.5, 2.5), np.inf)
    depth = np.minimum(floor, wall)
    ball = (x - 0.1) ** 2 + y**2 < 0.03
    depth = np.where(ball, np.minimum(depth, 0.8), depth)
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.where(np.isinf(depth), 20, 200)
    image[..., 1] = np.where(ball, 230, 90)
    image[..., 2] = (255 * np.clip(y + 0.5, 0, 1)).astype(np.uint8)
    return DepthPicture(image, np.where(np.isfinite(depth), depth, 1e9), fov)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes')
    write_scenes(folder / 'scenes-a.npz', [room(i) for i in range(8)])
    return folder


@pytest.fixture(scope='module')
def inputs(scenes):
    return point_maps(load_pictures(DepthScenes([scenes]), [0, 1, 2], SIZE), torch.device('cpu'))


def test_a_smaller_picture_has_depth_of_one_surface_only(scenes):
    whole = DepthScenes([scenes])[0]
    small = shrink(whole, (SIZE[0] // 2, SIZE[1] // 2), 'a')
    assert small.image.shape == (SIZE[0] // 2, SIZE[1] // 2, 3)
    quads = whole.depth_m.reshape(SIZE[0] // 2, 2, SIZE[1] // 2, 2).swapaxes(1, 2)
    quads = quads.reshape(*small.depth_m.shape, 4)
    known = quads > 0
    nearest = np.where(known, quads, np.inf).min(-1)
    there = small.depth_m > 0
    np.testing.assert_array_equal(there, known.sum(-1) > 2)
    assert np.all(small.depth_m[there] >= nearest[there])
    assert np.all(small.depth_m[there] <= 1.02 * nearest[there])
    edge = there & (quads.max(-1) > 1.5 * nearest)
    assert edge.any()
    np.testing.assert_array_equal(small.depth_m[edge], nearest[edge])


def test_a_picture_that_is_no_multiple_is_refused_by_name(scenes):
    with pytest.raises(UserError, match=r'npz#0: a picture of .* cannot be brought to'):
        load_pictures(DepthScenes([scenes]), [0], (SIZE[0] - 14, SIZE[1]))


def test_depth_and_field_of_view_survive_the_file(scenes):
    stored = DepthScenes([scenes])
    for i in range(8):
        true = room(i)
        depth = np.where(true.depth_m < 6.5, true.depth_m, 0)
        near = stored[i].depth_m[depth > 0]
        np.testing.assert_allclose(near, depth[depth > 0], atol=0.6e-4)
        assert stored[i].fov_y_rad == pytest.approx(true.fov_y_rad)


def test_a_damaged_or_empty_folder_is_named(scenes, tmp_path):
    with pytest.raises(UserError, match='spear depth-scenes'):
        DepthScenes([tmp_path])
    data = (scenes / 'scenes-a.npz').read_bytes()
    (tmp_path / 'scenes-b.npz').write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r'scenes-b\.npz: damaged'):
        DepthScenes([tmp_path])


def test_exact_points_give_back_the_focal_length_they_were_made_with(inputs):
    for i in range(3):
        focal, shift = recover_focal_shift(inputs['truth'][i], inputs['valid'][i])
        assert focal == pytest.approx(float(inputs['focal'][i]), rel=2e-2)
        assert abs(shift) < 2e-2


@settings(deadline=None, max_examples=15)
@given(st.floats(0.2, 5.0), st.floats(-0.2, 3.0))
def test_scale_and_depth_shift_of_a_prediction_cost_nothing(scale, shift):
    pictures = [room(i) for i in range(2)]
    batch = {
        'image': np.stack([p.image for p in pictures]),
        'depth_m': np.stack([np.where(p.depth_m < 6.5, p.depth_m, 0) for p in pictures]),
        'fov_y_rad': np.array([p.fov_y_rad for p in pictures]),
    }
    made = point_maps(batch, torch.device('cpu'))
    truth, valid, focal = (made[n].float() if n != 'valid' else made[n]
                           for n in ('truth', 'valid', 'focal'))  # fmt: skip
    guess = truth / scale - torch.tensor([0.0, 0.0, shift])
    assert float(moge_losses.global_loss(guess, truth, valid)) < 1e-3
    local = moge_losses.local_loss(guess, truth, valid, level=4, patches=8, focal=focal)
    assert float(local) < 2e-3
    figures = moge_losses.depth_figures(guess, truth, valid)
    assert figures['depth_rel'] < 1e-3
    assert figures['delta1'] > 0.999
    assert figures['constant_depth_rel'] > 0.1


def test_alignment_reaches_the_least_absolute_error_despite_outliers():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(1, 200, 3, generator=generator) + torch.tensor([0.0, 0.0, 1.0])
    truth = 2.0 * points + torch.tensor([0.0, 0.0, 0.5])
    truth[:, :40] += 3.0 * torch.rand(1, 40, 3, generator=generator)
    weight = torch.ones(1, 200)

    def error(scale, shift):
        return float((scale * points + torch.tensor([0.0, 0.0, shift]) - truth).abs().sum())

    scale, shift = moge_losses.align(points, truth, weight, shift_xy=False)
    found = error(float(scale), float(shift[0, 2]))
    grid = [(s, t) for s in np.linspace(1.8, 2.4, 61) for t in np.linspace(0.2, 0.9, 71)]
    assert found <= 1.01 * min(error(s, t) for s, t in grid)
    assert shift[0, :2].tolist() == [0.0, 0.0]


def test_what_is_not_valid_has_no_say(inputs):
    truth, valid = inputs['truth'], inputs['valid']
    guess = truth * 1.5 + 0.1 * torch.randn(truth.shape, generator=torch.manual_seed(0))
    spoilt = torch.where(valid[..., None], guess, torch.full_like(guess, 1e6))
    for loss in (moge_losses.global_loss, moge_losses.normal_loss):
        assert float(loss(guess, truth, valid)) == pytest.approx(
            float(loss(spoilt, truth, valid)), rel=1e-5
        )
    nothing = torch.zeros_like(valid)
    assert float(moge_losses.global_loss(guess, truth, nothing)) == 0.0


def test_a_mirrored_picture_shows_the_mirrored_world(inputs):
    flipped = mirrored(inputs, torch.tensor([True, False, True]))
    focal, _ = recover_focal_shift(flipped['truth'][0], flipped['valid'][0])
    assert focal == pytest.approx(float(inputs['focal'][0]), rel=2e-2)
    torch.testing.assert_close(flipped['truth'][1], inputs['truth'][1])
    again = mirrored(flipped, torch.tensor([True, False, True]))
    torch.testing.assert_close(again['truth'], inputs['truth'])


def test_training_improves_the_depth_and_exports_the_published_layout(scenes, tmp_path):
    config = change(
        find_recipe('moge', 'moge_debug'),
        [f'data.scenes={scenes}', f'data.validation={scenes}', 'steps=12', 'logging.every_steps=4'],
    )
    outcome = Trainer(MogeTask(config, tmp_path), tmp_path, Place()).run()
    lines = [json.loads(t) for t in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    losses = [line['loss'] for line in lines if line['kind'] == 'train']
    assert losses[-1] < losses[0]
    final = next(line for line in lines if line['kind'] == 'validation')
    assert 0 < final['held_out_depth_rel'] < 2
    model = load_moge_model(tmp_path / 'export')
    assert model.config.encoder == config.model.encoder
    names = set(open_moge(tmp_path / 'export').source.names())
    assert {'backbone.pos_embed', 'backbone.blocks.0.ls1.gamma', 'head.projects.0.weight'} <= names
    assert len(outcome.checkpoint_id) == 64
