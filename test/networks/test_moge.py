"""MoGe's encoder against transformers' Dinov2Model; against MoGe itself see test_moge_head.py."""

import copy
import dataclasses

import pytest
import torch

from spear_ros.networks.moge import MogeEncoder, imagenet_normalize

transformers = pytest.importorskip('transformers', reason='transformers is the oracle here')


@pytest.fixture
def oracle(scramble):
    config = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        mlp_ratio=2,
        image_size=56,
        patch_size=14,
        hidden_act='gelu',
        layer_norm_eps=1e-6,
    )
    return scramble(transformers.Dinov2Model(config))


@pytest.fixture
def encoder(oracle, vit_config, copy_vit):
    ours = MogeEncoder(dataclasses.replace(vit_config, mlp_width=64)).eval()
    embeddings = oracle.embeddings
    with torch.no_grad():
        ours.patch.weight.copy_(embeddings.patch_embeddings.projection.weight)
        ours.patch.bias.copy_(embeddings.patch_embeddings.projection.bias)
        ours.cls_token.copy_(embeddings.cls_token[0, 0])
        ours.position.table.copy_(embeddings.position_embeddings[0])
    for block, layer in zip(ours.blocks, oracle.encoder.layer, strict=True):
        copy_vit(
            block, (layer.norm1, layer.norm2), layer.attention, layer.attention.o_proj, layer.mlp
        )
        with torch.no_grad():
            block.scale1.copy_(layer.layer_scale1.lambda1)
            block.scale2.copy_(layer.layer_scale2.lambda1)
    ours.norm.load_state_dict(oracle.layernorm.state_dict())
    # transformers interpolates the table to another set of points: give it MoGe's
    embeddings.interpolate_pos_encoding = lambda _, height, width: ours.position(
        height // 14, width // 14
    )[None].to(ours.cls_token.dtype)
    return ours


def run(oracle, pixels):
    """Normed outputs of the last two layers, without class token, on channels."""
    hidden = oracle(pixels, output_hidden_states=True).hidden_states[-2:]
    return torch.cat([oracle.layernorm(h)[:, 1:] for h in hidden], dim=-1)


SIZES = [(56, 56), (42, 70), (210, 280)]


@torch.no_grad()
@pytest.mark.parametrize('size', SIZES)
def test_float32_features_agree_on_any_grid(oracle, encoder, relative, size):
    pixels = torch.randn(2, 3, *size)
    assert relative(encoder(pixels, layers=2), run(oracle, pixels)) < 1e-5


@torch.no_grad()
def test_bfloat16_features_agree_within_the_oracles_noise(
    oracle, encoder, assert_within_oracle_noise
):
    pixels = torch.randn(2, 3, 42, 70)
    exact = run(oracle, pixels)
    encoder.bfloat16()
    theirs = run(oracle.bfloat16(), pixels.bfloat16())
    assert_within_oracle_noise(encoder(pixels, layers=2), theirs, exact)


@torch.no_grad()
def test_features_without_norm_are_the_blocks_own(encoder):
    pixels = torch.randn(1, 3, 42, 70)
    plain = encoder.intermediate(pixels, 2, norm=False)
    normed = encoder.intermediate(pixels, 2)
    for a, b in zip(plain, normed, strict=True):
        assert torch.equal(encoder.norm(a), b)
    assert encoder(pixels, layers=2, norm=False).shape == (1, 15, 64)


def test_pixels_are_normalised_per_channel():
    picture = torch.tensor([0.485, 0.456, 0.406])[None, :, None, None] + torch.zeros(2, 3, 2, 2)
    assert imagenet_normalize(picture).abs().max() < 1e-7
    step = imagenet_normalize(picture + 1) - imagenet_normalize(picture)
    assert torch.allclose(step[0, :, 0, 0], 1 / torch.tensor([0.229, 0.224, 0.225]))


def test_deep_copies_are_independent(vit_config):
    encoder = MogeEncoder(vit_config)
    encoder.position.bake([(2, 2)], torch.float32)
    twin = copy.deepcopy(encoder)
    with torch.no_grad():
        twin.position.train().table.add_(1)
    assert not torch.allclose(twin.position(2, 2), encoder.position(2, 2))
