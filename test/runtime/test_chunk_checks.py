"""The checks that need no kinematics survive anything that fits the types."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spear_ros.core.types import ActionChunk
from spear_ros.robots.registry import get_robot
from spear_ros.runtime.chunk_checks import check_numbers, check_shape, check_steps, check_time
from spear_ros.runtime.safety import ChunkContext

anything = st.floats(allow_nan=True, allow_infinity=True)


def arrays(*shape):
    return hnp.arrays(np.float64, shape, elements=anything)


@st.composite
def wild_chunks(draw):
    h = draw(st.integers(0, 6))
    return ActionChunk(
        t_obs_ns=draw(st.integers(-(10**18), 10**18)),
        step_s=draw(anything),
        embodiment='e',
        base_frame='b',
        ee_frame='f',
        p_base_ee=draw(arrays(h, draw(st.integers(0, 4)))),
        q_base_ee=draw(arrays(draw(st.integers(0, 6)), 4)),
        gripper=draw(arrays(h)),
        anchor_p=draw(arrays(3)),
        anchor_q=draw(arrays(4)),
        sequence=draw(st.integers(0, 2**64 - 1)),
    )


@given(wild_chunks())
@settings(max_examples=80, deadline=None)
def test_wild_numbers_are_answered_and_never_raised(chunk):
    with np.errstate(all='ignore'):
        rejection = check_numbers(chunk)
    if rejection is None:
        values = [chunk.p_base_ee, chunk.q_base_ee, chunk.gripper, chunk.anchor_p, chunk.anchor_q]
        assert all(np.isfinite(x).all() for x in values)
        assert np.isfinite(chunk.step_s)
        assert chunk.p_base_ee.shape == (chunk.horizon, 3)
    else:
        assert rejection.text


def tame(h=5, step_s=0.2, **changes):
    fields = {
        't_obs_ns': 0,
        'step_s': step_s,
        'embodiment': 'e',
        'base_frame': 'b',
        'ee_frame': 'f',
        'p_base_ee': np.zeros((h, 3)),
        'q_base_ee': np.tile([1.0, 0, 0, 0], (h, 1)),
        'gripper': np.ones(h),
        'anchor_p': np.zeros(3),
        'anchor_q': np.array([1.0, 0, 0, 0]),
    }
    return ActionChunk(**{**fields, **changes})


CONTEXT = ChunkContext(received_ns=100_000_000, q_measured=None)


def test_number_of_knots_and_duration_are_bounded():
    assert check_shape(tame(5), CONTEXT) is None
    assert 'knots' in check_shape(tame(65), CONTEXT).text
    assert 'knots' in check_shape(tame(0), CONTEXT).text
    assert 'last longer' in check_shape(tame(40, 0.2), CONTEXT).text
    assert 'step_s' in check_shape(tame(5, 0.01), CONTEXT).text


def test_an_expired_chunk_is_old_even_if_its_observation_is_young_enough():
    short = tame(1, 0.05)
    assert 'expired 0.050 s before' in check_time(short, CONTEXT, 0.4).text


def test_both_signs_of_a_quaternion_are_the_same_step():
    flips = np.array([1, -1, 1, -1, 1.0])[:, None]
    chunk = tame(q_base_ee=flips * np.tile([1.0, 0, 0, 0], (5, 1)))
    assert check_steps(chunk, get_robot('fr3').step) is None
