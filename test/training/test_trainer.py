"""The loop on the smallest model: resume, signals, bad data, full disk, what it exports."""

import dataclasses
import errno
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from spear_ros.checkpoints.spear1 import load_checkpoint
from spear_ros.checkpoints.verification import verify_checkpoint
from spear_ros.core.errors import UserError
from spear_ros.data.shards import open_datasets
from spear_ros.training import checkpointing
from spear_ros.training.distributed import Place
from spear_ros.training.logs import read_metrics
from spear_ros.training.recipes import change, find_recipe
from spear_ros.training.trainer import Trainer
from spear_ros.training.vla_task import VlaTask
from test.training.conftest import write_shards


def make_config(shards, *settings):
    config = find_recipe('vla', 'spear1_debug')
    folders = f'data.shards=[{",".join(shards)}]'
    return change(config, [folders, 'steps=4', 'batch_size=4', 'saving.every_steps=2', *settings])


class Harness(VlaTask):
    """The real task; ``on_step`` is called before each batch is used and may change its inputs."""

    def __init__(self, config, folder, on_step=lambda step, inputs: inputs):
        super().__init__(config, folder)
        self.on_step, self.calls = on_step, 0

    def inputs(self, batch, device, seed):
        made = dict(super().inputs(batch, device, seed))
        self.calls += 1
        return self.on_step(self.calls, made)


def run(config, folder, on_step=lambda step, inputs: inputs, validate=None):
    return Trainer(Harness(config, folder, on_step), folder, Place(), validate).run()


def weights(folder):
    return load_checkpoint(folder / 'export').model.state_dict()


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope='module')
def straight(shards, tmp_path_factory):
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp('straight')
    seen = []
    outcome = run(make_config(shards), folder, validate=lambda path: seen.append(path) or {'x': 1})
    return folder, outcome, seen


def test_a_run_ends_with_a_checkpoint_that_a_robot_can_load(straight):
    folder, outcome, seen = straight
    assert outcome.finished
    assert outcome.step == 4
    config = verify_checkpoint(folder / 'export')
    assert config.checkpoint_id == outcome.checkpoint_id
    assert config.ema
    assert not config.trained  # its frozen depth branch has random weights
    assert set(config.embodiments) == {'franka_droid', 'widowx_bridge'}
    assert seen == [folder / 'validation']
    lines = read_metrics(folder, 'train')
    assert [line['step'] for line in lines] == [1, 2, 3, 4]
    assert all(line['samples_per_s'] > 0 and line['flop_utilisation'] > 0 for line in lines)
    assert read_metrics(folder, 'validation')[-1]['x'] == 1
    assert json.loads((folder / 'status.json').read_text())['finished']


def test_a_killed_run_goes_on_bit_by_bit(straight, shards, tmp_path):
    class KilledError(Exception):
        pass

    def kill_in_step_4(step, inputs):
        if step == 4:
            raise KilledError
        return inputs

    with pytest.raises(KilledError):
        run(make_config(shards), tmp_path, kill_in_step_4)
    assert run(make_config(shards), tmp_path).finished
    assert_same(weights(tmp_path), weights(straight[0]))
    losses = [[line['loss'] for line in read_metrics(f, 'train')] for f in (tmp_path, straight[0])]
    assert losses[0] == losses[1]


def test_sigterm_saves_and_stops_and_the_same_command_goes_on(straight, shards, tmp_path):
    def terminate_in_step_1(step, inputs):
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return inputs

    before = signal.getsignal(signal.SIGTERM)
    outcome = run(make_config(shards), tmp_path, terminate_in_step_1)
    assert signal.getsignal(signal.SIGTERM) == before
    assert (outcome.finished, outcome.step) == (False, 1)
    assert (tmp_path / 'checkpoints' / 'step-00000001' / 'complete.json').is_file()
    assert not json.loads((tmp_path / 'status.json').read_text())['finished']
    assert run(make_config(shards), tmp_path).finished
    assert_same(weights(tmp_path), weights(straight[0]))


