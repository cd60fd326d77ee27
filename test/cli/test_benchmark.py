"""``spear benchmark``: a table, then one JSON object; wrong options are one sentence."""

import json

import pytest

from spear_ros.cli.main import main

QUICK = ['benchmark', '--size', 'spear1_debug', '--device', 'cpu', '--seconds', '0.001']


def test_the_last_line_is_one_json_object(capsys, tmp_path):
    out = tmp_path / 'folder' / 'benchmark.json'
    assert main([*QUICK, '--cameras', '1', '--steps', '1', '--output', str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert (found['cameras'], found['steps'], found['dtype']) == (1, 1, 'float32')
    assert found == json.loads(out.read_text())
    assert any(line.startswith('host to host') for line in lines)


@pytest.mark.parametrize(
    ('extra', 'words'),
    [
        (['--size', 'spear9'], 'spear9'),
        (['--camera-size', 'big'], '--camera-size = big'),
        (['--text', '1000'], '--text = 1000'),
        (['--seconds', '0'], '--seconds'),
        (['--device', 'toaster'], 'toaster'),
        (['--steps', '-1'], 'steps = -1'),
        (['--kernels', 'triton'], 'kernels = triton cannot run'),
    ],
)
def test_wrong_options_are_one_sentence(extra, words, capsys):
    assert main([*QUICK, *extra]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1
