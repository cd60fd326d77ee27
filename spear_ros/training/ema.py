"""Exponential moving average of the weights, sharded as the weights are."""

from collections.abc import Mapping

import torch
from torch import Tensor


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies on this process (the tensor itself where it is not split)."""
    to_local = getattr(tensor, 'to_local', None)
    return tensor if to_local is None else to_local()


class Ema:
    """The average of trained parameters, float32; what is frozen has no average.

    Every process averages its own shards: no memory is doubled and nothing is sent.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], decay: float) -> None:
        """Start from the parameters' present values; ``decay`` 0 keeps no average."""
        assert 0 <= decay < 1, decay
        self.decay = decay
        self._parameters = dict(parameters) if decay else {}
        self.shadow: dict[str, Tensor] = {
            name: p.detach().clone() for name, p in self._parameters.items()
        }

    def __bool__(self) -> bool:
        return bool(self.shadow)

    def decay_at(self, updates: int) -> float:
        """Decay of update number ``updates`` (from 0): short memory first, so that the start is
        forgotten."""
        return min(self.decay, (1 + updates) / (10 + updates))

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Move the average towards the present weights."""
        if not self.shadow:
            return
        weight = 1.0 - self.decay_at(updates)
        shadow = [local(s) for s in self.shadow.values()]
        torch._foreach_lerp_(shadow, [local(p) for p in self._parameters.values()], weight)

    @torch.no_grad()
    def reset(self) -> None:
        """Start again from the present weights (after they were loaded from elsewhere)."""
        for name, tensor in self.shadow.items():
            local(tensor).copy_(local(self._parameters[name]))
