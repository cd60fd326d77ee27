"""MoGe-1 against numbers made by running the published model class on tiny random weights.

Covers encoder, head, full forward, camera recovery and inference. The vectors' README lists which
mistakes each array detects.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from spear_ros.networks.config import VitConfig
from spear_ros.networks.moge import imagenet_normalize
from spear_ros.networks.moge_head import MogeConfig, MogeHeadConfig, MogeModel

VECTORS = Path(__file__).parents[2] / '../shared/data/moge_vectors'
TINY = MogeConfig(
    encoder=VitConfig(width=64, layers=6, heads=2, mlp_width=256, table_rows=37, table_columns=37),
    head=MogeHeadConfig(projected=40, upsampled=(48, 32, 16), last_channels=24),
)
RENAMES = (
    (r'^backbone\.patch_embed\.proj\.', 'encoder.patch.'),
    (r'^backbone\.pos_embed$', 'encoder.position.table'),
    (r'^backbone\.', 'encoder.'),
    (r'\.attn\.qkv\.', '.attention.qkv.'),
    (r'\.attn\.proj\.', '.attention.out.'),
    (r'\.ls([12])\.gamma$', r'.scale\1'),
)

needs_vectors = pytest.mark.skipif(
    not (VECTORS / 'model.pt').exists(), reason='../shared/data/moge_vectors is absent'
)


@pytest.fixture(scope='module')
def model():
    state = torch.load(VECTORS / 'model.pt', weights_only=True)['model']
    renamed = {}
    for name, value in state.items():
        if name in ('image_mean', 'image_std', 'backbone.mask_token'):
            continue
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        squeeze = name in ('encoder.position.table', 'encoder.cls_token')
        renamed[name] = (
            value.reshape(value.shape[-2:] if 'table' in name else -1) if squeeze else value
        )
    model = MogeModel(TINY)
    model.load_state_dict(renamed)
    return model.eval()


@pytest.fixture(scope='module')
def vectors():
    names = ('inputs', 'encoder', 'forward', 'infer')
    return {name: np.load(VECTORS / f'{name}.npz') for name in names}


def image(array):
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255


def encoder_input(vectors, name, size):
    inputs = vectors['inputs']
    key = f'{name}/enc_{size}'
    return image(inputs[key if key in inputs.files else f'{name}/image'])


def subset(count, step):
    """The border and every step-th index."""
    return sorted({0, 1, count - 2, count - 1, *range(0, count, step)})


@pytest.fixture
def close(record_property):
    """Compare with an absolute tolerance; the error is noted for benchmarks/parity_table.py."""

    def check(ours, theirs, atol):
        ours = ours.detach().numpy()
        np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0)
        finite = np.isfinite(theirs)
        record_property('absolute', float(np.abs(ours[finite] - theirs[finite]).max(initial=0.0)))

    return check


@needs_vectors
@torch.no_grad()
def test_positional_table_of_each_grid(close, model, vectors):
    for rows, columns in ((15, 20), (8, 8)):
        table = model.encoder.position(rows, columns)
        close(table, vectors['encoder'][f'pos/{rows}x{columns}'], 1e-6)


@needs_vectors
@torch.no_grad()
@pytest.mark.parametrize('name', ['photo', 'bridge'])
@pytest.mark.parametrize('size', ['280x210', '112x112'])
def test_encoder_features_and_class_token(close, model, vectors, name, size):
    pixels = imagenet_normalize(encoder_input(vectors, name, size))
    expected = vectors['encoder']
    close(pixels[0, :, ::35, ::40], expected[f'{name}/{size}/pixels_sub'], 2e-6)
    outputs = torch.cat(model.encoder.intermediate(pixels, 4))
    features, cls = expected[f'{name}/{size}/features'], expected[f'{name}/{size}/cls']
    close(outputs[:, 1:], features, 1e-4)
    close(outputs[:, 0], cls, 1e-4)
    joined = model.encoder(pixels)
    assert torch.equal(joined[0], outputs[:, 1:].permute(1, 0, 2).flatten(1))
    assert np.abs(outputs[:, 1:].numpy() - features).max() < 1e-5 * np.abs(features).max()


@needs_vectors
@torch.no_grad()
def test_encoder_before_the_first_block_and_before_the_final_norm(close, model, vectors):
    pixels = imagenet_normalize(encoder_input(vectors, 'bridge', '112x112'))
    expected = vectors['encoder']
    close(model.encoder.embed(pixels)[0], expected['bridge/112x112/tokens_in'], 2e-6)
    outputs = torch.cat(model.encoder.intermediate(pixels, 4, norm=False))
    close(outputs[:, 1:], expected['bridge/112x112/features_prenorm'], 1e-4)


@needs_vectors
@torch.no_grad()
def test_bfloat16_encoder_stays_within_the_published_noise(model, vectors):
    pixels = imagenet_normalize(encoder_input(vectors, 'bridge', '280x210'))
    expected = torch.from_numpy(vectors['encoder']['bridge/280x210/features'])
    low = MogeModel(TINY).bfloat16()
    low.load_state_dict(model.state_dict())
    outputs = torch.cat(low.encoder.intermediate(pixels, 4))[:, 1:].float()
    error = (outputs - expected).square().mean().sqrt()
    assert error < 0.02
    assert torch.cosine_similarity(outputs, expected, dim=-1).min() > 0.998


@needs_vectors
def test_sizes_and_levels(model):
    cases = json.loads((VECTORS / 'geometry_cases.json').read_text())
    levels = cases['num_tokens_by_level']['levels_0_to_9']
    assert [TINY.num_tokens(level) for level in range(10)] == levels
    for height, width, tokens, *expected in cases['sizes']:
        resized, image14 = model.resize(torch.zeros(1, 3, height, width), tokens)
        grid = [n // 14 for n in image14.shape[-2:]]
        assert [*resized.shape[-2:], *grid] == expected


@needs_vectors
@torch.no_grad()
@pytest.mark.parametrize('name', ['photo', 'bridge'])
def test_every_stage_of_the_forward_pass(close, model, vectors, name):
    expected = {k.removeprefix(f'{name}/1200/'): v for k, v in vectors['forward'].items()}
    picture = image(vectors['inputs'][f'{name}/image'])
    resized, image14 = model.resize(picture, 1200)
    close(resized[0, :, ::37, ::41], expected['resized_sub'], 1e-5)
    close(image14[0, :, ::37, ::41], expected['image14_sub'], 1e-5)
    features = [x[:, 1:] for x in model.encoder.intermediate(image14, 4)]
    close(torch.cat(features)[:, ::61], expected['features_sub'], 1e-4)
    size = tuple(resized.shape[-2:])
    grid = tuple(n // 14 for n in image14.shape[-2:])
    assert list(grid) == expected['grid_hw'].tolist()
    stages = model.head.stages(features, grid, size[1] / size[0])
    for i, stage in enumerate(stages):
        rows, columns = (subset(n, n // 4) for n in stage.shape[-2:])
        close(stage[0][:, rows][:, :, columns], expected[f'stage{i}_sub'], 1e-4)
    rows, columns = (subset(n, 24) for n in size)
    outputs = model.head.outputs(stages[-1], size)
    for output, key in zip(outputs, ('head_points_sub', 'head_mask_sub'), strict=True):
        close(output[0][:, rows][:, :, columns], expected[key], 1e-4)


@needs_vectors
@torch.no_grad()
@pytest.mark.parametrize(('name', 'tokens'), [('photo', 1200), ('photo', 2500), ('bridge', 1200)])
def test_points_and_mask(close, model, vectors, name, tokens):
    expected = vectors['forward']
    points, mask = model(image(vectors['inputs'][f'{name}/image']), tokens)
    rows, columns = expected[f'{name}/rows'], expected[f'{name}/cols']
    close(points[0][rows][:, columns], expected[f'{name}/{tokens}/points'], 1e-4)
    close(mask[0][rows][:, columns], expected[f'{name}/{tokens}/mask'], 1e-4)
    moments = expected[f'{name}/{tokens}/points_moments']
    flat = points.double().reshape(-1, 3)
    close(torch.stack([flat.mean(0), flat.std(0, correction=0)]), moments, 5e-6)


MODES = {
    'auto_proj': {},
    'auto_noproj': {'force_projection': False, 'apply_mask': False},
    'fov_proj': {'fov_x_deg': 62.5, 'apply_mask': False},
    'fov_noproj': {'fov_x_deg': 62.5, 'force_projection': False},
}


@needs_vectors
@pytest.mark.parametrize(
    ('name', 'mode'),
    [*(('photo', m) for m in MODES), ('photo_T', 'auto_proj'), ('photo_T', 'fov_proj')],
)
def test_inference_with_camera_recovery(close, model, vectors, name, mode):
    expected = vectors['infer']
    prefix = f'{name}/1200/{mode}/'
    picture = image(vectors['inputs']['photo/image'])
    if name == 'photo_T':
        picture = picture.transpose(2, 3)
    result = model.infer(picture, num_tokens=1200, **MODES[mode])
    np.testing.assert_array_equal(result.mask[0].numpy(), expected[f'{name}/1200/mask'])
    close(result.focal[0], expected[f'{prefix}focal_converged'], 1e-5)
    close(result.shift[0], expected[f'{prefix}shift_converged'], 1e-5)
    close(result.intrinsics[0], expected[f'{prefix}intrinsics'], 3e-3)
    rows, columns = expected[f'{name}/rows'], expected[f'{name}/cols']
    ours, theirs = result.depth[0][rows][:, columns], expected[f'{prefix}depth']
    np.testing.assert_array_equal(np.isinf(ours.numpy()), np.isinf(theirs))
    # their shift stops early, up to 1.5e-3 from the optimum; undo it before comparing depths
    early = torch.from_numpy(expected[f'{prefix}shift']) - result.shift[0]
    close(ours + early, theirs, 1e-4)
    close(result.points[0][rows][:, columns], expected[f'{prefix}points'], 1e-2)


@needs_vectors
def test_default_level_is_the_finest(close, model, vectors):
    picture = image(vectors['inputs']['bridge/image'])
    expected = vectors['infer']
    result = model.infer(picture)
    close(result.focal[0], expected['bridge/2500/auto_proj/focal_converged'], 1e-5)
    close(result.shift[0], expected['bridge/2500/auto_proj/shift_converged'], 1e-5)


def test_published_size_has_the_published_number_of_parameters():
    with torch.device('meta'):
        model = MogeModel(MogeConfig())
    count = sum(p.numel() for p in model.parameters())
    assert count == pytest.approx(314.174e6, rel=1e-5)  # 314M, less the mask token's 1024
    assert sum(p.numel() for p in model.head.parameters()) == pytest.approx(9.805e6, rel=1e-4)
