"""Command line of the three entry points: ``--recipe NAME --out DIR key=value ...``."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from spear_ros.core.arguments import parse_with_settings
from spear_ros.core.config import to_yaml
from spear_ros.core.errors import UserError
from spear_ros.training.config import MogeTrainConfig, TrainConfig, VlaConfig, VlmConfig
from spear_ros.training.distributed import joined
from spear_ros.training.recipes import RECIPES, change, find_recipe
from spear_ros.training.task import Task
from spear_ros.training.trainer import Outcome, Trainer, Validate

USER_ERROR = 2


def add_arguments(parser: argparse.ArgumentParser, kind: str) -> None:
    """Declare the arguments of one kind."""
    parser.add_argument('--recipe', required=True, help=', '.join(RECIPES[kind]))
    parser.add_argument('--out', type=Path, help='folder of the run; goes on there')
    parser.add_argument('--list', action='store_true', help='print the settings and end')
    parser.add_argument('settings', nargs='*', metavar='key=value', help='such as batch_size=64')


def make_task(config: TrainConfig, folder: Path) -> Task[Any]:
    """The task of a config."""
    # Imported here: each kind brings its own dependencies.
    if isinstance(config, VlaConfig):
        from spear_ros.training.vla_task import VlaTask

        return VlaTask(config, folder)
    if isinstance(config, VlmConfig):
        from spear_ros.training.vlm_task import VlmTask

        return VlmTask(config, folder)
    assert isinstance(config, MogeTrainConfig), type(config)
    from spear_ros.training.moge_task import MogeTask

    return MogeTask(config, folder)


def train(
    kind: str,
    args: argparse.Namespace,
    make_validate: Callable[[TrainConfig], Validate | None] = lambda config: None,
) -> Outcome | None:
    """Run what the arguments ask for; None where only the settings were printed.

    Raises:
        UserError: one sentence for whatever is wrong.
    """
    config = change(find_recipe(kind, args.recipe), args.settings)
    if args.list:
        print_settings(config)
        return None
    if args.out is None:
        raise UserError('--out is missing: the folder of the run, which it goes on in.')
    if config.deterministic:
        # cuBLAS reads it when it is first used.
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.set_float32_matmul_precision('high')
    with joined(config) as place:
        task = make_task(config, args.out)
        return Trainer(task, args.out, place, make_validate(config)).run()


def print_settings(config: TrainConfig) -> None:
    """Write the whole config as YAML."""
    sys.stdout.write(to_yaml(config))


def main(kind: str, argv: Sequence[str] | None = None) -> int:
    """``python -m spear_ros.training.<kind>``: 0 = finished or stopped as asked, 2 = bad input."""
    parser = argparse.ArgumentParser(prog=f'python -m spear_ros.training.{kind}')
    add_arguments(parser, kind)
    try:
        train(kind, parse_with_settings(parser, argv))
    except UserError as error:
        sys.stderr.write(f'spear_ros.training.{kind}: {error}\n')
        return USER_ERROR
    except OSError as error:
        if error.filename is None:
            raise
        sys.stderr.write(f'spear_ros.training.{kind}: {error.filename}: {error.strerror}\n')
        return USER_ERROR
    return 0
