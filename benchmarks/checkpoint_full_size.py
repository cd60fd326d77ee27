"""Full-size weights through the whole chain: published layouts -> convert -> verify -> load.

Random numbers in exactly the layouts in which PaliGemma-3B (sharded safetensors, hub names, bf16)
and MoGe-1 (``model.pt``, float32) are published are converted to a SPEAR-1 checkpoint with the
command that a user types, verified and loaded. Each step is a process of its own, whose resident
memory is sampled from outside. Needs about 17 GB of disk in --folder; everything is removed again.

    python benchmarks/checkpoint_full_size.py [--size spear1] [--folder /tmp/x]

The last line is one JSON object.
"""

import argparse
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from spear_ros.checkpoints.convert import MOGE_PREFIX, PALIGEMMA_PREFIXES
from spear_ros.checkpoints.key_map import expand
from spear_ros.checkpoints.paligemma import paligemma_rules
from spear_ros.checkpoints.spear1 import model_shapes
from spear_ros.checkpoints.tensor_files import write_sharded
from spear_ros.checkpoints.vision_language_maps import PaligemmaLayout, dinov2_rules
from spear_ros.networks.config import Spear1Config
from spear_ros.networks.moge_head import MogeConfig, MogeHead
from spear_ros.processing.small_tokenizer import build_small_tokenizer

HUB = PaligemmaLayout(
    language='language_model.model.',
    vision='vision_tower.vision_model.',
    projector='multi_modal_projector.',
)
PUBLISHED_ROWS = 257216
EMBEDDING = 'vlm.language.embedding.weight'
LOAD = """
import sys, time
import torch
from spear_ros.checkpoints.spear1 import load_checkpoint
started = time.perf_counter()
model = load_checkpoint(sys.argv[1]).model
seconds = time.perf_counter() - started
size = sum(p.numel() * p.element_size() for p in model.parameters())
print(seconds, size, sum(p.numel() for p in model.parameters()))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--size', default='spear1')
    parser.add_argument('--folder', type=Path, default=None)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix='spear_full_size_', dir=args.folder))
    try:
        result = run(folder, args.size)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(result))


def run(folder: Path, size: str) -> dict:
    config = Spear1Config.named(size)
    shapes = model_shapes(config)
    result = {'what': 'checkpoint_full_size', 'size': size, 'torch': torch.__version__}
    result |= {
        'cpu': platform.processor() or platform.machine(),
        'threads': torch.get_num_threads(),
    }
    started = time.perf_counter()
    paligemma = write_paligemma(folder / 'paligemma', config, shapes)
    moge = write_moge(folder / 'model.pt', config, shapes)
    write_tokenizer(folder / 'tokenizer.json', config)
    result |= {'made_s': time.perf_counter() - started, 'paligemma_gb': paligemma, 'moge_gb': moge}
    show('published layouts written', result)
    spear = [sys.executable, '-m', 'spear_ros.cli.main', 'checkpoint']
    sources = ['--paligemma', folder / 'paligemma', '--moge', folder / 'model.pt']
    convert = [*spear, 'convert', *sources, '--tokenizer', folder / 'tokenizer.json']
    convert += ['--size', size, '--output', folder / 'spear1']
    result |= measure('convert', convert)
    result |= measure('verify', [*spear, 'verify', folder / 'spear1'])
    result |= measure('load', [sys.executable, '-c', LOAD, folder / 'spear1'])
    seconds, size_bytes, parameters = result.pop('load_out').split()
    result['load_alone_s'] = float(seconds)
    result['weights_gb'] = int(size_bytes) / 1e9
    result['parameters_m'] = int(parameters) / 1e6
    result['load_anon_over_weights'] = result['load_peak_anon_gb'] / result['weights_gb']
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}


def show(step: str, values: dict) -> None:
    print(step, {k: v for k, v in values.items() if isinstance(v, float)}, flush=True)


def measure(name: str, command: list) -> dict:
    """Run a process and sample its resident memory; the baseline of an interpreter is in it."""
    root = Path(__file__).parents[1]
    environment = {**os.environ, 'PYTHONPATH': str(root)}
    before = cpu_seconds()
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(c) for c in command], stdout=subprocess.PIPE, text=True, cwd=root, env=environment
    )
    peak = {'RssAnon': 0, 'VmRSS': 0}
    while process.poll() is None:
        for key, value in resident(process.pid).items():
            peak[key] = max(peak[key], value)
        time.sleep(0.005)
    out = process.stdout.read()
    if process.returncode != 0:
        raise SystemExit(f'{name} failed')
    values = {f'{name}_s': time.perf_counter() - started}
    values[f'{name}_cpu_s'] = cpu_seconds() - before
    values |= {
        f'{name}_peak_anon_gb': peak['RssAnon'] / 1e9,
        f'{name}_peak_rss_gb': peak['VmRSS'] / 1e9,
    }
    show(name, values)
    print(out.strip(), flush=True)
    return values | ({'load_out': out} if name == 'load' else {})


def cpu_seconds() -> float:
    """User and system time of all finished children: hardly depends on what else runs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def resident(pid: int) -> dict[str, int]:
    try:
        lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    except OSError:
        return {}
    fields = dict(line.split(':', 1) for line in lines if ':' in line)
    return {k: int(fields[k].split()[0]) * 1024 for k in ('RssAnon', 'VmRSS') if k in fields}


