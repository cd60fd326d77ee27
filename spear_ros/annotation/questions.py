"""Questions and answers about annotated pictures, in SPEAR-VLM's families (arXiv 2511.17411).

Answers are text whose numbers are tokens: ``<3dNNNN>`` for lengths in the camera frame (x, y, z of
each point in turn), ``<locNNNN>`` for places in the picture (y before x, as PaliGemma counts them).
One table of bins serves coordinates and distances of one scale type.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from spear_ros.annotation.box_geometry import project
from spear_ros.annotation.types import ImageAnnotation, ObjectLabel
from spear_ros.core.errors import UserError
from spear_ros.core.types import FloatArray
from spear_ros.processing.spatial_bins import MIN_SAMPLES_PER_BIN, SpatialBins
from spear_ros.processing.tokens import LOC_TOKEN, N_SPATIAL_TOKENS, SPATIAL_TOKEN

MOST_PAIRS = 4
CLEARLY_CLOSER = 0.95
"""Ratio of two distances above which neither object is called the closer one."""
N_LOC = 1024

TEMPLATES: dict[str, tuple[str, ...]] = {
    'closest_point': (
        'Which point of the {a} is closest to the camera?',
        'Give the 3D point of the {a} that is nearest to the camera.',
        'Where does the {a} come closest to the camera?',
    ),
    'furthest_point': (
        'Which point of the {a} is furthest from the camera?',
        'Give the 3D point of the {a} that is farthest from the camera.',
    ),
    'centre_point': (
        'Where is the {a}?',
        'Where is the centre of the {a} in 3D?',
        'Give the 3D centre of the {a}.',
    ),
    'box': (
        'What is the 3D bounding box of the {a}?',
        'Give the eight corners of the oriented 3D box of the {a}.',
    ),
    'distance': (
        'What is the distance from the {a} to the {b} along x, y and z?',
        'How far along each axis is the {b} from the {a}?',
    ),
    'projection': (
        'Where do the corners of the 3D box of the {a} lie in the image?',
        'Project the eight corners of the 3D box of the {a} into the image.',
    ),
    'closer': (
        'Which is closer to the camera, the {a} or the {b}? Think step by step.',
        'What is the distance from the camera to the {a}? To the {b}? Which is closer?',
    ),
}
PAIRED = ('distance', 'closer')
N_TOKENS = {'closest_point': 3, 'furthest_point': 3, 'centre_point': 3, 'box': 24, 'distance': 3,
            'projection': 16, 'closer': 2}  # fmt: skip
"""Number tokens in an answer of each family."""

_TOKEN = re.compile(r'<(3d|loc)(\d{4})>')


@dataclass(frozen=True, kw_only=True, slots=True)
class RawPair:
    """A question with its answer's numbers not yet in tokens."""

    family: str
    question: str
    answer: str
    """Text with one ``{}`` for each group of numbers."""
    lengths: tuple[tuple[float, ...], ...] = ()
    """Groups that become 3D tokens, in the image's unit."""
    places: tuple[float, ...] = ()
    """y, x, y, x, ... as shares of the picture; becomes location tokens."""
    objects: tuple[str, ...]


def ambiguous(labels: Sequence[str]) -> dict[str, str]:
    """Labels that name more than one thing of a picture, and why.

    "mug" does beside "red mug", which is a mug as well; "red mug" does not.
    """
    counts = Counter(labels)
    found = {label: f'{count} of them' for label, count in counts.items() if count > 1}
    for label in counts:
        narrower = sorted(other for other in counts if other.endswith(f' {label}'))
        if narrower and label not in found:
            found[label] = f'there is a {narrower[0]} as well'
    return found


def askable(annotation: ImageAnnotation) -> list[ObjectLabel]:
    """Objects whose class has one instance in the picture, detected ones without a box included."""
    several = ambiguous(annotation.detected)
    return [o for o in annotation.objects if o.label not in several]


def make_pairs(annotation: ImageAnnotation) -> list[RawPair]:
    """One to four pairs of different families or objects; none where nothing can be asked.

    The choice depends on the picture's digest alone, so it is the same in every run.
    """
    rng = np.random.default_rng(int(annotation.digest[:16], 16))
    objects = askable(annotation)
    wanted = int(rng.integers(1, MOST_PAIRS + 1))
    pairs: list[RawPair] = []
    asked: set[tuple[str, ...]] = set()
    for _ in range(4 * MOST_PAIRS if objects else 0):
        families = [f for f in TEMPLATES if len(objects) > 1 or f not in PAIRED]
        family = str(rng.choice(families))
        count = 2 if family in PAIRED else 1
        chosen = [objects[i] for i in rng.choice(len(objects), count, replace=False)]
        identity = (family, *(o.label for o in chosen))
        template = str(rng.choice(TEMPLATES[family]))
        pair = _make(family, template, chosen, annotation) if identity not in asked else None
        if pair is not None:
            asked.add(identity)
            pairs.append(pair)
        if len(pairs) == wanted:
            break
    return pairs


