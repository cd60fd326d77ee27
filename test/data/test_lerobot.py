import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spear_ros.core.errors import UserError
from spear_ros.core.resources import share_file
from spear_ros.core.types import WRIST
from spear_ros.data.conversion import ConversionSettings, PendingEpisode, Source, convert_to_lerobot
from spear_ros.data.episodes import ArrayFrames
from spear_ros.data.lerobot import LeRobotDataset, read_episodes
from spear_ros.data.lerobot_v21_writer import LeRobotV21Writer
from spear_ros.data.lerobot_writer import LeRobotEpisode, LeRobotWriter
from spear_ros.data.rows import DatasetRow, GripperColumn, PoseColumn, find_row, load_rows
from spear_ros.data.samples import PictureSettings
from spear_ros.data.video import VideoReader, VideoWriter
from spear_ros.processing.embodiments import default_action_specs

SPEC = default_action_specs()['widowx_bridge']


def frame(number, height=48, width=64):
    """A picture whose grey level says its number, robust to compression."""
    image = np.full((height, width, 3), 128, np.uint8)
    image[:, : width // 2] = (number * 7) % 250
    return image


def level(image):
    return float(image[4:-4, 4 : image.shape[1] // 2 - 4].mean())


def episode(key, n, start=0, cameras=('external',)):
    state = np.zeros((n, 8))
    state[:, 0] = 0.2 + 0.01 * np.arange(n)
    state[:, 3] = 1.0
    state[:, 7] = np.arange(n) % 2
    action = state.copy()
    action[:, 0] += 0.01
    return LeRobotEpisode(
        key=key,
        task=f'task {key[0]}',
        state=state,
        action=action,
        images={c: (frame(start + i) for i in range(n)) for c in cameras},
    )


CONTRACT = DatasetRow(
    name='x',
    format='lerobot',
    embodiment='widowx_bridge',
    robot='WidowX',
    ee_frame='ee_gripper_link',
    rate_hz=5.0,
    pose=PoseColumn(column='observation.state[0:7]', encoding='xyz_quat_wxyz'),
    gripper=GripperColumn(column='observation.state[7]', open=1.0, closed=0.0),
    gripper_command=GripperColumn(column='action[7]', open=1.0, closed=0.0),
    external=('observation.images.external',),
    language=('task',),
)


def test_video_frames_come_back_in_any_order(tmp_path):
    with VideoWriter(tmp_path / 'v.mp4', 5.0) as writer:
        for i in range(30):
            writer.add(frame(i))
    reader = VideoReader(tmp_path / 'v.mp4', 5.0)
    order = [0, 1, 2, 29, 3, 3, 17, 16, 28, 0]
    for i in order:
        assert level(reader.rgb(i / 5.0)) == pytest.approx((i * 7) % 250, abs=4)
    with pytest.raises(UserError, match=r'no frame at 6\.000 s'):
        reader.rgb(6.0)
    assert level(reader.rgb(0.2)) == pytest.approx(7, abs=4)
    reader.close()


def test_a_file_that_is_no_video_is_a_sentence(tmp_path):
    (tmp_path / 'v.mp4').write_bytes(b'no video')
    with pytest.raises(UserError, match='cannot be decoded'):
        VideoReader(tmp_path / 'v.mp4', 5.0).rgb(0.0)


def test_frames_of_another_size_or_odd_sides_are_refused(tmp_path):
    with VideoWriter(tmp_path / 'v.mp4', 5.0) as writer:
        writer.add(frame(0))
        with pytest.raises(UserError, match='the first had 64 x 48'):
            writer.add(frame(0, 50, 64))
    with pytest.raises(UserError, match='even sides'):
        VideoWriter(tmp_path / 'w.mp4', 5.0).add(frame(0, 47, 64))


@pytest.fixture
def written(tmp_path):
    """Seven episodes in files of three, the last group unfinished when the run ends."""
    with LeRobotWriter(tmp_path, SPEC, robot_type='WidowX', episodes_per_file=3) as writer:
        for i in range(7):
            writer.add(episode('ab'[i % 2] + str(i), 4 + i, start=10 * i))
    return tmp_path


def test_what_is_written_is_read_back(written):
    dataset = LeRobotDataset(written)
    assert len(dataset) == 7
    assert dataset.fps == 5.0
    for i, found in enumerate(read_episodes(dataset, CONTRACT)):
        expected = episode('ab'[i % 2] + str(i), 4 + i)
        assert found.instruction == expected.task
        np.testing.assert_allclose(found.reached.p[:, 0], expected.state[:, 0], atol=1e-6)
        np.testing.assert_array_equal(found.gripper.values, expected.state[:, 7])
        np.testing.assert_array_equal(np.diff(found.reached.stamps_ns), 200_000_000)
        frames = found.cameras['external']
        for k in (0, 3 + i):
            assert level(frames.rgb(k)) == pytest.approx(((10 * i + k) * 7) % 250, abs=4)


def test_files_are_shared_and_every_camera_has_its_own_start(written):
    dataset = LeRobotDataset(written)
    videos = [e.videos['observation.images.external'] for e in dataset.episodes]
    assert len({file for file, _ in videos}) == 3
    assert [start for _, start in videos[:3]] == [0.0, 4 / 5, 9 / 5]
    assert videos[3][1] == 0.0


def test_the_metadata_is_that_of_the_format(written):
    info = json.loads((written / 'meta' / 'info.json').read_text())
    assert info['codebase_version'] == 'v3.0'
    assert info['total_frames'] == sum(4 + i for i in range(7))
    assert info['features']['observation.images.external']['shape'] == [48, 64, 3]
    tasks = pq.read_table(written / 'meta' / 'tasks.parquet')
    assert json.loads(tasks.schema.metadata[b'pandas'])['index_columns'] == ['__index_level_0__']
    table = pa.concat_tables(
        pq.read_table(f) for f in sorted((written / 'data' / 'chunk-000').glob('*.parquet'))
    )
    assert table['index'].to_pylist() == list(range(49))
    assert set(table['task_index'].to_pylist()) == {0, 1}
    stats = json.loads((written / 'meta' / 'stats.json').read_text())
    assert stats['observation.state']['count'] == [49]
    assert np.shape(stats['observation.images.external']['mean']) == (3, 1, 1)


def test_a_killed_run_goes_on_after_its_last_finished_group(tmp_path):
    writer = LeRobotWriter(tmp_path, SPEC, robot_type='WidowX', episodes_per_file=3)
    for i in range(5):
        writer.add(episode(f'a{i}', 4, start=10 * i))
    # Killed here: the second group is not finished.
    writer = LeRobotWriter(tmp_path, SPEC, robot_type='WidowX', episodes_per_file=3)
    assert writer.done_keys == {'a0', 'a1', 'a2'}
    for i in range(3, 5):
        writer.add(episode(f'a{i}', 4, start=10 * i))
    writer.close()
    dataset = LeRobotDataset(tmp_path)
    assert [e.index for e in dataset.episodes] == list(range(5))
    last = list(read_episodes(dataset, CONTRACT))[-1]
    assert level(last.cameras['external'].rgb(2)) == pytest.approx((42 * 7) % 250, abs=4)


def test_other_settings_cameras_or_a_finished_folder_are_refused(tmp_path, written):
    with pytest.raises(UserError, match='holds a finished dataset'):
        LeRobotWriter(written, SPEC, robot_type='WidowX')
    folder = tmp_path / 'new'
    writer = LeRobotWriter(folder, SPEC, robot_type='WidowX')
    with pytest.raises(UserError, match='robot_type is'):
        LeRobotWriter(folder, SPEC, robot_type='Franka')
    writer.add(episode('a0', 3))
    with pytest.raises(UserError, match='has cameras'):
        writer.add(episode('a1', 3, cameras=('external', 'wrist')))


def test_nothing_written_is_said(tmp_path):
    with pytest.raises(UserError, match='no episode was written'):
        LeRobotWriter(tmp_path, SPEC, robot_type='x').close()


def as_v21(source, root):
    """The same episodes in the older layout: one parquet and one video per episode."""
    dataset = LeRobotDataset(source)
    info = dict(dataset.info)
    info['codebase_version'] = 'v2.1'
    info['fps'] = 5.0
    info['data_path'] = 'data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet'
    info['video_path'] = (
        'videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4'
    )
    (root / 'meta').mkdir(parents=True)
    (root / 'meta' / 'info.json').write_text(json.dumps(info))
    tasks = [{'task_index': i, 'task': t} for i, t in dataset.tasks.items()]
    (root / 'meta' / 'tasks.jsonl').write_text('\n'.join(map(json.dumps, tasks)))
    lines = []
    for n, entry in enumerate(dataset.episodes):
        columns = dataset.columns(n)
        path = root / info['data_path'].format(episode_chunk=0, episode_index=n)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(columns.rows, path)
        key = 'observation.images.external'
        frames = columns.frames(key, columns.stamps(5.0))
        video = root / info['video_path'].format(episode_chunk=0, episode_index=n, video_key=key)
        with VideoWriter(video, 5.0) as writer:
            for i in range(entry.length):
                writer.add(frames.rgb(i))
        lines.append({'episode_index': n, 'tasks': list(entry.tasks), 'length': entry.length})
    (root / 'meta' / 'episodes.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    return root


def test_the_older_layout_reads_the_same(written, tmp_path):
    new = list(read_episodes(LeRobotDataset(written), CONTRACT))
    old = list(read_episodes(LeRobotDataset(as_v21(written, tmp_path / 'old')), CONTRACT))
    assert len(old) == len(new)
    for a, b in zip(new, old, strict=True):
        assert a.instruction == b.instruction
        np.testing.assert_array_equal(a.reached.p, b.reached.p)
        assert level(a.cameras['external'].rgb(2)) == pytest.approx(
            level(b.cameras['external'].rgb(2)), abs=4
        )


@pytest.fixture
def written_v21(tmp_path):
    """The episodes of ``written`` by the writer of the older layout."""
    root = tmp_path / 'old'
    with LeRobotV21Writer(root, SPEC, robot_type='WidowX') as writer:
        for i in range(7):
            writer.add(episode('ab'[i % 2] + str(i), 4 + i, start=10 * i))
    return root


def test_the_older_layout_is_written_as_published(written_v21):
    info = json.loads((written_v21 / 'meta' / 'info.json').read_text())
    assert info['codebase_version'] == 'v2.1'
    assert (info['total_episodes'], info['total_videos'], info['total_chunks']) == (7, 7, 1)
    for n in range(7):
        assert (written_v21 / f'data/chunk-000/episode_{n:06d}.parquet').is_file()
        camera = 'videos/chunk-000/observation.images.external'
        assert (written_v21 / f'{camera}/episode_{n:06d}.mp4').is_file()
    assert info['data_path'].format(episode_chunk=0, episode_index=3).endswith('000003.parquet')

    def lines(name):
        return [json.loads(t) for t in (written_v21 / 'meta' / name).read_text().splitlines()]

    assert lines('tasks.jsonl') == [
        {'task_index': 0, 'task': 'task a'},
        {'task_index': 1, 'task': 'task b'},
    ]
    assert lines('episodes.jsonl')[6] == {'episode_index': 6, 'tasks': ['task a'], 'length': 10}
    stats = lines('episodes_stats.jsonl')
    assert [s['stats']['action']['count'] for s in stats] == [[4 + n] for n in range(7)]
    assert stats[2]['stats']['observation.state']['max'][0] == pytest.approx(0.25)
    assert np.shape(stats[0]['stats']['observation.images.external']['mean']) == (3, 1, 1)


def test_both_layouts_that_are_written_hold_the_same_episodes(written, written_v21):
    new = list(read_episodes(LeRobotDataset(written), CONTRACT))
    old = list(read_episodes(LeRobotDataset(written_v21), CONTRACT))
    assert len(old) == len(new) == 7
    for a, b in zip(new, old, strict=True):
        assert a.instruction == b.instruction
        np.testing.assert_array_equal(a.reached.p, b.reached.p)
        last = len(a.reached.stamps_ns) - 1
        assert level(b.cameras['external'].rgb(last)) == pytest.approx(
            level(a.cameras['external'].rgb(last)), abs=4
        )
    table = LeRobotDataset(written_v21).columns(3).rows
    assert table['index'].to_pylist() == list(range(15, 22))


def test_a_killed_run_in_the_older_layout_goes_on(tmp_path):
    writer = LeRobotV21Writer(tmp_path, SPEC, robot_type='WidowX')
    for i in range(2):
        writer.add(episode(f'a{i}', 4))
    with pytest.raises(UserError, match=r"version is 'v2\.1' there and 'v3\.0'"):
        LeRobotWriter(tmp_path, SPEC, robot_type='WidowX', episodes_per_file=1)
    writer = LeRobotV21Writer(tmp_path, SPEC, robot_type='WidowX')
    assert writer.done_keys == {'a0', 'a1'}
    writer.add(episode('b2', 5))
    writer.close()
    assert [e.length for e in LeRobotDataset(tmp_path).episodes] == [4, 4, 5]


def test_pictures_inside_of_the_parquet_are_read(written, jpeg):
    info = json.loads((written / 'meta' / 'info.json').read_text())
    info['features']['observation.images.external']['dtype'] = 'image'
    (written / 'meta' / 'info.json').write_text(json.dumps(info))
    for file in (written / 'data' / 'chunk-000').glob('*.parquet'):
        table = pq.read_table(file)
        cells = [{'bytes': jpeg(i), 'path': None} for i in range(table.num_rows)]
        pq.write_table(table.append_column('observation.images.external', pa.array(cells)), file)
    found = next(read_episodes(LeRobotDataset(written), CONTRACT))
    assert found.cameras['external'].encoded(1) == jpeg(1)


def rewrite(root, change):
    file = root / 'data' / 'chunk-000' / 'file-000.parquet'
    pq.write_table(change(pq.read_table(file)), file)


def set_column(table, name, values):
    at = table.column_names.index(name)
    return table.set_column(at, name, pa.array(values, table.schema.field(name).type))


def test_a_hole_in_the_recording_names_the_frame(written):
    def shift(table):
        t = np.array(table['timestamp'].to_pylist())
        t[2:4] += 1.0
        return set_column(table, 'timestamp', t)

    rewrite(written, shift)
    with pytest.raises(UserError, match=r'frame 2 is stamped 1\.400 s instead of 0\.400 s'):
        next(read_episodes(LeRobotDataset(written), CONTRACT))


def test_rows_of_another_episode_or_missing_rows_are_found(written):
    rewrite(written, lambda t: set_column(t, 'episode_index', np.array(t['episode_index']) + 1))
    with pytest.raises(UserError, match=r'belong to episodes \[1\], the episode table says 0'):
        LeRobotDataset(written).columns(0)
    rewrite(written, lambda t: t.slice(0, 2))
    with pytest.raises(UserError, match='2 of 4 rows of episode 0'):
        LeRobotDataset(written).columns(0)


def test_a_rate_that_is_not_the_recordings_is_refused(written):
    wrong = DatasetRow(
        **{f: getattr(CONTRACT, f) for f in DatasetRow.__dataclass_fields__} | {'rate_hz': 15.0}
    )
    with pytest.raises(UserError, match=r'rate_hz = 15.0 in the row, fps = 5.0'):
        next(read_episodes(LeRobotDataset(written), wrong))


@pytest.mark.parametrize(
    ('change', 'what'),
    [({'codebase_version': 'v1.6'}, '"v1.6" is not one of'), ({'fps': 0}, 'fps = 0')],
)
def test_metadata_that_cannot_be_read_is_a_sentence(written, change, what):
    path = written / 'meta' / 'info.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=what):
        LeRobotDataset(written)
    path.write_text('{')
    with pytest.raises(UserError, match='not JSON'):
        LeRobotDataset(written)
    path.unlink()
    with pytest.raises(UserError, match='the dataset folder that holds meta/'):
        LeRobotDataset(written)


def test_an_episode_survives_being_written_and_read(tmp_path, make_episode):
    """Simulator-like input: pictures made on request, at 20 Hz, with a wrist camera."""
    n = 81
    stamps = np.round(np.arange(n) / 20 * 1e9).astype(np.int64)
    cameras = {
        'external': ArrayFrames(stamps, lambda i: frame(i, 240, 320)),
        WRIST: ArrayFrames(stamps, lambda i: frame(i + 1, 120, 160)),
    }
    original = make_episode('demo-7', n=n, rate_hz=20.0, cameras=cameras)
    source = Source(
        'demo', SPEC, 'x', lambda part: [PendingEpisode(original.key, lambda: [original])], 'WidowX'
    )
    convert_to_lerobot(source, tmp_path, ConversionSettings(pictures=PictureSettings()))
    rows = load_rows(share_file('config/training/datasets/example_lerobot_franka.yaml'))
    found = next(read_episodes(LeRobotDataset(tmp_path), find_row(rows, 'my_franka')))
    assert found.instruction == original.instruction
    np.testing.assert_allclose(found.reached.p, original.reached.p[:80:4], atol=1e-6)
    np.testing.assert_allclose(found.reached.q, original.reached.q[:80:4], atol=1e-6)
    np.testing.assert_allclose(found.commanded.p, original.reached.p[4::4], atol=1e-6)
    np.testing.assert_array_equal(
        found.gripper_command.values, original.gripper_command.values[3:80:4]
    )
    assert level(found.cameras['external'].rgb(5)) == pytest.approx(20 * 7 % 250, abs=4)
    assert level(found.cameras[WRIST].rgb(5)) == pytest.approx(21 * 7 % 250, abs=4)


def test_the_public_v3_set_is_read(recordings):
    dataset = LeRobotDataset(recordings / 'lerobot_v3_so101_rendered')
    assert [e.length for e in dataset.episodes] == [383, 386, 379, 382, 90, 162]
    assert dataset.fps == 30.0
    columns = dataset.columns(4)
    assert columns.numbers('observation.state').shape == (90, 6)
    assert columns.texts('task')[0] == 'pick and place'
    stamps = columns.stamps(30.0)
    assert stamps[30] == 1_000_000_000
    frames = columns.frames('observation.images.wrist', stamps)
    first, last = frames.rgb(0), frames.rgb(89)
    assert first.shape == last.shape == (360, 640, 3)
    # Pictures of one episode differ less from one another than from the next episode's.
    other = dataset.columns(5).frames('observation.images.wrist', stamps).rgb(80)
    near = np.abs(frames.rgb(1).astype(int) - first).mean()
    assert near < np.abs(other.astype(int) - first).mean()
    dataset.close()
