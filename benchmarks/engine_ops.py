"""What the fused engine saves, as far as a CPU can tell: operations, bytes, CPU milliseconds.

    python benchmarks/engine_ops.py [--size spear1] [--time spear1_tiny] [--runs 30] [--full]

Operations and bytes are counted on tensors without memory (device ``meta``), so the full size costs
nothing: every operation that is no view, and for each the bytes of its operands and results. Times
are of real chunks, plain network against fused, alternating in one process. Prints one JSON object
in the last line.
"""

import argparse
import json
import os
import platform
import resource
import time
from collections import Counter

import numpy as np
import torch

from spear_ros.inference.audit import Audit
from spear_ros.inference.chunk_buffers import ChunkShape
from spear_ros.inference.engine import Engine, EngineRequest, EngineSettings, chunk_noise
from spear_ros.inference.fused import FusedSpear1
from spear_ros.inference.fused_weights import FuseOptions, fuse
from spear_ros.inference.ops import TorchOps
from spear_ros.networks import flow_matching
from spear_ros.networks.spear1 import PrefixInputs, Spear1, Spear1Config
from spear_ros.networks.vit import PositionTable
from spear_ros.processing.images import ImageSize, fit_image
from spear_ros.processing.tokens import TextTokens

CAMERA, TEXT = (480, 640), 32


class Stages:
    """Operations and bytes per stage."""

    def __init__(self):
        self.rows = {}

    def count(self, name, function):
        with Audit() as audit:
            result = function()
        launches = audit.launches
        self.rows[name] = {
            'operations': sum(launches.values()),
            'megabytes': round(audit.bytes_moved / 1e6, 1),
            'forbidden': audit.forbidden,
        }
        self.last = launches
        return result


def meta_model(size, dtype):
    # Interpolating under autocast, which meta does not know, is done at load time: not counted.
    PositionTable.interpolate = lambda self, rows, columns: torch.empty(
        self.extra + rows * columns, self.table.shape[1], device='meta'
    )
    # Attention is one kernel on every device but this one, which takes it apart into ten.
    torch.nn.functional.scaled_dot_product_attention = lambda q, *args, **kwargs: q.clone()
    with torch.device('meta'):
        return Spear1(Spear1Config.named(size)).to(dtype).eval().requires_grad_(False)


@torch.no_grad()
def count_plain(size, dtype):
    """The networks as they are, with padded text and a mask, as an engine has to run them."""
    model, stages = meta_model(size, dtype), Stages()
    config, meta = model.config, {'device': 'meta'}
    raw = [torch.zeros(*CAMERA, 3, dtype=torch.uint8, **meta) for _ in range(2)]
    sizes = [ImageSize(*config.external_size), ImageSize(*config.wrist_size)]
    model.bake()
    pixels = stages.count(
        'preprocess', lambda: [fit_image(r, s)[None] for r, s in zip(raw, sizes, strict=True)]
    )
    inputs = PrefixInputs(
        external=pixels[0],
        wrist=pixels[1],
        tokens=torch.zeros(1, TEXT, dtype=torch.int64, **meta),
        token_mask=torch.ones(1, TEXT, dtype=torch.bool, **meta),
    )
    proprio = torch.zeros(1, 8, **meta)
    stages.count('vision', lambda: [model.vlm.encode_image(p) for p in pixels])
    vision = dict(stages.rows['vision'])
    cache = model.make_cache(1, config.external_tokens + config.wrist_tokens + TEXT, padded=True)
    stages.count('prefill', lambda: model.prefill(inputs, proprio, cache))
    for key in ('operations', 'megabytes'):  # prefill embeds the pictures too
        stages.rows['prefill'][key] = round(stages.rows['prefill'][key] - vision[key], 1)
    times = model.time_table()
    noise = torch.zeros(1, config.flow.horizon, 8, **meta)
    owed = noise, torch.zeros(1, config.flow.horizon, dtype=torch.bool, **meta)

    def denoise():
        flow_matching.integrate(
            lambda a, i: model.denoise_step(a, times[i : i + 1], cache), noise, config.flow, owed
        )

    stages.count('denoise', denoise)
    return stages.rows


