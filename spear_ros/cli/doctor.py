"""``spear doctor``: one table of what works on this machine, what is missing, and the mend."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from spear_ros.cli.doctor_machine import Check, machine_checks
from spear_ros.cli.doctor_ros import check_checkpoint, load_robot, ros_checks
from spear_ros.core.errors import UserError
from spear_ros.core.resources import share_file

BUNDLED = 'models/spear_tiny'
COLOURS = {'ok': '32', 'warn': '33', 'missing': '31'}


def add_parser(subparsers: 'argparse._SubParsersAction[argparse.ArgumentParser]') -> None:
    """Add this command."""
    parser = subparsers.add_parser('doctor', help='what works, what is missing, and the mend')
    parser.add_argument(
        '--robot', default='', help='also look at its topics: franka, widowx or a YAML file'
    )
    parser.add_argument('--gripper', default='', help='gripper instead of the one in the YAML')
    parser.add_argument('--checkpoint', type=Path, help='also examine this checkpoint folder')
    parser.add_argument(
        '--seconds', type=float, default=3.0, help='how long to listen to the topics'
    )
    parser.add_argument('--json', action='store_true', help='one JSON object instead of the table')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table as it grows; return 1 when something essential is missing, else 0."""
    if not 0.5 <= args.seconds <= 60.0:
        raise UserError(f'--seconds {args.seconds:g} must lie between 0.5 and 60.')
    config = load_robot(args.robot, args.gripper) if args.robot else None
    checks = guarded(
        machine_checks, lambda: ros_checks(config, args.seconds), lambda: _checkpoint(args)
    )
    if args.json:
        found = list(checks)
        print(json.dumps({'ok': healthy(found), 'checks': [c.as_dict() for c in found]}, indent=1))
    else:
        found = print_table(checks, colour=sys.stdout.isatty())
    return 0 if healthy(found) else 1


def healthy(checks: Iterable[Check]) -> bool:
    """Return whether nothing essential is missing."""
    return all(check.state != 'missing' for check in checks)


def _checkpoint(args: argparse.Namespace) -> Iterator[Check]:
    if args.checkpoint is not None:
        yield check_checkpoint(args.checkpoint)
        return
    try:
        yield check_checkpoint(share_file(BUNDLED))
    except UserError:
        yield Check(
            name='checkpoint',
            state='warn',
            detail='none is bundled: SPEAR-1 runs with untrained weights unless one is given',
            mend='spear doctor --checkpoint FOLDER; models/README.md says where to get one',
        )


def guarded(*parts: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """Yield the rows of every part; a check that breaks becomes a row and never a traceback.

    This is the one place that catches everything: the doctor is called when things are broken in
    ways that nobody foresaw, and the rows of the other parts are worth more than a stack trace.
    """
    for part in parts:
        try:
            yield from part()
        except Exception as error:
            yield Check(
                name='doctor',
                state='missing',
                detail=f'a check broke: {type(error).__name__}: {str(error)[:160]}',
                mend='this is a fault of ours; the other rows hold',
            )


def print_table(checks: Iterable[Check], *, colour: bool) -> list[Check]:
    """Print each row as soon as it is known; mends stand under their rows."""
    found = []
    for check in checks:
        state = f'{check.state:<7}'
        if colour:
            state = f'\033[{COLOURS[check.state]}m{state}\033[0m'
        print(f'{check.name:<18} {state} {check.detail}', flush=True)
        if check.mend and check.state != 'ok':
            print(f'{"":<18} {"":<7} mend: {check.mend}', flush=True)
        found.append(check)
    counts = {state: sum(c.state == state for c in found) for state in COLOURS}
    print(f'\n{counts["ok"]} ok, {counts["warn"]} to know, {counts["missing"]} missing')
    return found
