"""Weights of our MoGe under the published names, in the folder that :func:`open_moge` reads."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from spear_ros.checkpoints.key_map import StateDictSource, expand, to_published
from spear_ros.checkpoints.tensor_files import write_safetensors
from spear_ros.checkpoints.vision_language_maps import dinov2_rules
from spear_ros.core.config import to_mapping
from spear_ros.core.errors import UserError
from spear_ros.networks.config import VitConfig


def save_moge(
    folder: Path | str,
    state: Mapping[str, torch.Tensor],
    encoder: VitConfig,
    facts: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> str:
    """Write encoder and head of a :class:`~spear_ros.networks.moge_head.MogeModel`.

    Args:
        folder: does not exist yet, unless ``overwrite``.
        state: its state dict (``encoder.*``, ``head.*``).
        encoder: sizes of the encoder; kept as ``encoder_sizes``, as they are none of DINOv2's.
        facts: further keys of the published ``model_config``.
        overwrite: replace a folder of this kind.

    Returns:
        SHA-256 of the weights.

    Raises:
        UserError: the folder exists.
    """
    folder = Path(folder)
    if folder.exists() and not (overwrite and (folder / 'config.json').is_file()):
        raise UserError(f'{folder}: exists already; choose another folder.')
    table = expand(dinov2_rules('encoder.', 'backbone.', encoder))
    published = to_published(table, state)
    published |= {name: t for name, t in state.items() if name.startswith('head.')}
    source = StateDictSource(published)
    layout = {n: (source.dtype(n), source.shape(n)) for n in sorted(published)}
    config = {'model_config': {**facts, 'encoder_sizes': to_mapping(encoder)}}
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
    try:
        building.chmod(0o755)
        digest = write_safetensors(building / 'model.safetensors', layout, source.get)
        text = json.dumps(config, indent=2) + '\n'
        (building / 'config.json').write_text(text, encoding='utf-8')
        if folder.exists():
            shutil.rmtree(folder)
        building.rename(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return digest
