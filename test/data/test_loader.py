import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from spear_ros.core.errors import UserError
from spear_ros.data.loader import BatchLoader, LoaderSettings, resize_cover
from spear_ros.data.mixtures import Mixture, MixturePart, MixtureSampler
from spear_ros.data.samples import GRIPPER, TARGETS, P
from spear_ros.data.shards import scan_tar

MIXTURE = Mixture(
    name='m',
    weight_is='probability',
    parts=(
        MixturePart(dataset='a', weight=1.0, weight_from='ours'),
        MixturePart(dataset='b', weight=2.0, weight_from='ours'),
    ),
)


@pytest.fixture
def datasets(tmp_path, make_shards):
    return {name: make_shards(tmp_path / name, name) for name in 'ab'}


def loader(datasets, batch_size=4, seed=0, **settings):
    sampler = MixtureSampler(MIXTURE, datasets, seed=seed)
    return BatchLoader(sampler, datasets, LoaderSettings(batch_size=batch_size, **settings))


def test_a_batch_stacks_what_the_shards_hold(datasets):
    with loader(datasets) as batches:
        batch = next(batches)
    expected = MixtureSampler(MIXTURE, datasets, seed=0)
    for i, address in enumerate(islice(expected, 4)):
        sample = datasets[address.dataset].sample(address.shard, address.index)
        assert batch['key'][i] == sample.key
        assert batch['instruction'][i] == sample.instruction
        assert batch['seed'][i] == address.seed
        np.testing.assert_array_equal(batch['p'][i], sample.numbers[0, P])
        np.testing.assert_array_equal(batch['target_gripper'][i], sample.numbers[TARGETS, GRIPPER])
    assert batch['external'].shape == (4, 240, 320, 3)
    assert batch['external'].dtype == np.uint8
    assert batch['target_q'].shape == (4, 5, 4)
    assert batch['target_mask'].dtype == bool
    assert not batch['wrist_mask'].any()
    assert not batch['wrist'].any()


def test_pictures_of_the_loaders_size_are_handed_over_pixel_by_pixel(datasets):
    with loader(datasets, external_size=(48, 64)) as batches:
        batch = next(batches)
    from spear_ros.data.episodes import decode_image_bytes

    address = next(MixtureSampler(MIXTURE, datasets, seed=0))
    sample = datasets[address.dataset].sample(address.shard, address.index)
    np.testing.assert_array_equal(batch['external'][0], decode_image_bytes(sample.external, 'x'))


def test_batches_do_not_depend_on_the_number_of_threads(datasets):
    with loader(datasets, threads=1, batches_ahead=1) as one, loader(datasets, threads=8) as many:
        for a, b in islice(zip(one, many, strict=True), 5):
            assert a['key'] == b['key']
            np.testing.assert_array_equal(a['external'], b['external'])


@pytest.mark.parametrize('consumed', [0, 1, 7])
def test_the_batch_after_a_resume_is_the_next_one_bit_by_bit(datasets, consumed):
    with loader(datasets) as first:
        for _ in range(consumed):
            next(first)
        state = json.loads(json.dumps(first.state_dict()))
        expected = [next(first) for _ in range(3)]
    with loader(datasets, threads=3, batches_ahead=5) as second:
        next(second)  # a loader in use can be rewound too
        second.load_state_dict(state)
        for batch in expected:
            found = next(second)
            assert found['key'] == batch['key']
            for name, value in batch.items():
                if isinstance(value, np.ndarray):
                    np.testing.assert_array_equal(found[name], value)


KILLED = """
import json, os, sys
from pathlib import Path
from spear_ros.data.loader import BatchLoader, LoaderSettings
from spear_ros.data.mixtures import Mixture, MixturePart, MixtureSampler
from spear_ros.data.shards import open_datasets
root, state = Path(sys.argv[1]), Path(sys.argv[2])
datasets = open_datasets([root / 'a', root / 'b'])
weights = {'a': 1.0, 'b': 2.0}
parts = tuple(MixturePart(dataset=n, weight=w, weight_from='ours') for n, w in weights.items())
sampler = MixtureSampler(Mixture(name='m', weight_is='probability', parts=parts), datasets, seed=0)
loader = BatchLoader(sampler, datasets, LoaderSettings(batch_size=4))
for _ in range(5):
    next(loader)
state.write_text(json.dumps(loader.state_dict()))
next(loader)
os.kill(os.getpid(), 9)
"""


def test_a_process_killed_in_the_middle_is_taken_up_exactly(datasets, tmp_path):
    state = tmp_path / 'state.json'
    result = subprocess.run(
        [sys.executable, '-c', KILLED, str(tmp_path), str(state)],
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert result.returncode == -9
    with loader(datasets) as whole:
        expected = [next(whole)['key'] for _ in range(8)][5:]
    with loader(datasets) as resumed:
        resumed.load_state_dict(json.loads(state.read_text()))
        assert [next(resumed)['key'] for _ in range(3)] == expected


def test_a_damaged_picture_names_shard_and_key(datasets, tmp_path):
    dataset = datasets['a']
    for shard in dataset.shards:
        data = bytearray(shard.path.read_bytes())
        for offset, size in scan_tar(shard.path)[:, 0]:
            data[offset : offset + size] = bytes(size)
        shard.path.write_bytes(data)
    match = r'/a/shard-000-0000\d.tar: a-\d-\d+ external'
    with loader(datasets) as batches, pytest.raises(UserError, match=match):
        list(islice(batches, 20))


def test_data_sets_of_different_horizons_are_refused(datasets):
    from dataclasses import replace

    card = datasets['b'].card
    datasets['b'].card = replace(card, spec=replace(card.spec, horizon=4))
    with pytest.raises(UserError, match='differ in their horizon'):
        loader(datasets)


def test_resizing_covers_without_stretching():
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, 100:200] = 255
    assert resize_cover(image, (50, 50)).min() == 255  # the middle third is all that fits a square
    assert resize_cover(image[:, 100:200], (200, 200)).shape == (200, 200, 3)


def test_settings_outside_of_reason_are_refused():
    with pytest.raises(UserError, match='batch_size = 0'):
        LoaderSettings(batch_size=0)
