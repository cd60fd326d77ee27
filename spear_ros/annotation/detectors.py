"""Labelled boxes: what is checked of everybody's, and the detector that reads stored ones.

A box that cannot be trusted (turned round, outside of the picture, cut by it) is not dropped but
handed on with its ``problem``: it gets no label, and still counts as an instance of its class, so
that a class with a second, doubtful instance is not mistaken for one with a single one.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spear_ros.annotation.images import working_pixels
from spear_ros.annotation.types import AnnotationError, Detection, FailureKind, WorkingImage
from spear_ros.core.errors import UserError

MAX_BOXES = 100
MAX_LABEL = 60
MIN_INSIDE = 0.9
"""Share of a box that must lie in the working image; less is an object cut by its border."""
OUTSIDE = 'it is not in the picture'
MAX_FILE_BYTES = 10 << 20


def clean_label(label: object) -> str:
    """A label as questions use it: lower case, without underscores, article and counting number.

    "A mug", "mug" and "mug 2" are one class, so that two of them are seen to be two.

    Raises:
        AnnotationError: it is no plain text.
    """
    if not isinstance(label, str) or not label.strip() or len(label) > MAX_LABEL:
        raise AnnotationError(FailureKind.MALFORMED_ANSWER, f'label {str(label)[:60]!r}')
    if any(c in label for c in '<>{}') or not label.isprintable():
        raise AnnotationError(FailureKind.MALFORMED_ANSWER, f'label {label!r} is not plain text')
    words = label.lower().replace('_', ' ').split()
    if not words:
        raise AnnotationError(FailureKind.MALFORMED_ANSWER, f'label {label!r}')
    if len(words) > 1 and words[0] in ('a', 'an', 'the'):
        words = words[1:]
    if len(words) > 1 and words[-1].strip('#()').isdigit():
        words = words[:-1]
    return ' '.join(words)


def four_numbers(box: object) -> list[float]:
    """The ends of a box.

    Raises:
        AnnotationError: not a list of four finite numbers (a text of four digits is none).
    """
    numbers = list(box) if isinstance(box, Sequence) and not isinstance(box, str) else []
    plain = all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers)
    if len(numbers) != 4 or not plain or not all(abs(v) < 1e9 for v in numbers):
        raise AnnotationError(FailureKind.MALFORMED_ANSWER, f'box {str(box)[:60]}')
    return [float(v) for v in numbers]


def checked(label: object, box: Sequence[float], size: tuple[int, int], score: float) -> Detection:
    """One box in pixels of a picture of (width, height) ``size``, cut to it, its problem named.

    Raises:
        AnnotationError: the label or a number is none.
    """
    name = clean_label(label)
    x0, y0, x1, y1 = four_numbers(box)
    if not 0 <= score <= 1:
        raise AnnotationError(FailureKind.MALFORMED_ANSWER, f'score {score} of "{name}"')
    if x1 <= x0 or y1 <= y0:
        return Detection(label=name, box_xyxy=(x0, y0, x1, y1), score=score,
                         problem='its ends are in the wrong order')  # fmt: skip
    cut = (max(x0, 0.0), max(y0, 0.0), min(x1, float(size[0])), min(y1, float(size[1])))
    inside = max(cut[2] - cut[0], 0.0) * max(cut[3] - cut[1], 0.0) / ((x1 - x0) * (y1 - y0))
    problem = '' if inside >= MIN_INSIDE else f'only {inside:.0%} of it is in the picture'
    if inside <= 0:
        problem = OUTSIDE
    return Detection(label=name, box_xyxy=cut, score=score, problem=problem)


class ReplayDetector:
    """Stored boxes: ``DIR/<picture's name without suffix>.json``.

    The file: ``{"boxes": [{"label": "mug", "box_xyxy": [x0, y0, x1, y1], "score": 0.9}, ...]}`` in
    pixels of the upright original picture.
    """

    name = 'detect-replay'

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f'{folder}: no such folder of boxes.')
        self._folder = folder

    def settings(self) -> Mapping[str, object]:
        """See Stage; the file's content is an input: :meth:`digest`."""
        return {'version': 2}

    def digest(self, image: WorkingImage) -> str:
        """Digest of the stored answer, so that an edited file is read again."""
        return file_digest(self._path(image))

    def detect(self, image: WorkingImage) -> list[Detection]:
        """See Detector."""
        path = self._path(image)
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise AnnotationError(FailureKind.MALFORMED_ANSWER, f'{path.name} is too large')
            boxes = json.loads(path.read_bytes())['boxes']
            size = (image.pixels.shape[1], image.pixels.shape[0])
            found = []
            for number, entry in enumerate(list_of_boxes(boxes), 1):
                xy = four_numbers(entry['box_xyxy'])
                score = float(entry.get('score', 1.0))
                whole = checked(entry['label'], xy, image.original_size, score)
                corners = np.array(xy).reshape(2, 2)
                moved = working_pixels(corners, image.original_size, size).ravel().tolist()
                cut = checked(entry['label'], moved, size, score)
                if whole.problem or cut.problem != OUTSIDE:
                    found.append(replace(cut, problem=whole.problem or cut.problem, number=number))
                # Else it lies in the picture, but wholly outside of the working image's crop.
        except FileNotFoundError:
            raise AnnotationError(FailureKind.NOTHING_GIVEN, f'no {path.name}') from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError,
                RecursionError) as error:  # fmt: skip
            text = ' '.join(f'{type(error).__name__} {error}'.split())[:100]
            raise AnnotationError(FailureKind.MALFORMED_ANSWER, f'{path.name}: {text}') from None
        return found

    def _path(self, image: WorkingImage) -> Path:
        return (self._folder / image.name).with_suffix('.json')


def file_digest(path: Path) -> str:
    """Digest of a file's content; of its absence where it is missing."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else 'absent'
    except OSError:
        return 'absent'


def list_of_boxes(value: Any) -> list[Any]:
    """A list of at most MAX_BOXES entries.

    Raises:
        AnnotationError: it is none.
    """
    if not isinstance(value, list):
        raise AnnotationError(FailureKind.MALFORMED_ANSWER, 'the boxes are no list')
    if len(value) > MAX_BOXES:
        raise AnnotationError(FailureKind.MALFORMED_ANSWER, f'{len(value)} boxes')
    return value
