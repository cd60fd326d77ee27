"""SPEAR-VLM's two phases on a dozen questions, and the way on to SPEAR-1."""

import json
from pathlib import Path

import pytest
import torch

from spear_ros.checkpoints.spear1 import SPATIAL_BINS, load_checkpoint, read_config
from spear_ros.core.errors import UserError
from spear_ros.processing.small_tokenizer import build_small_tokenizer
from spear_ros.processing.spatial_bins import SpatialBins, read_bins
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
from spear_ros.training.vla_task import VlaTask
from spear_ros.training.vlm_task import VlmModule, VlmTask, _spread_loss


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
    shared = [n for n in trained if n.startswith('vlm.')]
    assert all(torch.equal(weights[n], trained[n]) for n in shared)
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


def write_bins(path, mean=0.5, scale='metric'):
    bins = SpatialBins.normal(mean, 0.3)
    data = {'scale_type': scale, 'edges': bins.edges, 'centres': bins.centres}
    path.write_text(json.dumps(data))


def other_bins(questions, folder, **changes):
    """A copy of the questions whose 3-D tokens mean something else (None: nothing)."""
    folder.mkdir()
    for file in Path(questions).iterdir():
        if file.name != 'bins.json':
            (folder / file.name).write_bytes(file.read_bytes())
    if changes:
        write_bins(folder / 'bins.json', **changes)
    return str(folder)


def test_the_export_says_what_its_3d_tokens_mean(questions, tmp_path):
    run(make_config(questions, 'steps=2'), tmp_path / 'run')
    export = tmp_path / 'run' / 'export'
    assert SPATIAL_BINS in read_config(export).files
    assert read_bins(export / SPATIAL_BINS) == read_bins(Path(questions) / 'bins.json')
    (export / SPATIAL_BINS).write_text('{}')
    with pytest.raises(UserError, match=SPATIAL_BINS):
        load_checkpoint(export)


@pytest.mark.parametrize(
    ('changes', 'named'),
    [({}, 'no bins.json'), ({'mean': 0.6}, 'differ'), ({'scale': 'affine'}, 'differ')],
)
def test_folders_whose_tokens_mean_nothing_or_two_things_are_refused(
    changes, named, questions, tmp_path
):
    other = other_bins(questions, tmp_path / 'other', **changes)
    config = make_config(f'[{questions},{other}]')
    with pytest.raises(UserError, match=named):
        run(config, tmp_path / 'run')


def test_the_second_phase_must_mean_the_lengths_of_the_first(questions, tmp_path):
    run(make_config(questions, 'phase=1', 'steps=2'), tmp_path / 'one')
    init = f'init={tmp_path / "one" / "export"}'
    run(make_config(questions, init, 'steps=2'), tmp_path / 'two')
    other = other_bins(questions, tmp_path / 'other', mean=0.9)
    with pytest.raises(UserError, match='mean other lengths'):
        run(make_config(other, init, 'steps=2'), tmp_path / 'three')


def test_phase_2_starts_from_phase_1_and_counts_3d_tokens_twice(questions, tmp_path):
    run(make_config(questions, 'phase=1', 'steps=2'), tmp_path / 'one')
    config = make_config(questions, f'init={tmp_path / "one" / "export"}')
    task = VlmTask(config, tmp_path / 'two')
    task.prepare(Place())
    first = state(tmp_path / 'one')
    assert all(torch.equal(first[n], t) for n, t in task.initial_state().items())
    module = task.make_module()
    assert (config.spatial_weight, module.spatial_weight) == (2.0, 2.0)
    one = VlmTask(make_config(questions, 'phase=1'), tmp_path / 'one')
    one.prepare(Place())
    assert one.make_module().spatial_weight == 1.0


def test_the_default_of_phase_2_trains_both_encoders(questions, tmp_path):
    config = find_recipe('vlm', 'spear_vlm_phase2')
    assert {'vlm.siglip', 'vlm.moge', 'vlm.language', 'projector'} == set(config.train)
    parts = '[vlm.siglip,vlm.moge,vlm.language,projector]'
    run(make_config(questions, 'steps=2', f'train={parts}'), tmp_path)
    started = spear1_weights(config_of(tmp_path).model, 0, '', '')
    moved = {n for n, t in state(tmp_path).items() if not torch.equal(t, started[n])}
    assert any(n.startswith('vlm.moge.') for n in moved)
    assert any(n.startswith('vlm.siglip.') for n in moved)


def config_of(folder):
    return read_config(folder / 'export')


