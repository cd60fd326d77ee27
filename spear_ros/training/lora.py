"""Low-rank updates of frozen matrices (LoRA, arXiv 2106.09685), merged before they are exported.

A matrix W becomes W + (alpha / rank) B A, computed where the weight is read, because the language
blocks also read slices of it. B starts at zero: the first step is the model that was loaded.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spear_ros.training.config import LoraConfig

_ORIGINAL = '.parametrizations.weight.original'
_A, _B = '.parametrizations.weight.0.a', '.parametrizations.weight.0.b'


class LowRankUpdate(nn.Module):
    """Adds the update to a weight (O, I)."""

    def __init__(self, rows: int, columns: int, config: LoraConfig) -> None:
        super().__init__()
        self.scale = config.alpha / config.rank
        self.a = nn.Parameter(torch.empty(config.rank, columns))
        self.b = nn.Parameter(torch.empty(rows, config.rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated weight in its own type."""
        return weight + (self.scale * (self.b @ self.a)).to(weight.dtype)


def add_lora(parts: Mapping[str, nn.Module], config: LoraConfig) -> None:
    """Give every linear layer of the (frozen) parts an update; only the updates learn."""
    for part in parts.values():
        for child in list(part.modules()):
            if isinstance(child, nn.Linear):
                child.weight.requires_grad_(False)
                update = LowRankUpdate(child.out_features, child.in_features, config)
                parametrize.register_parametrization(child, 'weight', update, unsafe=True)


def lora_state(module: nn.Module, plain: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Turn weights by plain names into those of a module with updates, which start at zero."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, parameter in module.state_dict().items():
        if name.endswith(_ORIGINAL):
            state[name] = plain[name.removesuffix(_ORIGINAL) + '.weight']
        elif name.endswith(_A):
            drawn = torch.randn(parameter.shape, generator=generator)
            state[name] = drawn / math.sqrt(parameter.shape[1])
        elif name.endswith(_B):
            state[name] = torch.zeros(parameter.shape)
        else:
            state[name] = plain[name]
    return state


def merge_lora(state: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Weights by plain names, the updates added."""
    merged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(_ORIGINAL):
            layer = name.removesuffix(_ORIGINAL)
            update = state[layer + _B].float() @ state[layer + _A].float()
            whole = tensor.float() + config.alpha / config.rank * update
            merged[f'{layer}.weight'] = whole.to(tensor.dtype)
        elif not name.endswith((_A, _B)):
            merged[name] = tensor
    return merged
