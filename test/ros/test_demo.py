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
