"""Every fault of ``benchmarks/_fault_table.py`` on running systems, over DDS, one after another.

Each test brings the robot to RUNNING as an operator would, throws one fault, and asserts where the
executor ends, why, what it says, that the commands after detection are constant (or that there are
none), that no command at all left the hard limits, and how the robot is got going again. On a
machine that is busy with other things another fault may come first; then the test tries again.
"""

import re
import resource
import signal
import threading
import time

import numpy as np
import pytest
from _fault_table import BOTH, FAULTS, RECOVER, RESUMES, TOLERATED

from spear_ros.core.errors import UserError
from spear_ros.core.reasons import Reason

pytestmark = pytest.mark.ros

ATTEMPTS = 3
SIMULATED_TIME = ('clock_back', 'clock_leap')
# These end processes: last, because discovery remembers the dead for a while.
LAST = ('driver_killed', 'executor_killed')
# The fall-back of the Franka differs in where commands go, and in who holds the last target.
TRAJECTORY = (
    'chunk_huge', 'joints_freeze', 'reflex', 'controller_inactive', 'qos_mismatch',
    'second_publisher', 'policy_stopped', 'executor_stopped', 'stop_service', 'driver_killed',
    'executor_killed',
)  # fmt: skip
TIMING = (
    Reason.CONTROL_GAP, Reason.JOINTS_STALE, Reason.CAMERA_STALE, Reason.POLICY_SILENT,
    Reason.CHUNK_LATE, Reason.CHUNK_OLD, Reason.GRIPPER_STALE, Reason.DRIVER_LOST,
    Reason.THREE_REJECTS, Reason.CHUNK_ANCHOR,
)  # fmt: skip


def rows():
    ordinary = [f for f in FAULTS if f not in SIMULATED_TIME + LAST]
    for robot in BOTH:
        for name in (*ordinary, *LAST, *SIMULATED_TIME):
            if robot in FAULTS[name].robots:
                yield pytest.param(robot, FAULTS[name], id=f'{robot}-{name}')
    for name in TRAJECTORY:
        yield pytest.param('franka_trajectory', FAULTS[name], id=f'franka_trajectory-{name}')


@pytest.mark.parametrize(('robot', 'fault'), list(rows()))
def test_fault(benches, robot, fault):
    from _fault_bench import MaskedError

    bench = benches.get(robot, simulated_time=fault.id in SIMULATED_TIME)
    scenario = globals().get(f'scenario_{fault.id}', scenario_of_the_table)
    masks = []
    for _ in range(ATTEMPTS):
        try:
            bench.run()
            scenario(bench, fault)
            break
        except (MaskedError, UserError) as error:
            masks.append(f'{type(error).__name__}: {error}')
        finally:
            assert bench.log.judge.violations == []
    else:
        pytest.fail('; '.join(masks))
    assert bench.log.judge.judged > 0


def test_home_out_of_a_hold_leaves_the_task_behind(benches):
    bench = benches.get('franka_trajectory')  # the last of the table: it still runs
    bench.run()
    bench.inject(('policy mute',))
    bench.operator.wait_for_state('HOLD', timeout_s=10)
    bench.insist('home')
    bench.heal()
    bench.until(lambda: bench.changes[-1].state == 'ARMED', 'ARMED', 30)
    first = len(bench.changes)
    time.sleep(2.0)  # ten chunks of a policy that went on
    assert bench.changes[first:] == []
    assert bench.operator.policy_status.instruction_id == ''
    bench.instruct()
    bench.operator.wait_for_state('RUNNING', timeout_s=10)
    assert bench.log.judge.violations == []


def scenario_of_the_table(bench, fault):
    """Throw the fault, check where it leads, take the cause away, check how it goes on."""
    first = len(bench.changes)
    bench.inject(fault.inject)
    if fault.then == TOLERATED:
        bench.goes_on(first)
        bench.heal()
        return
    change = bench.outcome(fault, first)
    if fault.id == 'chunk_nan_once':  # the next chunk is followed before anything stands still
        assert (fault.says in change.text, change.last_reject) == (True, fault.rejects)
    else:
        check_hold(bench, fault, change)
    bench.heal()
    go_on(bench, fault)


def check_hold(bench, fault, change):
    assert fault.says in change.text
    if fault.rejects:
        assert change.last_reject == fault.rejects
    # What resumes by itself has two seconds for it.
    assert bench.held(fault, change, 0.12 if fault.then == RESUMES else 0.25) == []
    if fault.state == 'FAULT':
        assert not bench.operator.trigger('arm')[0]  # latched


def go_on(bench, fault):
    if fault.then == RESUMES:
        bench.resumes()
    elif fault.then == RECOVER:
        bench.recover()
        bench.insist('reset')
        bench.operator.wait_for_state('DISARMED')
    elif fault.state == 'FAULT':
        reset_moves_nothing(bench)


def reset_moves_nothing(bench):
    bench.insist('reset')
    bench.until(lambda: bench.changes[-1].state == 'DISARMED', 'DISARMED')
    time.sleep(0.1)
    assert bench.sent_after(bench.changes[-1]) == 0


# -------------------------------------------------------------------------- scenarios of their own


def scenario_policy_killed(bench, fault):
    """A new policy process is not followed until arm has pinned its session."""
    first = len(bench.changes)
    bench.inject(('kill policy_node',))
    change = bench.outcome(fault, first)
    check_hold(bench, fault, change)
    bench.heal()
    bench.instruct()
    accepted = bench.operator.executor_status.chunks_accepted
    rejected = bench.operator.executor_status.chunks_rejected
    bench.until(
        lambda: bench.operator.executor_status.chunks_rejected > rejected, 'a rejected chunk'
    )
    assert bench.operator.executor_status.last_reject_reason == Reason.CHUNK_IDENTITY
    assert bench.operator.executor_status.chunks_accepted == accepted
    assert bench.state in ('HOLD', 'FAULT')
    bench.run()


