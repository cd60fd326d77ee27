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

# The extra annotate-ray is for clusters; `make venv` leaves it out, its pin stays as it is.
NOT_INSTALLED = ('ray',)


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
    before = TARGET.read_text().splitlines()
    head = [line for line in before if line.startswith('#')]
    pins += [p for p in before if p.split('==')[0] in NOT_INSTALLED and p not in pins]
    TARGET.write_text('\n'.join([*head, *sorted(pins)]) + '\n')


if __name__ == '__main__':
    main()
