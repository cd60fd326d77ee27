"""Weights between their whole form and the form in which they are trained."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import FSDPModule

from spear_ros.training.distributed import Place
from spear_ros.training.ema import Ema, local


def fill(module: nn.Module, initial: Callable[[], dict[str, Tensor]], place: Place) -> None:
    """Give a module on the meta device its memory and its first weights.

    Process 0 alone holds the whole model, on the CPU, and sends every process its shards.
    """
    module.to_empty(device=place.device)
    if place.world == 1:
        module.load_state_dict(initial(), strict=True)
        return
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=True)
    state: dict[str, Any] = dict(initial()) if place.first else {}
    set_model_state_dict(module, state, options=options)


def full_state(module: nn.Module, ema: Ema, place: Place) -> dict[str, Tensor]:
    """All weights whole, on the CPU, on process 0 ({} elsewhere); averaged where there is one."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(module, options=options)
    for name, shadow in ema.shadow.items():
        whole = shadow.full_tensor() if hasattr(shadow, 'full_tensor') else shadow
        if place.first:
            state[name] = whole.detach().cpu().clone()
    return state if place.first else {}


@contextmanager
def averaged_weights(module: nn.Module, ema: Ema) -> Iterator[None]:
    """Put the average into the module for a while."""
    forget_gathered(module)
    parameters = dict(module.named_parameters())
    kept = {name: local(parameters[name]).detach().clone() for name in ema.shadow}
    with torch.no_grad():
        for name, shadow in ema.shadow.items():
            local(parameters[name]).copy_(local(shadow))
    try:
        yield
    finally:
        forget_gathered(module)
        with torch.no_grad():
            for name, value in kept.items():
                local(parameters[name]).copy_(value)


def forget_gathered(module: nn.Module) -> None:
    """Drop gathered copies, which a forward pass without a backward pass leaves behind."""
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()
