"""The table, row by row, and what the machine remembers."""

import pytest

from spear_ros.core.reasons import HARD_REASONS, SILENT_REASONS, SOFT_REASONS, Reason
from spear_ros.runtime.state_machine import (
    TABLE,
    Action,
    Event,
    Phase,
    State,
    StateMachine,
    event_of,
)

# Written out a second time on purpose: a change of the table must be meant.
ROWS = """
DISARMED  ARM          ARMED      ANCHOR
DISARMED  DISARM       DISARMED   DROP
DISARMED  STOP         FAULT      SILENCE
ARMED     ARM          ARMED      ANCHOR
ARMED     CHUNK        RUNNING    FOLLOW
ARMED     HOME         HOMING     GO_HOME
ARMED     DISARM       DISARMING  BRAKE
ARMED     SOFT         HOLD       BRAKE
ARMED     STOP         FAULT      BRAKE
ARMED     HARD         FAULT      BRAKE
ARMED     HARD_SILENT  FAULT      SILENCE
RUNNING   CHUNK        RUNNING    FOLLOW
RUNNING   DISARM       DISARMING  BRAKE
RUNNING   SOFT         HOLD       BRAKE
RUNNING   STOP         FAULT      BRAKE
RUNNING   HARD         FAULT      BRAKE
RUNNING   HARD_SILENT  FAULT      SILENCE
HOLD      CHUNK        RUNNING    FOLLOW
HOLD      WINDOW_OVER  LATCHED    NONE
HOLD      ARM          ARMED      ANCHOR
HOLD      HOME         HOMING     GO_HOME
HOLD      DISARM       DISARMING  BRAKE
HOLD      SOFT         HOLD       BRAKE
HOLD      STOP         FAULT      BRAKE
HOLD      HARD         FAULT      BRAKE
HOLD      HARD_SILENT  FAULT      SILENCE
LATCHED   ARM          ARMED      ANCHOR
LATCHED   HOME         HOMING     GO_HOME
LATCHED   DISARM       DISARMING  BRAKE
LATCHED   SOFT         LATCHED    BRAKE
LATCHED   STOP         FAULT      BRAKE
LATCHED   HARD         FAULT      BRAKE
LATCHED   HARD_SILENT  FAULT      SILENCE
HOMING    HOMED        ARMED      NONE
HOMING    DISARM       DISARMING  BRAKE
HOMING    SOFT         LATCHED    BRAKE
HOMING    STOP         FAULT      BRAKE
HOMING    HARD         FAULT      BRAKE
HOMING    HARD_SILENT  FAULT      SILENCE
DISARMING STANDSTILL   DISARMED   DROP
DISARMING DISARM       DISARMING  NONE
DISARMING STOP         FAULT      BRAKE
DISARMING HARD         FAULT      BRAKE
DISARMING HARD_SILENT  FAULT      SILENCE
FAULT     RESET        DISARMED   DROP
FAULT     STOP         FAULT      NONE
FAULT     HARD         FAULT      NONE
FAULT     HARD_SILENT  FAULT      SILENCE
"""
EXPECTED = {
    (Phase[a], Event[b]): (Phase[c], Action[d])
    for a, b, c, d in (line.split() for line in ROWS.strip().splitlines())
}


@pytest.mark.parametrize('phase', Phase, ids=lambda p: p.name)
@pytest.mark.parametrize('event', Event, ids=lambda e: e.name)
def test_every_pair(phase, event):
    machine = StateMachine()
    machine.phase = phase
    transition = machine.apply(event, 5, Reason.NONE, 'text')
    after, action = EXPECTED.get((phase, event), (phase, Action.NONE))
    assert (machine.phase, transition.action) == (after, action)
    assert transition.known == ((phase, event) in EXPECTED)
    assert transition.known == ((phase, event) in TABLE)


def test_nothing_but_reset_leaves_fault():
    assert {e for (p, e), (after, _) in TABLE.items() if p is Phase.FAULT and after is not p} == {
        Event.RESET
    }


def test_stop_is_accepted_everywhere_and_always_ends_in_fault():
    assert all(TABLE[phase, Event.STOP][0] is Phase.FAULT for phase in Phase)


def test_reset_never_sends_and_only_works_in_fault():
    rows = [key for key in TABLE if key[1] is Event.RESET]
    assert rows == [(Phase.FAULT, Event.RESET)]
    assert TABLE[rows[0]] == (Phase.DISARMED, Action.DROP)


def test_only_an_operators_request_leads_out_of_disarmed():
    ways = {e for (p, e), (after, _) in TABLE.items() if p is Phase.DISARMED and after is not p}
    assert ways == {Event.ARM, Event.STOP}


def test_a_silent_reason_silences_every_phase_that_sends():
    for phase in Phase:
        if phase is not Phase.DISARMED:
            assert TABLE[phase, Event.HARD_SILENT] == (Phase.FAULT, Action.SILENCE)


def test_phases_map_onto_the_states_of_the_message():
    assert {p.state for p in Phase} == set(State)
    assert Phase.LATCHED.state is State.HOLD
    assert Phase.DISARMING.state is State.HOLD
    assert Phase.DISARMED.state is State.DISARMED


@pytest.mark.parametrize('reason', sorted(HARD_REASONS | SOFT_REASONS))
def test_reasons_become_the_right_events(reason):
    event = event_of(reason)
    if reason in SOFT_REASONS:
        assert event is Event.SOFT
    else:
        assert event is (Event.HARD_SILENT if reason in SILENT_REASONS else Event.HARD)


class TestMemory:
    def test_the_first_reason_of_a_fault_stays(self):
        machine = StateMachine()
        machine.phase = Phase.RUNNING
        machine.apply(Event.HARD, 1, Reason.JOINTS_STALE, 'first')
        machine.apply(Event.HARD, 2, Reason.CONTROL_GAP, 'second')
        assert (machine.reason, machine.text) == (Reason.JOINTS_STALE, 'first')

    def test_a_hold_shows_its_newest_reason_and_keeps_its_clock(self):
        machine = StateMachine()
        machine.phase = Phase.RUNNING
        machine.apply(Event.SOFT, 10, Reason.CHUNK_LATE, 'late')
        machine.apply(Event.SOFT, 20, Reason.POLICY_SILENT, 'silent')
        assert machine.reason is Reason.POLICY_SILENT
        assert machine.since_ns == 10

    def test_a_repeated_reason_keeps_its_first_sentence(self):
        """Sentences carry running figures; a listener must not see a change every 10 ms."""
        machine = StateMachine()
        machine.phase = Phase.RUNNING
        machine.apply(Event.SOFT, 10, Reason.POLICY_SILENT, '310 ms')
        machine.apply(Event.SOFT, 20, Reason.POLICY_SILENT, '320 ms')
        assert machine.text == '310 ms'

    def test_an_unknown_pair_changes_nothing(self):
        machine = StateMachine()
        before = (machine.phase, machine.reason, machine.text, machine.since_ns)
        assert not machine.apply(Event.HOME, 99, Reason.OPERATOR, 'x').known
        assert (machine.phase, machine.reason, machine.text, machine.since_ns) == before
