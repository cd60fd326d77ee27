"""Names are found or the closest is told; three of four policies start without torch."""

import subprocess
import sys
from types import MappingProxyType

import pytest

from spear_ros.core.errors import UserError
from spear_ros.policies import registry
from spear_ros.robots.registry import get_robot

ROBOT = get_robot('fr3')


def test_a_misspelt_policy_names_the_closest():
    with pytest.raises(UserError, match='did you mean "recorded"'):
        registry.create_policy('recordd', robot=ROBOT)
    with pytest.raises(UserError, match='choose one of spear1, scripted, recorded, hold'):
        registry.create_policy('zzz', robot=ROBOT)


def test_unknown_options_are_refused():
    with pytest.raises(UserError, match='has no option "speed"'):
        registry.create_policy('hold', robot=ROBOT, options={'speed': 1})


def test_a_missing_package_is_told_with_its_extra(monkeypatch, tmp_path):
    (tmp_path / 'needs_torch_here.py').write_text('import torch_that_is_absent')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, 'POLICIES', MappingProxyType({'x': 'needs_torch_here'}))
    with pytest.raises(ModuleNotFoundError):  # not one of ours: a bug, not bad input
        registry.create_policy('x', robot=ROBOT)
    monkeypatch.setattr(registry, '_EXTRAS', {'torch_that_is_absent': 'policy'})
    with pytest.raises(UserError, match='extra "policy"'):
        registry.create_policy('x', robot=ROBOT)


@pytest.mark.parametrize('name', ['hold', 'recorded', 'scripted'])
def test_the_light_policies_load_neither_torch_nor_ros_nor_the_simulator(name):
    code = (
        'import importlib, sys; from spear_ros.policies.registry import policy_module; '
        f'importlib.import_module(policy_module({name!r})); '
        'bad = {"torch", "rclpy", "mujoco", "rosbags"} & set(sys.modules); '
        'sys.exit(str(bad) if bad else 0)'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
