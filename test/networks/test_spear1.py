"""SPEAR-1 as a whole: one core for training and inference, masks, dtypes, PI0 as oracle."""

import copy
import dataclasses

import pytest
import torch

from spear_ros.networks import flow_matching as fm
from spear_ros.networks.spear1 import PrefixInputs, Spear1, Spear1Config, block_mask

CONFIG = Spear1Config.named('spear1_debug')
H = CONFIG.flow.horizon


@pytest.fixture
def model(scramble):
    return scramble(Spear1(CONFIG), 0.05)


def make_inputs(batch=3, length=7, wrist=True, padded=False):
    generator = torch.Generator().manual_seed(3)
    mask = torch.arange(length) < torch.arange(length, length - 2 * batch, -2)[:, None]
    return PrefixInputs(
        external=torch.rand(batch, 3, *CONFIG.external_size, generator=generator),
        wrist=torch.rand(batch, 3, *CONFIG.wrist_size, generator=generator) if wrist else None,
        tokens=torch.randint(0, 500, (batch, length), generator=generator),
        token_mask=mask if padded else None,
    )


def make_suffix(batch=3):
    generator = torch.Generator().manual_seed(4)
    proprio = torch.randn(batch, 8, generator=generator)
    actions = fm.sample_noise(batch, CONFIG.flow, generator)
    return proprio, actions, fm.sample_tau(batch, CONFIG.flow, generator)


def cached(model, inputs, proprio, actions, tau):
    cache = model.prefill(inputs, proprio)
    return model.denoise_step(actions, model.expert.embed_time(tau), cache)


@torch.no_grad()
@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('wrist', [False, True])
def test_joint_pass_equals_prefill_and_denoise_step(model, relative, wrist, padded):
    inputs, suffix = make_inputs(wrist=wrist, padded=padded), make_suffix()
    joint = model(inputs, *suffix)
    assert joint.shape == (3, H, 8)
    assert relative(cached(model, inputs, *suffix), joint) < 1e-5


@torch.no_grad()
def test_joint_pass_equals_cached_inference_at_a_trained_size(relative):
    config = Spear1Config.named('spear1_tiny')
    model = Spear1(config).eval()
    inputs = PrefixInputs(
        external=torch.rand(1, 3, *config.external_size),
        wrist=torch.rand(1, 3, *config.wrist_size),
        tokens=torch.randint(0, 500, (1, 9)),
    )
    suffix = make_suffix(1)
    assert relative(cached(model, inputs, *suffix), model(inputs, *suffix)) < 1e-5


@torch.no_grad()
def test_bfloat16_agrees_with_float32_within_its_noise_in_both_forms(model):
    inputs, suffix = make_inputs(padded=True), make_suffix()
    exact = model(inputs, *suffix)
    low = copy.deepcopy(model).bfloat16()
    joint, steps = low(inputs, *suffix), cached(low, inputs, *suffix)
    assert joint.dtype == torch.float32
    noise = (joint - exact).square().mean().sqrt()
    assert 0 < noise < 0.05 * exact.square().mean().sqrt()
    assert (steps - exact).square().mean().sqrt() < 1.5 * noise


@torch.no_grad()
def test_padding_of_the_text_changes_nothing(model, relative):
    inputs, suffix = make_inputs(padded=True), make_suffix()
    padded = model(inputs, *suffix)
    for i in range(3):
        length = int(inputs.token_mask[i].sum())
        one = PrefixInputs(
            external=inputs.external[i : i + 1],
            wrist=inputs.wrist[i : i + 1],
            tokens=inputs.tokens[i : i + 1, :length],
        )
        alone = model(one, *(s[i : i + 1] for s in suffix))
        assert relative(padded[i : i + 1], alone) < 1e-5


@torch.no_grad()
def test_a_masked_wrist_image_equals_a_missing_one(model, relative):
    inputs, suffix = make_inputs(), make_suffix()
    mixed = dataclasses.replace(inputs, wrist_mask=torch.tensor([True, False, True]))
    together = model(mixed, *suffix)
    missing = model(dataclasses.replace(inputs, wrist=None), *suffix)
    present = model(inputs, *suffix)
    assert relative(together[1], missing[1]) < 1e-5
    assert relative(together[::2], present[::2]) < 1e-5
    assert relative(cached(model, mixed, *suffix), together) < 1e-5


