import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import quat_angle, quat_to_matrix
from spear_ros.data.conventions import (
    command_from_motion,
    decode_commands,
    decode_poses,
    opening,
    opening_from_pulses,
    settle,
)
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot

ROTATIONS = Rotation.random(20, random_state=3)
POSITIONS = np.random.default_rng(3).normal(size=(20, 3))


def written(encoding):
    """The same poses in every encoding, by scipy."""
    matrices = np.tile(np.eye(4), (20, 1, 1))
    matrices[:, :3, :3], matrices[:, :3, 3] = ROTATIONS.as_matrix(), POSITIONS
    xyzw = ROTATIONS.as_quat()
    rotations = {
        'xyz_rpy': ROTATIONS.as_euler('xyz'),
        'xyz_euler_zxy': ROTATIONS.as_euler('zxy'),
        'xyz_quat_xyzw': xyzw,
        'xyz_quat_wxyz': xyzw[:, [3, 0, 1, 2]],
        'xyz_axis_angle': ROTATIONS.as_rotvec(),
    }
    if encoding == 'matrix_rows':
        return matrices.reshape(20, 16)
    if encoding == 'matrix_columns':
        return matrices.transpose(0, 2, 1).reshape(20, 16)
    return np.concatenate([POSITIONS, rotations[encoding]], axis=1)


@pytest.mark.parametrize(
    'encoding',
    [
        'xyz_rpy',
        'xyz_euler_zxy',
        'xyz_quat_xyzw',
        'xyz_quat_wxyz',
        'xyz_axis_angle',
        'matrix_rows',
        'matrix_columns',
    ],
)
def test_every_encoding_of_a_pose_decodes_to_the_same_pose(encoding):
    p, q = decode_poses(written(encoding), encoding)
    np.testing.assert_allclose(p, POSITIONS, atol=1e-12)
    np.testing.assert_allclose(quat_to_matrix(q), ROTATIONS.as_matrix(), atol=1e-9)


def test_positions_without_rotation_get_the_identity():
    p, q = decode_poses(POSITIONS, 'xyz')
    np.testing.assert_array_equal(p, POSITIONS)
    np.testing.assert_array_equal(q, np.tile([1.0, 0, 0, 0], (20, 1)))


def test_joints_go_through_the_robots_own_kinematics():
    q_rad = np.random.default_rng(0).uniform(-1, 1, (3, 7))
    p, q = decode_poses(q_rad, 'joints', 'panda')
    T = forward(get_robot('panda'), q_rad[2])
    np.testing.assert_allclose(p[2], T[:3, 3], atol=1e-12)
    np.testing.assert_allclose(quat_to_matrix(q)[2], T[:3, :3], atol=1e-12)


def test_integrated_steps_have_the_recorded_differences():
    steps = np.random.default_rng(1).normal(scale=0.1, size=(8, 6))
    p, q = decode_poses(steps, 'integrated_xyz_rpy')
    np.testing.assert_array_equal(p[0], 0)
    np.testing.assert_allclose(np.diff(p, axis=0), steps[:-1, :3], atol=1e-12)
    turns = Rotation.from_euler('xyz', steps[:-1, 3:]).as_matrix()
    found = quat_to_matrix(q)
    np.testing.assert_allclose(found[1:] @ found[:-1].transpose(0, 2, 1), turns, atol=1e-9)


@pytest.mark.parametrize('encoding', ['xyz_rpy', 'xyz_quat_xyzw', 'matrix_rows', 'xyz'])
def test_a_wrong_number_of_columns_names_the_encoding(encoding):
    with pytest.raises(UserError, match=f'encoding "{encoding}" needs'):
        decode_poses(np.zeros((4, 5)), encoding)


def test_columns_that_hold_no_quaternion_are_refused():
    with pytest.raises(UserError, match='do not hold a quaternion'):
        decode_poses(np.full((4, 7), 0.7), 'xyz_quat_xyzw')


def test_wrong_number_of_joints_names_the_robot():
    with pytest.raises(UserError, match='robot "panda" has 7 joints'):
        decode_poses(np.zeros((4, 6)), 'joints', 'panda')


