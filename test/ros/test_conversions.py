"""Core types survive the way through messages, and statuses carry every field."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip('rclpy', reason='rclpy is not installed')
pytest.importorskip('spear_msgs', reason='the interfaces are not built')

from spear_msgs.msg import ExecutorStatus, PolicyStatus, StreamStatus

from spear_ros.core.geometry import pose, quat_exp
from spear_ros.core.reasons import Reason
from spear_ros.core.types import ActionChunk
from spear_ros.ros import conversions
from spear_ros.runtime.decode import decode_image
from spear_ros.runtime.executor_types import ExecutorSnapshot
from spear_ros.runtime.state_machine import State


def make_chunk(horizon=5):
    rng = np.random.default_rng(3)
    return ActionChunk(
        t_obs_ns=1_700_000_000_123_456_789,
        step_s=0.2,
        embodiment='franka_droid',
        base_frame='base',
        ee_frame='link8',
        p_base_ee=rng.normal(size=(horizon, 3)),
        q_base_ee=quat_exp(rng.normal(size=(horizon, 3))),
        gripper=rng.random(horizon),
        anchor_p=rng.normal(size=3),
        anchor_q=quat_exp(rng.normal(size=3)),
        instruction_id='0123abcd',
        checkpoint_id='0123456789ab',
        policy_session='deadbeef',
        sequence=7,
    )


def assert_same(a, b):
    for field in dataclasses.fields(a):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), field.name)


@pytest.mark.parametrize('horizon', [0, 1, 5])
def test_chunk_is_the_same_after_the_wire(horizon):
    chunk = make_chunk(horizon)
    assert_same(conversions.chunk_from_msg(conversions.chunk_to_msg(chunk)), chunk)


def test_chunk_that_is_not_finite_reaches_the_gate_unchanged():
    chunk = make_chunk()
    chunk.p_base_ee[2, 1] = np.nan
    chunk.q_base_ee[1] = 0.0
    assert_same(conversions.chunk_from_msg(conversions.chunk_to_msg(chunk)), chunk)


def test_message_cannot_extend_its_own_life():
    message = conversions.chunk_to_msg(make_chunk())
    message.expiry.sec += 3600
    assert conversions.chunk_from_msg(message).expiry_ns == make_chunk().expiry_ns


@given(st.integers(0, 2**31 * 10**9 - 1))
def test_stamps_are_exact(stamp_ns):
    assert conversions.ns_from_time(conversions.time_from_ns(stamp_ns)) == stamp_ns


def test_quaternion_order_on_the_wire_is_xyzw():
    message = conversions.pose_to_msg(np.zeros(3), np.array([0.1, 0.2, 0.3, 0.4]))
    o = message.orientation
    assert (o.w, o.x, o.y, o.z) == (0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'rgba8', 'bgra8'])
def test_image_of_every_encoding_decodes_to_the_same_pixels(encoding):
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    message = conversions.image_to_msg(image, 5, 'camera', encoding)
    np.testing.assert_array_equal(decode_image(message), image)


def test_path_keeps_every_pose():
    poses = np.stack([pose([i, 0, 0], [1, 0, 0, 0]) for i in range(3)])
    path = conversions.path_to_msg(poses, 9, 'base')
    assert [p.pose.position.x for p in path.poses] == [0.0, 1.0, 2.0]
    assert conversions.path_to_msg(np.zeros((0, 4, 4)), 9, 'base').poses == []


def test_snapshot_and_status_have_the_same_fields():
    message = set(ExecutorStatus.get_fields_and_field_types()) - {'header'}
    assert message <= {f.name for f in dataclasses.fields(ExecutorSnapshot)}


def test_status_message_carries_the_snapshot():
    values = {}
    for field in dataclasses.fields(ExecutorSnapshot):
        default = {float: 1.5, int: 3, str: 'text', bool: True}
        values[field.name] = default.get(field.type)
    values |= {'state': State.HOLD, 'reason': Reason.CAMERA_STALE, 'reject_counts': {}}
    values |= {'last_reject_reason': Reason.CHUNK_OLD}
    message = conversions.executor_status_to_msg(ExecutorSnapshot(**values), 42)
    assert (message.state, message.reason) == (ExecutorStatus.HOLD, Reason.CAMERA_STALE)
    assert (message.stretch, message.sequence, message.robot) == (1.5, 3, 'text')
    assert message.last_reject_reason == Reason.CHUNK_OLD


def test_policy_status_becomes_health():
    message = PolicyStatus(
        lifecycle_state='active',
        policy_session='s',
        checkpoint_id='c',
        ready=False,
        reason=int(Reason.CAMERA_STALE),
        streams=[StreamStatus(name='wrist', problem='wrist is stale'), StreamStatus(name='arm')],
    )
    health = conversions.policy_health_from_msg(message, 17)
    assert health.active
    assert not health.ready
    assert (health.reason, health.received_ns) == (Reason.CAMERA_STALE, 17)
    assert health.stream_problems == ('wrist is stale',)
    message.reason = 200
    assert conversions.policy_health_from_msg(message, 0).reason == Reason.POLICY_NOT_READY
