"""Our own checkpoint: what goes in comes out, and every fault is one sentence before anything runs.

Pinned: weights bit-equal after saving and loading in their own type; the id is of the content; an
edited config, foreign statistics, a swapped tokenizer, missing, cut, pickled, NaN or integer
weights are refused; a full folder is never half written; memory stays at the weights.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spear_ros.checkpoints.spear1 import (
    CheckpointContents,
    Sampling,
    load_checkpoint,
    model_shapes,
    save_checkpoint,
)
from spear_ros.checkpoints.tensor_files import file_sha256
from spear_ros.checkpoints.verification import verify_checkpoint
from spear_ros.core.errors import UserError
from spear_ros.networks.spear1 import Spear1, Spear1Config
from spear_ros.processing.embodiments import default_action_specs, default_norm_stats
from spear_ros.processing.small_tokenizer import build_small_tokenizer

CONFIG = Spear1Config.named('spear1_debug')


def make_model(seed=0):
    torch.manual_seed(seed)
    return Spear1(CONFIG)


@pytest.fixture(scope='module')
def contents(tmp_path_factory):
    return CheckpointContents(
        model=CONFIG,
        specs=default_action_specs(),
        stats=default_norm_stats(),
        tokenizer=build_small_tokenizer(tmp_path_factory.mktemp('t') / 'tokenizer.json'),
        recipe='test',
        trained=True,
        ema=True,
    )


@pytest.fixture(scope='module')
def original(contents, tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkpoint') / 'spear1'
    save_checkpoint(folder, contents, make_model().state_dict())
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / 'copy'))


def test_how_chunks_are_drawn_travels_and_the_default_leaves_the_id_alone(contents, tmp_path):
    state = make_model().state_dict()
    sampling = Sampling(noise=0.5, execute_steps=2)
    plain = save_checkpoint(tmp_path / 'plain', contents, state)
    other = save_checkpoint(tmp_path / 'other', replace(contents, sampling=sampling), state)
    assert plain != other
    assert load_checkpoint(tmp_path / 'other').config.sampling == sampling
    path = tmp_path / 'plain' / 'config.json'
    old = json.loads(path.read_text())
    del old['sampling']  # a checkpoint from before there was such a thing
    path.write_text(json.dumps(old))
    assert load_checkpoint(tmp_path / 'plain').config.sampling == Sampling()


def test_everything_comes_back_as_it_went_in(original, contents):
    loaded = load_checkpoint(original)
    state = make_model().state_dict()
    assert all(torch.equal(t, state[n]) for n, t in loaded.model.state_dict().items())
    assert loaded.config.model == CONFIG
    assert loaded.specs == contents.specs
    assert loaded.stats == contents.stats
    assert loaded.tokenizer_path.read_bytes() == contents.tokenizer.read_bytes()
    assert (loaded.config.trained, loaded.config.ema, loaded.config.recipe) == (True, True, 'test')
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert not any(p.is_meta for p in loaded.model.parameters())
    assert loaded.checkpoint_id == verify_checkpoint(original).checkpoint_id
    assert len(loaded.checkpoint_id) == 12


def test_the_loaded_model_computes_what_the_saved_one_did(original):
    from spear_ros.networks.flow_matching import sample_noise
    from spear_ros.networks.spear1 import PrefixInputs

    inputs = PrefixInputs(
        external=torch.rand(1, 3, *CONFIG.external_size), tokens=torch.ones(1, 4).long()
    )
    noise = sample_noise(1, CONFIG.flow, torch.Generator().manual_seed(0))
    args = inputs, torch.rand(1, 8), noise
    loaded = load_checkpoint(original).model
    assert torch.equal(loaded.sample(*args), make_model().eval().sample(*args))


def test_the_id_is_of_the_content(contents, original, tmp_path):
    same = save_checkpoint(tmp_path / 'a', contents, make_model().state_dict())
    assert same == load_checkpoint(original).checkpoint_id
    other_weights = save_checkpoint(tmp_path / 'b', contents, make_model(1).state_dict())
    stats = replace(contents.stats, translation_low=(-0.2, -0.2, -0.2))
    other_stats = save_checkpoint(
        tmp_path / 'c', replace(contents, stats=stats), make_model().state_dict()
    )
    assert len({same, other_weights, other_stats}) == 3


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_types_can_change_on_saving_and_on_loading(contents, tmp_path, dtype):
    state = make_model().state_dict()
    save_checkpoint(tmp_path / 'a', contents, state, dtype=dtype)
    stored = load_checkpoint(tmp_path / 'a').model.state_dict()
    assert all(torch.equal(t, state[n].to(dtype)) for n, t in stored.items())
    wide = load_checkpoint(tmp_path / 'a', dtype=torch.float32).model.state_dict()
    assert all(torch.equal(t, state[n].to(dtype).float()) for n, t in wide.items())


def test_shards_are_one_checkpoint(contents, original, tmp_path):
    save_checkpoint(tmp_path / 'a', contents, make_model().state_dict(), max_shard_bytes=200_000)
    assert len(list((tmp_path / 'a').glob('*.safetensors'))) > 2
    verify_checkpoint(tmp_path / 'a')
    a, b = (load_checkpoint(f).model.state_dict() for f in (tmp_path / 'a', original))
    assert all(torch.equal(a[n], b[n]) for n in b)


def test_the_weights_do_not_follow_a_file_that_is_overwritten(folder):
    model = load_checkpoint(folder).model
    before = {n: t.clone() for n, t in model.state_dict().items()}
    weights = folder / 'model.safetensors'
    with weights.open('r+b') as file:
        file.seek(weights.stat().st_size // 2)
        file.write(b'\xff' * 1000)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def edit_json(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_weights(folder, change):
    """Change the weights and mend the hashes, as somebody with a script would."""
    path = folder / 'model.safetensors'
    state = load_file(path)
    change(state)
    save_file(state, path)
    rehash(folder)


def rehash(folder, change=lambda data: None):
    from spear_ros.checkpoints import spear1
    from spear_ros.core.config import from_mapping, to_mapping

    data = json.loads((folder / 'config.json').read_text())
    data['files'] = {n: file_sha256(folder / n) for n in data['files'] if (folder / n).exists()}
    change(data)
    config = from_mapping(spear1.CheckpointConfig, data, 'test')
    config = replace(config, checkpoint_id=spear1._checkpoint_id(config))
    (folder / 'config.json').write_text(json.dumps(to_mapping(config)))


NAN = 'vlm.language.blocks.1.mlp.down.weight'
FAULTS = {
    'no folder': (lambda f: shutil.rmtree(f), 'no such checkpoint folder'),
    'no config': (lambda f: (f / 'config.json').unlink(), 'config.json: cannot read it'),
    'config cut': (
        lambda f: (f / 'config.json').write_text((f / 'config.json').read_text()[:99]),
        'not valid JSON',
    ),
    'config a list': (lambda f: (f / 'config.json').write_text('[]'), 'format_version is None'),
    'newer format': (
        lambda f: edit_json(f / 'config.json', lambda d: d.update(format_version=2)),
        'format_version is 2',
    ),
    'unknown key': (
        lambda f: edit_json(f / 'config.json', lambda d: d.update(image_fitt='pad')),
        'did you mean "image_fit"',
    ),
    'edited fit': (
        lambda f: edit_json(f / 'config.json', lambda d: d.update(image_fit='pad')),
        'changed after the export',
    ),
    'edited frame': (
        lambda f: edit_json(
            f / 'config.json',
            lambda d: d['embodiments']['franka_droid'].update(ee_frame='hand_tcp'),
        ),
        'changed after the export',
    ),
    'impossible size': (
        lambda f: edit_json(f / 'config.json', lambda d: d['model']['siglip'].update(heads=7)),
        'VitConfig.heads: 7',
    ),
    'horizon of another model': (
        lambda f: rehash(f, lambda d: d['embodiments']['franka_droid'].update(horizon=7)),
        'horizon 7',
    ),
    'no statistics': (lambda f: (f / 'norm_stats.json').unlink(), 'norm_stats.json: cannot read'),
    'foreign statistics': (
        lambda f: edit_json(f / 'norm_stats.json', lambda d: d.update(data_hash='other')),
        'norm_stats.json: not the file',
    ),
    'nan statistics': (
        lambda f: (f / 'norm_stats.json').write_text(
            (f / 'norm_stats.json').read_text().replace('-0.15', 'NaN')
        ),
        'not a finite number',
    ),
    'no tokenizer': (lambda f: (f / 'tokenizer.json').unlink(), 'tokenizer.json: missing'),
    'foreign tokenizer': (
        lambda f: (f / 'tokenizer.json').write_text('{}'),
        'tokenizer.json: not the file',
    ),
    'no weights': (lambda f: (f / 'model.safetensors').unlink(), 'model.safetensors: missing'),
    'weights cut': (
        lambda f: (f / 'model.safetensors').write_bytes(
            (f / 'model.safetensors').read_bytes()[:-100]
        ),
        'truncated',
    ),
    'weights a pickle': (
        lambda f: torch.save({'a': torch.ones(1)}, f / 'model.safetensors'),
        'spear checkpoint convert',
    ),
    'a second file of weights': (
        lambda f: shutil.copy(f / 'model.safetensors', f / 'other.safetensors'),
        'expected one model.safetensors',
    ),
    'tensor missing': (
        lambda f: edit_weights(f, lambda s: s.pop('expert.action_out.bias')),
        '1 missing (first "expert.action_out.bias"',
    ),
    'tensor renamed': (
        lambda f: edit_weights(
            f, lambda s: s.update({'expert.action.bias': s.pop('expert.action_out.bias')})
        ),
        'closest is "expert.action.bias"',
    ),
    'wrong shape': (
        lambda f: edit_weights(f, lambda s: s.update({'expert.action_out.bias': torch.ones(9)})),
        'expert.action_out.bias has (9,), the config needs (8,)',
    ),
    'whole numbers': (
        lambda f: edit_weights(
            f, lambda s: s.update({'expert.action_out.bias': torch.ones(8).long()})
        ),
        'torch.int64',
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_is_one_sentence_on_loading(folder, fault):
    damage, words = FAULTS[fault]
    damage(folder)
    with pytest.raises(UserError) as error:
        load_checkpoint(folder)
    assert words in str(error.value)
    assert '\n' not in str(error.value)


def test_verify_finds_a_nan_and_names_the_tensor(folder):
    edit_weights(folder, lambda s: s[NAN].view(-1)[5:7].fill_(float('nan')))
    with pytest.raises(UserError, match=f'2 of .* numbers of "{NAN}" are NaN'):
        verify_checkpoint(folder)


def test_verify_finds_a_flipped_bit(folder):
    path = folder / 'model.safetensors'
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    load_checkpoint(folder)  # one bit of a weight is not seen without reading all of them
    with pytest.raises(UserError, match='SHA-256'):
        verify_checkpoint(folder)


def test_existing_folders_are_not_replaced_unasked(contents, folder, tmp_path):
    state = make_model(2).state_dict()
    with pytest.raises(UserError, match='already there'):
        save_checkpoint(folder, contents, state)
    with pytest.raises(UserError, match='no checkpoint'):
        save_checkpoint(tmp_path, contents, state, overwrite=True)
    checkpoint_id = save_checkpoint(folder, contents, state, overwrite=True)
    assert verify_checkpoint(folder).checkpoint_id == checkpoint_id


def test_a_failed_export_leaves_nothing_behind(contents, tmp_path):
    state = make_model().state_dict()
    with pytest.raises(UserError, match='tokenizer is missing'):
        save_checkpoint(tmp_path / 'a', replace(contents, tokenizer=tmp_path / 'none'), state)
    state.pop('expert.norm.weight')
    with pytest.raises(UserError, match='weights to save'):
        save_checkpoint(tmp_path / 'a', contents, state)
    assert list(tmp_path.iterdir()) == []


def test_shapes_are_known_without_memory_even_at_full_size():
    shapes = model_shapes(Spear1Config.named('spear1'))
    assert shapes['vlm.language.embedding.weight'] == (258240, 2048)
    assert sum(torch.Size(s).numel() for s in shapes.values()) > 3.5e9


MEASURE = """
import sys, threading, time
import torch
from spear_ros.checkpoints.spear1 import load_checkpoint

