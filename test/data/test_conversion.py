"""Recordings through shards to a batch, on real data where it is at hand."""

import dataclasses
import json

import numpy as np
import pytest

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import quat_angle
from spear_ros.core.resources import share_file
from spear_ros.data.conversion import (
    ConversionSettings,
    PendingEpisode,
    Source,
    convert_to_lerobot,
    convert_to_shards,
    throttled,
)
from spear_ros.data.episodes import ArrayFrames
from spear_ros.data.loader import BatchLoader, LoaderSettings
from spear_ros.data.mixtures import MixtureSampler, action_specs, load_mixture
from spear_ros.data.resampling import ResampleSettings
from spear_ros.data.rows import find_row, load_rows
from spear_ros.data.shards import ShardDataset
from spear_ros.data.sources import bag_source, find_bags, lerobot_source, rlds_source
from spear_ros.data.statistics import compute
from spear_ros.data.topic_map import load_topic_map
from spear_ros.processing.action_space import (
    Pose,
    Targets,
    decode_actions,
    encode_actions,
    encode_proprio,
)
from spear_ros.processing.embodiments import default_action_specs

SPEC = default_action_specs()['widowx_bridge']
SMALL = ConversionSettings(shard_mb=1)


def source_of(episodes, name='demo'):
    """Source of (key, episode or exception)."""

    def load(item):
        def give():
            if isinstance(item, Exception):
                raise item
            return [item]

        return give

    def pending(part):
        listed = [PendingEpisode(key, load(item)) for key, item in episodes]
        return listed[part[0] :: part[1]]

    return Source(name, SPEC, 'test', pending)


def keys(root):
    dataset = ShardDataset(root)
    return [
        dataset.info(s, i)['key']
        for s in range(len(dataset.shards))
        for i in range(dataset.sizes[s])
    ]


@pytest.fixture
def episodes(make_episode):
    return [(f'e{i}', make_episode(f'e{i}', seed=i)) for i in range(6)]


def test_converting_twice_does_nothing_the_second_time(tmp_path, episodes):
    first = convert_to_shards(source_of(episodes), tmp_path, SMALL)
    assert (first.episodes, first.samples) == (6, 120)
    before = ShardDataset(tmp_path).content_hash
    second = convert_to_shards(source_of(episodes), tmp_path, SMALL)
    assert (second.episodes, second.already_there) == (0, 6)
    assert ShardDataset(tmp_path).content_hash == before


def test_a_finished_folder_takes_further_episodes(tmp_path, episodes):
    convert_to_shards(source_of(episodes[:4]), tmp_path, SMALL)
    more = convert_to_shards(source_of(episodes), tmp_path, SMALL)
    assert (more.episodes, more.already_there) == (2, 4)
    assert len(keys(tmp_path)) == 120


def test_a_run_that_dies_is_taken_up_and_ends_with_the_same_samples(tmp_path, episodes):
    class Died(Exception):
        pass

    dying = [*episodes[:4], ('e4', Died()), episodes[5]]
    with pytest.raises(Died):
        convert_to_shards(source_of(dying), tmp_path / 'cut', SMALL)
    convert_to_shards(source_of(episodes), tmp_path / 'cut', SMALL)
    convert_to_shards(source_of(episodes), tmp_path / 'whole', SMALL)
    assert sorted(keys(tmp_path / 'cut')) == sorted(keys(tmp_path / 'whole'))


def test_parts_share_the_work_without_overlap(tmp_path, episodes):
    for i in range(3):
        convert_to_shards(source_of(episodes), tmp_path, ConversionSettings(part=(i, 3)))
    assert len(keys(tmp_path)) == len(set(keys(tmp_path))) == 120


def test_bad_episodes_are_left_out_with_their_reason(tmp_path, episodes, make_episode):
    mixed = [
        *episodes,
        ('bad', UserError('episode bad: the arm melted')),
        ('mute', make_episode('mute', instruction='')),
        ('short', make_episode('short', n=2)),
    ]
    report = convert_to_shards(source_of(mixed), tmp_path, SMALL)
    assert report.episodes == 7
    assert report.skipped['bad'] == 'episode: the arm melted'
    assert report.skipped['mute'] == 'no instruction'
    assert '1 x no instruction' in report.text()
    saved = json.loads((tmp_path / 'report-000.json').read_text())
    assert set(saved['skipped']) == {'bad', 'mute'}
    assert saved['rate_hz_min_median_max'] == [5.0, 5.0, 5.0]
    again = convert_to_shards(source_of(mixed), tmp_path, SMALL)
    assert set(again.skipped) == {'bad', 'mute'}


