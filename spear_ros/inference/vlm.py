"""Answers of SPEAR-VLM inside a grammar: so many numbers where so many are asked, and no others.

The published alternative to the depth branch "gave 22 or 23 tokens where 24 are asked"; here the
number of tokens is not left to the network. Each question family has a grammar of words and groups
of numbers; at every step the tokens that the grammar allows compete, all others do not. Several
questions, of different families and pictures, are answered as one batch over one cache of keys and
values.

Every number comes with the distribution over its 1024 tokens, given the tokens before it: that is
the network's own doubt, not a calibrated one.

Shapes: B batch, V vocabulary, n numbers of an answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spear_ros.core.errors import UserError
from spear_ros.core.types import FloatArray, ImageArray
from spear_ros.networks.spear_vlm import PrefixInputs, SpearVlm
from spear_ros.processing.images import ImageFit, ImageSize, fit_image
from spear_ros.processing.spatial_bins import SpatialBins
from spear_ros.processing.tokens import TextTokenizer

Kind = Literal['3d', 'loc']
N_BINS = 1024
PROMPT_STEP = 16
"""Prompts are padded to multiples of this."""


@dataclass(frozen=True, slots=True)
class Words:
    """Ordinary text."""

    least: int = 1
    most: int = 48
    """Tokens."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """A group of number tokens."""

    kind: Kind
    count: int


Grammar = tuple[Words | Numbers, ...]

GRAMMARS: Mapping[str, Grammar] = {
    'closest_point': (Numbers('3d', 3),),
    'furthest_point': (Numbers('3d', 3),),
    'centre_point': (Numbers('3d', 3),),
    'box': (Numbers('3d', 24),),
    'distance': (Numbers('3d', 3),),
    'projection': (Numbers('loc', 16),),
    # "The distance from the camera to X is <3d> and to Y <3d>, so Y is closer."
    'closer': (Words(), Numbers('3d', 1), Words(), Numbers('3d', 1), Words()),
}
"""Question family -> what its answers look like."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer; n numbers in the order of their tokens."""

    text: str
    ids: tuple[int, ...]
    kinds: tuple[Kind, ...]
    """(n,)."""
    bins: NDArray[np.int64]
    """(n,) 0 .. 1023."""
    probabilities: NDArray[np.float32]
    """(n, 1024) of every bin, given the tokens before."""
    complete: bool
    """False: free text that was cut off at the limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Numbers with the network's doubt; arrays (n,), unit of the bins."""

    value: FloatArray
    """What the tokens say."""
    mean: FloatArray
    median: FloatArray
    std: FloatArray
    low: FloatArray
    """5 % quantile."""
    high: FloatArray
    """95 % quantile."""
    entropy_bits: FloatArray
    """0 = sure of one bin, 10 = all 1024 alike."""


