import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spear_ros.core.errors import UserError
from spear_ros.data.samples import PictureSettings, Sample
from spear_ros.data.shard_writer import ShardWriter
from spear_ros.data.shards import DatasetCard, ShardDataset, open_datasets, read_card, scan_tar
from spear_ros.processing.embodiments import default_action_specs

CARD = DatasetCard(
    name='demo',
    spec=default_action_specs()['widowx_bridge'],
    label='reached',
    pictures=PictureSettings(),
    source='test',
)


def sample(key, size=2000, wrist=b'w' * 100):
    rng = np.random.default_rng(abs(hash(key)) % 2**32)
    return Sample(
        key=key,
        dataset='demo',
        embodiment='widowx_bridge',
        instruction='Öffne die Schublade',
        numbers=rng.normal(size=(6, 9)),
        external=rng.bytes(size),
        wrist=wrist,
        info={'step': 1, 'view': 'external', 'image_age_s': 0.0},
    )


def write(root, episodes, card=CARD, close=True, **options):
    writer = ShardWriter(root, card, **options)
    for key, count in episodes:
        writer.add_episode(key, [sample(f'{key}-{i:05d}') for i in range(count)])
    if close:
        writer.close()
    else:
        writer.abandon()
    return writer


def all_keys(dataset):
    return [
        dataset.info(s, i)['key']
        for s in range(len(dataset.shards))
        for i in range(dataset.sizes[s])
    ]


def test_samples_come_back_bit_by_bit(tmp_path):
    write(tmp_path, [('a', 3), ('b', 2)])
    dataset = ShardDataset(tmp_path)
    assert len(dataset) == 5
    assert dataset.episodes == 2
    for index, key in enumerate(['a-00000', 'a-00001', 'a-00002', 'b-00000', 'b-00001']):
        found, expected = dataset.sample(0, index), sample(key)
        np.testing.assert_array_equal(found.numbers, expected.numbers)
        assert replace(found, numbers=expected.numbers) == expected


def test_a_sample_without_wrist_has_none(tmp_path):
    writer = ShardWriter(tmp_path, CARD)
    writer.add_episode('a', [sample('a-0', wrist=None)])
    writer.close()
    assert ShardDataset(tmp_path).sample(0, 0).wrist is None


def test_shards_are_plain_tar_files_in_webdataset_order(tmp_path):
    write(tmp_path, [('a', 2)])
    with tarfile.open(tmp_path / 'shard-000-00000.tar') as tar:
        names = tar.getnames()
        info = json.loads(tar.extractfile('a-00001.info.json').read())
        numbers = np.load(io.BytesIO(tar.extractfile('a-00001.numbers.npy').read()))
    assert names[:4] == [
        'a-00000.external.jpg',
        'a-00000.wrist.jpg',
        'a-00000.numbers.npy',
        'a-00000.info.json',
    ]
    assert info['instruction'] == 'Öffne die Schublade'
    np.testing.assert_array_equal(numbers, sample('a-00001').numbers)


def test_a_conversion_is_reproducible_byte_for_byte(tmp_path):
    for name in ('one', 'two'):
        write(tmp_path / name, [('a', 3)])
    one, two = (ShardDataset(tmp_path / n) for n in ('one', 'two'))
    assert [s.sha256 for s in one.shards] == [s.sha256 for s in two.shards]
    assert one.content_hash == two.content_hash


def test_the_hash_changes_with_the_samples_and_with_their_meaning(tmp_path):
    write(tmp_path / 'a', [('a', 3)])
    write(tmp_path / 'b', [('a', 2)])
    write(tmp_path / 'c', [('a', 3)], replace(CARD, label='commanded'))
    hashes = {ShardDataset(tmp_path / n).content_hash for n in 'abc'}
    assert len(hashes) == 3


def test_shards_are_closed_at_the_end_of_an_episode(tmp_path):
    writer = ShardWriter(tmp_path, CARD, shard_mb=1)
    for number in range(5):
        key = f'e{number}'
        writer.add_episode(key, [sample(f'{key}-{i:05d}', 200_000) for i in range(4)])
    writer.close()
    dataset = ShardDataset(tmp_path)
    np.testing.assert_array_equal(dataset.sizes, [8, 8, 4])


def test_a_killed_run_goes_on_after_its_last_finished_shard(tmp_path):
    episodes = [(f'e{i}', 3) for i in range(6)]
    whole = tmp_path / 'whole'
    writer = ShardWriter(whole, CARD)
    for i, (key, n) in enumerate(episodes):
        writer.add_episode(key, [sample(f'{key}-{j:05d}') for j in range(n)])
        if i % 2:
            writer._finish_shard()
    writer.close()

    cut = tmp_path / 'cut'
    writer = ShardWriter(cut, CARD)
    for i, (key, n) in enumerate(episodes[:3]):
        writer.add_episode(key, [sample(f'{key}-{j:05d}') for j in range(n)])
        if i % 2:
            writer._finish_shard()
    # Killed here: e2 is in an unfinished file, its manifest line was never written.
    writer._stream.flush()
    assert list(cut.glob('*.part'))

    writer = ShardWriter(cut, CARD)
    assert writer.done_keys == {'e0', 'e1'}
    assert not list(cut.glob('*.part'))
    for i, (key, n) in enumerate(episodes):
        if key not in writer.done_keys:
            writer.add_episode(key, [sample(f'{key}-{j:05d}') for j in range(n)])
            if i % 2:
                writer._finish_shard()
    writer.close()
    assert ShardDataset(cut).content_hash == ShardDataset(whole).content_hash


