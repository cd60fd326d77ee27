"""``spear benchmark``: how fast a chunk is here, stage by stage, against what the hardware allows.

"stage, alone" are the plain networks (on a GPU: one captured graph each). "engine" is what the
robot runs: its stages, all of them in one on the device, and the whole call from the cameras'
pictures in host memory to the chunk in host memory. "floor" is the least time by the roofline of
this very card, measured first; "share" is floor over measured. What cannot be measured here stays
empty. The last line of the output is one JSON object.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from spear_ros.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from spear_ros.inference.chunk_report import Plan, Report
    from spear_ros.networks.spear1 import Spear1
    from spear_ros.processing.images import ImageFit

COST_STEPS = (1, 5, 10, 20)
COST_HORIZONS = (10, 50)
_DTYPES = ('auto', 'stored', 'float32', 'bfloat16')


def add_parser(subparsers: 'argparse._SubParsersAction[argparse.ArgumentParser]') -> None:
    """Add this command."""
    parser = subparsers.add_parser('benchmark', help='time a chunk, stage by stage')
    which = parser.add_mutually_exclusive_group()
    which.add_argument('--checkpoint', type=Path, help='folder of a checkpoint')
    which.add_argument(
        '--size', help='random weights of this size instead (default: spear1_tiny, on CUDA spear1)'
    )
    parser.add_argument('--device', default='auto', help='auto, cpu or cuda')
    parser.add_argument('--dtype', choices=_DTYPES, default='auto', help='auto as in the policy')
    parser.add_argument('--threads', type=int, default=0, help='CPU threads; 0 = torch decides')
    parser.add_argument('--cameras', type=int, choices=(1, 2), default=2)
    parser.add_argument('--camera-size', default='640x480', help='pictures as WIDTHxHEIGHT')
    parser.add_argument('--steps', type=int, default=0, help="Euler steps; 0 = the model's")
    parser.add_argument('--text', type=int, default=0, help='instruction tokens; 0 = the budget')
    parser.add_argument('--buckets', action='store_true', help='time every instruction length')
    parser.add_argument('--costs', action='store_true', help='vary cameras, steps and horizon')
    parser.add_argument('--eager', action='store_true', help='the engine without graphs')
    parser.add_argument('--kernels', choices=('auto', 'triton', 'torch'), default='auto')
    parser.add_argument('--seconds', type=float, default=2.0, help='per measurement, at least 3')
    parser.add_argument('--output', type=Path, help='write the JSON object here too')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    import torch

    from spear_ros.annotation.store import write_atomically
    from spear_ros.inference.chunk_bench import measure
    from spear_ros.inference.chunk_report import table
    from spear_ros.inference.engine import check_device
    from spear_ros.inference.hardware import commit_of

    device = check_device(args.device)
    if args.seconds <= 0:
        raise UserError(f'--seconds = {args.seconds}: must be above 0.')
    if args.threads:
        torch.set_num_threads(args.threads)
    model, plan = _plan(args, device)
    commit = commit_of(Path(__file__).resolve().parents[2])

    def as_text(report: 'Report') -> str:
        return json.dumps(report.as_dict() | {'commit': commit})

    def keep(report: 'Report') -> None:
        if args.output:
            write_atomically(args.output, f'{as_text(report)}\n'.encode())

    report = measure(model, plan, keep)
    for line in table(report):
        print(line)
    print(as_text(report))
    return 1 if report.missing else 0


def _plan(args: argparse.Namespace, device: 'torch.device') -> 'tuple[Spear1, Plan]':
    from spear_ros.inference.chunk_report import Plan
    from spear_ros.inference.engine import EngineSettings
    from spear_ros.inference.kernels import choose_ops
    from spear_ros.inference.roofline import Workload

    EngineSettings(steps=args.steps)  # refuses a number that no engine would take
    model, name, fit = _loaded(args, device) if args.checkpoint else _drawn(args, device)
    weight = model.vlm.language.norm.weight
    choose_ops(args.kernels, device, weight.dtype, model.config.suffix_tokens)
    if args.text > model.config.text_length:
        raise UserError(
            f'--text = {args.text}: the model has room for {model.config.text_length} tokens.'
        )
    load = Workload(
        config=model.config,
        cameras=args.cameras,
        text=args.text or model.config.text_length,
        steps=args.steps,
        weight_bytes=weight.element_size(),
    )
    return model, Plan(
        name=name,
        load=load,
        camera=_camera(args.camera_size),
        image_fit=fit,
        buckets=args.buckets,
        cost_steps=COST_STEPS if args.costs else (),
        cost_horizons=COST_HORIZONS if args.costs else (),
        capture_graph=not args.eager,
        kernels=args.kernels,
        seconds=args.seconds,
    )


def _loaded(args: argparse.Namespace, device: 'torch.device') -> 'tuple[Spear1, str, ImageFit]':
    from spear_ros.checkpoints.spear1 import load_checkpoint
    from spear_ros.inference.denoiser import refuse_on_failure

    with refuse_on_failure(f'loading {args.checkpoint} to {device}'):
        loaded = load_checkpoint(args.checkpoint, device, _dtype(args.dtype, device))
    return loaded.model, f'{args.checkpoint} ({loaded.checkpoint_id})', loaded.config.image_fit


def _drawn(args: argparse.Namespace, device: 'torch.device') -> 'tuple[Spear1, str, ImageFit]':
    """Random weights, drawn on the device in the type that is timed."""
    import torch

    from spear_ros.inference.denoiser import refuse_on_failure
    from spear_ros.networks.spear1 import Spear1, Spear1Config

    size = args.size or ('spear1' if device.type == 'cuda' else 'spear1_tiny')
    try:
        config = Spear1Config.named(size)
    except ValueError as error:
        raise UserError(f'--size: {error}') from None
    with refuse_on_failure(f'drawing the weights of {size} on {device}'), torch.no_grad():
        torch.manual_seed(0)
        with torch.device('meta'):
            model = Spear1(config)
        model = model.to(_dtype(args.dtype, device) or torch.float32).to_empty(device=device)
        model.initialize()
    return model, f'{size} (random weights)', 'crop'


def _dtype(name: str, device: 'torch.device') -> 'torch.dtype | None':
    import torch

    if name == 'stored':
        return None
    if name == 'auto':
        name = 'bfloat16' if device.type == 'cuda' else 'float32'
    return {'float32': torch.float32, 'bfloat16': torch.bfloat16}[name]


def _camera(text: str) -> tuple[int, int]:
    width, _, height = text.partition('x')
    if not (width.isdigit() and height.isdigit()):
        raise UserError(f'--camera-size = {text}: write WIDTHxHEIGHT, such as 640x480.')
    return int(height), int(width)
