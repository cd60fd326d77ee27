"""Joint states, poses, gripper readings, texts: decoded, or refused with a reason code."""

import math
from types import SimpleNamespace as Message

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_ros.core import geometry
from spear_ros.core.reasons import Reason
from spear_ros.runtime import decode
from spear_ros.runtime.decode import DecodeError


def stamp(sec, nanosec):
    return Message(header=Message(stamp=Message(sec=sec, nanosec=nanosec)))


def joints(names, positions):
    return Message(name=names, position=positions)


def body(p=(0.1, 0.2, 0.3), q=(1.0, 0.0, 0.0, 0.0), names=('position', 'orientation')):
    position = Message(x=p[0], y=p[1], z=p[2])
    rotation = Message(w=q[0], x=q[1], y=q[2], z=q[3])
    return Message(**{names[0]: position, names[1]: rotation})


def test_the_header_stamp_wins_and_its_absence_takes_the_time_of_receipt():
    assert decode.stamp_ns(stamp(5, 7), 1) == 5_000_000_007
    assert decode.stamp_ns(Message(data=1.0), 99) == 99
    with pytest.raises(DecodeError, match='no header'):
        decode.stamp_ns(Message(data=1.0))


def test_joints_are_picked_by_name_in_any_order_among_others():
    message = joints(['finger', 'b', 'a'], [0.03, 2.0, 1.0])
    np.testing.assert_array_equal(decode.decode_joints(message, ('a', 'b')), [1.0, 2.0])


@pytest.mark.parametrize(
    ('message', 'reason', 'words'),
    [
        (joints(['a'], [1.0]), Reason.JOINTS_NAMES, 'lacks b'),
        (joints(['a', 'b', 'b'], [1.0, 2.0, 3.0]), Reason.JOINTS_NAMES, 'lacks b'),
        (joints(['a', 'b'], [1.0]), Reason.JOINTS_NAMES, '2 names but 1 positions'),
        (joints([], []), Reason.JOINTS_NAMES, 'no names'),
        (joints(['a', 'b'], [1.0, math.nan]), Reason.JOINTS_NOT_FINITE, 'joint b'),
        (joints(['a', 'b'], [math.inf, 1.0]), Reason.JOINTS_NOT_FINITE, 'joint a'),
        (Message(data=1), Reason.JOINTS_NAMES, 'not a sensor_msgs/JointState'),
    ],
)
def test_unusable_joint_states_say_why(message, reason, words):
    with pytest.raises(DecodeError, match=words) as error:
        decode.decode_joints(message, ('a', 'b'))
    assert error.value.reason == reason


@pytest.mark.parametrize(
    'message',
    [
        body(),
        Message(pose=body()),
        Message(pose=Message(pose=body())),
        Message(transform=body(names=('translation', 'rotation'))),
    ],
)
def test_every_kind_of_pose_message_is_understood(message):
    T = decode.decode_pose(message)
    np.testing.assert_allclose(T, geometry.pose([0.1, 0.2, 0.3], [1, 0, 0, 0]))


def test_a_rounded_quaternion_is_scaled_to_a_rotation():
    T = decode.decode_pose(body(q=(0.70711, 0.0, 0.7071, 0.0)))
    np.testing.assert_allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3), atol=1e-12)


@pytest.mark.parametrize(
    ('message', 'words'),
    [
        (body(p=(math.nan, 0, 0)), 'not finite'),
        (body(p=(300.0, 0, 0)), 'expected in metres'),
        (body(q=(0, 0, 0, 0)), 'not a rotation'),
        (body(q=(2, 0, 0, 0)), 'not a rotation'),
        (Message(data=1.0), 'not a pose'),
    ],
)
def test_unusable_poses_say_why(message, words):
    with pytest.raises(DecodeError, match=words):
        decode.decode_pose(message)


@given(
    st.tuples(*[st.floats(-2, 2)] * 3),
    st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(c * c for c in q) > 0.01),
)
def test_pose_messages_round_trip(p, q):
    q = np.array(q) / np.linalg.norm(q)
    T = decode.decode_pose(body(p, q))
    np.testing.assert_allclose(T, geometry.pose(p, q), atol=1e-12)


@pytest.mark.parametrize('data', [0.25, np.float32(0.25), [0.25], np.array([0.25])])
def test_one_number_is_read_from_any_number_message(data):
    assert decode.decode_value(Message(data=data)) == 0.25


@pytest.mark.parametrize('data', ['0.25', [1.0, 2.0], [], math.nan, None])
def test_anything_but_one_finite_number_is_refused(data):
    with pytest.raises(DecodeError):
        decode.decode_value(Message(data=data))


def test_openings_follow_the_two_calibration_readings():
    assert decode.decode_opening(0.035, 0.035, 0.010) == 1.0
    assert decode.decode_opening(0.010, 0.035, 0.010) == 0.0
    assert decode.decode_opening(0.0, 0.0, 0.8) == 1.0  # Robotiq: 0 rad is open
    with pytest.raises(DecodeError, match=r'open = 0\.035'):
        decode.decode_opening(0.8, 0.035, 0.010)


def test_instructions_are_tidied_and_bounded():
    assert decode.check_instruction('  put the\n cup ') == 'put the cup'
    assert decode.decode_text(Message(data='go')) == 'go'
    for bad in ('', '   \n', 'x' * 2000, 'a\x00b'):
        with pytest.raises(DecodeError):
            decode.check_instruction(bad)
    with pytest.raises(DecodeError, match='no text'):
        decode.decode_text(Message(data=3))


def test_object_poses_come_by_name():
    poses = decode.decode_object_poses(Message(names=['cube'], poses=[body()]))
    np.testing.assert_allclose(poses['cube'][:3, 3], [0.1, 0.2, 0.3])
    with pytest.raises(DecodeError, match='1 names but 0'):
        decode.decode_object_poses(Message(names=['cube'], poses=[]))
