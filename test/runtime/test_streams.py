"""Samples stay sorted and bounded; ages, rates and refusals are what the node reports."""

from hypothesis import given
from hypothesis import strategies as st

from spear_ros.core.reasons import Reason
from spear_ros.runtime.streams import NEVER_S, Stream, StreamLimits

MS = 1_000_000
T0 = 1_700_000_000_000 * MS


def stream(max_samples=100, history_s=1.0):
    limits = StreamLimits(
        max_age_s=0.1, clock_skew_s=1.0, history_s=history_s, max_samples=max_samples
    )
    return Stream('arm', '/joint_states', limits)


def test_age_is_the_worse_of_stamp_and_receipt():
    s = stream()
    assert s.age_s(T0) == NEVER_S
    s.add(T0 - 30 * MS, T0, 1)
    assert s.age_s(T0 + 10 * MS) == 0.04
    s.add(T0 + 50 * MS, T0 + 20 * MS, 2)  # a driver whose clock is ahead
    assert s.age_s(T0 + 60 * MS) == 0.04


def test_stamps_far_from_receipt_are_not_stored_and_explained():
    s = stream()
    assert not s.add(T0 - 1500 * MS, T0, 1)
    assert s.bad[0] == Reason.CLOCK_SKEW
    assert '-1.5 s' in s.problem(T0)
    assert not s.add(0, T0 + MS, 1)
    assert 'carries no stamp' in s.problem(T0)
    assert s.add(T0 + 2 * MS, T0 + 2 * MS, 1)
    assert s.problem(T0 + 2 * MS) == ''
    assert s.refused == 2


def test_the_rate_counts_two_seconds_and_survives_the_start():
    s = stream()
    for i in range(11):
        s.add(T0 + i * 20 * MS, T0 + i * 20 * MS, i)
    assert abs(s.rate_hz(T0 + 200 * MS) - 50) < 1e-6
    assert s.rate_hz(T0 + 5000 * MS) == 0.0


@given(st.lists(st.integers(-900, 900), min_size=1, max_size=60), st.integers(2, 20))
def test_samples_stay_sorted_unique_and_bounded_in_any_order(offsets, bound):
    s = stream(max_samples=bound, history_s=0.5)
    for offset in offsets:
        s.add(T0 + offset * MS, T0, offset)
    assert s.stamps == sorted(set(s.stamps))
    assert s.values == [(t - T0) // MS for t in s.stamps]
    assert len(s.stamps) <= bound
    assert s.stamps[-1] == T0 + max(offsets) * MS
    assert s.stamps[-1] - s.stamps[0] <= 500 * MS
