#!/usr/bin/env python3
"""Checks and times the policy on the GPU at hand within eight minutes, from this clone alone.

    python3 tools/gpu_check.py [--out DIR] [--minutes 8] [--rehearse]

Needs torch with CUDA, numpy, PyYAML, OpenCV, safetensors, tokenizers and pytest; transformers for
two of the compared programs. No network, no ROS, no simulator, nothing to install. Steps, each a
process with a time limit of its own: the environment, the GPU tests of test/inference and
test/networks, the accuracy gates at full size, ``spear benchmark``, benchmarks/compare_peers.py.

Every step writes one log into DIR (default: $OUT, else out/gpu_check), whose last line is a JSON
object where the step has figures. summary.json and summary.md are rewritten after every step, so an
interrupted run loses one step at most; steps that passed on the same commit and hardware are not
run again (--again runs all). ``--rehearse`` does the same on a CPU at the smallest size, which
proves that the clone is complete, and nothing about a GPU.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 8.0
RESERVE_S = 5.0
"""Kept for the summary."""
LEFT = '{left}'
"""Stands in a command for the seconds that the step has, less a margin to report."""
REPORT_S = 15.0
PASSED, FAILED, TIMED_OUT, NO_TIME = 'passed', 'failed', 'over its limit', 'no time left'

ENVIRONMENT = """
import json, platform, sys
import torch
from spear_ros.inference import hardware
device = torch.device(sys.argv[1])
if device.type == 'cuda' and not torch.cuda.is_available():
    sys.exit(f'torch {torch.__version__} sees no CUDA device')
print(json.dumps(hardware.describe(device) | {'state': hardware.gpu_state(device)}))
"""


@dataclass(frozen=True)
class Step:
    """One process with its time limit."""

    name: str
    command: tuple[str, ...]
    limit_s: float


def steps(device: str, size: str, seconds: float, out: Path, longer: float = 1.0) -> list[Step]:
    """Return the plan; the last step takes all the time that the others leave."""
    python = sys.executable
    common = ('--size', size, '--device', device)
    pytest = (
        '-m',
        'pytest',
        '-m',
        'gpu or triton',
        '-q',
        '-ra',
        '-p',
        'no:cacheprovider',
        *test_files(),
    )
    accuracy = ('benchmarks/engine_accuracy.py', *common, '--seconds', str(40 * longer))
    benchmark = ('benchmark', *common, '--seconds', str(seconds), '--buckets', '--costs')
    benchmark = (*benchmark, '--output', str(out / 'benchmark.json'))
    peers = ('benchmarks/compare_peers.py', *common, '--seconds', str(2 * seconds))
    limits = ('--total', LEFT, '--limit', str(130 * longer))
    return [
        Step('environment', (python, '-c', ENVIRONMENT, device), 60 * longer),
        Step('tests', (python, *pytest), 70 * longer),
        Step('accuracy', (python, *accuracy), 75 * longer),
        Step('benchmark', (python, '-m', 'spear_ros.cli.main', *benchmark), 90 * longer),
        Step('compare', (python, *peers, *limits), 480 * longer),
    ]


def test_files() -> list[str]:
    """Return the files that hold GPU tests and whose imports are there."""
    wanted = []
    for folder in ('inference', 'networks', 'processing'):
        for path in sorted((ROOT / 'test' / folder).glob('test_*.py')):
            text = path.read_text(encoding='utf-8')
            absent = 'hypothesis' in text and importlib.util.find_spec('hypothesis') is None
            if re.search(r'mark\.(gpu|triton)\b', text) and not absent:
                wanted.append(str(path.relative_to(ROOT)))
    return wanted


def run_step(step: Step, limit_s: float, out: Path) -> dict[str, object]:
    """Run one step into its log; never longer than ``limit_s``, with everything it started."""
    environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join((str(ROOT), str(ROOT / 'benchmarks'))),
        'PYTHONUNBUFFERED': '1',
        'TORCHINDUCTOR_CACHE_DIR': str(ROOT / 'out' / 'inductor'),
        'TRITON_CACHE_DIR': str(ROOT / 'out' / 'triton'),
    }
    left = str(round(max(1.0, limit_s - REPORT_S), 1))
    command = [left if word == LEFT else word for word in step.command]
    (out / f'{step.name}.json').unlink(missing_ok=True)  # figures of an earlier run
    started = time.monotonic()
    with (out / f'{step.name}.log').open('w', encoding='utf-8') as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait(limit_s)
            status = PASSED if code == 0 else FAILED
        except subprocess.TimeoutExpired:
            status, code = TIMED_OUT, None
        finally:
            stop(process)
    seconds = round(time.monotonic() - started, 1)
    return {'status': status, 'code': code, 'seconds': seconds, 'limit_s': round(limit_s, 1)}


def stop(process: 'subprocess.Popen[bytes]') -> None:
    """End the step's whole process group: a compiler's workers outlive their parent otherwise.

    Politely first: compare_peers ends its peers, which have groups of their own.
    """
    for number, patience_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)


def last_json(log: Path) -> dict[str, object]:
    """Return the JSON object in the last line of a log; empty where there is none."""
    try:
        lines = log.read_text(encoding='utf-8', errors='replace').strip().splitlines()
        found = json.loads(lines[-1])
    except (OSError, IndexError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def last_text(log: Path) -> str:
    """Return the last line of a log, shortened: pytest's verdict, or an error."""
    try:
        lines = log.read_text(encoding='utf-8', errors='replace').strip().splitlines()
    except OSError:
        return ''
    return lines[-1][:160] if lines else ''


