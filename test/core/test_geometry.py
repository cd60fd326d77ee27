"""SE(3) maths: group laws and round trips on random and singular inputs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spear_ros.core import geometry as g

rotvecs = arrays(float, (3,), elements=st.floats(-3.0, 3.0)).filter(
    lambda v: np.linalg.norm(v) < np.pi - 1e-3
)
positions = arrays(float, (3,), elements=st.floats(-2.0, 2.0))


@given(rotvecs)
def test_log_inverts_exp(v):
    assert np.allclose(g.quat_log(g.quat_exp(v)), v, atol=1e-9)


@pytest.mark.parametrize('angle', [0.0, 1e-12, 1e-9, 1e-6, 1e-3, 1.0, np.pi - 1e-9, np.pi])
def test_log_inverts_exp_at_singular_angles(angle):
    v = angle * np.array([0.0, 0.6, 0.8])
    assert np.allclose(g.quat_log(g.quat_exp(v)), v, atol=1e-7)


@given(rotvecs)
def test_matrix_round_trip(v):
    q = g.quat_exp(v)
    assert np.allclose(g.matrix_to_quat(g.quat_to_matrix(q)), g.quat_canonical(q), atol=1e-9)


@pytest.mark.parametrize('axis', [*np.eye(3).tolist(), [1, 1, 0], [0, 1, 1], [1, 0, -1]])
def test_matrix_to_quat_is_exact_at_half_turns(axis):
    axis = np.array(axis) / np.linalg.norm(axis)
    R = g.quat_to_matrix(g.quat_exp(np.pi * axis))
    assert np.allclose(g.quat_to_matrix(g.matrix_to_quat(R)), R, atol=1e-12)


@given(rotvecs, rotvecs, positions)
def test_product_of_quaternions_is_product_of_matrices(a, b, v):
    qa, qb = g.quat_exp(a), g.quat_exp(b)
    product = g.quat_multiply(qa, qb)
    assert np.allclose(g.quat_to_matrix(product), g.quat_to_matrix(qa) @ g.quat_to_matrix(qb))
    assert np.allclose(g.quat_rotate(product, v), g.quat_rotate(qa, g.quat_rotate(qb, v)))


@given(rotvecs, rotvecs)
def test_slerp_meets_both_ends_at_constant_speed_the_short_way(a, b):
    qa, qb = g.quat_exp(a), g.quat_exp(b)
    ends = g.quat_slerp(qa, -qb, [0.0, 1.0])
    assert g.quat_angle(ends[0], qa) < 1e-7
    assert g.quat_angle(ends[1], qb) < 1e-6
    third = g.quat_slerp(qa, qb, 1 / 3)
    assert g.quat_angle(qa, third) == pytest.approx(float(g.quat_angle(qa, qb)) / 3, abs=1e-6)


@given(rotvecs, positions)
def test_pose_inverse_and_parts(v, p):
    T = g.pose(p, g.quat_exp(v))
    assert np.allclose(T @ g.pose_inverse(T), np.eye(4), atol=1e-12)
    p2, q2 = g.pose_parts(T)
    assert np.allclose(g.pose(p2, q2), T, atol=1e-9)


@given(arrays(float, (3,), elements=st.floats(-1.5, 1.5)))
def test_roll_pitch_yaw_round_trip_away_from_the_pole(rpy):
    assert np.allclose(g.matrix_to_rpy(g.rpy_to_matrix(rpy)), rpy, atol=1e-9)


@pytest.mark.parametrize('pitch', [np.pi / 2, -np.pi / 2])
def test_roll_pitch_yaw_at_the_pole_keeps_the_rotation(pitch):
    R = g.rpy_to_matrix([0.3, pitch, -0.8])
    assert np.allclose(g.rpy_to_matrix(g.matrix_to_rpy(R)), R, atol=1e-9)


def test_functions_are_vectorised_over_leading_axes():
    rng = np.random.default_rng(0)
    v = rng.uniform(-1, 1, (2, 5, 3))
    q = g.quat_exp(v)
    one_by_one = np.array([[g.quat_to_matrix(x) for x in row] for row in q])
    assert np.array_equal(g.quat_to_matrix(q), one_by_one)
    assert g.pose(v, q).shape == (2, 5, 4, 4)
    assert np.allclose(g.matrix_to_quat(g.quat_to_matrix(q)), g.quat_canonical(q))


@pytest.mark.parametrize('bad', [[0, 0, 0, 0], [np.nan, 0, 0, 1], [2, 0, 0, 0]])
def test_unit_check_refuses_what_is_not_a_rotation(bad):
    assert not g.is_unit_quaternion(bad)
    assert g.is_unit_quaternion([[1, 0, 0, 0], [0, 0.6, 0.8, 0]])