class VlmAnswerer:
    """Answers questions about pictures.

    Args:
        vlm: in eval mode.
        tokenizer: the checkpoint's.
        fit: how pictures are brought to the network's size.
        size: rows and columns; None = the network's own.
    """

    def __init__(
        self,
        vlm: SpearVlm,
        tokenizer: TextTokenizer,
        fit: ImageFit = 'crop',
        size: tuple[int, int] | None = None,
    ) -> None:
        if tokenizer.ids.spatial is None:
            raise UserError('the tokenizer has no 3-D tokens; give a checkpoint of SPEAR-VLM.')
        self._vlm, self._tokenizer, self._fit = vlm, tokenizer, fit
        self._size = ImageSize(*(size or vlm.config.external_size))
        self._device = vlm.siglip_projector.weight.device
        self._allowed = _Vocabulary(tokenizer, vlm.config.language.vocab_size, self._device)

    @torch.inference_mode()
    def answer(
        self,
        pictures: Sequence[ImageArray],
        questions: Sequence[str],
        grammars: Sequence[Grammar | None],
        *,
        free_tokens: int = 96,
        reserved: bool = False,
    ) -> list[Answer]:
        """Answer question i about picture i within grammar i (None: free text).

        Args:
            pictures: (H, W, 3) uint8 RGB each, of any sizes.
            questions: in the words of training, best.
            grammars: see :data:`GRAMMARS`.
            free_tokens: limit where there is no grammar.
            reserved: let questions spell out tokens (places in the picture).

        Raises:
            UserError: a question cannot be encoded, or the scores are not finite.
        """
        walkers = [_Walker(g, free_tokens) for g in grammars]
        inputs = self._inputs(pictures, questions, reserved)
        scores, cache = self._vlm.start_answer(inputs, max(w.most for w in walkers))
        while True:
            chosen = self._choose(scores.float(), walkers)
            if all(w.done for w in walkers):
                return [self._read(w) for w in walkers]
            scores = self._vlm.answer_step(chosen[:, None], cache)

    def _inputs(
        self, pictures: Sequence[ImageArray], questions: Sequence[str], reserved: bool
    ) -> PrefixInputs:
        assert len(pictures) == len(questions) > 0
        buckets = [PROMPT_STEP * (i + 1) for i in range(32)]
        asked = [self._tokenizer.instruction(q, buckets, reserved=reserved) for q in questions]
        length = max(len(a.ids) for a in asked)
        tokens = np.full((len(asked), length), self._tokenizer.ids.pad, np.int64)
        mask = np.zeros(tokens.shape, bool)
        for row, one in enumerate(asked):
            tokens[row, : len(one.ids)], mask[row, : len(one.ids)] = one.ids, one.mask
        # Pictures may have different sizes, so each is fitted on its own.
        fitted = [
            fit_image(torch.from_numpy(np.array(p))[None].to(self._device), self._size, self._fit)
            for p in pictures
        ]
        return PrefixInputs(
            external=torch.cat(fitted).to(self._vlm.siglip_projector.weight.dtype),
            tokens=torch.from_numpy(tokens).to(self._device),
            token_mask=torch.from_numpy(mask).to(self._device),
        )

    def _choose(self, scores_BV: Tensor, walkers: Sequence['_Walker']) -> Tensor:
        """Let every unfinished walker take its likeliest allowed token; (B,) int64."""
        if not bool(torch.isfinite(scores_BV).all()):
            raise UserError(
                "the network's scores are not finite: the weights are damaged, run "
                '"spear checkpoint verify" on the folder.'
            )
        allowed = torch.stack([self._allowed.mask(w.next_kinds()) for w in walkers])
        chosen = scores_BV.masked_fill(~allowed, -torch.inf).argmax(-1)
        for row, token in enumerate(chosen.tolist()):
            walker = walkers[row]
            if not walker.done:
                kind = self._allowed.kind(token)
                walker.take(token, kind, self._distribution(scores_BV[row], kind))
        return chosen

    def _distribution(self, scores_V: Tensor, kind: str) -> NDArray[np.float32] | None:
        rows = self._allowed.rows.get(kind)
        if rows is None:
            return None
        return torch.softmax(scores_V[rows.start : rows.stop], -1).cpu().numpy()

    def _read(self, walker: '_Walker') -> Answer:
        starts = {k: self._allowed.rows[k].start for k in walker.kinds}
        bins = [i - starts[k] for i, k in zip(walker.numbers, walker.kinds, strict=True)]
        return Answer(
            text=self._tokenizer.decode(walker.ids).strip(),
            ids=tuple(walker.ids),
            kinds=tuple(walker.kinds),
            bins=np.array(bins, np.int64),
            probabilities=np.array(walker.probabilities, np.float32).reshape(-1, N_BINS),
            complete=walker.complete,
        )


class _Vocabulary:
    """Which rows of the embedding are what: 'word', '3d', 'loc', 'end'."""

    def __init__(self, tokenizer: TextTokenizer, rows: int, device: torch.device) -> None:
        self.rows: dict[str, range] = {}
        masks = {kind: torch.zeros(rows, dtype=torch.bool) for kind in ('word', '3d', 'loc', 'end')}
        masks['word'][torch.from_numpy(tokenizer.plain_ids())] = True
        masks['end'][tokenizer.ids.eos] = True
        for kind, ids in (('3d', tokenizer.ids.spatial), ('loc', tokenizer.ids.loc)):
            if ids is not None:
                self.rows[kind] = ids
                masks[kind][ids.start : ids.stop] = True
        self._masks = {kind: mask.to(device) for kind, mask in masks.items()}
        self._eos = tokenizer.ids.eos

    def mask(self, kinds: frozenset[str]) -> Tensor:
        """(V,) bool: rows of any of these kinds."""
        return torch.stack([self._masks[kind] for kind in sorted(kinds)]).any(0)

    def kind(self, token: int) -> str:
        """Kind of one id."""
        for kind, ids in self.rows.items():
            if token in ids:
                return kind
        return 'end' if token == self._eos else 'word'


