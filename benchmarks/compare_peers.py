"""One chunk, several programs, one run: our engine beside what else computes the same network.

    PYTHONPATH=. python benchmarks/compare_peers.py [--size spear1] [--device cuda] [--steps 10]

Every program gets a process of its own and a time limit, the same weights, pictures and noise, and
is timed from the pictures in host memory to the chunk in host memory. "difference" is the largest
one to the chunk of our plain networks (model units). PI0 is another, smaller network with one image
encoder: a measure of scale. A row that could not be measured says why. The last line is one JSON
object.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _peers
import numpy as np
import torch

from spear_ros.inference import hardware
from spear_ros.inference.engine import check_device
from spear_ros.inference.roofline import Workload
from spear_ros.inference.stages import random_inputs
from spear_ros.inference.timing import Budget, time_host
from spear_ros.networks.spear1 import Spear1, Spear1Config

ROOT = Path(__file__).resolve().parents[1]
COMPILED_ON_CPU = ('spear1_debug', 'spear1_tiny')
TARGETS = {'transformers': 3.0, 'compiled': 1.5, 'compiled_step': 1.5, 'pi0': 1.0}
"""How many times faster the engine should be."""


def build(size, dtype, device):
    """Random weights, the same in every process."""
    with torch.device('meta'):
        model = Spear1(Spear1Config.named(size))
    model = model.to(dtype).to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        model.initialize()
    model.eval().requires_grad_(False)
    model.bake()
    return model


def workload(args):
    config = Spear1Config.named(args.size)
    text = args.text or config.text_length
    return Workload(config=config, cameras=args.cameras, steps=args.steps, text=text)


def dtype_of(device):
    return torch.bfloat16 if device.type == 'cuda' else torch.float32


def child(args):
    """Measure one peer; save its chunk, print a JSON object."""
    device = check_device(args.device)
    load = workload(args)
    started = time.perf_counter()
    model = build(args.size, dtype_of(device), device)
    peer = _peers.make(args.only, model, load, args.compile_mode)
    built = time.perf_counter()
    inputs = random_inputs(load)
    chunk = peer.chunk(inputs)
    first = time.perf_counter()
    np.save(args.out, chunk)
    budget = Budget(seconds=args.seconds, least=args.runs, warm_up=args.runs)
    timing = time_host(lambda: peer.chunk(inputs), budget, device)
    report = {
        'ms': timing.as_dict(),
        'build_s': round(built - started, 2),
        'first_chunk_s': round(first - built, 2),
        'memory': hardware.peak_memory_mb(device),
        'finite': bool(np.isfinite(chunk).all()),
        'note': peer.note,
    }
    print(json.dumps(report))


def skipped(name, args, device):
    """Why a peer is not tried here, or ''."""
    if name.startswith('compiled') and device.type == 'cpu' and args.size not in COMPILED_ON_CPU:
        return 'compiling this size for a CPU takes too long'
    if name in ('engine_torch', 'engine_eager') and device.type == 'cpu':
        return 'on a CPU the engine is this already'
    return ''


def run_peer(name, args, mode, folder):
    """Start one child; its JSON object, or the reason why there is none."""
    out = folder / f'{name}.npy'
    command = [sys.executable, __file__, '--only', name, '--out', str(out), '--size', args.size]
    for option in ('device', 'cameras', 'steps', 'text', 'seconds', 'runs'):
        command += [f'--{option}', str(getattr(args, option))]
    command += ['--compile-mode', mode]
    environment = {**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "benchmarks"}'}
    found = answer(command, environment, args.limit)
    if 'ms' in found:
        found['chunk'] = np.load(out)
    return found


def answer(command, environment, limit):
    """The JSON object in the last line of a process; a note where there is none.

    The whole group is ended: compilers' workers outlive the process that started them, and would
    take the processor from the next peer.
    """
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return {'note': f'no result within {limit:g} s'}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        lines = errors.strip().splitlines() or [f'exit status {process.returncode}']
        return {'note': lines[-1][:200]}
    return json.loads(output.strip().splitlines()[-1])


def summarise(results):
    """Add ratios to the engine and differences to the plain networks."""
    engine = results.get('engine', {}).get('ms', {}).get('p50')
    reference = results.get(_peers.REFERENCE, {}).get('chunk')
    for name, found in results.items():
        chunk = found.pop('chunk', None)
        if 'ms' in found and engine:
            found['times_the_engine'] = round(found['ms']['p50'] / engine, 3)
        if chunk is not None and reference is not None and name != 'pi0':
            found['difference'] = float(np.abs(chunk - reference).max())
        if name in TARGETS and 'times_the_engine' in found:
            found['wanted'] = TARGETS[name]
            found['reached'] = found['times_the_engine'] >= TARGETS[name]


def table(results):
    """Lines of text, a row per peer; what was not measured stays empty."""
    head = f'{"":<52}{"p50 ms":>10}{"p99 ms":>10}{"ratio":>8}{"difference":>12}'
    lines = [head]
    for name, found in results.items():
        ms = found.get('ms', {})
        cells = (
            f'{ms["p50"]:.2f}' if ms else '',
            f'{ms["p99"]:.2f}' if ms else '',
            f'{found["times_the_engine"]:.2f}' if 'times_the_engine' in found else '',
            f'{found["difference"]:.2g}' if 'difference' in found else '',
        )
        widths = (10, 10, 8, 12)
        row = ''.join(f'{c:>{w}}' for c, w in zip(cells, widths, strict=True))
        lines.append(f'{_peers.LABELS[name]:<52}{row}  {found.get("note", "")}')
    return lines


def parse(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description='our engine beside its peers')
    parser.add_argument('--size', default='', help='default: spear1_tiny, on CUDA spear1')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--cameras', type=int, choices=(1, 2), default=2)
    parser.add_argument('--steps', type=int, default=0, help="0 = the model's")
    parser.add_argument('--text', type=int, default=0, help='instruction tokens; 0 = the budget')
    parser.add_argument('--peers', default=','.join(_peers.LABELS), help='which, by comma')
    parser.add_argument('--seconds', type=float, default=3.0, help='of measuring, per peer')
    parser.add_argument('--runs', type=int, default=3, help='at least, and of warming up')
    parser.add_argument('--limit', type=float, default=300.0, help='seconds for each process')
    parser.add_argument('--total', type=float, default=0.0, help='seconds for all; 0 = no limit')
    parser.add_argument('--compile-mode', default='', help='default: max-autotune, CPU default')
    parser.add_argument('--output', type=Path, help='write the JSON object here too')
    parser.add_argument('--only', help='(internal) measure one peer in this process')
    parser.add_argument('--out', type=Path, help='(internal)')
    args = parser.parse_args(argv)
    unknown = set(args.peers.split(',')) - set(_peers.LABELS)
    if unknown:
        parser.error(f'--peers: {", ".join(sorted(unknown))} unknown; {", ".join(_peers.LABELS)}')
    return args


def compare(args):
    """Measure all peers one after the other; the report as one dictionary."""
    device = check_device(args.device)
    args.device = str(device)
    args.size = args.size or ('spear1' if device.type == 'cuda' else 'spear1_tiny')
    mode = args.compile_mode or ('max-autotune' if device.type == 'cuda' else 'default')
    started, limit, results = time.monotonic(), args.limit, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.peers.split(','):
            left = args.total - (time.monotonic() - started) if args.total else limit
            args.limit = min(limit, left)
            reason = skipped(name, args, device)
            if not reason and left < 1:
                reason = 'no time was left'
            if reason:
                results[name] = {'note': reason}
            else:
                results[name] = run_peer(name, args, mode, Path(folder))
            found = results[name]
            print(name, found.get('ms', {}).get('p50', ''), found.get('note', ''), flush=True)
    summarise(results)
    load = workload(args)
    return {
        'benchmark': 'compare_peers',
        'size': args.size,
        'dtype': str(dtype_of(device)).removeprefix('torch.'),
        'cameras': args.cameras,
        'vision_tokens': sum(load.images),
        'text_tokens': load.text,
        'steps': load.euler_steps,
        'horizon': load.config.flow.horizon,
        'results': results,
        'hardware': hardware.describe(device),
        'state': hardware.gpu_state(device),
        'commit': hardware.commit_of(ROOT),
    }


def main():
    """Compare, or measure one peer for the process that compares."""
    args = parse()
    if args.only:
        child(args)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a running peer is ended too
    report = compare(args)
    print()
    for line in table(report['results']):
        print(line)
    text = json.dumps(report)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + '\n')
    print(text)


if __name__ == '__main__':
    main()
