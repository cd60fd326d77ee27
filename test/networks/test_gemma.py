"""Gemma against transformers' GemmaModel, with block masks; the two forms of attention."""

import copy

import pytest
import torch

from spear_ros.networks.gemma import GemmaModel, RmsNorm, attend, rotary, rotate


@pytest.mark.parametrize('groups', [1, 2, 4])
@pytest.mark.parametrize('masked', [False, True])
def test_folding_heads_into_query_rows_changes_nothing(groups, masked):
    q = torch.randn(2, 3, 4, 16)
    k, v = torch.randn(2, 2, groups, 7, 16).unbind(0)
    keys = torch.rand(2, 1, 1, 7) > 0.3
    keys[..., 0] = True
    folded = attend(q, k, v, keys if masked else None)
    mask = keys.expand(2, 1, 3, 7) if masked else torch.ones(1, 1, 3, 7, dtype=torch.bool)
    assert torch.allclose(folded, attend(q, k, v, mask), atol=1e-6)


def test_rotary_positions_are_relative():
    q, k = torch.randn(2, 1, 5, 1, 16).unbind(0)
    positions = torch.arange(5)[None]

    def scores(offset):
        factors = rotary(positions + offset, 16, 1e4)
        return rotate(q, factors)[0, :, 0] @ rotate(k, factors)[0, :, 0].T

    assert torch.allclose(scores(0), scores(100), atol=1e-4)
    assert not torch.allclose(scores(0), q[0, :, 0] @ k[0, :, 0].T, atol=1e-2)


def test_norm_scales_by_one_plus_the_weight():
    norm = RmsNorm(8, 1e-6)
    x = torch.randn(3, 8)
    assert torch.allclose(norm(x).square().mean(-1), torch.ones(3), atol=1e-4)
    with torch.no_grad():
        norm.weight.fill_(1.0)
    assert torch.allclose(norm(x).square().mean(-1), torch.full((3,), 4.0), atol=1e-3)


def test_embedding_scale_is_rounded_to_the_weights_dtype(gemma_config):
    model = GemmaModel(gemma_config).bfloat16()
    tokens = torch.arange(5)[None]
    factor = torch.tensor(32**0.5).bfloat16()
    assert torch.equal(model.embed(tokens), model.embedding(tokens) * factor)


@pytest.fixture
def oracle(gemma_config, scramble):
    transformers = pytest.importorskip('transformers', reason='transformers is the oracle here')
    c = gemma_config
    config = transformers.GemmaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        head_dim=c.head_dim,
        intermediate_size=c.mlp_width,
        rms_norm_eps=c.norm_eps,
        hidden_act='gelu_pytorch_tanh',
        hidden_activation='gelu_pytorch_tanh',
        rope_theta=c.rope_theta,
    )
    return scramble(transformers.GemmaModel(config), 0.1)


@pytest.fixture
def model(oracle, gemma_config, copy_gemma):
    ours = GemmaModel(gemma_config).eval()
    copy_gemma(ours, oracle)
    with torch.no_grad():
        ours.embedding.weight.copy_(oracle.embed_tokens.weight)
    return ours


def block_mask(batch, tokens):
    """Bidirectional blocks of 4, block-causal, with padding in the middle of the second sample."""
    block = torch.arange(tokens) // 4
    mask = (block[None, :] <= block[:, None]).expand(batch, 1, tokens, tokens).clone()
    mask[1, :, :, 5:7] = False
    return mask


def run(oracle, x, mask, positions):
    return oracle(inputs_embeds=x, attention_mask=mask, position_ids=positions).last_hidden_state


@torch.no_grad()
def test_float32_agrees_with_a_block_mask_and_free_positions(oracle, model, relative):
    x, positions = torch.randn(2, 12, 32), torch.randint(0, 50, (2, 12)).sort(1).values
    mask = block_mask(2, 12)
    assert relative(model(x, mask, positions), run(oracle, x, mask, positions)) < 1e-5


@torch.no_grad()
def test_float32_agrees_from_token_ids(oracle, model, relative):
    tokens, positions = torch.randint(0, 64, (2, 12)), torch.arange(12)[None]
    mask = torch.ones(2, 1, 12, 12, dtype=torch.bool)
    theirs = oracle(input_ids=tokens, attention_mask=mask, position_ids=positions)
    ours = model(model.embed(tokens), None, positions)
    assert relative(ours, theirs.last_hidden_state) < 1e-5


@torch.no_grad()
def test_bfloat16_agrees_within_the_oracles_noise(oracle, model, assert_within_oracle_noise):
    x, positions, mask = torch.randn(2, 12, 32), torch.arange(12)[None], block_mask(2, 12)
    exact = run(oracle, x, mask, positions)
    theirs = run(copy.deepcopy(oracle).bfloat16(), x.bfloat16(), mask, positions)
    assert_within_oracle_noise(model.bfloat16()(x.bfloat16(), mask, positions), theirs, exact)
