"""Sizes: parameter counts on the meta device, named sizes, round trip, refusals."""

import dataclasses
import json

import pytest
import torch

from spear_ros.core.config import from_mapping, to_mapping
from spear_ros.networks.config import FlowConfig, Spear1Config
from spear_ros.networks.spear1 import Spear1


def build(name):
    with torch.device('meta'):
        return Spear1(Spear1Config.named(name))


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


def test_full_size_has_the_published_numbers_of_parameters():
    model = build('spear1')
    vlm, expert = model.vlm, model.expert
    assert millions(vlm.siglip) == pytest.approx(412.44, abs=0.005)
    assert millions(vlm.siglip_projector) == pytest.approx(2.36, abs=0.005)
    rows_3d = 1024 * 2048 / 1e6
    assert millions(vlm.language) - rows_3d == pytest.approx(2508.66, abs=0.005)
    assert vlm.language.embedding.weight.numel() / 1e6 - rows_3d == pytest.approx(526.78, abs=0.005)
    assert millions(vlm.moge) == pytest.approx(304.37, abs=0.005)
    assert millions(expert.blocks) + millions(expert.norm) == pytest.approx(311.465, abs=0.001)
    assert millions(expert) - millions(expert.blocks) == pytest.approx(3.18, abs=0.01)
    assert millions(vlm) - rows_3d == pytest.approx(3236.2, abs=0.1)
    assert millions(model) == pytest.approx(3553, abs=0.5)


def test_full_size_has_the_papers_shapes():
    config = Spear1Config.named('spear1')
    assert (config.external_size, config.external_tokens) == ((210, 280), 300)
    assert (config.wrist_size, config.wrist_tokens) == ((112, 112), 64)
    assert (config.flow.horizon, config.flow.steps, config.suffix_tokens) == (5, 10, 6)
    model = build('spear1')
    assert model.vlm.moge_projector.weight.shape == (2048, 4096)
    assert model.expert.blocks[0].attention.qkv.weight.shape == (10 * 256, 1024)


@pytest.mark.parametrize(
    ('name', 'low', 'high'),
    [
        ('spear1_debug', 0, 0.3),
        ('spear1_nano', 2, 4),
        ('spear1_tiny', 5, 8.5),
        ('spear1_small', 25, 35),
    ],
)
def test_small_sizes_are_as_small_as_they_say(name, low, high):
    assert low < millions(build(name)) < high


@pytest.mark.parametrize('name', Spear1Config.names())
def test_configurations_survive_json(name):
    config = Spear1Config.named(name)
    mapping = json.loads(json.dumps(to_mapping(config)))
    assert from_mapping(Spear1Config, mapping, 'config.json') == config


def test_a_named_size_takes_changes():
    config = Spear1Config.named('spear1_debug', flow=FlowConfig(rotation_loss='mse'))
    assert config.flow.rotation_loss == 'mse'


def test_an_unknown_name_is_answered_with_the_closest():
    with pytest.raises(ValueError, match="did you mean 'spear1_tiny'"):
        Spear1Config.named('spear_tiny')


@pytest.mark.parametrize(
    ('part', 'changes', 'text'),
    [
        ('', {'external_size': (210, 281)}, 'external_size'),
        ('', {'moge_layers': 9}, 'moge_layers'),
        ('', {'siglip_table': 'other'}, 'siglip_table'),
        ('moge', {'patch': 7}, 'patch'),
        ('siglip', {'heads': 5}, 'heads'),
        ('siglip', {'layers': 0}, 'layers'),
        ('language', {'kv_heads': 3}, 'kv_heads'),
        ('language', {'head_dim': 15}, 'head_dim'),
        ('expert', {'action_dim': 7}, 'action_dim'),
        ('expert', {'width': 33}, 'width'),
        ('flow', {'steps': 0}, 'steps'),
        ('flow', {'tau_max': 1.0}, 'tau_max'),
        ('flow', {'beta_alpha': 0.0}, 'beta_alpha'),
        ('flow', {'geodesic_step': 0.0}, 'geodesic_step'),
        ('flow', {'rotation_loss': 'l2'}, 'rotation_loss'),
    ],
)
def test_impossible_sizes_are_refused_by_name(part, changes, text):
    config = Spear1Config.named('spear1_debug')

    def change():
        if part:
            inner = dataclasses.replace(getattr(config, part), **changes)
            return dataclasses.replace(config, **{part: inner})
        return dataclasses.replace(config, **changes)

    with pytest.raises(ValueError, match=text):
        change()
