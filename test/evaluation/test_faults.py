"""Each fault does to the stream what it says, and nothing to the others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_ros.core.config import load_yaml
from spear_ros.core.errors import UserError
from spear_ros.data.bags import BagSample
from spear_ros.evaluation.faults import Fault, FaultInjector, FaultPlan

T0 = 1_700_000_000_000_000_000
MS = 1_000_000


def sample(stream, ms, value=None):
    at = T0 + ms * MS
    value = np.full(3, float(ms)) if value is None else value
    return BagSample(stream=stream, stamp_ns=at, received_ns=at, value=value)


def recording():
    return [sample(s, ms) for ms in range(0, 1000, 100) for s in ('external', 'arm')]


def run(*faults, samples=None):
    injector = FaultInjector(FaultPlan(faults=faults), T0)
    out = list(injector.apply(samples or recording()))
    return out, injector.hits


def stamps(samples, stream):
    return [(s.stamp_ns - T0) // MS for s in samples if s.stream == stream]


def test_without_faults_nothing_changes():
    samples = recording()
    out, hits = run(samples=samples)
    assert [id(s) for s in out] == [id(s) for s in samples]
    assert not hits


def test_drop_withholds_one_stream_in_its_window():
    out, hits = run(Fault(stream='external', kind='drop', from_s=0.3, to_s=0.6))
    assert stamps(out, 'external') == [0, 100, 200, 600, 700, 800, 900]
    assert stamps(out, 'arm') == list(range(0, 1000, 100))
    assert hits == {'external drop': 3}


def test_freeze_repeats_the_content_with_advancing_stamps():
    out, _ = run(Fault(stream='external', kind='freeze', from_s=0.3, to_s=0.6))
    values = [s.value[0] for s in out if s.stream == 'external']
    assert values == [0, 100, 200, 200, 200, 200, 600, 700, 800, 900]
    assert stamps(out, 'external') == list(range(0, 1000, 100))


def test_delay_changes_the_receipt_and_keeps_the_stamp():
    out, _ = run(Fault(stream='arm', kind='delay', from_s=0.2, to_s=0.4, delay_s=0.25))
    received = [s.received_ns for s in out]
    assert received == sorted(received)
    late = [(s.stamp_ns - T0) // MS for s in out if s.received_ns != s.stamp_ns]
    assert late == [200, 300]
    assert len(out) == 20


def test_reorder_swaps_neighbours_and_loses_none():
    out, _ = run(Fault(stream='external', kind='reorder', from_s=0.2, to_s=0.6))
    assert stamps(out, 'external') == [0, 100, 300, 200, 500, 400, 600, 700, 800, 900]
    odd, _ = run(Fault(stream='external', kind='reorder', from_s=0.9))
    assert stamps(odd, 'external') == list(range(0, 1000, 100))


def test_nan_replaces_the_numbers():
    out, _ = run(Fault(stream='arm', kind='nan', from_s=0.5, to_s=0.6))
    bad = [np.isnan(s.value).all() for s in out if s.stream == 'arm']
    assert bad == [False] * 5 + [True] + [False] * 4
    out, _ = run(Fault(stream='gripper', kind='nan'), samples=[sample('gripper', 0, 0.5)])
    assert np.isnan(out[0].value)


fault_lists = st.lists(
    st.builds(
        lambda stream, kind, start, length, delay: Fault(
            stream=stream,
            kind=kind,
            from_s=start,
            to_s=start + length,
            delay_s=delay if kind == 'delay' else 0.0,
        ),
        st.sampled_from(['external', 'arm']),
        st.sampled_from(['freeze', 'delay', 'reorder']),
        st.floats(0, 1),
        st.floats(0.05, 1),
        st.floats(0.01, 0.5),
    ),
    max_size=4,
)


@given(fault_lists)
def test_whatever_goes_wrong_samples_stay_in_order_of_receipt_and_none_is_lost(faults):
    out, _ = run(*faults)
    received = [s.received_ns for s in out]
    assert received == sorted(received)
    for stream in ('external', 'arm'):
        assert sorted(stamps(out, stream)) == list(range(0, 1000, 100))


def test_the_plan_is_read_from_yaml(tmp_path):
    path = tmp_path / 'faults.yaml'
    path.write_text('faults:\n  - {stream: external, kind: freeze, from_s: 2, to_s: 4}\n')
    assert load_yaml(path, FaultPlan).faults[0].to_s == 4.0


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        ({'kind': 'nan', 'stream': 'external'}, 'arm and gripper'),
        ({'kind': 'delay', 'stream': 'arm'}, 'delay_s'),
        ({'kind': 'drop', 'stream': 'arm', 'delay_s': 1.0}, 'delay_s'),
        ({'kind': 'drop', 'stream': 'arm', 'from_s': 3.0, 'to_s': 2.0}, 'from_s'),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        Fault(**fields)
