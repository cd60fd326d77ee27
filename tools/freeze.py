#!/usr/bin/env python3
"""Writes ``requirements/constraints.txt`` from the versions that this environment holds.

Run it with ``.venv/bin/python`` after an upgrade whose tests are green.
"""

import re
from importlib.metadata import distributions
from pathlib import Path

TARGET = Path(__file__).resolve().parents[1] / 'requirements' / 'constraints.txt'
# Built from this clone, or the installer's own business.
LEFT_OUT = {
    'pip', 'wheel', 'spear-ros', 'spear-msgs', 'franka-msgs', 'interbotix-xs-msgs', 'control-msgs',
    'controller-manager-msgs',
}  # fmt: skip


def canonical(name: str) -> str:
    """Return the comparable form of a distribution's name."""
    return re.sub(r'[-_.]+', '-', name).lower()


def main() -> None:
    """Keep the comment at the top of the file, replace the pins under it."""
    found = {canonical(d.metadata['Name']): d.version.split('+')[0] for d in distributions()}
    pins = [
        f'{name}=={version}'
        for name, version in sorted(found.items())
        # The ROS wheels carry second names without "ros-", which pip does not know.
        if name not in LEFT_OUT and f'ros-{name}' not in found and not name.startswith('rosidl-')
    ]
    head = [line for line in TARGET.read_text().splitlines() if line.startswith('#')]
    TARGET.write_text('\n'.join([*head, *pins]) + '\n')


if __name__ == '__main__':
    main()
