"""MoGe-1 weights: ``model.pt`` as published, or the same as safetensors.

``model.pt`` is a pickle. It is opened only here and only by ``spear checkpoint convert``, with
``weights_only`` (which refuses code) and a size cap; what runs near a robot reads safetensors. The
converted folder keeps the published tensor names: ``model.safetensors`` + ``config.json``.

MoGe-2 is refused: SPEAR-VLM concatenates the last four blocks of the encoder, which is what MoGe-1
feeds its own head; MoGe-2 reads blocks 5, 11, 17, 23 and its weights were trained for that.
"""

import json
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spear_ros.checkpoints.key_map import (
    Piece,
    StateDictSource,
    TensorSource,
    compare,
    expand,
    to_ours,
)
from spear_ros.checkpoints.tensor_files import TensorFiles, write_safetensors
from spear_ros.checkpoints.vision_language_maps import dinov2_rules
from spear_ros.core.config import from_mapping
from spear_ros.core.errors import UserError
from spear_ros.networks.config import VitConfig
from spear_ros.networks.moge_head import MogeConfig, MogeHeadConfig, MogeModel

# moge-vitl is 1.26 GB in float32; twice that leaves room for another precision or optimizer-free
# extras, and stops a wrong file before it fills the memory.
MAX_PICKLE_BYTES = 3 << 30
MAX_CONFIG_BYTES = 1 << 20

DEFAULT_TOKENS_RANGE = (1200, 2500)
"""``num_tokens_range`` of MoGe-1's training configuration (configs/train/v1.json)."""

DINOV2_SIZES = {
    'dinov2_vits14': (384, 12, 6),
    'dinov2_vitb14': (768, 12, 12),
    'dinov2_vitl14': (1024, 24, 16),
}
"""Width, blocks, heads (facebookresearch/dinov2)."""

HEAD_FIELDS = {
    'dim_proj': 'projected',
    'dim_upsample': 'upsampled',
    'num_res_blocks': 'residual_blocks',
    'dim_times_res_block_hidden': 'residual_factor',
    'last_conv_channels': 'last_channels',
    'last_conv_size': 'last_kernel',
}
"""Published name of a size of the head -> ours."""

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


def convert_moge(weights: MogeWeights, folder: Path | str) -> dict[str, str]:
    """Write opened weights as safetensors with the published names; return the hashes.

    Raises:
        UserError: the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f'{folder}: exists already; choose another folder.')
    building = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
    try:
        building.chmod(0o755)
        source = weights.source
        layout = {n: (source.dtype(n), source.shape(n)) for n in sorted(source.names())}
        hashes = {
            'model.safetensors': write_safetensors(
                building / 'model.safetensors', layout, source.get
            )
        }
        config = {'model_config': dict(weights.model_config)}
        (building / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
        building.rename(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return hashes


def load_moge_model(
    folder: Path | str, device: torch.device | str = 'cpu', encoder: VitConfig | None = None
) -> MogeModel:
    """Load the whole of MoGe-1 (encoder and head) from a converted folder, float32, eval mode.

    Args:
        folder: as written by :func:`convert_moge`.
        device: where the weights go.
        encoder: sizes, where the file names an encoder that is none of DINOv2's.

    Raises:
        UserError: damaged, unknown encoder, or tensors that do not fit it.
    """
    weights = open_moge(folder)
    config = moge_config(weights, encoder, folder)
    with torch.device('meta'):
        model = MogeModel(config)
    needed = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    table = expand(dinov2_rules('encoder.', 'backbone.', config.encoder))
    table |= {name: Piece((name,)) for name in needed if name.startswith('head.')}
    ignorable = [pattern for pattern in IGNORABLE if not pattern.startswith('head')]
    report = compare(table, weights.source, needed, ignorable)
    report.require_fit(folder, moge_mend(weights.encoder))
    state = {}
    for name in needed:
        tensor = torch.empty(needed[name], dtype=torch.float32, device=device)
        state[name] = tensor.copy_(to_ours(table[name], weights.source))
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def moge_config(weights: MogeWeights, encoder: VitConfig | None, where: object) -> MogeConfig:
    """Sizes of the whole model from the published configuration.

    Raises:
        UserError: an encoder that is not DINOv2's, or sizes that are none.
    """
    if encoder is None and 'encoder_sizes' in weights.model_config:
        encoder = from_mapping(
            VitConfig, weights.model_config['encoder_sizes'], where=f'{where}: encoder_sizes'
        )
    if encoder is None:
        if weights.encoder not in DINOV2_SIZES:
            raise UserError(
                f'{where}: encoder "{weights.encoder}" is none of {", ".join(DINOV2_SIZES)}; give '
                'the weights of moge-vitl.'
            )
        width, layers, heads = DINOV2_SIZES[weights.encoder]
        encoder = VitConfig(
            width=width,
            layers=layers,
            heads=heads,
            mlp_width=4 * width,
            table_rows=37,
            table_columns=37,
        )
    known = {ours: weights.model_config[name] for name, ours in HEAD_FIELDS.items()
             if name in weights.model_config}  # fmt: skip
    head = from_mapping(MogeHeadConfig, known, where=f'{where}: model_config')
    return MogeConfig(
        encoder=encoder,
        head=head,
        intermediate_layers=weights.n_layers,
        num_tokens_range=weights.tokens_range,
    )


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
