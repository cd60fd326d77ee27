"""SPEAR-1's own checkpoint: a folder that says everything about itself.

::

    model.safetensors           weights (or shards with model.safetensors.index.json)
    config.json                 sizes, ActionSpec per embodiment, image fit, origin, hashes, id
    norm_stats.json             the ONE NormStats
    tokenizer.json              ids are derived from this file alone
    spatial_bins.json           of a SPEAR-VLM only: what its 3-D tokens mean, and the scale type

``checkpoint_id`` is the first 12 hex digits of the SHA-256 over ``config.json`` (without the id),
which itself holds the SHA-256 of every other file: two checkpoints with one id are the same bytes,
and a norm_stats.json or tokenizer.json from elsewhere is noticed on loading. The hash of the
weights is checked by ``spear checkpoint verify``, as it takes as long as reading them.

A folder is written beside its place and renamed, so that it is never half there.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from spear_ros.checkpoints.key_map import (
    KeyReport,
    Piece,
    Shape,
    StateDictSource,
    TensorSource,
    compare,
)
from spear_ros.checkpoints.tensor_files import TensorFiles, file_sha256, write_sharded
from spear_ros.core.config import from_mapping, to_mapping
from spear_ros.core.errors import UserError
from spear_ros.core.types import ActionSpec, NormStats
from spear_ros.networks.spear1 import Spear1, Spear1Config

FORMAT_VERSION = 1
CONFIG = 'config.json'
NORM_STATS = 'norm_stats.json'
TOKENIZER = 'tokenizer.json'
SPATIAL_BINS = 'spatial_bins.json'
WEIGHTS = 'model'

MAX_JSON_BYTES = 4 << 20
DEFAULT_SHARD_BYTES = 5 << 30

T = TypeVar('T')


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How chunks of this checkpoint are best drawn and followed; found by roll-outs, ours."""

    noise: float = 1.0
    """Spread of the noise that a chunk begins with: 1 = as in training, a sample of what the policy
    holds possible; 0 = its middle every time, so that consecutive chunks agree."""
    execute_steps: int = 1
    """Knots of a chunk that the robot follows before the next one is computed. A policy that is
    unsure puts what is hard at the end of every chunk and never gets there with 1."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.noise <= 1.0:
            raise UserError(f'sampling.noise = {self.noise} must lie between 0 and 1.')
        if self.execute_steps < 1:
            raise UserError(f'sampling.execute_steps = {self.execute_steps} must be at least 1.')


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """``config.json``."""

    format_version: int
    model: Spear1Config
    embodiments: dict[str, ActionSpec]
    files: dict[str, str]
    """File name -> SHA-256 of every other file of the folder."""
    image_fit: Literal['crop', 'pad'] = 'crop'
    trained: bool = False
    """False as long as any part is freshly initialised."""
    ema: bool = False
    """The weights are the exponential moving average of training."""
    recipe: str = ''
    """Where the weights come from: a training recipe's name, or what was converted."""
    sampling: Sampling = field(default_factory=Sampling)
    checkpoint_id: str = ''


@dataclass(frozen=True, kw_only=True)
class CheckpointContents:
    """All of a checkpoint but its weights: what :func:`save_checkpoint` writes beside them."""

    model: Spear1Config
    specs: Mapping[str, ActionSpec]
    stats: NormStats
    tokenizer: Path
    """A tokenizer.json to copy."""
    image_fit: Literal['crop', 'pad'] = 'crop'
    trained: bool = False
    ema: bool = False
    recipe: str = ''
    sampling: Sampling = field(default_factory=Sampling)
    spatial_bins: Path | None = None
    """A table of bins to copy; None: nobody will ask this model questions."""


@dataclass(frozen=True, kw_only=True)
class LoadedCheckpoint:
    """A checkpoint in memory, ready to run or to train further."""

    model: Spear1
    """In eval mode, without gradients, positional tables not baked."""
    config: CheckpointConfig
    specs: dict[str, ActionSpec]
    stats: NormStats
    tokenizer_path: Path
    checkpoint_id: str


def model_shapes(config: Spear1Config) -> dict[str, Shape]:
    """Names and shapes of all tensors of a model, without allocating any."""
    with torch.device('meta'):
        return {name: tuple(t.shape) for name, t in Spear1(config).state_dict().items()}


