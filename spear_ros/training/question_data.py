"""Questions and answers about pictures: what SPEAR-VLM learns from.

A folder holds ``questions*.jsonl``, one JSON object per line: ``image`` (path of a JPEG or PNG,
relative to the folder), ``question``, ``answer`` (text; coordinates as ``<3dNNNN>`` and
``<locNNNN>`` tokens), and optionally ``key``, and for evaluation ``family``, ``objects`` and
``values`` (groups of the numbers behind the tokens); training ignores these and all others. Lines
that miss a field are refused with their number. ``bins.json``, in the folder or above it, says what
the 3-D tokens mean; it goes into the checkpoint, so all folders of a run must share one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spear_ros.core.errors import UserError
from spear_ros.core.types import ImageArray
from spear_ros.data.episodes import decode_image_bytes
from spear_ros.data.loader import resize_cover
from spear_ros.processing.spatial_bins import read_bins
from spear_ros.processing.tokens import TextTokenizer, clean_instruction

NO_TARGET = -100
BINS = 'bins.json'


@dataclass(frozen=True, slots=True)
class Question:
    """One pair."""

    key: str
    image: Path
    question: str
    answer: str
    family: str = ''
    source: str = ''
    """Name of the data it is from, for mixtures."""
    objects: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    """True numbers of the answer in the order of its tokens, () = not known."""


def read_questions(folders: Sequence[str], where: str) -> list[Question]:
    """All pairs of some folders, in file order.

    Raises:
        UserError: no folder, no file, or a line that is no pair; names file and line.
    """
    if not folders:
        raise UserError(f'{where} is empty; give folders, such as {where}=[DIR,DIR].')
    found: list[Question] = []
    for folder in (Path(f).expanduser() for f in folders):
        files = sorted(folder.glob('questions*.jsonl'))
        if not files:
            raise UserError(f'{folder}: no questions*.jsonl; make them with "spear annotate".')
        for file in files:
            for number, line in enumerate(file.read_text(encoding='utf-8').splitlines(), 1):
                found.append(_question(line, f'{file}: line {number}', folder))
    return found


def _question(line: str, where: str, folder: Path) -> Question:
    try:
        data = json.loads(line)
        fields = {name: data[name] for name in ('image', 'question', 'answer')}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{where}: not a question with image and answer ({error}); remove or mend the line.'
        ) from None
    if not all(isinstance(v, str) and v for v in fields.values()):
        raise UserError(f'{where}: image, question and answer must be texts that are not empty.')
    return Question(
        key=str(data.get('key', where)),
        image=folder / fields['image'],
        question=fields['question'],
        answer=fields['answer'],
        family=str(data.get('family', '')),
        source=_source(data),
        objects=tuple(map(str, data.get('objects', ()))),
        values=_values(data.get('values', ()), where),
    )


def _values(groups: object, where: str) -> tuple[float, ...]:
    try:
        return tuple(float(v) for group in groups for v in group)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise UserError(f'{where}: values must be groups of numbers; remove or mend it.') from None


def find_bins(folders: Sequence[str], where: str) -> Path:
    """The one table of bins that all folders share.

    Raises:
        UserError: a folder has none, or two differ.
    """
    found: Path | None = None
    for folder in (Path(f).expanduser() for f in folders):
        file = next((p / BINS for p in (folder, folder.parent) if (p / BINS).is_file()), None)
        if file is None:
            raise UserError(
                f'{where}: {folder} has no {BINS}, nor has the folder above it; its 3-D tokens '
                'mean nothing without, annotate it again.'
            )
        if found is None:
            read_bins(file)
            found = file
        elif not same_bins(file, found):
            raise UserError(
                f'{where}: {found} and {file} differ, the same token would mean two lengths; '
                'annotate the second one with --bins of the first.'
            )
    assert found is not None, 'read_questions refuses an empty list'
    return found


def same_bins(first: Path, second: Path) -> bool:
    """Whether two tables give every 3-D token the same length and scale type."""
    return read_bins(first) == read_bins(second)


def _source(data: Mapping[str, Any]) -> str:
    provenance = data.get('provenance')
    return str(provenance.get('source', '')) if isinstance(provenance, dict) else ''


def packs(questions: Sequence[Question], most: int) -> list[tuple[int, ...]]:
    """Numbers of the questions about one picture together, in packs of at most ``most``."""
    pictures: dict[Path, list[int]] = {}
    for number, question in enumerate(questions):
        pictures.setdefault(question.image, []).append(number)
    return [
        tuple(numbers[i : i + most])
        for numbers in pictures.values()
        for i in range(0, len(numbers), most)
    ]


def read_picture(question: Question, size: tuple[int, int]) -> ImageArray:
    """The picture of a question at (rows, columns), centre-cropped.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        blob = question.image.read_bytes()
    except OSError as error:
        raise UserError(f'{question.image}: cannot read it ({error.strerror}).') from None
    return resize_cover(decode_image_bytes(blob, str(question.image)), size)


class QuestionTokens(NamedTuple):
    """Pairs as the network reads them; B pairs of L tokens, padded on the right."""

    tokens: Tensor
    """(B, L) ``[bos] question newline answer [eos]``."""
    mask: Tensor
    """(B, L) real tokens."""
    answer: Tensor
    """(B, L) tokens of the answer as inputs: they see the answer so far only."""
    targets: Tensor
    """(B, L) the token to be predicted at each place, NO_TARGET outside of the answer."""


def encode_questions(
    pairs: Sequence[Question], tokenizer: TextTokenizer, length: int
) -> QuestionTokens:
    """Encode pairs; the place before the first answer token predicts it.

    Raises:
        UserError: a pair is longer than ``length`` tokens.
    """
    shape = (len(pairs), length)
    tokens = np.full(shape, tokenizer.ids.pad, np.int64)
    mask, answer = np.zeros(shape, bool), np.zeros(shape, bool)
    targets = np.full(shape, NO_TARGET, np.int64)
    longest = 0
    for row, pair in enumerate(pairs):
        asked = tokenizer.instruction(clean_instruction(pair.question), (length,), reserved=True)
        prompt = asked.ids[asked.mask].tolist()
        reply = [*tokenizer.encode(pair.answer), tokenizer.ids.eos]
        total = len(prompt) + len(reply)
        if total > length:
            raise UserError(
                f'{pair.key}: question and answer take {total} tokens and data.text_length is '
                f'{length}; raise it.'
            )
        # The last token is only predicted, never read.
        ids = [*prompt, *reply[:-1]]
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
        answer[row, len(prompt) : len(ids)] = True
        targets[row, len(prompt) - 1 : len(ids)] = reply
        longest = max(longest, len(ids))
    longest = min(length, -(-longest // 16) * 16)  # few shapes
    return QuestionTokens(
        *(torch.from_numpy(a[:, :longest].copy()) for a in (tokens, mask, answer, targets))
    )