def test_delta_commands_compose_on_the_measured_pose():
    reached = decode_poses(written('xyz_rpy'), 'xyz_rpy')
    raw = np.random.default_rng(2).normal(scale=0.2, size=(20, 6))
    p, q = decode_commands(raw, 'delta_xyz_rpy', reached)
    np.testing.assert_allclose(p, POSITIONS + raw[:, :3], atol=1e-12)
    expected = (Rotation.from_euler('xyz', raw[:, 3:]) * ROTATIONS).as_matrix()
    np.testing.assert_allclose(quat_to_matrix(q), expected, atol=1e-9)
    turn = Rotation.from_euler('xyz', raw[:, 3:]).as_quat()
    p2, q2 = decode_commands(np.concatenate([raw[:, :3], turn], 1), 'delta_xyz_quat_xyzw', reached)
    np.testing.assert_allclose(p2, p)
    assert quat_angle(q, q2).max() < 1e-9


def test_an_added_axis_angle_is_added_to_the_rotation_vector():
    reached = decode_poses(written('xyz_axis_angle'), 'xyz_axis_angle')
    raw = np.random.default_rng(2).normal(scale=0.1, size=(20, 6))
    _, q = decode_commands(raw, 'delta_xyz_axis_angle_added', reached)
    expected = Rotation.from_rotvec(ROTATIONS.as_rotvec() + raw[:, 3:]).as_matrix()
    np.testing.assert_allclose(quat_to_matrix(q), expected, atol=1e-9)


def test_translation_only_commands_keep_the_rotation():
    reached = decode_poses(written('xyz_rpy'), 'xyz_rpy')
    p, q = decode_commands(np.ones((20, 3)), 'delta_xyz', reached)
    np.testing.assert_allclose(p, POSITIONS + 1)
    np.testing.assert_array_equal(q, reached[1])


def test_openings_are_scaled_to_one_for_open():
    np.testing.assert_allclose(opening([0.0, 0.04, 0.08], 0.08, 0.0), [0, 0.5, 1])
    np.testing.assert_allclose(opening([-1.0, 0, 1], -1, 1), [1, 0.5, 0])
    np.testing.assert_allclose(opening([1.3, -0.2], 1, 0), [1, 0])


def test_pulses_become_the_state_in_force():
    closing = opening_from_pulses([0, 0, 1, 0, 0, -1, 0], -1, 1)
    np.testing.assert_array_equal(closing, [1, 1, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(opening_from_pulses([0, -1, 0, 0.05], -1, 1), [0, 1, 1, 1])
    np.testing.assert_array_equal(opening_from_pulses([0, 0.05, 0], -1, 1), [1, 1, 1])
    np.testing.assert_array_equal(opening_from_pulses([0, 1, 0], 1, -1), [0, 1, 1])


def test_values_on_their_way_take_the_state_that_follows():
    np.testing.assert_array_equal(settle([1, 1, 0.56, 0, 0]), [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(settle([0, 0.16, 0.98, 0.3, 1]), [0, 1, 1, 1, 1])
    np.testing.assert_array_equal(settle([1, 0.7, 0.4]), [1, 1, 0])
    np.testing.assert_array_equal(settle([0.4, 0.6]), [0, 1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_settled_values_are_binary_and_keep_clear_ones(values):
    result = settle(np.array(values))
    assert set(result) <= {0.0, 1.0}
    for value, binary in zip(values, result, strict=True):
        if value >= 0.95 or value <= 0.05:
            assert binary == round(value)


def test_a_grasp_that_stops_half_way_counts_as_shut_from_its_beginning():
    state = np.array([1, 1, 1, 0.9, 0.7, 0.55, 0.54, 0.54, 0.55, 0.8, 1.0, 1.0])
    np.testing.assert_array_equal(command_from_motion(state), [1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1])


def test_jitter_of_the_fingers_switches_nothing():
    state = 0.5 + 0.05 * np.random.default_rng(0).uniform(-1, 1, 200)
    assert len(set(command_from_motion(state))) == 1


@pytest.mark.parametrize('value', [float('nan'), 85.0, -0.9])
def test_an_opening_that_is_no_number_or_of_another_unit_is_refused(value):
    with pytest.raises(UserError, match='in frame 2, and the row says open = 1, closed = 0'):
        opening(np.array([0.0, 1.1, value, 1.0]), 1.0, 0.0)
