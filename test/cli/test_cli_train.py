"""``spear train``: refusals before anything starts, and roll-outs as validation."""

import json

import pytest

from spear_ros.cli.main import main


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['--recipe', 'spear_tinny'], 'did you mean "spear_tiny"'),
        (['--recipe', 'spear1_debug'], 'data.shards is empty'),
        (['--recipe', 'spear1_debug', 'batchsize=3'], 'did you mean "batch_size"'),
        (['--recipe', 'spear1_debug', 'data.shards=/nowhere'], 'cannot read the card'),
        (['--recipe', 'spear1_debug', '--rollouts', '1', '--robots', 'fr4'], 'fr4'),
        (['--recipe', 'spear1_debug', '--rollouts', '1', '--families', 'tuch'], 'touch'),
        (['--recipe', 'spear1_debug', 'logging.every_steps=0'], 'logging.every_steps = 0'),
        (['--recipe', 'spear1_debug', 'tau_per_sample=0'], 'tau_per_sample = 0'),
        (['--recipe', 'spear1_debug', 'seed=-1'], 'seed = -1'),
        (['--recipe', 'spear1_debug', 'lora.rank=-1'], 'lora.rank = -1'),
        (['--recipe', 'spear1_debug', 'validate_every=-1'], 'validate_every = -1'),
        (['--recipe', 'spear1_debug', 'sampling.execute_steps=9'], 'give at most 4'),
        (['--recipe', 'spear1_debug', '--out', '/proc/x', 'data.shards=/x'], '/proc/x: No such'),
        (['--recipe', 'spear1_debug', 'device=cuda', 'data.shards=/x'], 'cuda'),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(arguments, sentence, tmp_path, capsys):
    import torch

    if 'device=cuda' in arguments and torch.cuda.is_available():
        pytest.skip('a CUDA device is here')
    status = main(['train', 'vla', '--out', str(tmp_path / 'run'), *arguments])
    said = capsys.readouterr().err
    assert status == 2
    lines = [line for line in said.splitlines() if line.startswith('spear train')]
    assert len(lines) == 1
    assert sentence in lines[0]


def test_settings_can_be_looked_at_without_starting(tmp_path, capsys):
    command = ['train', 'moge', '--recipe', 'moge_tiny', '--list', 'steps=7',
               'optimizer.warmup_steps=3']  # fmt: skip
    assert main(command) == 0
    assert 'steps: 7' in capsys.readouterr().out
    assert not (tmp_path / 'x').exists()


@pytest.mark.slow
def test_demonstrations_a_training_and_its_roll_outs_go_together(tmp_path, capsys):
    data, folder = tmp_path / 'demonstrations', tmp_path / 'run'
    collect = ['--robot', 'widowx', '--families', 'touch', '--seeds', '0:1', '--relabel', '0']
    assert main(['demonstrations', *collect, '--out', str(data)]) == 0
    # The robots are those of the data: one.
    options = ['--rollouts', '1', '--families', 'touch']
    settings = [f'data.shards={data}', 'steps=2', 'batch_size=4', 'saving.every_steps=2']
    command = ['train', 'vla', '--recipe', 'spear1_debug', '--out', str(folder), *options]
    assert main([*command, *settings]) == 0
    assert 'finished at step 2' in capsys.readouterr().out
    lines = [json.loads(t) for t in (folder / 'metrics.jsonl').read_text().splitlines()]
    (validation,) = [line for line in lines if line['kind'] == 'validation']
    assert validation['success/wx250s/touch'] in (0.0, 1.0)
    assert validation['open_loop_on_training_data_mm'] > 0
