"""SPEAR-1 at full size (3.55 B), random weights, CPU or GPU: does it run, do both dtypes agree?

    python benchmarks/full_size.py [--device cpu] [--threads 2] [--size spear1]

One process per dtype, one after the other (float32 needs 15 GB): build, one chunk (prefill and ten
denoise steps), and the joint training pass against the cached steps. The float32 model holds the
bfloat16 model's weights, so the difference between the two chunks is arithmetic alone. Prints one
JSON object in the last line.
"""

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from spear_ros.networks import flow_matching as fm
from spear_ros.networks import s3
from spear_ros.networks.spear1 import PrefixInputs, Spear1, Spear1Config

DTYPES = {'bf16': torch.bfloat16, 'fp32': torch.float32}
TEXT_TOKENS = 16


def build(config, dtype, device):
    """Random weights, drawn in bfloat16 whatever the dtype."""
    with torch.device('meta'):
        model = Spear1(config)
    model = model.to(torch.bfloat16).to_empty(device=device)
    torch.manual_seed(0)
    model.initialize()
    model = model.to(dtype).eval()
    model.bake()
    return model


def make_inputs(config, device):
    generator = torch.Generator().manual_seed(1)
    inputs = PrefixInputs(
        external=torch.rand(1, 3, *config.external_size, generator=generator).to(device),
        wrist=torch.rand(1, 3, *config.wrist_size, generator=generator).to(device),
        tokens=torch.randint(0, 2000, (1, TEXT_TOKENS), generator=generator).to(device),
    )
    proprio = torch.randn(1, 8, generator=generator).to(device)
    noise = fm.sample_noise(1, config.flow, generator).to(device)
    return inputs, proprio, noise


class Clock:
    def __init__(self, device):
        self.device, self.seconds = device, {}

    def __call__(self, name, function):
        self._wait()
        started = time.perf_counter()
        result = function()
        self._wait()
        self.seconds[name] = round(time.perf_counter() - started, 4)
        return result

    def _wait(self):
        if self.device == 'cuda':
            torch.cuda.synchronize()


@torch.inference_mode()
def run(arguments):
    """Child process: one dtype. Saves chunk and velocities, prints a JSON object."""
    config = Spear1Config.named(arguments.size)
    device = arguments.device
    clock = Clock(device)
    model = clock('build', lambda: build(config, DTYPES[arguments.dtype], device))
    inputs, proprio, noise = make_inputs(config, device)
    tau = torch.full((1,), 0.3, device=device)
    chunk = clock('first_chunk', lambda: model.sample(inputs, proprio, noise))
    again = clock('second_chunk', lambda: model.sample(inputs, proprio, noise))
    cache = clock('prefill', lambda: model.prefill(inputs, proprio))
    moment = model.expert.embed_time(tau)
    cached = clock('denoise_step', lambda: model.denoise_step(noise, moment, cache))
    joint = clock('joint_pass', lambda: model(inputs, proprio, noise, tau))
    torch.save({'chunk': chunk.cpu(), 'joint': joint.cpu(), 'cached': cached.cpu()}, arguments.out)
    print(
        json.dumps(
            {
                'seconds': clock.seconds,
                'peak_rss_gb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
                'parameters': sum(p.numel() for p in model.parameters()),
                'prefix_tokens': cache.prefix,
                'finite': bool(torch.isfinite(chunk).all()),
                'repeatable': bool(torch.equal(chunk, again)),
                'joint_vs_cached': relative(cached, joint),
            }
        )
    )


def relative(a, b):
    """Largest and root-mean-square difference over the root-mean-square value."""
    scale = b.square().mean().sqrt()
    difference = a - b
    return {
        'max': (difference.abs().max() / scale).item(),
        'rms': (difference.square().mean().sqrt() / scale).item(),
    }


def compare(low, high):
    """Difference of the bfloat16 results to the float32 ones."""
    a, b = low['chunk'], high['chunk']
    turn = 2 * s3.angle(*(s3.canonical(c[..., fm.QUATERNION]) for c in (a, b)))
    return {
        'velocity': relative(low['joint'], high['joint']),
        'chunk_translation_max': (a - b)[..., fm.XYZ].abs().max().item(),
        'chunk_rotation_max_deg': math.degrees(torch.minimum(turn, 2 * math.pi - turn).max()),
        'chunk_gripper_max': (a - b)[..., fm.GRIPPER].abs().max().item(),
    }


def parse():
    parser = argparse.ArgumentParser(description='SPEAR-1 at full size with random weights')
    parser.add_argument('--size', default='spear1', choices=Spear1Config.names())
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--dtype', choices=tuple(DTYPES), help='(internal) run one dtype')
    parser.add_argument('--out', type=Path, help='(internal)')
    return parser.parse_args()


def main():
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.dtype:
        run(arguments)
        return
    report = {'benchmark': 'full_size', 'size': arguments.size, 'device': arguments.device}
    saved = {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            out = Path(folder) / f'{dtype}.pt'
            command = [sys.executable, __file__, '--dtype', dtype, '--out', str(out)]
            command += ['--size', arguments.size, '--device', arguments.device]
            command += ['--threads', str(arguments.threads)]
            output = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ
            ).stdout
            report[dtype] = json.loads(output.splitlines()[-1])
            print(dtype, report[dtype], flush=True)
            saved[dtype] = torch.load(out, weights_only=True)
    report['bf16_vs_fp32'] = compare(saved['bf16'], saved['fp32'])
    gpu = torch.cuda.get_device_name() if arguments.device == 'cuda' else None
    report['machine'] = {
        'python': platform.python_version(),
        'torch': torch.__version__,
        'threads': arguments.threads,
        'gpu': gpu,
    }
    print(json.dumps(report))


if __name__ == '__main__':
    main()
