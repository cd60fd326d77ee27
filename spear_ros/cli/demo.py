"""``spear demo``: a simulated robot follows instructions through real ROS 2 nodes."""

import argparse
import importlib.util
from pathlib import Path

from spear_ros.core.errors import UserError
from spear_ros.core.resources import share_file

POLICIES = ('default', 'scripted', 'spear1', 'hold')
BUNDLED = 'models/spear_tiny'


def add_parser(subparsers: 'argparse._SubParsersAction[argparse.ArgumentParser]') -> None:
    """Add this command."""
    parser = subparsers.add_parser('demo', help='simulated robot, real ROS 2, four instructions')
    parser.add_argument('--robot', choices=('franka', 'widowx'), default='widowx')
    parser.add_argument(
        '--policy',
        choices=POLICIES,
        default='default',
        help='default: the bundled checkpoint; while there is none, the scripted expert and then '
        'SPEAR-1 with untrained weights',
    )
    parser.add_argument('--checkpoint', default='', help='checkpoint folder for --policy spear1')
    parser.add_argument('--episodes', type=int, default=4, help='instructions per policy')
    parser.add_argument('--seconds', type=float, default=0.0, help='time limit of an instruction')
    parser.add_argument('--out', type=Path, default=Path('out/demo'))
    parser.add_argument('--no-bag', action='store_true', help='do not record a bag')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo; the exit code judges the health of the system."""
    if importlib.util.find_spec('rclpy') is None:
        raise UserError(
            'rclpy is not installed in this Python; run "make demo", or source ROS 2 Jazzy.'
        )
    if importlib.util.find_spec('mujoco') is None:
        raise UserError('mujoco is not installed; install spear_ros with the extra "sim".')
    from spear_ros.ros.demo import DemoOptions, run_demo

    options = DemoOptions(
        robot=args.robot,
        runs=tuple(_runs(args)),
        out=args.out,
        episodes=args.episodes,
        record=not args.no_bag and importlib.util.find_spec('rosbags') is not None,
    )
    return run_demo(options, lambda text: print(text, flush=True))


def _runs(args: argparse.Namespace) -> 'list':  # type: ignore[type-arg]
    from spear_ros.ros.demo import DemoRun

    limit = {'episode_s': args.seconds} if args.seconds > 0 else {}
    if args.policy == 'spear1' or args.checkpoint:
        if args.checkpoint:
            return [DemoRun(policy='spear1', label='SPEAR-1', checkpoint=args.checkpoint, **limit)]
        return [_bundled(limit) or _untrained(limit)]
    if args.policy != 'default':
        return [DemoRun(policy=args.policy, label=args.policy, **limit)]
    bundled = _bundled(limit)
    if bundled is not None:
        return [bundled]
    runs = [DemoRun(policy='scripted', label='scripted expert', **limit)]
    if importlib.util.find_spec('torch') is None:
        print('torch is not installed: showing the scripted policy only.')
        return runs
    print(
        'No trained checkpoint is bundled yet: first the scripted expert (which sees the true '
        'object poses),\nthen SPEAR-1 with UNTRAINED weights, whose motion means nothing.'
    )
    return [*runs, _untrained(limit)]


def _bundled(limit: dict[str, float]) -> 'object | None':
    from spear_ros.ros.demo import DemoRun

    try:
        folder = share_file(BUNDLED)
    except UserError:
        return None
    if not (folder / 'model.safetensors').is_file():
        return None
    return DemoRun(policy='spear1', label='SPEAR-1 tiny', checkpoint=str(folder), **limit)


def _untrained(limit: dict[str, float]) -> 'object':
    from spear_ros.ros.demo import DemoRun

    return DemoRun(
        policy='spear1',
        label='SPEAR-1 (untrained)',
        untrained='spear1_debug',
        **{'episode_s': 8.0, **limit},
    )
