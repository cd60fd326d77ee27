"""Triton kernels against the torch operations that they replace, over odd shapes.

On a machine without a CUDA device they run in Triton's interpreter, which is exact arithmetic on
the CPU: it proves indices, masks and formulas, and says nothing about speed or compilation. Triton
is no part of the environment (a CPU torch has no use for 290 MB of it); where it is absent these
tests skip. To run them: ``pip install --target DIR triton`` and ``PYTHONPATH=DIR``.
"""

import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')
pytest.importorskip('triton', reason='needs the package triton (comes with a CUDA torch)')

from spear_ros.inference.chunk_buffers import ChunkShape
from spear_ros.inference.fused_weights import Affine, Dense, FuseOptions, GemmaLayer, fuse
from spear_ros.inference.ops import SuffixKeys, TorchOps
from spear_ros.inference.triton_ops import TritonOps
from spear_ros.networks.config import ExpertConfig, FlowConfig
from spear_ros.networks.flow_matching import sample_noise
from spear_ros.networks.spear1 import Spear1, Spear1Config

pytestmark = pytest.mark.triton
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
CONFIG = Spear1Config.named('spear1_debug')


def neighbour(name):
    path = Path(__file__).with_name(f'{name}.py')
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fused = neighbour('test_fused')


def both(config=CONFIG):
    """The two kinds of operations for the same network, TritonOps first."""
    torch.manual_seed(0)
    model = Spear1(config).eval().requires_grad_(False).to(DEVICE)
    pair = []
    for ops in (TritonOps, TorchOps):
        options = FuseOptions(compute=torch.float32, steps=2, adjacent_pairs=ops.adjacent_pairs)
        pair.append(ops(fuse(model, options)))
    return pair


@pytest.fixture(scope='module')
def pair():
    return both()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize(('rows', 'width'), [(1, 32), (5, 37), (19, 130)])
@pytest.mark.parametrize('add', [True, False])
def test_norms(pair, rows, width, add):
    norm = Affine(draw(width, seed=1), draw(width, seed=2), 1e-6)
    results = []
    for ops in pair:
        ops._floors.setdefault(width, torch.tensor((width * 1e-6) ** 0.5, device=DEVICE))
        x, y = draw(rows, width, seed=3), draw(rows, width, seed=4) if add else None
        n = ops.add_layer_norm(x, y, norm)
        results.append((n, x, ops.layer_norm(x, 1e-6), ops.add_rms_norm(x, y), x))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(('rows', 'width'), [(1, 7), (3, 1030)])
def test_gated_activation(pair, rows, width):
    a, b = (ops.geglu(4 * draw(rows, 2 * width)) for ops in pair)
    torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize('tokens', [1, 5, 16])
@pytest.mark.parametrize(('rows', 'columns'), [(8, 24), (50, 300), (33, 16)])
def test_skinny_products_with_norm_bias_activation_and_sum(pair, tokens, rows, columns):
    ops = pair[0]
    x, weight = draw(tokens, columns), draw(rows, columns, seed=1) / columns**0.5
    bias, old = draw(rows, seed=2), draw(tokens, rows, seed=3)
    plain = x @ weight.T
    r = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    for options, expected in (
        ({}, plain + bias),
        ({'norm': True}, r * plain + bias),
        ({'silu': True}, torch.nn.functional.silu(plain + bias)),
        ({'add_to': old.clone()}, old + plain + bias),
    ):
        actual = ops._skinny(x, Dense(weight, bias), **options)
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(ops._skinny(x, Dense(weight, None)), plain, atol=2e-5, rtol=1e-5)


