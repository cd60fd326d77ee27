"""Trains SPEAR-VLM: ``torchrun ... -m spear_ros.training.vlm --recipe NAME --out DIR k=v``."""

import sys

from spear_ros.training.entry import main

if __name__ == '__main__':
    sys.exit(main('vlm'))
