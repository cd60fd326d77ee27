"""The judge of the fault tests finds what it is there to find."""

import time
from dataclasses import replace

import numpy as np
import pytest
from _commands import CommandJudge, CommandLog, Sent

from spear_ros.core.geometry import matrix_to_quat
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot
from spear_ros.runtime.safety_limits import load_limits

ROBOT = get_robot('wx250s')
HOME = np.array(ROBOT.q_home_rad)


@pytest.fixture
def judge():
    return CommandJudge(ROBOT, load_limits(ROBOT))


def sent(k, shift=(0.0, 0.0, 0.0)):
    """Return the command of period ``k``."""
    T = forward(ROBOT, HOME)
    stamp = 10**9 + k * 40_000_000
    return Sent(
        received_s=1.0 + 0.04 * k,
        stamp_ns=stamp,
        sent_ns=stamp,
        p=T[:3, 3] + np.asarray(shift),
        q=matrix_to_quat(T[:3, :3]),
        joints=HOME,
    )


def test_standing_and_moving_within_limits_is_fine(judge):
    for k in range(5):
        judge.take(sent(k, shift=(0.0, 0.0, 0.01 * k)))
    assert judge.violations == []
    assert judge.judged == 5
    assert judge.top_speed_m_s == pytest.approx(0.25)


BAD = {
    'mm in': {'shift': (0.0, 0.0, 0.04)},
    'outside the workspace': {'shift': (0.0, 0.3, 0.0)},
    'rad in': {'q': [0.0, 1.0, 0.0, 0.0]},
    'waist': {'joints': HOME + 0.2 * np.eye(6)[0]},
    'beyond its limits': {'joints': HOME + 4.0 * np.eye(6)[0]},
    'not finite': {'p': np.full(3, np.nan)},
    'quaternion of norm': {'q': [0.5, 0.0, 0.0, 0.0]},
}


@pytest.mark.parametrize('words', BAD)
def test_whatever_leaves_the_envelope_is_found(judge, words):
    changes = dict(BAD[words])
    shift = changes.pop('shift', (0.0, 0.0, 0.0))
    first, second = sent(0), sent(1, shift=shift)
    for name, value in changes.items():
        second = replace(second, **{name: np.array(value)})
    judge.take(first)
    judge.take(second)
    assert any(words in text for text in judge.violations)


def test_after_arming_the_first_command_may_be_anywhere(judge):
    judge.take(sent(0))
    judge.take(sent(1))  # one that was still under way
    judge.restart()
    now = time.time_ns()
    judge.take(replace(sent(2, shift=(0.0, 0.0, 0.1)), sent_ns=now))
    assert judge.violations == []
    judge.take(replace(sent(3), sent_ns=now + 40_000_000))
    assert judge.violations != []


def test_lost_messages_are_no_violation_and_a_stopped_clock_is_one_period(judge):
    judge.take(sent(0))
    judge.take(sent(5, shift=(0.0, 0.0, 0.1)))
    assert judge.violations == []
    judge.take(replace(sent(6), stamp_ns=sent(5).stamp_ns))
    assert judge.violations != []


def test_still_needs_equal_commands_after_the_given_time():
    log = CommandLog(ROBOT, load_limits(ROBOT))
    for k in range(6):
        log._add(sent(k, shift=(0.0, 0.0, 0.001 * min(k, 3))))
    assert log.still(3, after_ns=0)
    assert not log.still(4, after_ns=0)
    assert not log.still(3, after_ns=sent(3).sent_ns)
    assert [s.sent_ns for s in log.sent_since(sent(4).sent_ns)] == [sent(5).sent_ns]
