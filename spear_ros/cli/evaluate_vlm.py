"""``spear evaluate-vlm CHECKPOINT FOLDER``: SPEAR-VLM's answers against held-out labels."""

import argparse
import json
import sys
from pathlib import Path

from spear_ros.core.errors import UserError

UNITS = {'metric': 'm', 'affine': 'of the picture'}


def add_parser(subparsers: 'argparse._SubParsersAction[argparse.ArgumentParser]') -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        'evaluate-vlm',
        help="SPEAR-VLM's answers against held-out labels, family by family",
        description='FOLDER is like OUT/val of "spear annotate". Figures: token accuracy, errors '
        'of points, boxes (overlap) and distances, the share of answers of the wrong form (only '
        'possible with --free) and the coverage of the 90 % intervals.',
    )
    parser.add_argument('checkpoint', type=Path, metavar='CHECKPOINT')
    parser.add_argument('folder', type=Path, metavar='FOLDER', help='with questions*.jsonl')
    parser.add_argument('--most', type=int, default=2000, help='first so many questions')
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--free', action='store_true', help='decode without the grammar')
    parser.add_argument(
        '--how',
        choices=('tokens', 'median'),
        default='tokens',
        help='numbers as the answer says them, or the middles of their distributions',
    )
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--json', type=Path, help='write the figures there, too')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print one line per family."""
    from spear_ros.annotation.metrics import score
    from spear_ros.cli.vlm_checkpoint import answer_all, judge, open_vlm
    from spear_ros.processing.spatial_bins import read_bins
    from spear_ros.training.question_data import find_bins, read_questions

    if args.most < 1 or args.batch < 1:
        raise UserError(f'--most {args.most} and --batch {args.batch} must be at least 1.')
    vlm = open_vlm(args.checkpoint, args.device)
    questions = read_questions([str(args.folder)], 'FOLDER')[: args.most]
    questions = [q for q in questions if q.family]
    if not questions:
        raise UserError(f'{args.folder}: no question names its family; annotate again.')
    _, scale_type = read_bins(find_bins([str(args.folder)], 'FOLDER'))
    if scale_type != vlm.scale_type:
        raise UserError(
            f'{args.folder} is {scale_type} and the checkpoint {vlm.scale_type}: lengths of the '
            'two have no common error; evaluate on data of its own scale type.'
        )
    answers = answer_all(vlm, questions, batch=args.batch, free=args.free)
    judged = [judge(q, a, vlm, args.how) for q, a in zip(questions, answers, strict=True)]
    figures = score(judged)
    print(f'{vlm.checkpoint_id}, {len(questions)} questions, lengths in {UNITS[scale_type]}:')
    print(table(figures))
    if args.json is not None:
        told = {'checkpoint': vlm.checkpoint_id, 'how': args.how, 'free': args.free,
                'scale_type': scale_type, 'families': figures}  # fmt: skip
        try:
            args.json.write_text(json.dumps(told, indent=2) + '\n', encoding='utf-8')
        except OSError as error:
            raise UserError(f'--json {args.json}: cannot write ({error.strerror}).') from None
        print(f'written to {args.json}', file=sys.stderr)
    return 0


def table(figures: dict[str, dict[str, float]]) -> str:
    """Families as rows of text, figures that they have as ``name value``."""
    width = max(len(family) for family in figures)
    lines = []
    for family, values in figures.items():
        told = '  '.join(
            f'{name} {value:.0f}' if name == 'n' else f'{name} {value:.3g}'
            for name, value in values.items()
        )
        lines.append(f'{family:{width}}  {told}')
    return '\n'.join(lines)
