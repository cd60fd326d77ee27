"""Schedule, average, recipes, estimates, streams, LoRA: what the trainer is made of."""

import dataclasses
import errno
import itertools
import json
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spear_ros.core.errors import UserError
from spear_ros.data.tfrecord import read_records
from spear_ros.networks.spear1 import Spear1, Spear1Config
from spear_ros.training.config import LoraConfig, OptimizerConfig
from spear_ros.training.distributed import Place, check_division
from spear_ros.training.ema import Ema
from spear_ros.training.estimates import (
    check_memory,
    estimate_memory,
    gemma_weights,
    operations,
    spear1_stacks,
    vit_weights,
)
from spear_ros.training.indexed_stream import IndexedStream
from spear_ros.training.logs import RunLog, read_metrics
from spear_ros.training.lora import add_lora, lora_state, merge_lora
from spear_ros.training.optimizer import (
    clip_gradients,
    gradient_norm,
    learning_rate,
    make_optimizer,
)
from spear_ros.training.recipes import RECIPES, change, find_recipe
from spear_ros.training.run_folder import keep_config, keep_start
from spear_ros.training.vla_task import VlaTask


def test_learning_rate_warms_up_linearly_and_ends_at_its_final_share():
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=10, final_ratio=0.2)
    assert learning_rate(0, 100, config) == pytest.approx(0.01)
    assert learning_rate(9, 100, config) == pytest.approx(0.1)
    assert learning_rate(55, 100, config) == pytest.approx(0.06)
    assert learning_rate(100, 100, config) == pytest.approx(0.02)


@given(st.integers(0, 50), st.integers(51, 500), st.floats(0, 1))
def test_learning_rate_never_rises_after_the_warm_up(warmup, steps, final):
    config = OptimizerConfig(learning_rate=1e-3, warmup_steps=warmup, final_ratio=final)
    rates = [learning_rate(s, steps, config) for s in range(warmup, steps + 1)]
    assert all(b <= a + 1e-15 for a, b in itertools.pairwise(rates))
    assert all(0 <= r <= 1e-3 + 1e-15 for r in rates)


def test_average_follows_the_closed_form_and_forgets_its_start_first():
    weight = torch.nn.Parameter(torch.zeros(3))
    ema = Ema({'w': weight}, decay=0.9)
    expected = 0.0
    for step in range(5):
        with torch.no_grad():
            weight.fill_(step + 1.0)
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1.0)
    assert ema.shadow['w'].tolist() == pytest.approx([expected] * 3)
    assert not Ema({'w': weight}, decay=0.0)


def test_gradients_are_clipped_to_the_limit_and_never_scaled_up():
    parameter = torch.nn.Parameter(torch.zeros(2))
    for gradient, expected in (([3.0, 4.0], 1.0), ([0.3, 0.4], 0.5)):
        parameter.grad = torch.tensor(gradient)
        norm = gradient_norm([parameter])
        clip_gradients([parameter], norm, 1.0)
        assert float(parameter.grad.norm()) == pytest.approx(expected, rel=1e-5)


def test_norms_biases_tables_and_embeddings_do_not_decay():
    with torch.device('meta'):
        model = Spear1(Spear1Config.named('spear1_debug'))
    named = dict(model.named_parameters())
    optimizer = make_optimizer(named, OptimizerConfig(learning_rate=1e-3, weight_decay=0.1))
    names = {id(p): n for n, p in named.items()}
    decayed = {
        names[id(p)] for g in optimizer.param_groups if g['weight_decay'] for p in g['params']
    }
    assert 'vlm.siglip.blocks.0.attention.qkv.weight' in decayed
    for name in (
        'vlm.language.embedding.weight',
        'vlm.siglip.position.table',
        'vlm.siglip.norm.weight',
        'expert.action_in.bias',
    ):
        assert name not in decayed


