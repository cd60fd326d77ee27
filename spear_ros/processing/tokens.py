"""Instruction text to token ids, and 3D coordinates to tokens and back.

Every id is derived from the tokenizer file that travels in the checkpoint; none is written here,
because it is unconfirmed where SPEAR-VLM appended its 1024 tokens. The rules are PaliGemma's, as
openpi and its processor apply them: beginning-of-sequence put in front by hand (the tokenizer adds
none when it is built from a vocabulary), underscores and line ends cleaned to spaces, the closing
line end encoded on its own, padding on the right. Image tokens are not ids here: the networks place
image features in front of the text themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from spear_ros.core.errors import UserError

N_SPATIAL_TOKENS = 1024
SPATIAL_TOKEN = '<3d{:04d}>'
LOC_TOKEN = '<loc{:04d}>'
IMAGE_TOKEN = '<image>'

MAX_TOKENIZER_BYTES = 64 << 20
MAX_INSTRUCTION_CHARACTERS = 500

DEFAULT_BUCKETS = (16, 32, 48, 64)
"""Lengths that instructions are padded to: few, so that few graphs are captured and kept."""


class TextTokens(NamedTuple):
    """An instruction, padded on the right to a bucket."""

    ids: NDArray[np.int64]
    """(L,)."""
    mask: NDArray[np.bool_]
    """(L,) True at real tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenIds:
    """Special ids as found in one tokenizer file."""

    pad: int
    bos: int
    eos: int
    image: int | None
    """None for a text-only tokenizer."""
    loc: range | None
    spatial: range | None
    """The 1024 3D tokens, contiguous; None where the tokenizer has none."""


class TextTokenizer:
    """The tokenizer of one checkpoint.

    Raises:
        UserError: the file is missing, not a ``tokenizer.json``, or lacks bos, eos or pad.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._tokenizer = _read_tokenizer(self._path)
        self.ids = _special_ids(self._tokenizer, self._path)
        self.n_rows = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        """Rows that an embedding table needs at least."""
        self._newline = self._encode('\n')
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {i for i, token in added.items() if token.special}
        self._special.update(self.ids.loc or (), self.ids.spatial or ())
        if self.ids.image is not None:
            self._special.add(self.ids.image)

    def instruction(
        self, text: str, buckets: Sequence[int] = DEFAULT_BUCKETS, *, reserved: bool = False
    ) -> TextTokens:
        """Encode ``[bos] text [\\n]`` and pad to the smallest bucket that holds it.

        ``reserved`` lets a text speak of places and lengths in tokens, as training data may.

        Raises:
            UserError: empty, too long, or spelling out a token that the model reserves.
        """
        clean = clean_instruction(text)
        ids = self._encode(clean)
        found = '' if reserved else self._reserved(ids)
        if found:
            raise UserError(
                f'instruction {clean[:80]!r} contains "{found}", which the model reserves; '
                'leave it out.'
            )
        return pad_right([self.ids.bos, *ids, *self._newline], self.ids.pad, buckets)

    def plain_ids(self) -> NDArray[np.int64]:
        """Ids of ordinary pieces of text: neither control tokens, numbers nor images."""
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        return np.array(sorted(set(ids) - self._special), np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included (for tests, logs and question answering)."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def encode(self, text: str) -> list[int]:
        """Ids of raw text with no token added; special tokens in it are recognised."""
        return self._encode(text)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _reserved(self, ids: Sequence[int]) -> str:
        return next((str(self._tokenizer.id_to_token(i)) for i in ids if i in self._special), '')


def clean_instruction(text: str) -> str:
    """Underscores, line ends, tabs and runs of spaces to single spaces; trimmed.

    Raises:
        UserError: nothing left, or more than 500 characters.
    """
    clean = ' '.join(text.replace('_', ' ').split())
    if not clean:
        raise UserError('the instruction is empty; say what the robot shall do.')
    if len(clean) > MAX_INSTRUCTION_CHARACTERS:
        raise UserError(
            f'the instruction has {len(clean)} characters; shorten it to '
            f'{MAX_INSTRUCTION_CHARACTERS} at most.'
        )
    return clean


def pad_right(ids: Sequence[int], pad: int, buckets: Sequence[int]) -> TextTokens:
    """Pad with ``pad`` to the smallest bucket.

    Raises:
        UserError: longer than the largest bucket.
    """
    fitting = [b for b in sorted(buckets) if b >= len(ids)]
    if not fitting:
        raise UserError(
            f'the instruction takes {len(ids)} tokens and the model reads {max(buckets)} at most; '
            'shorten it.'
        )
    length = fitting[0]
    padded = np.full(length, pad, dtype=np.int64)
    padded[: len(ids)] = ids
    return TextTokens(padded, np.arange(length) < len(ids))


def spatial_tokens() -> list[str]:
    """Names of the 1024 3D tokens in order."""
    return [SPATIAL_TOKEN.format(i) for i in range(N_SPATIAL_TOKENS)]


def add_spatial_tokens(source: Path | str, destination: Path | str) -> range:
    """Copy a ``tokenizer.json`` and append the 3D tokens that it lacks; return their ids.

    Appended right behind the last known token, as the tokenizers library does (for
    paligemma-3b: 257153 .. 258176).
    """
    tokenizer = _read_tokenizer(Path(source))
    tokenizer.add_special_tokens(spatial_tokens())
    tokenizer.save(str(destination))
    ids = TextTokenizer(destination).ids.spatial
    assert ids is not None
    return ids


def _read_tokenizer(path: Path) -> Tokenizer:
    mend = 'give the tokenizer.json that belongs to the weights.'
    if not path.is_file():
        raise UserError(f'{path}: the tokenizer is missing; {mend}')
    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise UserError(f'{path}: {path.stat().st_size} bytes is too large for a tokenizer; {mend}')
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        # The library raises bare Exception for every fault of the file.
        text = ' '.join(str(error).split())[:120]
        raise UserError(f'{path}: not a tokenizer.json ({text}); {mend}') from None


def _special_ids(tokenizer: Tokenizer, path: Path) -> TokenIds:
    def need(token: str) -> int:
        found = tokenizer.token_to_id(token)
        if found is None:
            raise UserError(
                f'{path}: the token {token} is missing; give the tokenizer that belongs to the '
                'weights.'
            )
        return int(found)

    return TokenIds(
        pad=need('<pad>'),
        bos=need('<bos>'),
        eos=need('<eos>'),
        image=tokenizer.token_to_id(IMAGE_TOKEN),
        loc=_contiguous(tokenizer, [LOC_TOKEN.format(i) for i in range(1024)], path),
        spatial=_contiguous(tokenizer, spatial_tokens(), path),
    )


def _contiguous(tokenizer: Tokenizer, names: list[str], path: Path) -> range | None:
    ids = [tokenizer.token_to_id(name) for name in names]
    if all(i is None for i in ids):
        return None
    if ids[0] is None or ids != list(range(ids[0], ids[0] + len(ids))):
        raise UserError(
            f'{path}: the tokens {names[0]} .. {names[-1]} are incomplete or out of order; give '
            'the tokenizer that belongs to the weights.'
        )
    return range(ids[0], ids[0] + len(ids))
