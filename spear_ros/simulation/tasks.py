"""Tasks in words: the four instruction families, their grammar and the split of seeds. No mujoco.

Families: ``touch`` X, ``push`` X left / right / forward (of the robot: +y / -y / +x of its base),
``pick`` up X, ``put`` X on Y. X and Y are "<colour> <shape>" of :mod:`~.catalogue`.

Seeds are split once and for all: demonstrations use ``TRAINING_SEEDS``, choices during training
``VALIDATION_SEEDS``, published figures ``HELD_OUT_SEEDS``, which nothing is ever tuned on.
"""

import difflib
import re
from dataclasses import dataclass

from spear_ros.core.errors import UserError
from spear_ros.simulation.catalogue import COLOURS, SHAPES, object_name

TOUCH, PUSH, PICK, PUT = 'touch', 'push', 'pick', 'put'
FAMILIES = (TOUCH, PUSH, PICK, PUT)

DIRECTIONS: dict[str, tuple[float, float]] = {
    'left': (0.0, 1.0),
    'right': (0.0, -1.0),
    'forward': (1.0, 0.0),
}
"""Unit vectors (x, y) in the base frame."""

TRAINING_SEEDS = range(0, 1_000_000)
VALIDATION_SEEDS = range(1_000_000, 1_100_000)
HELD_OUT_SEEDS = range(2_000_000, 2_100_000)


@dataclass(frozen=True, slots=True)
class Task:
    """One instruction, understood."""

    family: str
    target: str
    """Object name, such as ``red_cube``."""
    direction: str = ''
    """``push`` only."""
    receptacle: str = ''
    """``put`` only: object name of Y."""


TEMPLATES: dict[str, tuple[str, ...]] = {
    TOUCH: ('touch the {x}', 'tap the {x}', 'reach out and touch the {x}'),
    PUSH: ('push the {x} {d}', 'push the {x} to the {d}', 'slide the {x} {d}'),
    PICK: ('pick up the {x}', 'lift the {x}', 'grab the {x}'),
    PUT: ('put the {x} {p} the {y}', 'place the {x} {p} the {y}', 'move the {x} {p} the {y}'),
}
"""The first of each family is the canonical wording, which scenes announce."""

_THING = r'(?:the |a |an )?(?P<{0}>[a-z]+ [a-z]+)'
_X, _Y = _THING.format('x'), _THING.format('y')
_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (family, re.compile(pattern))
    for family, pattern in (
        (PUT, rf'(?:put|place|set|drop|move) {_X} (?:on|onto|in|into|on top of) {_Y}'),
        (
            PUSH,
            rf'(?:push|slide|move|shove) {_X} (?:to the |towards the )?'
            r'(?P<d>left|right|forwards?|front)',
        ),
        (PICK, rf'(?:pick up|lift up|lift|grab|grasp|take|pick) {_X}(?: up)?'),
        (TOUCH, rf'(?:reach out and )?(?:touch|tap|reach|point at) {_X}'),
    )
)


def words(task: Task, template: int = 0) -> str:
    """Say ``task`` in the wording number ``template`` of its family; 0 is canonical."""
    shape = task.receptacle.partition('_')[2]
    return TEMPLATES[task.family][template].format(
        x=task.target.replace('_', ' '),
        y=task.receptacle.replace('_', ' '),
        d=task.direction,
        p='in' if shape == 'bowl' else 'on',
    )


def wordings(task: Task) -> list[str]:
    """Every wording of ``task``, canonical first ("to the forward" is nobody's English)."""
    texts = [words(task, i) for i in range(len(TEMPLATES[task.family]))]
    return [t for t in texts if not t.endswith('to the forward')]


def parse_instruction(text: str) -> Task:
    """Understand an instruction.

    Raises:
        UserError: no family's wording, or a colour or shape that does not exist.
    """
    plain = ' '.join(re.sub(r'[^a-z ]', ' ', text.lower()).split())
    plain = re.sub(r'^please |^can you |^could you | please$', '', plain)
    for family, pattern in _PATTERNS:
        match = pattern.fullmatch(plain)
        if match:
            found = match.groupdict()
            direction = found.get('d') or ''
            return Task(
                family=family,
                target=_thing(found['x'], text),
                direction='forward' if direction.startswith(('forw', 'front')) else direction,
                receptacle=_thing(found['y'], text) if 'y' in found else '',
            )
    raise UserError(
        f'instruction "{text[:80]}" is none of: touch X, push X left/right/forward, pick up X, '
        'put X on Y, with X and Y such as "red cube".'
    )


def check_family(family: str, seed: int) -> str:
    """Return ``family``, or for '' the one that belongs to ``seed`` (seed modulo 4).

    Raises:
        UserError: unknown family.
    """
    if not family:
        return FAMILIES[seed % len(FAMILIES)]
    if family not in FAMILIES:
        near = difflib.get_close_matches(family, FAMILIES, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f'choose one of {", ".join(FAMILIES)}.'
        raise UserError(f'task family "{family[:40]}" does not exist; {hint}')
    return family


def _thing(phrase: str, text: str) -> str:
    colour, shape = phrase.split()
    for word, known, kind in ((colour, COLOURS, 'colour'), (shape, SHAPES, 'shape')):
        if word not in known:
            raise UserError(
                f'instruction "{text[:80]}": "{word}" is not a known {kind}; choose one of '
                f'{", ".join(known)}.'
            )
    return object_name(colour, shape)
