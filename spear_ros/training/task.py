"""What the trainer needs to know about a kind of model; one subclass per kind."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from spear_ros.training.config import TrainConfig
from spear_ros.training.distributed import Place
from spear_ros.training.estimates import StackCost

C = TypeVar('C', bound=TrainConfig)
Batch = dict[str, Any]


class BatchStream(Protocol):
    """Endless batches with an exact position."""

    def __next__(self) -> Batch:
        """Return the next batch; UserError where it cannot be read (the next call goes on)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Position after the last batch handed out, in JSON types."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batch that ``state`` was saved with."""
        ...

    def close(self) -> None:
        """Release threads and files."""
        ...


class Task(ABC, Generic[C]):
    """A kind of model: its module, its data, its losses, its export.

    Args:
        config: of the run.
        folder: of the run; the task may keep files there (statistics, tokenizer).
    """

    def __init__(self, config: C, folder: Path) -> None:
        self.config, self.folder = config, folder

    @abstractmethod
    def prepare(self, place: Place) -> None:
        """Look at the data and everything else that can be wrong, before memory is taken.

        Raises:
            UserError: something is missing or does not fit.
        """

    @abstractmethod
    def make_module(self) -> nn.Module:
        """Build the module without weights (under the meta device), ``requires_grad`` set.

        Its ``forward`` takes what :meth:`inputs` returns and gives a dict of scalars with 'loss'.
        """

    @abstractmethod
    def initial_state(self) -> dict[str, Tensor]:
        """All weights to start from, on the CPU, by the module's names; asked of process 0 only."""

    @abstractmethod
    def blocks(self, module: nn.Module) -> Iterable[nn.Module]:
        """Submodules to shard one by one, in the order in which they run."""

    @abstractmethod
    def stream(self, place: Place) -> BatchStream:
        """Training batches of this process."""

    @abstractmethod
    def inputs(self, batch: Batch, device: torch.device, seed: int) -> Mapping[str, Any]:
        """Keyword arguments of the module's ``forward``; all chance comes from ``seed``."""

    @abstractmethod
    def stacks(self) -> list[StackCost]:
        """Sizes for the estimates."""

    @abstractmethod
    def export(self, folder: Path, state: Mapping[str, Tensor], *, ema: bool) -> str:
        """Write the trained weights in the form that others load; return its id or hash."""

    def after_backward(self, module: nn.Module) -> None:
        """Change gradients before they are clipped."""

    def evaluate(self, module: nn.Module, place: Place) -> dict[str, float]:
        """Figures on validation data with the weights that are in the module; {} = none."""
        return {}

    def keys(self, batch: Batch) -> list[str]:
        """Names of the samples of a batch, for the record of bad ones."""
        return [str(k) for k in batch.get('key', ())]
