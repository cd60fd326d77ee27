"""Recordings of every kind give the same samples; damaged ones what is left and one sentence."""

import shutil
import sqlite3

import numpy as np
import pytest
import yaml

from spear_ros.core import geometry
from spear_ros.core.config import from_mapping
from spear_ros.core.errors import UserError
from spear_ros.data.bag_files import Bag
from spear_ros.data.bags import BagDamageError, BagReader, read_bag
from spear_ros.data.topic_map import TopicMap, load_topic_map
from spear_ros.robots.registry import get_robot

ROBOT = get_robot('wx250s')
IDENTITY = (1.0, 0.0, 0.0, 0.0)


def topic_map(bags, **changes):
    return from_mapping(TopicMap, yaml.safe_load(bags.MAP_YAML) | changes, 'MAP')


def read(path, mapping, **options):
    return list(read_bag(path, mapping, ROBOT, reference_rotation=IDENTITY, **options))


def salvage(path, mapping):
    """Samples that came before the damage, and the sentence about it."""
    samples = []
    with pytest.raises(BagDamageError) as error:  # noqa: PT012
        for sample in read_bag(path, mapping, ROBOT, reference_rotation=IDENTITY):
            samples.append(sample)
    assert 'everything that could be read was used' in str(error.value)
    return samples, str(error.value)


def summary(samples):
    rows = []
    for s in samples:
        value = s.value.tobytes() if isinstance(s.value, np.ndarray) else s.value
        rows.append((s.stream, s.stamp_ns, s.received_ns, value, s.problem))
    return rows


@pytest.fixture(scope='module')
def folder(bags, tmp_path_factory):
    return bags.write_widowx(tmp_path_factory.mktemp('bag') / 'whole')


def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / 'copy')


# -- containers --------------------------------------------------------------------------------


def test_mcap_sqlite_compressed_and_ros1_recordings_give_identical_samples(bags, folder, tmp_path):
    expected = summary(read(folder, topic_map(bags)))
    assert len(expected) == 30 + 2 * 200  # a joint message is read for arm and for gripper
    variants = [
        bags.write_widowx(tmp_path / 'sqlite', plugin='sqlite3'),
        bags.write_widowx(tmp_path / 'sqlite_zstd', plugin='sqlite3', compress=True),
        bags.write_widowx(tmp_path / 'mcap_zstd', compress=True),
        bags.write_ros1(tmp_path / 'ros1.bag'),
        bags.storage_file(folder),
    ]
    for path in variants:
        assert summary(read(path, topic_map(bags))) == expected, path


def test_samples_come_in_order_of_receipt_with_values_decoded(bags, folder):
    samples = read(folder, topic_map(bags))
    received = [s.received_ns for s in samples]
    assert received == sorted(received)
    arm = [s for s in samples if s.stream == 'arm']
    assert all(s.received_ns - s.stamp_ns == 3_000_000 for s in arm)
    np.testing.assert_allclose(arm[50].value, bags.angles(0.5 - 0.003), atol=1e-9)
    grip = [s.value for s in samples if s.stream == 'gripper']
    assert grip[0] == 1.0
    assert grip[-1] == pytest.approx(0.08)
    assert next(s for s in samples if s.stream == 'external').value.shape == (48, 64, 3)


def test_a_split_recording_is_read_as_one(bags, tmp_path, folder):
    second = bags.write_widowx(tmp_path / 'second', seconds=0.5)
    both = copy(folder, tmp_path)
    shutil.copy(bags.storage_file(second), both / 'part2.mcap')
    assert len(read(both, topic_map(bags))) == 430 + 108


def test_progress_reaches_the_end(bags, folder):
    seen = []
    read(folder, topic_map(bags), progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 230)
    assert seen[-1] == (230, 230)


def test_jpeg_bytes_can_be_kept_instead_of_pixels(bags, folder):
    with BagReader(folder, topic_map(bags), ROBOT, reference_rotation=IDENTITY) as reader:
        image = next(iter(reader.samples({'external'}, keep_encoded=True)))
    assert image.value is None
    assert image.encoded.startswith(b'\xff\xd8')


