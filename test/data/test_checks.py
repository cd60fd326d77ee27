import dataclasses
import json

import numpy as np
import pytest

from spear_ros.core.errors import UserError
from spear_ros.core.types import NormStats
from spear_ros.data.checks import check_dataset, format_reports
from spear_ros.data.episodes import EncodedFrames, PoseTrack, ValueTrack
from spear_ros.data.mixtures import Mixture, MixturePart
from spear_ros.data.plots import plot_dataset
from spear_ros.data.resampling import ResampleSettings, resample
from spear_ros.data.samples import PictureSettings, samples_of
from spear_ros.data.shard_writer import ShardWriter
from spear_ros.data.shards import DatasetCard, ShardDataset
from spear_ros.data.statistics import compute, sample_rows
from spear_ros.processing.embodiments import default_action_specs


@pytest.fixture
def shards(tmp_path):
    def write(episodes, folder='data'):
        card = DatasetCard(
            name='demo',
            spec=default_action_specs()['widowx_bridge'],
            label='reached',
            pictures=PictureSettings(),
            source='x',
        )
        writer = ShardWriter(tmp_path / folder, card)
        for episode in episodes:
            steps = resample(episode, ResampleSettings())
            writer.add_episode(episode.key, samples_of(episode, steps, PictureSettings()))
        writer.close()
        return ShardDataset(tmp_path / folder)

    return write


def texts(report, severity=None):
    return [f.text for f in report.findings if severity in (None, f.severity)]


def test_good_data_has_no_errors(shards, make_episode):
    data = shards([make_episode(f'e{i}', seed=i) for i in range(6)])
    report = check_dataset(data)
    assert texts(report, 'error') == []
    assert report.samples == 120
    assert report.episodes == 6
    assert report.instructions == 6
    assert report.gripper_follows > 0.2
    assert report.padded == pytest.approx((1 + 2 + 3 + 4) / (5 * 20))
    assert report.picture_sizes == {'64x48': 8}
    assert report.hours == pytest.approx(120 * 0.2 / 3600)


def test_a_flipped_gripper_is_an_error(shards, make_episode):
    episodes = []
    for i in range(6):
        episode = make_episode(f'e{i}', seed=i)
        state = ValueTrack(stamps_ns=episode.gripper.stamps_ns, values=1 - episode.gripper.values)
        episodes.append(make_episode(f'e{i}', seed=i, gripper=state))
    report = check_dataset(shards(episodes))
    assert report.gripper_follows < -0.2
    assert any('swap open and closed' in t for t in texts(report, 'error'))


def test_a_wrong_unit_shows_as_jumps(shards, make_episode):
    episode = make_episode('mm')
    track = episode.reached
    track = PoseTrack(stamps_ns=track.stamps_ns, p=1000 * track.p, q=track.q)
    report = check_dataset(shards([make_episode('mm', reached=track)]))
    assert report.jumps > 10
    assert any('wrong unit' in t for t in texts(report, 'error'))


def test_axes_that_never_move_are_named(shards, make_episode):
    episode = make_episode('flat')
    p = episode.reached.p.copy()
    p[:, 2] = 0.1
    q = np.tile([1.0, 0, 0, 0], (len(p), 1))
    track = PoseTrack(stamps_ns=episode.reached.stamps_ns, p=p, q=q)
    report = check_dataset(shards([make_episode('flat', reached=track)]))
    assert 'translation z is nearly constant' in texts(report)
    assert not any('translation x' in t for t in texts(report))
    assert sum('rotation about' in t for t in texts(report)) == 3


def test_statistics_of_other_data_show_as_shares_outside(shards, make_episode):
    data = shards([make_episode('e')])
    wide = NormStats(
        kind='quantile',
        translation_low=(-1, -1, -1),
        translation_high=(1, 1, 1),
        position_low=(0.9, -1, -1),
        position_high=(1.0, 1, 1),
    )
    report = check_dataset(data, wide)
    assert report.outside[0].max() == 0.0
    assert report.outside[1, 0] == 1.0
    assert any('100.0 % of position x' in t for t in texts(report))


