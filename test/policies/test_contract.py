"""Every registered policy on every robot's example observation: one protocol, kept by all."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from spear_ros.core import geometry
from spear_ros.core.types import Observation
from spear_ros.policies.base import ChunkPrefix, Policy
from spear_ros.policies.recorded import MotionTrack, RecordedMotion
from spear_ros.policies.registry import POLICIES, create_policy
from spear_ros.robots.examples import make_example_observation
from spear_ros.robots.registry import get_robot, robot_names

NEEDS_TORCH = {'spear1'}
TOLERANCE = {'spear1': 1e-5}  # float32 inside; the others compute in float64


def observation_for(policy: str, robot: str) -> Observation:
    observation = make_example_observation(robot)
    if policy != 'scripted':
        return observation
    # Objects on the table in front of the arm, as /sim/object_poses brings them.
    x, y, _ = observation.state.T_base_ee[:3, 3]
    poses = {'red_cube': (x, y, 0.02), 'purple_plate': (x, y + 0.15, 0.01)}
    return replace(
        observation,
        instruction='put the red cube on the purple plate',
        privileged={name: geometry.pose(p, [1, 0, 0, 0]) for name, p in poses.items()},
    )


def make_policy(name: str, robot: str, seed: int = 0) -> Policy:
    if name in NEEDS_TORCH and importlib.util.find_spec('torch') is None:
        pytest.skip('this policy needs torch, which is not installed')
    options = {'untrained': 'spear1_debug'} if name == 'spear1' else {}
    if name == 'recorded':
        options['motion'] = example_motion(make_example_observation(robot))
    if name == 'spear1':
        options['untrained'] = 'spear1_debug'
    return create_policy(name, robot=get_robot(robot), seed=seed, options=options)


def example_motion(observation: Observation) -> RecordedMotion:
    stamps = observation.t_obs_ns + np.arange(-5, 30, dtype=np.int64) * 100_000_000
    T0 = observation.state.T_base_ee
    shifts = [
        geometry.pose([0.004 * i, -0.003 * i, 0.002 * i], geometry.quat_exp([0, 0.01 * i, 0]))
        for i in range(len(stamps))
    ]
    T = np.stack([T0 @ shift for shift in shifts])
    gripper = np.where(np.arange(len(stamps)) < 12, 1.0, 0.0)
    return RecordedMotion(reached=MotionTrack(stamps_ns=stamps, T_base_ee=T, gripper=gripper))


@pytest.fixture(params=robot_names())
def robot(request):
    return request.param


@pytest.fixture(params=list(POLICIES))
def name(request):
    return request.param


def test_a_chunk_is_complete_finite_and_anchored_on_the_measured_pose(name, robot):
    policy, spec = make_policy(name, robot), get_robot(robot)
    observation = observation_for(name, robot)
    assert isinstance(policy, Policy)
    info = policy.describe()
    assert info.name == name
    assert (info.spec.embodiment, info.spec.base_frame, info.spec.ee_frame) == (
        spec.embodiment, spec.base_frame, spec.ee_frame,
    )  # fmt: skip
    policy.warm_up()
    policy.reset()
    chunk = policy.infer(observation)
    horizon = info.spec.horizon
    assert chunk.t_obs_ns == observation.t_obs_ns
    assert chunk.instruction_id == observation.instruction_id
    assert chunk.checkpoint_id == info.checkpoint_id
    assert (chunk.embodiment, chunk.base_frame, chunk.ee_frame) == (
        spec.embodiment, spec.base_frame, spec.ee_frame,
    )  # fmt: skip
    assert chunk.step_s == info.spec.step_s
    assert chunk.p_base_ee.shape == (horizon, 3)
    assert chunk.q_base_ee.shape == (horizon, 4)
    assert chunk.gripper.shape == (horizon,)
    assert np.isfinite(chunk.p_base_ee).all()
    assert geometry.is_unit_quaternion(chunk.q_base_ee, 1e-4)
    assert ((chunk.gripper >= 0) & (chunk.gripper <= 1)).all()
    p, q = geometry.pose_parts(observation.state.T_base_ee)
    np.testing.assert_allclose(chunk.anchor_p, p, atol=1e-9)
    assert geometry.quat_angle(chunk.anchor_q, q) < 1e-6
    policy.close()


def test_the_same_seed_and_observation_give_the_same_bytes(name, robot):
    observation = observation_for(name, robot)
    first, second = make_policy(name, robot, 7), make_policy(name, robot, 7)
    one = first.infer(observation)
    # Another observation in between must not matter: noise hangs on (seed, t_obs) alone.
    second.infer(replace(observation, t_obs_ns=observation.t_obs_ns + 200_000_000))
    second.reset()
    two = second.infer(observation)
    for field in ('p_base_ee', 'q_base_ee', 'gripper', 'anchor_p', 'anchor_q'):
        assert (
            np.asarray(getattr(one, field)).tobytes() == np.asarray(getattr(two, field)).tobytes()
        ), field


def test_the_observation_is_left_as_it_was(name, robot):
    observation = observation_for(name, robot)
    images = {k: f.image.copy() for k, f in observation.images.items()}
    T = observation.state.T_base_ee.copy()
    make_policy(name, robot).infer(observation)
    np.testing.assert_array_equal(observation.state.T_base_ee, T)
    for key, image in images.items():
        np.testing.assert_array_equal(observation.images[key].image, image)


@pytest.mark.parametrize('count', [1, 3])
def test_a_committed_prefix_stands_at_the_start_of_the_chunk(name, robot, count):
    if name == 'scripted':
        pytest.skip('the expert plans from the measured pose and takes no prefix')
    policy, observation = make_policy(name, robot), observation_for(name, robot)
    T0 = observation.state.T_base_ee
    turn = geometry.quat_exp([0.0, 0.0, 0.02])
    T = np.stack([T0 @ geometry.pose([0.005 * (i + 1), 0, 0], turn) for i in range(count)])
    prefix = ChunkPrefix(T_base_ee=T, gripper=np.ones(count))
    chunk = policy.infer(observation, prefix)
    planned = geometry.pose(chunk.p_base_ee[:count], chunk.q_base_ee[:count])
    np.testing.assert_allclose(planned, T, atol=TOLERANCE.get(name, 1e-9))
    np.testing.assert_array_equal(chunk.gripper[:count], 1.0)
