"""``spear preflight``: check streams, pictures, gripper and a +x jog before the first episode.

Starts the robot side without a policy (the executor, and the simulated robot with ``--sim``), so no
other executor may be running. Nothing moves before the question is answered with yes.
"""

import argparse
import dataclasses
import importlib.util
import sys
from pathlib import Path

from spear_ros.core.errors import UserError


def add_parser(subparsers: 'argparse._SubParsersAction[argparse.ArgumentParser]') -> None:
    """Add this command."""
    parser = subparsers.add_parser('preflight', help='check a set-up before the first episode')
    parser.add_argument('--robot', default='franka', help='name in config/robots')
    parser.add_argument('--robot-config', default='', help='path of a robot YAML')
    parser.add_argument('--gripper', default='', help='gripper instead of the one in the file')
    parser.add_argument('--sim', action='store_true', help='start and check the simulated robot')
    parser.add_argument('--no-jog', action='store_true', help='check only what needs no motion')
    parser.add_argument('--yes', action='store_true', help='move without asking')
    parser.add_argument(
        '--speed-scale', type=float, default=0.1, help='0.05 to 1; the jogs are slow anyway'
    )
    parser.add_argument(
        '--reference', type=Path, help='folder with external.* and wrist.* from the training data'
    )
    parser.add_argument('--out', type=Path, default=Path('out/preflight'))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the checks; 0 when none failed."""
    if importlib.util.find_spec('rclpy') is None:
        raise UserError('rclpy is not installed in this Python; source ROS 2 Jazzy first.')
    from spear_ros.robots.registry import get_robot
    from spear_ros.ros.bringup import BringupOptions, processes
    from spear_ros.ros.config import WiringParameters, robot_config
    from spear_ros.ros.operator_client import OperatorClient
    from spear_ros.ros.preflight import Preflight
    from spear_ros.ros.process_group import ProcessGroup

    options = BringupOptions(
        robot=args.robot,
        robot_config=args.robot_config,
        gripper=args.gripper,
        sim=args.sim,
        speed_scale=args.speed_scale,
    )
    config = robot_config(
        WiringParameters(
            robot=args.robot,
            robot_config=args.robot_config,
            gripper=args.gripper,
            simulated=args.sim,
        )
    )
    spec = get_robot(config.model, config.gripper)
    specs = [s for s in processes(options) if s.executable in ('sim_robot_node', 'executor_node')]
    with ProcessGroup(args.out / 'logs') as group:
        client = OperatorClient(name='spear_preflight')
        try:
            _refuse_company(client)
            group.start([dataclasses.replace(s) for s in specs])
            preflight = Preflight(client, config, spec, _say)
            client.wait_for('executor_node', lambda: client.executor_status is not None, 20.0)
            preflight.check_streams()
            preflight.save_pictures(args.out / 'cameras.png', args.reference)
            if not args.no_jog and not preflight.failed and _agreed(args):
                _jog(preflight)
        finally:
            client.close()
    return 1 if preflight.failed else 0


def _refuse_company(client: 'object') -> None:
    from spear_ros.ros.operator_client import OperatorClient

    assert isinstance(client, OperatorClient)
    try:
        client.wait_for('company', lambda: client.executor_status is not None, 3.0)
    except UserError:
        return
    raise UserError('an executor_node is running already: stop the system, then run preflight.')


def _jog(preflight: 'object') -> None:
    from spear_ros.ros.preflight import Preflight

    assert isinstance(preflight, Preflight)
    preflight.arm()
    try:
        preflight.jog_gripper()
        preflight.jog_x()
    finally:
        preflight.disarm()


def _agreed(args: argparse.Namespace) -> bool:
    if args.yes or args.sim:
        return True
    if not sys.stdin.isatty():
        print('no terminal to ask on: the jogs are left out; use --yes to move without asking.')
        return False
    answer = input(
        'The gripper will close and open, then the arm moves 3 cm along +x and back, slowly. '
        'Keep the stop at hand. Go on? [y/N] '
    )
    return answer.strip().lower() in ('y', 'yes')


def _say(check: 'object') -> None:
    from spear_ros.ros.preflight import Check

    assert isinstance(check, Check)
    mark = {True: 'ok  ', False: 'FAIL', None: 'look'}[check.ok]
    print(f'{mark}  {check.name:<16} {check.text}', flush=True)
