"""``spear data``: converts recordings to training data, examines it, computes its statistics."""

import argparse
import sys
from pathlib import Path

from spear_ros.core.errors import UserError
from spear_ros.core.types import NormStats
from spear_ros.data.checks import DatasetReport, check_dataset, format_reports
from spear_ros.data.conversion import (
    ConversionReport,
    ConversionSettings,
    Source,
    convert_to_lerobot,
    convert_to_shards,
    throttled,
)
from spear_ros.data.mixtures import Mixture, MixturePart, load_mixture, without_missing
from spear_ros.data.resampling import ResampleSettings
from spear_ros.data.rows import find_row, load_rows
from spear_ros.data.samples import PictureSettings
from spear_ros.data.shards import ShardDataset, open_datasets
from spear_ros.data.sources import bag_source, lerobot_source, rlds_source
from spear_ros.data.statistics import (
    check_data_hash,
    compute,
    load_norm_stats,
    sample_rows,
    save_norm_stats,
)
from spear_ros.data.topic_map import load_topic_map

DEFAULT_HORIZON = 5


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declare ``spear data convert|check|stats|list``."""
    parser = subparsers.add_parser('data', help=__doc__, description=__doc__)
    actions = parser.add_subparsers(dest='action', metavar='ACTION', required=True)
    _add_convert(actions)
    _add_check(actions)
    stats = actions.add_parser('stats', help='compute one NormStats over a mixture of shards')
    _add_mixture(stats)
    stats.add_argument('--kind', choices=['quantile', 'minmax', 'mean_std'], default='quantile')
    stats.add_argument('--limit', type=int, default=200_000, help='samples of each data set')
    stats.add_argument('--out', type=Path, required=True, metavar='FILE.json')
    listing = actions.add_parser('list', help='show the rows of the published data sets')
    listing.add_argument('--rows', type=Path, metavar='FILE.yaml')
    listing.add_argument('--traps', action='store_true', help='what is special about each')


def _add_convert(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        'convert',
        help='rosbag2, ROS 1 bags, RLDS or LeRobot to shards or to LeRobot v3 or v2.1',
        description='A killed run goes on where it was when it is started again.',
    )
    parser.add_argument('source', type=Path, nargs='+', help='folder or bag; several bags')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument(
        '--to',
        choices=['shards', 'lerobot', 'lerobot-v2.1'],
        default='shards',
        help='lerobot = v3',
    )
    parser.add_argument('--map', type=Path, metavar='MAP.yaml', help='topic map; source is bags')
    parser.add_argument('--row', help='row of the data set; source is RLDS or LeRobot')
    parser.add_argument('--rows', type=Path, metavar='FILE.yaml', help='file with your own rows')
    parser.add_argument('--name', help='name of the data set made from bags')
    parser.add_argument('--split', default='train', help='RLDS split')
    parser.add_argument('--labels', choices=['reached', 'commanded'], default='reached')
    parser.add_argument('--part', default='0/1', help='I/N: share I (from 0) of N processes')
    parser.add_argument('--limit', type=int, default=0, help='stop after so many episodes')
    parser.add_argument('--shard-mb', type=int, default=256)
    parser.add_argument(
        '--picture-size', default='320x240', metavar='WxH', help='largest stored picture'
    )
    parser.add_argument('--jpeg-quality', type=int, default=92)
    parser.add_argument(
        '--keep-without-instruction', action='store_true', help='else such episodes are left out'
    )
    parser.add_argument(
        '--skip-damaged', action='store_true', help='go on after a damaged or missing file'
    )


def _add_check(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        'check', help='rates, quantiles, gripper sign, jumps and more of converted data'
    )
    parser.add_argument('data', type=Path, nargs='+', help='shard folders')
    parser.add_argument(
        '--stats',
        type=Path,
        metavar='FILE.json|CHECKPOINT',
        help='from `spear data stats`, or of the checkpoint to fine-tune',
    )
    parser.add_argument('--plots', type=Path, metavar='DIR', help='write one PNG per data set')
    parser.add_argument('--limit', type=int, default=20_000, help='samples looked at per data set')
    parser.add_argument('--verify', action='store_true', help='compare checksums of all shards')
    parser.add_argument('--allow-partial', action='store_true', help='unfinished conversions too')


def _add_mixture(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('data', type=Path, nargs='+', help='shard folders')
    parser.add_argument('--mixture', help='name or file; without one, all samples count alike')
    parser.add_argument(
        '--skip-missing', action='store_true', help='leave out parts without converted data'
    )


def run(args: argparse.Namespace) -> int:
    """Run the chosen action; 1 where a check found errors."""
    return {'convert': _convert, 'check': _check, 'stats': _stats, 'list': _list}[args.action](args)


def _convert(args: argparse.Namespace) -> int:
    settings = ConversionSettings(
        resample=ResampleSettings(label=args.labels, horizon=DEFAULT_HORIZON),
        pictures=PictureSettings(
            external_size=_size(args.picture_size),
            wrist_size=_size(args.picture_size),
            jpeg_quality=args.jpeg_quality,
        ),
        part=_part(args.part),
        shard_mb=args.shard_mb,
        limit=args.limit,
        lerobot='v2.1' if args.to == 'lerobot-v2.1' else 'v3.0',
        require_instruction=not args.keep_without_instruction,
    )
    source = _source(args)
    convert = convert_to_shards if args.to == 'shards' else convert_to_lerobot
    if args.to != 'shards' and settings.part[1] > 1:
        raise UserError(f'--part {args.part}: a LeRobot directory is written by one process.')
    report = convert(source, args.out, settings, throttled(lambda s: print(s, file=sys.stderr)))
    print(f'{args.out}: {report.text()}')
    return 0 if _wrote_something(report) else 1


def _wrote_something(report: ConversionReport) -> bool:
    return bool(report.episodes or report.already_there)


def _source(args: argparse.Namespace) -> Source:
    if args.map is not None:
        topic_map = load_topic_map(args.map)
        return bag_source(args.source, topic_map, args.name or f'bags_{topic_map.embodiment}')
    if args.row is None:
        raise UserError('give --map MAP.yaml for bags, or --row NAME for RLDS and LeRobot.')
    if len(args.source) != 1:
        raise UserError(f'{len(args.source)} sources given; RLDS and LeRobot take one folder.')
    row = find_row(load_rows(args.rows), args.row)
    if row.format == 'lerobot':
        return lerobot_source(args.source[0], row)
    return rlds_source(args.source[0], row, split=args.split, skip_damaged=args.skip_damaged)


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.split('x'))
    except ValueError:
        raise UserError(f'--picture-size {text} is not of the form 320x240.') from None
    return height, width


def _part(text: str) -> tuple[int, int]:
    try:
        index, count = (int(part) for part in text.split('/'))
    except ValueError:
        raise UserError(f'--part {text} is not of the form 0/8.') from None
    return index, count


def _check(args: argparse.Namespace) -> int:
    stats = _stats_of(args.stats) if args.stats else None
    datasets = open_datasets(args.data, allow_partial=args.allow_partial)
    reports: list[DatasetReport] = []
    damaged: list[Path] = []
    for dataset in datasets.values():
        reports.append(check_dataset(dataset, stats, limit=args.limit))
        if args.verify:
            damaged += list(dataset.damaged_shards())
        if args.plots:
            from spear_ros.data.plots import plot_dataset

            numbers = sample_rows(dataset, args.limit, seed=0)
            note = reports[-1].frames
            if (rates := reports[-1].source.rate_hz) is not None:
                note += f'\nrecorded at {rates[1]:.2f} Hz ({rates[0]:.2f} to {rates[2]:.2f})'
            card = dataset.card
            path = plot_dataset(card.name, numbers, card.spec, stats, args.plots, note)
            print(f'plot: {path}', file=sys.stderr)
    print(format_reports(reports))
    for path in damaged:
        print(f'error: {path} has changed since it was written; copy or convert it again.')
    if args.verify and not damaged:
        print(f'checksums of {sum(len(d.shards) for d in datasets.values())} shards are right.')
    errors = [f for r in reports for f in r.findings if f.severity == 'error']
    return 1 if errors or damaged else 0


def _stats_of(path: Path) -> NormStats:
    """Statistics of a file of ``spear data stats``, or those of a checkpoint's folder."""
    if not path.is_dir():
        return load_norm_stats(path)
    from spear_ros.checkpoints.spear1 import read_norm_stats

    return read_norm_stats(path)


