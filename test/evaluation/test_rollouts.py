import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from spear_ros.core.errors import UserError
from spear_ros.core.reasons import Reason
from spear_ros.robots.registry import get_robot

if not all(importlib.util.find_spec(name) for name in ('mujoco', 'rtbdata')):
    pytest.skip('needs mujoco and rtb-data', allow_module_level=True)

from spear_ros.evaluation.lockstep import Lockstep
from spear_ros.evaluation.rollouts import RolloutConfig, roll_out, run_episode, swapped
from spear_ros.policies.registry import create_policy
from spear_ros.runtime.safety import load_limits
from spear_ros.runtime.state_machine import State
from spear_ros.simulation.tasks import VALIDATION_SEEDS
from spear_ros.simulation.world import World

SEED = VALIDATION_SEEDS.start


class Bent:
    """A policy that spoils the chunks of the expert from the n-th on."""

    def __init__(self, policy, spoil, after=3):
        self.policy, self.spoil, self.left = policy, spoil, after
        self.seen = []

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def infer(self, observation, prefix=None):
        self.seen.append(observation)
        chunk = self.policy.infer(observation)
        self.left -= 1
        return self.spoil(chunk) if self.left < 0 else chunk


def build(name, gripper=None, wrap=lambda policy: policy, policy='scripted'):
    robot = get_robot(name, gripper)
    world = World(robot, gripper)
    options = {'gripper': gripper} if policy == 'scripted' and gripper else {}
    chosen = create_policy(policy, robot=robot, options=options)
    return world, wrap(chosen), load_limits(robot)


class Patient(Bent):
    """The expert, followed for three knots of each chunk."""

    def describe(self):
        return replace(self.policy.describe(), execute_steps=3)


def test_a_policy_may_be_followed_for_several_knots_before_it_is_asked_again():
    world, policy, limits = build('fr3', wrap=lambda p: Patient(p, lambda chunk: chunk))
    config = RolloutConfig(families=('touch', 'pick'), episodes=1, first_seed=SEED)
    for result in roll_out(world, policy, limits, config):
        assert result.success, result
        assert not result.holds
        assert result.chunks == pytest.approx(result.duration_s * 5 / 3, abs=2)


@pytest.mark.parametrize(
    ('name', 'gripper'), [('fr3', 'franka_hand'), ('fr3', 'robotiq_2f85'), ('wx250s', 'widowx')]
)
def test_the_expert_does_every_family_through_player_and_gate(name, gripper):
    world, policy, limits = build(name, gripper)
    results = roll_out(world, policy, limits, RolloutConfig(episodes=1, first_seed=SEED))
    for result in results:
        assert result.success, result
        assert not result.rejected
        assert not result.holds
        assert result.first_touched == result.target
        assert result.chunks == pytest.approx(result.duration_s * 5, abs=2)


def test_with_a_third_of_a_second_of_latency_the_expert_still_succeeds():
    world, policy, limits = build('wx250s')
    config = RolloutConfig(families=('pick',), episodes=2, first_seed=SEED, latency_s=0.3)
    assert all(r.success for r in roll_out(world, policy, limits, config))


def test_the_same_seed_gives_the_same_episode():
    durations = []
    for _ in range(2):
        world, policy, limits = build('wx250s')
        config = RolloutConfig(families=('put',), episodes=1, first_seed=SEED)
        (result,) = roll_out(world, policy, limits, config)
        durations.append((result.duration_s, result.chunks, world.data.qpos.tolist()))
    assert durations[0] == durations[1]


def test_a_policy_that_does_nothing_times_out():
    world, policy, limits = build('wx250s', policy='hold')
    config = RolloutConfig(families=('touch',), episodes=1, first_seed=SEED, limit_s=2.0)
    (result,) = roll_out(world, policy, limits, config)
    assert result.outcome == 'timeout'
    assert result.first_touched == ''
    assert result.duration_s == pytest.approx(2.0, abs=0.02)


def test_a_policy_that_goes_to_another_object_is_told_from_one_that_is_lost():
    world, policy, limits = build('wx250s')
    system = Lockstep(world, policy, limits)
    config = RolloutConfig(families=('touch',), limit_s=6.0)
    system.disarm()
    scene = world.reset_scene(SEED, 'touch')
    assert not system.arm_and_home()
    other = swapped(scene, SEED)
    assert other.target != scene.task.target
    system.set_instruction(f'touch the {other.target.replace("_", " ")}')
    system.run(6.0)
    assert world.first_touched() == other.target
    assert not world.task_succeeded()
    assert run_episode(system, 'touch', SEED, config).success  # and the next episode is fine


def test_an_arm_that_was_bent_out_of_its_limits_is_put_right_before_the_next_episode():
    world, policy, limits = build('wx250s')
    system = Lockstep(world, policy, limits)
    bent = np.array(world.robot.q_home_rad)
    bent[0] = world.robot.joints[0].upper_rad + 0.05
    world.reset_robot(bent)
    assert 'not armed' in system.arm_and_home()
    config = RolloutConfig(families=('touch',), limit_s=6.0)
    assert run_episode(system, 'touch', SEED, config).success


