"""The set-up refuses in one sentence before it downloads, and a finished one does nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools'))
import bootstrap  # noqa: E402  (not a package: it must run before anything is installed)
import build_interfaces  # noqa: E402
import system_check  # noqa: E402

HIDDEN = ('ROS_DISTRO', 'AMENT_PREFIX_PATH', 'TORCH', 'PYTHON', 'LD_LIBRARY_PATH')


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What the set-up reads of a clone; never the real one, whose .venv it would touch."""
    for name in ('tools', 'requirements', 'interfaces'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'setup.cfg', 'package.xml', 'Makefile'):
        shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


def set_up(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the set-up with this interpreter's base; a slow package index would fail the test."""
    base = {k: v for k, v in os.environ.items() if k not in HIDDEN}
    base['PIP_NO_INDEX'] = '1'
    python = environment.setdefault('PYTHON', str(getattr(sys, '_base_executable', '')))
    assert python
    return subprocess.run(
        ['/bin/sh', str(clone / 'tools/setup.sh'), *arguments],
        env={**base, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def assert_refused(result: subprocess.CompletedProcess[str], clone: Path, *words: str) -> None:
    assert result.returncode == 2, result.stdout + result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert all(word in lines[0] for word in words), lines[0]
    assert not (clone / '.venv').exists()


def test_all_missing_system_packages_stand_in_one_sentence(clone: Path, tmp_path: Path) -> None:
    tools = tmp_path / 'bin'
    tools.mkdir()
    for name in ('dirname', 'cat'):
        (tools / name).symlink_to(str(shutil.which(name)))
    result = set_up(clone, '--needs', 'robot', PATH=str(tools))
    words = ('C compiler', 'C++ compiler', 'make', 'CMake', 'apt-get install -y', 'build-essential')
    assert_refused(result, clone, *words)


def test_the_sentence_names_each_package_once() -> None:
    sentence = system_check.sentence(
        [('a C compiler', 'build-essential'), ('make', 'build-essential'), ('EGL', 'libegl1')]
    )
    assert sentence.endswith('apt-get install -y build-essential libegl1')
    assert 'a C compiler, make, EGL' in sentence


def test_nothing_is_missing_where_the_tests_run() -> None:
    assert not list(system_check.missing_packages(simulator=False))


def test_another_ros_distro_is_refused(clone: Path) -> None:
    assert_refused(set_up(clone, ROS_DISTRO='humble'), clone, 'ROS 2 humble', 'Jazzy')


def test_a_sourced_jazzy_that_this_python_cannot_import_is_told(clone: Path) -> None:
    result = set_up(clone, ROS_DISTRO='jazzy', PYTHONPATH='')
    assert_refused(result, clone, 'Jazzy is sourced', 'PYTHON=')


def test_an_unknown_torch_is_refused_before_anything_is_downloaded(clone: Path) -> None:
    assert_refused(set_up(clone, TORCH='cuda'), clone, 'TORCH=cuda', 'cu130')


def test_no_torch_and_a_policy_that_needs_it_is_refused(clone: Path) -> None:
    assert_refused(set_up(clone, '--needs', 'demo', TORCH='none'), clone, 'POLICY=scripted')


def test_an_unsuitable_interpreter_is_refused(clone: Path) -> None:
    result = set_up(clone, PYTHON='/bin/false')
    assert_refused(result, clone, 'PYTHON=/bin/false', '3.11')


def test_the_scripted_demo_installs_no_torch() -> None:
    needs = bootstrap.torch_free('demo', 'scripted')
    assert not bootstrap.extras_for(needs, 'auto') & bootstrap.TORCH_EXTRAS
    assert 'policy' in bootstrap.extras_for(bootstrap.torch_free('demo', ''), 'auto')
    assert 'policy' not in bootstrap.extras_for('test', 'none')


def finished_environment(clone: Path) -> Path:
    """Write the state of a finished set-up around an interpreter that only notes its calls."""
    calls = clone / 'calls.txt'
    python = clone / '.venv/bin/python'
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> {calls}\necho interfaces: nothing to do\n')
    python.chmod(0o755)
    version = subprocess.run(
        [str(getattr(sys, '_base_executable', '')), '-c', 'import sys; print(sys.version)'],
        capture_output=True,
        text=True,
    ).stdout.rstrip('\n')
    requirements = clone / 'requirements'
    state = {
        'identity': [version, 'wheels'],
        'ros': bootstrap.file_hash(requirements / 'build.txt', requirements / 'ros.txt'),
        'package': bootstrap.file_hash(
            requirements / 'constraints.txt',
            *(clone / name for name in ('setup.py', 'setup.cfg', 'package.xml')),
        ),
        'extras': sorted(bootstrap.NEEDS['demo']),
        'torch': 'auto',
    }
    (clone / '.venv/.spear').mkdir()
    (clone / '.venv/.spear/state.json').write_text(json.dumps(state))
    return calls


def test_a_finished_set_up_runs_no_pip_and_says_nothing(clone: Path) -> None:
    calls = finished_environment(clone)
    result = set_up(clone, '--needs', 'demo')
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')
    assert calls.read_text().split() == ['-u', str(clone / 'tools/build_interfaces.py')]


def test_a_changed_pin_installs_again(clone: Path) -> None:
    calls = finished_environment(clone)
    with (clone / 'requirements/constraints.txt').open('a') as file:
        file.write('# changed\n')
    assert set_up(clone, '--needs', 'demo').returncode == 0
    assert '-m pip install' in calls.read_text()


def test_a_larger_need_keeps_what_is_there(clone: Path) -> None:
    calls = finished_environment(clone)
    assert set_up(clone, '--needs', 'test').returncode == 0
    installed = calls.read_text()
    assert '[annotate,bag,convert,policy,sim,test,train,viz]' in installed


def test_a_torn_state_file_is_an_unfinished_set_up(clone: Path) -> None:
    calls = finished_environment(clone)
    (clone / '.venv/.spear/state.json').write_text('{"identity": ')
    assert set_up(clone, '--needs', 'robot').returncode == 0
    assert calls.read_text().count('-m pip install') == 2


def test_children_do_not_inherit_the_mark_of_another_ros_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / 'pyvenv.cfg').touch()
    foreign = [str(tmp_path / 'lib'), '/x/ros_rclpy.libs', '/usr/local/lib']
    monkeypatch.setenv('_ROS_WHEELS_BOOTSTRAP_COMPLETE', '1')
    monkeypatch.setenv('LD_LIBRARY_PATH', os.pathsep.join(foreign))
    environment = bootstrap.clean_environment()
    assert '_ROS_WHEELS_BOOTSTRAP_COMPLETE' not in environment
    assert environment['LD_LIBRARY_PATH'] == '/usr/local/lib'


def test_a_real_driver_package_is_used_instead_of_the_subset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index = tmp_path / 'share/ament_index/resource_index/packages/franka_msgs'
    index.parent.mkdir(parents=True)
    index.touch()
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    assert build_interfaces.existing_prefix('franka_msgs', tmp_path / 'venv') == tmp_path
    assert build_interfaces.existing_prefix('control_msgs', tmp_path / 'venv') is None
    assert build_interfaces.existing_prefix('franka_msgs', tmp_path) is None


def test_the_hash_of_a_message_package_follows_its_content(
    monkeypatch: pytest.MonkeyPatch, clone: Path
) -> None:
    monkeypatch.setattr(build_interfaces, 'INTERFACES', clone / 'interfaces')
    before = build_interfaces.content_hash('franka_msgs', clone)
    assert build_interfaces.content_hash('franka_msgs', clone) == before
    message = clone / 'interfaces/driver_subset/franka_msgs/msg/Elbow.msg'
    message.write_text(message.read_text() + 'float64 more\n')
    assert build_interfaces.content_hash('franka_msgs', clone) != before


def test_the_wheels_cmake_files_are_pointed_at_this_python(tmp_path: Path) -> None:
    pytest.importorskip('numpy')
    file = tmp_path / 'share/x_msgs/cmake/export.cmake'
    file.parent.mkdir(parents=True)
    file.write_text(
        'A "/opt/python/cp312-cp312/include/python3.12;'
        '/opt/python/cp312-cp312/lib/python3.12/site-packages/numpy/_core/include"'
    )
    assert build_interfaces.patch_wheel_cmake_files(tmp_path) == 1
    folders = file.read_text().split('"')[1].split(';')
    assert [(Path(f) / h).is_file() for f, h in zip(folders, ('Python.h', 'numpy'), strict=True)]
    assert build_interfaces.patch_wheel_cmake_files(tmp_path) == 0


@pytest.mark.parametrize(
    ('log', 'expected'),
    [
        ('-- ok\nCMake Error at x.cmake:1 (message):\n\n  NumPy is missing\n', 'NumPy is missing'),
        ('[1%] x\na.c:3:1: error: unknown type\nmake: *** [a] Error 1\n', 'unknown type'),
        ("Traceback\nUnknownType: 'Headerr'\nValueError: bad\nmake: *** Error 1\n", 'bad'),
        ('', 'no output'),
    ],
)
def test_a_failed_build_shows_the_first_real_error(log: str, expected: str) -> None:
    assert expected in build_interfaces.first_error(log)
