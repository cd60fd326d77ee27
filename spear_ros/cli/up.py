"""``spear up``: start the nodes in the foreground, where there is no ``ros2 launch``."""

import argparse
import dataclasses
import importlib.util
import time
from pathlib import Path

from spear_ros.core.errors import UserError


def add_parser(subparsers: 'argparse._SubParsersAction[argparse.ArgumentParser]') -> None:
    """Add this command; its options are those of the launch files."""
    from spear_ros.ros.bringup import option_help

    parser = subparsers.add_parser('up', help='start the nodes (as ros2 launch does)')
    for name, (default, text) in option_help().items():
        flag = '--' + name.replace('_', '-')
        if isinstance(default, bool):
            parser.add_argument(
                flag, default=default, action=argparse.BooleanOptionalAction, help=text
            )
        else:
            parser.add_argument(flag, default=default, type=type(default), help=text)
    parser.add_argument('--logs', type=Path, default=Path('out/logs'))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Start everything, wait for Ctrl-C or for the first process that ends."""
    if importlib.util.find_spec('rclpy') is None:
        raise UserError('rclpy is not installed in this Python; source ROS 2 Jazzy first.')
    from spear_ros.ros.bringup import BringupOptions, processes
    from spear_ros.ros.process_group import ProcessGroup

    names = [f.name for f in dataclasses.fields(BringupOptions)]
    options = BringupOptions(**{name: getattr(args, name) for name in names})
    with ProcessGroup(args.logs) as group:
        group.start(processes(options))
        print(f'running: {", ".join(group.alive())}; logs in {args.logs}; Ctrl-C stops them.')
        try:
            while not group.dead():
                time.sleep(0.2)
        except KeyboardInterrupt:
            print('stopping.')
            return 0
        # The others go on living until here on purpose: the executor has been holding the robot.
        for name, code in group.dead().items():
            print(f'{name} ended with code {code}:\n{group.log_tail(name)}')
    return 1
