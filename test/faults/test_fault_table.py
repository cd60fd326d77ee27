"""The table itself: doc/faults.md says what the tests check, and no row is without a test."""

from pathlib import Path

import pytest
from _fault_table import DOCUMENT, FAULTS, TOLERATED, document

from spear_ros.core.reasons import HARD_REASONS, SOFT_REASONS
from spear_ros.ros.sim_drivers.faults import FAULTS as SWITCHES


def test_document_is_the_table():
    assert DOCUMENT.read_text(encoding='utf-8') == document(), 'run benchmarks/_fault_table.py'


def test_every_row_is_thrown_by_its_steps_or_by_a_scenario():
    text = (Path(__file__).parent / 'test_fault_matrix.py').read_text()
    homeless = [f.id for f in FAULTS.values() if not f.inject and f'scenario_{f.id}(' not in text]
    assert homeless == []


@pytest.mark.parametrize('fault', FAULTS.values(), ids=list(FAULTS))
def test_states_and_reasons_agree(fault):
    kind = {'HOLD': SOFT_REASONS, 'FAULT': HARD_REASONS}.get(fault.state, frozenset())
    assert set(fault.reasons) <= kind
    assert bool(fault.reasons) == (fault.state in ('HOLD', 'FAULT'))
    assert (fault.then == TOLERATED) == (fault.state == 'RUNNING')
    assert fault.mend


def test_every_switch_of_the_simulated_drivers_is_used():
    used = {step.split()[1] for f in FAULTS.values() for step in f.inject if step[:4] == 'sim '}
    assert set(SWITCHES) - used == set()