def test_a_half_written_manifest_line_is_forgotten(tmp_path):
    write(tmp_path, [('a', 2)], close=False)
    writer = ShardWriter(tmp_path, CARD)
    writer.add_episode('a', [sample('a-0')])
    writer._finish_shard()
    manifest = tmp_path / 'manifest-000-of-001.jsonl'
    manifest.write_text(manifest.read_text() + '{"shard": "shard-000-0000')
    writer = ShardWriter(tmp_path, CARD)
    writer.add_episode('b', [sample('b-0')])
    writer.close()
    assert all_keys(ShardDataset(tmp_path)) == ['a-0', 'b-0']


def test_an_exception_while_writing_leaves_only_finished_shards(tmp_path):
    def interrupted():
        with ShardWriter(tmp_path, CARD) as writer:
            writer.add_episode('a', [sample('a-0')])
            writer.add_episode('b', (sample(f'b-{1 // 0}') for _ in range(1)))

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert not list(tmp_path.glob('*.tar*'))


def test_an_unfinished_conversion_is_refused_unless_asked_for(tmp_path):
    writer = ShardWriter(tmp_path, CARD)
    writer.add_episode('a', [sample('a-0')])
    writer._finish_shard()
    with pytest.raises(UserError, match='part 0 of 1 is not finished'):
        ShardDataset(tmp_path)
    assert len(ShardDataset(tmp_path, allow_partial=True)) == 1


def test_parts_are_read_together_and_a_missing_one_is_named(tmp_path):
    write(tmp_path, [('a', 1)], part=(0, 2))
    with pytest.raises(UserError, match='part 1 of 2 is not finished'):
        ShardDataset(tmp_path)
    write(tmp_path, [('b', 2)], part=(1, 2))
    assert sorted(all_keys(ShardDataset(tmp_path))) == ['a-00000', 'b-00000', 'b-00001']


def test_other_settings_in_the_same_folder_name_the_field(tmp_path):
    write(tmp_path, [('a', 1)])
    with pytest.raises(UserError, match="label is 'reached' in the folder and 'commanded'"):
        ShardWriter(tmp_path, replace(CARD, label='commanded'))


def test_a_lost_index_is_made_again_from_the_tar(tmp_path):
    write(tmp_path, [('a', 3)])
    (tmp_path / 'shard-000-00000.index.npy').unlink()
    assert ShardDataset(tmp_path).sample(0, 2).key == 'a-00002'
    np.save(tmp_path / 'shard-000-00000.index.npy', np.zeros((1, 4, 2), np.int64))
    assert ShardDataset(tmp_path).sample(0, 2).key == 'a-00002'


def test_damage_is_found_by_checksum_and_named_on_reading(tmp_path):
    write(tmp_path, [('a', 3)])
    tar = tmp_path / 'shard-000-00000.tar'
    assert list(ShardDataset(tmp_path).damaged_shards()) == []
    place = scan_tar(tar)[1, 2]
    data = bytearray(tar.read_bytes())
    data[place[0] : place[0] + 60] = b'\x00' * 60
    tar.write_bytes(data)
    dataset = ShardDataset(tmp_path)
    assert list(dataset.damaged_shards()) == [tar]
    with pytest.raises(UserError, match=r'shard-000-00000.tar: sample 1 is damaged'):
        dataset.sample(0, 1)
    assert dataset.sample(0, 2).key == 'a-00002'


@pytest.mark.parametrize(
    ('content', 'what'),
    [(None, 'cannot read the card'), ('{', 'not JSON'), ('{"format": 99}', 'format 99')],
)
def test_a_folder_that_is_no_dataset_is_a_sentence(tmp_path, content, what):
    if content is not None:
        (tmp_path / 'dataset.json').write_text(content)
    with pytest.raises(UserError, match=what):
        read_card(tmp_path)


def test_a_shard_that_was_cut_short_is_named_by_its_numbers_too(tmp_path):
    write(tmp_path, [('a', 3)])
    tar = tmp_path / 'shard-000-00000.tar'
    os.truncate(tar, 600)
    with pytest.raises(UserError, match=r'shard-000-00000.tar: sample 2 is damaged'):
        ShardDataset(tmp_path).numbers(0, 2)


def test_a_missing_shard_is_named(tmp_path):
    write(tmp_path, [('a', 3)])
    Path(tmp_path / 'shard-000-00000.tar').unlink()
    with pytest.raises(UserError, match=r'shard-000-00000.tar is in the manifest but not on disk'):
        ShardDataset(tmp_path)


def test_two_folders_of_one_name_are_refused(tmp_path):
    write(tmp_path / 'a', [('a', 1)])
    write(tmp_path / 'b', [('a', 1)])
    with pytest.raises(UserError, match='both hold "demo"'):
        open_datasets([tmp_path / 'a', tmp_path / 'b'])


def test_keys_that_tar_or_webdataset_would_split_are_refused(tmp_path):
    writer = ShardWriter(tmp_path, CARD)
    with pytest.raises(UserError, match=r'sample key "a\.b"'):
        writer.add_episode('a', [sample('a.b')])


def test_episodes_without_samples_are_remembered(tmp_path):
    write(tmp_path, [('empty', 0), ('a', 1)])
    assert ShardWriter(tmp_path, CARD).done_keys == {'empty', 'a'}
    assert len(ShardDataset(tmp_path)) == 1
