"""Which topics the policy listens to, and that bad messages become problems and not exceptions."""

import sys
import types

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from sensor_msgs.msg import Image, JointState

from spear_ros.policies.base import PolicyInfo
from spear_ros.processing.embodiments import default_action_specs
from spear_ros.robots.registry import get_robot
from spear_ros.ros.config import load_robot_config
from spear_ros.ros.conversions import image_to_msg
from spear_ros.ros.policy_inputs import PolicyInputs, exotic_decoder

PICTURE = np.full((480, 640, 3), 90, np.uint8)


def make(robot='widowx'):
    config = load_robot_config(robot).simulated()
    inputs = PolicyInputs(config, get_robot(config.model))
    spec = default_action_specs()[get_robot(config.model).embodiment]
    info = PolicyInfo(name='x', checkpoint_id='x', spec=spec, cameras=('external', 'wrist'))
    return inputs, inputs.make_buffer(info), inputs.decoders()


def health(buffer, name, now_ns):
    return next(s for s in buffer.stream_status(now_ns) if s.name == name)


def test_one_topic_serves_arm_and_gripper_of_the_widowx_and_two_those_of_the_franka():
    shared = [t for t in make('widowx')[0].topics if t.kind == 'joints']
    assert [t.names for t in shared] == [('arm', 'gripper')]
    apart = [t for t in make('franka')[0].topics if t.kind == 'joints']
    assert [t.names for t in apart] == [('arm',), ('gripper',)]


def test_a_picture_in_another_encoding_becomes_rgb():
    _, buffer, decoders = make()
    decoders['external'](image_to_msg(PICTURE, 10**9, '', 'bgra8'), 10**9)
    assert health(buffer, 'external', 10**9).shape == '640x480 rgb8'


@pytest.mark.parametrize(
    ('stream', 'message'),
    [
        ('external', Image(height=100_000, width=100_000, encoding='rgb8', step=300_000)),
        ('external', Image(height=4, width=4, encoding='32FC1', step=16, data=b'\0' * 64)),
        ('arm', JointState(name=['elbow'], position=[0.0])),
        ('gripper', JointState(name=['left_finger'], position=[float('nan')])),
    ],
)
def test_a_bad_message_is_a_problem_of_its_stream(stream, message):
    _, buffer, decoders = make()
    decoders[stream](message, 10**9)
    assert health(buffer, stream, 10**9).problem


def test_cv_bridge_takes_what_we_do_not_know_where_it_is_there(monkeypatch):
    class CvBridge:
        def imgmsg_to_cv2(self, message, desired_encoding):
            assert desired_encoding == 'rgb8'
            return PICTURE

    module = types.ModuleType('cv_bridge')
    module.CvBridge = CvBridge
    module.__spec__ = types.SimpleNamespace(name='cv_bridge')
    monkeypatch.setitem(sys.modules, 'cv_bridge', module)
    _, buffer, decoders = make()
    exotic = Image(height=480, width=640, encoding='bayer_rggb8', step=640, data=b'\0' * 307_200)
    decoders['external'](exotic, 10**9)
    assert health(buffer, 'external', 10**9).shape == '640x480 rgb8'


def test_without_cv_bridge_there_is_no_fallback():
    if 'cv_bridge' in sys.modules:
        pytest.skip('cv_bridge is installed here')
    assert exotic_decoder() is None
