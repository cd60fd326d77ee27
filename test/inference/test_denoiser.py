"""One chunk on static buffers: the eager twin equals the networks' own sampling.

Pinned: padding changes nothing; buffers reused for other inputs give the other result; committed
actions come back untouched and the rest moves; a wrong shape, type or device never reaches a graph;
nothing in the two recorded functions synchronises or depends on values. The captured twin equals
the eager one (needs a CUDA device).
"""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spear_ros.core.errors import UserError
from spear_ros.inference.denoiser import (
    CapturedRunner,
    ChunkInputs,
    ChunkRunner,
    ChunkShape,
    copy_inputs,
    refuse_on_failure,
    static_inputs,
)
from spear_ros.networks.flow_matching import sample_noise
from spear_ros.networks.spear1 import PrefixInputs, Spear1, Spear1Config

CONFIG = Spear1Config.named('spear1_debug')
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    model = Spear1(CONFIG).eval().requires_grad_(False)
    model.bake()
    return model


def make_inputs(shape, seed=0, real_tokens=None, device='cpu', model_config=CONFIG):
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 500, (1, shape.text), generator=g)
    mask = torch.arange(shape.text)[None] < (real_tokens or shape.text)
    noise = sample_noise(1, model_config.flow, g)
    inputs = {
        'external': torch.rand(1, 3, *model_config.external_size, generator=g),
        'wrist': torch.rand(1, 3, *model_config.wrist_size, generator=g) if shape.wrist else None,
        'tokens': tokens * mask,
        'token_mask': mask,
        'proprio': torch.rand(1, 8, generator=g),
        'noise': noise,
        'committed': noise.clone(),
        'committed_mask': torch.zeros(1, model_config.flow.horizon, dtype=torch.bool),
    }
    return ChunkInputs(**{k: v if v is None else v.to(device) for k, v in inputs.items()})


def reference(model, inputs, steps=None, committed=None):
    keep = int(inputs.token_mask.sum())
    prefix = PrefixInputs(
        external=inputs.external, wrist=inputs.wrist, tokens=inputs.tokens[:, :keep]
    )
    return model.sample(prefix, inputs.proprio, inputs.noise, committed, steps)


@pytest.mark.parametrize('wrist', [True, False])
@pytest.mark.parametrize('real', [16, 9, 3])
@pytest.mark.parametrize('steps', [None, 3])
def test_the_runner_computes_what_the_networks_compute_without_padding(model, wrist, real, steps):
    shape = ChunkShape(text=16, wrist=wrist)
    inputs = make_inputs(shape, real_tokens=real)
    actions = ChunkRunner(model, shape, steps).run(inputs)
    torch.testing.assert_close(actions, reference(model, inputs, steps), rtol=1e-5, atol=1e-5)


def test_reused_buffers_hold_nothing_of_the_chunk_before(model):
    shape = ChunkShape(text=16, wrist=True)
    runner = ChunkRunner(model, shape)
    results = {}
    for seed in (0, 1, 0, 2, 1):
        inputs = make_inputs(shape, seed, real_tokens=16 - 4 * seed)
        out = runner.run(inputs).clone()
        assert torch.equal(out, results.setdefault(seed, out))
    assert not torch.equal(results[0], results[1])


@pytest.mark.parametrize('count', [1, 2, 4])
def test_committed_actions_start_the_chunk_and_the_rest_is_denoised_beside_them(model, count):
    shape = ChunkShape(text=16, wrist=True)
    inputs = make_inputs(shape, 3)
    runner = ChunkRunner(model, shape)
    free = runner.run(inputs).clone()
    owed = make_inputs(shape, 4).noise
    mask = torch.arange(CONFIG.flow.horizon)[None] < count
    held = runner.run(replace(inputs, committed=owed, committed_mask=mask)).clone()
    torch.testing.assert_close(held[:, :count], owed[:, :count], rtol=0, atol=1e-5)
    assert not torch.allclose(held[:, count:], free[:, count:])  # actions see each other
    assert torch.equal(runner.run(inputs), free)


def test_a_mask_of_no_committed_actions_equals_none(model):
    shape = ChunkShape(text=16, wrist=False)
    inputs = make_inputs(shape, 5)
    other = replace(inputs, committed=make_inputs(shape, 6).noise)
    runner = ChunkRunner(model, shape)
    assert torch.equal(runner.run(inputs).clone(), runner.run(other))


