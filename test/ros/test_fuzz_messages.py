"""A small run of ``benchmarks/fuzz_messages.py``, and that its fuzzer and its judge are awake."""

import importlib
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')
pytest.importorskip('spear_msgs', reason='the interfaces are not built')
pytest.importorskip('interbotix_xs_msgs', reason='the driver subset is not built')

from sensor_msgs.msg import CompressedImage, Image, JointState
from spear_msgs.msg import ActionChunk, PolicyStatus

BENCHMARKS = Path(__file__).resolve().parents[2] / 'benchmarks'


@pytest.fixture(scope='module')
def fuzz():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module('fuzz_messages')
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize('kind', [JointState, Image, CompressedImage, ActionChunk, PolicyStatus])
def test_every_change_is_a_message_that_a_wire_can_carry(fuzz, kind):
    rng = np.random.default_rng(0)
    message = kind()
    changed = [fuzz.mutated(rng, message) for _ in range(200)]
    assert all(type(m) is kind for m in changed)
    assert sum(m != message for m in changed) > 20
    assert message == kind()


@pytest.mark.parametrize('robot', ['fr3', 'wx250s'])
def test_no_message_crashes_the_executor_or_lets_it_leave_its_limits(fuzz, robot):
    result = fuzz.fuzz_executor_messages(240, 3, robot)
    assert (result['crashes'], result['unsafe']) == (0, 0), result
    assert result['armed'] >= result['rounds'] - 2
    assert result['commands'] > 300
    assert len(result['ends']) > 1


@pytest.mark.parametrize('robot', ['fr3', 'wx250s'])
def test_no_message_crashes_the_policys_inputs(fuzz, robot):
    result = fuzz.fuzz_policy_messages(300, 4, robot)
    assert result['crashes'] == 0, result['crash_examples']
    assert Counter(result['results'])['observation'] > 50


def test_an_exception_in_a_callback_is_counted_as_a_crash(fuzz, monkeypatch):
    monkeypatch.setattr(fuzz, 'mutated', lambda rng, message: object())
    assert fuzz.fuzz_executor_messages(40, 0, 'fr3')['crashes'] == 40
