"""Gripper: hysteresis, dwell, and no command before a chunk decides."""

from itertools import pairwise

import pytest

from spear_ros.core.errors import UserError
from spear_ros.runtime.gripper_latch import GripperLatch, GripperSettings

S = 1_000_000_000


def test_nothing_is_commanded_until_a_clear_value_comes():
    latch = GripperLatch(GripperSettings())
    assert latch.update(0.5, 0) is None
    assert latch.update(0.55, S) is None
    assert latch.update(0.7, 2 * S) == 1.0


def test_values_between_the_thresholds_change_nothing():
    latch = GripperLatch(GripperSettings())
    latch.update(0.0, 0)
    assert latch.update(0.59, 5 * S) == 0.0
    assert latch.update(0.61, 6 * S) == 1.0
    assert latch.update(0.41, 9 * S) == 1.0


def test_a_flickering_policy_does_not_make_it_chatter():
    latch = GripperLatch(GripperSettings(dwell_s=0.6))
    values = [latch.update(k % 2, k * S // 5) for k in range(20)]
    changes = sum(a != b for a, b in pairwise(values))
    assert changes <= 20 / 5 / 0.6
    assert changes >= 2


def test_force_and_reset():
    latch = GripperLatch(GripperSettings())
    latch.force(1.0, 0)
    assert latch.update(0.0, S // 10) == 1.0  # dwell
    assert latch.update(0.0, S) == 0.0
    latch.reset()
    assert latch.value is None


def test_thresholds_must_be_ordered():
    with pytest.raises(UserError, match='ordered'):
        GripperSettings(close_below=0.6, open_above=0.4)
    with pytest.raises(UserError, match='dwell_s = 9'):
        GripperSettings(dwell_s=9)
