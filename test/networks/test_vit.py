"""Positional tables: interpolation rules, baking and what undoes it; patches."""

import copy
import dataclasses

import pytest
import torch
from torch.nn import functional as F

from spear_ros.networks.siglip import SiglipEncoder
from spear_ros.networks.vit import PatchEmbedding, PositionTable


@pytest.fixture(params=['size', 'scale'])
def table(request, vit_config, scramble):
    table = PositionTable(vit_config, request.param, extra=1)
    table.initialize()
    return scramble(table)


def test_own_grid_is_the_stored_table(table):
    assert torch.equal(table(4, 4), table.table)


def test_class_row_is_never_interpolated(table):
    assert torch.equal(table(3, 7)[0], table.table[0])


def test_the_two_rules_sample_different_points(vit_config, scramble):
    size = PositionTable(vit_config, 'size')
    size.initialize()
    scale = copy.deepcopy(size)
    scale.rule = 'scale'
    difference = (size(3, 6) - scale(3, 6)).abs().max()
    assert 1e-3 < difference < 0.5


def test_tables_may_be_wider_than_high(vit_config):
    config = dataclasses.replace(vit_config, table_rows=3, table_columns=5)
    table = PositionTable(config, 'size')
    table.initialize()
    grid = table.table.view(1, 3, 5, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (6, 7), mode='bicubic').flatten(2)[0].T
    assert torch.equal(table(6, 7), expected)


def test_interpolation_is_done_in_float32_and_is_differentiable(table):
    low = copy.deepcopy(table).bfloat16()
    assert low(3, 7).dtype == torch.float32
    assert (low(3, 7) - table(3, 7)).abs().max() < 0.02
    table(3, 7).square().sum().backward()
    assert (table.table.grad != 0).all()


def test_baked_values_are_the_interpolated_ones_rounded_once(table):
    expected = table(3, 7).detach()
    table.bake([(3, 7), (2, 2)], torch.bfloat16)
    assert torch.equal(table(3, 7), expected.bfloat16())
    assert table(5, 5).dtype == torch.float32
    assert set(table.state_dict()) == {'table'}


def test_training_and_loading_weights_drop_baked_values(table):
    state = {'table': torch.randn_like(table.table)}
    table.bake([(3, 7)], torch.float32)
    table.train()
    with torch.no_grad():
        table.table.mul_(2)
    table.eval()
    before = table(3, 7).detach().clone()
    table.bake([(3, 7)], torch.float32)
    assert torch.equal(table(3, 7), before)
    table.load_state_dict(state)
    assert not torch.allclose(table(3, 7), before)


def test_baking_does_not_change_what_an_encoder_says(vit_config, scramble):
    encoder = scramble(SiglipEncoder(vit_config))
    pixels = torch.randn(1, 3, 42, 70)
    plain = encoder(pixels)
    encoder.position.bake([(3, 5)], torch.float32)
    assert torch.equal(encoder(pixels), plain)


def test_patches_are_row_major(vit_config):
    patches = PatchEmbedding(vit_config)
    with torch.no_grad():
        patches.weight.fill_(1 / (3 * 14 * 14))
    pixels = torch.arange(6.0).view(1, 1, 2, 3).expand(1, 3, 2, 3)
    pixels = pixels.repeat_interleave(14, 2).repeat_interleave(14, 3)
    tokens, rows, columns = patches(pixels)
    assert (rows, columns) == (2, 3)
    assert torch.allclose(tokens[0, :, 0], torch.arange(6.0), atol=1e-5)
