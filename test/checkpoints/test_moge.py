"""MoGe-1's published pickle is read as plain tensors and nothing else is.

The reference vectors (numbers of the published class at a small size) prove the table of names:
features computed by our encoder from the mapped tensors equal theirs.
"""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from spear_ros.checkpoints.key_map import StateDictSource, compare, expand, to_ours, to_published
from spear_ros.checkpoints.moge import IGNORABLE, open_moge, open_moge_pickle
from spear_ros.checkpoints.vision_language_maps import dinov2_rules
from spear_ros.core.errors import UserError
from spear_ros.networks.config import Spear1Config
from spear_ros.networks.moge import MogeEncoder

_SPEC = importlib.util.spec_from_file_location(
    'tiny_publications', Path(__file__).with_name('tiny_publications.py')
)
tiny = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tiny)

CONFIG = tiny.config_for_moge_vectors(Spear1Config.named('spear1_debug')).moge
needs_vectors = pytest.mark.skipif(
    not tiny.MOGE_VECTORS.exists(), reason='../shared/data/moge_vectors is absent'
)


def published_state(layers=2):
    """Names of the published file at a small size, without the reference vectors."""
    config = dataclasses.replace(CONFIG, layers=layers)
    encoder = MogeEncoder(config)
    encoder.initialize()
    return to_published(expand(dinov2_rules('', 'backbone.', config)), encoder.state_dict())


def save(path, **changes):
    data = {'model_config': {'encoder': 'dinov2_vitl14', 'intermediate_layers': 4}}
    data |= {'model': published_state()} | changes
    torch.save(data, path)
    return path


@needs_vectors
@torch.no_grad()
def test_the_published_layout_computes_the_published_features():
    weights = open_moge_pickle(tiny.MOGE_VECTORS / 'model.pt')
    encoder = MogeEncoder(CONFIG)
    needed = {n: tuple(t.shape) for n, t in encoder.state_dict().items()}
    table = expand(dinov2_rules('', 'backbone.', CONFIG))
    report = compare(table, weights.source, needed, IGNORABLE)
    assert report.fits
    assert len(report.ignored) == 169 - len(needed)
    encoder.load_state_dict({n: to_ours(table[n], weights.source) for n in needed})
    image = np.load(tiny.MOGE_VECTORS / 'inputs.npz')['photo/enc_280x210']
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((torch.tensor(image) / 255.0 - mean) / std).permute(2, 0, 1)[None]
    expected = torch.tensor(np.load(tiny.MOGE_VECTORS / 'encoder.npz')['photo/280x210/features'])
    features = encoder(pixels, weights.n_layers)[0].unflatten(-1, (4, -1)).transpose(0, 1)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)


@needs_vectors
def test_writing_back_gives_the_published_tensors():
    state = torch.load(tiny.MOGE_VECTORS / 'model.pt', weights_only=True)['model']
    table = expand(dinov2_rules('', 'backbone.', CONFIG))
    source = StateDictSource(state)
    back = to_published(table, {n: to_ours(table[n], source) for n in table})
    assert all(torch.equal(back[n], state[n]) for n in back)
    assert back.keys() == {n for n in state if n.startswith('backbone.')} - {'backbone.mask_token'}


@needs_vectors
def test_the_first_releases_area_range_becomes_a_token_range(tmp_path):
    legacy = json.loads((tiny.MOGE_VECTORS / 'geometry_cases.json').read_text())['legacy_config']
    config = {'encoder': 'dinov2_vitl14', **legacy['extra_keys']}
    weights = open_moge_pickle(save(tmp_path / 'm.pt', model_config=config))
    assert list(weights.tokens_range) == legacy['num_tokens_range']
    assert weights.n_layers == 4


def test_a_plain_config_gets_the_published_defaults(tmp_path):
    weights = open_moge_pickle(save(tmp_path / 'm.pt'))
    assert weights.tokens_range == (1200, 2500)
    assert weights.encoder == 'dinov2_vitl14'


class Evil:
    def __reduce__(self):
        return (print, ('run by a pickle',))


def _second(state):
    return {f'encoder.{name}': tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ('make', 'words'),
    [
        (lambda p: None, 'no such file'),
        (lambda p: p.write_bytes(b'\x80\x02.'), 'not a file written by torch.save'),
        (lambda p: save(p, model={'a': Evil()}), 'cannot be read as plain tensors'),
        (lambda p: save(p, model=[1, 2]), 'no "model"'),
        (lambda p: save(p, model={'a': 3}), 'more than tensors'),
        (lambda p: save(p, model_config=None), 'no model_config'),
        (lambda p: save(p, model=_second(published_state())), 'this is MoGe-2'),
        (lambda p: save(p, model_config={'intermediate_layers': [5, 11, 17, 23]}), 'MoGe-2'),
        (lambda p: save(p, model_config={'neck': {}}), 'MoGe-2'),
        (lambda p: save(p, model_config={'num_tokens_range': [9, 3]}), 'range of sizes'),
        (lambda p: save(p, model_config={'trained_area_range': 'x'}), 'range of sizes'),
    ],
)
def test_other_files_are_refused_with_their_reason(tmp_path, capsys, make, words):
    path = tmp_path / 'model.pt'
    make(path)
    with pytest.raises(UserError, match=words):
        open_moge_pickle(path)
    assert 'run by a pickle' not in capsys.readouterr().out


def test_a_truncated_pickle_is_one_sentence(tmp_path):
    path = save(tmp_path / 'model.pt')
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match='truncated'):
        open_moge_pickle(path)


def test_a_file_beyond_the_cap_is_not_opened(tmp_path):
    path = tmp_path / 'model.pt'
    with path.open('wb') as file:
        file.truncate(4 << 30)  # sparse: takes no space
    with pytest.raises(UserError, match='more than'):
        open_moge_pickle(path)


def test_nodes_never_open_the_pickle(tmp_path):
    with pytest.raises(UserError, match='spear checkpoint convert --moge'):
        open_moge(save(tmp_path / 'model.pt'))
