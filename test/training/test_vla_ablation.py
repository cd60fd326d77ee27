"""benchmarks/vla_ablation.py at debug size: one run a file, taken up where it was, one table."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def ablation(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module('vla_ablation')
    sys.modules.pop('vla_ablation', None)


@pytest.fixture
def call(ablation, monkeypatch, tmp_path, shards):
    def run(*more):
        command = ['x', '--out', str(tmp_path / 'out'), '--demonstrations', shards[1],
                   '--recipe', 'spear1_debug', '--minutes', '0.01', '--families', 'touch',
                   '--limit', '1', '--seeds', '0', *more, '--', 'batch_size=4',
                   'logging.every_steps=50', 'saving.every_steps=50']  # fmt: skip
        monkeypatch.setattr(sys, 'argv', command)
        return ablation.main()

    return run


@pytest.mark.slow
def test_runs_are_done_one_by_one_and_summed_up(call, ablation, monkeypatch, tmp_path, capsys):
    results, runs = tmp_path / 'out' / 'results', tmp_path / 'out' / 'runs'
    roll_out = ablation.rolled_out

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation, 'rolled_out', killed)
    with pytest.raises(KeyboardInterrupt):
        call('--episodes', '1', '--arms', 'base')
    plan = json.loads((tmp_path / 'out' / 'plan.json').read_text())
    assert 2 <= plan['steps'] < 200
    curve = (runs / 'base-0' / 'metrics.jsonl').read_text()
    assert not list(results.glob('*.json'))

    # Taken up: what was trained is not trained again.
    monkeypatch.setattr(ablation, 'rolled_out', roll_out)
    assert call('--episodes', '1', '--arms', 'base') == 0
    trained = [t for t in (runs / 'base-0' / 'metrics.jsonl').read_text().splitlines()
               if '"train"' in t]  # fmt: skip
    assert trained == [t for t in curve.splitlines() if '"train"' in t]
    first = (results / 'base-0.json').read_bytes()

    # Another arm later: the first is left as it is.
    capsys.readouterr()
    assert call('--episodes', '1', '--arms', 'base,moge_absent') == 0
    assert (results / 'base-0.json').read_bytes() == first
    said = capsys.readouterr().out
    table = (tmp_path / 'out' / 'table.md').read_text()
    assert table in said
    assert '| **Table 1, 3D** |' in table
    last = json.loads(said.splitlines()[-1])
    assert {(r['arm'], r['steps']) for r in last['results']} == {
        ('base', plan['steps']),
        ('moge_absent', plan['steps']),
    }
    assert last['results'][0]['families']['touch']['episodes'] == 1
    assert not (runs / 'base-0' / 'checkpoints').exists()

    # One folder is one experiment.
    assert call('--episodes', '2', '--arms', 'base') == 2
    assert 'episodes is 1 there and 2 now' in capsys.readouterr().err


def test_the_table_pools_seeds_and_shows_them_apart(ablation):
    def result(arm, seed, hits):
        return {
            'arm': arm,
            'seed': seed,
            'families': {
                'touch': {'successes': hits, 'episodes': 50},
                'pick': {'successes': hits // 2, 'episodes': 50},
            },
            'open_loop': {'mm': 10.0 + seed, 'deg': 2.0, 'gripper_wrong': 0.05},
        }

    table = ablation.make_table([result('base', s, 40 + s) for s in range(3)]
                                + [result('mean_std', 0, 0)]
                                + [result('minmax', s, 30 + 2 * s) for s in range(3)])  # fmt: skip
    rows = [line for line in table.splitlines() if line.startswith('| base')]
    # 123 of 150 and 61 of 150 successes.
    assert '| 82 [75, 87] | 41 [33, 49] | 60, 61, 63 | - | 11.0 (10.0 to 12.0) |' in rows[0]
    # Differences of -15, -13 and -12 points: mean -13.3, 4.303 / sqrt(3) times 1.53 is 3.8.
    minmax = next(line for line in table.splitlines() if line.startswith('| minmax'))
    assert '| 45, 48, 51 | -13 [-17, -10] |' in minmax
    assert '0 [0, 7]' in table
    assert '| 49.0 |' in table


def test_every_arm_is_a_change_that_the_recipe_takes(ablation):
    from spear_ros.training.recipes import change, find_recipe

    base = find_recipe('vla', 'spear_ablation')
    configs = [
        change(base, [s.format(vlm='/vlm') for s in arm.settings]) for arm in ablation.ARMS.values()
    ]
    assert len({repr(c) for c in configs}) == len(configs)
    assert configs[0] == base
    assert (base.model.flow.rotation_path, base.data.stats_kind) == ('s3', 'quantile')