def save_checkpoint(
    folder: Path | str,
    contents: CheckpointContents,
    state: Mapping[str, torch.Tensor] | TensorSource,
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> str:
    """Write a checkpoint and return its id.

    Args:
        folder: does not exist yet, unless ``overwrite``.
        contents: everything but the weights.
        state: a state dict (raw or the moving average: say which in ``contents.ema``), or a source
            that produces its tensors one at a time.
        dtype: type of the weights on disk; None keeps each tensor's own.
        overwrite: replace a checkpoint that is there; other folders are never replaced.
        max_shard_bytes: larger weights are split.

    Raises:
        UserError: the folder exists, or the weights do not fit the config.
    """
    folder = Path(folder)
    _check_destination(folder, overwrite)
    source = StateDictSource(state) if isinstance(state, Mapping) else state
    shapes = model_shapes(contents.model)
    _own_report(source, shapes).require_fit('weights to save', 'save them with their own config.')
    layout = {n: (dtype or source.dtype(n), s) for n, s in shapes.items()}

    def produce(name: str) -> torch.Tensor:
        return source.get(name).detach().to(layout[name][0])

    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
    try:
        building.chmod(0o755)
        files = write_sharded(building, WEIGHTS, layout, produce, max_shard_bytes)
        checkpoint_id = _write_rest(building, contents, files)
        _put_in_place(building, folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return checkpoint_id


def read_config(folder: Path | str) -> CheckpointConfig:
    """Read and check ``config.json``.

    Raises:
        UserError: it is missing, damaged, of a newer format, or was edited after the export.
    """
    file = Path(folder) / CONFIG
    if not Path(folder).is_dir():
        raise UserError(
            f'{folder}: no such checkpoint folder; give one that holds {CONFIG}, see '
            'models/README.md.'
        )
    data = _read_json(file)
    version = data.get('format_version') if isinstance(data, dict) else None
    if version is None and (Path(folder) / 'export' / CONFIG).is_file():
        raise UserError(f'{folder} is the folder of a training; give {Path(folder) / "export"}.')
    if version != FORMAT_VERSION:
        raise UserError(
            f'{file}: format_version is {version!r} and this software reads {FORMAT_VERSION}; '
            'update spear_ros or export the checkpoint again.'
        )
    config = _strict(CheckpointConfig, data, file)
    if config.checkpoint_id != _checkpoint_id(config):
        raise UserError(
            f'{file}: checkpoint_id "{config.checkpoint_id}" does not belong to this content; the '
            'file was changed after the export, export the checkpoint again.'
        )
    for key, spec in config.embodiments.items():
        if key != spec.embodiment or spec.horizon != config.model.flow.horizon:
            raise UserError(
                f'{file}: embodiments.{key} says embodiment "{spec.embodiment}" and horizon '
                f'{spec.horizon}, the model {config.model.flow.horizon}; export it again.'
            )
    return config


def read_norm_stats(folder: Path | str) -> NormStats:
    """Read ``norm_stats.json`` strictly.

    Raises:
        UserError: it is missing or damaged.
    """
    return read_norm_stats_file(Path(folder) / NORM_STATS)


def read_norm_stats_file(file: Path) -> NormStats:
    """Read a ``norm_stats.json`` that stands alone.

    Raises:
        UserError: it is missing or damaged.
    """
    return _strict(NormStats, _read_json(file), file)


def load_checkpoint(
    folder: Path | str, device: torch.device | str = 'cpu', dtype: torch.dtype | None = None
) -> LoadedCheckpoint:
    """Load a checkpoint straight into its final type and place.

    The model is built without memory and each tensor is copied from the mapped file into its own
    allocation: anonymous memory peaks at the weights plus one tensor.

    Args:
        folder: as written by :func:`save_checkpoint`.
        device: where the weights go.
        dtype: type of all weights; None keeps what is stored.

    Raises:
        UserError: anything is missing, damaged or does not fit; one sentence with the mend.
    """
    folder = Path(folder)
    config = read_config(folder)
    stats = read_norm_stats(folder)
    _check_small_files(folder, config)
    files = open_weights(folder, config)
    with torch.device('meta'):
        model = Spear1(config.model)
    state = {}
    for name in model.state_dict():
        tensor = torch.empty(files.shape(name), dtype=dtype or files.dtype(name), device=device)
        state[name] = tensor.copy_(files.get(name))
    model.load_state_dict(state, strict=True, assign=True)
    model.eval().requires_grad_(False)
    return LoadedCheckpoint(
        model=model,
        config=config,
        specs=config.embodiments,
        stats=stats,
        tokenizer_path=folder / TOKENIZER,
        checkpoint_id=config.checkpoint_id,
    )


def open_weights(folder: Path, config: CheckpointConfig) -> TensorFiles:
    """Open the weights and hold their names, shapes and types against the config.

    Raises:
        UserError: the files are damaged, not those of the export, or do not fit.
    """
    files = TensorFiles(folder)
    stray = {f.name for f in files.files} ^ {f for f in config.files if f.endswith('.safetensors')}
    if stray:
        raise UserError(
            f'{folder}: {sorted(stray)[0]} is in only one of the folder and {CONFIG}; copy the '
            'whole checkpoint again.'
        )
    report = _own_report(files, model_shapes(config.model))
    report.require_fit(folder, 'weights and config.json are of different models, copy both again.')
    for name, entry in files.entries.items():
        if not entry.dtype.is_floating_point:
            raise UserError(
                f'{entry.file}: the tensor "{name}" has type {entry.dtype}, weights are floating '
                'point numbers; export the checkpoint again.'
            )
    return files


def _put_in_place(building: Path, folder: Path) -> None:
    """Rename the finished folder; an old one gives way whole and is deleted afterwards."""
    if not folder.exists():
        building.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.old.', dir=folder.parent))
    folder.rename(old / folder.name)
    building.rename(folder)
    shutil.rmtree(old)


def _own_report(source: TensorSource, shapes: Mapping[str, Shape]) -> KeyReport:
    return compare({name: Piece((name,)) for name in shapes}, source, shapes)


def _check_destination(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not (folder / CONFIG).is_file():
        raise UserError(f'{folder}: exists and is no checkpoint; choose another folder.')
    if not overwrite:
        raise UserError(f'{folder}: a checkpoint is already there; choose another folder.')


def _write_rest(folder: Path, contents: CheckpointContents, files: dict[str, str]) -> str:
    """Write everything but the weights, the config last; return the id."""
    if not contents.tokenizer.is_file():
        raise UserError(f'{contents.tokenizer}: the tokenizer is missing; give a tokenizer.json.')
    shutil.copyfile(contents.tokenizer, folder / TOKENIZER)
    _write_json(folder / NORM_STATS, to_mapping(contents.stats))
    files = dict(files)
    small = [TOKENIZER, NORM_STATS]
    if contents.spatial_bins is not None:
        shutil.copyfile(contents.spatial_bins, folder / SPATIAL_BINS)
        small.append(SPATIAL_BINS)
    for name in small:
        files[name] = file_sha256(folder / name)
    config = CheckpointConfig(
        format_version=FORMAT_VERSION,
        model=contents.model,
        embodiments=dict(contents.specs),
        files=files,
        image_fit=contents.image_fit,
        trained=contents.trained,
        ema=contents.ema,
        recipe=contents.recipe,
        sampling=contents.sampling,
    )
    config = replace(config, checkpoint_id=_checkpoint_id(config))
    _write_json(folder / CONFIG, to_mapping(config))
    return config.checkpoint_id


def _checkpoint_id(config: CheckpointConfig) -> str:
    data = to_mapping(replace(config, checkpoint_id=''))
    if config.sampling == Sampling():
        del data['sampling']  # ids are those from before there was such a thing
    text = json.dumps(data, sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_small_files(folder: Path, config: CheckpointConfig) -> None:
    """Check presence of every file and the hash of the small ones."""
    for name, expected in config.files.items():
        path = folder / name
        if not path.is_file() or Path(name).name != name:
            raise UserError(f'{path}: missing; copy the whole checkpoint again.')
        if not name.endswith('.safetensors') and file_sha256(path) != expected:
            raise UserError(
                f'{path}: not the file that this checkpoint was exported with; copy the whole '
                'checkpoint again.'
            )
    for name in (TOKENIZER, NORM_STATS):
        if name not in config.files:
            raise UserError(f'{folder / CONFIG}: files has no {name}; export the checkpoint again.')


def _read_json(file: Path) -> Any:
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f'{file}: too large; copy the checkpoint again.')
        return json.loads(file.read_text(encoding='utf-8'))
    except OSError as error:
        raise UserError(
            f'{file}: cannot read it ({error.strerror}); give a complete checkpoint folder.'
        ) from None
    except (ValueError, RecursionError) as error:
        text = ' '.join(str(error).split())[:80]
        raise UserError(f'{file}: not valid JSON ({text}); copy the checkpoint again.') from None


def _strict(cls: type[T], data: object, file: Path) -> T:
    try:
        return from_mapping(cls, data, where=str(file))
    except UserError:
        raise
    except ValueError as error:
        # The networks' own configs know no UserError; their text names field and value.
        raise UserError(f'{file}: model: {error}') from None


def _write_json(file: Path, data: object) -> None:
    file.write_text(json.dumps(data, indent=2) + '\n', encoding='utf-8')


def describe_checkpoint(folder: Path | str) -> str:
    """Say in one line what a checkpoint folder holds, after the checks that need no full read.

    Raises:
        UserError: something is missing, damaged or does not fit.
    """
    folder = Path(folder)
    config = read_config(folder)
    read_norm_stats(folder)
    _check_small_files(folder, config)
    files = open_weights(folder, config)
    numbers = sum(torch.Size(e.shape).numel() for e in files.entries.values())
    types = sorted({str(e.dtype).removeprefix('torch.') for e in files.entries.values()})
    origin = f'recipe "{config.recipe}"' if config.recipe else 'no recipe named'
    return (
        f'{config.checkpoint_id}: {numbers / 1e6:.1f} M parameters ({", ".join(types)}, '
        f'{files.n_bytes / 1e6:.0f} MB), {", ".join(config.embodiments)}, '
        f'{"trained" if config.trained else "NOT TRAINED"}{", moving average" * config.ema}, '
        f'{origin}'
    )
