"""MoGe-1 weights: ``model.pt`` as published, or the same as safetensors.

``model.pt`` is a pickle. It is opened only here and only by ``spear checkpoint convert``, with
``weights_only`` (which refuses code) and a size cap; what runs near a robot reads safetensors. The
converted folder keeps the published tensor names: ``model.safetensors`` + ``config.json``.

MoGe-2 is refused: SPEAR-VLM concatenates the last four blocks of the encoder, which is what MoGe-1
feeds its own head; MoGe-2 reads blocks 5, 11, 17, 23 and its weights were trained for that.
"""

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spear_ros.checkpoints.key_map import StateDictSource, TensorSource
from spear_ros.checkpoints.tensor_files import TensorFiles
from spear_ros.core.errors import UserError

# moge-vitl is 1.26 GB in float32; twice that leaves room for another precision or optimizer-free
# extras, and stops a wrong file before it fills the memory.
MAX_PICKLE_BYTES = 3 << 30
MAX_CONFIG_BYTES = 1 << 20

DEFAULT_TOKENS_RANGE = (1200, 2500)
"""``num_tokens_range`` of MoGe-1's training configuration (configs/train/v1.json)."""

# Known and not part of the encoder.
IGNORABLE = (r'head\..*', r'image_mean', r'image_std', r'backbone\.mask_token')


@dataclass(frozen=True, kw_only=True, slots=True)
class MogeWeights:
    """One MoGe-1 checkpoint: its tensors by published name and the facts of its configuration."""

    source: TensorSource
    encoder: str
    """Name of the DINOv2 size, e.g. ``dinov2_vitl14``."""
    n_layers: int
    """How many last blocks the head reads (4)."""
    tokens_range: tuple[int, int]
    """Fewest and most patches of a full MoGe run."""
    model_config: Mapping[str, Any]
    """As published, with keys that we do not know left in."""


def open_moge(path: Path | str) -> MogeWeights:
    """Open a converted folder (``model.safetensors`` + ``config.json``).

    Raises:
        UserError: anything is missing or damaged, or it is a MoGe-2.
    """
    path = Path(path)
    if path.suffix in ('.pt', '.pth', '.bin'):
        raise UserError(
            f'{path}: a pickle is opened only for conversion; run "spear checkpoint convert --moge '
            f'{path} --output FOLDER" once and give FOLDER.'
        )
    source = TensorFiles(path)
    file = path / 'config.json'
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise UserError(f'{file}: too large for a MoGe configuration; convert model.pt again.')
        config = json.loads(file.read_text(encoding='utf-8'))
        config = config['model_config']
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f'{file}: missing or without "model_config"; convert model.pt again.'
        ) from None
    return _check(path, source, config)


def open_moge_pickle(path: Path | str) -> MogeWeights:
    """Open ``model.pt`` as published (only for conversion).

    Raises:
        UserError: not a PyTorch file of plain tensors, too large, or a MoGe-2.
    """
    path = Path(path)
    mend = 'give the model.pt of Ruicheng/moge-vitl.'
    if not path.is_file():
        raise UserError(f'{path}: no such file; {mend}')
    if path.stat().st_size > MAX_PICKLE_BYTES:
        raise UserError(
            f'{path}: {path.stat().st_size} bytes is more than the {MAX_PICKLE_BYTES} that a '
            f'MoGe-1 checkpoint may have; {mend}'
        )
    if not zipfile.is_zipfile(path):
        raise UserError(f'{path}: not a file written by torch.save, or truncated; {mend}')
    try:
        data = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, ValueError, KeyError, EOFError, OSError) as error:
        text = str(error).split('\n')[0][:120]
        raise UserError(f'{path}: cannot be read as plain tensors ({text}); {mend}') from None
    if not (isinstance(data, dict) and isinstance(data.get('model'), dict)):
        raise UserError(f'{path}: no "model" and "model_config" in it; {mend}')
    state = data['model']
    if not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise UserError(f'{path}: "model" holds more than tensors; {mend}')
    return _check(path, StateDictSource(state), data.get('model_config'))


def moge_mend(config_name: str) -> str:
    """The closing half of a sentence about tensors that do not fit."""
    return f'give the MoGe-1 weights that belong to the sizes of "{config_name}".'


def _check(path: Path, source: TensorSource, config: object) -> MogeWeights:
    if not isinstance(config, Mapping):
        raise UserError(f'{path}: no model_config; give the model.pt of Ruicheng/moge-vitl.')
    layers = config.get('intermediate_layers', 4)
    second = any(name.startswith('encoder.') for name in source.names()) or 'neck' in config
    if second or not isinstance(layers, int):
        raise UserError(
            f'{path}: this is MoGe-2 (intermediate_layers {layers}), whose encoder was trained to '
            'be read at other blocks than the last four; give the MoGe-1 weights, moge-vitl.'
        )
    return MogeWeights(
        source=source,
        encoder=str(config.get('encoder', '')),
        n_layers=layers,
        tokens_range=_tokens_range(path, config),
        model_config=dict(config),
    )


def _tokens_range(path: Path, config: Mapping[str, Any]) -> tuple[int, int]:
    """Fewest and most patches; the first release stated pixel areas instead."""
    value = config.get('num_tokens_range', DEFAULT_TOKENS_RANGE)
    area = config.get('trained_area_range')
    if area is not None and 'num_tokens_range' not in config:
        value = area
    if not (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(isinstance(v, (int, float)) and 0 < v < 1e9 for v in value)
        and value[0] <= value[1]
    ):
        raise UserError(f'{path}: the range of sizes is {value}; it must be two growing numbers.')
    low, high = (int(v) for v in value)
    if area is not None and 'num_tokens_range' not in config:
        low, high = int(value[0] / 14**2), int(value[1] / 14**2)
    return low, high
