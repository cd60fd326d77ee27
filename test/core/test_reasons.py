"""Reason codes: soft and hard are disjoint, and the numbers on the wire never move."""

from spear_ros.core.reasons import HARD_REASONS, SILENT_REASONS, SOFT_REASONS, Reason


def test_soft_hard_and_neutral_reasons_partition_the_enumeration():
    neutral = {Reason.NONE, Reason.REFUSED_STATE, Reason.REFUSED_PREFLIGHT, Reason.OPERATOR}
    assert not HARD_REASONS & SOFT_REASONS
    assert HARD_REASONS | SOFT_REASONS | neutral == set(Reason)
    assert SILENT_REASONS < HARD_REASONS


def test_numbers_on_the_wire_are_frozen():
    frozen = {'CHUNK_LATE': 2, 'POLICY_SILENT': 13, 'STOP_SERVICE': 32, 'CONTROL_GAP': 43}
    assert {name: Reason[name].value for name in frozen} == frozen
    assert max(Reason) < 256  # uint8 in the messages
