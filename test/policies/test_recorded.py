"""The recorded motion comes back through the models' own action path, or not at all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_ros.core import geometry
from spear_ros.core.errors import UserError
from spear_ros.core.types import ActionSpec, NormStats, Observation, RobotState
from spear_ros.policies.recorded import MotionTrack, RecordedMotion, RecordedPolicy
from spear_ros.policies.registry import create_policy
from spear_ros.processing.embodiments import default_action_specs, default_norm_stats
from spear_ros.robots.registry import get_robot

T0 = 1_700_000_000_000_000_000
STEP = 200_000_000


def track(count=20, step_ns=STEP, seed=0):
    rng = np.random.default_rng(seed)
    p = np.array([0.3, 0.0, 0.2]) + np.cumsum(rng.normal(0, 0.01, (count, 3)), 0)
    q = [geometry.quat_exp(rng.normal(0, 1, 3))]
    for turn in rng.normal(0, 0.1, (count - 1, 3)):
        q.append(geometry.quat_multiply(q[-1], geometry.quat_exp(turn)))
    return MotionTrack(
        stamps_ns=T0 + np.arange(count, dtype=np.int64) * step_ns,
        T_base_ee=geometry.pose(p, np.array(q)),
        gripper=(np.arange(count) % 7 < 4).astype(float),
    )


def observe(T, t_obs_ns=T0):
    return Observation(
        t_obs_ns=t_obs_ns,
        embodiment='widowx_bridge',
        images={},
        state=RobotState(stamp_ns=t_obs_ns, T_base_ee=T, gripper=1.0),
        instruction='go',
    )


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10_000),
    st.sampled_from(['franka_droid', 'widowx_bridge']),
    st.sampled_from(['chunk_start', 'previous_step']),
    st.sampled_from(['quantile', 'minmax', 'mean_std']),
)
def test_any_motion_comes_back_to_a_nanometre_whatever_the_convention(seed, who, relative, kind):
    base = default_action_specs()[who]
    spec = ActionSpec(
        embodiment=who,
        base_frame=base.base_frame,
        ee_frame=base.ee_frame,
        relative_to=relative,
        reference_rotation=base.reference_rotation,
    )
    stats = NormStats(
        kind=kind,
        translation_low=(-0.02, -0.03, -0.01),
        translation_high=(0.05, 0.01, 0.02),
        position_low=(0.1, -0.3, 0.0),
        position_high=(0.6, 0.3, 0.5),
    )
    motion = track(seed=seed)
    anchor = motion.T_base_ee[3] @ geometry.pose([0.01, 0, 0], geometry.quat_exp([0.1, 0, 0]))
    chunk = RecordedPolicy(motion, spec, stats).infer(observe(anchor, T0 + 3 * STEP))
    planned = geometry.pose(chunk.p_base_ee, chunk.q_base_ee)
    np.testing.assert_allclose(planned, motion.T_base_ee[4:9], atol=1e-9)
    np.testing.assert_array_equal(chunk.gripper, motion.gripper[4:9])


def test_the_proof_fails_where_the_two_directions_disagree():
    # The round trip is not blind: decoding with another reference rotation turns the motion.
    from spear_ros.processing.action_space import decode_actions, encode_actions, pose_of
    from spear_ros.processing.action_space import targets_from_poses as targets

    motion, stats = track(), default_norm_stats()
    specs = default_action_specs()
    anchor = pose_of(observe(motion.T_base_ee[0]).state)
    wanted = targets(motion.T_base_ee[1:6], motion.gripper[1:6])
    actions = encode_actions(wanted, anchor, specs['widowx_bridge'], stats)
    wrong = decode_actions(actions, anchor, specs['franka_droid'], stats)
    assert geometry.quat_angle(wrong.q[-1], wanted.q[-1]) > 0.05


def test_past_the_end_the_last_pose_is_held():
    motion = track(count=4)
    policy = create_policy(
        'recorded', robot=get_robot('wx250s'), options={'motion': RecordedMotion(reached=motion)}
    )
    chunk = policy.infer(observe(motion.T_base_ee[2], T0 + 2 * STEP))
    np.testing.assert_allclose(chunk.p_base_ee, np.tile(motion.T_base_ee[3, :3, 3], (5, 1)))


def test_between_two_samples_the_motion_is_interpolated():
    motion = track(count=2)
    T, _ = motion.at(np.array([T0 + STEP // 4], np.int64))
    p = 0.75 * motion.T_base_ee[0, :3, 3] + 0.25 * motion.T_base_ee[1, :3, 3]
    np.testing.assert_allclose(T[0, :3, 3], p, atol=1e-12)
    _, whole = geometry.pose_distance(*motion.T_base_ee)
    _, part = geometry.pose_distance(motion.T_base_ee[0], T[0])
    assert part == pytest.approx(whole / 4)


def test_commanded_motion_is_followed_on_demand_and_refused_where_there_is_none():
    robot, reached, commanded = get_robot('wx250s'), track(seed=0), track(seed=1)
    both = RecordedMotion(reached=reached, commanded=commanded)
    policy = create_policy('recorded', robot=robot, options={'motion': both, 'commanded': True})
    chunk = policy.infer(observe(reached.T_base_ee[0]))
    np.testing.assert_allclose(chunk.p_base_ee, commanded.T_base_ee[1:6, :3, 3], atol=1e-12)
    only = {'motion': RecordedMotion(reached=reached), 'commanded': True}
    with pytest.raises(UserError, match='holds no commands'):
        create_policy('recorded', robot=robot, options=only)


def test_without_a_recording_it_says_where_to_get_one():
    with pytest.raises(UserError, match='spear replay BAG'):
        create_policy('recorded', robot=get_robot('fr3'))


def test_stamps_that_do_not_increase_are_refused():
    with pytest.raises(UserError, match='increasing stamps'):
        MotionTrack(
            stamps_ns=np.array([1, 1]), T_base_ee=np.tile(np.eye(4), (2, 1, 1)), gripper=np.ones(2)
        )
