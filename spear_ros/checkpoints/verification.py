"""The slow checks of a checkpoint: every byte against its hash, every weight a finite number."""

import math
from pathlib import Path

from spear_ros.checkpoints.spear1 import (
    CONFIG,
    CheckpointConfig,
    open_weights,
    read_config,
    read_norm_stats,
)
from spear_ros.checkpoints.tensor_files import TensorFiles, file_sha256
from spear_ros.core.errors import UserError

_BLOCK = 1 << 24


def verify_checkpoint(folder: Path | str) -> CheckpointConfig:
    """Check every byte: all hashes, names, shapes, and that every weight is a finite number.

    Raises:
        UserError: the first fault found.
    """
    folder = Path(folder)
    config = read_config(folder)
    read_norm_stats(folder)
    files = open_weights(folder, config)
    check_finite(files)
    for name, expected in config.files.items():
        found = file_sha256(folder / name)
        if found != expected:
            raise UserError(
                f'{folder / name}: SHA-256 is {found[:12]}... and {CONFIG} says '
                f'{expected[:12]}...; the file was changed or damaged, copy the checkpoint again.'
            )
    return config


def check_finite(files: TensorFiles) -> None:
    """Refuse NaN and infinite weights.

    Raises:
        UserError: names the first such tensor and how many of its numbers are not finite.
    """
    for name, entry in files.entries.items():
        if not entry.dtype.is_floating_point:
            continue
        # In blocks: the temporaries of an embedding table would be as large as the table.
        blocks = files.get(name).reshape(-1).split(_BLOCK)
        bad = sum(block.numel() - int(block.isfinite().sum()) for block in blocks)
        if bad:
            raise UserError(
                f'{entry.file}: {bad} of {math.prod(entry.shape)} numbers of "{name}" are NaN or '
                'infinite; training diverged or the file is damaged, take another checkpoint.'
            )
