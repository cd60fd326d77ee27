"""``spear checkpoint``: look into a checkpoint, check every byte of it, or make one.

``convert`` is the only command that opens a PyTorch pickle (MoGe's ``model.pt``, as plain tensors).
"""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from spear_ros.core.config import load_yaml
from spear_ros.core.errors import UserError

if TYPE_CHECKING:
    from spear_ros.checkpoints.key_map import KeyReport
    from spear_ros.checkpoints.moge import MogeWeights
    from spear_ros.networks.config import Spear1Config

_DTYPES = ('bfloat16', 'float32', 'float16')


def add_parser(subparsers: 'argparse._SubParsersAction[argparse.ArgumentParser]') -> None:
    """Add this command."""
    parser = subparsers.add_parser('checkpoint', help='inspect, verify or convert model weights')
    actions = parser.add_subparsers(dest='action', required=True, metavar='ACTION')
    inspect = actions.add_parser('inspect', help='what a folder or a weights file holds')
    inspect.add_argument('path', type=Path)
    inspect.add_argument('--tensors', action='store_true', help='list every tensor')
    inspect.add_argument('--size', default='spear1', help='sizes to hold other weights against')
    verify = actions.add_parser('verify', help='read every byte: hashes, shapes, finite weights')
    verify.add_argument('path', type=Path)
    convert = actions.add_parser(
        'convert',
        help='PaliGemma + MoGe-1 to an untrained SPEAR-1, or MoGe-1 alone to safetensors',
    )
    convert.add_argument('--paligemma', type=Path, help='google/paligemma-3b: folder or file')
    convert.add_argument('--moge', type=Path, help='Ruicheng/moge-vitl: model.pt, or its folder')
    convert.add_argument('--released', type=Path, help='weights released by the authors of SPEAR-1')
    convert.add_argument('--table', type=Path, help='names of the release: JSON, ours -> theirs')
    convert.add_argument('--norm-stats', type=Path, help='norm_stats.json of the release')
    convert.add_argument('--tokenizer', type=Path, help='tokenizer.json; 3D tokens are appended')
    convert.add_argument('--size', default='spear1', help='name of the sizes, or a YAML file')
    convert.add_argument('--dtype', choices=_DTYPES, default='bfloat16')
    convert.add_argument('--seed', type=int, default=0, help='of everything freshly initialised')
    convert.add_argument('--covariance-scale', type=float, default=1e-5, help='new embeddings')
    convert.add_argument('--output', type=Path, required=True, help='folder to write')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do what was asked; every fault of the input is one sentence."""
    actions = {'inspect': _inspect, 'verify': _verify, 'convert': _convert}
    actions[args.action](args)
    return 0


def _inspect(args: argparse.Namespace) -> None:
    from spear_ros.checkpoints.spear1 import describe_checkpoint, read_config
    from spear_ros.checkpoints.tensor_files import TensorFiles

    if not args.path.exists():
        raise UserError(f'{args.path}: no such file or folder; check the path.')
    if _is_ours(args.path):
        print(describe_checkpoint(args.path))
        config = read_config(args.path)
        for name, spec in config.embodiments.items():
            print(
                f'  {name}: {spec.horizon} knots at {spec.rate_hz:g} Hz of {spec.ee_frame} in '
                f'{spec.base_frame}, relative to {spec.relative_to}, image fit {config.image_fit}'
            )
    elif _is_moge(args.path):
        from spear_ros.checkpoints.moge import open_moge

        _print_moge(open_moge(args.path))
    else:
        _inspect_foreign(TensorFiles(args.path), args)
    if args.tensors and not _is_moge(args.path):
        for name, entry in TensorFiles(args.path).entries.items():
            print(f'  {name}  {tuple(entry.shape)}  {str(entry.dtype).removeprefix("torch.")}')


def _inspect_foreign(files: object, args: argparse.Namespace) -> None:
    """Hold unknown safetensors against PaliGemma's names and print what does not fit."""
    from spear_ros.checkpoints.convert import PALIGEMMA_PREFIXES
    from spear_ros.checkpoints.paligemma import open_paligemma
    from spear_ros.checkpoints.spear1 import model_shapes

    count = len(files.entries)  # type: ignore[attr-defined]
    print(f'{args.path}: {count} tensors, {files.n_bytes / 1e6:.0f} MB')  # type: ignore[attr-defined]
    config = _sizes(args.size)
    try:
        _, report = open_paligemma(args.path, config, PALIGEMMA_PREFIXES, model_shapes(config))
    except UserError as error:
        print(f'  not PaliGemma: {error}')
        return
    print(f'  PaliGemma, {"fits" if report.fits else "does not fit"} the sizes "{args.size}"')
    _print_report('PaliGemma', report)


def _verify(args: argparse.Namespace) -> None:
    from spear_ros.checkpoints.spear1 import TOKENIZER, describe_checkpoint, read_norm_stats
    from spear_ros.checkpoints.tensor_files import TensorFiles
    from spear_ros.checkpoints.verification import check_finite, verify_checkpoint
    from spear_ros.processing.embodiments import check_action_spec
    from spear_ros.processing.normalization import check_norm_stats
    from spear_ros.processing.tokens import TextTokenizer

    if args.path.exists() and not _is_ours(args.path):
        files = TensorFiles(args.path)
        check_finite(files)
        print(f'{args.path}: {len(files.entries)} tensors, headers sound, every number finite.')
        return
    config = verify_checkpoint(args.path)
    check_norm_stats(read_norm_stats(args.path))
    for spec in config.embodiments.values():
        check_action_spec(spec)
    tokenizer = TextTokenizer(args.path / TOKENIZER)
    rows = config.model.language.vocab_size
    if tokenizer.n_rows > rows:
        raise UserError(
            f'{args.path / TOKENIZER}: {tokenizer.n_rows} ids and the embedding has {rows} rows; '
            'export the checkpoint again with its own tokenizer.'
        )
    print(f'{describe_checkpoint(args.path)}\nevery byte is as it was exported.')


