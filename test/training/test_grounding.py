"""Losses that ask where things are: labels from the samples' facts, heads that learn and stay out
of the export."""

import json
from dataclasses import fields

import numpy as np
import pytest
import torch

from spear_ros.checkpoints.spear1 import load_checkpoint
from spear_ros.core.errors import UserError
from spear_ros.core.geometry import pose
from spear_ros.data.seen_objects import SeenObject, pack_objects, read_objects
from spear_ros.networks.spear1 import Spear1Config
from spear_ros.simulation.catalogue import COLOURS, SHAPES
from spear_ros.training.config import GroundingConfig
from spear_ros.training.distributed import Place
from spear_ros.training.grounding import GroundingHeads, make_labels
from spear_ros.training.recipes import OBJECT_WORDS, change, find_recipe
from spear_ros.training.trainer import Trainer
from spear_ros.training.vla_task import VlaTask
from test.training.conftest import write_shards

MODEL = Spear1Config.named('spear1_debug')
CUBE = SeenObject('red cube', (0.5, -0.1, 0.02), (0.30, 0.55), None)
BALL = SeenObject('blue ball', (0.4, 0.2, 0.03), (0.99, 0.99), (0.5, 0.25))
INFO = {'objects': pack_objects([CUBE, BALL]), 'target': 'blue ball', 'receptacle': ''}
WORDS = ('red', 'blue', 'cube', 'ball')


def test_objects_survive_packing():
    assert read_objects(pack_objects([CUBE, BALL])) == [CUBE, BALL]
    with pytest.raises(UserError, match='make the demonstrations again'):
        read_objects('[["red cube", [1, 2]]]')


