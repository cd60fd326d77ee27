import json

import numpy as np
import pytest

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import pose_inverse, quat_angle
from spear_ros.data.conventions import command_from_motion
from spear_ros.data.resampling import ResampleSettings, resample
from spear_ros.data.rlds import (
    RldsColumns,
    read_episodes,
    read_schema,
    record_files,
    schema_fingerprint,
)
from spear_ros.data.rows import load_rows
from spear_ros.data.tfrecord import Example, read_records

BRIDGE = load_rows()['bridge_orig']


def columns_of(folder):
    (file,) = record_files(folder)
    return RldsColumns(Example(next(read_records(file))), read_schema(folder))


def test_schema_leaves_have_flat_paths(tmp_path, rlds, column):
    folder = rlds.write_dataset(
        tmp_path / 'a',
        [{'observation/state': column(np.zeros((3, 7))), 'text': column(['a', 'b', 'c'])}],
    )
    schema = read_schema(folder)
    assert schema['steps/observation/state'].shape == (7,)
    assert schema['steps/text'].kind == 'text'


def test_the_fingerprint_changes_with_the_published_features(tmp_path, rlds, column):
    one = rlds.write_dataset(tmp_path / 'a', [{'state': column(np.zeros((3, 7)))}])
    same = rlds.write_dataset(tmp_path / 'b', [{'state': column(np.ones((5, 7)))}])
    other = rlds.write_dataset(tmp_path / 'c', [{'state': column(np.zeros((3, 8)))}])
    prints = [schema_fingerprint(read_schema(f)) for f in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]


def test_zlib_tensors_are_unpacked(tmp_path, rlds, column):
    values = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    folder = rlds.write_dataset(tmp_path / 'a', [{'state': column(values, packed=True)}])
    np.testing.assert_array_equal(columns_of(folder).numbers('state'), values)


def test_code_points_become_text(tmp_path, rlds, column):
    codes = np.zeros((2, 10), np.int64)
    codes[:, :4] = [ord(c) for c in 'push']
    folder = rlds.write_dataset(tmp_path / 'a', [{'instruction': column(codes, dtype='int32')}])
    assert columns_of(folder).texts('instruction') == ['push', 'push']


def test_episode_metadata_is_reached_with_a_leading_slash(tmp_path, rlds, column):
    folder = rlds.write_dataset(
        tmp_path / 'a',
        [{'state': column(np.zeros((3, 1))), '/episode_metadata/text': column(['do it'])}],
    )
    assert columns_of(folder).texts('/episode_metadata/text') == ['do it']


def test_a_width_that_is_not_the_published_one_is_refused(tmp_path, rlds, column):
    folder = rlds.write_dataset(tmp_path / 'a', [{'state': column(np.zeros((3, 7)))}])
    text = (folder / 'features.json').read_text().replace('"7"', '"8"')
    (folder / 'features.json').write_text(text)
    with pytest.raises(UserError, match=r'7 values a step, features.json says 8'):
        columns_of(folder).numbers('state')


def test_missing_files_and_schemas_are_sentences(tmp_path, rlds, column):
    with pytest.raises(UserError, match='give the folder of one version'):
        read_schema(tmp_path)
    with pytest.raises(UserError, match='no file'):
        record_files(tmp_path)
    folder = rlds.write_dataset(tmp_path / 'a', [{'state': column(np.zeros((3, 7)))}])
    (file,) = record_files(folder)
    file.rename(folder / 'x-train.tfrecord-00000-of-00003')
    with pytest.raises(UserError, match='1 of 3 files'):
        record_files(folder)
    assert len(record_files(folder, allow_missing=True)) == 1
    (folder / 'features.json').write_text('{')
    with pytest.raises(UserError, match='not JSON'):
        read_schema(folder)


def real_bridge(recordings):
    folder = recordings / 'bridge_rlds'
    (file,) = record_files(folder)
    return list(read_episodes(file, BRIDGE, read_schema(folder)))


def test_real_bridge_episodes_are_all_read(recordings):
    episodes = real_bridge(recordings)
    assert len(episodes) == 25
    assert len({e.key for e in episodes}) == 25
    assert {e.instruction for e in episodes} >= {
        'put carrot on plate',
        'turn lever vertical to front',
    }
    assert all(len(e.reached.stamps_ns) == 9 for e in episodes)
    assert all(e.cameras['external'].rgb(i).shape == (64, 64, 3) for e in episodes for i in (0, 9))


def test_the_dropped_first_step_of_real_bridge_commands_nothing(recordings):
    folder = recordings / 'bridge_rlds'
    (file,) = record_files(folder)
    for payload in read_records(file):
        action = Example(payload).floats('steps/action').reshape(-1, 7)
        assert np.abs(action[0, :6]).max() < 1e-6
        assert np.abs(action[1, :6]).max() > 1e-6


def test_reached_steps_of_real_bridge_fall_short_of_commanded_ones(recordings):
    reached, commanded = [], []
    for episode in real_bridge(recordings):
        reached.append(np.diff(episode.reached.p, axis=0))
        commanded.append(episode.commanded.p[:-1] - episode.reached.p[:-1])
    reached, commanded = np.concatenate(reached), np.concatenate(commanded)
    ratio = (reached * commanded).sum(axis=0) / (commanded**2).sum(axis=0)
    assert (ratio > 0.6).all()
    assert (ratio < 0.95).all()


def test_real_bridge_orientations_point_the_gripper_down(recordings):
    """Bridge tasks are done from above: the gripper's x axis points along the base's -z."""
    from spear_ros.core.geometry import quat_rotate

    q = np.concatenate([e.reached.q for e in real_bridge(recordings)])
    pointing = quat_rotate(q, np.array([1.0, 0.0, 0.0]))
    assert np.median(pointing[:, 2]) < -0.8


def test_real_bridge_grippers_are_binary_and_guessed_well_from_the_fingers(recordings):
    agree = []
    for episode in real_bridge(recordings):
        command = episode.gripper_command.values
        assert set(command) <= {0.0, 1.0}
        agree.append(np.mean(command_from_motion(episode.gripper.values) == command))
    assert np.mean(agree) > 0.85


def test_real_bridge_chunks_end_with_the_episode(recordings):
    for episode in real_bridge(recordings):
        steps = resample(episode, ResampleSettings())
        assert len(steps) == 8
        np.testing.assert_array_equal(steps.mask.sum(axis=1), [5, 5, 5, 5, 4, 3, 2, 1])
        assert (quat_angle(steps.target_q[-1], steps.target_q[-1, :1]) < 1e-6).all()
        assert np.isfinite(pose_inverse(np.eye(4))).all()


def test_features_of_the_real_set_are_those_the_row_was_written_for(recordings):
    schema = read_schema(recordings / 'bridge_rlds')
    assert schema['steps/observation/state'].shape == (7,)
    assert json.loads((recordings / 'bridge_rlds' / 'dataset_info.json').read_text())[
        'version'
    ] == (BRIDGE.version)