def test_a_multiplier_that_fits_nothing_is_refused():
    parameter = {'expert.x': torch.nn.Parameter(torch.zeros(2, 2))}
    config = OptimizerConfig(learning_rate=1e-3, multipliers={'exprt': 2.0})
    with pytest.raises(UserError, match='"exprt" fits no trained parameter'):
        make_optimizer(parameter, config)


@pytest.mark.parametrize(('kind', 'name'), [(k, n) for k, names in RECIPES.items() for n in names])
def test_every_recipe_is_a_config_that_survives_its_own_file(kind, name):
    config = find_recipe(kind, name)
    assert config.recipe == name
    assert change(config, []) == config


def test_recipes_and_settings_answer_a_misspelling_with_the_closest():
    with pytest.raises(UserError, match='did you mean "spear_tiny"'):
        find_recipe('vla', 'spear_tini')
    config = find_recipe('vla', 'spear1_debug')
    with pytest.raises(UserError, match='did you mean "batch_size"'):
        change(config, ['batchsize=4'])
    with pytest.raises(UserError, match='did you mean "learning_rate"'):
        change(config, ['optimizer.learningrate=1e-3'])
    with pytest.raises(UserError, match='key=value'):
        change(config, ['steps'])
    with pytest.raises(UserError, match='steps'):
        change(config, ['steps=many'])
    with pytest.raises(UserError, match='model'):
        change(config, ['model.flow.tau_max=2.0'])


def test_settings_reach_nested_fields_and_read_numbers_and_lists():
    config = change(
        find_recipe('vla', 'spear1_debug'),
        ['optimizer.learning_rate=1e-4', 'data.shards=/a', 'steps=7', 'model.flow.steps=3'],
    )
    assert config.optimizer.learning_rate == 1e-4
    assert config.data.shards == ('/a',)
    assert (config.steps, config.model.flow.steps) == (7, 3)
    two = change(config, ['data.shards=[/a, /b]', 'optimizer.multipliers.expert=2.0'])
    assert two.data.shards == ('/a', '/b')
    assert two.optimizer.multipliers == {'expert': 2.0}


def test_frozen_halves_under_float32_arithmetic_are_refused():
    with pytest.raises(UserError, match='set frozen_dtype=float32'):
        change(find_recipe('vla', 'spear1_finetune_24gb'), ['precision=float32'])


def test_a_batch_that_processes_cannot_share_is_refused():
    config = dataclasses.replace(find_recipe('vla', 'spear1_debug'), batch_size=10)
    check_division(config, 2)
    with pytest.raises(UserError, match='batch_size = 10'):
        check_division(config, 4)


def test_estimated_weights_are_those_of_the_model():
    config = Spear1Config.named('spear1_small')
    with torch.device('meta'):
        model = Spear1(config)

    def matrices(module):
        return sum(p.numel() for p in module.parameters() if p.ndim >= 2)

    siglip = matrices(model.vlm.siglip) - model.vlm.siglip.position.table.numel()
    assert vit_weights(config.siglip) == siglip
    language = config.language
    counted = gemma_weights(language, language.width, language.mlp_width)
    assert counted == matrices(model.vlm.language.blocks)


def test_frozen_parts_cost_a_forward_pass_and_no_memory_for_gradients():
    config = find_recipe('vla', 'spear1_debug')
    everything = spear1_stacks(config.model, True, ('expert', 'vlm.siglip', 'vlm.language'))
    expert = spear1_stacks(config.model, True, ('expert',))
    assert operations(expert) < operations(everything)
    with torch.device('meta'):
        model = Spear1(config.model)
    whole = estimate_memory(model, everything, config, Place())
    model.vlm.requires_grad_(False)
    less = estimate_memory(model, expert, config, Place())
    assert less.optimizer < 0.5 * whole.optimizer
    assert less.activations < whole.activations


