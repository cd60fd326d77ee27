"""``--option KEY=VALUE``: settings of the policy itself, for every command that runs one."""

import argparse
import json

from spear_ros.core.errors import UserError


def add_option_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--option``, which may be repeated."""
    parser.add_argument(
        '--option',
        action='append',
        default=[],
        metavar='KEY=VALUE',
        help='setting of the policy itself, such as wrist=false; may be repeated',
    )


def read_option_pairs(pairs: list[str]) -> dict[str, object]:
    """Read KEY=VALUE pairs; values as in JSON (true, 3), else text.

    Raises:
        UserError: a pair without "=".
    """
    options: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition('=')
        if not equals:
            raise UserError(f'--option {pair}: write it as KEY=VALUE.')
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options