def commit() -> str:
    """Return the clone's commit, with a plus where files differ from it."""
    try:
        answer = [
            subprocess.run(
                ['git', '-C', str(ROOT), *words], capture_output=True, text=True, timeout=20
            ).stdout.strip()
            for words in (('rev-parse', '--short', 'HEAD'), ('status', '--short', '-uno'))
        ]
    except (OSError, subprocess.SubprocessError):
        return 'unknown'
    return (answer[0] or 'unknown') + ('+' if answer[1] else '')


def figures(out: Path) -> list[str]:
    """Return the few numbers that the summary shows; what is missing has no line."""
    lines = []
    hardware = last_json(out / 'environment.log')
    if hardware:
        versions = hardware.get('versions', {})
        lines.append(
            f'hardware: {hardware.get("gpu") or hardware.get("processor")}, driver '
            f'{hardware.get("driver", "-")}, {versions}'
        )
    tests = last_text(out / 'tests.log')
    if tests:
        lines.append(f'tests: {tests}')
    accuracy = last_json(out / 'accuracy.log')
    for gate in accuracy.get('gates', []):
        lines.append(f'gate: {gate["name"]}: {gate["value"]:.4g} (limit {gate["limit"]:g})')
    # Rewritten after every part: a benchmark that ran out of time is not lost.
    bench = last_json(out / 'benchmark.json')
    for row in (*bench.get('stages', []), *bench.get('engine', [])):
        if 'ms' in row:
            share = f', {100 * row["share"]:.1f} % of the roofline' if 'share' in row else ''
            ms = row['ms']
            lines.append(f'{row["name"]}: {ms["p50"]:.3f} ms (p99 {ms["p99"]:.3f}){share}')
    for name, why in bench.get('missing', {}).items():
        lines.append(f'not measured: {name}: {why}')
    peers = last_json(out / 'compare.log')
    for name, row in peers.get('results', {}).items():
        ms = row.get('ms', {}).get('p50')
        ratio = row.get('times_the_engine')
        shown = 'not measured' if ms is None else f'{ms:.2f} ms, {ratio} times the engine'
        lines.append(f'peer {name}: {shown} ({row.get("note", "")})')
    return lines


