"""``spear annotate``: label plain pictures in 3D and make questions of them."""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from spear_ros.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from spear_ros.annotation.gemini import GeminiSettings
    from spear_ros.annotation.pipeline import Stages
    from spear_ros.annotation.types import Detector


def add_parser(subparsers: 'argparse._SubParsersAction[argparse.ArgumentParser]') -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        'annotate',
        help='label plain pictures in 3D and make questions of them',
        description='Finished work is found again: start the same command after a kill. Several '
        'processes share by --shard; then one more call with --finish writes the training data.',
    )
    parser.add_argument(
        'images', nargs='+', metavar='IMAGES',
        help='folder of pictures; or "show OUT": write OUT/show/index.html of what is annotated',
    )  # fmt: skip
    parser.add_argument('--count', type=int, default=20, help='pictures on the page of "show"')
    parser.add_argument('--out', type=Path)
    parser.add_argument('--detector', choices=['replay', 'gemini', 'text'], default='replay')
    parser.add_argument('--boxes', type=Path, metavar='DIR', help='stored boxes, for replay')
    masks = parser.add_mutually_exclusive_group()
    masks.add_argument('--masks', type=Path, metavar='DIR', help='given masks, with --boxes')
    masks.add_argument('--sam2', metavar='NAME', help='weights of SAM2, a name or a folder')
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument('--depth', type=Path, metavar='DIR', help='given depth')
    depth.add_argument('--moge', type=Path, metavar='DIR', help='converted MoGe-1 weights')
    parser.add_argument('--device', default='cpu', help='of MoGe and SAM2')
    parser.add_argument('--box-kind', default='minimal', help='pca or minimal')
    parser.add_argument('--shard', default='0/1', help='I/N: share I (from 0) of N processes')
    parser.add_argument('--finish', action='store_true', help='only write the training data')
    parser.add_argument('--val-percent', type=int, default=5)
    parser.add_argument('--scale', choices=['metric', 'affine'], help='keep only this scale type')
    parser.add_argument('--source', default='', help='name of the data, kept with every answer')
    parser.add_argument('--gemini-model', default='gemini-2.5-flash')
    parser.add_argument(
        '--usd-per-million', metavar='IN,OUT', help='prices of the paid service, for the estimate'
    )
    parser.add_argument(
        '--text-model', default='IDEA-Research/grounding-dino-base', metavar='NAME',
        help='GroundingDINO or OWLv2, a name or a folder, for the detector text',
    )  # fmt: skip
    parser.add_argument('--labels', default='', metavar='A,B', help='what that one looks for')
    parser.add_argument('--yes', action='store_true', help='agree to the estimated price')
    parser.add_argument(
        '--requests-per-minute', type=float, default=30.0, help='to the paid service, of all shares'
    )
    parser.add_argument(
        '--bins', type=Path, metavar='FILE',
        help='use this table of 3D tokens in place of one fitted here: sets trained on together '
        'share one',
    )  # fmt: skip
    parser.add_argument(
        '--ray', type=int, default=0, metavar='N',
        help='annotate by N Ray workers (extra annotate-ray), all of which see the same folders',
    )  # fmt: skip
    parser.add_argument(
        '--ray-address', default='', help='of a running cluster, such as auto; else one starts here'
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Annotate, then write the training data where there is one process; or show them."""
    if args.images[0] == 'show':
        return _show(args)
    if len(args.images) > 1 or args.out is None:
        raise UserError('give one folder of pictures and --out DIR; or "show DIR".')
    args.images = Path(args.images[0])
    return _annotate(args)


def _show(args: argparse.Namespace) -> int:
    from spear_ros.annotation.show import write_page

    if len(args.images) != 2 or args.count < 1:
        raise UserError('give "show DIR", the folder that --out named, and --count of 1 or more.')
    print(write_page(Path(args.images[1]), args.count))
    return 0


def _annotate(args: argparse.Namespace) -> int:
    from spear_ros.annotation.given import check_stems
    from spear_ros.annotation.images import ImageSettings, find_images
    from spear_ros.annotation.output import OutputSettings, write_output
    from spear_ros.cli.demonstrations import parse_part

    shard = parse_part(args.shard)
    if not 0 <= args.val_percent <= 50:
        raise UserError(f'--val-percent {args.val_percent}: give 0 to 50.')
    if args.ray and shard != (0, 1):
        raise UserError('--ray deals the pictures out by itself: leave --shard away.')
    if not args.finish:
        names = find_images(args.images)
        if args.detector == 'replay':
            check_stems(names)
        _agree_to_price(args, names[shard[0] :: shard[1]])
        _print_counts(_label(args, names, shard))
        if shard[1] > 1:
            print(f'{args.out}: share {args.shard} is done; when all are: the same with --finish.')
            return 0
    settings = OutputSettings(
        val_percent=args.val_percent,
        scale=args.scale,
        source=args.source or args.images.resolve().name,
        bins=args.bins,
    )
    report = write_output(args.images, args.out, ImageSettings(), settings)
    pairs, scale = report['pairs'], report['scale_type']
    print(f'{args.out}: {pairs["train"]} pairs for training, {pairs["val"]} held out, {scale}')
    for family, error in report['round_trip_error'].items():
        print(f'  {family}: {report["families"][family]} pairs, round trip error {error:.5f}')
    return 0


def _label(
    args: argparse.Namespace, names: 'list[str]', shard: tuple[int, int]
) -> 'Mapping[str, int]':
    """Annotate in this process, or by Ray workers."""
    from spear_ros.annotation.gemini import GeminiDetector
    from spear_ros.annotation.pipeline import annotate_folder

    args.pace_share = max(args.ray, shard[1])
    if args.ray:
        from spear_ros.annotation.ray_driver import annotate_with_ray

        return annotate_with_ray(
            args.images, names, partial(_stages, args), args.out, workers=args.ray,
            gpus_per_worker=0.0 if args.device == 'cpu' else 1.0, address=args.ray_address,
            progress=Progress(),
        )  # fmt: skip
    stages = _stages(args)
    counts = annotate_folder(args.images, names, stages, args.out, shard=shard, progress=Progress())
    if isinstance(stages.detector, GeminiDetector):
        counts = {**counts, **{f'service:{k}': n for k, n in stages.detector.used.items()}}
    return counts


def _stages(args: argparse.Namespace) -> 'Stages':
    from spear_ros.annotation.boxes import BoxSettings
    from spear_ros.annotation.given import GivenDepth, GivenMasks
    from spear_ros.annotation.pipeline import Stages
    from spear_ros.annotation.types import DepthEstimator, Segmenter

    if args.masks is None and args.sam2 is None:
        raise UserError('no masks: give --masks DIR or --sam2 NAME.')
    if args.depth is None and args.moge is None:
        raise UserError('no depth: give --depth DIR or --moge DIR.')
    boxes = BoxSettings(kind=args.box_kind)
    detector = _detector(args)
    if args.moge is not None:
        from spear_ros.annotation.moge_depth import MogeDepth

        depth: DepthEstimator = MogeDepth.from_folder(args.moge, args.device)
    else:
        depth = GivenDepth(args.depth)
    if args.sam2 is not None:
        from spear_ros.annotation.sam2 import Sam2Segmenter

        segmenter: Segmenter = Sam2Segmenter.from_pretrained(args.sam2, args.device)
    else:
        segmenter = GivenMasks(args.masks)
    return Stages(detector=detector, segmenter=segmenter, depth=depth, boxes=boxes)


def _detector(args: argparse.Namespace) -> 'Detector':
    from spear_ros.annotation.detectors import ReplayDetector
    from spear_ros.annotation.gemini import GeminiDetector, GenaiService

    if args.detector == 'replay':
        if args.boxes is None:
            raise UserError('the detector replay needs --boxes DIR, the stored boxes.')
        return ReplayDetector(args.boxes)
    if args.masks is not None:
        # Given masks are numbered after given boxes; for other boxes they would be wrong.
        raise UserError('--masks belong to stored boxes: use --sam2 with other detectors.')
    if args.detector == 'gemini':
        return GeminiDetector(_gemini(args), GenaiService())
    from spear_ros.annotation.text_detector import TextDetector

    labels = [' '.join(label.lower().split()) for label in args.labels.split(',')]
    return TextDetector.from_pretrained(args.text_model, labels, device=args.device)


def _gemini(args: argparse.Namespace) -> 'GeminiSettings':
    from spear_ros.annotation.gemini import GeminiSettings

    # Every process keeps its own pace, and all together the one that was asked for.
    pace = args.requests_per_minute / getattr(args, 'pace_share', 1)
    return GeminiSettings(model=args.gemini_model, requests_per_minute=pace)


def _agree_to_price(args: argparse.Namespace, names: 'list[str]') -> None:
    """Tell what a paid detector will cost, and go on only with --yes."""
    if args.detector != 'gemini':
        return
    from spear_ros.annotation.gemini import GeminiDetector, estimate_cost_usd
    from spear_ros.annotation.images import ImageSettings
    from spear_ros.annotation.pipeline import count_unasked

    try:
        price_in, price_out = (float(v) for v in (args.usd_per_million or '').split(','))
        if not (0 <= price_in < 1e4 and 0 <= price_out < 1e4):
            raise ValueError
    except ValueError:
        raise UserError(
            f'--usd-per-million {args.usd_per_million}: give the prices of a million tokens in and '
            'out, such as 0.30,2.50.'
        ) from None
    settings = _gemini(args)
    unasked = count_unasked(
        args.images, names, ImageSettings(), GeminiDetector.name, settings.identity(), args.out
    )
    cost = estimate_cost_usd(unasked, (price_in, price_out), settings)
    print(
        f'{unasked} of {len(names)} pictures are to be asked about: usually {cost.usual:.2f} USD, '
        f'at most {cost.most:.2f} USD'
    )
    if unasked and not args.yes:
        raise UserError('the detector gemini costs money; add --yes to agree.')


class Progress:
    """A bar on stderr with the time that is left, drawn at most a hundred times."""

    def __init__(self, clock: 'Callable[[], float]' = time.monotonic) -> None:
        self._clock, self._started = clock, clock()

    def __call__(self, done: int, total: int) -> None:
        """``done`` of ``total`` pictures are finished."""
        if done != total and done % max(1, total // 100):
            return
        filled = 30 * done // max(1, total)
        passed = self._clock() - self._started
        left = f', {passed / done * (total - done) / 60:.0f} min left' if 0 < done < total else ''
        end = '\n' if done == total else ''
        bar = '#' * filled + '.' * (30 - filled)
        text = f'{bar} {done}/{total} pictures{left}'
        print(f'\r{text:<72}', end=end, file=sys.stderr, flush=True)


def _print_counts(counts: 'Mapping[str, int]') -> None:
    for name, count in sorted(counts.items()):
        print(f'  {name}: {count}')
