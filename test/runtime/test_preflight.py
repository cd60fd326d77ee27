"""Preflight lists every reason, most basic first; test_executor.py shows each through arm."""

from dataclasses import replace

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
