"""ExecutorInputs: which soft and hard reasons hold, and for how long."""

from dataclasses import replace

import numpy as np
import pytest

from spear_ros.core.reasons import Reason
from spear_ros.robots.registry import get_robot
from spear_ros.runtime.executor_inputs import ExecutorInputs
from spear_ros.runtime.executor_types import DriverState, ExecutorSettings, PolicyHealth

ROBOT = get_robot('fr3')
HOME = np.array(ROBOT.q_home_rad)
S = 1_000_000_000
NOW = 100 * S
HEALTH = PolicyHealth(
    stamp_ns=NOW,
    received_ns=NOW,
    active=True,
    policy_session='s',
    checkpoint_id='c',
    embodiment='franka_droid',
    ee_frame='link8',
    step_s=0.2,
    horizon=5,
)


@pytest.fixture
def inputs():
    inputs = ExecutorInputs(ROBOT, ExecutorSettings())
    inputs.on_joints(NOW, NOW, ROBOT.joint_names, HOME)
    inputs.on_gripper(NOW, NOW, 1.0)
    inputs.on_policy(HEALTH)
    inputs.driver = DriverState(received_ns=NOW)
    inputs.publishers = 1
    return inputs


def test_healthy_inputs_have_no_reason(inputs):
    assert list(inputs.hard(NOW)) == []
    assert inputs.soft(NOW, True) is None


def test_each_time_out_is_its_own(inputs):
    later = NOW + S // 10
    assert [f.reason for f in inputs.hard(later)] == [Reason.JOINTS_STALE]
    assert inputs.soft(later, True) is None
    later = NOW + S // 4
    assert inputs.soft(later, True).reason is Reason.GRIPPER_STALE
    inputs.on_gripper(later, later, 1.0)
    assert inputs.soft(later, True) is None
    later = NOW + S * 4 // 10
    inputs.on_gripper(later, later, 1.0)
    assert inputs.soft(later, True).reason is Reason.POLICY_SILENT
    later = NOW + 2 * S
    assert Reason.DRIVER_LOST in {f.reason for f in inputs.hard(later)}


def test_several_hard_reasons_are_all_named(inputs):
    inputs.driver = DriverState(received_ns=NOW, reason=Reason.ROBOT_REFLEX, text='x')
    inputs.publishers = 3
    assert [f.reason for f in inputs.hard(NOW)] == [Reason.ROBOT_REFLEX, Reason.SECOND_PUBLISHER]


def test_a_policy_without_instruction_matters_only_to_a_moving_robot(inputs):
    inputs.on_policy(
        replace(HEALTH, stamp_ns=NOW + 1, received_ns=NOW + 1, reason=Reason.POLICY_NOT_READY)
    )
    assert inputs.soft(NOW, False) is None
    assert inputs.soft(NOW, True).reason is Reason.POLICY_NOT_READY


def test_a_camera_matters_always_and_hard_codes_of_the_policy_become_soft(inputs):
    stale = replace(
        HEALTH, stamp_ns=NOW + 1, received_ns=NOW + 1, reason=Reason.CAMERA_STALE, text='cam'
    )
    inputs.on_policy(stale)
    assert inputs.soft(NOW, False).reason is Reason.CAMERA_STALE
    joints = replace(
        HEALTH, stamp_ns=NOW + 2, received_ns=NOW + 2, reason=Reason.JOINTS_STALE, text='arm'
    )
    inputs.on_policy(joints)
    assert inputs.soft(NOW, True).reason is Reason.POLICY_NOT_READY
    assert inputs.soft(NOW, True).text == 'arm'


def test_bad_samples_are_reported_once_and_remembered_for_half_a_second(inputs):
    inputs.on_joints(NOW + 1, NOW + 1, ROBOT.joint_names, np.full(7, np.nan))
    inputs.on_joints(NOW + 2, NOW + 2, ROBOT.joint_names, np.full(7, 9.0))
    assert inputs.take_bad_sample().reason is Reason.JOINTS_NOT_FINITE
    assert inputs.take_bad_sample() is None
    assert inputs.recent(inputs.bad_sample, NOW + S // 4).reason is Reason.JOINTS_LIMIT
    assert inputs.recent(inputs.bad_sample, NOW + S) is None


def test_skew_is_soft_and_passes(inputs):
    inputs.on_gripper(NOW - 3 * S, NOW, 1.0)
    assert inputs.soft(NOW, True).reason is Reason.CLOCK_SKEW
    inputs.on_gripper(NOW + S - 1, NOW + S - 1, 1.0)
    inputs.on_policy(replace(HEALTH, stamp_ns=NOW + S, received_ns=NOW + S))
    assert inputs.soft(NOW + S, True) is None


def test_joints_that_are_stale_for_their_clock_name_the_clock(inputs):
    assert 'check the driver' in hard_texts(inputs, NOW + S)
    late = NOW + S
    inputs.on_joints(late - 5 * S, late, ROBOT.joint_names, HOME)
    assert 'synchronise the clocks' in hard_texts(inputs, late)


def hard_texts(inputs, now_ns):
    return ' '.join(f.text for f in inputs.hard(now_ns) if f.reason is Reason.JOINTS_STALE)


def test_a_gripper_reading_that_is_no_number_is_no_reading(inputs):
    inputs.on_gripper(NOW + S // 4, NOW + S // 4, float('nan'))
    assert inputs.soft(NOW + S // 4, True).reason is Reason.GRIPPER_STALE


def test_forgetting_leaves_nothing_believable(inputs):
    inputs.forget()
    assert [f.reason for f in inputs.hard(NOW)] == [Reason.JOINTS_STALE]
    assert inputs.soft(NOW, True).reason is Reason.GRIPPER_STALE
    assert inputs.joints.q is None
