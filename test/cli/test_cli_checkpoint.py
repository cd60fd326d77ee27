"""``spear checkpoint``: every answer is a line, every fault one sentence and exit status 2."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml

from spear_ros.checkpoints.spear1 import CheckpointContents, save_checkpoint
from spear_ros.cli.main import main
from spear_ros.core.config import to_mapping
from spear_ros.networks.spear1 import Spear1, Spear1Config
from spear_ros.processing.embodiments import default_action_specs, default_norm_stats
from spear_ros.processing.small_tokenizer import build_small_tokenizer

_SPEC = importlib.util.spec_from_file_location(
    'tiny_publications',
    Path(__file__).parents[1] / 'checkpoints' / 'tiny_publications.py',
)
tiny = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tiny)

CONFIG = Spear1Config.named('spear1_debug')


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp('cli')
    build_small_tokenizer(base / 'tokenizer.json')
    contents = CheckpointContents(
        model=CONFIG,
        specs=default_action_specs(),
        stats=default_norm_stats(),
        tokenizer=base / 'tokenizer.json',
        trained=True,
        recipe='cli test',
    )
    torch.manual_seed(0)
    save_checkpoint(base / 'good', contents, Spear1(CONFIG).state_dict())
    return base


def spear(capsys, *words):
    status = main(['checkpoint', *map(str, words)])
    out = capsys.readouterr()
    return status, out.out, out.err


def refused(capsys, *words):
    status, _, err = spear(capsys, *words)
    assert status == 2
    assert err.count('\n') == 1
    assert 'Traceback' not in err
    return err


def test_inspect_says_what_it_is(base, capsys):
    status, out, _ = spear(capsys, 'inspect', base / 'good')
    assert status == 0
    for word in ('0.2 M parameters', 'trained', 'cli test', 'link8', 'ee_gripper_link', 'crop'):
        assert word in out
    _, out, _ = spear(capsys, 'inspect', base / 'good', '--tensors')
    assert 'expert.action_out.bias  (8,)  float32' in out


def test_verify_passes_a_sound_checkpoint(base, capsys):
    status, out, _ = spear(capsys, 'verify', base / 'good')
    assert status == 0
    assert 'every byte is as it was exported' in out


@pytest.mark.parametrize('action', ['inspect', 'verify'])
def test_faults_are_one_sentence(base, capsys, tmp_path, action):
    assert 'no such' in refused(capsys, action, tmp_path / 'nothing')
    torch.save({'a': torch.ones(2)}, tmp_path / 'model.pt')
    assert 'model.pt' in refused(capsys, action, tmp_path / 'model.pt')
    assert 'model.pt' in refused(capsys, action, tmp_path)


def test_a_pickle_under_another_name_is_never_opened_by_inspect(capsys, tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ('run by a pickle',))

    torch.save({'model': Evil()}, tmp_path / 'x.safetensors')
    status, out, err = spear(capsys, 'inspect', tmp_path / 'x.safetensors')
    assert status == 2
    assert 'run by a pickle' not in out + err
    assert 'pickle' in err


def test_nothing_to_convert_and_contradictions_are_refused(base, capsys, tmp_path):
    out = tmp_path / 'out'
    assert 'nothing to convert' in refused(capsys, 'convert', '--output', out)
    both = ('--paligemma', base, '--released', base)
    assert 'exclude each other' in refused(capsys, 'convert', *both, '--output', out)
    assert '--moge is missing' in refused(capsys, 'convert', '--paligemma', base, '--output', out)
    only = ('--released', base / 'good', '--tokenizer', base / 'tokenizer.json')
    assert '--norm-stats is missing' in refused(capsys, 'convert', *only, '--output', out)
    assert not out.exists()


@pytest.mark.skipif(not tiny.MOGE_VECTORS.exists(), reason='../shared/data/moge_vectors is absent')
def test_published_weights_become_a_checkpoint_in_one_command(base, capsys, tmp_path):
    pytest.importorskip('transformers', reason='the publication is made with transformers')
    config = tiny.config_for_moge_vectors(CONFIG)
    (tmp_path / 'sizes.yaml').write_text(yaml.safe_dump(to_mapping(config)))
    tiny.save_hub_layout(tiny.tiny_paligemma(config, 1600), tmp_path / 'paligemma')
    status, out, err = spear(
        capsys, 'convert', '--paligemma', tmp_path / 'paligemma',
        '--moge', tiny.MOGE_VECTORS / 'model.pt', '--tokenizer', base / 'tokenizer.json',
        '--size', tmp_path / 'sizes.yaml', '--output', tmp_path / 'spear1',
    )  # fmt: skip
    assert (status, err) == (0, '')
    assert 'NOT TRAINED' in out
    assert 'bfloat16' in out
    assert 'moge: not used: 67 tensors' in out or 'moge: not used' in out
    assert spear(capsys, 'verify', tmp_path / 'spear1')[0] == 0
    status, out, _ = spear(
        capsys, 'inspect', tmp_path / 'paligemma', '--size', tmp_path / 'sizes.yaml'
    )
    assert 'PaliGemma, fits' in out
    wrong = spear(capsys, 'inspect', tmp_path / 'paligemma', '--size', 'spear1_tiny')[1]
    assert 'does not fit' in wrong
    assert 'missing: ' in wrong


@pytest.mark.skipif(not tiny.MOGE_VECTORS.exists(), reason='../shared/data/moge_vectors is absent')
def test_moge_alone_becomes_safetensors(capsys, tmp_path):
    pickle = tiny.MOGE_VECTORS / 'model.pt'
    status, out, _ = spear(capsys, 'convert', '--moge', pickle, '--output', tmp_path / 'moge')
    assert status == 0
    assert 'dinov2_tiny14' in out
    assert 'MoGe-1' in spear(capsys, 'inspect', tmp_path / 'moge')[1]


def test_a_release_says_that_the_adapter_is_untried_and_what_does_not_fit(base, capsys, tmp_path):
    stats = base / 'good/norm_stats.json'
    status, out, err = spear(
        capsys, 'convert', '--released', base / 'good', '--tokenizer', base / 'tokenizer.json',
        '--norm-stats', stats, '--size', 'spear1_debug', '--output', tmp_path / 'out',
    )  # fmt: skip
    assert status == 2
    assert 'could not be tried' in out
    assert 'missing: ' in out
    assert '--table' in err
    table = {n: [n] for n in Spear1(CONFIG).state_dict()}
    (tmp_path / 'table.json').write_text(json.dumps(table))
    status, out, _ = spear(
        capsys, 'convert', '--released', base / 'good', '--tokenizer', base / 'tokenizer.json',
        '--norm-stats', stats, '--size', 'spear1_debug', '--output', tmp_path / 'out',
        '--table', tmp_path / 'table.json', '--dtype', 'float32',
    )  # fmt: skip
    assert status == 0
    assert 'never tried' in out


@pytest.mark.parametrize(
    ('size', 'words'),
    [('spear2', "did you mean 'spear1'"), ('no.yaml', 'cannot read')],
)
def test_unknown_sizes_name_the_closest(base, capsys, tmp_path, size, words):
    err = refused(
        capsys, 'convert', '--paligemma', base, '--moge', base, '--tokenizer',
        base / 'tokenizer.json', '--size', size, '--output', tmp_path / 'o',
    )  # fmt: skip
    assert words in err


def test_sizes_that_contradict_each_other_are_refused(base, capsys, tmp_path):
    data = to_mapping(dataclasses.replace(CONFIG))
    data['language']['kv_heads'] = 3
    (tmp_path / 's.yaml').write_text(yaml.safe_dump(data))
    err = refused(
        capsys, 'convert', '--paligemma', base, '--moge', base, '--tokenizer',
        base / 'tokenizer.json', '--size', tmp_path / 's.yaml', '--output', tmp_path / 'o',
    )  # fmt: skip
    assert 'kv_heads' in err
