"""Sources of questions keep their shares, epoch after epoch."""

import json

import cv2
import numpy as np
import pytest

from spear_ros.core.errors import UserError
from spear_ros.data.mixtures import Mixture, MixturePart, load_mixture
from spear_ros.training.distributed import Place
from spear_ros.training.indexed_stream import IndexedStream
from spear_ros.training.question_mixture import MixedOrder, whole_shares
from spear_ros.training.recipes import change, find_recipe
from spear_ros.training.vlm_task import VlmTask

SOURCES = ['plain'] * 60 + ['robot'] * 40


def mixture(plain=90.0, robot=10.0):
    parts = (('plain', plain), ('robot', robot))
    return Mixture(
        name='m', weight_is='probability',
        parts=tuple(MixturePart(dataset=n, weight=w, weight_from='ours') for n, w in parts),
    )  # fmt: skip


def test_every_epoch_has_the_shares_of_the_mixture():
    order = MixedOrder(SOURCES, mixture(), seed=1)
    assert order.counts == {'plain': 90, 'robot': 10}
    seen = set()
    for epoch in range(6):
        numbers = order(epoch)
        robot = numbers[numbers >= 60]
        assert (len(numbers), len(robot), len(set(robot))) == (100, 10, 10)
        seen |= set(robot)
        # 90 of 60: each once, half of them twice.
        counts = np.bincount(numbers[numbers < 60], minlength=60)
        assert set(counts) == {1, 2}
    assert len(seen) > 30  # other ones in every epoch
    np.testing.assert_array_equal(order(3), MixedOrder(SOURCES, mixture(), seed=1)(3))
    assert (order(3) != MixedOrder(SOURCES, mixture(), seed=2)(3)).any()


def test_shares_are_whole_and_add_up():
    assert whole_shares({'a': 0.335, 'b': 0.335, 'c': 0.33}, 10) == {'a': 4, 'b': 3, 'c': 3}
    assert whole_shares({'a': 0.95, 'b': 0.05}, 12) == {'a': 11, 'b': 1}


def test_a_source_without_weight_and_a_weight_without_source_are_refused():
    with pytest.raises(UserError, match='source "video" have no weight'):
        MixedOrder([*SOURCES, 'video'], mixture(), seed=0)
    with pytest.raises(UserError, match='robot'):
        MixedOrder(['plain'] * 5, mixture(), seed=0)


def test_a_mixed_stream_goes_on_where_it_was():
    def stream():
        order = MixedOrder(SOURCES, mixture(), seed=5)
        return IndexedStream(100, 7, Place(), 5, lambda numbers: numbers, order=order)

    first = stream()
    batches = [next(first) for _ in range(20)]
    position = first.state_dict()
    after = [next(first) for _ in range(20)]
    second = stream()
    second.load_state_dict(position)
    assert [next(second) for _ in range(20)] == after
    drawn = np.concatenate([*batches, *after])[:200]
    assert (drawn >= 60).sum() == 20
    for s in (first, second):
        s.close()


@pytest.mark.parametrize('name', ['spear_vlm_stage1', 'spear_vlm_stage1_own'])
def test_the_papers_stage_1_has_a_tenth_of_robot_frames(name):
    plain, robot = load_mixture(name).parts
    order = MixedOrder([plain.dataset] * 300 + [robot.dataset] * 300, load_mixture(name), seed=0)
    assert order.counts == {plain.dataset: 540, robot.dataset: 60}


def test_the_trainer_draws_questions_by_the_shares_of_their_sources(tmp_path):
    for name, count in (('non_robot', 3), ('robot', 7)):
        folder = tmp_path / name
        folder.mkdir()
        cv2.imwrite(str(folder / 'a.png'), np.zeros((60, 80, 3), np.uint8))
        line = {'image': 'a.png', 'question': 'where?', 'answer': 'there'}
        lines = [
            json.dumps({**line, 'key': f'{name}{i}', 'provenance': {'source': name}})
            for i in range(count)
        ]
        (folder / 'questions-00000.jsonl').write_text('\n'.join(lines))
    folders = ','.join(str(tmp_path / name) for name in ('non_robot', 'robot'))
    config = change(
        find_recipe('vlm', 'spear_vlm_debug'),
        [f'data.questions=[{folders}]', 'data.mixture=spear_vlm_stage1_own', 'batch_size=10'],
    )
    task = VlmTask(config, tmp_path / 'run')
    task.prepare(Place())
    stream = task.stream(Place())
    keys = [key for _ in range(3) for key in next(stream)['key']]
    stream.close()
    assert sum(key.startswith('robot') for key in keys) == 3
