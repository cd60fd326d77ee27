"""Static buffers: what does not fit is refused by name, what is loaded is all that changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from spear_ros.inference.chunk_buffers import ChunkShape, PackedInputs, example_inputs
from spear_ros.inference.fused import FusedSpear1
from spear_ros.inference.fused_weights import FuseOptions, fuse
from spear_ros.inference.ops import TorchOps
from spear_ros.networks.spear1 import Spear1, Spear1Config

CONFIG = Spear1Config.named('spear1_debug')
SHAPE = ChunkShape(16, (60, 80), (60, 80))


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    options = FuseOptions(compute=torch.float32, steps=2, adjacent_pairs=True)
    weights = fuse(Spear1(CONFIG).requires_grad_(False), options)
    return FusedSpear1(weights, TorchOps(weights))


@pytest.mark.parametrize(
    ('field', 'change', 'words'),
    [
        ('external', lambda a: a[1:], 'external: shape'),
        ('external', lambda a: a.astype(float), 'external: type'),
        ('wrist', lambda a: None, 'wrist: given False'),
        ('tokens', lambda a: a.astype(np.int32), 'tokens: type'),
        ('tokens', lambda a: torch.from_numpy(a), 'tokens: Tensor instead of an array'),
        ('token_mask', lambda a: a.astype(float), 'token_mask: type'),
        ('token_mask', lambda a: np.arange(16) > 3, 'padding stands before'),
        ('proprio', lambda a: a.astype(np.float64), 'proprio: type'),
        ('noise', lambda a: a[:4], 'noise: shape'),
        ('committed', lambda a: a[None], 'committed: shape'),
        ('committed_mask', lambda a: a[1:], 'committed_mask: shape'),
    ],
)
def test_inputs_of_another_shape_type_or_place_are_refused_by_name(network, field, change, words):
    inputs = example_inputs(CONFIG, SHAPE)
    buffers = network.make_buffers(SHAPE)
    with pytest.raises(ValueError, match=words):
        buffers.load(replace(inputs, **{field: change(getattr(inputs, field))}))


def test_a_wrist_picture_for_buffers_without_one_is_refused(network):
    buffers = network.make_buffers(SHAPE._replace(wrist=None))
    with pytest.raises(ValueError, match='wrist: given True'):
        buffers.load(example_inputs(CONFIG, SHAPE))


def test_inputs_know_the_shape_that_they_fit():
    for shape in (SHAPE, ChunkShape(32, (48, 48), None)):
        assert example_inputs(CONFIG, shape).shape == shape


def test_loading_leaves_the_source_alone(network):
    inputs = example_inputs(CONFIG, SHAPE)
    buffers = network.make_buffers(SHAPE)
    buffers.load(inputs)
    buffers.images[0].fill_(7)
    buffers.inputs['noise'].fill_(7)
    assert inputs.external.max() == 0
    assert inputs.noise.max() == 1


def test_fresh_buffers_give_finite_actions(network):
    # Warm-up and capture run on them before anything real was loaded.
    for shape in (SHAPE, ChunkShape(32, (60, 80), None)):
        buffers = network.make_buffers(shape)
        network(buffers)
        assert buffers.host_actions.isfinite().all()


def test_packed_views_are_aligned_and_do_not_overlap():
    entries = {
        'a': (torch.bool, (3,)),
        'b': (torch.int64, (2, 3)),
        'c': (torch.float32, ()),
        'd': (torch.bool, (1,)),
    }
    packed = PackedInputs(entries)
    block = torch.zeros(packed.size, dtype=torch.uint8)
    views = packed.views(block)
    for i, (name, (dtype, shape)) in enumerate(entries.items()):
        view = views[name]
        assert (view.dtype, tuple(view.shape)) == (dtype, shape)
        assert (view.data_ptr() - block.data_ptr()) % 16 == 0
        view.fill_(i)
    for i, name in enumerate(entries):
        assert (views[name] == torch.tensor(i).to(entries[name][0])).all()
