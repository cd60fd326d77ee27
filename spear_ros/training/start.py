"""Weights to start from: fresh or of a checkpoint, the depth encoder of a MoGe-1 checkpoint."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from spear_ros.checkpoints.key_map import compare, expand, to_ours
from spear_ros.checkpoints.moge import IGNORABLE, moge_mend, open_moge
from spear_ros.checkpoints.spear1 import TOKENIZER, open_weights, read_config
from spear_ros.checkpoints.vision_language_maps import dinov2_rules
from spear_ros.core.errors import UserError
from spear_ros.core.types import ActionSpec
from spear_ros.networks.spear1 import Spear1, Spear1Config
from spear_ros.processing.small_tokenizer import build_small_tokenizer
from spear_ros.processing.tokens import TextTokenizer

EXPERT, MOGE = 'expert.', 'vlm.moge.'
VLM_RECIPES = 'spear_vlm'
"""All recipes of SPEAR-VLM begin so; their exports carry an expert that never learnt anything."""
SIGLIP_PROJECTOR, MOGE_PROJECTOR = 'vlm.siglip_projector.', 'vlm.moge_projector.'


def spear1_weights(
    config: Spear1Config, seed: int, init: str, moge: str, fresh_expert: bool = False
) -> dict[str, Tensor]:
    """All weights of SPEAR-1 by name, float32, on the CPU.

    Args:
        config: sizes.
        seed: of fresh weights.
        init: checkpoint folder, '' = fresh.
        moge: folder of MoGe-1 weights for the frozen branch, '' = leave it.
        fresh_expert: draw the action expert, at any size, although ``init`` has one.

    Raises:
        UserError: a folder does not hold weights of these sizes.
    """
    if init:
        state = _from_checkpoint(config, Path(init).expanduser(), seed, fresh_expert)
    else:
        state = _fresh(config, seed)
    if moge:
        state |= moge_weights(config, Path(moge).expanduser())
    return state


def _fresh(config: Spear1Config, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Spear1(config).state_dict()


def _from_checkpoint(
    config: Spear1Config, folder: Path, seed: int, fresh_expert: bool
) -> dict[str, Tensor]:
    """Weights of a folder; a SPEAR-VLM has no action expert yet, so that is drawn, at any size."""
    saved = read_config(folder)
    files = open_weights(folder, saved)
    with torch.device('meta'):
        needed = Spear1(config).state_dict()
    drawn: dict[str, Tensor] = {}
    if fresh_expert or saved.recipe.startswith(VLM_RECIPES):
        drawn = {n: t for n, t in _fresh(config, seed).items() if n.startswith(EXPERT)}
        needed = {n: t for n, t in needed.items() if n not in drawn}
    for name, tensor in needed.items():
        if name not in files.entries or tuple(files.shape(name)) != tuple(tensor.shape):
            found = tuple(files.shape(name)) if name in files.entries else 'absent'
            raise UserError(
                f'init: {folder} has "{name}" {found} and the recipe needs {tuple(tensor.shape)}; '
                'give a checkpoint of the same size, or change model.'
            )
    return {name: files.get(name).float().clone() for name in needed} | drawn


def moge_weights(config: Spear1Config, folder: Path) -> dict[str, Tensor]:
    """The depth encoder of a MoGe-1 folder under SPEAR-1's names.

    Raises:
        UserError: it is damaged, or of other sizes.
    """
    weights = open_moge(folder)
    table = expand(dinov2_rules(MOGE, 'backbone.', config.moge))
    with torch.device('meta'):
        whole = Spear1(config).state_dict()
    needed = {n: tuple(t.shape) for n, t in whole.items() if n.startswith(MOGE)}
    report = compare(table, weights.source, needed, IGNORABLE)
    report.require_fit(folder, moge_mend(weights.encoder))
    return {name: to_ours(table[name], weights.source).float().clone() for name in needed}


def without_depth(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SPEAR-1's weights with a depth branch that says nothing.

    A visual token is the mean of both projections: SigLIP's is doubled, so that it is the token.
    Weights that have no depth branch already are returned as they are.
    """
    depth = [name for name in state if name.startswith(MOGE_PROJECTOR)]
    if not any(state[name].any() for name in depth):
        return dict(state)
    changed = {name: torch.zeros_like(state[name]) for name in depth}
    for name in state:
        if name.startswith(SIGLIP_PROJECTOR):
            changed[name] = 2.0 * state[name]
    return dict(state) | changed


def check_started_specs(init: str, specs: Mapping[str, ActionSpec], *, always: bool) -> None:
    """Compare what the data's actions mean with what the weights to start from learnt.

    Args:
        init: checkpoint folder.
        specs: of the data, by embodiment.
        always: also where the checkpoint never learnt actions (SPEAR-VLM), because its statistics
            are taken.

    Raises:
        UserError: names the embodiment and the field with both values.
    """
    config = read_config(Path(init).expanduser())
    if not (config.trained or always):
        return
    for name in sorted(specs.keys() & config.embodiments.keys()):
        there, here = config.embodiments[name], specs[name]
        for field in ActionSpec.__dataclass_fields__:
            if getattr(there, field) != getattr(here, field):
                raise UserError(
                    f'init: {name}.{field} is {getattr(there, field)!r} in the checkpoint {init} '
                    f'and {getattr(here, field)!r} in the data; convert the data by the '
                    "checkpoint's convention, or start from other weights."
                )


def run_tokenizer(folder: Path, tokenizer: str, init: str) -> Path:
    """Copy the run's tokenizer into its folder (given, of ``init``, or the small one built).

    Raises:
        UserError: the given one is missing.
    """
    path = folder / TOKENIZER
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        source = tokenizer or (str(Path(init).expanduser() / TOKENIZER) if init else '')
        if not source:
            return build_small_tokenizer(path)
        if not Path(source).expanduser().is_file():
            raise UserError(f'{source}: the tokenizer is missing; give tokenizer=FILE.')
        shutil.copyfile(Path(source).expanduser(), path)
    return path


def check_vocabulary(tokenizer: TextTokenizer, config: Spear1Config) -> None:
    """Refuse a tokenizer with more ids than the embedding has rows.

    Raises:
        UserError: names both numbers.
    """
    if tokenizer.n_rows > config.language.vocab_size:
        raise UserError(
            f'the tokenizer has {tokenizer.n_rows} ids and the embedding '
            f'{config.language.vocab_size} rows; give the tokenizer that belongs to the weights.'
        )
