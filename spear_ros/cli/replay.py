"""``spear replay BAG``: a recording through the live code and a policy, without ROS or a robot.

Writes ``chunks.jsonl``, ``report.json`` and ``report.png``. A damaged recording is used as far as
it goes; the exit status is then 2.
"""

import argparse
import sys
from pathlib import Path

from spear_ros.cli.policy_options import add_option_argument, read_option_pairs
from spear_ros.core.config import load_yaml
from spear_ros.core.errors import UserError
from spear_ros.data.bags import BagReader
from spear_ros.data.topic_map import TopicMap, load_topic_map
from spear_ros.evaluation.faults import FaultPlan
from spear_ros.evaluation.replay import (
    Replay,
    ReplayResult,
    ReplaySettings,
    check_policy,
    read_motion,
)
from spear_ros.evaluation.replay_report import build_report, write_outputs
from spear_ros.policies.base import Policy
from spear_ros.policies.recorded import MotionTrack, RecordedMotion
from spear_ros.policies.registry import create_policy, policy_module
from spear_ros.robots.registry import get_robot
from spear_ros.robots.spec import RobotSpec

_BAR = 30


def add_parser(subparsers: 'argparse._SubParsersAction[argparse.ArgumentParser]') -> None:
    """Add this command."""
    parser = subparsers.add_parser('replay', help='run a policy on a recording, offline')
    parser.add_argument('bag', type=Path, help='rosbag2 folder, .mcap, .db3 or ROS 1 .bag')
    parser.add_argument('--policy', required=True, help='spear1, recorded, hold, scripted')
    parser.add_argument('--map', required=True, help='MAP.yaml, or a name in config/replay')
    parser.add_argument('--checkpoint', type=Path, help='folder of the checkpoint')
    parser.add_argument(
        '--untrained', metavar='SIZE', help='spear1 with random weights, such as spear1_debug'
    )
    add_option_argument(parser)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument(
        '--latency-ms', type=float, default=0.0, help='fixed duration of an inference in bag time'
    )
    parser.add_argument('--faults', type=Path, help='YAML of faults to inject')
    parser.add_argument(
        '--commanded',
        action='store_true',
        help='recorded: follow the commands instead of the reached poses',
    )
    parser.add_argument('--limit', type=int, help='stop after this many grid points')
    parser.add_argument('--out', type=Path, help='folder for the results (out/replay/BAG-POLICY)')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Replay, write the results, print the figures."""
    policy_module(args.policy)
    topic_map = load_topic_map(args.map)
    robot = get_robot(topic_map.robot_name)
    settings = ReplaySettings(
        latency_s=args.latency_ms / 1e3,
        limit=args.limit,
        faults=load_yaml(args.faults, FaultPlan) if args.faults else FaultPlan(),
    )
    out = args.out or Path('out/replay') / f'{args.bag.resolve().stem}-{args.policy}'
    # The reference rotation of a Bridge pose comes with the policy, the motion of the policy
    # "recorded" comes with the recording: "hold" stands in for the first question.
    first = 'hold' if args.policy == 'recorded' else args.policy
    policy = _create(first, args, robot, None)
    with _open(args, topic_map, robot, policy) as reader:
        check_policy(policy, reader)
        motion = read_motion(reader)
        if args.policy == 'recorded':
            policy = _create('recorded', args, robot, motion)
        replay = Replay(reader, policy, settings)
        policy.warm_up()
        result = replay.run(_bar if sys.stderr.isatty() else None)
        track = motion.reached
        if args.commanded and motion.commanded is not None:
            track = motion.commanded
        report = build_report(
            result, track, policy.describe(), settings.latency_s, _context(args, reader)
        )
        _write(out, result, track, report, replay)
        policy.close()
        _print(report, out)
        _judge(result)
        reader.raise_damage()
    return 0


def _create(
    name: str, args: argparse.Namespace, robot: RobotSpec, motion: RecordedMotion | None
) -> Policy:
    options = read_option_pairs(args.option) if name == args.policy else {}
    if args.untrained and name == args.policy:
        options['untrained'] = args.untrained
    if motion is not None:
        options |= {'motion': motion, 'commanded': args.commanded}
    return create_policy(
        name,
        robot=robot,
        checkpoint=args.checkpoint if name == args.policy else None,
        seed=args.seed,
        device=args.device,
        options=options,
    )


def _open(
    args: argparse.Namespace, topic_map: TopicMap, robot: RobotSpec, policy: Policy
) -> BagReader:
    rotation = policy.describe().spec.reference_rotation
    return BagReader(args.bag, topic_map, robot, reference_rotation=rotation)


def _context(args: argparse.Namespace, reader: BagReader) -> dict[str, object]:
    return {
        'bag': str(args.bag),
        'map': str(args.map),
        'robot': reader.robot.name,
        'seed': args.seed,
        'device': args.device,
        'options': args.option,
        'bag_seconds': (reader.end_ns - reader.start_ns) / 1e9,
        'notes': reader.notes,
        'damage': reader.damage,
        'unreadable_messages': reader.unreadable,
    }


def _write(
    out: Path, result: ReplayResult, track: MotionTrack, report: dict, replay: Replay
) -> None:
    try:
        write_outputs(out, result, report)
        from spear_ros.evaluation.replay_plot import draw_report  # matplotlib: a second to import

        draw_report(out / 'report.png', result, track, report, replay.config)
    except OSError as error:
        raise UserError(f'{out}: cannot write the results ({error.strerror}).') from None


def _judge(result: ReplayResult) -> None:
    problem = result.first_problem()
    if not result.chunks:
        why = problem.text if problem is not None else 'the camera topic holds no usable image'
        raise UserError(f'not one chunk came out: {why}')


def _print(report: dict, out: Path) -> None:
    figures, latency = report['planned_against_recorded'], report['latency']
    print(f'policy {report["policy"]} ({report["checkpoint_id"]}), "{report["instruction"]}"')
    if not report['trained']:
        print('UNTRAINED WEIGHTS: the motion means nothing')
    print(f'{report["chunks"]} chunks at {report["grid_points"]} grid points')
    for reason, entry in report['problems'].items():
        print(f'  {entry["count"]} x {reason}: {entry["first"]}')
    if figures['knots']:
        print(
            f'planned against recorded over {figures["knots"]} knots: '
            f'at most {figures["max_position_m"]:.3g} m and {figures["max_rotation_rad"]:.3g} rad'
        )
    if latency['inference_ms']:
        times = latency['inference_ms']
        print(f'inference p50 {times["p50"]:.2f} ms, p99 {times["p99"]:.2f} ms')
    print(f'written: {out}/report.json report.png chunks.jsonl')


def _bar(done: int, total: int) -> None:
    """Draw a progress bar on a terminal, at most a hundred times."""
    if done != total and done % max(1, total // 100):
        return
    filled = _BAR * done // max(1, total)
    end = '\n' if done == total else ''
    bar = '#' * filled + '.' * (_BAR - filled)
    print(f'\r{bar} {done}/{total} messages', end=end, file=sys.stderr, flush=True)