def test_a_message_without_header_takes_the_time_of_receipt(bags, tmp_path):
    path = tmp_path / 'task'
    with bags.Ros2Writer(path) as bag:
        bag.write(bags.EXTERNAL_TOPIC, bags.raw_image(bag.types, 5, bags.picture(0)), 777)
        names = [*bags.JOINT_NAMES, 'left_finger']
        state = bags.joint_state(bag.types, 5, names, [*bags.angles(0), 0.02])
        bag.write(bags.JOINTS_TOPIC, state, 778)
        bag.write('/task', bags.text(bag.types, 'go'), 779)
    samples = read(path, topic_map(bags, instruction='/task'))
    assert [(s.stream, s.stamp_ns) for s in samples] == [
        ('external', 5), ('arm', 5), ('gripper', 5), ('instruction', 779),
    ]  # fmt: skip


# -- odd but harmless ---------------------------------------------------------------------------


@pytest.mark.parametrize('plugin', ['mcap', 'sqlite3'])
def test_a_missing_metadata_file_costs_nothing(bags, tmp_path, plugin):
    path = bags.write_widowx(tmp_path / 'b', seconds=0.5, plugin=plugin)
    whole = summary(read(path, topic_map(bags)))
    (path / 'metadata.yaml').unlink()
    assert summary(read(path, topic_map(bags))) == whole
    with Bag(path) as bag:
        assert any('metadata.yaml is missing' in n for n in bag.notes)


def test_unreadable_metadata_costs_nothing(bags, folder, tmp_path):
    path = copy(folder, tmp_path)
    (path / 'metadata.yaml').write_text('rosbag2_bagfile_information: {version: 9}')
    assert len(read(path, topic_map(bags))) == 430


def test_other_qos_in_metadata_than_in_the_file_loses_no_message(real_recordings):
    # The native recorder's MCAP case: read through metadata.yaml it yields nothing at all.
    folder = real_recordings / 'rosbag2_container_cases/rosbag2_py/test/resources'
    counts = {}
    for kind in ('mcap', 'sqlite3'):
        with Bag(folder / kind / 'talker') as bag:
            texts = [
                bag.deserialize(topic, data).data for topic, _, data in bag.messages(['/topic'])
            ]
        counts[kind] = texts
    assert len(counts['mcap']) == 10
    assert counts['mcap'] == counts['sqlite3']  # the SQLite one holds no definitions


def test_type_names_of_the_crystal_era_are_understood(bags, tmp_path):
    path = bags.write_widowx(tmp_path / 'b', seconds=0.5, plugin='sqlite3')
    whole = summary(read(path, topic_map(bags)))
    (path / 'metadata.yaml').unlink()
    with sqlite3.connect(bags.storage_file(path)) as database:
        database.execute("UPDATE topics SET type = replace(type, '/msg/', '/')")
        database.execute('DELETE FROM message_definitions')
    database.close()
    assert summary(read(path, topic_map(bags))) == whole


def test_unknown_types_on_topics_that_nobody_asked_for_are_ignored(bags, real_recordings):
    mapping = topic_map(bags)
    path = real_recordings / 'widowx200_rosbag2/wx200_mcap'
    with pytest.raises(UserError, match='/wx200/joint_states'):
        read(path, mapping)  # names the closest topic first
    with Bag(path) as bag:
        count = sum(1 for _ in bag.messages(['/wx200/joint_states']))
    assert count == 10598


# -- bad recordings: one sentence, nothing lost -------------------------------------------------


@pytest.mark.parametrize('compress', [False, True])
@pytest.mark.parametrize('keep', [0.95, 0.5, 0.1])
def test_a_recording_without_its_end_is_read_as_far_as_it_goes(bags, tmp_path, compress, keep):
    # Three megabytes are several chunks, so that the cut falls into and between them.
    options = {'seconds': 12, 'joint_hz': 50, 'size': (96, 128), 'compress': compress}
    path = bags.write_widowx(tmp_path / 'b', **options)
    whole = summary(read(path, topic_map(bags)))
    file = bags.storage_file(path)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    samples, sentence = salvage(path, topic_map(bags))
    assert summary(samples) == whole[: len(samples)]
    assert len(samples) > 0.6 * keep * len(whole)
    assert 'was not finished or is cut' in sentence


