"""Gripper logic: act on change, tell a jam from a grasp, drop the holding PWM."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_ros.ros.drivers.grippers import BinaryTarget, JamWatch, PwmGripper


@given(st.lists(st.floats(0, 1), max_size=50))
def test_target_changes_as_often_as_the_binary_value_does(openings):
    target = BinaryTarget()
    changes = sum(target.update(x) for x in openings)
    binary = [x > 0.5 for x in openings]
    assert changes == sum(a != b for a, b in zip(binary, [None, *binary], strict=False))


def test_forgotten_target_is_sent_again():
    target = BinaryTarget()
    assert target.update(0.0)
    assert not target.update(0.1)
    target.forget()
    assert target.update(0.0)


@pytest.mark.parametrize(
    ('wanted_open', 'opening', 'jammed'),
    [
        (True, 1.0, False),
        (True, 0.3, True),
        (False, 0.0, False),
        (False, 0.6, False),  # holds an object
        (False, 1.0, True),  # never left
        (None, 0.3, False),
        (True, None, False),  # staleness is judged elsewhere
    ],
)
def test_jam_is_told_after_the_time_limit(wanted_open, opening, jammed):
    watch = JamWatch(limit_s=4.0)
    assert watch.update(wanted_open, opening, 100.0) == ''
    assert watch.update(wanted_open, opening, 103.9) == ''
    assert bool(watch.update(wanted_open, opening, 104.1)) is jammed


def test_fingers_that_rest_on_a_wide_object_are_no_jam():
    watch = JamWatch(limit_s=4.0)
    watch.update(False, 0.95, 0.0)
    assert watch.update(False, 0.88, 5.0) == ''
    watch.update(None, 0.88, 6.0)
    watch.update(False, 0.6, 7.0)  # told to close again while it holds
    assert watch.update(False, 0.6, 12.0) == ''


def test_new_target_restarts_the_jam_watch():
    watch = JamWatch(limit_s=4.0)
    watch.update(True, 0.0, 0.0)
    watch.update(False, 0.0, 3.0)
    watch.update(True, 0.0, 3.5)
    assert watch.update(True, 0.0, 7.0) == ''
    assert watch.update(True, 0.0, 7.6) != ''


def test_pwm_is_dropped_at_the_limit():
    gripper = PwmGripper(250.0, 0.0, 1.5)
    assert gripper.update(True, 0.5, 0.0) == 250.0
    assert gripper.update(True, 0.9, 0.1) is None
    assert gripper.update(True, 0.99, 0.2) == 0.0
    assert gripper.update(True, 0.99, 0.3) is None


def test_holding_pwm_replaces_closing_on_an_object():
    gripper = PwmGripper(250.0, 60.0, 1.5)
    assert gripper.update(False, 1.0, 0.0) == -250.0
    assert gripper.update(False, 0.5, 1.4) is None
    assert gripper.update(False, 0.5, 1.6) == -60.0
    assert gripper.update(True, 0.5, 2.0) == 250.0


def test_nothing_is_sent_before_the_first_target():
    gripper = PwmGripper(250.0, 0.0, 1.5)
    assert gripper.update(None, 0.5, 0.0) is None


def test_opening_ends_when_the_target_is_forgotten():
    gripper = PwmGripper(250.0, 0.0, 1.5)
    gripper.update(True, 0.5, 0.0)
    assert gripper.update(None, 0.5, 0.1) == 0.0


def test_closing_comes_to_its_end_when_the_target_is_forgotten():
    gripper = PwmGripper(250.0, 60.0, 1.5)
    assert gripper.update(False, 1.0, 0.0) == -250.0
    assert gripper.update(None, 0.5, 0.5) is None
    assert gripper.update(None, 0.5, 1.6) == -60.0  # 250 for ever would overload the motor
    assert gripper.update(None, 0.5, 9.0) is None


def test_opening_that_was_broken_off_begins_again():
    gripper = PwmGripper(250.0, 0.0, 1.5)
    gripper.update(True, 0.5, 0.0)
    gripper.update(None, 0.5, 0.1)
    assert gripper.update(True, 0.5, 5.0) == 250.0
