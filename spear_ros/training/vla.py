"""Trains SPEAR-1: ``torchrun ... -m spear_ros.training.vla --recipe NAME --out DIR key=value``."""

import sys

from spear_ros.training.entry import main

if __name__ == '__main__':
    sys.exit(main('vla'))