def test_what_learns_below_a_frozen_language_stack_needs_gradients_through_it():
    model = Spear1Config.named('spear1_debug')
    *_, language, _ = spear1_stacks(model, True, ('expert', 'projector'))
    assert (language.trained, language.learns) == (True, False)
    assert operations([language]) == 2 * language.forward
    *_, alone, _ = spear1_stacks(model, True, ('expert',))
    assert operations([alone]) == alone.forward
    *_, whole, _ = spear1_stacks(model, True, ('expert', 'vlm.language'))
    assert operations([whole]) == 3 * whole.forward


def test_low_rank_updates_count_the_way_to_them(tmp_path):
    recipe = find_recipe('vla', 'spear1_finetune_24gb')
    lora = change(recipe, ['lora.rank=16'])
    kept = [[stack.trained for stack in VlaTask(c, tmp_path).stacks()] for c in (recipe, lora)]
    # SigLIP and MoGe for each camera, language, expert.
    assert kept == [[False] * 4 + [True] * 2, [True] * 2 + [False] * 2 + [True] * 2]


def test_samples_of_one_picture_share_the_encoders_arithmetic(tmp_path):
    recipe = find_recipe('vla', 'spear_tiny')
    assert recipe.data.per_picture == 3
    alone = VlaTask(change(recipe, ['data.per_picture=1']), tmp_path).stacks()
    shared = VlaTask(recipe, tmp_path).stacks()
    encoders, rest = slice(0, -2), slice(-2, None)
    assert 3 * operations(shared[encoders]) == pytest.approx(operations(alone[encoders]))
    assert operations(shared[rest]) == operations(alone[rest])
    assert 3 * sum(s.activations for s in shared[encoders]) == pytest.approx(
        sum(s.activations for s in alone[encoders])
    )


def test_a_camera_does_not_attend_to_the_other():
    model = Spear1Config.named('spear1_small')
    one, two = (spear1_stacks(model, wrist, ()) for wrist in (False, True))
    external, wrist = (s.forward for s in two[:2])
    assert external == one[0].forward
    assert two[1].tokens == model.wrist_tokens < two[0].tokens
    assert wrist < external


def test_a_run_that_cannot_fit_is_refused_before_it_starts():
    config = find_recipe('vla', 'spear1_pretrain')
    with torch.device('meta'):
        model = Spear1(config.model)
    estimate = estimate_memory(model, spear1_stacks(config.model, True, config.train), config,
                               Place())  # fmt: skip
    assert estimate.weights + estimate.gradients + estimate.optimizer + estimate.average > 60e9
    with pytest.raises(UserError, match='raise accumulate'):
        check_memory(dataclasses.replace(estimate, activations=1e15), Place(), True)


def test_a_stream_goes_through_everything_once_an_epoch_and_resumes_exactly():
    def make(rank=0, world=1):
        return IndexedStream(10, 2, Place(rank=rank, world=world), 3, lambda n: {'n': n})

    stream = make()
    first = [i for _ in range(5) for i in next(stream)['n']]
    assert sorted(first) == list(range(10))
    state = stream.state_dict()
    following = [next(stream)['n'] for _ in range(4)]
    other = make()
    other.load_state_dict(state)
    assert [next(other)['n'] for _ in range(4)] == following
    shares = [{i for _ in range(2) for i in next(make(r, 2))['n']} for r in range(2)]
    assert not shares[0] & shares[1]
    with pytest.raises(UserError, match='count is 10'):
        IndexedStream(11, 2, Place(), 3, lambda n: {'n': n}).load_state_dict(state)


def test_low_rank_updates_start_as_nothing_and_merge_into_the_weights():
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(6, 4))
    plain = {k: v.clone() for k, v in layer.state_dict().items()}
    x = torch.randn(3, 6)
    before = layer(x)
    config = LoraConfig(rank=2, alpha=4.0)
    add_lora({'all': layer}, config)
    layer.load_state_dict(lora_state(layer, plain, seed=1))
    assert torch.equal(layer(x), before)
    learning = [n for n, p in layer.named_parameters() if p.requires_grad]
    assert [n.rsplit('.', 1)[1] for n in learning] == ['bias', 'a', 'b']
    with torch.no_grad():
        dict(layer.named_parameters())['0.parametrizations.weight.0.b'].normal_()
    merged = merge_lora(layer.state_dict(), config)
    other = torch.nn.Sequential(torch.nn.Linear(6, 4))
    other.load_state_dict(merged)
    np.testing.assert_allclose(other(x).detach(), layer(x).detach(), atol=1e-6)
    assert not torch.allclose(other(x), before)


