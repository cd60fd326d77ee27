"""Ids come from the file; text is cleaned, begun, ended and padded as PaliGemma expects."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from spear_ros.core.errors import UserError
from spear_ros.processing.small_tokenizer import BASE_PIECES, build_small_tokenizer
from spear_ros.processing.tokens import TextTokenizer, add_spatial_tokens


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    return build_small_tokenizer(tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json')


@pytest.fixture(scope='module')
def tokenizer(path):
    return TextTokenizer(path)


def test_the_small_tokenizer_is_the_same_file_every_time(path, tmp_path):
    assert build_small_tokenizer(tmp_path / 'again.json').read_bytes() == path.read_bytes()


def test_special_ids_are_where_the_file_puts_them(tokenizer):
    ids = tokenizer.ids
    assert (ids.pad, ids.eos, ids.bos) == (0, 1, 2)
    assert (ids.loc.start, len(ids.loc)) == (BASE_PIECES, 1024)
    assert ids.image == ids.loc.stop
    assert (ids.spatial.start, len(ids.spatial)) == (ids.image + 1, 1024)
    assert tokenizer.n_rows == ids.spatial.stop


def test_an_instruction_begins_with_bos_ends_with_a_line_end_and_is_padded_right(tokenizer):
    tokens = tokenizer.instruction('put_the red\n cube  on the plate ')
    real = tokens.ids[tokens.mask]
    assert tokenizer.decode(real) == '<bos>put the red cube on the plate\n'
    assert list(real[-1:]) == tokenizer.encode('\n')
    assert len(tokens.ids) == 16
    assert (tokens.ids[~tokens.mask] == tokenizer.ids.pad).all()
    assert (
        not np.diff(tokens.mask.astype(int)).any() or np.diff(tokens.mask.astype(int)).sum() == -1
    )


def test_the_line_end_is_its_own_token_whatever_precedes_it(tokenizer):
    for text in ('put', 'a.', '?', '7'):
        tokens = tokenizer.instruction(text)
        assert list(tokens.ids[tokens.mask]) == [
            tokenizer.ids.bos, *tokenizer.encode(text), *tokenizer.encode('\n')
        ]  # fmt: skip


@given(st.text(alphabet=st.characters(exclude_categories=['Cs']), min_size=1, max_size=60))
@settings(deadline=None, max_examples=150)
def test_any_text_survives_through_the_bytes(tokenizer, text):
    clean = ' '.join(text.replace('_', ' ').split())
    if not clean or '<' in clean:  # spelling out a special token is refused, see below
        return
    tokens = tokenizer.instruction(text, buckets=(1024,))
    assert tokenizer.decode(tokens.ids[tokens.mask]) == f'<bos>{clean}\n'


def test_the_smallest_bucket_is_taken(tokenizer):
    short, longer = tokenizer.instruction('flip'), tokenizer.instruction('x ' * 10)
    assert (len(short.ids), len(longer.ids)) == (16, 32)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('', 'empty'),
        (' _\n', 'empty'),
        ('a' * 2000, '2000 characters'),
        ('Ω ' * 200, 'tokens'),
        ('look at <image>', '<image>'),
        ('<eos> stop', '<eos>'),
        ('go to <loc0012>', '<loc0012>'),
        ('<3d0007>', '<3d0007>'),
        ('<unk>', '<unk>'),
    ],
)
def test_an_instruction_that_cannot_be_used_is_refused_with_its_reason(tokenizer, text, words):
    with pytest.raises(UserError, match=words):
        tokenizer.instruction(text)


def test_spatial_tokens_are_appended_behind_the_last_known_token(path, tmp_path):
    state = json.loads(path.read_text())
    state['added_tokens'] = [t for t in state['added_tokens'] if not t['content'].startswith('<3d')]
    bare = tmp_path / 'bare.json'
    bare.write_text(json.dumps(state))
    before = TextTokenizer(bare)
    assert before.ids.spatial is None
    ids = add_spatial_tokens(bare, tmp_path / 'with.json')
    assert ids == range(before.n_rows, before.n_rows + 1024)
    with_tokens = TextTokenizer(tmp_path / 'with.json')
    assert with_tokens.ids.spatial == ids
    assert with_tokens.decode([ids[5]]) == '<3d0005>'


def _break_scrambled(path, tmp_path):
    state = json.loads(path.read_text())
    a, b = state['added_tokens'][-1], state['added_tokens'][-2]
    a['content'], b['content'] = b['content'], a['content']
    (tmp_path / 't.json').write_text(json.dumps(state))


def _break_no_bos(path, tmp_path):
    Tokenizer.from_file(str(path)).save(str(tmp_path / 't.json'))
    text = (tmp_path / 't.json').read_text().replace('"<bos>"', '"<start>"')
    (tmp_path / 't.json').write_text(text)


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (lambda path, folder: None, 'is missing'),
        (lambda path, folder: (folder / 't.json').write_text('{"a": 1'), 'not a tokenizer.json'),
        (
            lambda path, folder: (folder / 't.json').write_bytes(b'\x80\x02pickle'),
            'not a tokenizer',
        ),
        (_break_scrambled, 'out of order'),
        (_break_no_bos, '<bos>'),
    ],
    ids=['absent', 'cut', 'pickle', 'scrambled', 'no bos'],
)
def test_a_damaged_tokenizer_is_one_sentence(path, tmp_path, damage, words):
    damage(path, tmp_path)
    with pytest.raises(UserError, match=words):
        TextTokenizer(tmp_path / 't.json')
