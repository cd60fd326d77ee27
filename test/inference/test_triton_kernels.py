"""Triton kernels against the torch operations that they replace, over odd shapes.

On a machine without a CUDA device they run in Triton's interpreter, which is exact arithmetic on
the CPU (``test/conftest.py``): it proves indices, masks and formulas, and says nothing about speed
or compilation. Triton is no part of the environment (a CPU torch has no use for a gigabyte of it);
``.ci/run`` fetches it, and where it is absent these tests skip. To run them:
``pip install --no-deps --target DIR triton`` and ``PYTHONPATH=DIR``.
"""

import argparse
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('triton', reason='needs the package triton (comes with a CUDA torch)')

from spear_ros.inference.chunk_buffers import ChunkShape
from spear_ros.inference.fused_weights import Affine, Dense, FuseOptions, GemmaLayer, fuse
from spear_ros.inference.kernel_trial import fault_of
from spear_ros.inference.ops import SuffixKeys, TorchOps
from spear_ros.inference.triton_ops import SuffixTile, TritonOps
from spear_ros.networks.config import ExpertConfig, FlowConfig
from spear_ros.networks.flow_matching import sample_noise
from spear_ros.networks.spear1 import Spear1, Spear1Config

pytestmark = pytest.mark.triton
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
CONFIG = Spear1Config.named('spear1_debug')
BENCHMARKS = Path(__file__).resolve().parents[2] / 'benchmarks'


def neighbour(name):
    path = Path(__file__).with_name(f'{name}.py')
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fused = neighbour('test_fused')


# The interpreter multiplies the bits of bfloat16 as integers (triton 3.9); float16 it can.
HALF = torch.bfloat16 if DEVICE == 'cuda' else torch.float16
DTYPES = (torch.float32, HALF)


def both(config=CONFIG, dtype=torch.float32):
    """The two kinds of operations for the same network, TritonOps first."""
    torch.manual_seed(0)
    model = Spear1(config).eval().requires_grad_(False).to(DEVICE, dtype)
    pair = []
    for ops in (TritonOps, TorchOps):
        options = FuseOptions(compute=dtype, steps=2, adjacent_pairs=ops.adjacent_pairs)
        pair.append(ops(fuse(model, options)))
    return pair


@pytest.fixture(scope='module', params=DTYPES, ids=lambda d: str(d).removeprefix('torch.'))
def pair(request):
    return both(dtype=request.param)


def draw(*shape, seed=0, dtype=torch.float32):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.to(DEVICE, dtype)


def assert_close(actual, expected, atol):
    """As close as the type's own rounding allows, a few steps of it; ``atol`` for float32."""
    coarse = expected.dtype != torch.float32
    steps = 4 * torch.finfo(expected.dtype).eps
    torch.testing.assert_close(
        actual, expected, atol=steps if coarse else atol, rtol=steps if coarse else 10 * atol
    )


@pytest.mark.parametrize(('rows', 'width'), [(1, 32), (5, 37), (19, 130)])
@pytest.mark.parametrize('add', [True, False])
def test_norms(pair, rows, width, add):
    dtype, results = pair[0].compute, []
    norm = Affine(draw(width, seed=1, dtype=dtype), draw(width, seed=2, dtype=dtype), 1e-6)
    for ops in pair:
        ops._floors.setdefault(width, torch.tensor((width * 1e-6) ** 0.5, device=DEVICE))
        x, y = (draw(rows, width, seed=seed, dtype=dtype) for seed in (3, 4))
        y = y if add else None
        n = ops.add_layer_norm(x, y, norm)
        results.append((n, x, ops.layer_norm(x, 1e-6), ops.add_rms_norm(x, y), x))
    for a, b in zip(*results, strict=True):
        assert_close(a, b, 2e-6)


@pytest.mark.parametrize(('rows', 'width'), [(1, 7), (3, 1030)])
def test_gated_activation(pair, rows, width):
    gate_up = 4 * draw(rows, 2 * width, dtype=pair[0].compute)
    a, b = (ops.geglu(gate_up) for ops in pair)
    assert_close(a, b, 2e-6)


