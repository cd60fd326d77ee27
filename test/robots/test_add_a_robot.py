"""doc/add_a_robot.md, followed with the ViperX-300s: spec, limits and wiring, no driver code."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from spear_ros.robots.kinematics import forward, link_transforms
from spear_ros.robots.registry import get_robot
from spear_ros.runtime.safety_limits import load_limits
from spear_ros.runtime.state_machine import State

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / 'doc/add_a_robot.md'


@pytest.fixture(scope='module')
def rig():
    sys.path.insert(0, str(ROOT / 'benchmarks'))
    try:
        spec = importlib.util.find_spec('executor_rig')
        module = importlib.import_module(spec.name)
    finally:
        sys.path.remove(str(ROOT / 'benchmarks'))
    return module.Rig('vx300s').ready()


def test_every_file_that_the_document_names_is_there():
    names = re.findall(r'`((?:spear_ros|config|test|doc)/[\w/.<>-]+)`', DOCUMENT.read_text())
    missing = [n for n in names if '<' not in n and not (ROOT / n).exists()]
    assert len(names) > 8
    assert missing == []


def test_spec_by_the_published_table():
    """At q = 0 the arm is stretched forward; the distances are sums of the table's rows."""
    robot = get_robot('vx300s')
    reach = 0.05955 + 0.2 + 0.1 + 0.069744 + 0.042825 + 0.025875 + 0.0385
    height = 0.079 + 0.04805 + 0.3
    np.testing.assert_allclose(
        forward(robot, np.zeros(6)),
        [[1, 0, 0, reach], [0, 1, 0, 0], [0, 0, 1, height], [0, 0, 0, 1]],
    )
    q = np.array([np.pi / 2, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(forward(robot, q)[:3, 3], [0, reach, height], atol=1e-12)
    bent = np.array([0, 0, np.pi / 4, 0, 0, 0])  # a positive elbow points the forearm down
    assert link_transforms(robot, bent)[5][2, 3] < height
    assert robot.joints[1].upper_rad == pytest.approx(np.radians(72))


def test_limits_of_its_own_file_are_within_its_spec():
    robot = get_robot('vx300s')
    limits = load_limits(robot)
    assert limits.workspace_max_m == (0.55, 0.30, 0.40)
    assert load_limits(get_robot('wx250s')).workspace_max_m == (0.45, 0.25, 0.30)


def test_wiring_uses_the_same_driver_under_another_name():
    from spear_ros.ros.config import load_robot_config

    config = load_robot_config('viperx')
    robot = get_robot(config.model, config.gripper)
    assert robot.name == 'vx300s'
    assert robot.family == config.family == 'widowx'
    assert config.widowx.namespace == '/vx300s'
    assert config.gripper_state.opening(robot.finger_open_m) == pytest.approx(1.0)
    assert config.gripper_state.opening(robot.finger_closed_m) == pytest.approx(0.0)


def test_it_arms_follows_chunks_and_comes_home(rig):
    rig.drive(1.0, velocity=(0.02, 0.08, 0.02), turn=(0, 0, 0.2))
    assert rig.executor.snapshot().state is State.RUNNING
    rig.run(1.5)
    answer = rig.executor.home()
    assert answer.accepted, answer.text
    rig.run(8.0)
    assert rig.executor.snapshot().state is State.ARMED
    np.testing.assert_allclose(rig.commands[-1].q_rad, rig.robot.q_home_rad, atol=1e-6)
