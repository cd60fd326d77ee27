"""Processes started by torchrun, and how a model's parameters are laid over them.

One process without torchrun runs the same code with plain tensors. With more, FSDP2 shards every
transformer block; frozen parts stay whole on every process, outside of FSDP and the optimiser.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from spear_ros.core.errors import UserError
from spear_ros.training.config import ParallelConfig, TrainConfig

BLOCK_METHODS = ('project', 'project_kv', 'finish')
"""Methods of a language block that the joint pass calls in place of ``forward``."""


LOST_MARKS = (
    'connection closed',
    'connection reset',
    'connection refused',
    'timed out',
    'broken pipe',
    'nccl',
    'gloo',
    'peer',
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """This process among all."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device('cpu'))

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0


@contextmanager
def joined(config: TrainConfig) -> Iterator[Place]:
    """Join the processes that torchrun started (none: alone), and leave at the end.

    Raises:
        UserError: CUDA was asked for and is not there, or batch and processes do not divide.
    """
    world = int(os.environ.get('WORLD_SIZE', '1'))
    rank = int(os.environ.get('RANK', '0'))
    device = _device(config.device)
    check_division(config, world)
    if world == 1:
        yield Place(device=device)
        return
    dist.init_process_group(
        'cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo',
        timeout=timedelta(seconds=config.parallel.timeout_s),
    )
    try:
        yield Place(rank=rank, world=world, device=device)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def check_division(config: TrainConfig, world: int) -> None:
    """Refuse a batch that the processes cannot share equally.

    Raises:
        UserError: names the numbers.
    """
    if config.batch_size % (world * config.accumulate):
        raise UserError(
            f'batch_size = {config.batch_size} is no multiple of processes x accumulate = '
            f'{world} x {config.accumulate}; change one of them.'
        )
    if world % config.parallel.replicas:
        raise UserError(
            f'parallel.replicas = {config.parallel.replicas} does not divide the {world} processes.'
        )


def _device(wanted: str) -> torch.device:
    available = torch.cuda.is_available()
    if wanted == 'cuda' and not available:
        raise UserError('device = cuda, but torch sees no CUDA device; use device=cpu or auto.')
    if wanted == 'cpu' or not available:
        return torch.device('cpu')
    device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', '0')))
    torch.cuda.set_device(device)
    return device


def make_mesh(place: Place, config: ParallelConfig) -> DeviceMesh:
    """One axis of shards, or (replicas, shards) for HSDP."""
    if config.replicas == 1:
        return init_device_mesh(place.device.type, (place.world,), mesh_dim_names=('shard',))
    shape = (config.replicas, place.world // config.replicas)
    return init_device_mesh(place.device.type, shape, mesh_dim_names=('replicate', 'shard'))


def shard(
    module: nn.Module, blocks: Iterable[nn.Module], place: Place, config: TrainConfig
) -> None:
    """Shard every block and then the rest; what needs no gradient inside no block stays whole.

    Args:
        module: the whole, possibly on the meta device.
        blocks: in the order in which they run.
        place: this process; alone, nothing is done.
        config: of the run.
    """
    if place.world == 1:
        return
    dtype = torch.bfloat16 if config.precision == 'bfloat16' else torch.float32
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    mesh = make_mesh(place, config.parallel)
    ignored = frozen_whole(module)
    for block in blocks:
        if set(block.parameters()) <= ignored:
            continue
        fully_shard(
            block,
            mesh=mesh,
            mp_policy=policy,
            reshard_after_forward=config.parallel.reshard,
            ignored_params=ignored,
        )
        for name in BLOCK_METHODS:
            if hasattr(block, name):
                register_fsdp_forward_method(block, name)
    fully_shard(
        module, mesh=mesh, mp_policy=policy, reshard_after_forward=False, ignored_params=ignored
    )


def frozen_whole(module: nn.Module) -> set[nn.Parameter]:
    """Parameters that stay outside of FSDP: those of the frozen MoGe branch."""
    return {
        p for name, p in module.named_parameters() if '.moge.' in f'.{name}' and not p.requires_grad
    }


def synchronize_gradients(module: nn.Module, on: bool) -> None:
    """With accumulated passes only the last one sends gradients."""
    setter: Callable[[bool], None] | None = getattr(module, 'set_requires_gradient_sync', None)
    if setter is not None:
        setter(on)


def agree(values: list[float], place: Place, how: str = 'max') -> list[float]:
    """Combine numbers over all processes: ``max`` or ``sum``; alone, return them."""
    if place.world == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64)
    operation = {'max': dist.ReduceOp.MAX, 'sum': dist.ReduceOp.SUM}[how]
    dist.all_reduce(tensor, operation)  # on the CPU, over gloo: no wait for the device
    return tensor.tolist()


def barrier(place: Place) -> None:
    """Wait for all processes."""
    if place.world > 1:
        agree([0.0], place)


def gather(value: object, place: Place) -> list[object]:
    """Objects of all processes, by rank, on every process."""
    if place.world == 1:
        return [value]
    found: list[object] = [None] * place.world
    dist.all_gather_object(found, value)
    return found


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process is gone or hangs."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(mark in text for mark in LOST_MARKS)
