"""sim_robot_node's pictures and scenes, and recorder_node's bags, as processes over DDS."""

import json
import threading

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')
pytest.importorskip('mujoco', reason='mujoco is not installed')
pytest.importorskip('rosbags', reason='rosbags is not installed')

from rosbags.highlevel import AnyReader
from sensor_msgs.msg import CameraInfo, Image, JointState
from spear_msgs.msg import ExecutorStatus, ObjectPoses, TaskState
from std_msgs.msg import String

from spear_ros.core.errors import UserError
from spear_ros.core.reasons import Reason
from spear_ros.ros import qos
from spear_ros.ros.config import load_robot_config
from spear_ros.runtime.decode import decode_image

pytestmark = pytest.mark.ros

CONFIG = load_robot_config('widowx').simulated()


class Watcher:
    """Keeps the newest message of each topic, and all pictures of the external camera."""

    def __init__(self, graph):
        self.graph, self.node = graph, graph.node('watcher')
        self.newest, self.pictures = {}, []
        external = CONFIG.cameras.external
        for kind, topic, profile in (
            (Image, external.topic, qos.IMAGE_INPUT),
            (Image, CONFIG.cameras.wrist.topic, qos.IMAGE_INPUT),
            (CameraInfo, external.info_topic, qos.IMAGE_INPUT),
            (JointState, CONFIG.arm.topic, qos.JOINTS_INPUT),
            (ObjectPoses, '/sim/object_poses', qos.STATUS),
            (TaskState, '/sim/task_state', qos.STATUS),
        ):
            self.node.create_subscription(kind, topic, self._keep(topic), profile)
        self.faults = self.node.create_publisher(String, '/sim/fault', 10)
        self.status = self.node.create_publisher(
            ExecutorStatus, '/spear/executor_status', qos.STATUS
        )

    def _keep(self, topic):
        def keep(message):
            self.newest[topic] = message
            if topic == CONFIG.cameras.external.topic:
                self.pictures.append(message)

        return keep

    def positions(self):
        poses = self.newest['/sim/object_poses']
        return {
            n: (p.position.x, p.position.y) for n, p in zip(poses.names, poses.poses, strict=True)
        }

    def wait_for_pictures(self, count):
        self.pictures.clear()
        self.graph.wait_until(lambda: len(self.pictures) >= count, f'{count} pictures', 20.0)
        return self.pictures[-count:]


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp('recordings')
    return folder / 'run', folder / 'flights'


@pytest.fixture(scope='module')
def watcher(graph, folders):
    graph.start('sim_robot_node', robot='widowx', seed=4)
    graph.start(
        'recorder_node',
        robot='widowx',
        simulated=True,
        record=str(folders[0]),
        flight=str(folders[1]),
        min_free_mb=1,
    )
    watcher = Watcher(graph)
    graph.wait_until(lambda: len(watcher.newest) == 6, lambda: f'topics: {set(watcher.newest)}', 20)
    return watcher


def test_pictures_have_the_size_the_intrinsics_say(watcher):
    (picture,) = watcher.wait_for_pictures(1)
    info = watcher.newest[CONFIG.cameras.external.info_topic]
    assert decode_image(picture).shape == (info.height, info.width, 3) == (480, 640, 3)
    assert picture.header.frame_id == info.header.frame_id
    assert info.k[0] > 100
    assert np.ptp(decode_image(picture)) > 50  # something is in it


def test_pictures_are_never_byte_identical_until_the_camera_freezes(watcher):
    pictures = watcher.wait_for_pictures(4)
    assert len({bytes(p.data) for p in pictures}) == 4
    watcher.faults.publish(String(data='camera_freeze external'))
    watcher.wait_for_pictures(4)
    frozen = watcher.wait_for_pictures(4)
    assert len({bytes(p.data) for p in frozen}) == 1
    assert len({(p.header.stamp.sec, p.header.stamp.nanosec) for p in frozen}) == 4
    watcher.faults.publish(String(data='clear'))


def test_scene_reset_moves_objects_and_not_the_robot(watcher):
    operator = watcher.graph.operator()
    before = list(watcher.newest[CONFIG.arm.topic].position[:6])
    instruction = operator.reset_scene(7, 'pick')
    watcher.graph.wait_until(
        lambda: watcher.newest['/sim/task_state'].seed == 7, 'the task of seed 7'
    )
    assert watcher.newest['/sim/task_state'].instruction == instruction
    first = watcher.positions()
    operator.reset_scene(8)
    watcher.graph.wait_until(lambda: watcher.newest['/sim/task_state'].seed == 8, 'seed 8')
    operator.reset_scene(7, 'pick')
    watcher.graph.wait_until(lambda: watcher.newest['/sim/task_state'].seed == 7, 'seed 7')
    watcher.graph.wait_until(lambda: set(watcher.positions()) == set(first), 'the same objects')
    for name, place in watcher.positions().items():
        assert place == pytest.approx(first[name], abs=0.01)
    after = list(watcher.newest[CONFIG.arm.topic].position[:6])
    assert after == pytest.approx(before, abs=0.01)
    with pytest.raises(UserError, match='refused'):
        operator.reset_scene(1, 'juggle')


def test_fault_is_recorded_with_the_last_minute(watcher, folders):
    watcher.graph.wait_until(
        lambda: watcher.status.get_subscription_count() >= 2, 'the recorder (raw and typed)'
    )
    for state in [ExecutorStatus.RUNNING] * 10 + [ExecutorStatus.FAULT] * 2:
        watcher.status.publish(
            ExecutorStatus(state=state, reason=int(Reason.JOINTS_STALE), text='joints are stale')
        )
        threading.Event().wait(0.05)
    flights = folders[1]
    watcher.graph.wait_until(lambda: list(flights.glob('*/flight.json')), 'a flight recording', 20)
    (facts_file,) = flights.glob('*/flight.json')
    facts = json.loads(facts_file.read_text())
    assert (facts['reason'], facts['text']) == ('JOINTS_STALE', 'joints are stale')
    with AnyReader([facts_file.parent]) as reader:
        counts = {c.topic: c.msgcount for c in reader.connections}
    pictures = counts[f'{CONFIG.cameras.external.topic}/compressed']
    assert 0 < pictures < counts[CONFIG.arm.topic] / 5
    assert counts['/spear/executor_status'] > 2


def test_run_is_recorded_in_full_and_closed_on_the_signal(watcher, folders):
    watcher.graph.processes.stop(['recorder_node'])
    with AnyReader([folders[0]]) as reader:
        counts = {c.topic: c.msgcount for c in reader.connections}
        topic = f'{CONFIG.cameras.wrist.topic}/compressed'
        connections = [c for c in reader.connections if c.topic == topic]
        _, _, data = next(reader.messages(connections))
        image = decode_image(reader.deserialize(data, connections[0].msgtype))
    assert image.shape == (480, 640, 3)
    assert counts[CONFIG.arm.topic] > counts[topic] > 3
    assert {'/sim/object_poses', '/sim/task_state', '/diagnostics'} <= set(counts)
