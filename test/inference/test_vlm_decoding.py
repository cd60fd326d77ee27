"""Constrained decoding on an untrained network: the form of an answer is not its to choose."""

import re

import numpy as np
import pytest
import torch

from spear_ros.annotation.questions import N_TOKENS, TEMPLATES
from spear_ros.core.errors import UserError
from spear_ros.inference.vlm import (
    GRAMMARS,
    Answer,
    Numbers,
    VlmAnswerer,
    Words,
    lengths,
    places,
)
from spear_ros.networks.config import Spear1Config
from spear_ros.networks.spear_vlm import SpearVlm
from spear_ros.processing.small_tokenizer import build_small_tokenizer
from spear_ros.processing.spatial_bins import SpatialBins
from spear_ros.processing.tokens import TextTokenizer

QUESTION = 'what is the distance between the red cube and the blue bowl?'


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    path = build_small_tokenizer(tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json')
    return TextTokenizer(path)


@pytest.fixture(scope='module')
def vlm():
    torch.set_num_threads(1)
    torch.manual_seed(3)
    network = SpearVlm(Spear1Config.named('spear1_debug'))
    network.initialize()
    return network.eval()


@pytest.fixture(scope='module')
def answerer(vlm, tokenizer):
    return VlmAnswerer(vlm, tokenizer)


def picture(seed, shape=(84, 112, 3)):
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def numbers(text):
    return re.findall(r'<(3d|loc)\d{4}>', text)


@pytest.mark.parametrize('family', GRAMMARS)
def test_an_untrained_network_says_as_many_numbers_as_the_family_has(family, answerer):
    (answer,) = answerer.answer([picture(0)], [QUESTION], [GRAMMARS[family]])
    kind = 'loc' if family == 'projection' else '3d'
    assert answer.complete
    assert numbers(answer.text) == [kind] * N_TOKENS[family]
    assert answer.kinds == (kind,) * N_TOKENS[family]
    assert answer.probabilities.shape == (N_TOKENS[family], 1024)
    np.testing.assert_allclose(answer.probabilities.sum(1), 1, atol=1e-4)
    assert (answer.probabilities.argmax(1) == answer.bins).all()


def test_grammars_and_question_families_are_the_same_list():
    counted = {
        family: sum(p.count for p in grammar if isinstance(p, Numbers))
        for family, grammar in GRAMMARS.items()
    }
    assert counted == N_TOKENS
    assert GRAMMARS.keys() == TEMPLATES.keys()


def test_a_chain_of_thought_alternates_words_and_numbers(answerer, tokenizer):
    (answer,) = answerer.answer([picture(0)], [QUESTION], [GRAMMARS['closer']])
    plain = set(tokenizer.plain_ids().tolist())
    form = ''.join('w' if i in plain else 'n' for i in answer.ids)
    assert re.fullmatch('w+nw+nw+', form)


def test_words_without_end_are_cut_where_the_grammar_says(answerer):
    grammar = (Words(least=2, most=5), Numbers('3d', 1))
    (answer,) = answerer.answer([picture(1)], [QUESTION], [grammar])
    assert 2 <= len(answer.ids) - 1 <= 5
    assert answer.kinds == ('3d',)


def test_a_batch_of_different_families_and_lengths_is_answered_as_each_alone(answerer):
    families = ['box', 'centre_point', 'closer', 'projection']
    pictures = [picture(i, (84 + 14 * i, 112, 3)) for i in range(4)]
    questions = [QUESTION, 'where is it?', QUESTION + ' think', 'where?']
    grammars = [GRAMMARS[f] for f in families]
    together = answerer.answer(pictures, questions, grammars)
    for i in range(4):
        (alone,) = answerer.answer(pictures[i : i + 1], questions[i : i + 1], grammars[i : i + 1])
        assert together[i].ids == alone.ids
        np.testing.assert_allclose(together[i].probabilities, alone.probabilities, atol=1e-4)


def test_the_cache_gives_what_a_full_pass_gives(answerer, vlm, tokenizer):
    (answer,) = answerer.answer([picture(2)], [QUESTION], [GRAMMARS['centre_point']])
    inputs = answerer._inputs([picture(2)], [QUESTION], False)
    length = int(inputs.token_mask.sum())
    tokens = torch.cat([inputs.tokens[:, :length], torch.tensor([answer.ids[:2]])], 1)
    marks = torch.zeros_like(tokens, dtype=torch.bool)
    marks[:, length:] = True
    whole = type(inputs)(external=inputs.external, tokens=tokens)
    with torch.no_grad():
        scores = vlm(whole, marks)[0, -3:]
    spatial = tokenizer.ids.spatial
    expected = scores[:, spatial.start : spatial.stop].softmax(-1).numpy()
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-4)


def test_without_a_grammar_text_ends_at_the_limit_and_says_so(answerer):
    (answer,) = answerer.answer([picture(0)], [QUESTION], [None], free_tokens=4)
    assert len(answer.ids) <= 4
    assert answer.complete == (len(answer.ids) < 4)


def test_questions_may_speak_in_tokens_only_where_that_is_asked_for(answerer):
    text = 'what is at <loc0100><loc0200>?'
    with pytest.raises(UserError, match='reserves'):
        answerer.answer([picture(0)], [text], [GRAMMARS['centre_point']])
    (answer,) = answerer.answer([picture(0)], [text], [GRAMMARS['centre_point']], reserved=True)
    assert len(answer.bins) == 3


def test_damaged_weights_are_told_in_a_sentence(tokenizer):
    network = SpearVlm(Spear1Config.named('spear1_debug')).eval()
    network.initialize()
    network.language.norm.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match='spear checkpoint verify'):
        VlmAnswerer(network, tokenizer).answer([picture(0)], [QUESTION], [GRAMMARS['centre_point']])


def sure_of(*bins, doubt=0.0, kind='3d'):
    p = np.full((len(bins), 1024), doubt / 1023, np.float32)
    p[np.arange(len(bins)), bins] = 1 - doubt
    return Answer(text='', ids=(), kinds=(kind,) * len(bins), bins=np.array(bins),
                  probabilities=p, complete=True)  # fmt: skip


def test_certainty_has_no_width_and_ignorance_that_of_all_bins():
    bins = SpatialBins.normal(2.0, 0.5)
    sure = lengths(sure_of(100, 700), bins)
    np.testing.assert_allclose(sure.value, np.array(bins.centres)[[100, 700]])
    np.testing.assert_allclose(sure.mean, sure.value, atol=1e-5)
    np.testing.assert_allclose(sure.std, 0, atol=1e-2)
    np.testing.assert_allclose(sure.low, sure.high)
    ignorant = lengths(sure_of(512, doubt=1023 / 1024), bins)
    assert ignorant.mean[0] == pytest.approx(2.0, abs=1e-3)
    assert ignorant.std[0] == pytest.approx(0.5, abs=0.01)
    assert ignorant.entropy_bits[0] == pytest.approx(10.0, abs=1e-3)
    assert ignorant.low[0] == pytest.approx(2.0 - 1.645 * 0.5, abs=0.01)
    assert ignorant.high[0] == pytest.approx(2.0 + 1.645 * 0.5, abs=0.01)


def test_places_are_middles_of_their_share_of_the_picture():
    found = places(sure_of(0, 511, 1023, kind='loc'))
    np.testing.assert_allclose(found.value, [0.5 / 1024, 511.5 / 1024, 1023.5 / 1024])
    assert len(lengths(sure_of(3, kind='loc'), SpatialBins.normal(0, 1)).value) == 0