def write_summary(out: Path, state: dict[str, object], title: str) -> str:
    """Write summary.json and summary.md; return the text."""
    (out / 'summary.json').write_text(json.dumps(state, indent=1) + '\n', encoding='utf-8')
    lines = [f'# {title}', '', '| step | result | seconds | limit |', '|---|---|---|---|']
    for name, result in state['steps'].items():
        lines.append(
            f'| {name} | {result["status"]} | {result.get("seconds", "")} | '
            f'{result.get("limit_s", "")} |'
        )
    lines += ['', *(f'- {line}' for line in figures(out))]
    text = '\n'.join(lines) + '\n'
    (out / 'summary.md').write_text(text, encoding='utf-8')
    return text


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='check and time the policy on the GPU at hand')
    default = os.environ.get('OUT') or str(ROOT / 'out' / 'gpu_check')
    parser.add_argument('--out', type=Path, default=Path(default), help='folder for the results')
    parser.add_argument(
        '--minutes', type=float, default=MINUTES, help='for everything; above 8 every step has more'
    )
    parser.add_argument('--rehearse', action='store_true', help='on a CPU, the smallest size')
    parser.add_argument('--size', default='', help='default spear1; in a rehearsal spear1_debug')
    parser.add_argument('--only', default='', help='steps by comma')
    parser.add_argument('--again', action='store_true', help='also what passed already')
    return parser.parse_args(argv)


def run_all(plan: list[Step], args: argparse.Namespace, key: dict[str, object]) -> int:
    """Run the plan into ``args.out``; the number of steps that did not pass."""
    started = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    before = read_state(args.out, key) if not args.again else {}
    state: dict[str, object] = {'key': key, 'steps': dict(before)}
    title = 'GPU check' if not args.rehearse else 'Rehearsal on a CPU: no figure of a GPU'
    for step in plan:
        if before.get(step.name, {}).get('status') == PASSED:
            print(f'{step.name}: passed before', flush=True)
            continue
        left = args.minutes * 60 - RESERVE_S - (time.monotonic() - started)
        if left < 5:
            result: dict[str, object] = {'status': NO_TIME}
        else:
            result = run_step(step, min(step.limit_s, left), args.out)
        state['steps'][step.name] = result
        text = write_summary(args.out, state, title)
        print(f'{step.name}: {result["status"]}, {result.get("seconds", 0)} s', flush=True)
        # A slow first start of CUDA is no reason to lose the rest; a machine without it is.
        if step.name == 'environment' and result['status'] == FAILED:
            print(last_text(args.out / 'environment.log'), flush=True)
            return len(plan)
    text = write_summary(args.out, state, title)
    print(f'\n{text}\nin {time.monotonic() - started:.0f} s; logs in {args.out}', flush=True)
    return sum(state['steps'].get(s.name, {}).get('status') != PASSED for s in plan)


def read_state(out: Path, key: dict[str, object]) -> dict[str, dict[str, object]]:
    """Return the steps of an earlier run of the same commit, size and device; else nothing."""
    try:
        state = json.loads((out / 'summary.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return state.get('steps', {}) if state.get('key') == key else {}


def main(argv: list[str] | None = None) -> int:
    """Run; 0 when every step passed."""
    args = parse(argv)
    device = 'cpu' if args.rehearse else 'cuda'
    size = args.size or ('spear1_debug' if args.rehearse else 'spear1')
    longer = max(1.0, args.minutes / MINUTES)
    plan = steps(device, size, 0.2 if args.rehearse else 0.8, args.out.resolve(), longer)
    chosen = [name for name in args.only.split(',') if name]
    unknown = set(chosen) - {step.name for step in plan}
    if unknown:
        print(f'--only: {", ".join(sorted(unknown))} unknown', file=sys.stderr)
        return 2
    plan = [step for step in plan if not chosen or step.name in chosen]
    key = {'commit': commit(), 'device': device, 'size': size, 'host': os.uname().nodename}
    return 1 if run_all(plan, args, key) else 0


if __name__ == '__main__':
    sys.exit(main())
