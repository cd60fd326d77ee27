"""SPEAR-VLM: prefix against PaliGemma, answer masks, decoding with a cache."""

import dataclasses

import pytest
import torch

from spear_ros.networks.config import Spear1Config
from spear_ros.networks.spear_vlm import PrefixInputs, SpearVlm, prefix_lm_mask

CONFIG = Spear1Config.named('spear1_debug')


@pytest.fixture
def vlm(scramble):
    return scramble(SpearVlm(CONFIG), 0.05)


def make_inputs(batch=2, length=6, wrist=True, padded=False):
    generator = torch.Generator().manual_seed(3)
    mask = torch.arange(length) < torch.arange(length, length - batch, -1)[:, None]
    return PrefixInputs(
        external=torch.rand(batch, 3, *CONFIG.external_size, generator=generator),
        wrist=torch.rand(batch, 3, *CONFIG.wrist_size, generator=generator) if wrist else None,
        tokens=torch.randint(0, 500, (batch, length), generator=generator),
        token_mask=mask if padded else None,
    )


@torch.no_grad()
def test_visual_tokens_are_the_mean_of_both_projected_encoders(vlm):
    image = make_inputs().external
    joined = vlm.encode_image(image)
    assert joined.shape == (2, CONFIG.external_tokens, CONFIG.language.width)
    with_only = []
    for name in ('siglip_projector', 'moge_projector'):
        projector = getattr(vlm, name)
        kept = projector.state_dict()
        kept = {k: v.clone() for k, v in kept.items()}
        for parameter in projector.parameters():
            parameter.zero_()
        with_only.append(vlm.encode_image(image))
        projector.load_state_dict(kept)
    assert torch.allclose(with_only[0] + with_only[1], joined, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('wrist', [True, False])
def test_prefix_is_external_then_wrist_then_text(vlm, wrist):
    inputs = make_inputs(wrist=wrist)
    x, valid = vlm.embed_prefix(inputs)
    assert valid is None
    parts = [vlm.encode_image(inputs.external)]
    parts += [vlm.encode_image(inputs.wrist)] if wrist else []
    assert torch.equal(x, torch.cat([*parts, vlm.language.embed(inputs.tokens)], dim=1))


def test_answer_mask_is_bidirectional_before_and_causal_after():
    answer = torch.tensor([[False, True, True]])
    mask = prefix_lm_mask(4, None, answer)[0, 0].int().tolist()
    assert mask == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_padding_is_looked_at_by_nobody():
    valid = torch.tensor([[True, True, True, False]])
    answer = torch.tensor([[True, False]])
    mask = prefix_lm_mask(4, valid, answer)[0, 0].int().tolist()
    assert mask == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]


@torch.no_grad()
def test_an_answer_token_changes_nothing_before_it(vlm):
    inputs = make_inputs()
    answer = (torch.arange(6) >= 3).expand(2, 6)
    changed = inputs.tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 500
    a = vlm(inputs, answer)
    b = vlm(dataclasses.replace(inputs, tokens=changed), answer)
    assert torch.equal(a[:, :4], b[:, :4])
    assert not torch.allclose(a[:, 4:], b[:, 4:])


