"""Every scalar function equals its array twin in core.geometry."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_ros.core import geometry
from spear_ros.runtime import quaternion

numbers = st.floats(-4, 4, allow_subnormal=False)
vectors = st.tuples(numbers, numbers, numbers)
quaternions = (
    st.tuples(numbers, numbers, numbers, numbers)
    .filter(lambda q: np.linalg.norm(q) > 0.1)
    .map(quaternion.normalize)
)


@given(quaternions, quaternions, vectors)
def test_products_and_rotations(a, b, v):
    assert quaternion.multiply(a, b) == pytest.approx(geometry.quat_multiply(a, b), abs=1e-12)
    assert quaternion.conjugate(a) == pytest.approx(geometry.quat_conjugate(a), abs=1e-12)
    assert quaternion.rotate(a, v) == pytest.approx(geometry.quat_rotate(a, v), abs=1e-11)
    np.testing.assert_allclose(quaternion.to_pose(v, a), geometry.pose(v, a), atol=1e-12)


@given(quaternions, vectors)
def test_exponential_and_logarithm(q, v):
    assert quaternion.exp(v) == pytest.approx(geometry.quat_exp(v), abs=1e-12)
    assert quaternion.log(q) == pytest.approx(geometry.quat_log(q), abs=1e-9)
    tiny = tuple(1e-12 * x for x in v)
    assert quaternion.exp(tiny) == pytest.approx(geometry.quat_exp(tiny), abs=1e-15)


@given(quaternions)
def test_q_and_minus_q_are_the_same_rotation(q):
    minus = tuple(-x for x in q)
    angle = quaternion.norm(quaternion.log(q))
    if angle < 3.1:  # at half a turn both signs of the axis are right
        assert quaternion.log(minus) == pytest.approx(quaternion.log(q), abs=1e-9)


@given(quaternions, quaternions)
def test_between_turns_the_first_into_the_second(a, b):
    turned = quaternion.multiply(quaternion.exp(quaternion.between(a, b)), a)
    assert float(geometry.quat_angle(turned, b)) < 1e-6


@given(vectors, st.floats(0.01, 10))
def test_limit_shortens_and_never_turns(v, largest):
    out = quaternion.limit(v, largest)
    assert quaternion.norm(out) <= largest * (1 + 1e-12)
    assert np.cross(out, v) == pytest.approx((0, 0, 0), abs=1e-9)
    assert quaternion.dot(out, v) >= 0
