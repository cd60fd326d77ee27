"""``spear robot``: what an operator does by service call, where there is no ros2 command.

Stop comes first: ``spear robot stop`` needs nothing but the executor.
"""

import argparse
import importlib.util
import os

from spear_ros.core.errors import UserError

TRIGGERS = {
    'arm': 'check everything and take control at the measured pose',
    'disarm': 'brake, then send nothing',
    'stop': 'brake at once and latch FAULT',
    'reset': 'leave FAULT towards DISARMED; never moves the robot',
    'home': 'move slowly to the start pose (from ARMED or HOLD)',
    'recover': 'bring the driver back after a reflex (in FAULT)',
}


def add_parser(subparsers: 'argparse._SubParsersAction[argparse.ArgumentParser]') -> None:
    """Add this command."""
    parser = subparsers.add_parser('robot', help='arm, stop, instruct ... a running system')
    actions = parser.add_subparsers(dest='action', required=True, metavar='ACTION')
    for name, text in TRIGGERS.items():
        actions.add_parser(name, help=text)
    instruct = actions.add_parser('instruct', help='give the policy an instruction')
    instruct.add_argument('text')
    scene = actions.add_parser('scene', help="rearrange the simulator's objects")
    scene.add_argument('seed', type=int)
    scene.add_argument('--family', default='', help='touch, push, pick, put')
    actions.add_parser('status', help='print the newest status of both nodes')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Call the service and print its answer; 1 when it was refused."""
    if importlib.util.find_spec('rclpy') is None:
        raise UserError('rclpy is not installed in this Python; source ROS 2 Jazzy first.')
    from spear_ros.ros.bringup import transport_environment
    from spear_ros.ros.operator_client import OperatorClient

    # A participant with another transport than the nodes' makes them pause while it joins.
    os.environ.update(transport_environment())
    client = OperatorClient(name='spear_robot')
    try:
        success, text = _act(client, args)
    finally:
        client.close()
    print(text)
    return 0 if success else 1


def _act(client: 'object', args: argparse.Namespace) -> tuple[bool, str]:
    from spear_ros.ros.operator_client import OperatorClient

    assert isinstance(client, OperatorClient)
    if args.action in TRIGGERS:
        return client.trigger(args.action)
    if args.action == 'instruct':
        answer = client.set_instruction(args.text)
        return answer.success, answer.message
    if args.action == 'scene':
        return True, f'task: {client.reset_scene(args.seed, args.family)}'
    try:
        client.wait_for(
            'both nodes',
            lambda: client.executor_status is not None and client.policy_status is not None,
            5.0,
        )
    except UserError:
        return False, client.describe()
    return True, client.describe()