@torch.no_grad()
@pytest.mark.parametrize('padded', [False, True])
def test_decoding_with_a_cache_equals_one_pass_over_the_whole_answer(vlm, padded):
    inputs = make_inputs(padded=padded)
    answer = torch.randint(0, 500, (2, 4))
    scores, cache = vlm.start_answer(inputs, max_tokens=4)
    steps = [scores] + [vlm.answer_step(answer[:, i : i + 1], cache) for i in range(4)]
    for sample in range(2):
        question = inputs.tokens[sample]
        if padded:
            question = question[inputs.token_mask[sample]]
        whole = PrefixInputs(
            external=inputs.external[sample : sample + 1],
            wrist=inputs.wrist[sample : sample + 1],
            tokens=torch.cat([question, answer[sample]])[None],
        )
        is_answer = torch.arange(whole.tokens.shape[1])[None] >= len(question)
        logits = vlm(whole, is_answer)[0, len(question) - 1 :]
        assert torch.allclose(torch.stack(steps)[:, sample], logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_full_cache_is_refused(vlm):
    _, cache = vlm.start_answer(make_inputs(), max_tokens=1)
    vlm.answer_step(torch.zeros(2, 1, dtype=torch.long), cache)
    with pytest.raises(AssertionError, match='full'):
        vlm.answer_step(torch.zeros(2, 1, dtype=torch.long), cache)


def test_language_modelling_trains_every_parameter(vlm):
    inputs = make_inputs(padded=True)
    logits = vlm.train()(inputs, (torch.arange(6) >= 3).expand(2, 6))
    logits.logsumexp(-1).sum().backward()
    missing = [n for n, p in vlm.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


@pytest.fixture
def oracle(scramble):
    transformers = pytest.importorskip('transformers', reason='transformers is the oracle here')
    c = CONFIG
    config = transformers.PaliGemmaConfig(
        text_config={
            'model_type': 'gemma',
            'vocab_size': c.language.vocab_size,
            'hidden_size': c.language.width,
            'num_hidden_layers': c.language.layers,
            'num_attention_heads': c.language.heads,
            'num_key_value_heads': c.language.kv_heads,
            'head_dim': c.language.head_dim,
            'intermediate_size': c.language.mlp_width,
            'hidden_activation': 'gelu_pytorch_tanh',
        },
        vision_config={
            'model_type': 'siglip_vision_model',
            'hidden_size': c.siglip.width,
            'num_hidden_layers': c.siglip.layers,
            'num_attention_heads': c.siglip.heads,
            'intermediate_size': c.siglip.mlp_width,
            'patch_size': 14,
            'image_size': 56,
            'vision_use_head': False,
        },
        projection_dim=c.language.width,
        image_token_id=2600,
    )
    return scramble(transformers.PaliGemmaForConditionalGeneration(config), 0.05)


@pytest.fixture
def paligemma(oracle, copy_vit, copy_gemma):
    """Our model with the oracle's weights, the geometric half silenced and the other doubled."""
    ours = SpearVlm(CONFIG).eval()
    tower = oracle.model.vision_tower
    with torch.no_grad():
        ours.siglip.patch.weight.copy_(tower.embeddings.patch_embedding.weight)
        ours.siglip.patch.bias.copy_(tower.embeddings.patch_embedding.bias)
        ours.siglip.position.table.copy_(tower.embeddings.position_embedding.weight)
        for block, layer in zip(ours.siglip.blocks, tower.encoder.layers, strict=True):
            norms = layer.layer_norm1, layer.layer_norm2
            copy_vit(block, norms, layer.self_attn, layer.self_attn.out_proj, layer.mlp)
        ours.siglip.norm.load_state_dict(tower.post_layernorm.state_dict())
        linear = oracle.model.multi_modal_projector.linear
        ours.siglip_projector.weight.copy_(2 * linear.weight)
        ours.siglip_projector.bias.copy_(2 * linear.bias)
        for parameter in ours.moge_projector.parameters():
            parameter.zero_()
        copy_gemma(ours.language, oracle.model.language_model)
        ours.language.embedding.weight.copy_(oracle.model.language_model.embed_tokens.weight)
    return ours


@torch.no_grad()
@pytest.mark.parametrize('size', [(56, 56), (84, 112)])
def test_image_features_are_paligemmas(oracle, paligemma, relative, size):
    image = torch.rand(2, 3, *size)
    hidden = oracle.model.vision_tower(image * 2 - 1, interpolate_pos_encoding=True)
    theirs = oracle.model.multi_modal_projector(hidden.last_hidden_state)
    assert relative(paligemma.encode_image(image), theirs) < 1e-5


def whole_forward(oracle, image, tokens):
    """PaliGemma's own forward on a square image (it cannot interpolate), last 3 tokens answer."""
    count = 16
    kinds = torch.cat([torch.zeros(2, count + 3), torch.ones(2, 3)], dim=1).long()
    return oracle(
        input_ids=torch.cat([torch.full((2, count), 2600), tokens], dim=1),
        pixel_values=image * 2 - 1,
        token_type_ids=kinds,
        attention_mask=torch.ones(2, count + 6, dtype=torch.long),
    ).logits[:, count:]


@torch.no_grad()
def test_scores_of_question_and_answer_are_paligemmas(
    oracle, paligemma, relative, assert_within_oracle_noise
):
    image, tokens = torch.rand(2, 3, 56, 56), torch.randint(0, 500, (2, 6))
    exact = whole_forward(oracle, image, tokens)
    inputs = PrefixInputs(external=image, tokens=tokens)
    answer = (torch.arange(6) >= 3).expand(2, 6)
    assert relative(paligemma(inputs, answer), exact) < 1e-5
    low = whole_forward(oracle.bfloat16(), image.bfloat16(), tokens)
    assert_within_oracle_noise(paligemma.bfloat16()(inputs, answer), low, exact)
