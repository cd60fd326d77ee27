"""The engine's chunks against the plain networks in twice the precision: is fusing harmless?

    PYTHONPATH=. python benchmarks/engine_accuracy.py [--size spear1] [--device cuda] [--inputs 100]

Random weights and inputs, every instruction bucket (partly filled) with one and two cameras in
turn. Gates: with graphs and without give the same bytes; the same request twice gives the same
bytes; the engine's error (median over all knots of the root mean square, model units) is at most a
stated multiple of the error that the plain networks make in the engine's own type. Exit status 1
when one fails. The last line is one JSON object.
"""

import argparse
import copy
import json
import sys
import time

import numpy as np
import torch
from _peers import prefix_of
from compare_peers import build, dtype_of

from spear_ros.inference import hardware
from spear_ros.inference.engine import (
    Engine,
    EngineRequest,
    EngineSettings,
    check_device,
    chunk_noise,
)
from spear_ros.processing.images import ImageSize, fit_image
from spear_ros.processing.tokens import TextTokens

DTYPES = {'bfloat16': torch.bfloat16, 'float32': torch.float32}
ABOVE = {torch.bfloat16: torch.float32, torch.float32: torch.float64}
NOISE_LIMIT = {torch.bfloat16: 1.5, torch.float32: 3.0}
"""Engine's error over plain networks' error. In float32 both are rounding of the last digit, and
the folded weights are rounded once more."""


def random_request(config, buckets, i, camera):
    """Request ``i``: bucket and number of cameras go round, everything else is drawn from ``i``.

    ``camera`` is (height, width) of the pictures that the engine has to fit.
    """
    rng = np.random.default_rng(i)
    length = buckets[i % len(buckets)]
    real = int(rng.integers(3, length + 1))
    ids = np.where(np.arange(length) < real, rng.integers(3, 2000, length), 0)
    wrist = rng.integers(0, 256, (*camera, 3), dtype=np.uint8)
    return EngineRequest(
        external=rng.integers(0, 256, (*camera, 3), dtype=np.uint8),
        wrist=None if i // len(buckets) % 2 else wrist,
        text=TextTokens(ids, np.arange(length) < real),
        proprio=rng.normal(size=8),
        noise=chunk_noise(config, i, 0),
    )


@torch.no_grad()
def plain_chunk(model, request, device):
    """The networks' own sampling of one request, without padding."""
    config = model.config
    sizes = (ImageSize(*config.external_size), ImageSize(*config.wrist_size))
    raw = [p for p in (request.external, request.wrist) if p is not None]
    dtype = model.vlm.language.norm.weight.dtype
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    pictures = [
        fit_image(torch.from_numpy(p).to(device), s)[None].to(exact)
        for p, s in zip(raw, sizes, strict=False)
    ]
    tokens = torch.from_numpy(request.text.ids[request.text.mask]).to(device)[None]
    proprio, noise = (
        torch.as_tensor(a, device=device).to(exact)[None] for a in (request.proprio, request.noise)
    )
    return model.sample(prefix_of(pictures, tokens), proprio, noise)[0].double().cpu().numpy()


def median_row(values):
    """Median over all knots of the root mean square of a knot's error."""
    return float(np.median(np.sqrt(np.mean(np.square(np.concatenate(values)), axis=-1))))


def rms(values):
    """Root mean square over all chunks together."""
    return float(np.sqrt(np.mean(np.square(np.stack(values)))))


def parse():
    """Read the command line."""
    parser = argparse.ArgumentParser(description="the engine's accuracy")
    parser.add_argument('--size', default='spear1_tiny')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--dtype', choices=sorted(DTYPES), help='default: of the device')
    parser.add_argument('--inputs', type=int, default=0, help='default 100, on a CPU 8')
    parser.add_argument('--seconds', type=float, default=45.0, help='no new input after that')
    return parser.parse_args()


def measure(args, device):
    """Chunks of all programs for all inputs; the figures."""
    torch.backends.cudnn.allow_tf32 = False  # the reference is to be exact in its convolutions too
    dtype = DTYPES[args.dtype] if args.dtype else dtype_of(device)
    model = build(args.size, dtype, device)
    exact = copy.deepcopy(model).to(ABOVE[dtype])
    exact.bake()
    graph = Engine(model, device, EngineSettings())
    eager = Engine(model, device, EngineSettings(capture_graph=False))
    differs, repeats, fused, plain, largest, buckets = 0.0, 0.0, [], [], 0.0, set()
    end = time.monotonic() + args.seconds
    count = args.inputs or (100 if device.type == 'cuda' else 8)
    for i in range(count):
        if fused and time.monotonic() > end:
            break
        request = random_request(model.config, graph.buckets, i, (240, 320))
        a = graph.compute(request).actions.copy()
        differs = max(differs, np.abs(a - eager.compute(request).actions).max())
        repeats = max(repeats, np.abs(a - graph.compute(request).actions).max())
        truth = plain_chunk(exact, request, device)
        fused.append(a - truth)
        plain.append(plain_chunk(model, request, device) - truth)
        largest = max(largest, np.abs(fused[-1]).max())
        buckets.add((len(request.text.ids), request.wrist is not None))
    # Medians: a rotation of half a turn changes its sign by a rounding, in one row of a thousand,
    # and that row alone would decide a mean of squares.
    ratio = median_row(fused) / max(median_row(plain), 1e-12)
    return {
        'dtype': str(dtype).removeprefix('torch.'),
        'inputs': len(fused),
        'of': count,
        'shapes': sorted(buckets),
        'captured': graph.captures,
        'engine_median': median_row(fused),
        'plain_median': median_row(plain),
        'engine_rms': rms(fused),
        'plain_rms': rms(plain),
        'engine_largest': float(largest),
        'gates': [
            {'name': 'graph against eager', 'value': float(differs), 'limit': 0.0},
            {'name': 'same request twice', 'value': float(repeats), 'limit': 0.0},
            {'name': 'error over plain error', 'value': ratio, 'limit': NOISE_LIMIT[dtype]},
        ],
    }


def main():
    """Print gates and figures; exit status 1 when a gate is missed."""
    args = parse()
    device = check_device(args.device)
    report = {'benchmark': 'engine_accuracy', 'size': args.size} | measure(args, device)
    report['hardware'] = hardware.describe(device)
    failed = [g['name'] for g in report['gates'] if not g['value'] <= g['limit']]
    report['failed'] = failed
    for gate in report['gates']:
        print(f'{gate["name"]}: {gate["value"]:.4g}, limit {gate["limit"]:g}')
    print(json.dumps(report))
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