def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(
    straight, shards, tmp_path, capsys
):
    run(make_config(shards), tmp_path)
    newest = tmp_path / 'checkpoints' / 'step-00000004'
    part = max(newest.glob('*.distcp'), key=lambda p: p.stat().st_size)
    os.truncate(part, part.stat().st_size // 2)
    (tmp_path / 'export' / 'config.json').unlink()
    for path in sorted((tmp_path / 'export').iterdir()):
        path.unlink()
    (tmp_path / 'export').rmdir()
    assert run(make_config(shards), tmp_path).finished
    said = capsys.readouterr().err
    assert 'is damaged' in said
    assert 'going on after step 2' in said
    assert_same(weights(tmp_path), weights(straight[0]))


def test_only_damaged_checkpoints_end_the_run_with_a_sentence(shards, tmp_path):
    run(make_config(shards, 'steps=2', 'saving.keep=1'), tmp_path)
    for path in (tmp_path / 'checkpoints').glob('*/*.distcp'):
        os.truncate(path, 10)
    with pytest.raises(UserError, match='none of the 1 checkpoints is whole'):
        run(make_config(shards, 'steps=2', 'saving.keep=1'), tmp_path)


def test_an_update_that_is_not_finite_changes_no_weight(shards, tmp_path, capsys):
    def poison_step_2(step, inputs):
        if step == 2:
            inputs['proprio'] = inputs['proprio'] * float('nan')
        return inputs

    run(make_config(shards, 'steps=3'), tmp_path, poison_step_2)
    assert 'no weight was changed' in capsys.readouterr().err
    record = json.loads((tmp_path / 'bad_updates.jsonl').read_text())
    assert record['step'] == 1
    assert 'loss' in record['not_finite']
    assert len(record['keys']) == 4
    assert all(t.isfinite().all() for t in weights(tmp_path).values())
    assert read_metrics(tmp_path, 'train')[-1]['bad_updates'] == 1


def test_a_loss_that_stays_not_finite_ends_the_run_with_the_checkpoint_whole(shards, tmp_path):
    def poison_from_3(step, inputs):
        if step >= 3:
            inputs['proprio'] = inputs['proprio'] * float('inf')
        return inputs

    config = make_config(shards, 'steps=9', 'max_bad=2')
    with pytest.raises(UserError, match=r'2 times in a row.*the checkpoint of step 2 is whole'):
        run(config, tmp_path, poison_from_3)
    assert not checkpointing.fault_of(tmp_path / 'checkpoints' / 'step-00000002')


def test_a_batch_that_cannot_be_read_is_passed_over_and_counted(shards, tmp_path, capsys):
    def fail_once(step, inputs):
        if step == 2:
            raise UserError('shard-x.tar: sample 7 is damaged.')
        return inputs

    run(make_config(shards, 'steps=2'), tmp_path, fail_once)
    assert 'a batch is passed over: shard-x.tar: sample 7' in capsys.readouterr().err
    assert read_metrics(tmp_path, 'train')[-1]['bad_batches'] == 1

    def fail_always(step, inputs):
        raise UserError('gone.')

    config = make_config(shards, 'steps=3', 'max_bad=2')
    with pytest.raises(UserError, match=r'more than 2 batches could not be read.*gone'):
        run(config, tmp_path / 'other', fail_always)


def test_a_full_disk_in_mid_run_is_said_and_the_run_goes_on(shards, tmp_path, capsys, monkeypatch):
    whole = checkpointing.shutil.disk_usage(tmp_path)
    free = iter([10, 10**12, 10**12, 10**12])
    monkeypatch.setattr(
        checkpointing.shutil, 'disk_usage', lambda path: whole._replace(free=next(free))
    )
    assert run(make_config(shards), tmp_path).finished
    said = capsys.readouterr().err
    assert 'the checkpoint was not written' in said
    assert 'there is none yet' in said
    assert not list((tmp_path / 'checkpoints').glob('*.part'))
    assert (tmp_path / 'checkpoints' / 'step-00000004').is_dir()


def test_a_disk_that_is_full_at_the_end_keeps_the_checkpoint(shards, tmp_path):
    class Full(Harness):
        def export(self, folder, state, *, ema):
            raise OSError(errno.ENOSPC, 'No space left on device')

    config = make_config(shards)
    with pytest.raises(UserError, match=r'No space left .*the checkpoint of step 4 is whole'):
        Trainer(Full(config, tmp_path), tmp_path, Place()).run()
    assert run(config, tmp_path).finished  # nothing is trained again


def test_a_folder_of_other_settings_is_refused(straight, shards):
    with pytest.raises(UserError, match=r'optimizer.learning_rate = 0.003 .* 0.001'):
        run(make_config(shards, 'optimizer.learning_rate=1e-3'), straight[0])
    # How many threads load and how long a piece may take changes nothing.
    assert run(make_config(shards, 'data.threads=2', 'max_minutes=5'), straight[0]).finished


def test_a_frozen_depth_branch_never_moves(straight, shards):
    folder, _, _ = straight
    started = VlaTask(make_config(shards), folder).initial_state()
    trained = weights(folder)
    moved = {n for n, t in trained.items() if not torch.equal(t, started[f'model.{n}'])}
    assert not any(n.startswith('vlm.moge.') for n in moved)
    for part in ('vlm.moge_projector', 'vlm.siglip_projector', 'vlm.siglip.', 'expert.'):
        assert any(n.startswith(part) for n in moved), part


def test_a_depth_branch_is_trained_only_as_an_experiment(straight, shards, tmp_path):
    with pytest.raises(UserError, match='depth_branch=trained'):
        run(make_config(shards, 'train=[expert, vlm.moge]'), tmp_path / 'a')
    config = make_config(shards, 'depth_branch=trained')
    assert run(config, tmp_path / 'b').finished
    started = VlaTask(config, tmp_path / 'b').initial_state()
    trained = weights(tmp_path / 'b')
    moved = [n for n, t in trained.items() if not torch.equal(t, started[f'model.{n}'])]
    assert sum(n.startswith('vlm.moge.blocks.') for n in moved) > 10
    # Its gradients and moments count, as in the estimate before the start.
    # SigLIP of both cameras, then MoGe of both.
    costs = [[s.trained for s in VlaTask(c, tmp_path).stacks()[2:4]]
             for c in (config, make_config(shards))]  # fmt: skip
    assert costs == [[True, True], [False, False]]


def test_without_depth_the_export_is_siglip_alone(straight, shards, tmp_path):
    config = make_config(shards, 'depth_branch=absent', f'init={straight[0] / "export"}')
    assert run(config, tmp_path).finished
    verify_checkpoint(tmp_path / 'export')
    model = load_checkpoint(tmp_path / 'export').model
    assert not any(p.any() for p in model.vlm.moge_projector.parameters())
    image = torch.rand(1, 3, *model.config.external_size)
    alone = 0.5 * model.vlm.siglip_projector(model.vlm.siglip(image * 2 - 1))
    torch.testing.assert_close(model.vlm.encode_image(image), alone)
    # It starts from what SigLIP's projection alone would be, and a second stage halves nothing.
    before = load_checkpoint(straight[0] / 'export').model.vlm.siglip_projector.weight
    started = VlaTask(config, tmp_path).initial_state()['model.vlm.siglip_projector.weight']
    torch.testing.assert_close(started, 2 * before)
    again = VlaTask(
        make_config(shards, 'depth_branch=absent', f'init={tmp_path / "export"}'), tmp_path
    )
    torch.testing.assert_close(
        again.initial_state()['model.vlm.siglip_projector.weight'],
        model.vlm.siglip_projector.weight,
    )


def test_64_samples_are_learnt(tmp_path, shards):
    config = make_config(
        shards, 'steps=60', 'batch_size=16', 'saving.every_steps=60', 'tau_per_sample=4',
        'data.jitter=0.0', 'data.resident=true', 'logging.every_steps=10',
    )  # fmt: skip
    assert sum(len(d) for d in open_datasets([Path(s) for s in shards]).values()) == 64
    run(config, tmp_path)
    losses = [line['loss'] for line in read_metrics(tmp_path, 'train')]
    assert losses[-1] < 0.5 * losses[0]


def test_shards_kept_in_memory_give_the_batches_of_shards_on_disk(shards, tmp_path):
    batches = []
    for resident in ('true', 'false'):
        task = VlaTask(make_config(shards, f'data.resident={resident}'), tmp_path)
        task.prepare(Place())
        stream = task.stream(Place())
        next(stream)
        batches.append(next(stream))
        stream.close()
    a, b = batches
    assert a['key'] == b['key']
    for name in ('external', 'wrist', 'target_p', 'wrist_mask'):
        np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]))


