"""The package installs completely, with pip and with colcon, and declares what it uses."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]
COLCON = Path(sys.executable).with_name('colcon')
BASE_PATHS = ('src', 'src/spear_ros/interfaces/spear_msgs')
# What rosdep knows as a ROS package; the message packages among them are compared with the sources.
ROS_DEPENDENCIES = {
    'rclpy', 'cv_bridge', 'sensor_msgs', 'geometry_msgs', 'trajectory_msgs', 'nav_msgs', 'std_srvs',
    'diagnostic_msgs', 'lifecycle_msgs', 'rosgraph_msgs', 'control_msgs', 'controller_manager_msgs',
    'franka_msgs', 'interbotix_xs_msgs', 'action_msgs', 'std_msgs', 'builtin_interfaces',
    'spear_msgs', 'launch', 'launch_ros',
}  # fmt: skip
SOURCES = (
    'package.xml', 'setup.py', 'setup.cfg', 'pyproject.toml', 'resource', 'spear_ros', 'launch',
    'config', 'models', 'interfaces', 'test/test_packaging.py',
)  # fmt: skip


def copy_sources(target: Path) -> Path:
    """Copy what belongs to the package, so that a build leaves nothing in the clone."""
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns('__pycache__', '*.egg-info')
            shutil.copytree(source, target / name, ignore=ignore)
        elif source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
    return target


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp('wheel')
    source = copy_sources(folder / 'spear_ros')
    command = [
        sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index',
        '--wheel-dir', str(folder), str(source),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:] + result.stdout[-2000:]
    return zipfile.ZipFile(next(folder.glob('*.whl')))


def test_wheel_holds_every_module_and_no_test(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / 'spear_ros').rglob('*.py')}
    assert modules <= names
    assert 'spear_ros/py.typed' in names
    assert not [n for n in names if n.startswith(('test/', 'tools/', 'benchmarks/'))]


def test_wheel_holds_every_share_file(wheel: zipfile.ZipFile) -> None:
    marker = '.data/data/share/spear_ros/'
    shared = {name.split(marker)[1] for name in wheel.namelist() if marker in name}
    expected = {
        str(path.relative_to(ROOT))
        for folder in ('config', 'launch', 'models')
        for path in (ROOT / folder).rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }
    assert expected | {'package.xml'} == shared
    assert {'config/robots/franka.yaml', 'config/dds/shared_memory.xml'} <= shared
    index = 'share/ament_index/resource_index/packages/spear_ros'
    assert any(name.endswith(index) for name in wheel.namelist())


def test_wheel_brings_spear_and_every_node(wheel: zipfile.ZipFile) -> None:
    entry_points = next(n for n in wheel.namelist() if n.endswith('entry_points.txt'))
    lines = wheel.read(entry_points).decode().splitlines()
    targets = dict(line.split(' = ') for line in lines if ' = ' in line)
    assert targets.pop('spear') == 'spear_ros.cli.main:main'
    nodes = {p.stem for p in (ROOT / 'spear_ros/ros/nodes').glob('*_node.py')}
    assert nodes <= set(targets)
    for name, target in targets.items():
        assert target == f'spear_ros.ros.nodes.{name}:main'


def test_robot_side_needs_three_packages(wheel: zipfile.ZipFile) -> None:
    metadata = next(n for n in wheel.namelist() if n.endswith('METADATA'))
    required = re.findall(r'^Requires-Dist: ([^;\n]+)$', wheel.read(metadata).decode(), re.M)
    assert sorted(required) == ['numpy', 'opencv-python-headless', 'pyyaml']


def test_every_requirement_of_an_extra_is_pinned(wheel: zipfile.ZipFile) -> None:
    metadata = next(n for n in wheel.namelist() if n.endswith('METADATA'))
    required = re.findall(r'^Requires-Dist: ([\w.-]+)', wheel.read(metadata).decode(), re.M)
    pins = (ROOT / 'requirements/constraints.txt').read_text()
    pinned = set(re.findall(r'^([\w.-]+)==', pins, re.M))
    assert {name.lower() for name in required} <= pinned
    assert 'torchvision' not in pinned


def declared_dependencies() -> set[str]:
    root = ElementTree.parse(ROOT / 'package.xml').getroot()
    return {element.text or '' for tag in ('depend', 'exec_depend') for element in root.iter(tag)}


def test_manifest_names_every_ros_dependency() -> None:
    assert declared_dependencies() >= ROS_DEPENDENCIES


def test_every_imported_message_package_is_in_the_manifest() -> None:
    imported = set()
    for path in (ROOT / 'spear_ros').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ''] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            imported |= {name.split('.')[0] for name in names}
    messages = {n for n in imported if n.endswith(('_msgs', '_srvs', '_interfaces'))}
    messages.discard('rcl_interfaces')  # comes with rclpy, like parameters themselves
    assert 'spear_msgs' in messages
    assert messages <= declared_dependencies()


def workspace(folder: Path) -> Path:
    """Return a colcon workspace with a copy of the package."""
    copy_sources(folder / 'src' / 'spear_ros')
    return folder


def colcon(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run colcon in a workspace, against the ROS of this environment."""
    prefixes = [sys.prefix, *filter(None, os.environ.get('AMENT_PREFIX_PATH', '').split(':'))]
    environment = {
        **os.environ,
        'AMENT_PREFIX_PATH': ':'.join(prefixes),
        'CMAKE_PREFIX_PATH': ':'.join(prefixes),
        'PATH': f'{COLCON.parent}:{os.environ["PATH"]}',
    }
    return subprocess.run(
        [str(COLCON), *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


needs_colcon = pytest.mark.skipif(not COLCON.is_file(), reason='colcon is not installed')


@needs_colcon
def test_colcon_sees_both_packages_with_their_types(tmp_path: Path) -> None:
    folder = workspace(tmp_path)
    result = colcon(folder, 'list', '--base-paths', *BASE_PATHS)
    rows = sorted(line.split('\t') for line in result.stdout.splitlines())
    assert rows == [
        ['spear_msgs', 'src/spear_ros/interfaces/spear_msgs', '(ros.ament_cmake)'],
        ['spear_ros', 'src/spear_ros', '(ros.ament_python)'],
    ], result.stderr


@needs_colcon
@pytest.mark.slow
@pytest.mark.parametrize('flags', [(), ('--symlink-install',)], ids=['plain', 'symlink-install'])
def test_colcon_builds_a_workspace_that_works(tmp_path: Path, flags: tuple[str, ...]) -> None:
    folder = workspace(tmp_path)
    cmake = ('--cmake-args', f'-DPython3_EXECUTABLE={sys.executable}', '-DBUILD_TESTING=OFF')
    result = colcon(folder, 'build', '--base-paths', *BASE_PATHS, *flags, *cmake)
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-3000:]

    installed = folder / 'install/spear_ros'
    nodes = {p.stem for p in (ROOT / 'spear_ros/ros/nodes').glob('*_node.py')}
    assert nodes | {'spear'} <= {p.name for p in (installed / 'lib/spear_ros').iterdir()}
    assert (installed / 'share/spear_ros/config/robots/franka.yaml').is_file()

    script = (
        '. install/setup.sh; cd /; python -c "'
        'import spear_msgs.msg, spear_ros.core.resources as r;'
        "print(spear_msgs.__file__); print(r.share_file('config/robots/franka.yaml'))"
        '" && "$(command -v python)" ' + str(installed / 'lib/spear_ros/spear') + ' --help'
    )
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    run = subprocess.run(
        ['sh', '-c', script], cwd=folder, env={**os.environ, 'PATH': path}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    messages, config, *help_lines = run.stdout.splitlines()
    assert messages.startswith(str(folder / 'install/spear_msgs'))
    assert config.startswith(str(folder))
    assert any('doctor' in line for line in help_lines)