class _Walker:
    """Where one answer stands in its grammar, and what it has said."""

    def __init__(self, grammar: Grammar | None, free_tokens: int) -> None:
        self._grammar, self._free = grammar, free_tokens
        self._part = self._taken = 0
        self.done = self.complete = False
        self.ids: list[int] = []
        self.kinds: list[Kind] = []
        self.numbers: list[int] = []
        self.probabilities: list[NDArray[np.float32]] = []

    @property
    def most(self) -> int:
        """Tokens that the longest answer has, its end included."""
        if self._grammar is None:
            return self._free + 1
        return 1 + sum(p.most if isinstance(p, Words) else p.count for p in self._grammar)

    def next_kinds(self) -> frozenset[str]:
        """Kinds of token that may come now."""
        if self.done:
            return frozenset({'end'})
        if self._grammar is None:
            return frozenset({'word', '3d', 'loc', 'end'})
        if self._part == len(self._grammar):
            return frozenset({'end'})
        part = self._grammar[self._part]
        if isinstance(part, Numbers):
            return frozenset({part.kind})
        kinds = {'word'} if self._taken < part.most else set()
        if self._taken >= part.least:
            kinds.add(self._after_words())
        return frozenset(kinds)

    def _after_words(self) -> str:
        assert self._grammar is not None
        if self._part + 1 == len(self._grammar):
            return 'end'
        after = self._grammar[self._part + 1]
        assert isinstance(after, Numbers), 'words after words have no border'
        return after.kind

    def take(self, token: int, kind: str, probabilities: NDArray[np.float32] | None) -> None:
        """Append one token that was allowed."""
        if kind == 'end':
            self.done = self.complete = True
            return
        self.ids.append(token)
        if kind == '3d' or kind == 'loc':
            assert probabilities is not None
            self.kinds.append(kind)
            self.numbers.append(token)
            self.probabilities.append(probabilities)
        if self._grammar is None:
            self.done = len(self.ids) >= self._free
            return
        part = self._grammar[self._part]
        if isinstance(part, Words) and kind != 'word':
            self._part, self._taken = self._part + 1, 0
            part = self._grammar[self._part]
        self._taken += 1
        if isinstance(part, Numbers) and self._taken == part.count:
            self._part, self._taken = self._part + 1, 0


def lengths(answer: Answer, bins: SpatialBins) -> Estimate:
    """The lengths of an answer in the bins' unit, which the checkpoint's scale type names."""
    chosen = [i for i, kind in enumerate(answer.kinds) if kind == '3d']
    return _estimate(answer, chosen, np.asarray(bins.centres))


def places(answer: Answer) -> Estimate:
    """The places of an answer as shares of the picture: y, x, y, x, ..."""
    chosen = [i for i, kind in enumerate(answer.kinds) if kind == 'loc']
    return _estimate(answer, chosen, (np.arange(N_BINS) + 0.5) / N_BINS)


def _estimate(answer: Answer, chosen: Sequence[int], centres: FloatArray) -> Estimate:
    p = answer.probabilities[list(chosen)].astype(float)
    p = p / p.sum(-1, keepdims=True)
    mean = p @ centres
    variance = (p * (centres - mean[:, None]) ** 2).sum(-1)
    return Estimate(
        value=centres[answer.bins[list(chosen)]],
        mean=mean,
        median=_quantile(p, centres, 0.5),
        std=np.sqrt(variance),
        low=_quantile(p, centres, 0.05),
        high=_quantile(p, centres, 0.95),
        entropy_bits=-(p * np.log2(np.maximum(p, 1e-12))).sum(-1),
    )


def _quantile(p: FloatArray, centres: FloatArray, share: float) -> FloatArray:
    """Centre of the first bin at which so much of the probability (n, 1024) lies behind."""
    index = (np.cumsum(p, axis=-1) < share - 1e-12).sum(-1)
    return np.asarray(centres[np.minimum(index, len(centres) - 1)])
