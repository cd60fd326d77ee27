"""``spear train vla|vlm|moge``: trains a network, with roll-outs in simulation as validation.

The same as ``python -m spear_ros.training.<kind>`` and with the same arguments, for one process or
under torchrun (``torchrun --nproc-per-node 8 -m spear_ros.cli.main train vla ...``), plus lockstep
roll-outs on the validation scenes after every export.
"""

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spear_ros.core.errors import UserError

KINDS = ('vla', 'vlm', 'moge')


def add_parser(subparsers: 'argparse._SubParsersAction[argparse.ArgumentParser]') -> None:
    """Add ``train`` with one sub-command per kind."""
    from spear_ros.training.entry import add_arguments

    parser = subparsers.add_parser('train', help='train SPEAR-1, SPEAR-VLM or a depth encoder')
    kinds = parser.add_subparsers(dest='kind', metavar='KIND', required=True)
    for kind in KINDS:
        own = kinds.add_parser(kind, help=f'train {kind}')
        add_arguments(own, kind)
        if kind == 'vla':
            own.add_argument(
                '--rollouts', type=int, default=0, help='validation episodes per family and robot'
            )
            own.add_argument(
                '--robots', default='', help='default: those of fr3 and wx250s in the data'
            )
            own.add_argument('--families', default='touch,push,pick,put')
            own.add_argument('--rollout-device', default='cpu')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train to the end or the next stop; 0 in both cases."""
    from spear_ros.training.entry import train

    episodes = getattr(args, 'rollouts', 0)
    if episodes < 0:
        raise UserError(f'--rollouts {episodes} must not be negative.')
    outcome = train(args.kind, args, lambda config: rollout_validation(args) if episodes else None)
    if outcome is not None:
        state = 'finished' if outcome.finished else 'stopped, the same command goes on'
        print(f'{args.out}: {state} at step {outcome.step} {outcome.checkpoint_id}'.rstrip())
    return 0


def rollout_validation(args: argparse.Namespace) -> Any:
    """A callable that rolls an exported checkpoint out on the validation scenes.

    Raises:
        UserError: unknown robot or family, before the training begins.
    """
    from spear_ros.robots.registry import get_robot
    from spear_ros.simulation.tasks import check_family

    robots = [r.strip() for r in args.robots.split(',') if r.strip()]
    families = tuple(f.strip() for f in args.families.split(',') if f.strip())
    for robot in robots:
        get_robot(robot)
    for family in families:
        check_family(family, 0)

    def validate(checkpoint: Path) -> Mapping[str, float]:
        figures: dict[str, float] = {}
        for robot in robots or robots_of(checkpoint):
            figures |= roll_out_checkpoint(
                checkpoint, robot, families, args.rollouts, args.rollout_device
            )
        return figures

    return validate


def robots_of(checkpoint: Path) -> list[str]:
    """The simulated robots that a checkpoint was trained on."""
    from spear_ros.checkpoints.spear1 import read_config
    from spear_ros.robots.registry import get_robot

    trained = read_config(checkpoint).embodiments
    return [name for name in ('fr3', 'wx250s') if get_robot(name).embodiment in trained]


def roll_out_checkpoint(
    checkpoint: Path, robot_name: str, families: tuple[str, ...], episodes: int, device: str
) -> dict[str, float]:
    """Success rates ``success/<robot>/<family>`` on the first validation scenes."""
    from spear_ros.evaluation.results import SUCCESS
    from spear_ros.evaluation.rollouts import RolloutConfig, roll_out
    from spear_ros.runtime.safety import load_limits
    from spear_ros.simulation.tasks import VALIDATION_SEEDS

    config = RolloutConfig(
        families=families, episodes=episodes, first_seed=VALIDATION_SEEDS.start, limit_s=20.0
    )
    with _policy_and_world(checkpoint, robot_name, device) as (policy, world, robot):
        results = roll_out(world, policy, load_limits(robot), config)
    figures = {}
    for family in families:
        mine = [r for r in results if r.family == family]
        share = sum(r.outcome == SUCCESS for r in mine) / len(mine)
        figures[f'success/{robot_name}/{family}'] = share
    return figures


@contextlib.contextmanager
def _policy_and_world(
    checkpoint: Path, robot_name: str, device: str
) -> Iterator[tuple[Any, Any, Any]]:
    from spear_ros.policies.registry import create_policy
    from spear_ros.robots.registry import get_robot
    from spear_ros.simulation.grippers import get_gripper
    from spear_ros.simulation.world import World

    gripper = get_gripper(get_robot(robot_name), None).name
    robot = get_robot(robot_name, gripper)
    policy = create_policy('spear1', robot=robot, checkpoint=checkpoint, device=device)
    world = World(robot, gripper)
    try:
        yield policy, world, robot
    finally:
        policy.close()
        world.close()
