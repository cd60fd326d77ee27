"""Samples per second and model-FLOP utilisation of SPEAR-1's training by size; loader speed.

    python benchmarks/training_speed.py [--sizes spear1_debug,spear1_tiny] [--batch 8] [--steps 4]
    python benchmarks/training_speed.py --loader FOLDER [--samples 100000]

Random pictures: the arithmetic does not depend on them. On a CPU the clock is the CPU time of the
process with one thread, for updates and for the peak alike (the best of several matrix products),
so that other work on the machine hardly counts. The last line is one JSON object.
"""

import argparse
import json
import resource
import time
from dataclasses import replace
from pathlib import Path

import torch
from _machine import machine

from spear_ros.data.loader import BatchLoader, LoaderSettings
from spear_ros.data.mixtures import Mixture, MixturePart, MixtureSampler
from spear_ros.data.shards import open_datasets
from spear_ros.networks.flow_matching import make_sample, sample_noise, sample_tau
from spear_ros.networks.spear1 import PrefixInputs, Spear1Config
from spear_ros.training import estimates
from spear_ros.training.config import OptimizerConfig
from spear_ros.training.ema import Ema
from spear_ros.training.optimizer import clip_gradients, gradient_norm, make_optimizer
from spear_ros.training.vla_module import VlaModule, choose_trained, freeze_unused

TRAINED = ('expert', 'vlm.siglip', 'vlm.language', 'projector')


def make_batch(config, batch, taus, device):
    size, wrist = config.external_size, config.wrist_size
    inputs = PrefixInputs(
        external=torch.rand(batch, 3, *size, device=device),
        wrist=torch.rand(batch, 3, *wrist, device=device),
        tokens=torch.randint(0, 500, (batch, config.text_length), device=device),
    )
    noise = [sample_noise(batch * taus, config.flow).to(device) for _ in range(2)]
    sample = make_sample(*noise, sample_tau(batch * taus, config.flow).to(device), config.flow)
    return {'inputs': inputs, 'proprio': torch.randn(batch, 8, device=device), 'sample': sample}


def clock(device):
    """CPU seconds of the process on a CPU, else seconds."""
    return time.process_time() if device.type == 'cpu' else time.perf_counter()


def peak_flops(device):
    """FLOP/s: the data sheet's figure, on a CPU the best of a few products by the same clock."""
    if device.type != 'cpu':
        return estimates.peak_flops(device, 'bfloat16')
    a = torch.randn(1024, 1024).bfloat16()
    best = float('inf')
    for _ in range(8):
        started = clock(device)
        a @ a
        best = min(best, clock(device) - started)
    return 2.0 * 1024**3 / best


def measure(name, args, device):
    """One size: seconds of an update after two that do not count."""
    config = Spear1Config.named(name)
    module = VlaModule(config, args.recompute).to(device)
    choose_trained(module.model, TRAINED)
    freeze_unused(module.model)
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(trained, OptimizerConfig(learning_rate=1e-4))
    ema = Ema(trained, 0.999)
    batch = make_batch(config, args.batch, args.taus, device)
    seconds = []
    for step in range(args.steps + 2):
        started = clock(device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = module(**batch)['loss']
        loss.backward()
        norm = gradient_norm(trained.values())
        clip_gradients(trained.values(), norm, 1.0)
        optimizer.step()
        ema.update(step)
        optimizer.zero_grad(set_to_none=True)
        float(norm)  # waits for the device
        seconds.append(clock(device) - started)
    best = sorted(seconds[2:])[len(seconds[2:]) // 2]
    *prefix, expert = estimates.spear1_stacks(config, True, TRAINED)
    stacks = [*prefix, replace(expert, tokens=1 + args.taus * config.flow.horizon)]
    flop = estimates.operations(stacks) * args.batch
    found = {
        'size': name,
        'batch': args.batch,
        'flow_times': args.taus,
        'parameters_m': round(sum(p.numel() for p in module.parameters()) / 1e6, 2),
        'gflop_per_sample': round(flop / args.batch / 1e9, 2),
        'samples_per_s': round(args.batch / best, 2),
        'flop_utilisation': round(flop / best / args.peak, 4),
    }
    if device.type == 'cuda':
        found['memory_gb'] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return found


def measure_loader(folder, samples, threads):
    """Samples per second of reading and decoding, and how the memory grows."""
    datasets = open_datasets([Path(folder)])
    parts = tuple(MixturePart(dataset=n, weight=1.0, weight_from='ours') for n in datasets)
    mixture = Mixture(name='all', weight_is='size_multiplier', parts=parts)
    settings = LoaderSettings(
        batch_size=64, external_size=(168, 224), wrist_size=(112, 112), threads=threads
    )
    seen, memory = 0, []
    with BatchLoader(MixtureSampler(mixture, datasets, seed=0), datasets, settings) as loader:
        started, cpu = time.perf_counter(), time.process_time()
        while seen < samples:
            next(loader)
            seen += 64
            if seen % (64 * max(1, samples // 640)) == 0:
                pages = int(Path('/proc/self/statm').read_text().split()[1])
                memory.append(round(pages * resource.getpagesize() / 1e6, 1))
        elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        'samples': seen,
        'samples_per_s': round(seen / elapsed, 1),
        'samples_per_cpu_s': round(seen / cpu, 1),
        'memory_mb': memory,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--sizes', default='spear1_debug,spear1_tiny')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--steps', type=int, default=4)
    parser.add_argument('--taus', type=int, default=1, help='flow times per sample')
    parser.add_argument('--recompute', action='store_true')
    parser.add_argument('--loader', metavar='FOLDER', help='shards: measure the loader instead')
    parser.add_argument('--samples', type=int, default=100_000)
    parser.add_argument('--threads', type=int, default=1)
    args = parser.parse_args()
    if args.loader:
        print(json.dumps(measure_loader(args.loader, args.samples, args.threads)))
        return
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    if device.type == 'cpu':
        torch.set_num_threads(1)
    args.peak = peak_flops(device)
    rows = [measure(name, args, device) for name in args.sizes.split(',')]
    for row in rows:
        print(row)
    peak = round(args.peak / 1e9, 1)
    print(json.dumps({'device': str(device), 'peak_gflop_s': peak, 'rows': rows, **machine()}))


if __name__ == '__main__':
    main()