def test_missing_texts_small_pictures_and_a_still_arm_are_named(shards, make_episode, jpeg):
    episode = make_episode('e', instruction='')
    still = PoseTrack(
        stamps_ns=episode.reached.stamps_ns,
        p=np.full((21, 3), 0.3),
        q=np.tile([1.0, 0, 0, 0], (21, 1)),
    )
    open_hand = ValueTrack(stamps_ns=episode.reached.stamps_ns, values=np.ones(21))
    tiny = EncodedFrames(episode.reached.stamps_ns, [jpeg(0, 48, 64)] * 21)
    report = check_dataset(
        shards(
            [
                make_episode(
                    'e',
                    instruction='',
                    reached=still,
                    gripper=open_hand,
                    gripper_command=None,
                    cameras={'external': tiny},
                )
            ]
        )
    )
    found = ' | '.join(texts(report))
    for part in ('100.0 % of the samples have no text', 'as small as 64x48', 'never switched'):
        assert part in found
    assert '100 % of the chunks stand still' in found


def test_texts_longer_than_the_model_reads_are_named(shards, make_episode):
    long = (
        'pick up the small red cup that stands to the left of the large blue bowl and put it down '
    )
    episodes = [make_episode('a', instruction=long * 2), make_episode('b', seed=1)]
    found = ' | '.join(texts(check_dataset(shards(episodes))))
    assert '50.0 % of the samples have more than 22 words of text; SPEAR-1 reads 32 tokens' in found


def test_nan_is_refused(shards, make_episode, monkeypatch):
    data = shards([make_episode('e')])
    monkeypatch.setattr(data, 'numbers', lambda s, i: np.full((6, 9), np.nan))
    with pytest.raises(UserError, match='not finite'):
        check_dataset(data)


def test_the_table_shows_every_data_set_and_finding(shards, make_episode):
    report = check_dataset(shards([make_episode('e')]))
    text = format_reports([report])
    assert text.splitlines()[2].startswith('demo ')
    assert all(f.text in text for f in report.findings)


def test_rates_and_holes_of_the_source_are_shown(shards, make_episode, tmp_path):
    data = shards([make_episode('e')])
    for part, rates in enumerate(([29.9, 30.0, 30.1], [10.0, 30.0, 30.2])):
        report = {'rate_hz_min_median_max': rates, 'worst_gap_s': 0.1 + part, 'skipped': {'x': 'y'}}
        (data.root / f'report-{part:03d}.json').write_text(json.dumps(report))
    report = check_dataset(data)
    assert report.source.rate_hz == (10.0, 30.0, 30.2)
    assert 'come at 10.00 Hz, of most at 30.00 Hz' in ' '.join(texts(report))
    line = 'poses at 30.00 Hz (10.00 to 30.20), longest hole 1.100 s, 2 episodes left out'
    assert line in format_reports([report])


def test_plots_are_written(shards, make_episode, tmp_path):
    data = shards([make_episode('e')])
    path = plot_dataset('demo', sample_rows(data, 100, 0), data.card.spec, None, tmp_path / 'plots')
    assert path.read_bytes().startswith(b'\x89PNG')
    assert path.stat().st_size > 20_000


def test_frames_are_told_and_a_wrong_unit_of_positions_is_an_error(shards, make_episode):
    report = check_dataset(shards([make_episode(f'e{i}', seed=i) for i in range(4)]))
    assert 'ee_gripper_link in base' in report.frames
    assert 'relative to chunk_start; 5 knots at 5 Hz' in format_reports([report])
    np.testing.assert_allclose(np.linalg.norm(report.hand_axes, axis=1), 1.0, atol=0.1)
    assert report.farthest_m < 0.6

    far = make_episode('far')
    track = dataclasses.replace(far.reached, p=far.reached.p + np.array([0.0, 2.0, 0.0]))
    moved = check_dataset(shards([dataclasses.replace(far, reached=track)], 'far'))
    assert any('wrong unit or wrong frame' in f.text for f in moved.findings)


def test_shares_beyond_mean_and_deviation_are_shown_too(shards, make_episode):
    dataset = shards([make_episode(f'e{i}', seed=i, n=60) for i in range(4)])
    mixture = Mixture(
        name='m',
        weight_is='probability',
        parts=(MixturePart(dataset=dataset.card.name, weight=1.0, weight_from='ours'),),
    )
    stats = compute(mixture, {dataset.card.name: dataset}, 'mean_std')
    own = check_dataset(dataset, stats)
    assert (own.outside < 0.05).all()
    narrow = dataclasses.replace(stats, translation_high=(1e-3, 1e-3, 1e-3))
    other = check_dataset(dataset, narrow)
    assert (other.outside[0] > 0.3).all()
    assert any('translation x lie beyond the statistics' in f.text for f in other.findings)
