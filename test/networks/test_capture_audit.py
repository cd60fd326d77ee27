"""What a CUDA graph needs, checked on the CPU: no host synchronisation, no shapes from data, the
same operations in every call.

Every operation that reaches the dispatcher is recorded by name.
"""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spear_ros.networks import flow_matching as fm
from spear_ros.networks.spear1 import PrefixInputs, Spear1, Spear1Config

CONFIG = Spear1Config.named('spear1_debug')
HOST_OR_DATA_DEPENDENT = {
    '_local_scalar_dense',  # .item(), bool(tensor), float(tensor)
    'nonzero',
    'masked_select',
    'unique',
    '_unique2',
    'unique_dim',
    'bincount',
    'repeat_interleave',
    'lift_fresh',  # torch.tensor(...): a copy from the host
    'equal',
}


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split('.')[0]
        if name in ('index', 'index_put_', 'index_put'):
            indices = [i for i in args[1] if i is not None]
            assert all(i.dtype != torch.bool for i in indices), 'boolean index: shape from data'
        result = function(*args, **(kwargs or {}))
        self.names.append(name)
        self.shapes.append(tuple(result.shape) if isinstance(result, torch.Tensor) else None)
        return result


def record(function):
    with torch.no_grad(), Recorder() as recorder:
        function()
    return recorder


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    model = Spear1(CONFIG).eval()
    model.bake()
    return model


def make_inputs(seed, padded):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([[8], [3 + seed]])
    return PrefixInputs(
        external=torch.rand(2, 3, *CONFIG.external_size, generator=generator),
        wrist=torch.rand(2, 3, *CONFIG.wrist_size, generator=generator),
        tokens=torch.randint(0, 500, (2, 8), generator=generator),
        token_mask=torch.arange(8) < lengths if padded else None,
    ), torch.randn(2, 8, generator=generator)


@pytest.mark.parametrize('padded', [False, True])
def test_prefill_never_asks_the_host_and_does_not_depend_on_data(model, padded):
    first, second = make_inputs(0, padded), make_inputs(1, padded)
    cache = model.prefill(*first)
    runs = [record(lambda i=i: model.prefill(*i, cache)) for i in (first, second)]
    assert len(runs[0].names) > 50
    assert not HOST_OR_DATA_DEPENDENT & set(runs[0].names)
    assert runs[0].names == runs[1].names
    assert runs[0].shapes == runs[1].shapes


def denoise(model, padded, seed=0):
    """Record each denoise step with its integration step apart."""
    inputs, proprio = make_inputs(seed, padded)
    cache = model.prefill(inputs, proprio)
    table = model.time_table()
    noise = fm.sample_noise(2, CONFIG.flow, torch.Generator().manual_seed(seed))
    owed, mask = noise.flip(0), (torch.arange(5) < seed + 1).expand(2, 5)
    steps = []
    actions = noise
    for i in range(CONFIG.flow.steps):
        state = {}

        def step(i=i, actions=actions, state=state):
            v = model.denoise_step(actions, table[i : i + 1], cache)
            moved = fm.flow_step(actions, v, 0.1, CONFIG.flow)
            tau = (i + 1) / 10
            state['actions'] = fm.hold_committed(moved, noise, (owed, mask), tau, CONFIG.flow)

        steps.append(record(step))
        actions = state['actions']
    return steps


@pytest.mark.parametrize('padded', [False, True])
def test_denoise_steps_are_the_same_operations_every_time(model, padded):
    steps = denoise(model, padded) + denoise(model, padded, seed=1)
    for step in steps:
        assert not HOST_OR_DATA_DEPENDENT & set(step.names)
        assert step.names == steps[0].names
        assert step.shapes == steps[0].shapes


@pytest.mark.parametrize('padded', [False, True])
def test_denoise_steps_write_keys_by_slice_and_never_concatenate(model, padded):
    names = denoise(model, padded)[0].names
    assert not {'cat', 'stack', 'repeat'} & set(names)
    assert names.count('copy_') >= 2 * CONFIG.language.layers


def test_one_expert_layer_costs_a_fixed_number_of_operations(model, monkeypatch):
    """Twice the depth adds the same operations per layer: nothing else grows with depth."""
    language = dataclasses.replace(CONFIG.language, layers=4)
    deeper = Spear1(dataclasses.replace(CONFIG, language=language)).eval()
    deepest = Spear1(
        dataclasses.replace(CONFIG, language=dataclasses.replace(CONFIG.language, layers=6))
    ).eval()
    counts = [len(denoise(m, padded=False)[0].names) for m in (model, deeper, deepest)]
    assert counts[1] - counts[0] == counts[2] - counts[1] > 0


def test_the_recorder_sees_what_it_must():
    run = record(lambda: (torch.rand(3).sum().item(), torch.tensor([1.0]), torch.rand(3).nonzero()))
    assert {'_local_scalar_dense', 'lift_fresh', 'nonzero'} <= set(run.names)
    with pytest.raises(AssertionError, match='boolean'):
        record(lambda: torch.rand(3)[torch.tensor([True, False, True])])
