"""Percentiles of command intervals and of the first command of each chunk."""

import pytest

from spear_ros.runtime.executor_stats import ExecutorStats

MS = 1_000_000


def test_nothing_yet_is_zero():
    assert ExecutorStats().intervals_ms() == (0.0, 0.0)
    assert ExecutorStats().first_ages_ms() == (0.0, 0.0)


def test_intervals_of_the_last_ten_seconds():
    stats = ExecutorStats()
    now = 0
    for k in range(3000):
        now += (30 if k < 1000 else 10) * MS
        stats.command(now)
    assert stats.intervals_ms() == pytest.approx((10.0, 10.0))
    assert stats.commands == 3000


def test_silence_is_not_an_interval():
    stats = ExecutorStats()
    stats.command(0)
    stats.silence()
    stats.command(10_000 * MS)
    assert stats.intervals_ms() == (0.0, 0.0)


def test_first_command_ages_keep_a_hundred_chunks():
    stats = ExecutorStats()
    for k in range(300):
        stats.first_command(1000 * MS, (900 if k < 150 else 850) * MS)
    assert stats.first_ages_ms() == pytest.approx((150.0, 150.0))
