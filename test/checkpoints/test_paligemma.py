"""PaliGemma's weights come in under every layout in which they are published, and compute the same.

The oracle is transformers' own model at a tiny size: after reading its file our vision tower,
projector and language stack give its numbers, so the table mixes up no two tensors of equal shape.
"""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from spear_ros.checkpoints.key_map import to_published
from spear_ros.checkpoints.paligemma import open_paligemma
from spear_ros.core.errors import UserError
from spear_ros.networks.config import Spear1Config
from spear_ros.networks.gemma import GemmaModel
from spear_ros.networks.siglip import SiglipEncoder

_SPEC = importlib.util.spec_from_file_location(
    'tiny_publications', Path(__file__).with_name('tiny_publications.py')
)
tiny = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tiny)

pytest.importorskip('transformers', reason='the oracle needs transformers')

CONFIG = Spear1Config.named('spear1_debug')
PREFIXES = {'siglip': 'siglip.', 'projector': 'projector.', 'language': 'language.'}
ROWS = 1600


def our_modules():
    return nn.ModuleDict(
        {
            'siglip': SiglipEncoder(CONFIG.siglip),
            'projector': nn.Linear(CONFIG.siglip.width, CONFIG.language.width),
            'language': GemmaModel(CONFIG.language),
        }
    )


NEEDED = {n: tuple(t.shape) for n, t in our_modules().state_dict().items()}


@pytest.fixture(scope='module')
def oracle():
    return tiny.tiny_paligemma(CONFIG, ROWS)


@pytest.fixture(scope='module')
def folder(oracle, tmp_path_factory):
    """Every layout and sharding, one subfolder each."""
    base = tmp_path_factory.mktemp('paligemma')
    tiny.save_hub_layout(oracle, base / 'hub')
    tiny.save_state_dict_layout(oracle, base / 'state_dict')
    oracle.save_pretrained(base / 'saved')
    oracle.save_pretrained(base / 'sharded', max_shard_size='100KB')
    return base


def read(path):
    source, report = open_paligemma(path, CONFIG, PREFIXES, NEEDED)
    report.require_fit(path, 'mend.')
    return {name: source.get(name).clone() for name in source.names()}, report


@pytest.mark.parametrize('layout', ['hub', 'state_dict', 'saved', 'sharded'])
def test_every_published_layout_gives_the_same_tensors(folder, layout):
    state, report = read(folder / layout)
    reference, _ = read(folder / 'hub')
    assert state.keys() == NEEDED.keys()
    assert all(torch.equal(state[n], reference[n]) for n in state)
    assert report.ignored == (('lm_head.weight',) if layout == 'state_dict' else ())
    assert tuple(state['language.embedding.weight'].shape) == (ROWS, CONFIG.language.width)


@torch.no_grad()
def test_the_loaded_parts_compute_what_the_published_model_computes(folder, oracle):
    state, _ = read(folder / 'hub')
    modules = our_modules()
    rows = state['language.embedding.weight']
    full = torch.zeros(CONFIG.language.vocab_size, CONFIG.language.width)
    full[:ROWS] = rows
    modules.load_state_dict(state | {'language.embedding.weight': full})
    side = CONFIG.siglip.table_rows * CONFIG.siglip.patch
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ours = modules['projector'](modules['siglip'](pixels))
    theirs = oracle.model.multi_modal_projector(oracle.model.vision_tower(pixels).last_hidden_state)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    ids = torch.arange(5, 17)[None]
    everything = torch.ones(1, 1, 12, 12, dtype=torch.bool)
    ours = modules['language'](modules['language'].embed(ids), None, torch.arange(12)[None])
    theirs = oracle.model.language_model(input_ids=ids, attention_mask=everything)
    torch.testing.assert_close(ours, theirs.last_hidden_state, rtol=1e-5, atol=1e-5)


def test_writing_back_gives_the_published_tensors(folder):
    source, _ = open_paligemma(folder / 'hub', CONFIG, PREFIXES, NEEDED)
    back = to_published(source.table, {n: source.get(n) for n in source.names()})
    published = load_file(folder / 'hub/model.safetensors')
    assert back.keys() == published.keys()
    assert all(torch.equal(back[n], published[n]) for n in back)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            lambda s: s.pop('language_model.model.layers.1.self_attn.k_proj.weight'),
            r'1 missing \(first "language_model.model.layers.1.self_attn.k_proj.weight"',
        ),
        (
            lambda s: s.update({'language_model.model.layers.2.mlp.up_proj.weight': torch.ones(1)}),
            '1 unexpected',
        ),
        (
            lambda s: s.update(
                {'multi_modal_projector.linear.weight': torch.ones(3, CONFIG.siglip.width)}
            ),
            r'1 of wrong shape \(first multi_modal_projector.linear.weight has \(3, 32\)',
        ),
        (
            lambda s: s.update({'language_model.model.embed_tokens.weight': torch.ones(9000, 32)}),
            r'embed_tokens.weight has \(9000, 32\)',
        ),
        (
            lambda s: [s.pop(k) for k in list(s) if k.startswith('vision_tower')],
            'no PaliGemma vision tower',
        ),
    ],
    ids=['one missing', 'a layer more', 'shape', 'vocabulary', 'language only'],
)
def test_weights_that_do_not_fit_the_config_say_where(folder, tmp_path, change, words):
    state = load_file(folder / 'hub/model.safetensors')
    change(state)
    save_file(state, tmp_path / 'model.safetensors')
    with pytest.raises(UserError, match=words):
        read(tmp_path)


def test_a_missing_shard_is_named(folder, tmp_path):
    shutil.copytree(folder / 'sharded', tmp_path / 'copy')
    gone = sorted((tmp_path / 'copy').glob('*.safetensors'))[1]
    gone.unlink()
    with pytest.raises(UserError, match=gone.name):
        read(tmp_path / 'copy')