def test_an_episode_whose_pictures_cannot_be_read_is_left_out(tmp_path, episodes, make_episode):
    def lost(index):
        raise UserError('episode blind: the video cannot be decoded')

    good = make_episode('blind')
    stamps = good.cameras['external'].stamps_ns
    blind = dataclasses.replace(
        good, cameras={**good.cameras, 'external': ArrayFrames(stamps, lost)}
    )
    report = convert_to_shards(source_of([*episodes, ('blind', blind)]), tmp_path, SMALL)
    assert (report.episodes, report.samples, len(keys(tmp_path))) == (6, 120, 120)
    assert report.skipped == {'blind': 'episode: the video cannot be decoded'}


def test_a_recording_that_was_mended_is_taken_by_the_next_run(tmp_path, episodes):
    bad = [(f'e{i}', UserError('the file is cut off')) for i in range(4, 6)]
    assert set(convert_to_shards(source_of([*episodes[:4], *bad]), tmp_path, SMALL).skipped) == {
        'e4',
        'e5',
    }
    mended = convert_to_shards(source_of([*episodes[:5], bad[1]]), tmp_path, SMALL)
    assert (mended.episodes, mended.already_there, set(mended.skipped)) == (1, 4, {'e5'})
    assert len(keys(tmp_path)) == 100
    assert set(json.loads((tmp_path / 'report-000.json').read_text())['skipped']) == {'e5'}


def test_a_few_bad_recordings_among_many_do_not_stop_the_next_run(tmp_path, episodes):
    bad = [(f'b{i}', UserError('the file is cut off')) for i in range(12)]
    good = [(f'{key}-{n}', episode) for n in range(4) for key, episode in episodes]
    for _ in range(2):
        assert len(convert_to_shards(source_of([*good, *bad]), tmp_path, SMALL).skipped) == 12


def test_a_damaged_video_leaves_its_episode_out_of_a_lerobot_directory(
    tmp_path, episodes, make_episode
):
    pytest.importorskip('av', reason='LeRobot videos need av')

    def lost(index):
        if index > 3:
            raise UserError('episode blind: the video cannot be decoded')
        return np.zeros((48, 64, 3), np.uint8)

    good = make_episode('blind')
    stamps = good.cameras['external'].stamps_ns
    blind = dataclasses.replace(
        good, cameras={**good.cameras, 'external': ArrayFrames(stamps, lost)}
    )
    mixed = [episodes[0], ('blind', blind), *episodes[1:3]]
    report = convert_to_lerobot(source_of(mixed), tmp_path / 'set', SMALL)
    assert report.skipped == {'blind': 'episode: the video cannot be decoded'}
    assert report.episodes == 3
    info = json.loads((tmp_path / 'set' / 'meta' / 'info.json').read_text())
    assert info['total_episodes'] == 3


def test_when_most_episodes_are_bad_the_run_stops(tmp_path, episodes):
    bad = [(f'b{i}', UserError('wrong column')) for i in range(20)]
    with pytest.raises(UserError, match=r'of \d+ episodes cannot be used.*wrong column'):
        convert_to_shards(source_of([*episodes[:3], *bad]), tmp_path, SMALL)


def test_many_episodes_without_instruction_do_not_stop_it(tmp_path, episodes, make_episode):
    mute = [(f'm{i}', make_episode(f'm{i}', instruction='')) for i in range(30)]
    report = convert_to_shards(source_of([*mute, *episodes]), tmp_path, SMALL)
    assert report.episodes == 6
    assert len(report.skipped) == 30


def test_a_limit_stops_early(tmp_path, episodes):
    assert (
        convert_to_shards(source_of(episodes), tmp_path, ConversionSettings(limit=2)).episodes == 2
    )


def test_progress_is_shown_now_and_then(tmp_path, episodes):
    shown = []
    convert_to_shards(source_of(episodes), tmp_path, SMALL, throttled(shown.append, every_s=0.0))
    assert len(shown) == 6
    assert '6 episodes, 120 samples' in shown[-1]


def test_a_part_outside_of_its_count_is_refused():
    with pytest.raises(UserError, match='part 3/2'):
        ConversionSettings(part=(3, 2))