def anonymous():
    with open('/proc/self/status') as file:
        return next(int(l.split()[1]) for l in file if l.startswith('RssAnon')) * 1024

load_checkpoint(sys.argv[3])  # lazily imported parts of torch are not the weights'
base, peak, done = anonymous(), [0], threading.Event()

def watch():
    while not done.wait(0.0005):
        peak[0] = max(peak[0], anonymous())

thread = threading.Thread(target=watch)
thread.start()
model = load_checkpoint(sys.argv[1], dtype=getattr(torch, sys.argv[2])).model
done.set(); thread.join()
size = sum(p.numel() * p.element_size() for p in model.parameters())
print(max(peak[0], anonymous()) - base, size)
"""


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='needs Linux')
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_loading_needs_no_more_memory_than_the_weights(contents, original, tmp_path, dtype):
    config = Spear1Config.named('spear1_small')
    with torch.device('meta'):
        model = Spear1(config)
    state = {n: torch.zeros(t.shape) for n, t in model.state_dict().items()}
    save_checkpoint(tmp_path / 'a', replace(contents, model=config), state)
    run = [sys.executable, '-c', MEASURE, str(tmp_path / 'a'), dtype, str(original)]
    root = Path(__file__).parents[2]
    out = subprocess.run(run, capture_output=True, text=True, check=True, cwd=root)
    used, size = map(int, out.stdout.split())
    assert size > 60e6
    assert used < 1.2 * size
