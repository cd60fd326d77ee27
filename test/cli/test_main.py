"""The `spear` command: its subcommands, and errors as one sentence."""

import sys
from pathlib import Path

import pytest

from spear_ros.cli import main as spear


def test_every_command_has_a_line_of_help() -> None:
    found = spear.commands()
    assert {'demo', 'doctor'} <= set(found)
    assert all(line and '``spear' not in line for line in found.values())


def test_only_the_chosen_command_is_imported(capsys: pytest.CaptureFixture[str]) -> None:
    before = set(sys.modules)
    with pytest.raises(SystemExit) as ended:
        spear.main(['--help'])
    assert ended.value.code == 0
    loaded = set(sys.modules) - before
    assert not [m for m in loaded if m.startswith('spear_ros.cli.')]
    assert 'doctor' in capsys.readouterr().out


def test_an_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        spear.main(['docter'])
    assert ended.value.code == 2
    assert 'doctor' in capsys.readouterr().err


def test_bad_input_is_one_line_and_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert spear.main(['doctor', '--seconds', '1000']) == 2
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err.count('\n') == 1
    assert '--seconds 1000' in captured.err


def test_a_missing_extra_is_named_with_its_mend() -> None:
    sentence = spear.missing_module_sentence(ModuleNotFoundError('', name='mujoco.egl'))
    assert sentence is not None
    assert 'mujoco' in sentence
    assert 'spear_ros[sim]' in sentence


def test_a_missing_ros_package_is_told_as_ros() -> None:
    sentence = spear.missing_module_sentence(ModuleNotFoundError('', name='sensor_msgs.msg'))
    assert sentence is not None
    assert '/opt/ros/jazzy' in sentence


def test_a_missing_module_of_ours_is_our_fault_and_keeps_its_traceback() -> None:
    assert spear.missing_module_sentence(ModuleNotFoundError('', name='spear_ros.x')) is None


def test_every_extra_that_is_named_exists() -> None:
    setup = (Path(__file__).resolve().parents[2] / 'setup.py').read_text()
    assert all(f"'{extra}':" in setup for extra in set(spear.EXTRA_OF_MODULE.values()))
