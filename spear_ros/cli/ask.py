"""``spear ask IMAGE "where is the red cube?"``: SPEAR-VLM's answer in words and drawn."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.types import ImageArray

if TYPE_CHECKING:
    from spear_ros.annotation.question_words import Asked
    from spear_ros.cli.vlm_checkpoint import OpenVlm
    from spear_ros.inference.vlm import Answer, Estimate

UNITS = {
    'metric': 'm',
    'affine': 'units (affine scale: they hold within this picture only, not metres)',
}
DRAWN_WIDTH = 640


def add_parser(subparsers: 'argparse._SubParsersAction[argparse.ArgumentParser]') -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        'ask',
        help="SPEAR-VLM's answer about a picture, in words and drawn",
        description='Camera frame: x right, y down, z forward. The doubt printed is the '
        "network's own, from the distribution over its number tokens; it is not calibrated.",
    )
    parser.add_argument('image', type=Path, metavar='IMAGE')
    parser.add_argument('question', metavar='QUESTION')
    parser.add_argument(
        '--checkpoint', type=Path, required=True, help='export folder of "spear train vlm"'
    )
    parser.add_argument('--out', type=Path, help='PNG (default: <image>_answer.png here)')
    parser.add_argument(
        '--fov-y',
        type=float,
        metavar='DEG',
        help='vertical field of view of the cropped picture: 3D answers are drawn by this camera; '
        'without it the network is asked where it sees the object',
    )
    parser.add_argument(
        '--free', action='store_true', help='any question, decoded without a grammar'
    )
    parser.add_argument('--device', default='cpu')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer one question."""
    from spear_ros.annotation.question_words import ask, recognise
    from spear_ros.cli.answer_drawing import Told, draw
    from spear_ros.cli.vlm_checkpoint import open_vlm
    from spear_ros.inference.vlm import GRAMMARS

    if args.fov_y is not None and not 5 <= args.fov_y <= 150:
        raise UserError(f'--fov-y {args.fov_y} must lie between 5 and 150 degrees.')
    asked = recognise(args.question)
    if asked is None and not args.free:
        raise UserError(_unknown(args.question))
    vlm = open_vlm(args.checkpoint, args.device)
    picture = _open(args.image, vlm.picture_size)
    if asked is None or args.free:
        (answer,) = vlm.answerer.answer([picture], [args.question], [None])
        print(answer.text + ('' if answer.complete else ' [cut off]'))
        print('decoded without a grammar: nothing was checked, nothing is drawn.')
        return 0
    # The second question tells where to draw the answer of the first one.
    where = [ask('projection', name) for name in asked.objects]
    questions = [asked, *where]
    answers = vlm.answerer.answer(
        [picture] * len(questions),
        [q.question for q in questions],
        [GRAMMARS[q.family] for q in questions],
    )
    lines = describe(asked, answers[0], vlm)
    print('\n'.join(lines))
    out = args.out or Path(f'{args.image.stem}_answer.png')
    told = Told(asked=asked, answers=answers, lines=lines, bins=vlm.bins, fov_y_deg=args.fov_y)
    draw(out, picture, told)
    print(f'drawn in {out}')
    return 0


def _unknown(question: str) -> str:
    from spear_ros.annotation.question_words import examples

    known = '; '.join(f'{family}: "{text}"' for family, text in examples().items())
    return (
        f'"{question[:80]}" is in the words of no question family; ask as in {known}. Any other '
        'question: --free.'
    )


def _open(path: Path, size: tuple[int, int]) -> ImageArray:
    """The picture, upright, cropped to the network's aspect ratio, large enough to draw on."""
    from spear_ros.annotation.images import ImageSettings, open_image
    from spear_ros.annotation.types import AnnotationError

    factor = max(1, round(DRAWN_WIDTH / size[1]))
    settings = ImageSettings(width=factor * size[1], height=factor * size[0], min_side_px=16)
    try:
        return open_image(path.parent, path.name, settings).pixels
    except AnnotationError as error:
        raise UserError(
            f'{path}: {error.text}; give a whole picture, such as a JPEG or PNG file.'
        ) from None


def describe(asked: 'Asked', answer: 'Answer', vlm: 'OpenVlm') -> list[str]:
    """The answer in words, one fact a line, with scale type and doubt."""
    from spear_ros.inference.vlm import lengths, places

    things = ' and '.join(f'the {name}' for name in asked.objects)
    lines = [f'{asked.family.replace("_", " ")} of {things}:']
    if asked.family == 'projection':
        estimate = places(answer)
        pairs = estimate.value.reshape(-1, 2)
        lines += [f'corner {i}: {100 * x:.1f} % from the left, {100 * y:.1f} % from the top'
                  for i, (y, x) in enumerate(pairs)]  # fmt: skip
        lines.append(f'doubt: {100 * estimate.std.mean():.1f} % of the picture on average')
        return [*lines, _entropy(estimate)]
    estimate = lengths(answer, vlm.bins)
    unit = UNITS[vlm.scale_type]
    if asked.family == 'closer':
        lines += [
            f'camera to the {name}: {_with_doubt(estimate, i)}'
            for i, name in enumerate(asked.objects)
        ]
        lines.append(_without_numbers(answer.text))
    else:
        rows = [list(zip('xyz', range(i, i + 3), strict=True))
                for i in range(0, len(estimate.value), 3)]  # fmt: skip
        for number, row in enumerate(rows):
            name = f'corner {number}: ' if len(rows) > 1 else ''
            lines.append(name + ', '.join(f'{axis} {_with_doubt(estimate, i)}' for axis, i in row))
    if asked.family == 'distance':
        lines.append(f'{np.linalg.norm(estimate.value):.3f} in a straight line')
    return [*lines, f'in {unit}; +- is one standard deviation', _entropy(estimate)]


def _with_doubt(estimate: 'Estimate', i: int) -> str:
    return f'{estimate.value[i]:.3f} +- {estimate.std[i]:.3f}'


def _entropy(estimate: 'Estimate') -> str:
    mean: Any = estimate.entropy_bits.mean()
    return f'entropy {mean:.1f} of 10 bits a number'


def _without_numbers(text: str) -> str:
    """The closing words of a chain of thought, behind its last number."""
    return text.rpartition('>')[2].strip(' ,.') + '.'