def test_curves_are_event_files_that_tensorboard_reads(tmp_path):
    log = RunLog(tmp_path, Place())
    log.write('train', 7, {'loss': 0.25, 'note': 'no number'})
    log.write('train', 300, {'loss': 0.125})
    log.close()
    (file,) = (tmp_path / 'tensorboard').glob('events.out.tfevents.*')
    events = [bytes(payload) for payload in read_records(file)]  # checksums are verified
    assert len(events) == 3
    # As TensorBoard prints them: file_version, then step and simple_value by tag.
    assert events[0].endswith(b'\x1a\x0dbrain.Event:2')
    tag = b'\x0a\x0atrain/loss'
    value = tag + b'\x15' + struct.pack('<f', 0.25)
    summary = b'\x0a' + bytes([len(value)]) + value
    assert events[1][9:] == b'\x10\x07' + b'\x2a' + bytes([len(summary)]) + summary
    assert events[2][9:12] == b'\x10\xac\x02'  # 300 as a varint


def test_a_disk_that_refuses_figures_is_said_once_and_ends_nothing(tmp_path, capsys, monkeypatch):
    log = RunLog(tmp_path, Place(), tensorboard=False)
    log.write('train', 1, {'loss': 3.0})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr('builtins.open', full)
        log.write('train', 2, {'loss': 2.0})
        log.write('train', 3, {'loss': 1.0})
    log.write('train', 4, {'loss': 0.5})
    assert capsys.readouterr().err.count('No space left on device') == 1
    assert [line['step'] for line in read_metrics(tmp_path)] == [1, 4]


@dataclasses.dataclass(frozen=True)
class Settings:
    steps: int = 10
    device: str = 'cpu'


def test_mended_settings_may_use_the_folder_of_a_command_that_failed(tmp_path):
    keep_config(tmp_path, Settings(steps=10), Place())
    (tmp_path / 'norm_stats.json').write_text('{}')  # of the data that was named by mistake
    keep_config(tmp_path, Settings(steps=10), Place())
    assert (tmp_path / 'norm_stats.json').exists()  # the same command again: not computed twice
    keep_config(tmp_path, Settings(steps=20), Place())
    assert json.loads((tmp_path / 'config.json').read_text())['steps'] == 20
    assert not (tmp_path / 'norm_stats.json').exists()


@pytest.mark.parametrize('trace', ['metrics.jsonl', 'checkpoints/step-00000001', 'export'])
def test_a_run_that_has_begun_keeps_its_settings(tmp_path, trace):
    keep_config(tmp_path, Settings(steps=10), Place())
    path = tmp_path / trace
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"kind": "train", "step": 1}')
    keep_config(tmp_path, Settings(steps=10, device='cuda'), Place())  # changes no result
    with pytest.raises(UserError, match='a run with steps = 10 is there and this one has 20'):
        keep_config(tmp_path, Settings(steps=20), Place())


def test_a_run_does_not_go_on_from_another_checkpoint_in_the_same_place(tmp_path):
    start, run = tmp_path / 'start', tmp_path / 'run'
    for folder in (start, run):
        folder.mkdir()
    (start / 'config.json').write_text('{"files": "a"}')
    config = SimpleNamespace(init=str(start), moge='')
    keep_start(run, config, Place())
    keep_start(run, config, Place())
    (start / 'config.json').write_text('{"files": "b"}')
    with pytest.raises(UserError, match=r'start holds another checkpoint'):
        keep_start(run, config, Place())
    keep_start(tmp_path / 'run', SimpleNamespace(init='', moge=''), Place())
