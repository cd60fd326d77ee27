from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy')

from spear_ros.core.reasons import Reason
from spear_ros.ros.demo import DemoRun, Episode, _Demo
from spear_ros.runtime.effort_guard import EffortGuard


def judged(*changes, dead=None):
    demo = _Demo.__new__(_Demo)
    demo._client = SimpleNamespace(history=[SimpleNamespace(**c) for c in changes])
    demo._group = SimpleNamespace(dead=lambda: dead or {})
    episode = Episode(policy='p', seed=0, instruction='touch the red cube', outcome='not reached')
    demo._judge(DemoRun(policy='spear1', label='p'), episode, 0)
    return episode


def guard_sentence():
    guard = EffortGuard((1000.0,), 0.0)
    guard.update(('elbow',), (1500.0,), 1.0)
    return guard.tripped


def test_a_guard_that_stops_a_pressing_policy_is_no_fault_of_the_system():
    text = guard_sentence()
    episode = judged({'state': 'FAULT', 'reason': Reason.MOTOR_ERROR, 'text': text})
    assert episode.problems == []
    assert episode.outcome == 'guard stopped'
    assert 'elbow' in episode.notes[0]
    assert episode.holds == ['FAULT MOTOR_ERROR']


@pytest.mark.parametrize('reason', [Reason.CHUNK_STEP_LIMIT, Reason.CHUNK_WORKSPACE])
def test_chunks_that_are_refused_because_they_go_too_far_are_no_fault_of_the_system(reason):
    text = '3 chunks in a row rejected, the last because step 4 moves 0.0537 m'
    episode = judged(
        {'state': 'HOLD', 'reason': reason, 'text': 'one'},
        {'state': 'FAULT', 'reason': Reason.THREE_REJECTS, 'text': text},
    )
    assert episode.problems == []
    assert episode.outcome == 'gate refused'
    assert episode.notes == [f'touch the red cube: {text}']


@pytest.mark.parametrize('before', [Reason.CHUNK_NOT_FINITE, Reason.CHUNK_OLD, None])
def test_three_rejects_for_any_other_reason_are_a_problem(before):
    holds = [{'state': 'HOLD', 'reason': before, 'text': 'one'}] if before else []
    fault = {'state': 'FAULT', 'reason': Reason.THREE_REJECTS, 'text': '3 chunks in a row rejected'}
    assert len(judged(*holds, fault).problems) == 1


@pytest.mark.parametrize(
    ('reason', 'text'),
    [(Reason.MOTOR_ERROR, 'shoulder reports overload'), (Reason.GRIPPER_FAULT, 'did not open'),
     (Reason.JOINTS_STALE, 'no joints')],
)  # fmt: skip
def test_every_other_fault_is_a_problem(reason, text):
    episode = judged({'state': 'FAULT', 'reason': reason, 'text': text})
    assert len(episode.problems) == 1
    assert reason.name in episode.problems[0]


def test_a_dead_process_is_a_problem_and_a_hold_alone_is_not():
    assert judged({'state': 'HOLD', 'reason': Reason.CHUNK_LATE, 'text': 'late'}).problems == []
    assert judged(dead={'policy_node': 9}).problems == ['policy_node ended with code 9']
