"""Eager and captured runner: one step function, one result; failures become refusals.

What a capture needs is proven on the CPU in ``test_fused.py`` (audit); that the captured twin
equals the eager one bit for bit, allocates nothing and never waits, needs a CUDA device.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spear_ros.core.errors import UserError
from spear_ros.inference.chunk_buffers import ChunkShape
from spear_ros.inference.denoiser import CapturedRunner, ChunkRunner, refuse_on_failure
from spear_ros.inference.fused import FusedSpear1
from spear_ros.inference.fused_weights import FuseOptions, fuse
from spear_ros.inference.kernels import choose_ops
from spear_ros.networks.spear1 import Spear1, Spear1Config


def neighbour(name):
    path = Path(__file__).with_name(f'{name}.py')
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_inputs = neighbour('test_fused').make_inputs
CONFIG = Spear1Config.named('spear1_debug')
SHAPE = ChunkShape(16, (60, 80), (60, 80))
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')


def make_network(device='cpu', kernels='auto', dtype=torch.float32):
    torch.manual_seed(0)
    model = Spear1(CONFIG).eval().requires_grad_(False).to(device, dtype)
    ops, _ = choose_ops(kernels, torch.device(device), dtype, CONFIG.suffix_tokens)
    options = FuseOptions(compute=dtype, steps=10, adjacent_pairs=ops.adjacent_pairs)
    weights = fuse(model, options)
    return FusedSpear1(weights, ops(weights))


@pytest.fixture(scope='module')
def network():
    return make_network()


def test_reused_buffers_hold_nothing_of_the_chunk_before(network):
    runner = ChunkRunner(network, SHAPE)
    results = {}
    for seed in (0, 1, 0, 2, 1):
        out = runner.run(make_inputs(SHAPE, seed, real=16 - 4 * seed, owed=seed))
        assert np.array_equal(out, results.setdefault(seed, out))
    assert not np.array_equal(results[0], results[1])


def test_a_mask_of_no_committed_actions_equals_none(network):
    inputs = make_inputs(SHAPE, 5)
    other = replace(inputs, committed=make_inputs(SHAPE, 6).noise)
    runner = ChunkRunner(network, SHAPE)
    assert np.array_equal(runner.run(inputs), runner.run(other))


def test_a_closed_runner_computes_nothing(network):
    runner = ChunkRunner(network, SHAPE)
    runner.close()
    with pytest.raises(AssertionError, match='closed'):
        runner.run(make_inputs(SHAPE))


def test_the_stages_in_order_are_the_chunk(network):
    inputs = make_inputs(SHAPE, 7)
    runner = ChunkRunner(network, SHAPE)
    whole = runner.run(inputs)
    runner.load(inputs)
    with torch.no_grad():
        for stage in runner.stages:
            stage.run(runner.buffers)
    assert np.array_equal(runner.finish(), whole)
    names = [stage.name for stage in runner.stages]
    assert names == ['upload', 'preprocess', 'vision', 'prefill', 'denoise', 'download']


@pytest.mark.parametrize(
    ('error', 'mend', 'expected'),
    [
        (torch.OutOfMemoryError('CUDA out of memory. Tried 2 GiB'), '', 'smaller checkpoint'),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), '', 'close other programs'),
        (RuntimeError('operation not permitted when stream is capturing'), 'mend it.', 'mend it'),
    ],
)
def test_failures_of_the_device_become_a_refusal_with_its_mend(error, mend, expected):
    with pytest.raises(UserError, match=expected), refuse_on_failure('capturing', mend):
        raise error


def test_mistakes_of_the_program_are_not_dressed_up():
    with pytest.raises(RuntimeError, match='mat1'), refuse_on_failure('computing'):
        raise RuntimeError('mat1 and mat2 shapes cannot be multiplied')


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('kernels', ['torch', 'auto'])
@pytest.mark.parametrize('wrist', [(60, 80), None])
def test_the_captured_twin_equals_the_eager_one_bit_for_bit(wrist, kernels, dtype):
    network = make_network('cuda', kernels, dtype)
    shape = SHAPE._replace(wrist=wrist)
    eager, captured = ChunkRunner(network, shape), CapturedRunner(network, shape)
    for seed in range(4):
        inputs = make_inputs(shape, seed, real=16 - 3 * seed, owed=seed)
        assert np.array_equal(eager.run(inputs), captured.run(inputs))
    captured.close()


@pytest.mark.gpu
@needs_cuda
def test_the_gpu_computes_what_the_cpu_computes():
    inputs = make_inputs(SHAPE, 3, real=9)
    expected = ChunkRunner(make_network(), SHAPE).run(inputs)
    for kernels in ('torch', 'auto'):
        actions = ChunkRunner(make_network('cuda', kernels), SHAPE).run(inputs)
        np.testing.assert_allclose(actions, expected, atol=1e-2)  # TF32 and other kernels


@pytest.mark.gpu
@needs_cuda
def test_graphs_of_several_shapes_share_a_pool_and_do_not_disturb_each_other():
    network, pool, runners = make_network('cuda'), None, {}
    shapes = [ChunkShape(t, (60, 80), w) for t in (16, 32) for w in ((60, 80), None)]
    for shape in shapes:
        runners[shape] = CapturedRunner(network, shape, pool=pool)
        pool = runners[shape].pool
    first = {s: runners[s].run(make_inputs(s)) for s in shapes}
    for s in reversed(shapes):
        assert np.array_equal(runners[s].run(make_inputs(s)), first[s])


@pytest.mark.gpu
@needs_cuda
def test_the_stages_graphs_in_order_are_the_chunk():
    runner = CapturedRunner(make_network('cuda'), SHAPE)
    inputs = make_inputs(SHAPE, 2)
    whole = runner.run(inputs)
    runner.load(inputs)
    graphs = runner.capture_stages()
    runner.load(inputs)
    for graph in graphs.values():
        graph.replay()
    assert np.array_equal(runner.finish(), whole)


@pytest.mark.gpu
@needs_cuda
def test_a_captured_chunk_allocates_nothing_and_launches_without_waiting():
    runner = CapturedRunner(make_network('cuda'), SHAPE)
    inputs = make_inputs(SHAPE)
    runner.run(inputs)
    before = torch.cuda.memory_stats()
    mode = torch.cuda.get_sync_debug_mode()
    for _ in range(10):
        runner.load(inputs)
        torch.cuda.set_sync_debug_mode('error')
        try:
            runner.launch()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        runner.finish()
    after = torch.cuda.memory_stats()
    for key in ('allocation.all.allocated', 'segment.all.allocated', 'num_alloc_retries'):
        assert after[key] == before[key]


def test_a_long_horizon_runs_without_the_kernels_that_hold_sixteen_tokens():
    cpu = torch.device('cpu')
    with pytest.raises(UserError, match='51 suffix tokens'):
        choose_ops('triton', cpu, torch.float32, 51)


def test_the_first_error_of_a_broken_capture_is_told():
    def capture():
        try:
            raise ValueError('out of resource: shared memory')
        finally:
            raise RuntimeError('operation failed due to a previous error during capture')

    with pytest.raises(UserError, match='shared memory'), refuse_on_failure('capturing', 'a mend'):
        capture()
    with pytest.raises(UserError, match='no RuntimeError'), refuse_on_failure('it', 'a mend'):
        raise LookupError('no RuntimeError')