def _make(
    family: str, template: str, chosen: Sequence[ObjectLabel], annotation: ImageAnnotation
) -> RawPair | None:
    names = tuple(o.label for o in chosen)
    question = template.format(**dict(zip('ab', names, strict=False)))
    made = _ANSWERS[family](chosen, annotation)
    if made is None:
        return None
    answer, lengths, places = made
    return RawPair(
        family=family, question=question, answer=answer, lengths=lengths, places=places,
        objects=names,
    )  # fmt: skip


_Made = tuple[str, tuple[tuple[float, ...], ...], tuple[float, ...]] | None


def _group(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(v) for v in np.asarray(values).ravel())


def _one(values: FloatArray) -> _Made:
    return '{}', (_group(values),), ()


def _projection(chosen: Sequence[ObjectLabel], annotation: ImageAnnotation) -> _Made:
    """None where a corner is outside of the picture: no token could say where."""
    width, height = annotation.size
    pixels = project(chosen[0].vertices, annotation.K)
    shares = (pixels + 0.5) / (width, height)
    if not (np.isfinite(shares).all() and (shares >= 0).all() and (shares < 1).all()):
        return None
    return '{}', (), _group(shares[:, ::-1])


def _closer(chosen: Sequence[ObjectLabel], annotation: ImageAnnotation) -> _Made:
    """None where both are about as far away."""
    a, b = (float(np.linalg.norm(o.centre)) for o in chosen)
    if min(a, b) > CLEARLY_CLOSER * max(a, b):
        return None
    first, second = (o.label for o in chosen)
    text = (
        f'The distance from the camera to the {first} is {{}} and to the {second} {{}}, so the '
        f'{first if a < b else second} is closer.'
    )
    return text, ((a,), (b,)), ()


_ANSWERS: dict[str, Callable[[Sequence[ObjectLabel], ImageAnnotation], _Made]] = {
    'closest_point': lambda o, _: _one(o[0].closest),
    'furthest_point': lambda o, _: _one(o[0].furthest),
    'centre_point': lambda o, _: _one(o[0].centre),
    'box': lambda o, _: _one(o[0].vertices),
    'distance': lambda o, _: _one(o[1].centre - o[0].centre),
    'projection': _projection,
    'closer': _closer,
}


def fit_bins(pairs: Sequence[RawPair]) -> tuple[SpatialBins, str]:
    """Bins for the lengths of the training set, and how they were made.

    ``quantiles`` of the data where there are enough different values, else those of a ``normal``
    distribution with their mean and deviation.

    Raises:
        UserError: fewer than two different lengths.
    """
    values = np.unique([v for pair in pairs for group in pair.lengths for v in group])
    if len(values) >= MIN_SAMPLES_PER_BIN * N_SPATIAL_TOKENS:
        return SpatialBins.fit(values), 'quantiles'
    if len(values) < 2:
        raise UserError(f'{len(values)} lengths in all answers: too few for bins; add images.')
    return SpatialBins.normal(float(values.mean()), float(values.std())), 'normal'


def answer_text(pair: RawPair, bins: SpatialBins) -> str:
    """The answer with its tokens."""
    if pair.places:
        index = np.floor(np.array(pair.places) * N_LOC).astype(int)
        return pair.answer.format(''.join(LOC_TOKEN.format(i) for i in index))
    groups = [
        ''.join(SPATIAL_TOKEN.format(i) for i in bins.encode(group)) for group in pair.lengths
    ]
    return pair.answer.format(*groups)


def read_answer(text: str, family: str, bins: SpatialBins) -> FloatArray:
    """Numbers of an answer: lengths, or shares of the picture (y, x, ...) for ``projection``.

    Raises:
        UserError: not the number or kind of tokens that the family has.
    """
    found = _TOKEN.findall(text)
    kind = 'loc' if family == 'projection' else '3d'
    index = np.array([int(number) for _, number in found])
    if len(found) != N_TOKENS[family] or any(k != kind for k, _ in found) or (index >= N_LOC).any():
        raise UserError(
            f'answer of the family {family}: {len(found)} tokens, {N_TOKENS[family]} of the kind '
            f'<{kind}NNNN> belong there.'
        )
    return (index + 0.5) / N_LOC if kind == 'loc' else np.asarray(bins.decode(index))


def round_trip_errors(pairs: Sequence[RawPair], bins: SpatialBins) -> dict[str, float]:
    """Mean absolute difference of numbers and what their tokens say, by family."""
    errors: dict[str, list[float]] = {}
    for pair in pairs:
        truth = np.array([v for g in pair.lengths for v in g] if pair.lengths else pair.places)
        told = read_answer(answer_text(pair, bins), pair.family, bins)
        errors.setdefault(pair.family, []).append(float(np.abs(truth - told).mean()))
    return {family: float(np.mean(e)) for family, e in sorted(errors.items())}
