import numpy as np
import pytest
import yaml

from spear_ros.core.config import from_mapping
from spear_ros.core.errors import UserError
from spear_ros.core.geometry import pose_parts, quat_angle
from spear_ros.data.bag_episodes import bag_episodes
from spear_ros.data.resampling import ResampleSettings, resample
from spear_ros.data.topic_map import TopicMap
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot


def topic_map(bags, **changes):
    return from_mapping(TopicMap, {**yaml.safe_load(bags.MAP_YAML), **changes}, 'map')


def only(path, mapping):
    (episode,) = bag_episodes(path, mapping, 'mine')
    return episode


def test_joints_become_poses_and_pictures_keep_their_bytes(tmp_path, bags):
    episode = only(bags.write_widowx(tmp_path / 'a'), topic_map(bags))
    assert episode.key == 'mine-a-000'
    assert episode.instruction == 'put the spoon on the towel'
    assert episode.rate_hz == pytest.approx(100, rel=0.01)
    assert len(episode.reached.stamps_ns) == 200
    stamp = episode.reached.stamps_ns[70]
    q = bags.angles((stamp - bags.START_NS) / 1e9)
    p, rotation = pose_parts(forward(get_robot('wx250s'), q))
    np.testing.assert_allclose(episode.reached.p[70], p, atol=1e-9)
    assert quat_angle(episode.reached.q[70], rotation) < 1e-6
    assert episode.cameras['external'].encoded(3).startswith(b'\xff\xd8')


def test_all_containers_give_the_same_episode(tmp_path, bags):
    first = only(bags.write_widowx(tmp_path / 'mcap'), topic_map(bags))
    others = [
        only(bags.write_widowx(tmp_path / 'db3', plugin='sqlite3'), topic_map(bags)),
        only(bags.write_ros1(tmp_path / 'one.bag'), topic_map(bags)),
    ]
    for other in others:
        np.testing.assert_array_equal(other.reached.stamps_ns, first.reached.stamps_ns)
        np.testing.assert_array_equal(other.reached.p, first.reached.p)
        np.testing.assert_array_equal(other.gripper.values, first.gripper.values)
        for i in (0, 20):
            assert other.cameras['external'].encoded(i) == first.cameras['external'].encoded(i)


def test_the_grasp_is_told_from_the_fingers(tmp_path, bags):
    """The finger leaves its stop after 1 s: the command to shut is there just before."""
    episode = only(bags.write_widowx(tmp_path / 'a'), topic_map(bags))
    command = episode.gripper_command
    shut = command.stamps_ns[np.flatnonzero(command.values == 0)[0]]
    assert abs((shut - bags.START_NS) / 1e9 - 1.0) < 0.02
    steps = resample(episode, ResampleSettings())
    assert set(np.unique(steps.target_gripper)) == {0.0, 1.0}


def test_raw_images_are_packed_and_decode_to_nearly_the_same(tmp_path, bags):
    smooth = np.zeros((48, 64, 3), np.uint8)
    smooth[..., 0] = np.linspace(0, 255, 64)
    with bags.Ros2Writer(tmp_path / 'raw') as bag:
        for i in range(30):
            stamp = bags.START_NS + i * 100_000_000
            names = [*bags.JOINT_NAMES, 'left_finger']
            joints = bags.joint_state(bag.types, stamp, names, [*bags.angles(i / 10), 0.035])
            bag.write(bags.JOINTS_TOPIC, joints, stamp)
            bag.write('/raw', bags.raw_image(bag.types, stamp, smooth), stamp)
    cameras = {'external': '/raw', 'wrist': None}
    episode = only(tmp_path / 'raw', topic_map(bags, cameras=cameras))
    found = episode.cameras['external'].rgb(5).astype(int)
    assert np.abs(found - smooth).mean() < 3
    assert len(episode.cameras['external'].encoded(5)) < smooth.size / 3


def write_with_instructions(folder, bags, texts):
    with bags.Ros2Writer(folder) as bag:
        for i in range(60):
            stamp = bags.START_NS + i * 100_000_000
            names = [*bags.JOINT_NAMES, 'left_finger']
            joints = bags.joint_state(bag.types, stamp, names, [*bags.angles(i / 10), 0.035])
            bag.write(bags.JOINTS_TOPIC, joints, stamp)
            image = bags.compressed_image(bag.types, stamp, bags.picture(i))
            bag.write(bags.EXTERNAL_TOPIC, image, stamp)
            if i in texts:
                bag.write('/say', bags.text(bag.types, texts[i]), stamp)
    return folder


def test_every_new_instruction_begins_an_episode(tmp_path, bags):
    path = write_with_instructions(
        tmp_path / 'a', bags, {3: 'touch red', 20: 'touch red', 30: 'touch blue', 45: 'touch red'}
    )
    found = list(bag_episodes(path, topic_map(bags, instruction='/say'), 'mine'))
    assert [e.instruction for e in found] == ['touch red', 'touch blue', 'touch red']
    assert [e.key for e in found] == ['mine-a-000', 'mine-a-001', 'mine-a-002']
    starts = [(e.reached.stamps_ns[0] - bags.START_NS) / 1e8 for e in found]
    assert starts == [0, 30, 45]
    ends = [(e.reached.stamps_ns[-1] - bags.START_NS) / 1e8 for e in found]
    assert ends == [29, 44, 59]
    assert [len(e.cameras['external'].stamps_ns) for e in found] == [30, 15, 15]


def test_messages_that_cannot_be_used_are_counted_not_hidden(tmp_path, bags):
    with bags.Ros2Writer(tmp_path / 'a') as bag:
        for i in range(30):
            stamp = bags.START_NS + i * 100_000_000
            names = [*bags.JOINT_NAMES, 'left_finger']
            values = [*bags.angles(i / 10), 0.035]
            if i == 7:
                values[0] = np.nan
            joints = bags.joint_state(bag.types, stamp, names, values)
            bag.write(bags.JOINTS_TOPIC, joints, stamp)
            image = bags.compressed_image(bag.types, stamp, bags.picture(i))
            bag.write(bags.EXTERNAL_TOPIC, image, stamp)
    episode = only(tmp_path / 'a', topic_map(bags))
    assert len(episode.reached.stamps_ns) == 29
    assert episode.provenance['problems'].startswith('arm: 1 (')


def test_a_stream_without_a_usable_message_is_named(tmp_path, bags):
    with bags.Ros2Writer(tmp_path / 'a') as bag:
        for i in range(10):
            stamp = bags.START_NS + i * 100_000_000
            joints = bags.joint_state(bag.types, stamp, ['wrong', 'names'], [0.0, 0.0])
            bag.write(bags.JOINTS_TOPIC, joints, stamp)
            image = bags.compressed_image(bag.types, stamp, bags.picture(i))
            bag.write(bags.EXTERNAL_TOPIC, image, stamp)
    with pytest.raises(UserError, match='stream arm has nothing usable'):
        only(tmp_path / 'a', topic_map(bags))
