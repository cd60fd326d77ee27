"""The fused network against the plain one: the same chunk, whatever was folded and reordered.

The plain network's ``sample`` is the reference, without padding and without buffers. Weights are
random and every norm, bias and scale is moved off its initial value, so that nothing folds away by
luck.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from spear_ros.inference.audit import Audit
from spear_ros.inference.chunk_buffers import ChunkInputs, ChunkShape, cache_layout
from spear_ros.inference.engine import text_buckets
from spear_ros.inference.fused import FusedSpear1
from spear_ros.inference.fused_weights import FuseOptions, fuse
from spear_ros.inference.ops import TorchOps, _gelu_tanh
from spear_ros.networks.config import FlowConfig
from spear_ros.networks.flow_matching import sample_noise
from spear_ros.networks.spear1 import PrefixInputs, Spear1, Spear1Config
from spear_ros.processing.images import ImageSize, fit_image

CONFIG = Spear1Config.named('spear1_debug')
CAMERA = (60, 80)


def make_model(config=CONFIG, dtype=torch.float32):
    torch.manual_seed(0)
    model = Spear1(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.to(dtype)


def make_network(model, steps=None, compute=torch.float32, ops=TorchOps, fit='crop'):
    options = FuseOptions(
        compute=compute,
        steps=steps or model.config.flow.steps,
        adjacent_pairs=ops.adjacent_pairs,
    )
    weights = fuse(model, options)
    return FusedSpear1(weights, ops(weights), fit)


def make_inputs(shape, seed=0, real=None, owed=0, config=CONFIG):
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    noise, committed = (sample_noise(1, config.flow, generator)[0].numpy() for _ in range(2))
    pictures = [
        None if s is None else rng.integers(0, 256, (*s, 3), dtype=np.uint8)
        for s in (shape.external, shape.wrist)
    ]
    return ChunkInputs(
        external=pictures[0],
        wrist=pictures[1],
        tokens=rng.integers(0, config.language.vocab_size, shape.text),
        token_mask=np.arange(shape.text) < (shape.text if real is None else real),
        proprio=rng.normal(size=8).astype(np.float32),
        noise=noise,
        committed=committed,
        committed_mask=np.arange(config.flow.horizon) < owed,
    )


def run(network, inputs):
    buffers = network.make_buffers(inputs.shape)
    buffers.load(inputs)
    network(buffers)
    return buffers.host_actions.clone()


def reference(model, inputs, steps=None):
    config, keep = model.config, int(inputs.token_mask.sum())
    pictures = [
        None if i is None else fit_image(torch.from_numpy(i), ImageSize(*s))[None]
        for i, s in ((inputs.external, config.external_size), (inputs.wrist, config.wrist_size))
    ]
    prefix = PrefixInputs(
        external=pictures[0],
        wrist=pictures[1],
        tokens=torch.from_numpy(inputs.tokens)[None, :keep],
    )
    owed = (
        torch.from_numpy(inputs.committed)[None],
        torch.from_numpy(inputs.committed_mask)[None],
    )
    proprio, noise = torch.from_numpy(inputs.proprio), torch.from_numpy(inputs.noise)
    return model.sample(prefix, proprio[None], noise[None], owed, steps)[0]


@pytest.fixture(scope='module')
def model():
    return make_model()


@pytest.fixture(scope='module')
def network(model):
    return make_network(model)


def test_a_hundred_random_chunks_of_every_bucket_equal_the_plain_network(model):
    buckets, network = text_buckets(CONFIG), make_network(model, steps=3)
    worst = 0.0
    for seed in range(100):
        text = buckets[seed % len(buckets)]
        shape = ChunkShape(text, CAMERA, CAMERA if seed % 3 else None)
        inputs = make_inputs(shape, seed, real=1 + (seed * 7) % text, owed=seed % 5)
        difference = run(network, inputs) - reference(model, inputs, steps=3)
        worst = max(worst, difference.abs().max().item())
    assert worst < 2e-5  # float32 noise


@pytest.mark.parametrize('steps', [1, 3])
def test_other_numbers_of_steps_have_their_own_time_table(model, steps):
    inputs = make_inputs(ChunkShape(16, CAMERA, CAMERA))
    expected = reference(model, inputs, steps)
    torch.testing.assert_close(run(make_network(model, steps), inputs), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    'changes',
    [
        {'moge_norm': False},
        {'moge_layers': 2},
        {'siglip_table': 'scale'},
        {'flow': FlowConfig(horizon=3)},
        {'flow': FlowConfig(rotation_path='linear')},
        {'language': replace(CONFIG.language, heads=4, kv_heads=2)},
    ],
    ids=lambda c: next(iter(c)),
)
def test_every_open_choice_of_the_config_is_fused_too(changes):
    config = replace(CONFIG, **changes)
    model = make_model(config)
    inputs = make_inputs(ChunkShape(16, CAMERA, CAMERA), real=5, owed=1, config=config)
    network = make_network(model)
    torch.testing.assert_close(run(network, inputs), reference(model, inputs), atol=5e-5, rtol=0)


def test_narrow_weights_on_a_cpu_are_multiplied_in_float32(model):
    narrow = make_model(dtype=torch.bfloat16)
    wide = make_model(dtype=torch.bfloat16).float()
    inputs = make_inputs(ChunkShape(16, CAMERA, CAMERA), 3)
    actions, expected = run(make_network(narrow), inputs), reference(wide, inputs)
    # The same bfloat16 weights, but folded maps are rounded once more.
    torch.testing.assert_close(actions, expected, atol=3e-2, rtol=0)
    assert not torch.equal(actions, run(make_network(wide), inputs))


def test_activations_in_bfloat16_stay_within_its_noise():
    # Both kinds of rounding against float32 with the same weights. Medians: a rotation that passes
    # w = 0 on its way may come out on the other side, with either kind.
    narrow, exact = make_model(dtype=torch.bfloat16), make_model(dtype=torch.bfloat16).float()
    network = make_network(narrow, compute=torch.bfloat16)
    errors = {'fused': [], 'plain': []}
    for seed in range(8):
        inputs = make_inputs(ChunkShape(16, CAMERA, CAMERA), seed, real=9)
        truth = reference(exact, inputs)
        errors['fused'].append((run(network, inputs) - truth).abs())
        errors['plain'].append((reference(narrow, inputs) - truth).abs())
    fused, plain = (torch.stack(errors[k]).median().item() for k in ('fused', 'plain'))
    assert 1e-4 < fused < 2 * plain


def test_committed_actions_start_the_chunk_and_the_rest_is_denoised_beside_them(network):
    shape = ChunkShape(16, CAMERA, CAMERA)
    free = run(network, make_inputs(shape, 3))
    inputs = make_inputs(shape, 3, owed=2)
    held = run(network, inputs)
    torch.testing.assert_close(held[:2], torch.from_numpy(inputs.committed[:2]), atol=1e-5, rtol=0)
    assert not torch.allclose(held[2:], free[2:])  # actions see each other


def test_the_quick_activation_is_the_slow_one():
    x = torch.linspace(-12, 12, 1 << 15)
    expected = torch.nn.functional.gelu(x, approximate='tanh')
    torch.testing.assert_close(_gelu_tanh(x), expected, atol=1e-6, rtol=1e-5)


def test_consuming_empties_the_model_and_gives_the_same_chunk(model):
    eaten = make_model()
    options = FuseOptions(compute=torch.float32, steps=10, adjacent_pairs=True, consume=True)
    weights = fuse(eaten, options)
    assert sum(p.numel() for p in eaten.parameters()) < sum(p.numel() for p in model.parameters())
    inputs = make_inputs(ChunkShape(16, CAMERA, CAMERA))
    eaten = FusedSpear1(weights, TorchOps(weights))
    assert torch.equal(run(eaten, inputs), run(make_network(model), inputs))


def test_a_chunk_neither_synchronises_nor_depends_on_values(network):
    shape = ChunkShape(16, CAMERA, CAMERA)
    buffers = network.make_buffers(shape)
    logs = []
    for seed, real in ((0, 16), (1, 5), (2, 1)):
        buffers.load(make_inputs(shape, seed, real=real, owed=seed))
        with Audit() as audit:
            network(buffers)
        assert audit.forbidden == []
        logs.append(audit.log)
    assert logs[0] == logs[1] == logs[2]  # the same operations on the same shapes


@pytest.mark.parametrize(
    ('make', 'name'),
    [
        (lambda x: x.sum().item(), '_local_scalar_dense'),
        (lambda x: x[x > 0], 'nonzero or masked index'),
        (lambda x: torch.tensor([1.0, 2.0]) + x[:2], 'copied from the host'),
    ],
)
def test_the_audit_sees_what_a_capture_cannot_hold(make, name):
    x = torch.arange(4.0)
    with Audit() as audit:
        make(x)
    assert audit.forbidden, name


def test_chunk_after_chunk_touches_the_same_memory_and_leaves_nothing_behind(network):
    import gc

    shape = ChunkShape(16, CAMERA, CAMERA)
    buffers = network.make_buffers(shape)
    addresses, living = set(), []
    for seed in range(4):
        buffers.load(make_inputs(shape, seed))
        network(buffers)
        addresses.add(
            tuple(
                t.data_ptr() for t in (buffers.kv, buffers.block, buffers.actions, buffers.prefix)
            )
        )
        gc.collect()
        living.append(sum(isinstance(o, torch.Tensor) for o in gc.get_objects()))
    assert len(addresses) == 1
    assert living[1] == living[-1]


def test_the_cache_is_laid_out_in_multiples_of_eight():
    for text in (8, 16, 17, 31):
        layout = cache_layout(CONFIG, ChunkShape(text, CAMERA, None))
        assert layout.suffix % 8 == layout.rows % 8 == 0
        assert layout.prefix <= layout.suffix < layout.actions < layout.end <= layout.rows
        assert layout.end - layout.actions == CONFIG.flow.horizon