def test_a_damaged_file_stops_or_is_left_out_as_asked(tmp_path, recordings):
    real = recordings / 'bridge_rlds'
    original = next(real.glob('*.tfrecord*')).read_bytes()
    folder = tmp_path / 'rlds'
    folder.mkdir()
    (folder / 'features.json').write_bytes(
        (recordings / 'bridge_rlds' / 'features.json').read_bytes()
    )
    (folder / 'b-train.tfrecord-00000-of-00001').write_bytes(original[: len(original) // 2])
    row = load_rows()['bridge_orig']
    with pytest.raises(UserError, match='is cut off'):
        convert_to_shards(rlds_source(folder, row), tmp_path / 'stop', SMALL)
    report = convert_to_shards(rlds_source(folder, row, skip_damaged=True), tmp_path / 'go', SMALL)
    assert report.episodes == 12
    assert any('is cut off' in reason for reason in report.skipped.values())
    assert len(ShardDataset(tmp_path / 'go')) == 12 * 8


@pytest.fixture(scope='module')
def bridge(recordings, tmp_path_factory):
    root = tmp_path_factory.mktemp('bridge')
    row = load_rows()['bridge_orig']
    convert_to_shards(rlds_source(recordings / 'bridge_rlds', row), root, ConversionSettings())
    return {'bridge_orig': ShardDataset(root)}


def test_real_bridge_becomes_batches(bridge):
    mixture = load_mixture('bridge')
    sampler = MixtureSampler(mixture, bridge, seed=0)
    with BatchLoader(sampler, bridge, LoaderSettings(batch_size=200, wrist=False)) as loader:
        batch = next(loader)
    assert batch['external'].shape == (200, 240, 320, 3)
    assert set(batch['instruction']) >= {'put carrot on plate'}
    assert set(batch['embodiment']) == {'widowx_bridge'}
    # Episodes of 10 steps, the first dropped: 8 samples, the last four chunks run past the end.
    assert len(set(batch['key'])) == 200
    lengths = batch['target_mask'].sum(axis=1)
    assert sorted(np.bincount(lengths, minlength=6).tolist()) == [0, 25, 25, 25, 25, 100]
    assert set(np.unique(batch['target_gripper'])) == {0.0, 1.0}
    assert batch['proprio_mask'].all()
    assert np.isfinite(batch['target_p']).all()


@pytest.mark.parametrize('relative_to', ['chunk_start', 'previous_step'])
def test_model_actions_of_real_bridge_compose_back_to_the_recorded_poses(bridge, relative_to):
    from dataclasses import replace

    mixture = load_mixture('bridge')
    stats = compute(mixture, bridge)
    assert np.isfinite([*stats.translation_low, *stats.position_high]).all()
    spec = replace(action_specs(mixture, bridge)['widowx_bridge'], relative_to=relative_to)
    sampler = MixtureSampler(mixture, bridge, seed=1)
    with BatchLoader(sampler, bridge, LoaderSettings(batch_size=200, wrist=False)) as loader:
        batch = next(loader)
    anchor = Pose(batch['p'], batch['q'])
    targets = Targets(batch['target_p'], batch['target_q'], batch['target_gripper'])
    actions = encode_actions(targets, anchor, spec, stats)
    assert actions.shape == (200, 5, 8)
    assert (actions[..., 3] >= 0).all()
    assert set(np.unique(actions[..., 7])) == {-1.0, 1.0}
    inside = np.abs(actions[..., :3][batch['target_mask']]) <= 1.0
    assert 0.95 < inside.mean() <= 1.0
    back = decode_actions(actions, anchor, spec, stats)
    np.testing.assert_allclose(back.p, batch['target_p'], atol=1e-6)
    assert quat_angle(back.q, batch['target_q']).max() < 1e-6
    np.testing.assert_array_equal(back.gripper, batch['target_gripper'])
    proprio = encode_proprio(anchor, batch['gripper'], spec, stats)
    assert np.isfinite(proprio).all()
    # Bridge's reference makes "pointing down" the identity: w is far from zero.
    assert np.quantile(proprio[:, 3], 0.1) > 0.8


def test_bags_of_two_bridge_episodes_hold_the_same_motion_as_the_records(
    recordings, tmp_path, bridge
):
    topic_map = load_topic_map('bridge')
    source = bag_source([recordings / 'bridge_rosbag2'], topic_map, 'bags')
    report = convert_to_shards(source, tmp_path, ConversionSettings())
    assert (report.episodes, report.samples) == (2, 18)
    bags, records = ShardDataset(tmp_path), bridge['bridge_orig']
    known = {records.info(0, i)['instruction'] for i in range(len(records))}
    start = bags.numbers(0, 1)[0, :3]
    near = [np.abs(records.numbers(0, i)[0, :3] - start).max() for i in range(0, 200, 8)]
    assert {bags.info(0, i)['instruction'] for i in range(18)} <= known
    assert min(near) < 1e-6  # one episode of the records begins where the bag's second sample is
    episode = int(np.argmin(near))
    for i in range(8):
        a, b = bags.numbers(0, 1 + i), records.numbers(0, 8 * episode + i)
        np.testing.assert_allclose(a[..., :3], b[..., :3], atol=1e-6)
        assert quat_angle(a[..., 3:7], b[..., 3:7]).max() < 1e-6
        np.testing.assert_array_equal(a[:, 8], b[:, 8])


def test_commanded_labels_of_real_bridge_are_longer_than_reached_ones(recordings, tmp_path, bridge):
    row = load_rows()['bridge_orig']
    settings = ConversionSettings(resample=ResampleSettings(label='commanded'))
    convert_to_shards(rlds_source(recordings / 'bridge_rlds', row), tmp_path, settings)
    commanded, reached = ShardDataset(tmp_path), bridge['bridge_orig']
    assert commanded.card.label == 'commanded'

    def first_step(data):
        rows = np.stack([data.numbers(0, i) for i in range(len(data))])
        return np.linalg.norm(rows[:, 1, :3] - rows[:, 0, :3], axis=1).mean()

    assert 1.1 < first_step(commanded) / first_step(reached) < 1.6


def test_a_public_lerobot_set_becomes_shards(recordings, tmp_path):
    text = """
rows:
  - name: so101
    format: lerobot
    embodiment: so101
    robot: SO-101
    ee_frame: gripper
    rate_hz: 30
    pose: {column: 'observation.state[0:3]', encoding: xyz}
    gripper: {column: 'observation.state[5]', open: 1.0, closed: 0.0}
    external: [observation.images.wrist]
    language: [task]
"""
    (tmp_path / 'rows.yaml').write_text(text)
    row = find_row(load_rows(tmp_path / 'rows.yaml'), 'so101')
    source = lerobot_source(recordings / 'lerobot_v3_so101_rendered', row)
    report = convert_to_shards(source, tmp_path / 'out', ConversionSettings(limit=1))
    assert report.episodes == 1
    dataset = ShardDataset(tmp_path / 'out')
    assert len(dataset) == 63  # 382 frames of 1/30 s make 12.7 s
    sample = dataset.sample(0, 10)
    assert sample.instruction == 'pick and place'
    from spear_ros.data.samples import jpeg_size

    assert jpeg_size(sample.external) == (240, 320)


def test_a_folder_is_not_filled_further_by_another_map_or_row(recordings, tmp_path):
    """What the first run did, or gave up on, would silently stay as it was."""
    topic_map = load_topic_map('bridge')
    bags = [recordings / 'bridge_rosbag2']
    convert_to_shards(bag_source(bags, topic_map, 'b'), tmp_path / 'bags', ConversionSettings())
    gripper = dataclasses.replace(topic_map.gripper, open=0.0, closed=1.0)
    mended = dataclasses.replace(topic_map, gripper=gripper)
    with pytest.raises(UserError, match=r'source is .* use another output folder'):
        convert_to_shards(bag_source(bags, mended, 'b'), tmp_path / 'bags', ConversionSettings())
    row = load_rows()['bridge_orig']
    other = dataclasses.replace(row, drop_first=2)
    renamed = dataclasses.replace(row, traps=('a remark',))
    described = [rlds_source(recordings / 'bridge_rlds', r).description for r in (row, other)]
    assert described[0] != described[1]
    assert rlds_source(recordings / 'bridge_rlds', renamed).description == described[0]


def test_a_row_of_another_spec_than_our_lerobot_directory_names_the_field(recordings, tmp_path):
    source = bag_source([recordings / 'bridge_rosbag2'], load_topic_map('bridge'), 'b')
    convert_to_lerobot(source, tmp_path, ConversionSettings())
    rows = load_rows(share_file('config/training/datasets/example_lerobot_franka.yaml'))
    with pytest.raises(UserError, match=r'action_spec\.embodiment is .widowx_bridge. there'):
        lerobot_source(tmp_path, next(iter(rows.values())))


def test_bags_are_found_in_folders(recordings, tmp_path):
    assert [b.name for b in find_bags(recordings / 'bridge_rosbag2')] == [
        'ep00_flip_pot',
        'ep01_put_carrot',
    ]
    with pytest.raises(UserError, match='no bag here'):
        find_bags(tmp_path)
