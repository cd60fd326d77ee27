"""AdamW with parameter groups, and the learning-rate schedule as a function of the step."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spear_ros.core.errors import UserError
from spear_ros.training.config import OptimizerConfig
from spear_ros.training.ema import local


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Learning rate of update ``step`` (from 0) of ``steps``."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return config.learning_rate * (config.final_ratio + (1 - config.final_ratio) * cosine)


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: matrices and convolutions, but no tables or embeddings."""
    return parameter.ndim >= 2 and not name.endswith(('embedding.weight', 'table'))


def multiplier(name: str, config: OptimizerConfig) -> float:
    """Factor of a parameter's learning rate: that of the longest prefix in the config."""
    matching = [p for p in config.multipliers if name.startswith(p)]
    return config.multipliers[max(matching, key=len)] if matching else 1.0


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], config: OptimizerConfig
) -> torch.optim.AdamW:
    """AdamW over named parameters, grouped by decay and learning-rate factor.

    Raises:
        UserError: a prefix in ``multipliers`` fits no trained parameter, or nothing is trained.
    """
    if not parameters:
        raise UserError('train: no parameter is left to learn; name at least one part.')
    for prefix in config.multipliers:
        if not any(name.startswith(prefix) for name in parameters):
            raise UserError(
                f'optimizer.multipliers: "{prefix}" fits no trained parameter; they begin with '
                f'{", ".join(sorted({n.split(".")[0] for n in parameters}))}.'
            )
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        key = (decays(name, parameter), multiplier(name, config))
        groups.setdefault(key, []).append(parameter)
    listed: list[dict[str, Any]] = [
        {
            'params': members,
            'weight_decay': config.weight_decay if decay else 0.0,
            'multiplier': factor,
        }
        for (decay, factor), members in groups.items()
    ]
    return torch.optim.AdamW(
        listed,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        foreach=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's rate from the schedule and its factor."""
    for group in optimizer.param_groups:
        group['lr'] = rate * group['multiplier']


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients over all processes, a scalar on the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    full = getattr(norm, 'full_tensor', None)
    return norm if full is None else full()


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], norm: Tensor, limit: float) -> None:
    """Scale all gradients so that their norm, as given, is at most ``limit``."""
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