def scenario_executor_stopped(bench, fault):
    """The first command after CONT stands where the last one before it stood."""
    first = len(bench.changes)
    before = bench.last_command()
    bench.processes.send_signal('executor_node', signal.SIGSTOP)
    time.sleep(0.6)
    before = bench.last_command() if bench.log.entries else before
    woken = time.monotonic()
    bench.processes.send_signal('executor_node', signal.SIGCONT)
    change = bench.outcome(fault, first)
    after = [s for s in bench.log.since(woken) if s.sent_ns > before.sent_ns]
    # What was under way may still be braked, within one period at the speed of before.
    assert np.linalg.norm(after[0].p - before.p) < 0.005
    check_hold(bench, fault, change)
    reset_moves_nothing(bench)


def scenario_executor_killed(bench, fault):
    """The robot stands at its last target; a new executor starts disarmed and can be armed."""
    last = bench.last_command()
    bench.inject(('kill executor_node',))
    time.sleep(0.7)
    count, q = bench.log.count, bench.q
    time.sleep(0.5)
    assert bench.log.count == count
    assert abs(bench.q - q).max() < 0.02  # it stands
    assert np.linalg.norm(bench.last_command().p - last.p) < 0.1
    bench.heal()
    bench.operator.wait_for_state('DISARMED')
    assert bench.log.count == count  # a new process sends nothing by itself
    bench.run()


def scenario_service_spam(bench, fault):
    """Calls that are refused while RUNNING: all answered, none has an effect."""
    first = len(bench.changes)
    answers = []

    def spam(name):
        answers.extend((name, *bench.operator.trigger(name)) for _ in range(40))

    threads = [
        threading.Thread(target=spam, args=(name,)) for name in ('arm', 'home', 'reset', 'recover')
    ]
    for thread in threads:
        thread.start()
    bench.goes_on(first)
    for thread in threads:
        thread.join(30.0)
    assert len(answers) == 160
    # reset and recover are accepted in FAULT only, arm and home never while it runs
    if [c for c in bench.changes[first:] if c.state != 'RUNNING']:
        bench.goes_on(first)
    assert [a for a in answers if a[1] or not a[2]] == []


def scenario_instruction_change(bench, fault):
    """The policy has no chunk of the new instruction yet: the old one ends within a step."""
    first = len(bench.changes)
    old = bench.operator.executor_status.instruction_id
    bench.inject(('policy mute',))
    new = bench.instruct()
    asked_ns = time.time_ns()
    change = bench.outcome(fault, first)
    # One step, and what a loaded machine needs to say so.
    assert (change.sent_ns - asked_ns) * 1e-9 < 0.2 + 0.4
    check_hold(bench, fault, change)
    bench.heal()
    bench.resumes()
    bench.until(
        lambda: bench.operator.executor_status.instruction_id == new, 'the new instruction', 5
    )
    assert new != old


def scenario_cpu_hog(bench, fault):
    """Without real-time priority a timing limit may be hit; nothing else, and nothing unsafe."""
    from _fault_bench import cpu_hog

    first = len(bench.changes)
    with cpu_hog():
        begin = bench.log.count
        bench.until(
            lambda: bench.log.count > begin + 100 or bench.state == 'FAULT', '100 commands', 30
        )
    stops = [c for c in bench.changes[first:] if c.state in ('HOLD', 'FAULT')]
    # Time limits by other names, as a starved policy says them: what it hears of the arm is old,
    # and a picture that took a second looks like another clock's.
    late = re.compile(r'\d ms (old|apart|before|after)|no sample near|stamped -\d')
    others = [
        (c.reason.name, c.text)
        for c in stops
        if c.reason not in TIMING
        and not (c.reason in (Reason.POLICY_NOT_READY, Reason.CLOCK_SKEW) and late.search(c.text))
    ]
    assert not others
    bench.run()


def scenario_full_disk(bench, fault):
    """Only the recorder stops, and says so; the robot goes on."""
    from diagnostic_msgs.msg import DiagnosticArray

    from spear_ros.ros.bringup import BringupOptions, processes

    said = []

    def on_diagnostics(message):
        said.extend(s.message for s in message.status if 'recorder' in s.name)

    subscription = bench.peer.node.create_subscription(
        DiagnosticArray, '/diagnostics', on_diagnostics, 10
    )
    folder = bench.folder / f'recordings_{time.monotonic_ns()}'
    options = BringupOptions(robot=bench.robot, sim=True, record=str(folder / 'run'))
    spec = next(s for s in processes(options) if s.name == 'recorder_node')
    bench.processes.start_one(spec)
    try:
        bench.until(lambda: list(folder.glob('run/*.mcap')), 'a bag', 20)
        size = max(p.stat().st_size for p in folder.glob('run/*.mcap'))
        limit = size + 500_000
        resource.prlimit(bench.processes.pid('recorder_node'), resource.RLIMIT_FSIZE, (limit,) * 2)
        bench.until(
            lambda: any('stopped' in text for text in said), f'a complaint: {said[-1:]}', 20
        )
        bench.run()
        bench.goes_on(len(bench.changes))
    finally:
        bench.processes.stop(['recorder_node'])
        bench.peer.node.destroy_subscription(subscription)


def scenario_clock_back(bench, fault):
    leap(bench, fault, -5.0)


def scenario_clock_leap(bench, fault):
    leap(bench, fault, 5.0)


def leap(bench, fault, seconds):
    first = len(bench.changes)
    bench.clock.offset_s += seconds
    change = bench.outcome(fault, first)
    check_hold(bench, fault, change)
    reset_moves_nothing(bench)