def _convert(args: argparse.Namespace) -> None:
    chosen = [n for n in ('paligemma', 'released') if getattr(args, n) is not None]
    if len(chosen) == 2:
        raise UserError('--paligemma and --released exclude each other; give one of them.')
    if args.covariance_scale < 0:
        raise UserError(f'--covariance-scale {args.covariance_scale} must not be negative.')
    if chosen == ['released']:
        _convert_released(args)
    elif chosen == ['paligemma']:
        _convert_spear1(args)
    elif args.moge is not None:
        from spear_ros.checkpoints.moge import convert_moge

        weights = _open_moge(args.moge)
        convert_moge(weights, args.output)
        _print_moge(weights)
        print(f'wrote {args.output}')
    else:
        raise UserError('nothing to convert; give --paligemma and --moge, --moge, or --released.')


def _convert_spear1(args: argparse.Namespace) -> None:
    import torch

    from spear_ros.checkpoints.convert import FreshParts, convert_spear1
    from spear_ros.checkpoints.spear1 import CheckpointContents, describe_checkpoint
    from spear_ros.processing.embodiments import default_action_specs, default_norm_stats
    from spear_ros.processing.tokens import add_spatial_tokens

    for name in ('moge', 'tokenizer'):
        if getattr(args, name) is None:
            raise UserError(f'--{name} is missing; SPEAR-1 needs PaliGemma, MoGe and a tokenizer.')
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / 'tokenizer.json'
        spatial = add_spatial_tokens(args.tokenizer, tokenizer)
        contents = CheckpointContents(
            model=_sizes(args.size),
            specs=default_action_specs(),
            stats=default_norm_stats(),
            tokenizer=tokenizer,
            recipe='PaliGemma and MoGe-1 as published, untrained expert',
        )
        fresh = FreshParts(
            spatial_ids=spatial, seed=args.seed, covariance_scale=args.covariance_scale
        )
        result = convert_spear1(
            args.output,
            contents,
            args.paligemma,
            _open_moge(args.moge),
            fresh,
            dtype=getattr(torch, args.dtype),
        )
    for name, report in result.reports.items():
        _print_report(name, report)
    print(describe_checkpoint(args.output))


def _convert_released(args: argparse.Namespace) -> None:
    import torch

    from spear_ros.checkpoints import released_spear1
    from spear_ros.checkpoints.spear1 import (
        CheckpointContents,
        describe_checkpoint,
        model_shapes,
        read_norm_stats_file,
        save_checkpoint,
    )
    from spear_ros.checkpoints.tensor_files import TensorFiles
    from spear_ros.processing.embodiments import default_action_specs
    from spear_ros.processing.normalization import check_norm_stats

    for name in ('tokenizer', 'norm_stats'):
        if getattr(args, name) is None:
            option = name.replace('_', '-')
            raise UserError(f"--{option} is missing; a robot moves by it, give the release's own.")
    print(f'note: {released_spear1.UNTRIED}.')
    config = _sizes(args.size)
    files = TensorFiles(args.released)
    source, report = released_spear1.open_released(files, config, model_shapes(config), args.table)
    _print_report('released', report)
    report.require_fit(
        args.released, 'complete the table of names (--table) with the report above.'
    )
    stats = read_norm_stats_file(args.norm_stats)
    check_norm_stats(stats)
    contents = CheckpointContents(
        model=config,
        specs=default_action_specs(),
        stats=stats,
        tokenizer=args.tokenizer,
        trained=True,
        recipe='released SPEAR-1 weights through an adapter that was never tried on them',
    )
    save_checkpoint(args.output, contents, source, dtype=getattr(torch, args.dtype))
    print(describe_checkpoint(args.output))


def _sizes(name: str) -> 'Spear1Config':
    from spear_ros.networks.config import Spear1Config

    try:
        if name.endswith(('.yaml', '.yml')):
            return load_yaml(name, Spear1Config)
        return Spear1Config.named(name)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f'--size: {error}') from None


def _is_ours(path: Path) -> bool:
    return (path / 'norm_stats.json').is_file() or _config_mentions(path, b'"format_version"')


def _is_moge(path: Path) -> bool:
    return _config_mentions(path, b'"model_config"')


def _config_mentions(path: Path, key: bytes) -> bool:
    file = path / 'config.json'
    if not file.is_file():
        return False
    with file.open('rb') as stream:
        return key in stream.read(4096)


def _open_moge(path: Path) -> 'MogeWeights':
    from spear_ros.checkpoints.moge import open_moge, open_moge_pickle

    return open_moge(path) if path.is_dir() else open_moge_pickle(path)


def _print_moge(weights: 'MogeWeights') -> None:
    count = len(list(weights.source.names()))
    print(
        f'MoGe-1, encoder {weights.encoder}, {count} tensors, last {weights.n_layers} blocks, '
        f'{weights.tokens_range[0]} to {weights.tokens_range[1]} patches'
    )


def _print_report(name: str, report: 'KeyReport') -> None:
    for line in report.lines():
        print(f'  {name}: {line}')
