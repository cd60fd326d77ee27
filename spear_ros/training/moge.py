"""Trains MoGe: ``torchrun ... -m spear_ros.training.moge --recipe NAME --out DIR key=value``."""

import sys

from spear_ros.training.entry import main

if __name__ == '__main__':
    sys.exit(main('moge'))
