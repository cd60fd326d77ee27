"""``spear demonstrations``: episodes of the simulator's expert as training data, also disturbed."""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.types import ImageArray

ROBOTS = {'franka': 'fr3', 'widowx': 'wx250s'}


def add_parser(subparsers: 'argparse._SubParsersAction[argparse.ArgumentParser]') -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        'demonstrations',
        help='episodes of the expert in the simulator as shards of training data',
        description='A killed run goes on where it was; several processes share by --part.',
    )
    parser.add_argument('--robot', default='franka', help='franka, widowx, fr3, panda, ...')
    parser.add_argument('--gripper', help="default: the robot family's own")
    parser.add_argument('--families', default='touch,push,pick,put', help='comma-separated')
    parser.add_argument('--seeds', default='0:500', help='START:STOP, scenes per family')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--part', default='0/1', help='I/N: share I (from 0) of N processes')
    parser.add_argument('--shard-mb', type=int, default=32)
    parser.add_argument('--clean', type=float, default=0.3, help='share without disturbance')
    parser.add_argument('--relabel', type=float, default=0.5, help='further instructions a sample')
    parser.add_argument(
        '--imagined', type=float, default=0.0, help='further tables a picture, same robot'
    )
    parser.add_argument(
        '--close', type=float, default=0.0,
        help='share of both that is about an object close to the tool',
    )  # fmt: skip
    parser.add_argument(
        '--moments', type=float, default=0.0,
        help='share of the further tables that show a moment of the task at hand',
    )  # fmt: skip
    parser.add_argument('--external-size', default='224x168', metavar='WxH')
    parser.add_argument('--wrist-size', default='112x112', metavar='WxH')
    parser.add_argument('--jpeg-quality', type=int, default=95)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Collect; 1 where not one sample came out."""
    from spear_ros.data.shard_writer import ShardWriter
    from spear_ros.evaluation.demonstrations import check_seeds, demonstration_card, summary
    from spear_ros.evaluation.disturbance import DemonstrationSettings

    settings = DemonstrationSettings(
        families=tuple(f.strip() for f in args.families.split(',') if f.strip()),
        clean=args.clean,
        relabel=args.relabel,
        imagined=args.imagined,
        close=args.close,
        moments=args.moments,
        external_size=size(args.external_size),
        wrist_size=size(args.wrist_size),
        jpeg_quality=args.jpeg_quality,
    )
    seeds = seed_range(args.seeds)
    check_seeds(seeds)
    part = parse_part(args.part)
    demonstrator, robot, spec = _demonstrator(args, settings)
    card = demonstration_card(spec, settings, f'sim_{robot.name}')
    todo = [(family, seed) for seed in seeds for family in settings.families][part[0] :: part[1]]
    outcomes: Counter[str] = Counter()
    samples, started = 0, time.perf_counter()
    with ShardWriter(args.out, card, part=part, shard_mb=args.shard_mb) as writer:
        for number, (family, seed) in enumerate(todo):
            key = f'{robot.name}-{family}-{seed:07d}'
            if key in writer.done_keys:
                continue
            episode = demonstrator.episode(family, seed)
            samples += writer.add_episode(key, episode.samples)
            outcomes[episode.outcome] += 1
            if sum(outcomes.values()) % 50 == 0:
                rate = samples / (time.perf_counter() - started)
                print(f'{number + 1}/{len(todo)}: {rate:.1f} samples/s', file=sys.stderr)
    elapsed = time.perf_counter() - started
    print(
        f'{args.out}: {samples} samples of {sum(outcomes.values())} episodes in {elapsed:.0f} s '
        f'({samples / max(elapsed, 1e-9):.1f} samples/s), outcomes {summary(outcomes)}'
    )
    return 0 if samples or not outcomes else 1


def _demonstrator(args: argparse.Namespace, settings: Any) -> tuple[Any, Any, Any]:
    from spear_ros.evaluation.demonstrations import Demonstrator
    from spear_ros.processing.embodiments import default_action_specs
    from spear_ros.robots import kinematics
    from spear_ros.robots.registry import get_robot
    from spear_ros.runtime.safety import load_limits
    from spear_ros.simulation.expert import Expert
    from spear_ros.simulation.grippers import get_gripper, with_home
    from spear_ros.simulation.world import World

    name = ROBOTS.get(args.robot, args.robot)
    gripper = get_gripper(get_robot(name), args.gripper)
    robot = with_home(get_robot(name, gripper.name), gripper)
    home = kinematics.forward(robot, robot.q_home_rad)
    spec = default_action_specs()[robot.embodiment]
    world = World(robot, gripper.name)
    expert = Expert(robot, gripper, home, settings.speed)
    limits = load_limits(robot)
    return Demonstrator(world, expert, limits, spec, settings, network_fit), robot, spec


def network_fit(image: ImageArray, size: tuple[int, int]) -> ImageArray:
    """The network's own resize, rounded to bytes."""
    import torch

    from spear_ros.processing.images import ImageSize, fit_image

    fitted = fit_image(torch.from_numpy(np.ascontiguousarray(image)), ImageSize(*size))
    return (fitted * 255.0).round().byte().movedim(0, -1).contiguous().numpy()


def size(text: str) -> tuple[int, int]:
    """Rows and columns from ``WxH``.

    Raises:
        UserError: not of that form.
    """
    try:
        width, height = (int(part) for part in text.split('x'))
    except ValueError:
        raise UserError(f'picture size "{text}" is not of the form 224x168.') from None
    return height, width


def seed_range(text: str) -> range:
    """A range from ``START:STOP``.

    Raises:
        UserError: not of that form, or empty.
    """
    try:
        start, stop = (int(part) for part in text.split(':'))
    except ValueError:
        raise UserError(f'--seeds {text} is not of the form 0:500.') from None
    if not 0 <= start < stop:
        raise UserError(f'--seeds {text}: the stop must lie above the start.')
    return range(start, stop)


def parse_part(text: str) -> tuple[int, int]:
    """Index and count from ``I/N``.

    Raises:
        UserError: not of that form.
    """
    try:
        index, count = (int(part) for part in text.split('/'))
    except ValueError:
        raise UserError(f'--part {text} is not of the form 0/8.') from None
    if not 0 <= index < count:
        raise UserError(f'--part {text}: the index runs from 0 to {count - 1}.')
    return index, count