@torch.no_grad()
def test_every_input_matters(model):
    """A silent input would pass every parity test."""
    inputs, (proprio, actions, tau) = make_inputs(), make_suffix()
    base = model(inputs, proprio, actions, tau)
    changes = {
        'external': {'external': inputs.external.flip(3)},
        'wrist': {'wrist': inputs.wrist.flip(3)},
        'tokens': {'tokens': (inputs.tokens + 1) % 500},
    }
    for name, change in changes.items():
        other = model(dataclasses.replace(inputs, **change), proprio, actions, tau)
        assert (other - base).abs().max() > 1e-4, name
    for name, suffix in {
        'proprio': (proprio + 0.1, actions, tau),
        'actions': (proprio, actions + 0.1, tau),
        'tau': (proprio, actions, tau * 0.5),
    }.items():
        assert (model(inputs, *suffix) - base).abs().max() > 1e-4, name


def test_mask_is_causal_by_blocks_and_bidirectional_inside():
    prefix = torch.zeros(1, 2, 4)
    mask = block_mask(prefix, 3, None)[0, 0].int().tolist()
    assert mask == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
    ]
    masked = block_mask(prefix, 3, torch.tensor([[True, False]]))[0, 0]
    assert not masked[:, 1].any()


@torch.no_grad()
def test_sampling_is_deterministic_and_returns_valid_actions(model):
    inputs, (proprio, noise, _) = make_inputs(), make_suffix()
    chunk = model.sample(inputs, proprio, noise)
    assert torch.equal(chunk, model.sample(inputs, proprio, noise))
    q = chunk[..., fm.QUATERNION]
    assert (q.norm(dim=-1) - 1).abs().max() < 1e-6
    assert q[..., 0].min() >= 0
    assert chunk.dtype == torch.float32


@torch.no_grad()
def test_sampling_equals_euler_steps_of_the_joint_pass(model):
    inputs, (proprio, noise, _) = make_inputs(), make_suffix()

    def velocity(actions, i):
        return model(inputs, proprio, actions, torch.full((3,), i / CONFIG.flow.steps))

    expected = fm.integrate(velocity, noise, CONFIG.flow)
    assert torch.allclose(model.sample(inputs, proprio, noise), expected, atol=1e-4)


@torch.no_grad()
def test_a_used_cache_gives_the_same_chunk_as_a_new_one(model):
    proprio, noise, tau = make_suffix()
    first, second = make_inputs(padded=True), make_inputs(padded=True)
    second = dataclasses.replace(
        second, external=second.external.flip(2), token_mask=second.token_mask.flip(0)
    )
    cache = model.prefill(first, proprio)
    time = model.expert.embed_time(tau)
    model.denoise_step(noise, time, cache)
    again = model.prefill(second, proprio, cache)
    assert again is cache
    reused = model.denoise_step(noise, time, cache)
    assert torch.equal(reused, cached(model, second, proprio, noise, tau))


@torch.no_grad()
def test_a_cache_of_another_shape_is_refused(model):
    proprio, *_ = make_suffix()
    with pytest.raises(AssertionError, match='prefix tokens'):
        model.prefill(make_inputs(length=6), proprio, model.prefill(make_inputs(), proprio))
    with pytest.raises(AssertionError, match='masks'):
        model.prefill(make_inputs(padded=True), proprio, model.prefill(make_inputs(), proprio))


@torch.no_grad()
def test_committed_actions_are_in_the_chunk(model):
    inputs, (proprio, noise, _) = make_inputs(), make_suffix()
    owed = fm.sample_noise(3, CONFIG.flow, torch.Generator().manual_seed(9))
    mask = (torch.arange(H) < 2).expand(3, H)
    free = model.sample(inputs, proprio, noise)
    held = model.sample(inputs, proprio, noise, (owed, mask))
    assert torch.allclose(held[:, :2], owed[:, :2], atol=1e-5)
    assert not torch.allclose(held[:, 2:], free[:, 2:], atol=1e-4)
    none = model.sample(inputs, proprio, noise, (owed, torch.zeros_like(mask)))
    assert torch.equal(none, free)


