"""Small recordings for tests, written with rosbags; loaded by the fixture ``bags``."""

from pathlib import Path

import cv2
import numpy as np
from rosbags import rosbag1, rosbag2
from rosbags.rosbag2 import CompressionMode, StoragePlugin
from rosbags.typesys import Stores, get_typestore

START_NS = 1_700_000_000_000_000_000
STEP_NS = 200_000_000

EXTERNAL_TOPIC = '/cam/compressed'
JOINTS_TOPIC = '/wx250s/joint_states'
JOINT_NAMES = ('waist', 'shoulder', 'elbow', 'forearm_roll', 'wrist_angle', 'wrist_rotate')

MAP_YAML = f"""
embodiment: widowx_bridge
cameras: {{external: {EXTERNAL_TOPIC}, wrist: null}}
arm: {{topic: {JOINTS_TOPIC}, kind: joints}}
gripper: {{topic: {JOINTS_TOPIC}, kind: joints, joint: left_finger, open: 0.035, closed: 0.010}}
instruction: put the spoon on the towel
"""


class Ros2Writer:
    """Writes messages given as (topic, type, message, time) into a rosbag2 folder."""

    def __init__(self, folder: Path, plugin='mcap', compress=False):
        storage = StoragePlugin.MCAP if plugin == 'mcap' else StoragePlugin.SQLITE3
        self.store = get_typestore(Stores.ROS2_JAZZY)
        self.types = self.store.types
        self.writer = rosbag2.Writer(folder, version=9, storage_plugin=storage)
        if compress:
            mode = CompressionMode.STORAGE if plugin == 'mcap' else CompressionMode.MESSAGE
            self.writer.set_compression(mode, rosbag2.CompressionFormat.ZSTD)
        self.connections = {}

    def __enter__(self):
        self.writer.open()
        return self

    def __exit__(self, *_):
        self.writer.close()

    def connect(self, topic, kind):
        if topic not in self.connections:
            self.connections[topic] = self.writer.add_connection(topic, kind, typestore=self.store)
        return self.connections[topic]

    def write(self, topic, message, time_ns):
        kind = message.__msgtype__
        data = self.store.serialize_cdr(message, kind)
        self.writer.write(self.connect(topic, kind), time_ns, data)


def make(types, name, **fields):
    return types[name](**fields)


def header(types, stamp_ns, frame=''):
    stamp = types['builtin_interfaces/msg/Time'](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return types['std_msgs/msg/Header'](stamp=stamp, frame_id=frame)


def joint_state(types, stamp_ns, names, positions):
    return types['sensor_msgs/msg/JointState'](
        header=header(types, stamp_ns),
        name=list(names),
        position=np.asarray(positions, float),
        velocity=np.zeros(0),
        effort=np.zeros(0),
    )


def picture(number, height=48, width=64):
    rng = np.random.default_rng(number)
    return np.ascontiguousarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def compressed_image(types, stamp_ns, rgb, kind='jpeg'):
    _, data = cv2.imencode('.jpg' if kind == 'jpeg' else '.png', rgb[:, :, ::-1])
    return types['sensor_msgs/msg/CompressedImage'](
        header=header(types, stamp_ns), format=kind, data=data.ravel()
    )


def raw_image(types, stamp_ns, rgb):
    return types['sensor_msgs/msg/Image'](
        header=header(types, stamp_ns),
        height=rgb.shape[0],
        width=rgb.shape[1],
        encoding='rgb8',
        is_bigendian=0,
        step=rgb.shape[1] * 3,
        data=rgb.reshape(-1),
    )


def text(types, string):
    return types['std_msgs/msg/String'](data=string)


def angles(time_s):
    """A smooth arm motion inside the wx250s's limits."""
    return np.array([0.0, 0.02, 0.18, 0.0, 1.37, 0.0]) + 0.2 * np.sin(
        time_s * np.array([0.9, 0.4, 0.5, 0.3, 0.6, 0.7])
    )


def finger(time_s):
    return 0.035 if time_s < 1.0 else 0.012


def write_widowx(folder, *, seconds=2.0, camera_hz=15, joint_hz=100, plugin='mcap', **options):
    """A WidowX recording: JPEG camera, joints with a finger, stamps 3 ms before receipt."""
    with Ros2Writer(folder, plugin, options.get('compress', False)) as bag:
        types = bag.types
        events = [(i / camera_hz, 'camera') for i in range(round(seconds * camera_hz))]
        events += [(i / joint_hz, 'joints') for i in range(round(seconds * joint_hz))]
        for time_s, what in sorted(events):
            received = START_NS + round(time_s * 1e9)
            stamp = received - 3_000_000
            if what == 'camera':
                image = picture(round(time_s * camera_hz), *options.get('size', (48, 64)))
                message = compressed_image(types, stamp, image)
                bag.write(EXTERNAL_TOPIC, message, received)
            else:
                positions = [*angles(time_s - 0.003), finger(time_s)]
                names = [*JOINT_NAMES, 'left_finger']
                bag.write(JOINTS_TOPIC, joint_state(types, stamp, names, positions), received)
    return folder


def write_ros1(path, *, seconds=2.0, camera_hz=15, joint_hz=100):
    """The same as a ROS 1 bag."""
    store = get_typestore(Stores.ROS1_NOETIC)
    types = store.types
    with rosbag1.Writer(path) as bag:
        camera = bag.add_connection(
            EXTERNAL_TOPIC, 'sensor_msgs/msg/CompressedImage', typestore=store
        )
        joints = bag.add_connection(JOINTS_TOPIC, 'sensor_msgs/msg/JointState', typestore=store)
        events = [(i / camera_hz, 'camera') for i in range(round(seconds * camera_hz))]
        events += [(i / joint_hz, 'joints') for i in range(round(seconds * joint_hz))]
        for number, (time_s, what) in enumerate(sorted(events)):
            received = START_NS + round(time_s * 1e9)
            stamp = received - 3_000_000
            time = types['builtin_interfaces/msg/Time'](sec=stamp // 10**9, nanosec=stamp % 10**9)
            head = types['std_msgs/msg/Header'](seq=number, stamp=time, frame_id='')
            if what == 'camera':
                _, jpeg = cv2.imencode('.jpg', picture(round(time_s * camera_hz))[:, :, ::-1])
                kind = 'sensor_msgs/msg/CompressedImage'
                message = types[kind](header=head, format='jpeg', data=jpeg.ravel())
                connection = camera
            else:
                kind, connection = 'sensor_msgs/msg/JointState', joints
                message = types[kind](
                    header=head,
                    name=[*JOINT_NAMES, 'left_finger'],
                    position=np.array([*angles(time_s - 0.003), finger(time_s)]),
                    velocity=np.zeros(0),
                    effort=np.zeros(0),
                )
            bag.write(connection, received, store.serialize_ros1(message, kind))
    return path


def storage_file(folder):
    return next(p for p in folder.iterdir() if p.suffix in ('.mcap', '.db3'))
