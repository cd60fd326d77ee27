"""SigLIP against transformers' SiglipVisionModel, square and not."""

import copy

import pytest
import torch

from spear_ros.networks.siglip import SiglipEncoder

transformers = pytest.importorskip('transformers', reason='transformers is the oracle here')


@pytest.fixture
def oracle(scramble):
    config = transformers.SiglipVisionConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        patch_size=14,
        image_size=56,
        layer_norm_eps=1e-6,
        hidden_act='gelu_pytorch_tanh',
        vision_use_head=False,
    )
    return scramble(transformers.SiglipVisionModel(config))


@pytest.fixture
def encoder(oracle, vit_config, copy_vit):
    ours = SiglipEncoder(vit_config).eval()
    with torch.no_grad():
        ours.patch.weight.copy_(oracle.embeddings.patch_embedding.weight)
        ours.patch.bias.copy_(oracle.embeddings.patch_embedding.bias)
        ours.position.table.copy_(oracle.embeddings.position_embedding.weight)
    for block, layer in zip(ours.blocks, oracle.encoder.layers, strict=True):
        norms = layer.layer_norm1, layer.layer_norm2
        copy_vit(block, norms, layer.self_attn, layer.self_attn.out_proj, layer.mlp)
    ours.norm.load_state_dict(oracle.post_layernorm.state_dict())
    return ours


SIZES = [(56, 56), (42, 70), (210, 280), (112, 112)]


def run(oracle, pixels):
    return oracle(pixels, interpolate_pos_encoding=True).last_hidden_state


@torch.no_grad()
@pytest.mark.parametrize('size', SIZES)
def test_float32_features_agree_on_any_grid(oracle, encoder, relative, size):
    pixels = torch.rand(2, 3, *size) * 2 - 1
    assert relative(encoder(pixels), run(oracle, pixels)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize('size', SIZES)
def test_bfloat16_features_agree_within_the_oracles_noise(
    oracle, encoder, assert_within_oracle_noise, size
):
    pixels = torch.rand(2, 3, *size) * 2 - 1
    low = copy.deepcopy(oracle).bfloat16()
    theirs = run(low, pixels.bfloat16())
    assert_within_oracle_noise(encoder.bfloat16()(pixels), theirs, run(oracle, pixels))