def write_paligemma(folder: Path, config: Spear1Config, shapes: dict) -> float:
    """Shards of 5 GB with an index, bf16, hub names; one random tensor at a time."""
    folder.mkdir()
    layout = {}
    rows = min(PUBLISHED_ROWS, config.language.vocab_size - 1024)
    for ours, piece in expand(paligemma_rules(config, HUB, PALIGEMMA_PREFIXES)).items():
        shape = (rows, shapes[ours][1]) if ours == EMBEDDING else shapes[ours]
        for name, part in zip(piece.published, piece.rows or (shape[0],), strict=True):
            layout[name] = (torch.bfloat16, (part, *shape[1:]))
    write_sharded(folder, 'model', layout, lambda n: noise(layout[n][1]).bfloat16(), 5 << 30)
    return sum(2 * math.prod(shape) for _, shape in layout.values()) / 1e9


def write_moge(path: Path, config: Spear1Config, shapes: dict) -> float:
    """``model.pt`` with encoder and head, float32."""
    state = {}
    for ours, piece in expand(dinov2_rules(MOGE_PREFIX, 'backbone.', config.moge)).items():
        state[piece.published[0]] = noise(shapes[ours])[(None,) * piece.lead]
    head = MogeHead(MogeConfig(encoder=config.moge))
    state |= {f'head.{name}': tensor for name, tensor in head.state_dict().items()}
    model_config = {'encoder': 'dinov2_vitl14', 'intermediate_layers': config.moge_layers}
    torch.save({'model_config': model_config, 'model': state}, path)
    return path.stat().st_size / 1e9


def noise(shape: tuple) -> torch.Tensor:
    return torch.randn(shape) * 0.02


def write_tokenizer(path: Path, config: Spear1Config) -> None:
    """A tokenizer.json with as many ids as PaliGemma's, 3D tokens left to the conversion."""
    build_small_tokenizer(path)
    state = json.loads(path.read_text())
    base = len(state['model']['vocab'])
    pieces = max(base, config.language.vocab_size - 1024 - 64 - 128 - 1024)
    state['model']['vocab'] |= {f'▁filler{i}': i for i in range(base, pieces)}
    kept = [t for t in state['added_tokens'] if not t['content'].startswith('<3d')]
    for token in kept:
        if token['id'] >= base:
            token['id'] += pieces - base
    state['added_tokens'] = kept
    path.write_text(json.dumps(state))


if __name__ == '__main__':
    main()
