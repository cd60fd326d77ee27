"""ControlCycle: the fixed order inside one period."""

from spear_ros.core.reasons import Reason
from spear_ros.runtime.state_machine import Phase, State

MS = 1_000_000


def test_a_hard_reason_wins_over_a_soft_one_of_the_same_period(bench):
    rig = bench.Rig().ready()
    rig.drive(0.6)
    rig.send_joints = rig.send_gripper = rig.send_policy = False
    rig.run(0.6)
    snapshot = rig.executor.snapshot()
    assert (snapshot.state, snapshot.reason) == (State.FAULT, Reason.JOINTS_STALE)


def test_no_chunk_is_taken_up_in_the_period_in_which_a_soft_reason_stands(bench):
    rig = bench.Rig().ready()
    rig.send_gripper = False
    rig.run(0.3)
    rig.executor.on_chunk(rig.chunk(), rig.now_ns)
    command = rig.tick()
    assert command.holding
    assert rig.executor.snapshot().state is State.HOLD
    rig.send_gripper = True
    assert not rig.tick().holding
    assert rig.executor.snapshot().state is State.RUNNING


def test_the_resume_window_is_measured_from_the_first_reason(bench):
    rig = bench.Rig().ready()
    rig.drive(0.4)
    rig.send_gripper = False
    rig.run(1.5)
    rig.send_policy = False
    rig.run(1.0)
    assert rig.executor._cycle.machine.phase is Phase.LATCHED
    assert rig.executor.snapshot().state is State.HOLD


def test_a_chunk_that_expired_while_it_waited_is_forgotten(bench):
    rig = bench.Rig().ready()
    rig.send_gripper = False
    rig.run(0.3)
    rig.executor.on_chunk(rig.chunk(), rig.now_ns)
    rig.run(1.1)
    rig.send_gripper = True
    commands = rig.run(0.3)
    assert all(c.holding for c in commands)
    assert rig.executor.snapshot().state is State.HOLD


def test_first_command_of_a_chunk_is_timed_once(bench):
    rig = bench.Rig().ready()
    rig.drive(1.0, delay_s=0.05)
    snapshot = rig.executor.snapshot()
    assert 50 <= snapshot.first_command_age_p50_ms <= 70
    assert len(rig.executor._cycle.stats._ages_ms) == 5


def test_homing_progress_disappears_when_it_ends_otherwise(bench):
    rig = bench.Rig().ready()
    rig.drive(1.0, velocity=(0, 0.2, 0))
    rig.run(1.2)
    assert rig.executor.home().accepted
    rig.run(0.3)
    assert 'home' in rig.executor.snapshot().progress
    rig.executor.disarm()
    rig.run(0.5)
    assert rig.executor.snapshot().progress == ''
    assert rig.executor.snapshot().state is State.DISARMED
