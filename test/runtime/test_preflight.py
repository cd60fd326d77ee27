"""Preflight lists every reason, most basic first; test_executor.py shows each through arm."""

from dataclasses import replace

import pytest

from spear_ros.core.errors import UserError
from spear_ros.core.reasons import Reason
from spear_ros.runtime.executor import ExecutorSettings
from spear_ros.runtime.preflight import preflight
from spear_ros.runtime.safety import SafetyGate


def found(rig, settings=None):
    cycle = rig.executor._cycle
    gate = SafetyGate(rig.robot, rig.limits)
    return preflight(rig.robot, cycle.inputs, gate, settings or rig.settings, rig.now_ns)


def test_a_healthy_system_has_no_reason(bench):
    rig = bench.Rig()
    rig.run(0.5)
    assert found(rig) == []


def test_everything_missing_is_everything_named(bench):
    rig = bench.Rig()
    reasons = [f.reason for f in found(rig)]
    assert reasons == [
        Reason.JOINTS_STALE,
        Reason.DRIVER_LOST,
        Reason.GRIPPER_STALE,
        Reason.POLICY_SILENT,
    ]


def test_what_is_not_required_is_not_judged(bench):
    rig = bench.Rig()
    rig.send_policy = rig.send_driver = rig.send_gripper = False
    rig.run(0.5)
    relaxed = ExecutorSettings(
        require_policy=False, require_driver=False, require_gripper=False, expected_publishers=0
    )
    assert found(rig, relaxed) == []
    assert len(found(rig)) == 3


def test_a_driver_fault_counts_even_where_no_driver_is_required(bench):
    rig = bench.Rig()
    rig.driver = replace(rig.driver, reason=Reason.MOTOR_ERROR, text='motor 3')
    rig.run(0.5)
    relaxed = ExecutorSettings(require_driver=False)
    assert [f.text for f in found(rig, relaxed)] == ['motor 3']


def test_several_problems_of_the_policy_are_all_listed(bench):
    rig = bench.Rig()
    rig.health = replace(
        rig.health,
        spec_mismatch='rate_hz: 5 / 15',
        embodiment='x',
        checkpoint_id='',
        stream_problems=('wrist is stale.', 'external is frozen.'),
    )
    rig.run(0.5)
    texts = ' '.join(f.text for f in found(rig))
    for words in ('rate_hz: 5 / 15', '"x"', 'checkpoint_id', 'wrist is stale', 'is frozen'):
        assert words in texts


def test_an_arm_that_still_moves_is_not_armed(bench):
    for robot in ('fr3', 'wx250s'):
        rig = bench.Rig(robot)
        rig.run(0.3)
        for _ in range(round(0.4e9 / rig.period_ns)):
            rig.q = rig.q + 0.3 * rig.period_ns * 1e-9  # every joint, 0.3 rad/s
            rig.tick()
        answer = rig.executor.arm()
        assert not answer.accepted
        assert 'the arm moves' in answer.text
        rig.run(0.3)
        assert rig.executor.arm().accepted


def test_two_policy_processes_are_not_armed_and_stop_a_motion(bench):
    rig = bench.Rig()
    rig.run(0.5)
    other = replace(rig.health, policy_session='bbbbbbbb', checkpoint_id='another')

    def both(seconds):
        for k in range(round(seconds * 1e9 / rig.period_ns)):
            for health in (rig.health, other) if k % 10 == 0 else ():
                rig.executor.on_policy_status(
                    replace(health, stamp_ns=rig.now_ns, received_ns=rig.now_ns)
                )
            rig.send_policy = False
            rig.tick()

    both(0.3)
    answer = rig.executor.arm()
    assert not answer.accepted
    assert 'two policy processes' in answer.text
    assert 'another' in answer.text
    rig.send_policy = True
    rig.run(1.2)
    rig.ready()
    rig.drive(0.4)
    both(0.5)
    snapshot = rig.executor.snapshot()
    assert (snapshot.state.name, snapshot.reason) == ('HOLD', Reason.CHUNK_IDENTITY)


def test_a_policy_that_was_started_again_is_one_process(bench):
    rig = bench.Rig()
    rig.run(0.5)
    rig.health = replace(rig.health, policy_session='bbbbbbbb')
    rig.run(0.1)
    assert found(rig) == []


def test_joint_names_of_the_driver_are_those_that_are_looked_for(bench):
    robot = bench.Rig().robot
    names = tuple(f'left_{name}' for name in robot.joint_names)
    rig = bench.Rig(settings=ExecutorSettings(joint_names=names))
    rig.run(0.3)
    assert 'lack' in rig.executor.arm().text
    feed = rig.executor.on_joints
    rig.executor.on_joints = lambda stamp, received, _, q: feed(stamp, received, names, q)
    rig.run(0.8)
    assert rig.executor.arm().accepted


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda n: (n[1], n[0], *n[2:]), 'in other places'),
        (lambda n: n[:-1], '7 different names'),
        (lambda n: (*n[:-1], n[0]), '7 different names'),
    ],
)
def test_joint_names_in_a_wrong_order_are_refused(bench, change, words):
    names = change(bench.Rig().robot.joint_names)
    with pytest.raises(UserError, match=words):
        bench.Rig(settings=ExecutorSettings(joint_names=names))
