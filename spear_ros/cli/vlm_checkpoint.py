"""A SPEAR-VLM checkpoint opened for questions, and questions asked of it in batches."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from spear_ros.core.errors import UserError

if TYPE_CHECKING:
    from spear_ros.annotation.metrics import Judged
    from spear_ros.inference.vlm import Answer, VlmAnswerer
    from spear_ros.processing.spatial_bins import SpatialBins
    from spear_ros.training.question_data import Question

_NUMBER = re.compile(r'<(?:3d|loc)(\d{4})>')
_CLOSER = re.compile(r'so the (.+?) is closer')


class OpenVlm(NamedTuple):
    """What answers, and what its 3-D tokens mean."""

    answerer: 'VlmAnswerer'
    bins: 'SpatialBins'
    scale_type: str
    picture_size: tuple[int, int]
    """Rows and columns that the network sees."""
    checkpoint_id: str


def open_vlm(folder: Path, device: str = 'cpu') -> OpenVlm:
    """Load a checkpoint that can be asked.

    Raises:
        UserError: it is no checkpoint, damaged, or of a policy that was never a SPEAR-VLM.
    """
    import torch

    from spear_ros.checkpoints.spear1 import SPATIAL_BINS, load_checkpoint, read_config
    from spear_ros.inference.vlm import VlmAnswerer
    from spear_ros.processing.spatial_bins import read_bins
    from spear_ros.processing.tokens import TextTokenizer

    config = read_config(folder)
    if SPATIAL_BINS not in config.files:
        raise UserError(
            f'{folder}: no checkpoint of SPEAR-VLM, for it has no {SPATIAL_BINS} that says what '
            '3-D tokens mean; give the export folder of "spear train vlm".'
        )
    dtype = torch.float32 if device == 'cpu' else torch.bfloat16
    loaded = load_checkpoint(folder, device, dtype)
    bins, scale_type = read_bins(folder / SPATIAL_BINS)
    answerer = VlmAnswerer(loaded.model.vlm, TextTokenizer(loaded.tokenizer_path), config.image_fit)
    return OpenVlm(answerer, bins, scale_type, config.model.external_size, loaded.checkpoint_id)


def answer_all(
    vlm: OpenVlm, questions: Sequence['Question'], *, batch: int = 32, free: bool = False
) -> list['Answer']:
    """Answers in the order of the questions; families are answered together, as they are as long.

    Raises:
        UserError: a picture cannot be read, or a family has no grammar (and not ``free``).
    """
    from spear_ros.inference.vlm import GRAMMARS, Numbers
    from spear_ros.training.question_data import read_picture

    # The families of the data sets that are no questions of annotated pictures.
    known = {**GRAMMARS, 'pixel': (Numbers('3d', 3),), 'place': (Numbers('loc', 2),)}
    unknown = sorted({q.family for q in questions} - known.keys())
    if unknown and not free:
        raise UserError(
            f'the family "{unknown[0]}" has no grammar; known: {", ".join(GRAMMARS)} (or decode '
            'without one: --free).'
        )
    order = sorted(range(len(questions)), key=lambda i: (questions[i].family, i))
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        asked = [questions[i] for i in chosen]
        found = vlm.answerer.answer(
            [read_picture(q, vlm.picture_size) for q in asked],
            [q.question for q in asked],
            [None if free else known[q.family] for q in asked],
            reserved=True,
        )
        answers.update(zip(chosen, found, strict=True))
    return [answers[i] for i in range(len(questions))]


def judge(question: 'Question', answer: 'Answer', vlm: OpenVlm, how: str = 'tokens') -> 'Judged':
    """Compare one answer with what is known of the question.

    Args:
        question: with its family and, best, its true values; without, those of its tokens count.
        answer: as decoded.
        vlm: for the bins.
        how: ``tokens`` takes the numbers that the answer says, ``median`` the middles of the
            distributions, which a doubtful network is better judged by.
    """
    from spear_ros.annotation.metrics import Judged
    from spear_ros.inference.vlm import lengths, places

    places_asked = question.family in ('projection', 'place')
    label = [int(n) for n in _NUMBER.findall(question.answer)]
    truth = np.array(question.values or _decode(label, vlm, places_asked))
    kind = 'loc' if places_asked else '3d'
    fits = answer.complete and len(answer.kinds) == len(label) and set(answer.kinds) == {kind}
    told = low = high = None
    if fits:
        estimate = places(answer) if places_asked else lengths(answer, vlm.bins)
        told = estimate.value if how == 'tokens' else estimate.median
        low, high = estimate.low, estimate.high
    right = [a == b for a, b in zip(answer.bins.tolist(), label, strict=False)]
    return Judged(
        family=question.family,
        scale_type='' if places_asked else vlm.scale_type,
        truth=truth,
        told=told,
        right_tokens=sum(right) / len(label) if label else 0.0,
        low=low,
        high=high,
        truth_name=_closer(question.answer),
        told_name=_closer(answer.text),
    )


def _decode(label: Sequence[int], vlm: OpenVlm, places_asked: bool) -> np.ndarray:
    index = np.array(label, int)
    return (index + 0.5) / 1024 if places_asked else vlm.bins.decode(index)


def _closer(text: str) -> str:
    found = _CLOSER.search(text)
    return found.group(1).strip() if found else ''