def test_a_widowx_that_pushes_too_hard_is_stopped_as_its_driver_would_and_starts_again():
    world, policy, limits = build('wx250s')
    system = Lockstep(world, policy, limits)
    config = RolloutConfig(families=('touch',), limit_s=6.0)
    scene = world.reset_scene(SEED, 'touch')
    assert not system.arm_and_home()
    system.set_instruction(scene.instruction)
    system.run(0.3)
    allowed = system._effort.limits_ma
    system._effort.limits_ma = (*allowed[:1], 1.0, *allowed[2:])  # the weight of the arm is more
    system.run(0.5)
    snapshot = system.executor.snapshot()
    assert (snapshot.state, snapshot.reason) == (State.FAULT, Reason.MOTOR_ERROR)
    assert 'shoulder pushes' in snapshot.text
    system._effort.limits_ma = allowed
    assert run_episode(system, 'touch', SEED, config).success


def pressing(chunk):
    """Straight down for ever, as a policy goes that has lost its way."""
    steps = np.arange(1, len(chunk.p_base_ee) + 1)[:, None]
    chunk.p_base_ee[:] = chunk.anchor_p + steps * np.array([0.0, 0.0, -0.015])
    chunk.p_base_ee[:, 2] = np.maximum(chunk.p_base_ee[:, 2], -0.008)  # where the workspace ends
    chunk.q_base_ee[:] = chunk.anchor_q
    return chunk


@pytest.mark.parametrize('gives_way', [True, False])
def test_a_policy_that_presses_on_the_table_stops_an_arm_only_if_it_does_not_give_way(gives_way):
    world, policy, limits = build('wx250s')
    system = Lockstep(world, Bent(policy, pressing, after=0), limits, gives_way=gives_way)
    scene = world.reset_scene(SEED, 'touch')
    assert not system.arm_and_home()
    system.set_instruction(scene.instruction)
    told = ''
    for _ in range(500):
        system.run(0.01)
        told = told or system.executor.snapshot().progress
    state = system.executor.snapshot()
    if gives_way:
        assert state.state == State.RUNNING, state.text
        assert 'pushes with' in told
    else:
        assert (state.state, state.reason) == (State.FAULT, Reason.MOTOR_ERROR)


def test_swapped_instructions_are_followed_by_the_expert():
    world, policy, limits = build('wx250s')
    config = RolloutConfig(families=('pick', 'push'), episodes=2, first_seed=SEED, swap=True)
    for result in roll_out(world, policy, limits, config):
        assert result.first_touched == result.target


def test_chunks_that_leap_are_rejected_and_the_robot_stops():
    def leap(chunk):
        chunk.p_base_ee[-1] += 0.5
        return chunk

    world, policy, limits = build('fr3', wrap=lambda p: Bent(p, leap))
    config = RolloutConfig(families=('touch',), episodes=2, first_seed=SEED)
    first, second = roll_out(world, policy, limits, config)
    assert first.outcome == 'stopped'
    assert first.rejected
    assert 'REJECTS' in first.reason
    assert second.outcome == 'stopped'  # armed anew after the fault, then stopped again
    assert 0 < second.chunks < 10


def test_a_policy_without_cameras_runs_without_rendering_and_one_with_gets_pictures():
    world, policy, limits = build('wx250s', wrap=lambda p: Bent(p, lambda c: c))
    config = RolloutConfig(families=('touch',), episodes=1, first_seed=SEED, limit_s=1.0)
    roll_out(world, policy, limits, config)
    assert policy.seen[-1].images['external'].image.size < 100
    assert policy.seen[-1].privileged
    world, policy, limits = build('wx250s', policy='hold', wrap=lambda p: Bent(p, lambda c: c))
    roll_out(world, policy, limits, config)
    assert policy.seen[-1].images['external'].image.shape == (480, 640, 3)
    assert not policy.seen[-1].privileged
    np.testing.assert_allclose(np.diff([o.t_obs_ns for o in policy.seen]), 0.2e9)
    world.close()


def test_between_episodes_the_robot_is_disarmed_and_drives_home():
    world, policy, limits = build('wx250s')
    system = Lockstep(world, policy, limits)
    config = RolloutConfig(families=('pick',))
    run_episode(system, 'pick', SEED, config)
    assert system.executor.snapshot().state == State.DISARMED
    away = np.abs(world.q_rad - world.robot.q_home_rad).max()
    assert away > 0.05
    assert not system.arm_and_home()
    np.testing.assert_allclose(world.q_rad, world.robot.q_home_rad, atol=0.03)


@pytest.mark.parametrize(
    ('field', 'value'),
    [('episodes', 0), ('limit_s', 0.0), ('first_seed', -3), ('families', ('juggle',))],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(UserError, match='juggle' if field == 'families' else field):
        RolloutConfig(**{field: value})


def test_a_latency_beyond_reason_is_refused():
    world, policy, limits = build('wx250s')
    with pytest.raises(UserError, match='latency_s = 2'):
        Lockstep(world, policy, limits, latency_s=2)
