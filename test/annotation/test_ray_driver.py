"""Annotation by Ray workers: the same files as one process writes."""

import json

import cv2
import numpy as np
import pytest

from spear_ros.annotation.detectors import ReplayDetector
from spear_ros.annotation.given import GivenDepth, GivenMasks
from spear_ros.annotation.images import ImageSettings
from spear_ros.annotation.pipeline import STORE, Stages, annotate_one
from spear_ros.annotation.ray_driver import Annotator
from spear_ros.annotation.store import Store
from spear_ros.cli.main import main
from spear_ros.core.errors import UserError

NAMES = [f'p{i}.png' for i in range(7)]


@pytest.fixture
def data(tmp_path):
    """A tilted board with two bumps, in seven pictures; one more file is none."""
    rng = np.random.default_rng(0)
    v, u = np.mgrid[0:120, 0:160]
    for folder in ('images', 'boxes', 'masks', 'depth'):
        (tmp_path / folder).mkdir()
    for name in NAMES:
        stem, mask, depth = name.removesuffix('.png'), np.zeros((120, 160), np.uint8), 1 + v / 200
        boxes = []
        for number, label in enumerate(('ball', 'globe'), 1):
            x, y = int(rng.integers(20, 35) + 70 * (number - 1)), int(rng.integers(30, 50))
            inside = (abs(u - x - 15) < 15) & (abs(v - y - 15) < 15)
            mask[inside] = number
            depth[inside] -= 0.1 * np.cos((u - x - 15) / 15)[inside]
            boxes.append({'label': label, 'box_xyxy': [x, y, x + 30, y + 30]})
        cv2.imwrite(str(tmp_path / 'images' / name), rng.integers(0, 255, (120, 160, 3), np.uint8))
        cv2.imwrite(str(tmp_path / 'masks' / name), mask)
        (tmp_path / 'boxes' / f'{stem}.json').write_text(json.dumps({'boxes': boxes}))
        K = np.array([[150.0, 0, 79.5], [0, 150, 59.5], [0, 0, 1]])
        np.savez(tmp_path / 'depth' / f'{stem}.npz', depth=depth, K=K, scale='metric')
    (tmp_path / 'images' / 'note.txt').write_text('none')
    return tmp_path


def stages(root):
    return Stages(
        detector=ReplayDetector(root / 'boxes'),
        segmenter=GivenMasks(root / 'masks'),
        depth=GivenDepth(root / 'depth'),
        images=ImageSettings(width=160, height=120),
    )


def test_a_worker_hands_over_records_counts_and_what_stops_a_run(data):
    worker = Annotator(data / 'images', lambda: stages(data), data / 'out')
    store = Store(data / 'other' / STORE)
    expected = json.dumps(annotate_one(data / 'images', 'p0.png', stages(data), store))
    for stage in ('made:boxes', 'stored:boxes'):
        row = worker({'number': 3, 'name': 'p0.png'})
        assert (row['number'], row['problem']) == (3, '')
        assert row['record'] == expected
        assert json.loads(row['counts'])[stage] == 1
    assert 'not_an_image' in worker({'number': 0, 'name': 'note.txt'})['record']

    def refuse(image):
        raise UserError('the service refuses the key.')

    worker._stages.detector.detect = refuse
    assert worker({'number': 1, 'name': 'p1.png'})['problem'] == 'the service refuses the key.'


def test_without_ray_the_command_says_what_to_install(data, capsys, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'ray', None)
    assert main([*command(data, 'out'), '--ray=2']) == 2
    assert 'install the extra "annotate-ray"' in capsys.readouterr().err
    assert main([*command(data, 'out'), '--ray=2', '--shard=0/2']) == 2
    assert 'leave --shard away' in capsys.readouterr().err


def command(root, out):
    folders = [f'--{name}={root / name}' for name in ('boxes', 'masks', 'depth')]
    return ['annotate', str(root / 'images'), f'--out={root / out}', *folders]


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()
    }


@pytest.mark.slow
def test_two_workers_write_what_one_process_writes(data, capsys):
    ray = pytest.importorskip('ray', reason='Ray is not installed (extra annotate-ray)')
    assert main(command(data, 'one')) == 0
    alone = capsys.readouterr().out
    try:
        assert main([*command(data, 'two'), '--ray=2']) == 0
        printed = capsys.readouterr().out
        assert printed.replace('/two', '/one') == alone
        assert files(data / 'two') == files(data / 'one')
        # Nothing is made again, and a fault that stops a run is told as it is.
        assert main([*command(data, 'two'), '--ray=2']) == 0
        again = capsys.readouterr().out
        assert 'stored:boxes: 7' in again
        assert 'made:' not in again
        (data / 'locked').write_text('a file where a folder must be')
        assert main([*command(data, 'locked'), '--ray=2']) == 2
        assert 'cannot be written' in capsys.readouterr().err
    finally:
        ray.shutdown()