@pytest.mark.parametrize('tokens', [1, 5, 16])
@pytest.mark.parametrize(('rows', 'columns'), [(8, 24), (50, 300), (33, 16)])
def test_skinny_products_with_norm_bias_activation_and_sum(pair, tokens, rows, columns):
    ops, dtype = pair[0], pair[0].compute
    x, weight = (draw(n, columns, seed=n, dtype=dtype) for n in (tokens, rows))
    weight /= columns**0.5
    bias, old = draw(rows, seed=2, dtype=dtype), draw(tokens, rows, seed=3, dtype=dtype)
    plain = x.float() @ weight.T.float()
    r = (x.float().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    for options, expected in (
        ({}, plain + bias),
        ({'norm': True}, r * plain + bias),
        ({'silu': True}, torch.nn.functional.silu(plain + bias)),
        ({'add_to': old.clone()}, old + plain + bias),
    ):
        actual = ops._skinny(x, Dense(weight, bias), **options)
        assert_close(actual, expected.to(dtype), 2e-5)
    assert_close(ops._skinny(x, Dense(weight, None)), plain.to(dtype), 2e-5)


def halves_apart(x, heads, dim):
    """Undo ``adjacent_pairs``: (M, heads * dim) columns as the kernels have them."""
    pairs = x.unflatten(1, (heads, dim // 2, 2))
    return pairs.transpose(2, 3).reshape(x.shape)


@pytest.mark.parametrize('queries', [True, False])
def test_rotation_and_storing(pair, queries):
    config, (kernel, plain) = CONFIG.language, pair
    dim, turned = config.head_dim, config.heads * queries + config.kv_heads
    dtype = kernel.compute
    qkv = draw(11, (turned + config.kv_heads) * dim, dtype=dtype)
    apart = torch.cat(
        [halves_apart(qkv[:, : turned * dim], turned, dim), qkv[:, turned * dim :]], 1
    )
    place = torch.arange(11, device=DEVICE) * 3
    caches = [qkv.new_zeros(11, 2 * config.kv_heads * dim) for _ in range(2)]
    q1 = kernel.rotate_and_store(apart.contiguous(), kernel.rotary_table(40)[place], caches[0])
    q2 = plain.rotate_and_store(qkv, plain.rotary_table(40)[place], caches[1])
    if queries:
        expected = halves_apart(q2.flatten(1), config.heads, dim)
        assert_close(q1.flatten(1), expected, 1e-5)
    k = halves_apart(caches[1][:, : config.kv_heads * dim], config.kv_heads, dim)
    assert_close(caches[0][:, : config.kv_heads * dim], k, 1e-5)
    assert torch.equal(caches[0][:, config.kv_heads * dim :], caches[1][:, config.kv_heads * dim :])


SIZES = {
    'one key head': CONFIG,
    'two key heads, odd head dim': replace(
        CONFIG,
        language=replace(CONFIG.language, heads=6, kv_heads=2, head_dim=24),
        expert=ExpertConfig(width=40, mlp_width=72),
    ),
}


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('tile', [SuffixTile(0, 8), SuffixTile(16, 4)])
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('prefix', [8, 40, 72])
def test_an_expert_layer_with_padding_and_proprioception(size, causal, prefix, tile, dtype):
    config = SIZES[size]
    pair, language = both(config, dtype), config.language
    pair[0].tile = tile
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
    mask = mask[:, None].expand(-1, heads // groups, -1).reshape(1, 1, -1, rows).to(dtype)
    place = torch.arange(tokens, device=DEVICE) + 30
    results = []
    for ops in pair:
        layer = _layer(config, ops.adjacent_pairs, dtype)
        kv = draw(rows, 2 * groups * dim, seed=5, dtype=dtype)
        if not ops.adjacent_pairs:
            k = halves_apart(kv[:, : groups * dim], groups, dim)
            kv = torch.cat([k, kv[:, groups * dim :]], 1)
        keys = SuffixKeys(kv=kv, first=first, bias=bias, mask=mask, causal=causal)
        x = draw(tokens, config.expert.width, seed=6, dtype=dtype)
        results.append((ops.expert_layer(x, layer, ops.rotary_table(64)[place], keys), kv))
    assert_close(results[0][0], results[1][0], 2e-5)
    if causal:  # proprioception's key and value are kept for the steps to come
        k = halves_apart(results[1][1][:, : groups * dim], groups, dim)[prefix]
        assert_close(results[0][1][prefix, : groups * dim], k, 1e-5)


def _layer(config, adjacent, dtype):
    torch.manual_seed(1)
    model = Spear1(config).requires_grad_(False).to(DEVICE, dtype)
    options = FuseOptions(compute=dtype, steps=2, adjacent_pairs=adjacent)
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
    assert_close(a, b, 2e-6)


@pytest.mark.parametrize('wrist', [(60, 80), None])
def test_a_whole_chunk_on_kernels_equals_the_plain_network(wrist):
    model = fused.make_model().to(DEVICE)
    network = fused.make_network(model, steps=2, ops=TritonOps)
    inputs = fused.make_inputs(ChunkShape(16, (60, 80), wrist), 1, real=9, owed=1)
    actions = fused.run(network, inputs)
    expected = fused.reference(model.cpu(), inputs, steps=2)
    np.testing.assert_allclose(actions, expected, atol=1e-4 if DEVICE == 'cpu' else 1e-2)


@pytest.mark.parametrize('dtype', DTYPES)
def test_kernels_pass_the_trial_before_an_engine_takes_them(dtype):
    assert fault_of(TritonOps, CONFIG, torch.device(DEVICE), dtype) == ''


@pytest.mark.skipif(DEVICE == 'cuda', reason='the card that is here is measured instead')
@pytest.mark.parametrize('card', [89, 90])
def test_kernels_of_the_full_size_compile_and_fit_on_cards_that_are_not_here(card):
    args = argparse.Namespace(size='spear1', dtype='bfloat16')
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import triton_resources
    finally:
        sys.path.remove(str(BENCHMARKS))
    rows = triton_resources.compile_for(card, args)
    found = triton_resources.worst(rows, triton_resources.CARDS[card][1])
    assert len(found) == 8
    assert {name: row['errors'] for name, row in found.items() if row['errors']} == {}
    assert max(row['stack'] for row in found.values()) <= 512  # bytes that spill, per thread
