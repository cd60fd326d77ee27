"""spear ask and spear evaluate-vlm, SPEAR-VLM untrained: every form is right, no number is."""

import importlib.util
import json

import cv2
import numpy as np
import pytest

if not all(importlib.util.find_spec(name) for name in ('torch', 'tokenizers', 'PIL')):
    pytest.skip('needs torch, tokenizers and pillow', allow_module_level=True)

import torch

from spear_ros.checkpoints.spear1 import CheckpointContents, save_checkpoint
from spear_ros.cli.main import main
from spear_ros.networks.spear1 import Spear1, Spear1Config
from spear_ros.processing.embodiments import default_action_specs, default_norm_stats
from spear_ros.processing.small_tokenizer import build_small_tokenizer
from spear_ros.processing.spatial_bins import SpatialBins


def write_bins(path, scale):
    bins = SpatialBins.normal(0.5, 0.3)
    data = {'scale_type': scale, 'edges': bins.edges, 'centres': bins.centres}
    path.write_text(json.dumps(data))
    return path


def make_checkpoint(root, name, scale):
    torch.manual_seed(0)
    config = Spear1Config.named('spear1_debug')
    contents = CheckpointContents(
        model=config,
        specs=default_action_specs(),
        stats=default_norm_stats(),
        tokenizer=build_small_tokenizer(root / 'tokenizer.json'),
        recipe='test',
        spatial_bins=write_bins(root / 'bins.json', scale) if scale else None,
    )
    save_checkpoint(root / name, contents, Spear1(config).state_dict())
    return root / name


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp('checkpoints')
    names = {'metric': 'metric', 'affine': 'affine', 'policy': ''}
    return {name: make_checkpoint(root, name, scale) for name, scale in names.items()}


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'table.png'
    pixels = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)
    return path


def ask(checkpoint, image, question, *more):
    out = image.with_name('answer.png')
    arguments = ['ask', str(image), question, '--checkpoint', str(checkpoint), '--out', str(out)]
    return main([*arguments, *more]), out


@pytest.mark.parametrize(
    ('question', 'told'),
    [
        ('where is the red cube?', 'centre point of the red cube'),
        ('What is the 3D bounding box of the mug?', 'corner 7: x'),
        ('How far along each axis is the mug from the red cube?', 'in a straight line'),
        ('Where do the corners of the 3D box of the mug lie in the image?', '% from the left'),
        ('Which is closer to the camera, the mug or the cup? Think step by step.', 'camera to the'),
    ],
)
def test_an_answer_is_told_with_its_doubt_and_drawn(question, told, checkpoints, image, capsys):
    status, out = ask(checkpoints['metric'], image, question)
    said = capsys.readouterr().out
    assert status == 0
    assert told in said
    assert 'entropy' in said
    drawn = cv2.imread(str(out))
    assert drawn.shape[1] == 672  # six times the network's width, with the words below
    assert drawn.shape[0] > 504


def test_the_scale_type_is_always_said(checkpoints, image, capsys):
    ask(checkpoints['metric'], image, 'where is the mug?')
    assert 'in m;' in capsys.readouterr().out
    ask(checkpoints['affine'], image, 'where is the mug?')
    said = capsys.readouterr().out
    assert 'affine' in said
    assert 'not metres' in said


def test_a_known_camera_draws_the_point_itself(checkpoints, image):
    _, out = ask(checkpoints['metric'], image, 'where is the mug?')
    by_network = out.read_bytes()
    _, out = ask(checkpoints['metric'], image, 'where is the mug?', '--fov-y', '60')
    assert out.read_bytes() != by_network


def test_any_question_is_decoded_freely_where_that_is_asked_for(checkpoints, image, capsys):
    status, out = ask(checkpoints['metric'], image, 'is it raining?', '--free')
    assert status == 0
    assert 'nothing was checked' in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize(
    ('name', 'question', 'more', 'named'),
    [
        ('metric', 'is it raining?', [], 'centre_point: "Where is the red cube?"'),
        ('policy', 'where is the mug?', [], 'no checkpoint of SPEAR-VLM'),
        ('metric', 'where is the mug?', ['--fov-y', '180'], 'fov-y'),
        ('nowhere', 'where is the mug?', [], 'no such checkpoint folder'),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(
    name, question, more, named, checkpoints, image, capsys
):
    checkpoint = checkpoints.get(name, image.parent / name)
    status, _ = ask(checkpoint, image, question, *more)
    error = capsys.readouterr().err
    assert status == 2
    assert named in error
    assert error.count('\n') == 1


@pytest.mark.parametrize('content', [None, b'', b'no picture', b'\x89PNG\r\n\x1a\n' + b'0' * 50])
def test_a_picture_that_cannot_be_read_is_one_sentence(content, checkpoints, tmp_path, capsys):
    image = tmp_path / 'x.png'
    if content is not None:
        image.write_bytes(content)
    status, _ = ask(checkpoints['metric'], image, 'where is the mug?')
    error = capsys.readouterr().err
    assert status == 2
    assert 'x.png' in error
    assert error.count('\n') == 1


def held_out(folder, scale='metric'):
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (84, 112, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / 'a.jpg'), pixels)
    lines = [
        {'family': 'centre_point', 'question': 'Where is the mug?', 'objects': ['mug'],
         'answer': '<3d0001><3d0002><3d0003>', 'values': [[0.1, 0.2, 0.9]]},
        {'family': 'box', 'question': 'What is the 3D bounding box of the mug?',
         'objects': ['mug'], 'answer': '<3d0500>' * 24},
        {'family': 'closer', 'question': 'Which is closer to the camera, the mug or the cup?',
         'answer': 'The distance from the camera to the mug is <3d0100> and to the cup <3d0900>, '
                   'so the mug is closer.', 'values': [[0.2], [0.9]]},
    ]  # fmt: skip
    text = ''.join(json.dumps({'image': 'a.jpg', **line}) + '\n' for line in lines)
    (folder / 'questions.jsonl').write_text(text)
    write_bins(folder / 'bins.json', scale)
    return folder


def test_families_are_evaluated_apart(checkpoints, tmp_path, capsys):
    folder = held_out(tmp_path / 'val')
    figures = tmp_path / 'figures.json'
    arguments = ['evaluate-vlm', str(checkpoints['metric']), str(folder), '--json', str(figures)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert 'lengths in m' in said
    told = json.loads(figures.read_text())['families']
    assert told.keys() == {'centre_point', 'box', 'closer'}
    assert all(f['malformed'] == 0 for f in told.values())
    assert 0 <= told['box']['iou_mean'] <= 1
    assert main([*arguments, '--free']) == 0
    free = json.loads(figures.read_text())['families']
    assert free['box']['malformed'] == 1  # an untrained network keeps no form by itself


def test_data_of_another_scale_type_is_refused(checkpoints, tmp_path, capsys):
    folder = held_out(tmp_path / 'val', 'affine')
    assert main(['evaluate-vlm', str(checkpoints['metric']), str(folder)]) == 2
    assert 'affine and the checkpoint metric' in capsys.readouterr().err
