"""The adapter for a release nobody here has seen: maps what is known, and reports the rest by name.

The release is simulated by writing our own tensors under other names: a wrapper's prefixes around
the published ones, which is all that may be assumed of it.
"""

import json

import pytest
import torch

from spear_ros.checkpoints import released_spear1
from spear_ros.checkpoints.key_map import StateDictSource, expand, to_published
from spear_ros.checkpoints.released_spear1 import Prefixes, find_prefixes, open_released
from spear_ros.core.errors import UserError
from spear_ros.networks.spear1 import Spear1, Spear1Config

CONFIG = Spear1Config.named('spear1_debug')
PREFIXES = Prefixes(
    language='model.vlm.paligemma.model.language_model.',
    vision='model.vlm.paligemma.model.vision_tower.',
    projector='model.vlm.paligemma.model.multi_modal_projector.',
    moge='model.vlm.moge.backbone.',
    expert='model.gemma_expert.model.layers.',
    heads='model.',
)


@pytest.fixture(scope='module')
def state():
    torch.manual_seed(0)
    return Spear1(CONFIG).state_dict()


@pytest.fixture(scope='module')
def needed(state):
    return {n: tuple(t.shape) for n, t in state.items()}


def released(state):
    return to_published(expand(released_spear1._rules(CONFIG, PREFIXES)), state)


def test_wrapped_publications_are_found_behind_any_prefix(state):
    assert find_prefixes(StateDictSource(released(state))) == PREFIXES


def test_a_release_with_the_guessed_heads_is_mapped_whole(state, needed):
    source, report = open_released(StateDictSource(released(state)), CONFIG, needed)
    assert report.fits
    assert all(torch.equal(source.get(n), state[n]) for n in needed)


def test_other_names_are_reported_on_both_sides_and_a_table_mends_them(state, needed, tmp_path):
    theirs = released(state)
    theirs['model.proprio_encoder.weight'] = theirs.pop('model.state_proj.weight')
    theirs['model.proprio_encoder.bias'] = theirs.pop('model.state_proj.bias')
    _, report = open_released(StateDictSource(theirs), CONFIG, needed)
    assert report.missing == ('model.state_proj.bias', 'model.state_proj.weight')
    assert report.unexpected == ('model.proprio_encoder.bias', 'model.proprio_encoder.weight')
    table = tmp_path / 'table.json'
    names = {f'expert.proprio_in.{e}': [f'model.proprio_encoder.{e}'] for e in ('weight', 'bias')}
    table.write_text(json.dumps(names))
    source, report = open_released(StateDictSource(theirs), CONFIG, needed, table)
    assert report.fits
    assert torch.equal(source.get('expert.proprio_in.weight'), state['expert.proprio_in.weight'])


def test_a_table_may_name_layers_and_split_projections(state, needed, tmp_path):
    theirs = released(state)
    for i in range(CONFIG.language.layers):
        old = f'model.gemma_expert.model.layers.{i}.mlp.down_proj.weight'
        theirs[f'model.expert.{i}.w2'] = theirs.pop(old)
    table = tmp_path / 'table.json'
    table.write_text(json.dumps({'expert.blocks.{i}.mlp.down.weight': 'model.expert.{i}.w2'}))
    assert open_released(StateDictSource(theirs), CONFIG, needed, table)[1].fits


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('{"a": ', 'not valid JSON'),
        ('[]', 'must map to'),
        ('{"expert.norm.weight": 3}', 'must map to'),
        ('{"expert.nrom.weight": "x"}', 'no tensor "expert.nrom.weight"'),
    ],
)
def test_a_table_that_cannot_be_used_is_one_sentence(state, needed, tmp_path, text, words):
    (tmp_path / 't.json').write_text(text)
    source = StateDictSource(released(state))
    with pytest.raises(UserError, match=words):
        open_released(source, CONFIG, needed, tmp_path / 't.json')


def test_something_else_entirely_is_a_report_and_no_crash(needed):
    source = StateDictSource({'layer.weight': torch.ones(2)})
    _, report = open_released(source, CONFIG, needed)
    assert not report.fits
    assert report.unexpected == ('layer.weight',)
    assert len(report.missing) > 50
