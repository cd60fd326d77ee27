"""The launch files with the real ``launch``: they build, and describe exactly the process list.

Run where ROS's ``launch`` is importable (a sourced ROS 2); the wheels on PyPI do not have it.
"""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def has_launch():
    # The repository's own folder "launch" would pass for a namespace package.
    try:
        return importlib.util.find_spec('launch.actions') is not None
    except ModuleNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not has_launch(), reason='ROS launch is not installed')


def describe(name, **arguments):
    """Build the description and return the nodes that it would start."""
    from launch import LaunchContext
    from launch_ros.actions import Node

    path = ROOT / 'launch' / f'{name}.launch.py'
    spec = importlib.util.spec_from_file_location(f'{name}_launch', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    context = LaunchContext()
    found = []
    description = module.generate_launch_description()
    for entity in description.entities:
        if hasattr(entity, 'name') and type(entity).__name__ == 'DeclareLaunchArgument':
            context.launch_configurations[entity.name] = arguments.get(
                entity.name, entity.default_value[0].text if entity.default_value else ''
            )
        else:
            found += entity.execute(context) or []
    return [e for e in found if isinstance(e, Node)]


@pytest.mark.parametrize(
    ('name', 'arguments', 'count'),
    [
        ('franka', {}, 2),
        ('widowx', {}, 2),
        ('sim', {'robot': 'widowx'}, 3),
        ('sim', {'record': 'out/bag'}, 4),
        ('replay', {'bag': 'b', 'map': 'm.yaml', 'policy': 'hold'}, 3),
    ],
)
def test_a_launch_file_starts_the_process_list(name, arguments, count):
    assert len(describe(name, **arguments)) == count


def test_a_bad_argument_starts_nothing():
    assert describe('franka', speed_scale='7') == []