@torch.no_grad()
def test_baked_positions_change_nothing_in_float32(model):
    inputs, suffix = make_inputs(), make_suffix()
    plain = model(inputs, *suffix)
    model.bake()
    assert torch.equal(model(inputs, *suffix), plain)
    assert not [n for n in model.state_dict() if 'grid' in n]


def test_action_losses_train_everything_that_the_joint_pass_uses(model):
    inputs, (proprio, noise, tau) = make_inputs(padded=True), make_suffix()
    actions = fm.sample_noise(3, CONFIG.flow, torch.Generator().manual_seed(9))
    sample = fm.make_sample(actions, noise, tau, CONFIG.flow)
    fm.flow_loss(model.train()(inputs, proprio, sample.actions, tau), sample, CONFIG.flow)[
        'loss'
    ].backward()
    last = f'vlm.language.blocks.{CONFIG.language.layers - 1}.'
    unused = {n for n, p in model.named_parameters() if p.grad is None}
    assert unused == {
        last + 'attention.out.weight',
        last + 'norm2.weight',
        last + 'mlp.gate_up.weight',
        last + 'mlp.down.weight',
        'vlm.language.norm.weight',
    }
    broken = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
    assert broken == []


def test_training_under_autocast_keeps_float32_losses(model):
    inputs, (proprio, noise, tau) = make_inputs(), make_suffix()
    with torch.autocast('cpu', torch.bfloat16):
        velocity = model.train()(inputs, proprio, noise, tau)
    assert velocity.dtype == torch.float32
    assert torch.isfinite(velocity).all()


def test_a_model_from_the_meta_device_is_complete_after_loading(model):
    with torch.device('meta'):
        empty = Spear1(CONFIG)
    assert not list(empty.buffers())
    empty.load_state_dict(model.state_dict(), strict=True, assign=True)
    inputs, suffix = make_inputs(), make_suffix()
    with torch.no_grad():
        assert torch.equal(empty.eval()(inputs, *suffix), model(inputs, *suffix))


def test_initialising_after_to_empty_equals_building():
    torch.manual_seed(5)
    built = Spear1(CONFIG)
    with torch.device('meta'):
        other = Spear1(CONFIG)
    other.to_empty(device='cpu')
    torch.manual_seed(5)
    other.initialize()
    inputs, suffix = make_inputs(), make_suffix()
    with torch.no_grad():
        a, b = built(inputs, *suffix), other(inputs, *suffix)
    assert torch.isfinite(b).all()
    assert a.std().item() == pytest.approx(b.std().item(), rel=0.5)
    assert 0.2 < b.std() < 5


@pytest.fixture
def pi0(scramble):
    """PI0 with one square camera and our sizes."""
    transformers = pytest.importorskip('transformers', reason='transformers is the oracle here')
    c = CONFIG
    text = {
        'model_type': 'gemma',
        'vocab_size': c.language.vocab_size,
        'hidden_size': c.language.width,
        'num_hidden_layers': c.language.layers,
        'num_attention_heads': c.language.heads,
        'num_key_value_heads': c.language.kv_heads,
        'head_dim': c.language.head_dim,
        'intermediate_size': c.language.mlp_width,
        'hidden_activation': 'gelu_pytorch_tanh',
    }
    vision = {
        'model_type': 'siglip_vision_model',
        'hidden_size': c.siglip.width,
        'num_hidden_layers': c.siglip.layers,
        'num_attention_heads': c.siglip.heads,
        'intermediate_size': c.siglip.mlp_width,
        'patch_size': 14,
        'image_size': 56,
        'vision_use_head': False,
    }
    config = transformers.PI0Config(
        vlm_config={
            'model_type': 'paligemma',
            'text_config': text,
            'vision_config': vision,
            'projection_dim': c.language.width,
            'image_token_id': 2600,
        },
        dit_config={
            **text,
            'hidden_size': c.expert.width,
            'intermediate_size': c.expert.mlp_width,
        },
        chunk_size=H,
        max_state_dim=8,
        max_action_dim=8,
    )
    oracle = transformers.PI0ForConditionalGeneration(config)
    return scramble(oracle, 0.05)


