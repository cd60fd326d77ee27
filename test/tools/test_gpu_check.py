"""tools/gpu_check.py: limits hold, nothing is lost or run twice, all fits into eight minutes."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def gpu_check():
    spec = importlib.util.spec_from_file_location('gpu_check', ROOT / 'tools' / 'gpu_check.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules['gpu_check'] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules['gpu_check']


@pytest.fixture
def python(gpu_check):
    def make(name, code, limit_s=30.0):
        return gpu_check.Step(name, (sys.executable, '-c', code), limit_s)

    return make


def arguments(gpu_check, out, *extra):
    return gpu_check.parse(['--out', str(out), *extra])


def plan_of(gpu_check):
    return gpu_check.steps('cuda', 'spear1', 1.0, ROOT / 'out')


KEY = {'commit': 'abc', 'device': 'cpu'}


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_all_steps_but_the_last_leave_it_three_of_the_eight_minutes(gpu_check, device):
    plan = gpu_check.steps(device, 'spear1', 1.0, ROOT / 'out')
    assert sum(step.limit_s for step in plan[:-1]) + gpu_check.RESERVE_S <= 5 * 60
    assert gpu_check.MINUTES == 8
    assert gpu_check.LEFT in plan[-1].command
    # logs, the benchmark's object and two summaries: few files, flat
    assert len(plan) + 3 <= 8


def test_the_plan_names_scripts_that_exist_and_tests_that_need_a_gpu(gpu_check):
    words = [word for step in plan_of(gpu_check) for word in step.command]
    scripts = [word for word in words if word.endswith('.py')]
    assert 'test/inference/test_denoiser.py' in scripts
    assert all((ROOT / script).is_file() for script in scripts)


def test_a_step_over_its_limit_is_ended_with_everything_it_started(gpu_check, python, tmp_path):
    child = 'import time; time.sleep(600)'
    code = (
        'import subprocess, sys, time\n'
        f'p = subprocess.Popen([sys.executable, "-c", "{child}"])\n'
        'print(p.pid, flush=True)\n'
        'time.sleep(600)\n'
    )
    result = gpu_check.run_step(python('slow', code), 20.0, tmp_path)
    assert result['status'] == gpu_check.TIMED_OUT
    pid = int((tmp_path / 'slow.log').read_text())
    for _ in range(200):  # the kernel may take a moment to reap it
        if not Path(f'/proc/{pid}').exists() or 'Z' in state_of(pid):
            break
        time.sleep(0.05)
    else:
        pytest.fail('the grandchild lives')


def state_of(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]
    except OSError:
        return 'Z'


def test_a_step_may_clean_up_before_it_is_ended(gpu_check, python, tmp_path):
    code = (
        'import signal, sys, time\n'
        'signal.signal(signal.SIGTERM, lambda *_: (print("cleaned up", flush=True), sys.exit(1)))\n'
        'print("ready", flush=True)\n'
        'time.sleep(600)\n'
    )
    gpu_check.run_step(python('polite', code), 10.0, tmp_path)
    assert 'cleaned up' in (tmp_path / 'polite.log').read_text()


def test_figures_of_an_earlier_run_are_not_shown_again(gpu_check, python, tmp_path):
    (tmp_path / 'benchmark.json').write_text('{"stages": [{"name": "old", "ms": {}}]}')
    gpu_check.run_step(python('benchmark', 'raise SystemExit(1)'), 30.0, tmp_path)
    assert gpu_check.figures(tmp_path) == []


def test_logs_hold_both_streams_and_a_failure_keeps_its_status(gpu_check, python, tmp_path):
    code = 'import sys; print("figure"); print("trouble", file=sys.stderr); sys.exit(3)'
    result = gpu_check.run_step(python('bad', code), 60.0, tmp_path)
    assert (result['status'], result['code']) == (gpu_check.FAILED, 3)
    assert set((tmp_path / 'bad.log').read_text().split()) == {'figure', 'trouble'}


def test_the_last_step_is_told_how_long_it_has(gpu_check, tmp_path):
    code = 'import sys; print(sys.argv[1])'
    step = gpu_check.Step('x', (sys.executable, '-c', code, gpu_check.LEFT), 999.0)
    gpu_check.run_step(step, 60.0, tmp_path)
    assert float((tmp_path / 'x.log').read_text()) == 60.0 - gpu_check.REPORT_S


def test_one_failure_does_not_stop_the_steps_behind_it(gpu_check, python, tmp_path):
    plan = [python('a', 'import sys; sys.exit(1)'), python('b', 'print(1)')]
    assert gpu_check.run_all(plan, arguments(gpu_check, tmp_path), KEY) == 1
    state = json.loads((tmp_path / 'summary.json').read_text())
    assert {n: s['status'] for n, s in state['steps'].items()} == {'a': 'failed', 'b': 'passed'}


def test_without_the_environment_nothing_else_is_tried(gpu_check, python, tmp_path):
    plan = [python('environment', 'import sys; sys.exit("no GPU")'), python('b', 'print(1)')]
    assert gpu_check.run_all(plan, arguments(gpu_check, tmp_path), KEY) == 2
    assert not (tmp_path / 'b.log').exists()


def test_an_environment_that_is_slow_to_start_does_not_end_the_check(gpu_check, python, tmp_path):
    plan = [python('environment', 'import time; time.sleep(60)', 0.5), python('b', 'print(1)')]
    assert gpu_check.run_all(plan, arguments(gpu_check, tmp_path), KEY) == 1
    assert (tmp_path / 'b.log').exists()


def test_what_passed_is_not_run_again_unless_commit_or_machine_changed(gpu_check, python, tmp_path):
    count = tmp_path / 'count'
    good = python('good', f'open({str(count)!r}, "a").write("x")')
    bad = python('bad', f'open({str(count)!r}, "a").write("y"); raise SystemExit(1)')
    out = tmp_path / 'out'
    for _ in range(2):
        assert gpu_check.run_all([good, bad], arguments(gpu_check, out), KEY) == 1
    assert count.read_text() == 'xyy'
    gpu_check.run_all([good], arguments(gpu_check, out), {**KEY, 'commit': 'def'})
    assert count.read_text() == 'xyyx'
    gpu_check.run_all([good], arguments(gpu_check, out, '--again'), {**KEY, 'commit': 'def'})
    assert count.read_text() == 'xyyxx'


def test_when_the_time_is_spent_the_rest_is_named_and_not_started(gpu_check, python, tmp_path):
    plan = [python('late', 'print(1)')]
    assert gpu_check.run_all(plan, arguments(gpu_check, tmp_path, '--minutes', '0'), KEY) == 1
    assert gpu_check.NO_TIME in (tmp_path / 'summary.md').read_text()
    assert not (tmp_path / 'late.log').exists()


def test_the_summary_takes_its_figures_from_the_last_lines(gpu_check, tmp_path):
    timing = {'p50': 8.25, 'p99': 8.5}
    bench = {'stages': [{'name': 'prefill', 'ms': timing, 'share': 0.5}, {'name': 'copy in'}]}
    bench['missing'] = {'costs': 'not run yet'}
    (tmp_path / 'benchmark.json').write_text(json.dumps(bench) + '\n')
    (tmp_path / 'compare.log').write_text('cut off {"benchmark"')
    (tmp_path / 'tests.log').write_text('....\n5 passed in 2 s\n')
    lines = gpu_check.figures(tmp_path)
    assert 'tests: 5 passed in 2 s' in lines
    assert any(li.startswith('prefill: 8.250 ms') and '50.0 %' in li for li in lines)
    assert 'not measured: costs: not run yet' in lines
    assert not any('copy in' in li for li in lines)


def test_results_go_where_the_environment_says(gpu_check, tmp_path, monkeypatch):
    monkeypatch.setenv('OUT', str(tmp_path / 'there'))
    assert gpu_check.parse([]).out == tmp_path / 'there'
    monkeypatch.delenv('OUT')
    assert gpu_check.parse([]).out == ROOT / 'out' / 'gpu_check'


def test_an_unknown_step_is_refused(gpu_check, capsys):
    assert gpu_check.main(['--rehearse', '--only', 'tests,dance']) == 2
    assert 'dance' in capsys.readouterr().err
