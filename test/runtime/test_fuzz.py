"""A small run of ``benchmarks/fuzz_executor.py``: nothing unsafe passes, and the judge can see."""

from dataclasses import replace

import numpy as np
import pytest

from spear_ros.runtime import safety


def test_no_mutated_chunk_passes_the_checks_against_the_oracle(fuzz):
    result = fuzz.fuzz_checks(1000, seed=7)
    assert result['accepted_against_oracle'] == 0, result['examples']
    assert result['reasons']['ACCEPTED'] > 30
    assert len(result['reasons']) > 6


@pytest.mark.parametrize('robot', ['fr3', 'wx250s'])
def test_no_unsafe_command_under_storms(fuzz, robot):
    result = fuzz.fuzz_executor(80, 11, robot)
    assert result['unsafe'] == 0, result['examples']
    assert result['accepted'] > 10
    assert result['commands'] > 600


class TestTheJudgeHasEyes:
    """A fuzzer whose judge sees nothing proves nothing."""

    def standing(self, bench, fuzz):
        rig = bench.Rig().ready()
        judge = fuzz.Judge(rig)
        judge.look(rig.tick())
        judge.look(rig.tick())
        assert judge.unsafe == []
        return rig, judge, rig.tick()

    def shifted(self, command, metres):
        T = command.T_base_ee.copy()
        T[1, 3] += metres
        return replace(command, T_base_ee=T)

    def test_a_command_that_is_too_fast_or_moves_past_expiry(self, bench, fuzz):
        _, judge, command = self.standing(bench, fuzz)
        judge.look(self.shifted(command, 0.02))
        assert any('speed' in x for x in judge.unsafe)
        _, judge, command = self.standing(bench, fuzz)
        judge.look(self.shifted(command, 1e-5))
        assert any('expiry' in x for x in judge.unsafe)

    def test_a_command_outside_the_workspace_or_not_finite(self, bench, fuzz):
        _, judge, command = self.standing(bench, fuzz)
        judge.look(self.shifted(command, 3.0))
        assert any('workspace' in x for x in judge.unsafe)
        _, judge, command = self.standing(bench, fuzz)
        judge.look(replace(command, q_rad=np.full(7, np.nan)))
        assert any('finite' in x for x in judge.unsafe)

    def test_the_oracle_refuses_what_a_sleeping_gate_would_pass(self, fuzz, monkeypatch):
        monkeypatch.setattr(safety.SafetyGate, 'check_fields', lambda self, chunk, context: None)
        result = fuzz.fuzz_checks(200, seed=1)
        assert result['accepted_against_oracle'] > 100
