"""The conventions that would move a robot wrongly without any error, checked on real poses.

Pinned: encode -> decode is the identity in both relative modes; translation in the base frame,
rotation in the end-effector frame; Bridge's top-down reference; numpy and torch agree; NaN reaches
the gate; a Franka's proprioception does not flip its sign at its home pose.
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_ros.core.geometry import (
    matrix_to_quat,
    pose,
    quat_canonical,
    quat_exp,
    quat_multiply,
    quat_to_matrix,
    rpy_to_matrix,
)
from spear_ros.core.types import RobotState
from spear_ros.processing.action_space import (
    Pose,
    Targets,
    decode_actions,
    encode_actions,
    encode_proprio,
    pose_of,
    targets_from_poses,
)
from spear_ros.processing.embodiments import default_action_specs, default_norm_stats

_SPEC = importlib.util.spec_from_file_location('tfrecord', Path(__file__).with_name('tfrecord.py'))
tfrecord = importlib.util.module_from_spec(_SPEC)
sys.modules['tfrecord_of_tests'] = tfrecord
_SPEC.loader.exec_module(tfrecord)

SPECS = default_action_specs()
STATS = default_norm_stats()
ALL_SPECS = [
    replace(spec, relative_to=mode)
    for spec in SPECS.values()
    for mode in ('chunk_start', 'previous_step')
]
needs_bridge = pytest.mark.skipif(
    not tfrecord.BRIDGE.exists(), reason='../shared/data/real_recordings/bridge_rlds is absent'
)


def random_motion(seed, horizon=5, spread=0.3):
    rng = np.random.default_rng(seed)
    anchor = Pose(rng.uniform(-1, 1, 3), quat_exp(rng.uniform(-2, 2, 3)))
    q = quat_multiply(anchor.q, quat_exp(rng.normal(0, spread, (horizon, 3))))
    targets = Targets(
        anchor.p + rng.normal(0, 0.1, (horizon, 3)), q, rng.integers(0, 2, horizon).astype(float)
    )
    return anchor, targets


def assert_same_motion(a, b, tolerance):
    np.testing.assert_allclose(a.p, b.p, atol=tolerance)
    np.testing.assert_allclose(quat_to_matrix(a.q), quat_to_matrix(b.q), atol=tolerance)
    np.testing.assert_array_equal(a.gripper, b.gripper)


@pytest.mark.parametrize('kind', ['quantile', 'minmax', 'mean_std'])
@pytest.mark.parametrize('spec', ALL_SPECS, ids=lambda s: f'{s.embodiment}-{s.relative_to}')
@given(seed=st.integers(0, 2**32 - 1), horizon=st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_decoding_gives_back_what_was_encoded(spec, kind, seed, horizon):
    stats = replace(STATS, kind=kind)
    anchor, targets = random_motion(seed, horizon)
    actions = encode_actions(targets, anchor, spec, stats)
    assert actions.shape == (horizon, 8)
    assert (actions[:, 3] >= 0).all()
    assert_same_motion(decode_actions(actions, anchor, spec, stats), targets, 1e-9)


@pytest.mark.parametrize('spec', ALL_SPECS, ids=lambda s: f'{s.embodiment}-{s.relative_to}')
def test_torch_batches_and_numpy_single_chunks_agree(spec):
    motions = [random_motion(s) for s in range(4)]
    anchor = Pose(*(torch.tensor(np.stack(x)) for x in zip(*[m[0] for m in motions], strict=True)))
    targets = Targets(
        *(torch.tensor(np.stack(x)) for x in zip(*[m[1] for m in motions], strict=True))
    )
    actions = encode_actions(targets, anchor, spec, STATS)
    decoded = decode_actions(actions, anchor, spec, STATS)
    proprio = encode_proprio(anchor, targets.gripper[..., 0], spec, STATS)
    assert actions.shape == (4, 5, 8)
    assert proprio.shape == (4, 8)
    for i, (a, t) in enumerate(motions):
        np.testing.assert_allclose(actions[i], encode_actions(t, a, spec, STATS), atol=1e-12)
        assert_same_motion(Targets(*(x[i].numpy() for x in decoded)), t, 1e-9)
        np.testing.assert_allclose(
            proprio[i], encode_proprio(a, t.gripper[0], spec, STATS), atol=1e-12
        )


def test_single_precision_tensors_stay_single_and_close():
    anchor, targets = random_motion(3)
    as32 = lambda x: torch.tensor(np.asarray(x), dtype=torch.float32)  # noqa: E731
    spec = SPECS['widowx_bridge']
    actions = encode_actions(Targets(*map(as32, targets)), Pose(*map(as32, anchor)), spec, STATS)
    assert actions.dtype == torch.float32
    np.testing.assert_allclose(actions, encode_actions(targets, anchor, spec, STATS), atol=1e-5)


def test_translation_is_along_base_axes_and_rotation_about_gripper_axes():
    # A gripper turned a quarter about base z, then moved along base x and turned about its own x.
    anchor = Pose(np.zeros(3), quat_exp([0, 0, np.pi / 2]))
    turned = quat_multiply(anchor.q, quat_exp([0.2, 0, 0]))
    targets = Targets(np.array([[0.15, 0.0, 0.0]]), turned[None], np.ones(1))
    action = encode_actions(targets, anchor, SPECS['franka_droid'], STATS)[0]
    np.testing.assert_allclose(action[:3], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(action[3:7], quat_exp([0.2, 0, 0]), atol=1e-12)
    assert action[7] == 1


def test_bridge_rotation_deltas_are_about_the_axes_of_the_top_down_reference():
    # dR_model = D dR_ee D^T with D of bridge_data_robot, written out here as a matrix.
    D = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], float)
    spec = SPECS['widowx_bridge']
    np.testing.assert_allclose(quat_to_matrix(spec.reference_rotation), D, atol=1e-12)
    anchor, targets = random_motion(7)
    actions = encode_actions(targets, anchor, spec, STATS)
    R0, R = quat_to_matrix(anchor.q), quat_to_matrix(targets.q)
    np.testing.assert_allclose(quat_to_matrix(actions[:, 3:7]), D @ (R0.T @ R) @ D.T, atol=1e-12)


def test_a_widowx_that_points_down_has_no_rotation_in_its_proprioception():
    D = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], float)
    down = Pose(np.array([0.45, 0.0, 0.35]), matrix_to_quat(D))
    proprio = encode_proprio(down, np.array(1.0), SPECS['widowx_bridge'], STATS)
    np.testing.assert_allclose(proprio, [0, 0, 0, 1, 0, 0, 0, 1], atol=1e-9)


@given(st.lists(st.floats(-0.05, 0.05), min_size=3, max_size=3))
@settings(deadline=None)
def test_proprioception_of_a_franka_near_its_home_pose_is_continuous(wobble):
    spec = SPECS['franka_droid']
    home = Pose(np.array([0.36, 0, 0.49]), np.array([0.0, 1.0, 0.0, 0.0]))
    near = Pose(home.p, quat_multiply(home.q, quat_exp(wobble)))
    a, b = (encode_proprio(p, np.array(1.0), spec, STATS) for p in (home, near))
    assert np.abs(a - b).max() <= 0.05


def test_proprioception_does_not_depend_on_the_sign_of_the_quaternion():
    anchor, _ = random_motion(11)
    for spec in SPECS.values():
        a = encode_proprio(anchor, np.array(0.3), spec, STATS)
        b = encode_proprio(Pose(anchor.p, -anchor.q), np.array(0.3), spec, STATS)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('spec', ALL_SPECS, ids=lambda s: f'{s.embodiment}-{s.relative_to}')
def test_neighbouring_knots_do_not_jump_between_q_and_minus_q(spec):
    anchor, targets = random_motion(5, spread=0.1)
    q = decode_actions(encode_actions(targets, anchor, spec, STATS), anchor, spec, STATS).q
    assert (np.sum(np.vstack([anchor.q, q[:-1]]) * q, axis=-1) > 0).all()


@pytest.mark.parametrize('number', range(8))
@pytest.mark.parametrize('spec', ALL_SPECS, ids=lambda s: f'{s.embodiment}-{s.relative_to}')
def test_a_nan_in_any_number_of_an_action_is_still_there_after_decoding(spec, number):
    anchor, targets = random_motion(1)
    actions = encode_actions(targets, anchor, spec, STATS)
    actions[2, number] = np.nan
    decoded = decode_actions(actions, anchor, spec, STATS)
    assert any(np.isnan(x[2]).any() for x in decoded)


def test_a_rotation_that_is_none_is_not_repaired():
    anchor, targets = random_motion(1)
    spec = SPECS['franka_droid']
    actions = encode_actions(targets, anchor, spec, STATS)
    actions[1, 3:7] = 0
    assert not decode_actions(actions, anchor, spec, STATS).q[1].any()


def test_the_gripper_is_binary_at_the_threshold_of_the_spec():
    spec = replace(SPECS['widowx_bridge'], gripper_threshold=0.3)
    anchor, targets = random_motion(2)
    targets = targets._replace(gripper=np.array([0.0, 0.29, 0.31, 0.56, 1.0]))
    actions = encode_actions(targets, anchor, spec, STATS)
    np.testing.assert_array_equal(actions[:, 7], [-1, -1, 1, 1, 1])
    actions[:, 7] = [-3, -0.5, -0.3, 0.2, 4]
    decoded = decode_actions(actions, anchor, spec, STATS)
    np.testing.assert_array_equal(decoded.gripper, [0, 0, 1, 1, 1])


@pytest.mark.parametrize('spec', ALL_SPECS, ids=lambda s: f'{s.embodiment}-{s.relative_to}')
@given(seed=st.integers(0, 2**32 - 1), signs=st.lists(st.booleans(), min_size=6, max_size=6))
@settings(max_examples=20, deadline=None)
def test_a_rotation_and_its_double_give_the_same_action(spec, seed, signs):
    anchor, targets = random_motion(seed)
    sign = np.where(signs, -1.0, 1.0)
    doubled = targets._replace(q=targets.q * sign[:5, None])
    a = encode_actions(targets, anchor, spec, STATS)
    b = encode_actions(doubled, Pose(anchor.p, anchor.q * sign[5]), spec, STATS)
    np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize('spec', ALL_SPECS, ids=lambda s: f'{s.embodiment}-{s.relative_to}')
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_another_base_frame_turns_translations_and_leaves_rotations(spec, seed):
    anchor, targets = random_motion(seed)
    g, shift = quat_exp(np.random.default_rng(seed).uniform(-2, 2, 3)), np.array([1.0, -2, 3])
    R = quat_to_matrix(g)
    moved = targets._replace(p=targets.p @ R.T + shift, q=quat_multiply(g, targets.q))
    moved_anchor = Pose(R @ anchor.p + shift, quat_multiply(g, anchor.q))
    stats = replace(STATS, kind='mean_std', translation_low=(0,) * 3, translation_high=(1,) * 3)
    a = encode_actions(targets, anchor, spec, stats)
    b = encode_actions(moved, moved_anchor, spec, stats)
    np.testing.assert_allclose(b[:, :3], a[:, :3] @ R.T, atol=1e-9)
    np.testing.assert_allclose(b[:, 3:], a[:, 3:], atol=1e-9)


@pytest.mark.parametrize('spec', ALL_SPECS, ids=lambda s: f'{s.embodiment}-{s.relative_to}')
def test_a_committed_prefix_is_encoded_as_the_first_knots_of_the_whole(spec):
    anchor, targets = random_motion(9)
    whole = encode_actions(targets, anchor, spec, STATS)
    prefix = encode_actions(Targets(*(x[:2] for x in targets)), anchor, spec, STATS)
    np.testing.assert_array_equal(prefix, whole[:2])


@needs_bridge
@pytest.mark.parametrize('mode', ['chunk_start', 'previous_step'])
def test_real_bridge_motion_is_recomposed_from_its_actions(mode):
    # The recording's orientation already is R_model: the end-effector's is R_model D.
    spec = replace(SPECS['widowx_bridge'], relative_to=mode)
    D = quat_to_matrix(spec.reference_rotation)
    worst, chunks = 0.0, 0
    for states in tfrecord.bridge_states():
        T = np.tile(np.eye(4), (len(states), 1, 1))
        R_model = rpy_to_matrix(states[:, 3:6])
        T[:, :3, :3], T[:, :3, 3] = R_model @ D, states[:, :3]
        opening = (states[:, 6] > spec.gripper_threshold).astype(float)
        for i in range(len(states) - spec.horizon):
            state = RobotState(stamp_ns=0, T_base_ee=T[i], gripper=opening[i])
            future = slice(i + 1, i + 1 + spec.horizon)
            targets = targets_from_poses(T[future], opening[future])
            actions = encode_actions(targets, pose_of(state), spec, STATS)
            out = decode_actions(actions, pose_of(state), spec, STATS)
            worst = max(worst, np.abs(pose(out.p, out.q) - T[future]).max())
            np.testing.assert_array_equal(out.gripper, opening[future])
            # The proprioception shows the orientation exactly as the data set stores it.
            proprio = encode_proprio(pose_of(state), opening[i], spec, STATS)
            expected = quat_canonical(matrix_to_quat(R_model[i]))
            np.testing.assert_allclose(proprio[3:7], expected, atol=1e-9)
            chunks += 1
    assert chunks == 125
    assert worst < 1e-6
