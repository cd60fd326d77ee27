import importlib.util
import json

import pytest

from spear_ros.cli.main import main

if not all(importlib.util.find_spec(name) for name in ('mujoco', 'rtbdata')):
    pytest.skip('needs mujoco and rtb-data', allow_module_level=True)


def test_a_table_is_printed_and_the_files_are_written(tmp_path, capsys):
    arguments = ['evaluate', '--robot', 'widowx', '--family', 'touch', '--episodes', '1']
    assert main([*arguments, '--seed', '1000000', '--out', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert 'robot wx250s with' in out
    assert '| touch | 1/1 (100 %) |' in out
    document = json.loads((tmp_path / 'results.json').read_text())
    assert document['families'][0]['successes'] == 1
    assert document['settings']['robot'] == 'widowx'
    assert (tmp_path / 'sheet.png').stat().st_size > 10_000


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        (['--family', 'juggle'], 'juggle'),
        (['--robot', 'fr4'], 'fr4'),
        (['--gripper', 'widowx'], 'widowx'),
        (['--policy', 'scriptd'], 'did you mean "scripted"'),
        (['--variant', 'dark', '--episodes', '1'], 'dark'),
        (['--episodes', '0'], 'episodes = 0'),
        (['--latency', '7'], 'latency_s = 7'),
        (['--option', 'noise'], '--option noise: write it as KEY=VALUE'),
        (['--policy', 'spear1', '--option', 'execute_steps=9'], 'execute_steps = 9'),
    ],
)
def test_bad_arguments_are_one_sentence_and_status_2(arguments, named, capsys):
    assert main(['evaluate', *arguments]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count('\n') == 1
