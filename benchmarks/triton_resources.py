"""What the Triton kernels of a chunk need on cards that are not here: registers, spills, memory.

    PYTHONPATH=DIR python benchmarks/triton_resources.py [--size spear1] [--dtype bfloat16]

DIR holds the package triton (``pip install --no-deps --target DIR triton``), which brings the
compiler for every card. A chunk is walked through on tensors without memory, each kernel is
compiled for each card with the sizes that it is launched with, and the machine code is asked what
it uses. Nothing runs: this proves that the kernels compile, that they fit, and whether registers
spill, and says nothing about time. The last line is one JSON object.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CARDS = {
    80: ('A100', 166912),
    86: ('RTX 3090, A6000', 101376),
    89: ('RTX 4090, L40S', 101376),
    90: ('H100, H200', 232448),
    100: ('B200', 232448),
    120: ('RTX 5090', 101376),
}
"""Compute capability: names, and shared memory of one program in bytes (CUDA programming guide)."""


def walk(args):
    """Compile for one card (in a process of its own: the driver is set once); print JSON rows."""
    import torch
    import triton
    from engine_ops import meta_model
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from spear_ros.inference import triton_ops
    from spear_ros.inference.chunk_buffers import ChunkShape
    from spear_ros.inference.fused import FusedSpear1
    from spear_ros.inference.fused_weights import FuseOptions, fuse

    rows = {}
    launch = JITFunction.run

    def compile_only(self, *values, grid, warmup, **options):
        try:
            kernel = launch(self, *values, grid=grid, warmup=True, **options)
        except Exception as error:
            lines = str(error).strip().splitlines() or ['']
            rows[self.__name__, repr(options)] = {'error': f'{type(error).__name__}: {lines[-1]}'}
            return
        rows.setdefault((self.__name__, kernel.hash), usage(kernel, triton))

    driver.set_active(card_of(GPUTarget('cuda', args.card, 32), torch))
    JITFunction.run = compile_only
    dtype = getattr(torch, args.dtype)
    model = meta_model(args.size, dtype)
    options = FuseOptions(compute=dtype, steps=2, adjacent_pairs=False)
    with torch.no_grad():
        weights = fuse(model, options)
        ops = triton_ops.TritonOps(weights)
        ops.tile = triton_ops.SuffixTile.of((args.card // 10, args.card % 10), dtype)
        network = FusedSpear1(weights, ops)
        buffers = network.make_buffers(ChunkShape(32, (480, 640), (480, 640)))
        for stage in network.stages:
            if stage.name != 'download':  # nothing comes out of meta
                stage.run(buffers)
    print(json.dumps([{'kernel': name, **row} for (name, _), row in rows.items()]))


def card_of(target, torch):
    """Stands in for Triton's driver: says which card to compile for, and launches nothing."""

    class Card:
        class utils:  # noqa: N801 - as Triton calls it
            @staticmethod
            def get_device_properties(_device):
                return {'max_shared_mem': CARDS[target.arch][1]}

        def get_current_target(self):
            return target

        def get_current_device(self):
            return 0

        def get_current_stream(self, _device=None):
            return 0

        def get_active_torch_device(self):
            return torch.device('cpu')

        def get_device_capability(self, *_device):
            return target.arch // 10, target.arch % 10

        def map_python_to_cpp_type(self, kind):
            return kind

    return Card()


def usage(kernel, triton):
    """Registers and bytes of stack per thread, bytes of shared memory per program."""
    tool = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(kernel.asm['cubin'])
        file.flush()
        answer = subprocess.run(
            [tool, '-res-usage', file.name], capture_output=True, text=True, check=True
        )
    registers, stack = re.search(r'REG:(\d+) STACK:(\d+)', answer.stdout + answer.stderr).groups()
    return {
        'registers': int(registers),
        'stack': int(stack),
        'shared': kernel.metadata.shared,
        'warps': kernel.metadata.num_warps,
    }


def compile_for(card, args):
    """Rows of one card, from a child process."""
    command = [sys.executable, __file__, '--card', str(card)]
    command += ['--size', args.size, '--dtype', args.dtype]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, 'TRITON_CACHE_DIR': cache, 'TRITON_INTERPRET': '0'}
        here = (str(Path(__file__).resolve().parents[1]), os.environ.get('PYTHONPATH', ''))
        environment['PYTHONPATH'] = os.pathsep.join(filter(None, here))
        answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    if answer.returncode:
        sys.exit(f'{CARDS[card][0]}: {answer.stderr.strip()[-2000:]}')
    return json.loads(answer.stdout.strip().splitlines()[-1])


def worst(rows, shared_limit):
    """One row per kernel: the most of everything over its variants."""
    found = {}
    for row in rows:
        best = found.setdefault(row['kernel'], {'variants': 0, 'errors': []})
        best['variants'] += 1
        if 'error' in row:
            best['errors'].append(row['error'])
            continue
        for key in ('registers', 'stack', 'shared'):
            best[key] = max(best.get(key, 0), row[key])
        if row['shared'] > shared_limit:
            best['errors'].append(f'{row["shared"]} bytes of shared memory, {shared_limit} there')
    return found


def main():
    """Print a table; 1 where a kernel does not compile or does not fit."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--size', default='spear1')
    parser.add_argument('--dtype', choices=('bfloat16', 'float32'), default='bfloat16')
    parser.add_argument('--card', type=int, help='(internal) compile for one capability')
    args = parser.parse_args()
    if args.card:
        walk(args)
        return 0
    import triton
    from _machine import machine

    result, failed = {}, False
    for card, (name, limit) in CARDS.items():
        result[f'sm_{card}'] = found = worst(compile_for(card, args), limit)
        print(f'sm_{card} ({name}), {limit} bytes of shared memory')
        for kernel, row in sorted(found.items()):
            errors = '; '.join(row['errors'])
            failed = failed or bool(errors)
            print(
                f'  {kernel:<26}{row["variants"]:>3} variants  registers {row.get("registers", "")}'
                f'  stack {row.get("stack", "")}  shared {row.get("shared", "")}  {errors}'
            )
    report = {'benchmark': 'triton_resources', 'size': args.size, 'dtype': args.dtype}
    print(json.dumps({**report, 'triton': triton.__version__, 'cards': result, **machine()}))
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