def halves_apart(x, heads, dim):
    """Undo ``adjacent_pairs``: (M, heads * dim) columns as the kernels have them."""
    pairs = x.unflatten(1, (heads, dim // 2, 2))
    return pairs.transpose(2, 3).reshape(x.shape)


@pytest.mark.parametrize('queries', [True, False])
def test_rotation_and_storing(pair, queries):
    config, (kernel, plain) = CONFIG.language, pair
    dim, turned = config.head_dim, config.heads * queries + config.kv_heads
    qkv = draw(11, (turned + config.kv_heads) * dim)
    apart = torch.cat(
        [halves_apart(qkv[:, : turned * dim], turned, dim), qkv[:, turned * dim :]], 1
    )
    place = torch.arange(11, device=DEVICE) * 3
    caches = [torch.zeros(11, 2 * config.kv_heads * dim, device=DEVICE) for _ in range(2)]
    q1 = kernel.rotate_and_store(apart.contiguous(), kernel.rotary_table(40)[place], caches[0])
    q2 = plain.rotate_and_store(qkv, plain.rotary_table(40)[place], caches[1])
    if queries:
        expected = halves_apart(q2.flatten(1), config.heads, dim)
        torch.testing.assert_close(q1.flatten(1), expected, atol=1e-5, rtol=1e-5)
    k = halves_apart(caches[1][:, : config.kv_heads * dim], config.kv_heads, dim)
    torch.testing.assert_close(caches[0][:, : config.kv_heads * dim], k, atol=1e-5, rtol=1e-5)
    assert torch.equal(caches[0][:, config.kv_heads * dim :], caches[1][:, config.kv_heads * dim :])


SIZES = {
    'one key head': CONFIG,
    'two key heads, odd head dim': replace(
        CONFIG,
        language=replace(CONFIG.language, heads=6, kv_heads=2, head_dim=24),
        expert=ExpertConfig(width=40, mlp_width=72),
    ),
}


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('prefix', [8, 40, 72])
def test_an_expert_layer_with_padding_and_proprioception(size, causal, prefix):
    config = SIZES[size]
    pair, language = both(config), config.language
    heads, groups, dim = language.heads, language.kv_heads, language.head_dim
    tokens = 5 + causal
    first = prefix if causal else prefix + 1
    rows = prefix + 8
    bias = torch.zeros(rows, device=DEVICE)
    bias[3 : prefix // 2] = float('-inf')
    bias[prefix + 6 :] = float('-inf')
    mask = bias.repeat(tokens, 1)
    if causal:
        mask[0, prefix + 1 :] = float('-inf')
    mask = mask[:, None].expand(-1, heads // groups, -1).reshape(1, 1, -1, rows)
    place = torch.arange(tokens, device=DEVICE) + 30
    results = []
    for ops in pair:
        layer = _layer(config, ops.adjacent_pairs)
        kv = draw(rows, 2 * groups * dim, seed=5)
        if not ops.adjacent_pairs:
            k = halves_apart(kv[:, : groups * dim], groups, dim)
            kv = torch.cat([k, kv[:, groups * dim :]], 1)
        keys = SuffixKeys(kv=kv, first=first, bias=bias, mask=mask, causal=causal)
        x = draw(tokens, config.expert.width, seed=6)
        results.append((ops.expert_layer(x, layer, ops.rotary_table(64)[place], keys), kv))
    torch.testing.assert_close(results[0][0], results[1][0], atol=2e-5, rtol=1e-4)
    if causal:  # proprioception's key and value are kept for the steps to come
        k = halves_apart(results[1][1][:, : groups * dim], groups, dim)[prefix]
        torch.testing.assert_close(results[0][1][prefix, : groups * dim], k, atol=1e-5, rtol=1e-5)


def _layer(config, adjacent):
    torch.manual_seed(1)
    model = Spear1(config).requires_grad_(False).to(DEVICE)
    options = FuseOptions(compute=torch.float32, steps=2, adjacent_pairs=adjacent)
    layer = fuse(model, options).expert.layers[0]
    assert isinstance(layer, GemmaLayer)
    return layer


@pytest.mark.parametrize('horizon', [1, 5, 7])
@pytest.mark.parametrize('scale', [0.0, 1e-4, 1.0, 30.0])
def test_an_euler_step(pair, horizon, scale):
    flow = FlowConfig(horizon=horizon)
    generator = torch.Generator().manual_seed(horizon)
    actions, owed = (sample_noise(1, flow, generator)[0].to(DEVICE) for _ in range(2))
    held = (torch.arange(horizon, device=DEVICE) < horizon // 2)[:, None]
    velocity = scale * draw(horizon, 8, seed=8)
    a, b = (ops.euler(actions, velocity, 0.1, (owed, held), flow) for ops in pair)
    torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize('wrist', [(60, 80), None])
def test_a_whole_chunk_on_kernels_equals_the_plain_network(wrist):
    model = fused.make_model().to(DEVICE)
    network = fused.make_network(model, steps=2, ops=TritonOps)
    inputs = fused.make_inputs(ChunkShape(16, (60, 80), wrist), 1, real=9, owed=1)
    actions = fused.run(network, inputs)
    expected = fused.reference(model.cpu(), inputs, steps=2)
    np.testing.assert_allclose(actions, expected, atol=1e-4 if DEVICE == 'cpu' else 1e-2)
