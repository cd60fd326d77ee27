import json
from pathlib import Path

import pytest

from spear_ros.cli.main import main
from spear_ros.data.shards import ShardDataset

RECORDINGS = Path(__file__).parents[2].parent / 'shared' / 'data' / 'real_recordings'


def convert(*arguments):
    return main(['data', 'convert', *map(str, arguments)])


@pytest.fixture
def bridge(tmp_path):
    if not RECORDINGS.is_dir():
        pytest.skip('the public recordings are not at ../shared/data/real_recordings')
    out = tmp_path / 'bridge'
    assert convert(RECORDINGS / 'bridge_rlds', '--row', 'bridge_orig', '--out', out) == 0
    return out


def test_convert_stats_and_check_work_together(bridge, tmp_path, capsys):
    stats = tmp_path / 'stats.json'
    assert main(['data', 'stats', str(bridge), '--mixture', 'bridge', '--out', str(stats)]) == 0
    assert json.loads(stats.read_text())['mixture'] == 'bridge'
    options = ['--stats', str(stats), '--verify', '--plots', str(tmp_path / 'plots')]
    assert main(['data', 'check', str(bridge), *options]) == 0
    out = capsys.readouterr().out
    assert 'checksums of 1 shards are right' in out
    assert 'widowx_bridge' in out
    assert (tmp_path / 'plots' / 'bridge_orig.png').exists()


def test_data_is_held_against_the_checkpoint_that_it_shall_fine_tune(bridge, capsys):
    bundled = Path(__file__).resolve().parents[2] / 'models' / 'spear_tiny'
    assert main(['data', 'check', str(bridge), '--stats', str(bundled)]) == 0
    row = next(li for li in capsys.readouterr().out.splitlines() if 'widowx_bridge' in li)
    assert row.split()[-2].endswith('%')  # the share outside of its statistics; "-" without any


def test_a_changed_shard_fails_the_check(bridge, capsys):
    tar = next(bridge.glob('*.tar'))
    tar.write_bytes(tar.read_bytes() + b'\0' * 512)
    assert main(['data', 'check', str(bridge), '--verify']) == 1
    assert 'has changed since it was written' in capsys.readouterr().out


@pytest.mark.parametrize('layout', ['lerobot', 'lerobot-v2.1'])
def test_converting_to_lerobot_and_back(layout, bridge, tmp_path):
    folder = tmp_path / 'lerobot'
    source = [str(RECORDINGS / 'bridge_rlds'), '--row', 'bridge_orig', '--limit', '3']
    assert main(['data', 'convert', *source, '--to', layout, '--out', str(folder)]) == 0
    rows = 'config/training/datasets/example_lerobot_widowx.yaml'
    again = tmp_path / 'again'
    options = ['--rows', rows, '--row', 'my_widowx', '--picture-size', '64x48']
    assert convert(folder, *options, '--out', again) == 0
    assert len(ShardDataset(again)) == 3 * 7


def test_bags_convert_with_the_map_of_replay(tmp_path):
    if not RECORDINGS.is_dir():
        pytest.skip('the public recordings are not at ../shared/data/real_recordings')
    bags = RECORDINGS / 'bridge_rosbag2'
    assert convert(bags, '--map', 'bridge', '--name', 'mine', '--out', tmp_path / 'bags') == 0
    assert ShardDataset(tmp_path / 'bags').card.name == 'mine'


def test_the_published_rows_are_listed_with_their_traps(capsys):
    assert main(['data', 'list', '--traps']) == 0
    out = capsys.readouterr().out
    assert 'fractal20220817_data' in out
    assert 'the gripper action is relative' in out
    assert '25 episodes of 10 steps' in out


@pytest.mark.parametrize(
    ('arguments', 'what'),
    [
        (['convert', 'x', '--out', 'y'], 'give --map MAP.yaml for bags'),
        (['convert', 'x', '--out', 'y', '--row', 'droit'], 'did you mean "droid"'),
        (['convert', 'x', '--out', 'y', '--row', 'droid'], 'features.json'),
        (['convert', 'x', 'z', '--out', 'y', '--row', 'droid'], '2 sources given'),
        (['convert', 'x', '--out', 'y', '--row', 'droid', '--part', '3'], '--part 3'),
        (['convert', 'x', '--out', 'y', '--row', 'droid', '--picture-size', 'big'], 'big'),
        (['check', 'nothing'], 'cannot read the card'),
        (['stats', 'nothing', '--out', 'z'], 'cannot read the card'),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(arguments, what, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(['data', *arguments]) == 2
    assert what in capsys.readouterr().err


def test_a_mixture_without_its_data_names_the_missing_sets(bridge, tmp_path, capsys):
    command = ['data', 'stats', str(bridge), '--mixture', 'oxe_spear_like_24']
    assert main([*command, '--out', str(tmp_path / 's.json')]) == 2
    assert 'no converted data for droid, fractal20220817_data' in capsys.readouterr().err
    assert main([*command, '--skip-missing', '--out', str(tmp_path / 's.json')]) == 0
    assert json.loads((tmp_path / 's.json').read_text())['mixture'] == 'oxe_spear_like_24-partial'
