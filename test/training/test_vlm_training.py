"""SPEAR-VLM's two phases on a dozen questions, and the way on to SPEAR-1."""

import json
from pathlib import Path

import pytest
import torch

from spear_ros.checkpoints.spear1 import load_checkpoint
from spear_ros.core.errors import UserError
from spear_ros.processing.small_tokenizer import build_small_tokenizer
from spear_ros.processing.tokens import TextTokenizer
from spear_ros.training.distributed import Place
from spear_ros.training.logs import read_metrics
from spear_ros.training.question_data import (
    NO_TARGET,
    Question,
    encode_questions,
    read_questions,
)
from spear_ros.training.recipes import change, find_recipe
from spear_ros.training.start import spear1_weights
from spear_ros.training.trainer import Trainer
from spear_ros.training.vlm_task import VlmModule, VlmTask


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    path = build_small_tokenizer(tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json')
    return TextTokenizer(path)


def make_config(questions, *settings):
    config = find_recipe('vlm', 'spear_vlm_debug')
    return change(config, [f'data.questions={questions}', 'data.text_length=64', *settings])


def run(config, folder):
    return Trainer(VlmTask(config, folder), folder, Place()).run()


def state(folder):
    return load_checkpoint(folder / 'export').model.state_dict()


def test_every_answer_token_is_predicted_from_the_place_before_it(tokenizer):
    pair = Question('k', Path('x'), 'where is it?', '<3d0001><3d0002>')
    found = encode_questions([pair], tokenizer, 48)
    ids, targets = found.tokens[0], found.targets[0]
    places = (targets != NO_TARGET).nonzero()[:, 0].tolist()
    spatial = tokenizer.ids.spatial
    assert targets[places].tolist() == [spatial[1], spatial[2], tokenizer.ids.eos]
    assert ids[places[0] + 1].item() == spatial[1]
    assert places == [places[0], places[0] + 1, places[0] + 2]
    # What is read of the answer is causal, the question is not.
    assert found.answer[0].nonzero()[:, 0].tolist() == places[1:]
    assert found.mask[0].sum() == places[-1] + 1


def test_lines_that_are_no_questions_are_named(tmp_path, tokenizer):
    with pytest.raises(UserError, match='questions'):
        read_questions([str(tmp_path)], 'data.questions')
    good = {'image': 'a.jpg', 'question': 'where?', 'answer': 'there'}
    (tmp_path / 'questions.jsonl').write_text(json.dumps(good) + '\n{"image": "a.jpg"}\n')
    with pytest.raises(UserError, match='line 2'):
        read_questions([str(tmp_path)], 'data.questions')
    long = Question('k7', Path('x'), 'where is it?', '<3d0001>' * 60)
    with pytest.raises(UserError, match='k7.*data.text_length is 48'.replace('.text', '[.]text')):
        encode_questions([long], tokenizer, 48)


def test_phase_1_moves_the_projectors_and_the_rows_of_3d_tokens_only(questions, tmp_path):
    config = make_config(questions, 'phase=1', 'steps=3', 'optimizer.weight_decay=0.1')
    run(config, tmp_path)
    started = spear1_weights(config.model, config.seed, '', '')
    trained = state(tmp_path)
    moved = {n for n in trained if not torch.equal(trained[n], started[n])}
    embedding = 'vlm.language.embedding.weight'
    assert moved == {
        'vlm.siglip_projector.weight',
        'vlm.siglip_projector.bias',
        'vlm.moge_projector.weight',
        'vlm.moge_projector.bias',
        embedding,
    }
    rows = (trained[embedding] != started[embedding]).any(1).nonzero()[:, 0]
    spatial = TextTokenizer(tmp_path / 'tokenizer.json').ids.spatial
    assert set(rows.tolist()) <= set(spatial)


def test_phase_2_learns_the_answers_and_initialises_spear1(questions, shards, tmp_path):
    config = make_config(
        questions, 'steps=40', 'data.jitter=0.0', 'logging.every_steps=10', 'batch_size=12',
        f'data.validation={questions}',
    )  # fmt: skip
    run(config, tmp_path / 'vlm')
    lines = read_metrics(tmp_path / 'vlm', 'train')
    assert lines[-1]['loss'] < 0.7 * lines[0]['loss']
    assert read_metrics(tmp_path / 'vlm', 'validation')[-1]['held_out_loss'] < lines[0]['loss']
    export = tmp_path / 'vlm' / 'export'
    vla = change(find_recipe('vla', 'spear1_debug'), [f'init={export}'])
    weights = spear1_weights(vla.model, 7, vla.init, '')
    trained = state(tmp_path / 'vlm')
    assert all(torch.equal(weights[n], trained[n]) for n in trained)
    assert not load_checkpoint(export).config.trained


def test_computing_layers_again_changes_no_loss(questions, tmp_path):
    config = make_config(questions)
    task = VlmTask(config, tmp_path)
    task.prepare(Place())
    torch.manual_seed(0)
    plain = VlmModule(config.model, task.spatial, 2.0)
    again = VlmModule(config.model, task.spatial, 2.0, recompute=True)
    again.load_state_dict(plain.state_dict())
    batch = next(task.stream(Place()))
    gradients = []
    for module in (plain, again):
        loss = module(**task.inputs(batch, torch.device('cpu'), 5))['loss']
        loss.backward()
        gradients.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)
