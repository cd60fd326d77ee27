import dataclasses

import numpy as np
import pytest

from spear_ros.core.errors import UserError
from spear_ros.policies.registry import create_policy
from spear_ros.robots.examples import make_example_observation
from spear_ros.robots.registry import get_robot


def table(robot):
    x = 0.5 if robot.family == 'franka' else 0.27
    objects = {}
    for name, y in (('red_cube', 0.1), ('blue_plate', -0.1)):
        T = np.eye(4)
        T[:3, 3] = x, y, 0.02
        objects[name] = T
    return objects


def observation(robot, instruction, **changes):
    example = make_example_observation(robot.name)
    return dataclasses.replace(
        example, instruction=instruction, **{'privileged': table(robot)} | changes
    )


@pytest.mark.parametrize('name', ['fr3', 'wx250s'])
@pytest.mark.parametrize(
    'instruction',
    ['touch the red cube', 'push the red cube left', 'pick up the red cube',
     'put the red cube on the blue plate'],
)  # fmt: skip
def test_every_family_gives_a_chunk_towards_the_object(name, instruction):
    robot = get_robot(name)
    policy = create_policy('scripted', robot=robot)
    seen = observation(robot, instruction)
    chunk = policy.infer(seen)
    spec = policy.describe().spec
    assert chunk.p_base_ee.shape == (spec.horizon, 3)
    np.testing.assert_allclose(np.linalg.norm(chunk.q_base_ee, axis=1), 1)
    assert chunk.t_obs_ns == seen.t_obs_ns
    np.testing.assert_allclose(chunk.anchor_p, seen.state.T_base_ee[:3, 3])
    goal = seen.privileged['red_cube'][:2, 3]
    before = np.linalg.norm(chunk.anchor_p[:2] - goal)
    assert np.linalg.norm(chunk.p_base_ee[-1][:2] - goal) < before


def test_it_says_what_it_needs():
    robot = get_robot('fr3')
    policy = create_policy('scripted', robot=robot)
    assert policy.describe().privileged
    assert not policy.describe().cameras
    with pytest.raises(UserError, match='object poses'):
        policy.infer(observation(robot, 'touch the red cube', privileged={}))
    with pytest.raises(UserError, match='green ball'):
        policy.infer(observation(robot, 'touch the green ball'))
    with pytest.raises(UserError, match='none of'):
        policy.infer(observation(robot, 'dance'))


@pytest.mark.parametrize(
    ('options', 'named'),
    [({'speed': 3}, 'speed = 3'), ({'gripper': 'widowx'}, 'widowx'), ({'x': 1}, '"x"')],
)
def test_bad_options_are_named(options, named):
    with pytest.raises(UserError, match=named):
        create_policy('scripted', robot=get_robot('fr3'), options=options)


def test_the_speed_can_be_chosen():
    robot = get_robot('fr3')
    seen = observation(robot, 'touch the red cube')
    reach = [
        np.linalg.norm(
            create_policy('scripted', robot=robot, options={'speed': speed})
            .infer(seen)
            .p_base_ee[0]
            - seen.state.T_base_ee[:3, 3]
        )
        for speed in (0.1, 0.5)
    ]
    assert reach[0] < 0.3 * reach[1]