def test_every_cut_of_a_small_recording_ends_in_a_sentence(bags, tmp_path):
    path = bags.write_widowx(tmp_path / 'b', seconds=0.4)
    file = bags.storage_file(path)
    data = file.read_bytes()
    for size in range(0, len(data), 997):
        file.write_bytes(data[:size])
        with pytest.raises(UserError) as error:
            read(path, topic_map(bags))
        assert str(error.value).endswith('.')
        assert '\n' not in str(error.value)


def test_a_cut_sqlite_recording_is_read_as_far_as_it_goes(bags, tmp_path):
    path = bags.write_widowx(tmp_path / 'b', seconds=6, plugin='sqlite3')
    whole = read(path, topic_map(bags))
    file = bags.storage_file(path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    samples, _ = salvage(path, topic_map(bags))
    assert 0.25 * len(whole) < len(samples) < len(whole)
    assert set(summary(samples)) <= set(summary(whole))


def test_a_cut_ros1_recording_names_the_mend(bags, tmp_path):
    path = bags.write_ros1(tmp_path / 'a.bag')
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match='rosbag reindex'):
        read(path, topic_map(bags))


def test_bits_that_rotted_end_the_file_and_are_reported(bags, tmp_path):
    options = {'seconds': 12, 'joint_hz': 50, 'size': (96, 128), 'compress': True}
    path = bags.write_widowx(tmp_path / 'b', **options)
    file = bags.storage_file(path)
    data = bytearray(file.read_bytes())
    second_chunk = data.index(b'\x28\xb5\x2f\xfd', len(data) // 4)
    data[second_chunk : second_chunk + 400] = bytes(400)
    file.write_bytes(data)
    samples, sentence = salvage(path, topic_map(bags))
    assert len(samples) > 100
    assert 'damaged data' in sentence


def test_messages_that_were_never_merged_into_the_database_are_reported(bags, tmp_path):
    path = bags.write_widowx(tmp_path / 'b', seconds=0.4, plugin='sqlite3')
    file = bags.storage_file(path)
    file.with_name(file.name + '-wal').write_bytes(b'x' * 100)
    _, sentence = salvage(path, topic_map(bags))
    assert 'wal_checkpoint' in sentence


def test_a_file_that_metadata_names_but_is_gone_is_reported(bags, folder, tmp_path):
    path = copy(folder, tmp_path)
    metadata = (path / 'metadata.yaml').read_text()
    metadata = metadata.replace('- whole.mcap', '- whole.mcap\n  - whole_1.mcap')
    (path / 'metadata.yaml').write_text(metadata)
    samples, sentence = salvage(path, topic_map(bags))
    assert len(samples) == 430
    assert 'whole_1.mcap' in sentence


def test_oversized_messages_are_skipped_counted_and_reported(bags, folder):
    with BagReader(
        folder, topic_map(bags), ROBOT, reference_rotation=IDENTITY, max_message_bytes=1000
    ) as reader:
        samples = list(reader.samples())
        assert {s.stream for s in samples} == {'arm', 'gripper'}
        assert reader.unreadable == 30
        with pytest.raises(BagDamageError, match='exceeds the limit of 1000'):
            reader.raise_damage()


def test_bytes_that_do_not_fit_their_type_are_skipped_counted_and_reported(bags, tmp_path):
    path = bags.write_widowx(tmp_path / 'b', seconds=0.4)
    (path / 'metadata.yaml').unlink()
    with bags.Ros2Writer(tmp_path / 'odd') as bag:
        connection = bag.connect(bags.EXTERNAL_TOPIC, 'sensor_msgs/msg/CompressedImage')
        bag.writer.write(connection, bags.START_NS, b'\x00\x01\x00\x00' + b'\xff' * 20)
    shutil.copy(bags.storage_file(tmp_path / 'odd'), path / 'odd.mcap')
    samples, sentence = salvage(path, topic_map(bags))
    assert len(samples) == 6 + 2 * 40
    assert 'does not fit its type' in sentence


def test_a_picture_that_cannot_be_decoded_is_a_sample_with_a_problem(bags, tmp_path):
    path = tmp_path / 'b'
    with bags.Ros2Writer(path) as bag:
        message = bags.compressed_image(bag.types, bags.START_NS, bags.picture(0))
        message.data = message.data[:-30]
        bag.write(bags.EXTERNAL_TOPIC, message, bags.START_NS)
        state = bags.joint_state(bag.types, bags.START_NS, ['waist'], [0.0])
        bag.write(bags.JOINTS_TOPIC, state, bags.START_NS)
    samples = read(path, topic_map(bags))
    assert [s.value for s in samples] == [None, None, None]
    assert 'cut short' in samples[0].problem
    assert 'lacks shoulder' in samples[1].problem


@pytest.mark.parametrize('case', ['missing', 'text file', 'empty folder', 'empty file', 'zeros'])
def test_what_is_no_recording_is_refused_in_one_sentence(bags, folder, tmp_path, case):
    path = tmp_path / 'b.mcap'
    if case == 'text file':
        path = tmp_path / 'b.txt'
        path.write_text('hello')
    elif case == 'empty folder':
        path.mkdir()
    elif case == 'empty file':
        path.touch()
    elif case == 'zeros':
        path.write_bytes(bytes(5000))
    with pytest.raises(UserError) as error:
        read(path, topic_map(bags))
    assert str(path) in str(error.value)


def test_an_empty_recording_says_so(bags, tmp_path):
    with bags.Ros2Writer(tmp_path / 'b') as bag:
        bag.connect(bags.EXTERNAL_TOPIC, 'sensor_msgs/msg/CompressedImage')
    with pytest.raises(UserError, match='empty'):
        read(tmp_path / 'b', topic_map(bags))


def test_a_recording_without_images_says_so(bags, tmp_path):
    with bags.Ros2Writer(tmp_path / 'b') as bag:
        bag.write('/cam', bags.text(bag.types, 'no picture'), 5)
        bag.connect(bags.EXTERNAL_TOPIC, 'sensor_msgs/msg/CompressedImage')
    with pytest.raises(UserError, match='holds no images; choose'):
        read(tmp_path / 'b', topic_map(bags))
    cameras = {'external': '/cam', 'wrist': None}
    with pytest.raises(UserError, match='the recording holds no images at all'):
        read(tmp_path / 'b', topic_map(bags, cameras=cameras))


def test_a_wrong_topic_lists_the_recordings_own_closest_first(bags, folder):
    cameras = {'external': '/cam/compresed', 'wrist': None}
    with pytest.raises(UserError) as error:
        read(folder, topic_map(bags, cameras=cameras))
    text = str(error.value)
    assert text.index('/cam/compressed [') < text.index('/wx250s/joint_states')


def test_an_unknown_type_on_a_mapped_topic_is_named(bags, tmp_path):
    path = bags.write_widowx(tmp_path / 'b', seconds=0.4, plugin='sqlite3')
    (path / 'metadata.yaml').unlink()
    with sqlite3.connect(bags.storage_file(path)) as database:
        database.execute(
            "UPDATE topics SET type = 'lab_msgs/msg/Arm' WHERE name = ?", (bags.JOINTS_TOPIC,)
        )
    database.close()
    with pytest.raises(UserError, match='lab_msgs/msg/Arm'):
        read(path, topic_map(bags))


def test_another_robot_than_the_maps_is_refused(bags, folder):
    with pytest.raises(UserError, match='franka_droid'):
        next(read_bag(folder, topic_map(bags), get_robot('fr3'), reference_rotation=IDENTITY))


# -- frames -------------------------------------------------------------------------------------


def test_bridge_poses_lose_their_top_down_reference(real_recordings):
    half = 0.5**0.5
    D = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    path = real_recordings / 'bridge_rosbag2/ep00_flip_pot'
    mapping = load_topic_map('bridge')
    samples = list(read_bag(path, mapping, ROBOT, reference_rotation=(half, 0.0, half, 0.0)))
    pose = next(s for s in samples if s.stream == 'arm')
    # The first message of the recording, worked out by hand.
    p = [0.260773241519928, 0.0071854363195598125, 0.20513463020324707]
    q = [0.9832713587852027, 0.0001000984315033121, -0.16599444160986623, 0.07498846796430762]
    np.testing.assert_allclose(pose.value[:3, 3], p)
    np.testing.assert_allclose(pose.value[:3, :3], geometry.quat_to_matrix(q) @ D, atol=1e-6)
    # The gripper points down: its x axis lies close to -z of the base.
    assert pose.value[2, 0] < -0.9
    counts = {s.stream: 0 for s in samples}
    for s in samples:
        counts[s.stream] += 1
        assert not s.problem
    assert counts == {'instruction': 1, 'external': 10, 'arm': 10, 'gripper': 10}