class Launches:
    """Stands in for a kernel: counts ``kernel[grid](...)``."""

    def __init__(self, name, counter):
        self.name, self.counter = name, counter

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            self.counter[self.name] += 1

        return launch


@torch.no_grad()
def count_fused(size, dtype, ops_class=TorchOps):
    model, stages = meta_model(size, dtype), Stages()
    options = FuseOptions(
        compute=dtype,
        steps=model.config.flow.steps,
        adjacent_pairs=ops_class.adjacent_pairs,
    )
    weights = fuse(model, options)
    network = FusedSpear1(weights, ops_class(weights))
    buffers = network.make_buffers(ChunkShape(TEXT, CAMERA, CAMERA))
    for stage in network.stages:
        if stage.name != 'download':  # nothing comes out of meta
            stages.count(stage.name, lambda s=stage: s.run(buffers))
    return stages.rows


def count_kernels(size, dtype):
    """The same on Triton kernels: torch operations and kernel launches; None without triton."""
    try:
        from spear_ros.inference import triton_kernels, triton_ops
    except ImportError:
        return None
    counter = Counter()
    for name in dir(triton_kernels):
        if name.endswith('_kernel'):
            setattr(triton_kernels, name, Launches(name, counter))
    before, rows = 0, {}
    model = meta_model(size, dtype)
    options = FuseOptions(compute=dtype, steps=model.config.flow.steps, adjacent_pairs=False)
    weights = fuse(model, options)
    network = FusedSpear1(weights, triton_ops.TritonOps(weights))
    buffers = network.make_buffers(ChunkShape(TEXT, CAMERA, CAMERA))
    stages = Stages()
    with torch.no_grad():
        for stage in network.stages:
            if stage.name == 'download':
                continue
            stages.count(stage.name, lambda s=stage: s.run(buffers))
            kernels = sum(counter.values()) - before
            before += kernels
            operations = stages.rows[stage.name]['operations'] + kernels
            rows[stage.name] = {'operations': operations, 'of_them_triton': kernels}
    return {'stages': rows, 'kernels': dict(counter)}


def request_of(config, seed):
    rng = np.random.default_rng(seed)
    return EngineRequest(
        external=rng.integers(0, 256, (*CAMERA, 3), dtype=np.uint8),
        wrist=rng.integers(0, 256, (*CAMERA, 3), dtype=np.uint8),
        text=TextTokens(rng.integers(3, 500, 16), np.arange(16) < 9),
        proprio=rng.normal(size=8),
        noise=chunk_noise(config, seed, 0),
    )


@torch.no_grad()
def plain_chunk(model, request):
    """The plain network on the same request, padding included."""
    config = model.config
    pictures = [
        fit_image(torch.from_numpy(i), ImageSize(*s))[None]
        for i, s in (
            (request.external, config.external_size), (request.wrist, config.wrist_size)
        )
    ]  # fmt: skip
    inputs = PrefixInputs(
        external=pictures[0],
        wrist=pictures[1],
        tokens=torch.from_numpy(request.text.ids)[None],
        token_mask=torch.from_numpy(request.text.mask)[None],
    )
    proprio = torch.from_numpy(request.proprio).float()[None]
    return model.sample(inputs, proprio, torch.from_numpy(request.noise)[None])[0].numpy()