def test_instructions_of_one_picture_share_it_and_give_the_loss_of_separate_samples(tmp_path):
    folder = str(write_shards(tmp_path / 'franka', 'franka_droid', samples=24, per_picture=4))
    settings = ('batch_size=6', 'data.resident=true', 'data.jitter=0.0', 'data.hide_wrist=0.0')
    task = VlaTask(make_config([folder], 'data.per_picture=3', *settings), tmp_path / 'run')
    task.prepare(Place())
    batch = next(task.stream(Place()))
    assert len(batch['external']) == 2
    assert batch['picture'].tolist() == [0, 0, 0, 1, 1, 1]
    numbers = [int(key.rpartition('-')[2]) for key in batch['key']]
    assert len(set(numbers)) == 6
    for picture in (numbers[:3], numbers[3:]):
        assert len({n // 4 for n in picture}) == 1  # neighbours in the shard

    apart = dict(batch)
    for name in ('external', 'wrist'):
        apart[name] = apart[name][torch.from_numpy(apart['picture'])]
    del apart['picture']
    module = task.make_module()
    module.load_state_dict(task.initial_state(), strict=False)
    losses = [module(**task.inputs(b, torch.device('cpu'), 0))['loss'] for b in (batch, apart)]
    torch.testing.assert_close(losses[0], losses[1])


def test_a_batch_that_does_not_divide_into_pictures_is_refused(shards, tmp_path):
    with pytest.raises(UserError, match=r'data\.open_shards = 0 must be at least 1'):
        make_config(shards, 'data.open_shards=0')  # the draw would never end
    with pytest.raises(UserError, match=r'needs data\.resident=true'):
        make_config(shards, 'data.per_picture=2')
    config = make_config(shards, 'data.resident=true', 'data.per_picture=3')
    task = VlaTask(config, tmp_path)
    task.prepare(Place())
    with pytest.raises(UserError, match=r'4 samples.*no multiple of data\.per_picture = 3'):
        task.stream(Place())


def test_low_rank_updates_train_and_are_merged_on_export(straight, shards, tmp_path):
    config = make_config(
        shards, f'init={straight[0] / "export"}', 'data.stats=init', 'lora.rank=2',
        'train=[expert, projector]', 'frozen_dtype=bfloat16', 'precision=bfloat16',
    )  # fmt: skip
    assert run(config, tmp_path).finished
    before, after = weights(straight[0]), weights(tmp_path)
    moved = {n for n, t in after.items() if (t.float() - before[n].float()).abs().max() > 4e-3}
    assert 'vlm.language.embedding.weight' not in moved
    assert any(n.startswith('expert.') for n in moved)
    assert before.keys() == after.keys()


def test_data_of_another_convention_than_the_weights_name_the_field(straight, shards, tmp_path):
    folder = Path(shutil.copytree(shards[1], tmp_path / 'widowx'))
    card = json.loads((folder / 'dataset.json').read_text())
    card['spec']['relative_to'] = 'previous_step'
    (folder / 'dataset.json').write_text(json.dumps(card))
    init = f'init={straight[0] / "export"}'
    with pytest.raises(UserError, match=r"widowx_bridge.relative_to is 'chunk_start' in the ch"):
        run(make_config([str(folder)], init, 'data.stats=init'), tmp_path / 'a')
    # Weights that never learnt actions have no convention.
    assert run(make_config([str(folder)], init, 'steps=2'), tmp_path / 'b').finished
    with pytest.raises(UserError, match=r"data.validation: relative_to = 'previous_step' for"):
        run(make_config(shards, f'data.validation={folder}'), tmp_path / 'c')
    with pytest.raises(UserError, match='embodiment widowx_bridge is not among those trained on'):
        run(make_config(shards[:1], f'data.validation={shards[1]}'), tmp_path / 'd')


def test_statistics_of_another_kind_name_the_field(straight, shards, tmp_path):
    file = straight[0] / 'norm_stats.json'
    with pytest.raises(UserError, match=r'data.stats_kind = minmax, but .* holds quantile'):
        run(make_config(shards, f'data.stats={file}', 'data.stats_kind=minmax'), tmp_path)
    with pytest.raises(UserError, match='norm_stats data_hash is'):
        run(make_config(shards[:1], f'data.stats={file}'), tmp_path / 'b')


@pytest.mark.parametrize('kind', ['minmax', 'mean_std'])
def test_every_normalisation_trains_and_travels_into_the_export(kind, shards, tmp_path):
    assert run(make_config(shards, f'data.stats_kind={kind}', 'steps=2'), tmp_path).finished
    loaded = load_checkpoint(tmp_path / 'export')
    assert loaded.stats.kind == kind
    saved = json.loads((tmp_path / 'norm_stats.json').read_text())['norm_stats']
    assert loaded.stats.data_hash == saved['data_hash'] != ''


def test_a_run_begun_before_a_setting_existed_goes_on(shards, tmp_path):
    config = make_config(shards, 'steps=2')
    assert run(config, tmp_path).finished
    path = tmp_path / 'config.json'
    old = json.loads(path.read_text())
    del old['depth_branch'], old['optimizer']['multipliers'], old['model']['flow']['rotation_path']
    path.write_text(json.dumps(old))
    assert run(config, tmp_path).finished
    path.write_text(json.dumps(old))
    with pytest.raises(UserError, match="depth_branch = 'frozen' is there"):
        run(make_config(shards, 'steps=2', 'depth_branch=trained'), tmp_path)


def test_weights_of_another_size_are_refused(straight, shards, tmp_path):
    config = make_config(shards, f'init={straight[0] / "export"}')
    bigger = dataclasses.replace(config.model.expert, width=48)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, expert=bigger))
    with pytest.raises(UserError, match='give a checkpoint of the same size'):
        run(config, tmp_path)


def test_an_expert_drawn_anew_may_have_another_size(straight, shards, tmp_path):
    init = f'init={straight[0] / "export"}'
    config = make_config(shards, init, 'fresh_expert=true', 'model.expert.mlp_width=80', 'steps=2')
    assert run(config, tmp_path).finished
    before, after = weights(straight[0]), weights(tmp_path)
    changed = [n for n in before if before[n].shape != after[n].shape]
    assert changed
    assert all(n.startswith('expert.') for n in changed)
    moved = max((after[n] - before[n]).abs().max() for n in before if n.startswith('vlm.'))
    assert moved < 0.05  # two updates away from init