def test_labels_name_the_patch_the_words_and_the_place():
    labels = make_labels([{}, INFO], [None, None], MODEL, WORDS, wrist=True)
    rows, columns = (n // MODEL.siglip.patch for n in MODEL.external_size)
    assert labels.row.tolist() == [1, 1, 1]  # the cube is outside of the wrist's picture
    first = int(0.55 * rows) * columns + int(0.30 * columns)
    wrist_columns = MODEL.wrist_size[1] // MODEL.siglip.patch
    wrist_row = int(0.25 * MODEL.wrist_size[0] // MODEL.siglip.patch)
    wrist = rows * columns + wrist_row * wrist_columns + wrist_columns // 2
    assert labels.token.tolist() == [first, rows * columns - 1, wrist]
    assert labels.words.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [0, 1, 0, 1]]
    np.testing.assert_allclose(labels.offset[0], [0.30 * columns % 1, 0.55 * rows % 1], atol=1e-6)
    assert labels.known.tolist() == [[False, False], [True, False]]
    assert labels.told.tolist() == [False, True]
    assert labels.role.tolist() == [[0, 0], [1, 0], [1, 0]]
    np.testing.assert_allclose(labels.xyz[0], CUBE.p_base, atol=1e-6)
    torch.testing.assert_close(labels.places[1, 0], torch.tensor([0.4, 0.2, 0.03]))


def test_a_place_rounded_to_the_far_edge_is_in_the_last_patch():
    edge = SeenObject('red cube', (0.5, 0.0, 0.02), (0.99996, 0.99999), (0.99998, 0.2))
    info = {'objects': pack_objects([edge]), 'target': 'red cube', 'receptacle': ''}
    labels = make_labels([info], [None], MODEL, WORDS, wrist=True)
    rows, columns = (n // MODEL.siglip.patch for n in MODEL.external_size)
    wrist_rows, wrist_columns = (n // MODEL.siglip.patch for n in MODEL.wrist_size)
    assert labels.token[0] == rows * columns - 1
    assert labels.token[1] < rows * columns + wrist_rows * wrist_columns
    assert (labels.token[1] - rows * columns) % wrist_columns == wrist_columns - 1
    assert float(labels.offset.max()) == 1.0


def test_without_the_wrist_camera_its_patches_are_not_asked():
    labels = make_labels([INFO], [None], MODEL, WORDS, wrist=False)
    assert len(labels.row) == 2


def test_samples_without_facts_change_nothing():
    config = GroundingConfig(patch_weight=1.0, point_weight=1.0, place_weight=1.0, words=WORDS)
    heads = GroundingHeads(8, config)
    labels = make_labels([{}, {}], [None, None], MODEL, WORDS, wrist=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    losses = heads(torch.randn(2, 99, 8), [torch.randn(2, 102, 8)], mask, labels)
    assert [float(v.detach()) for v in losses.values()] == [0.0, 0.0, 0.0]


def test_pointing_at_every_picture_of_the_target_alike_is_the_least_loss():
    heads = GroundingHeads(2, GroundingConfig(point_weight=1.0))
    with torch.no_grad():
        for head in (heads.point, *heads.xyz):
            for parameter in head.parameters():
                parameter.zero_()
        heads.point.weight[0, 0] = 1.0
    at_middle = SeenObject('red cube', (0.4, 0.0, 0.03), (0.30, 0.55), (0.5, 0.5))
    info = {'objects': pack_objects([at_middle]), 'target': 'red cube', 'receptacle': ''}
    labels = make_labels([info], [None], MODEL, (), wrist=True)
    visual = torch.zeros(1, 64, 2)
    mask = torch.ones(1, 1, dtype=torch.bool)

    def loss(**scores):
        read = torch.zeros(1, 65, 2)
        for token, score in zip(labels.token.tolist(), scores.values(), strict=True):
            read[0, token, 0] = score
        return float(heads(visual, [read], mask, labels)['point'].detach())

    def pointed(token):
        read = torch.zeros(1, 65, 2)
        read[0, token, 0] = 1.0
        return float(heads.figures(read, mask, labels)['pointed'])

    assert [pointed(token) for token in labels.token.tolist()] == [1.0, 1.0]
    assert pointed(63) == 0.0
    assert loss(a=0.0, b=0.0) == pytest.approx(np.log(64))
    assert loss(a=30.0, b=30.0) == pytest.approx(np.log(2), abs=1e-4)
    assert loss(a=30.0, b=0.0) > 10


def test_the_mean_over_the_asked_layers_counts():
    config = GroundingConfig(patch_weight=1.0, point_weight=2.0, place_weight=3.0, words=WORDS)
    torch.manual_seed(0)
    heads = GroundingHeads(8, config)
    labels = make_labels([INFO, INFO], [None, None], MODEL, WORDS, wrist=True)
    visual, mask = torch.randn(2, 99, 8), torch.ones(2, 3, dtype=torch.bool)
    early, late = torch.randn(2, 102, 8), torch.randn(2, 102, 8)
    alone = [heads(visual, [x], mask, labels) for x in (early, late)]
    both = heads(visual, [early, late], mask, labels)
    assert float(alone[0]['point']) != float(alone[1]['point'])
    for name in ('point', 'place'):
        torch.testing.assert_close(both[name], (alone[0][name] + alone[1][name]) / 2)
    assert both['patch'] == alone[0]['patch']


def test_distances_of_what_is_seen_are_millimetres_in_the_frame_of_their_camera():
    heads = GroundingHeads(2, GroundingConfig(point_weight=1.0))
    with torch.no_grad():
        for parameter in heads.xyz.parameters():
            parameter.zero_()  # says (0.4, 0, 0.03) of everything
    # The tool points down, 0.2 m above the ball: for the wrist's camera that is 0.2 m ahead.
    T_base_ee = pose([0.4, 0.2, 0.23], [0.0, 1.0, 0.0, 0.0])
    labels = make_labels([INFO], [T_base_ee], MODEL, (), wrist=True)
    np.testing.assert_allclose(labels.xyz[2], [0.0, 0.0, 0.2], atol=1e-6)
    read, mask = torch.zeros(1, 102, 2), torch.ones(1, 3, dtype=torch.bool)
    figures = heads.figures(read, mask, labels)
    cube, ball = (100, -100, -10), (0, 200, 0)
    expected = (np.linalg.norm(cube) + np.linalg.norm(ball)) / 2
    assert float(figures['seen_mm']) == pytest.approx(expected, rel=1e-5)
    assert float(figures['wrist_mm']) == pytest.approx(200, rel=1e-5)  # it says "at the tool"
    unknown = make_labels([INFO], [None], MODEL, (), wrist=True)
    assert float(heads.figures(read, mask, unknown)['wrist_mm']) == 0.0
    assert unknown.placed.tolist() == [True, True, False]


def test_padding_does_not_move_a_place():
    heads = GroundingHeads(8, GroundingConfig(place_weight=1.0))
    text = torch.randn(1, 4, 8)
    mask = torch.tensor([[True, True, False, False]])
    other = torch.where(mask[..., None], text, 100.0)
    torch.testing.assert_close(heads.places(text, mask), heads.places(other, mask))


def test_words_are_those_of_the_catalogue():
    assert set(OBJECT_WORDS) == {*COLOURS, *SHAPES}


def test_a_weight_without_words_is_refused():
    with pytest.raises(UserError, match=r'grounding\.words is empty'):
        GroundingConfig(patch_weight=1.0)


def test_more_layers_than_there_are_cannot_be_asked():
    with pytest.raises(UserError, match=r'grounding\.layers = 0'):
        GroundingConfig(layers=0)
    with pytest.raises(UserError, match=r'grounding\.layers = 9 .* has 2 layers'):
        change(find_recipe('vla', 'spear1_debug'), ['grounding.layers=9'])


def test_all_losses_fall_and_the_heads_stay_out_of_the_export(tmp_path):
    info = {**INFO, 'objects': json.dumps([['red cube', [0.5, 0.3, 0.02], [0.3, 0.5], [0.2, 0.2]]])}
    info['target'] = 'red cube'
    folder = str(write_shards(tmp_path / 'franka', 'franka_droid', samples=16, info=info))
    config = change(
        find_recipe('vla', 'spear1_debug'),
        [
            f'data.shards=[{folder}]', 'steps=60', 'batch_size=8', 'saving.every_steps=60',
            'logging.every_steps=10', 'grounding.patch_weight=0.5', 'grounding.place_weight=5.0',
            'grounding.point_weight=0.5',
            'grounding.words=[red, cube]', 'validate_every=0', 'optimizer.learning_rate=3e-3',
        ],
    )  # fmt: skip
    run = tmp_path / 'run'
    Trainer(VlaTask(config, run), run, Place()).run()
    lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    lines = [line for line in lines if line['kind'] == 'train']
    for name in ('patch', 'point', 'place', 'place_mm'):
        assert lines[-1][name] < 0.6 * lines[0][name], name
    assert load_checkpoint(run / 'export').model is not None
    stored = (run / 'export' / 'model.safetensors').read_bytes()
    assert b'grounding' not in stored[: int.from_bytes(stored[:8], 'little') + 8]


def test_all_labels_are_tensors_on_the_device_of_the_run(tmp_path):
    weights = ['grounding.place_weight=1.0']
    task = VlaTask(change(find_recipe('vla', 'spear1_debug'), weights), tmp_path)
    batch = {'info': [INFO], 'p': [[0.4, 0.0, 0.3]], 'q': [[0, 1, 0, 0]], 'proprio_mask': [True]}
    labels = task._labels(batch, torch.device('meta'))
    for field in fields(labels):
        value = getattr(labels, field.name)
        assert isinstance(value, torch.Tensor), field.name
        assert value.device.type == 'meta', field.name


def test_a_place_that_is_not_learnt_is_not_reported(tmp_path):
    folder = str(write_shards(tmp_path / 'franka', 'franka_droid', samples=8, info=INFO))
    settings = [f'data.shards=[{folder}]', 'batch_size=4', 'grounding.patch_weight=1.0',
                'grounding.words=[red]']  # fmt: skip
    task = VlaTask(change(find_recipe('vla', 'spear1_debug'), settings), tmp_path / 'run')
    task.prepare(Place())
    module = task.make_module()
    module.load_state_dict(task.initial_state())
    losses = module(**task.inputs(next(task.stream(Place())), torch.device('cpu'), 0))
    assert 'patch' in losses
    assert not {'place', 'place_mm', 'point', 'pointed'} & losses.keys()