def _stats(args: argparse.Namespace) -> int:
    datasets = open_datasets(args.data)
    mixture = _mixture(args, datasets)
    stats = compute(mixture, datasets, args.kind, limit=args.limit)
    check_data_hash(stats, mixture, datasets)
    save_norm_stats(args.out, stats, mixture)
    print(f'{args.out}: {stats.kind} over mixture {mixture.name}, data {stats.data_hash}')
    for name in ('translation', 'position'):
        low, high = getattr(stats, f'{name}_low'), getattr(stats, f'{name}_high')
        shown = ', '.join(f'{a:+.4f} {b:+.4f}' for a, b in zip(low, high, strict=True))
        print(f'  {name} x, y, z (m): {shown}')
    return 0


def _mixture(args: argparse.Namespace, datasets: dict[str, ShardDataset]) -> Mixture:
    if args.mixture is None:
        parts = tuple(
            MixturePart(dataset=name, weight=1.0, weight_from='ours') for name in sorted(datasets)
        )
        return Mixture(name='all-samples-alike', weight_is='size_multiplier', parts=parts)
    mixture = load_mixture(args.mixture)
    if args.skip_missing:
        mixture, gone = without_missing(mixture, set(datasets))
        if gone:
            print(f'left out of the mixture: {", ".join(gone)}', file=sys.stderr)
    return mixture


def _list(args: argparse.Namespace) -> int:
    rows = load_rows(args.rows)
    print(f'{"row":26} {"Hz":>4} {"robot":36} {"pose":20} {"tried on real data"}')
    for row in rows.values():
        print(
            f'{row.name:26} {row.rate_hz:4g} {row.robot:36} {row.pose.encoding:20} '
            f'{row.tried_on_real_data}'
        )
        if args.traps:
            for trap in row.traps:
                print(f'    - {trap}')
            for doubt in row.unverified:
                print(f'    ? {doubt}')
    return 0
