import importlib.util
import os
import subprocess
import sys

import pytest

if importlib.util.find_spec('mujoco') is None:
    pytest.skip('needs mujoco', allow_module_level=True)


def python(code, **environment):
    env = {k: v for k, v in os.environ.items() if k not in ('MUJOCO_GL', 'DISPLAY')}
    return subprocess.run(
        [sys.executable, '-c', code], env=env | environment, capture_output=True, text=True
    )


def test_egl_is_chosen_without_a_display_and_a_choice_of_the_user_wins():
    code = 'import os, spear_ros.simulation.backend; print(os.environ.get("MUJOCO_GL"))'
    assert python(code).stdout.strip() == 'egl'
    assert python(code, MUJOCO_GL='osmesa').stdout.strip() in ('osmesa', '')


def test_mujoco_imported_too_early_is_told():
    code = (
        'import mujoco; from spear_ros.simulation.backend import new_renderer\n'
        'try:\n    new_renderer(mujoco.MjSpec().compile(), 64, 48)\n'
        'except ValueError as e:\n    print(e)'
    )
    assert 'set MUJOCO_GL=egl' in python(code).stdout


def test_without_opengl_the_packages_to_install_are_named():
    code = (
        'import mujoco; from spear_ros.core.errors import UserError\n'
        'from spear_ros.simulation.backend import new_renderer\n'
        'model = mujoco.MjSpec().compile()\n'
        'try:\n    new_renderer(model, 64, 48)\nexcept UserError as e:\n    print(e)'
    )
    shown = python(code, MUJOCO_GL='disable').stdout
    assert 'apt-get install libegl1' in shown


def test_the_expert_and_the_tasks_do_not_need_mujoco():
    code = (
        'import sys; import spear_ros.simulation.expert, spear_ros.policies.scripted\n'
        'print("mujoco" in sys.modules, "torch" in sys.modules)'
    )
    assert python(code).stdout.split() == ['False', 'False']
