"""The alarm on slower inference: raised on a lasting change, ended with it, silent on noise."""

import numpy as np
import pytest

from spear_ros.runtime.drift import DriftAlarm, DriftSettings


class Clock:
    def __init__(self):
        self.now_ns = 0

    def __call__(self):
        return self.now_ns


@pytest.fixture
def clock():
    return Clock()


def feed(alarm, clock, times, period_s=0.2):
    for ms in times:
        clock.now_ns += round(period_s * 1e9)
        alarm.add(ms)


def started(clock, ms=10.0):
    alarm = DriftAlarm(clock)
    feed(alarm, clock, [500.0] * 5 + [ms] * 100)  # cold times are no reference
    return alarm


def test_noise_about_the_reference_is_no_drift(clock):
    rng = np.random.default_rng(0)
    alarm = DriftAlarm(clock)
    for ms in 10 + rng.exponential(1.0, 2000):
        feed(alarm, clock, [ms])
        assert not alarm.raised
    assert alarm.text == ''


def test_a_lasting_slowdown_is_told_with_both_figures_and_ends_with_it(clock):
    alarm = started(clock)
    feed(alarm, clock, [20.0] * 49)
    assert not alarm.raised  # too few to judge
    feed(alarm, clock, [20.0] * 100)
    assert alarm.raised
    assert 'p99 20.0 ms over the last 30 s, 10.0 ms after the start' in alarm.text
    feed(alarm, clock, [10.0] * 149)
    assert alarm.raised  # slow times are still in the window
    feed(alarm, clock, [10.0] * 5)
    assert not alarm.raised


def test_it_does_not_flicker_between_the_two_limits(clock):
    alarm = started(clock, 100.0)
    feed(alarm, clock, [140.0] * 200)
    assert not alarm.raised
    feed(alarm, clock, [160.0] * 200)
    assert alarm.raised
    feed(alarm, clock, [140.0] * 200)
    assert alarm.raised
    feed(alarm, clock, [115.0] * 200)
    assert not alarm.raised


def test_a_few_milliseconds_are_no_alarm_however_large_their_share(clock):
    alarm = started(clock, 2.0)
    feed(alarm, clock, [5.0] * 300)
    assert not alarm.raised


def test_a_clock_that_goes_back_starts_the_window_again(clock):
    alarm = started(clock)
    feed(alarm, clock, [20.0] * 40)
    clock.now_ns = 0
    feed(alarm, clock, [10.0] * 60)
    assert not alarm.raised


def test_rare_chunks_are_not_judged(clock):
    alarm = DriftAlarm(clock, DriftSettings(window_s=10.0))
    feed(alarm, clock, [10.0] * 200, period_s=0.2)
    feed(alarm, clock, [50.0] * 200, period_s=1.0)  # ten in a window
    assert not alarm.raised
