"""Our subset of the drivers' messages has the same ROS type hashes as the real packages.

Two programs talk to each other only when the hash of a type agrees. The constants were computed
from the real .msg files: franka_ros2 3.4.0 (29cb85a), control_msgs 5.8.0 (f901df2), ros2_control
(9ffbf97fd) and interbotix_ros_core (bf127b4), branches `jazzy`.
"""

import importlib
import importlib.util
import json
from pathlib import Path

import pytest

PINS = Path(__file__).with_name('type_hashes.txt')
RIHS01 = dict(line.split() for line in PINS.read_text().splitlines() if not line.startswith('#'))
ROOT = Path(__file__).resolve().parents[2]


def share_folder(package: str) -> Path:
    """Return share/<package> beside the Python files of an importable message package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f'{package} is not built here')
    for parent in Path(spec.origin).parents:
        if (parent / 'share' / package / 'package.xml').is_file():
            return parent / 'share' / package
    raise AssertionError(f'{package} has no share folder above {spec.origin}')


@pytest.mark.parametrize('name', sorted(RIHS01))
def test_type_hash_is_that_of_the_real_package(name: str) -> None:
    package, kind, stem = name.split('/')
    description = json.loads((share_folder(package) / kind / f'{stem}.json').read_text())
    hashes = {entry['type_name']: entry['hash_string'] for entry in description['type_hashes']}
    assert hashes[name] == RIHS01[name]


def test_every_type_of_the_subset_is_pinned() -> None:
    subset = ROOT / 'interfaces/driver_subset'
    files = {
        f'{path.relative_to(subset).parts[0]}/{path.parent.name}/{path.stem}'
        for path in subset.glob('*/*/*')
        if path.parent.name in ('msg', 'srv', 'action')
    }
    assert files == set(RIHS01)


def test_colcon_never_builds_the_subset() -> None:
    assert (ROOT / 'interfaces/driver_subset/COLCON_IGNORE').is_file()


def test_executor_states_have_the_numbers_of_the_message() -> None:
    pytest.importorskip('spear_msgs')
    message = importlib.import_module('spear_msgs.msg').ExecutorStatus
    machine = importlib.import_module('spear_ros.runtime.state_machine')
    assert {state.name: int(state) for state in machine.State} == {
        name: getattr(message, name) for name in machine.State.__members__
    }