@pytest.fixture
def twin(pi0, copy_vit, copy_gemma):
    """Our model with PI0's weights, the geometric encoder silenced."""
    ours = Spear1(CONFIG).eval()
    vlm, theirs = ours.vlm, pi0.model.vlm
    with torch.no_grad():
        tower = theirs.vision_tower
        vlm.siglip.patch.weight.copy_(tower.embeddings.patch_embedding.weight)
        vlm.siglip.patch.bias.copy_(tower.embeddings.patch_embedding.bias)
        vlm.siglip.position.table.copy_(tower.embeddings.position_embedding.weight)
        for block, layer in zip(vlm.siglip.blocks, tower.encoder.layers, strict=True):
            norms = layer.layer_norm1, layer.layer_norm2
            copy_vit(block, norms, layer.self_attn, layer.self_attn.out_proj, layer.mlp)
        vlm.siglip.norm.load_state_dict(tower.post_layernorm.state_dict())
        linear = theirs.multi_modal_projector.linear
        vlm.siglip_projector.weight.copy_(2 * linear.weight)
        vlm.siglip_projector.bias.copy_(2 * linear.bias)
        for parameter in vlm.moge_projector.parameters():
            parameter.zero_()
        vlm.language.embedding.weight.copy_(theirs.language_model.embed_tokens.weight)
        copy_gemma(vlm.language, theirs.language_model)
        copy_gemma(ours.expert, pi0.model.dit)
        head = pi0.embed_action_time
        for name, source in {
            'proprio_in': head.state_proj,
            'action_in': head.action_in_proj,
            'time_mix_in': head.action_time_mlp_in,
            'time_mix_out': head.action_time_mlp_out,
            'action_out': pi0.action_out_proj,
        }.items():
            getattr(ours.expert, name).load_state_dict(source.state_dict())
    return ours


def pi0_velocities(pi0, inputs, proprio, actions, tau):
    """PI0's own forward. Its float32 angles put the time embedding up to 1e-4 off: exact here."""
    dtype = pi0.action_out_proj.weight.dtype
    embedding = pi0.embed_action_time.sinusoid_embeds
    embedding.forward = lambda t: _exact_waves(t, CONFIG.expert).to(dtype)
    text = torch.ones(2, 6).bool() if inputs.token_mask is None else inputs.token_mask
    return pi0(
        state=proprio.to(dtype),
        noise=actions.to(dtype),
        timestep=tau,
        input_ids=torch.cat([torch.full((2, 16), 2600), inputs.tokens], dim=1),
        attention_mask=torch.cat([torch.ones(2, 16).bool(), text], dim=1).long(),
        pixel_values=(inputs.external * 2 - 1)[:, None].to(dtype),
        pixel_attention_mask=torch.ones(2, 1, dtype=torch.bool),
    ).logits


@torch.no_grad()
@pytest.mark.parametrize('padded', [False, True])
def test_velocities_are_pi0s(pi0, twin, relative, assert_within_oracle_noise, padded):
    inputs = PrefixInputs(
        external=torch.rand(2, 3, 56, 56),
        tokens=torch.randint(0, 500, (2, 6)),
        token_mask=torch.arange(6) < torch.tensor([[6], [4]]) if padded else None,
    )
    suffix = make_suffix(2)
    exact = pi0_velocities(pi0, inputs, *suffix)
    assert relative(twin(inputs, *suffix), exact) < 1e-5
    assert relative(cached(twin, inputs, *suffix), exact) < 1e-5
    low = pi0_velocities(pi0.bfloat16(), inputs, *suffix)
    assert_within_oracle_noise(twin.bfloat16()(inputs, *suffix), low, exact)


def _exact_waves(tau, config):
    period = config.time_min_period * (config.time_max_period / config.time_min_period) ** (
        torch.linspace(0, 1, config.width // 2, dtype=torch.float64)
    )
    angle = 2 * torch.pi * tau.double()[:, None] / period
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()
