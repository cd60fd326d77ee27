"""Camera streams of the twin: what is published on which topic, without a renderer."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')
pytest.importorskip('mujoco', reason='mujoco is not installed')

from spear_ros.ros.config import CameraConfig
from spear_ros.ros.sim_drivers.base import Every, TwinClock
from spear_ros.ros.sim_drivers.cameras import CameraStreams
from spear_ros.ros.sim_drivers.faults import FaultBoard
from spear_ros.runtime.decode import decode_image
from spear_ros.simulation.rendering import CameraModel

IMAGE = np.kron(np.arange(48, dtype=np.uint8).reshape(6, 8), np.ones((10, 10), np.uint8))
IMAGE = np.stack([IMAGE, IMAGE + 60, IMAGE + 120], axis=-1)


class FakeWorld:
    def render(self, camera):
        return IMAGE

    def camera_info(self, camera):
        K = np.array([[90.0, 0, 39.5], [0, 90.0, 29.5], [0, 0, 1]])
        return CameraModel(80, 60, K, np.eye(4))


def streams(config, faults=None, **options):
    sent = {}

    def create_publisher(kind, topic, profile):
        return SimpleNamespace(publish=lambda m: sent.setdefault(topic, []).append(m))

    node = SimpleNamespace(create_publisher=create_publisher, get_logger=lambda: None)
    board = faults or FaultBoard()
    clock = TwinClock(lambda: 7_000_000_000, board)
    made = CameraStreams(
        node, FakeWorld(), {'external': config}, faults=board, clock=clock, rate_hz=15.0, **options
    )
    made._publish(made._streams[0])
    return sent


def test_raw_stream_carries_the_pixels_and_intrinsics():
    sent = streams(CameraConfig(topic='/cam/image_raw'), encoding='bgra8')
    assert set(sent) == {'/cam/image_raw', '/cam/camera_info'}
    (picture,), (info,) = sent['/cam/image_raw'], sent['/cam/camera_info']
    assert picture.encoding == 'bgra8'
    np.testing.assert_array_equal(decode_image(picture), IMAGE)
    assert (info.width, info.height, info.k[0], info.p[2]) == (80, 60, 90.0, 39.5)
    assert picture.header == info.header


def test_compressed_configuration_sends_jpeg_only():
    sent = streams(CameraConfig(topic='/cam/image_raw/compressed', compressed=True))
    assert set(sent) == {'/cam/image_raw/compressed', '/cam/camera_info'}
    decoded = decode_image(sent['/cam/image_raw/compressed'][0])
    assert abs(decoded.astype(int) - IMAGE).mean() < 3


def test_both_streams_when_asked_for():
    sent = streams(CameraConfig(topic='/cam/image_raw'), also_compressed=True)
    assert set(sent) == {'/cam/image_raw', '/cam/image_raw/compressed', '/cam/camera_info'}


@pytest.mark.parametrize('compressed', [False, True])
def test_faults_act_on_the_configured_stream(compressed):
    board = FaultBoard()
    board.command('camera_drop external')
    topic = '/cam/image_raw/compressed' if compressed else '/cam/image_raw'
    assert topic not in streams(CameraConfig(topic=topic, compressed=compressed), board)


def test_clock_skew_moves_the_stamps():
    board = FaultBoard()
    board.command('clock_skew -2')
    sent = streams(CameraConfig(topic='/cam/image_raw'), board)
    assert sent['/cam/image_raw'][0].header.stamp.sec == 5


@pytest.mark.parametrize(('rate', 'expected'), [(15.0, 15), (100.0, 100), (50.0, 50), (500.0, 100)])
def test_slower_rates_are_met_on_average(rate, expected):
    every = Every(100.0, rate)
    assert sum(every.due() for _ in range(100)) == pytest.approx(expected, abs=1)
