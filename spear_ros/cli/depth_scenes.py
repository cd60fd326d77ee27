"""``spear depth-scenes``: random pictures of the simulator with exact depth."""

import argparse
import sys
import time
from pathlib import Path

from spear_ros.core.errors import UserError

PER_FILE = 200


def add_parser(subparsers: 'argparse._SubParsersAction[argparse.ArgumentParser]') -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        'depth-scenes',
        help='random pictures of the simulator with exact depth',
        description='Files that are there are not made again; several processes share by --part.',
    )
    parser.add_argument('--robot', default='franka', help='franka, widowx, fr3, panda, ...')
    parser.add_argument('--seeds', default='0:2000', help='START:STOP, one picture each')
    parser.add_argument('--size', default='224x168', metavar='WxH')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--part', default='0/1', help='I/N: share I (from 0) of N processes')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Render what is missing."""
    from spear_ros.cli.demonstrations import ROBOTS, parse_part, seed_range, size
    from spear_ros.data.depth_scenes import DepthPicture, write_scenes
    from spear_ros.robots.registry import get_robot
    from spear_ros.simulation.depth_views import DepthViewer
    from spear_ros.simulation.world import World

    seeds = seed_range(args.seeds)
    part = parse_part(args.part)
    world = World(get_robot(ROBOTS.get(args.robot, args.robot)))
    viewer = DepthViewer(world, size(args.size))
    blocks = list(range(seeds.start, seeds.stop, PER_FILE))[part[0] :: part[1]]
    made, started = 0, time.perf_counter()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for first in blocks:
            path = args.out / f'scenes-{world.robot.name}-{first:07d}.npz'
            if path.exists():
                continue
            block = range(first, min(first + PER_FILE, seeds.stop))
            write_scenes(path, [DepthPicture(*viewer.view(seed)) for seed in block])
            made += len(block)
            print(f'{path}: {made / (time.perf_counter() - started):.1f}/s', file=sys.stderr)
    except OSError as error:
        raise UserError(f'--out {args.out}: cannot write ({error.strerror}).') from None
    finally:
        viewer.close()
    elapsed = time.perf_counter() - started
    print(f'{args.out}: {made} pictures in {elapsed:.0f} s ({made / max(elapsed, 1e-9):.1f}/s)')
    return 0
