"""models/spear_tiny: it is whole and small, and on both robots it goes where the words say."""

import importlib.util
import re

import numpy as np
import pytest

from spear_ros.core.resources import share_file
from spear_ros.robots.registry import get_robot

if not all(importlib.util.find_spec(name) for name in ('torch', 'mujoco', 'rtbdata')):
    pytest.skip('needs torch, mujoco and rtb-data', allow_module_level=True)

from spear_ros.cli.main import main
from spear_ros.core.errors import UserError
from spear_ros.core.types import EXTERNAL
from spear_ros.evaluation.lockstep import Lockstep
from spear_ros.evaluation.rollouts import swapped
from spear_ros.policies.registry import create_policy
from spear_ros.policies.spear1 import BUNDLED
from spear_ros.runtime.safety import load_limits
from spear_ros.simulation.tasks import VALIDATION_SEEDS, words
from spear_ros.simulation.world import World

FOLDER = share_file(BUNDLED)
SCENES, SECONDS = 5, 4.0


def test_it_is_whole_trained_and_small(capsys):
    assert main(['checkpoint', 'verify', str(FOLDER)]) == 0
    said = capsys.readouterr().out
    assert 'NOT TRAINED' not in said
    assert {'franka_droid', 'widowx_bridge'} <= set(re.findall(r'\w+', said))
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 16e6


@pytest.mark.parametrize('name', ['fr3', 'wx250s'])
def test_it_goes_to_the_object_that_is_named_and_to_another_when_that_is_named(name):
    robot = get_robot(name)
    world, policy = World(robot, None), create_policy('spear1', robot=robot)
    try:
        world.reset_scene(0)
        world.render(EXTERNAL)
    except UserError as error:
        pytest.skip(str(error))
    assert policy.describe().trained
    system = Lockstep(world, policy, load_limits(robot))
    right = 0
    for seed in range(VALIDATION_SEEDS.start, VALIDATION_SEEDS.start + SCENES):
        for other in (False, True):
            system.disarm()
            scene = world.reset_scene(seed, 'touch')
            task = swapped(scene, seed) if other else scene.task
            assert not system.arm_and_home()
            system.set_instruction(words(task))
            end = system.now_ns() + round(SECONDS * 1e9)
            closest = dict.fromkeys(scene.objects, np.inf)
            while system.now_ns() < end:
                system.step()
                tool = (world.T_base_ee @ world.gripper.T_ee_tcp)[:2, 3]
                for thing, T in world.object_poses().items():
                    closest[thing] = min(closest[thing], float(np.hypot(*(T[:2, 3] - tool))))
            right += min(closest, key=lambda thing: closest[thing]) == task.target
    policy.close()
    world.close()
    # 4 to 6 objects: by chance 2 of 10, and 6 or more in one of 150 runs.
    assert right >= 6


def test_its_fine_tuning_recipe_is_of_its_size():
    from spear_ros.checkpoints.spear1 import read_config
    from spear_ros.training.recipes import find_recipe

    recipe = find_recipe('vla', 'spear_tiny_finetune')
    assert recipe.model == read_config(FOLDER).model
    assert recipe.data.external_size == recipe.model.external_size
    assert recipe.data.wrist_size == recipe.model.wrist_size