@pytest.mark.parametrize(
    ('field', 'change', 'words'),
    [
        ('external', lambda t: t[..., 1:], 'external: shape'),
        ('wrist', lambda t: None, 'wrist: given False'),
        ('tokens', lambda t: t.int(), 'tokens: dtype'),
        ('token_mask', lambda t: t.float(), 'token_mask: dtype'),
        ('proprio', lambda t: t.double(), 'proprio: dtype'),
        ('noise', lambda t: t[:, :4], 'noise: shape'),
        ('committed', lambda t: t.to('meta'), 'committed: device'),
        ('committed_mask', lambda t: t[0], 'committed_mask: shape'),
    ],
)
def test_inputs_of_another_shape_type_or_device_are_refused_by_name(model, field, change, words):
    shape = ChunkShape(text=16, wrist=True)
    inputs = make_inputs(shape)
    runner = ChunkRunner(model, shape)
    with pytest.raises(ValueError, match=words):
        runner.run(replace(inputs, **{field: change(getattr(inputs, field))}))


class Audit(TorchDispatchMode):
    """Counts operations and notes those that a capture cannot hold."""

    FORBIDDEN = ('_local_scalar_dense', 'nonzero', 'masked_select', 'is_nonzero', 'equal.default')

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))

    @property
    def forbidden(self):
        return [n for n in self.names if any(f in n for f in self.FORBIDDEN)]


def test_the_recorded_functions_neither_synchronise_nor_depend_on_values(model):
    shape = ChunkShape(text=16, wrist=True)
    runner = ChunkRunner(model, shape)
    logs = []
    for seed, real in ((0, 16), (1, 5)):
        inputs = make_inputs(shape, seed, real_tokens=real)
        mask = torch.arange(CONFIG.flow.horizon)[None] < seed
        runner.load(replace(inputs, committed_mask=mask))
        with Audit() as audit:
            runner.prefill()
            runner.denoise()
        assert audit.forbidden == []
        logs.append(audit.names)
    assert logs[0] == logs[1]


def test_static_buffers_alone_give_finite_actions(model):
    # Warm-up and capture run on them before anything real was copied in.
    for shape in (ChunkShape(text=16, wrist=True), ChunkShape(text=32, wrist=False)):
        runner = ChunkRunner(model, shape)
        runner.prefill()
        runner.denoise()
        assert runner.actions.isfinite().all()


def test_copying_leaves_the_source_alone(model):
    shape = ChunkShape(text=16, wrist=True)
    inputs, static = make_inputs(shape), static_inputs(model, shape, torch.device('cpu'))
    copy_inputs(inputs, static)
    static.external.zero_()
    assert inputs.external.abs().sum() > 0


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
@pytest.mark.parametrize('wrist', [True, False])
def test_the_captured_twin_equals_the_eager_one(model, wrist):
    import copy

    model = copy.deepcopy(model).cuda()
    model.bake()
    shape = ChunkShape(text=16, wrist=wrist)
    eager, captured = ChunkRunner(model, shape), CapturedRunner(model, shape)
    for seed in range(4):
        inputs = make_inputs(shape, seed, real_tokens=16 - 3 * seed, device='cuda')
        mask = (torch.arange(CONFIG.flow.horizon)[None] < seed).cuda()
        inputs = replace(inputs, committed_mask=mask)
        a, b = eager.run(inputs).clone(), captured.run(inputs).clone()
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    captured.close()


@pytest.mark.gpu
@needs_cuda
def test_graphs_of_several_shapes_share_a_pool_and_do_not_disturb_each_other(model):
    import copy

    model = copy.deepcopy(model).cuda()
    model.bake()
    shapes = [ChunkShape(text=t, wrist=w) for t in (16, 32) for w in (True, False)]
    pool, runners = None, {}
    for shape in shapes:
        runners[shape] = CapturedRunner(model, shape, pool=pool)
        pool = runners[shape].pool
    first = {s: runners[s].run(make_inputs(s, device='cuda')).clone() for s in shapes}
    for s in reversed(shapes):
        assert torch.equal(runners[s].run(make_inputs(s, device='cuda')), first[s])
