"""spear replay at the prompt: results and status 0, or one line and status 2."""

import json

import pytest

from spear_ros.cli.main import main


@pytest.fixture(scope='module')
def folder(bags, tmp_path_factory):
    return bags.write_widowx(tmp_path_factory.mktemp('bag') / 'lab', seconds=1.0)


@pytest.fixture
def paths(bags, tmp_path):
    (tmp_path / 'MAP.yaml').write_text(bags.MAP_YAML)
    return tmp_path / 'MAP.yaml', tmp_path / 'out'


def replay(folder, paths, *more, policy='recorded'):
    where = ('--map', str(paths[0]), '--out', str(paths[1]))
    return main(['replay', str(folder), '--policy', policy, *where, *more])


def refused(capsys, *words):
    text = capsys.readouterr().err.strip()
    assert '\n' not in text
    assert 'Traceback' not in text
    for word in words:
        assert word in text


def test_results_are_written_and_identical_from_run_to_run(folder, paths, capsys):
    assert replay(folder, paths) == 0
    first = (paths[1] / 'chunks.jsonl').read_bytes()
    assert replay(folder, paths) == 0
    assert (paths[1] / 'chunks.jsonl').read_bytes() == first
    report = json.loads((paths[1] / 'report.json').read_text())
    assert report['chunks'] == 5
    assert report['planned_against_recorded']['max_position_m'] < 1e-6
    assert (paths[1] / 'report.png').stat().st_size > 10_000
    assert 'at most' in capsys.readouterr().out


def test_hold_with_faults_latency_and_a_limit(folder, paths, tmp_path, capsys):
    faults = tmp_path / 'faults.yaml'
    faults.write_text('faults: [{stream: arm, kind: drop, from_s: 0.5}]')
    more = ('--faults', str(faults), '--latency-ms', '250', '--limit', '4')
    assert replay(folder, paths, *more, policy='hold') == 0
    report = json.loads((paths[1] / 'report.json').read_text())
    assert report['skipped_while_inferring'] > 0
    assert report['grid_points'] == 4


def test_a_cut_recording_is_used_reported_and_fails_the_command(bags, paths, tmp_path, capsys):
    folder = bags.write_widowx(tmp_path / 'cut', seconds=2.0)
    file = bags.storage_file(folder)
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 4])
    assert replay(folder, paths) == 2
    refused(capsys, 'was not finished or is cut', 'everything that could be read was used')
    report = json.loads((paths[1] / 'report.json').read_text())
    assert report['chunks'] >= 5
    assert report['damage']


@pytest.mark.parametrize(
    ('more', 'policy', 'words'),
    [
        ((), 'recordd', ['did you mean "recorded"']),
        (('--limit', '0'), 'hold', ['limit = 0']),
        (('--option', 'speed=1'), 'hold', ['has no option "speed"']),
        (('--option', 'speed'), 'hold', ['KEY=VALUE']),
        (('--latency-ms', '-1'), 'hold', ['latency']),
        (('--commanded',), 'recorded', ['holds no commands']),
        (('--faults', '/no/such/file'), 'hold', ['/no/such/file']),
    ],
)
def test_wrong_arguments_are_one_line(folder, paths, capsys, more, policy, words):
    assert replay(folder, paths, *more, policy=policy) == 2
    refused(capsys, *words)


def test_a_misspelt_fault_and_a_missing_bag_are_one_line(folder, paths, tmp_path, capsys):
    faults = tmp_path / 'faults.yaml'
    faults.write_text('faults: [{stream: arm, kind: drop, form_s: 1}]')
    assert replay(folder, paths, '--faults', str(faults)) == 2
    refused(capsys, 'did you mean "from_s"')
    assert replay(folder.with_name('lob'), paths) == 2
    refused(capsys, 'did you mean')


def test_a_recording_in_which_nothing_works_says_the_main_reason(bags, paths, tmp_path, capsys):
    faults = tmp_path / 'faults.yaml'
    faults.write_text('faults: [{stream: gripper, kind: drop}]')
    folder = bags.write_widowx(tmp_path / 'b', seconds=1.0)
    assert replay(folder, paths, '--faults', str(faults)) == 2
    refused(capsys, 'not one chunk came out', 'gripper')


def test_a_folder_that_cannot_be_written_is_one_line(folder, paths, capsys):
    paths[1].write_text('a file stands where the folder should be')
    assert replay(folder, paths) == 2
    refused(capsys, 'cannot write the results')


def test_the_default_folder_is_named_after_recording_and_policy(
    folder, paths, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(['replay', str(folder), '--policy', 'hold', '--map', str(paths[0])]) == 0
    assert (tmp_path / 'out/replay/lab-hold/report.png').is_file()
