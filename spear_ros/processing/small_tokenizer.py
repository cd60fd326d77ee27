"""A small tokenizer of PaliGemma's structure, trained in milliseconds, for tests and small models.

The real vocabulary (256,000 pieces) belongs to Google's weights and is not distributed with this
package. This one has the same rules (byte fallback, space as U+2581, the same special tokens) over
512 pieces, so that every line of :mod:`spear_ros.processing.tokens` runs on it.
"""

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from spear_ros.processing.tokens import IMAGE_TOKEN, LOC_TOKEN, spatial_tokens

BASE_PIECES = 512
_CONTROL = ['<pad>', '<eos>', '<bos>', '<unk>', '<mask>']
_BYTES = [f'<0x{b:02X}>' for b in range(256)]

_VERBS = (
    'pick up', 'put', 'place', 'move', 'push', 'pull', 'stack', 'lift', 'slide', 'turn', 'flip',
    'open', 'close', 'grasp', 'take', 'drop', 'pour', 'wipe', 'fold', 'sweep',
)  # fmt: skip
_COLOURS = (
    'red', 'green', 'blue', 'yellow', 'orange', 'purple', 'white', 'black', 'grey', 'silver',
)  # fmt: skip
_OBJECTS = (
    'cube', 'block', 'bowl', 'plate', 'cup', 'mug', 'can', 'bottle', 'spoon', 'fork', 'knife',
    'carrot', 'eggplant', 'banana', 'apple', 'towel', 'cloth', 'pot', 'pan', 'lid', 'drawer',
    'door', 'box', 'basket', 'sink', 'marker', 'sponge', 'toy', 'cylinder', 'ball', 'tray',
)  # fmt: skip
_PLACES = (
    'on the', 'into the', 'next to the', 'to the left of the', 'to the right of the', 'behind the',
    'in front of the', 'on top of the', 'under the', 'out of the', 'from the', 'close to the',
)  # fmt: skip
_QUESTIONS = (
    'what is the distance between the', 'where is the centre of the', 'and the', 'answer',
    'which is closer to the camera', 'what are the corners of the',
    'what is the closest point of the',
)  # fmt: skip


def build_small_tokenizer(
    path: Path | str, sentences: Iterable[str] = (), pieces: int = BASE_PIECES
) -> Path:
    """Train on a fixed list of sentences and write ``tokenizer.json``; always the same bytes.

    Rows: 512 pieces, 1024 ``<locNNNN>``, ``<image>``, 1024 ``<3dNNNN>``. Other ``sentences`` and
    more ``pieces`` make a tokenizer that spends fewer tokens on just those.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token='<unk>'))
    tokenizer.normalizer = normalizers.Replace(' ', '▁')
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex('▁'), 'merged_with_next')
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = BpeTrainer(
        vocab_size=pieces,
        special_tokens=[*_CONTROL, *_BYTES],
        show_progress=False,
        initial_alphabet=[*'abcdefghijklmnopqrstuvwxyz0123456789.,?\n', '▁'],
    )
    tokenizer.train_from_iterator(list(sentences) or _sentences(), trainer)
    # Byte pieces are ordinary vocabulary: as added tokens they would be matched in plain text.
    state = Tokenizer.from_str(_without_added_bytes(tokenizer))
    added = [LOC_TOKEN.format(i) for i in range(1024)] + [IMAGE_TOKEN, *spatial_tokens()]
    state.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in added])
    state.save(str(path))
    return Path(path)


def _without_added_bytes(tokenizer: Tokenizer) -> str:
    state = json.loads(tokenizer.to_str())
    state['added_tokens'] = [t for t in state['added_tokens'] if t['content'] in _CONTROL]
    return json.dumps(state, ensure_ascii=False)


def _sentences() -> list[str]:
    tasks = [
        f'{verb} the {colour} {thing}'
        for verb, colour, thing in product(_VERBS, _COLOURS, _OBJECTS)
    ]
    places = [f'put it {place} {c} {t}' for place, c, t in product(_PLACES, _COLOURS, _OBJECTS)]
    return tasks + places + [f'{q} {t}?' for q, t in product(_QUESTIONS, _OBJECTS)]
