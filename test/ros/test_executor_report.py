from dataclasses import replace

import pytest

pytest.importorskip('spear_msgs', reason='ROS messages are not built')

from spear_ros.robots.registry import get_robot
from spear_ros.ros.diagnostics import OK, WARN
from spear_ros.ros.drivers.base import DriverReport
from spear_ros.ros.executor_report import diagnoses
from spear_ros.runtime.executor import Executor
from spear_ros.runtime.safety import load_limits
from spear_ros.runtime.state_machine import State


def test_diagnostics_warn_while_the_arm_gives_way_and_only_then():
    robot = get_robot('wx250s')
    idle = Executor(robot, load_limits(robot), lambda: 0).snapshot()
    told = 'gives way: waist pushes with 1100 mA (soft limit 1020).'
    follows = replace(idle, state=State.RUNNING)
    for snapshot, level in (
        (follows, OK),
        (replace(follows, progress=told), WARN),
        (replace(idle, state=State.HOMING, progress='home: 10 %'), OK),
    ):
        diagnosis = diagnoses(snapshot, DriverReport(), None)[0]
        assert diagnosis.level == level
        assert ('pushes with' in diagnosis.text) == (level == WARN)