def test_without_the_depth_branch_no_depth_arrives_and_nothing_else_changes(questions, tmp_path):
    config = make_config(questions, 'depth_branch=absent', 'steps=3')
    task = VlmTask(config, tmp_path / 'task')
    task.prepare(Place())
    vlm = task.make_module().vlm
    started = task.initial_state()
    vlm.load_state_dict({n.removeprefix('vlm.'): t for n, t in started.items()})
    picture = torch.rand(1, 3, 84, 112)
    seen = vlm.encode_image(picture)
    # Only SigLIP's projection, as if there had never been a mean of two.
    whole = spear1_weights(config.model, config.seed, '', '')
    plain = torch.nn.functional.linear(
        vlm.siglip(picture * 2 - 1),
        whole['vlm.siglip_projector.weight'],
        whole['vlm.siglip_projector.bias'],
    )
    torch.testing.assert_close(seen, plain)
    run(config, tmp_path / 'run')
    trained = state(tmp_path / 'run')
    assert not trained['vlm.moge_projector.weight'].any()
    assert not trained['vlm.moge_projector.bias'].any()
    # What starts from it stays what it was.
    again = VlmTask(
        make_config(questions, 'depth_branch=absent', f'init={tmp_path / "run" / "export"}'),
        tmp_path / 'again',
    )
    again.prepare(Place())
    assert all(torch.equal(trained[n], t) for n, t in again.initial_state().items())


def test_a_spread_target_prefers_neighbours_to_strangers(questions, tmp_path):
    task = VlmTask(make_config(questions), tmp_path)
    task.prepare(Place())
    numbers = task.spatial
    wanted = torch.tensor([numbers[500]])

    def loss(said, width):
        scores = torch.full((1, 2624), -8.0)
        scores[0, numbers[said]] = 8.0
        return float(_spread_loss(scores.log_softmax(-1), wanted, numbers, width))

    assert loss(500, 5.0) < loss(503, 5.0) < loss(520, 5.0)
    # A very narrow bell is the plain cross entropy.
    assert loss(500, 0.05) == pytest.approx(0.0, abs=1e-3)
    assert loss(501, 0.05) == pytest.approx(16.0, abs=0.1)


def test_questions_may_speak_of_places_in_tokens(tokenizer):
    pair = Question('k', Path('x'), 'what is at <loc0100><loc0200>?', '<3d0001>')
    found = encode_questions([pair], tokenizer, 48)
    places = tokenizer.ids.loc
    assert {places[100], places[200]} <= set(found.tokens[0].tolist())


def test_spear1_trains_on_from_the_vlm_and_keeps_its_frozen_parts(questions, shards, tmp_path):
    run(make_config(questions, 'steps=3'), tmp_path / 'vlm')
    export = tmp_path / 'vlm' / 'export'
    settings = [f'data.shards=[{",".join(shards)}]', f'init={export}', 'steps=2', 'batch_size=4',
                'ema_decay=0', 'train=[expert]']  # fmt: skip
    config = change(find_recipe('vla', 'spear1_debug'), settings)
    Trainer(VlaTask(config, tmp_path / 'vla'), tmp_path / 'vla', Place()).run()
    before, after = state(tmp_path / 'vlm'), state(tmp_path / 'vla')
    shared = [n for n in before if n.startswith('vlm.')]
    assert len(shared) > 50
    assert all(torch.equal(before[n], after[n]) for n in shared)
    assert any(not torch.equal(before[n], after[n]) for n in before if n.startswith('expert.'))
    tokenizers = [(f / 'export' / 'tokenizer.json').read_bytes()
                  for f in (tmp_path / 'vlm', tmp_path / 'vla')]  # fmt: skip
    assert tokenizers[0] == tokenizers[1]


def several_a_picture(questions, folder):
    """Three questions about each of four pictures, and one about a fifth."""
    folder.mkdir()
    lines = []
    for i in range(5):
        (folder / f'{i}.jpg').write_bytes((Path(questions) / f'{i}.jpg').read_bytes())
        lines += [
            {
                'key': f'q{i}-{j}', 'image': f'{i}.jpg', 'question': 'where is the ' + 'cube ' * j,
                'answer': f'<3d{100 * i + j:04d}>' * (j + 1),
            }
            for j in range(3 if i < 4 else 1)
        ]  # fmt: skip
    (folder / 'questions.jsonl').write_text(''.join(json.dumps(x) + '\n' for x in lines))
    write_bins(folder / 'bins.json')
    return str(folder)


def test_questions_about_one_picture_share_its_features_and_lose_nothing(questions, tmp_path):
    folder = several_a_picture(questions, tmp_path / 'data')
    settings = ('data.by_picture=true', 'batch_size=5', 'data.jitter=0.0')
    task = VlmTask(make_config(folder, *settings), tmp_path / 'run')
    task.prepare(Place())
    stream = task.stream(Place())
    batch = next(stream)
    stream.close()
    assert sorted(batch['key']) == sorted(q.key for q in task.questions)
    assert len(batch['pictures']) == 5
    torch.manual_seed(0)
    module = VlmModule(task.config.model, task.spatial, 2.0)
    together = task.inputs(batch, torch.device('cpu'), 1)
    alone = dict(together, picture=None)
    whole = together['inputs']
    alone['inputs'] = type(whole)(
        external=whole.external[together['picture']],
        tokens=whole.tokens,
        token_mask=whole.token_mask,
    )
    for name, loss in module(**together).items():
        torch.testing.assert_close(loss, module(**alone)[name])
    run(make_config(folder, *settings, 'steps=2'), tmp_path / 'whole')


def test_packs_and_a_mixture_exclude_each_other(questions):
    with pytest.raises(UserError, match='by_picture'):
        make_config(questions, 'data.by_picture=true', 'data.mixture=spear_vlm_stage1')