def measure(size, runs):
    """Plain and fused in turn: wall and CPU milliseconds, and how far the chunks differ."""
    config = Spear1Config.named(size)
    torch.manual_seed(0)
    model = Spear1(config).eval().requires_grad_(False)
    model.bake()
    engine = Engine(model, 'cpu', EngineSettings())
    names = {
        'plain': lambda r: plain_chunk(model, r),
        'fused': lambda r: engine.compute(r).actions,
    }
    wall, cpu = {n: [] for n in names}, {n: [] for n in names}
    worst = 0.0
    for i in range(runs + 3):
        request, results = request_of(config, i), []
        for name, function in names.items():
            started = time.perf_counter(), time.process_time()
            results.append(function(request))
            if i >= 3:
                wall[name].append((time.perf_counter() - started[0]) * 1e3)
                cpu[name].append((time.process_time() - started[1]) * 1e3)
        worst = max(worst, float(np.abs(results[0] - results[1]).max()))
    return {
        'size': size,
        'runs': runs,
        'largest_difference': worst,
        'load_average': round(os.getloadavg()[0], 1),
        **{
            name: {
                'wall_ms_min': round(min(wall[name]), 1),
                'wall_ms_median': round(float(np.median(wall[name])), 1),
                'cpu_ms_min': round(min(cpu[name]), 1),
                'cpu_ms_median': round(float(np.median(cpu[name])), 1),
            }
            for name in names
        },
    }


def measure_full(size):
    """One chunk of a bfloat16 network on CPU threads, as for offline replay, stage by stage.

    The weights are one random block over and over, scaled to keep variances: how long a product
    takes does not hang on its values.
    """
    started = time.perf_counter()
    with torch.device('meta'):
        model = Spear1(Spear1Config.named(size))
    model = model.to(torch.bfloat16).to_empty(device='cpu').eval().requires_grad_(False)
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).bfloat16()
    for parameter in model.parameters():
        flat = parameter.view(-1)
        width = parameter.shape[-1] if parameter.ndim > 1 else 1e4
        for at in range(0, len(flat), len(block)):
            piece = flat[at : at + len(block)]
            piece.copy_(block[: len(piece)]).mul_(width**-0.5)
    built = time.perf_counter()
    engine = Engine(model, 'cpu', EngineSettings(), consume=True)
    config = engine.config
    del model
    ready = time.perf_counter()
    cpu = time.process_time()
    result = engine.compute(request_of(config, 0))
    return {
        'size': size,
        'build_s': round(built - started, 1),
        'fuse_s': round(ready - built, 1),
        'wall_s': round(result.times.total_ms / 1e3, 1),
        'prefill_wall_s': round(result.times.prefill_ms / 1e3, 1),
        'denoise_wall_s': round(result.times.denoise_ms / 1e3, 1),
        'cpu_s': round(time.process_time() - cpu, 1),
        'finite': bool(np.isfinite(result.actions).all()),
        'peak_rss_gb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        'load_average': round(os.getloadavg()[0], 1),
    }


def main():
    parser = argparse.ArgumentParser(description='operations, bytes and CPU time of the engine')
    parser.add_argument('--size', default='spear1', choices=Spear1Config.names())
    parser.add_argument('--time', default='spear1_tiny', choices=(*Spear1Config.names(), ''))
    parser.add_argument('--runs', type=int, default=30)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--full', action='store_true', help='only one chunk of --size on the CPU')
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.full:
        print(json.dumps(measure_full(arguments.size)))
        return
    report = {'benchmark': 'engine_ops', 'size': arguments.size, 'dtype': 'bfloat16'}
    if arguments.time:
        report['cpu'] = measure(arguments.time, arguments.runs)
        print(report['cpu'], flush=True)
    report['plain'] = count_plain(arguments.size, torch.bfloat16)
    report['fused'] = count_fused(arguments.size, torch.bfloat16)
    for name, stage in report['fused'].items():
        print(f'{name:12}', report['plain'].get(name), '->', stage, flush=True)
    report['kernels'] = count_kernels(arguments.size, torch.bfloat16)
    report['machine'] = {
        'python': platform.python_version(),
        'torch': torch.__version__,
        'threads': arguments.threads,
    }
    print(json.dumps(report))


if __name__ == '__main__':
    main()
