"""``spear evaluate``: success rates of a policy on the simulated tasks, in lockstep."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from spear_ros.cli.policy_options import add_option_argument, read_option_pairs
from spear_ros.core.errors import UserError

if TYPE_CHECKING:
    from spear_ros.evaluation.results import EpisodeResult


def add_parser(subparsers: 'argparse._SubParsersAction[argparse.ArgumentParser]') -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        'evaluate', help='success rates of a policy on the simulated tasks, in lockstep'
    )
    parser.add_argument('--policy', default='scripted', help='scripted, spear1 or hold')
    parser.add_argument('--checkpoint', type=Path, help='folder of the checkpoint (spear1)')
    parser.add_argument('--robot', default='fr3', help='franka, widowx, fr3, panda, wx250s, ...')
    parser.add_argument('--gripper', help="default: the robot family's own")
    parser.add_argument('--family', default='touch,push,pick,put', help='comma-separated families')
    parser.add_argument('--episodes', type=int, default=20, help='per family')
    parser.add_argument('--seed', type=int, help='first scene (default: first held-out seed)')
    add_option_argument(parser)
    parser.add_argument('--policy-seed', type=int, default=0, help="seed of the policy's noise")
    parser.add_argument(
        '--variant', default='standard', help='standard, held_out_combinations, shifted_camera'
    )
    parser.add_argument('--swap', action='store_true', help='ask for another object of the scene')
    parser.add_argument('--latency', type=float, default=0.1, help='chunk latency in s')
    parser.add_argument('--limit', type=float, default=25.0, help='simulated seconds per episode')
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument('--out', type=Path, help='folder for results.json and sheet.png')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Roll out and report; 0 whatever the success rate is."""
    from spear_ros.cli.demonstrations import ROBOTS
    from spear_ros.evaluation.report import table
    from spear_ros.evaluation.results import summarize
    from spear_ros.evaluation.rollouts import RolloutConfig, roll_out
    from spear_ros.policies.registry import create_policy
    from spear_ros.robots.registry import get_robot
    from spear_ros.runtime.safety import load_limits
    from spear_ros.simulation.grippers import get_gripper
    from spear_ros.simulation.tasks import HELD_OUT_SEEDS
    from spear_ros.simulation.world import World

    name = ROBOTS.get(args.robot, args.robot)
    gripper = get_gripper(get_robot(name), args.gripper).name
    robot = get_robot(name, gripper)
    config = RolloutConfig(
        families=tuple(f.strip() for f in args.family.split(',') if f.strip()),
        episodes=args.episodes,
        first_seed=HELD_OUT_SEEDS.start if args.seed is None else args.seed,
        variant=args.variant,
        latency_s=args.latency,
        limit_s=args.limit,
        swap=args.swap,
        frames=args.out is not None,
    )
    policy = create_policy(
        args.policy,
        robot=robot,
        checkpoint=args.checkpoint,
        seed=args.policy_seed,
        device=args.device,
        options=read_option_pairs(args.option)
        | ({'gripper': gripper} if args.policy == 'scripted' else {}),
    )
    world = World(robot, gripper)
    progress = _Progress(len(config.families) * config.episodes)
    try:
        results = roll_out(world, policy, load_limits(robot), config, progress)
    finally:
        policy.close()
        world.close()
    print(f'policy {args.policy}, robot {robot.name} with {gripper}, variant {args.variant}')
    print(table(summarize(results)))
    if args.out is not None:
        _write(args, results)
    return 0


class _Progress:
    """One line on stderr per episode."""

    def __init__(self, total: int) -> None:
        self._count, self._total = 0, total

    def __call__(self, result: 'EpisodeResult') -> None:
        """Say what came out."""
        self._count += 1
        reason = f' ({result.reason})' if result.reason else ''
        text = f'{self._count}/{self._total} {result.instruction}: {result.outcome}{reason}'
        print(text, file=sys.stderr)


def _write(args: argparse.Namespace, results: 'list[EpisodeResult]') -> None:
    """Write the files of ``--out``."""
    from spear_ros.evaluation.report import write_contact_sheet, write_json

    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    settings.pop('run', None)
    try:
        write_json(args.out / 'results.json', results, settings)
        write_contact_sheet(args.out / 'sheet.png', results)
    except OSError as error:
        raise UserError(
            f'--out {args.out}: cannot write ({error.strerror}); choose another folder.'
        ) from None
    print(f'written: {args.out}/results.json, {args.out}/sheet.png')
