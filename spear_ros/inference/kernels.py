"""Which kernels a network runs on: Triton where it can, torch everywhere else; attention's are set.

Torch picks among several attention kernels, and versions differ in their first choice (some take
cuDNN's on Hopper, which builds a plan per shape). One list for all keeps figures comparable.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from spear_ros.core.errors import UserError
from spear_ros.inference.ops import TorchOps

Kernels = Literal['auto', 'triton', 'torch']

# Ampere: bfloat16 in hardware. Older cards run the torch operations.
MIN_CAPABILITY = (8, 0)
MAX_TOKENS = 16
"""Of the suffix (proprioception and horizon): the kernels of the expert hold one tile of them."""

ATTENTION = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
"""What torch may choose from on a GPU, for every attention that is not a kernel of ours."""


@contextmanager
def running_on(device: torch.device) -> Iterator[None]:
    """Make a GPU the current device (Triton and captures use that one) and fix its attention."""
    if device.type != 'cuda':
        yield
        return
    with torch.cuda.device(device), sdpa_kernel(list(ATTENTION)):
        yield


def end_broken_capture(device: torch.device, pool: Any) -> None:
    """Tell torch's allocator that a capture into ``pool`` has failed.

    torch below 2.12 forgets to where ending the capture itself raises; every ``empty_cache`` after
    that, and with it every other capture, would fail with an internal assertion.
    """
    end = getattr(torch._C, '_cuda_endAllocateToPool', None)
    if end is not None:
        index = torch.cuda.current_device() if device.index is None else device.index
        with suppress(RuntimeError):  # it was told already
            end(index, pool)


def choose_ops(
    kernels: Kernels, device: torch.device, compute: torch.dtype, suffix_tokens: int
) -> tuple[type[TorchOps], str]:
    """Return the operations to run and, where ``auto`` had to fall back on a GPU, why.

    Raises:
        UserError: ``triton`` was asked for and cannot run.
    """
    if kernels == 'torch' or (kernels == 'auto' and device.type != 'cuda'):
        return TorchOps, ''
    reason = _obstacle(device, compute, suffix_tokens)
    if not reason:
        from spear_ros.inference.triton_ops import TritonOps

        return TritonOps, ''
    if kernels == 'triton':
        raise UserError(f'kernels = triton cannot run: {reason}; choose auto or torch.')
    return TorchOps, f'Triton kernels are not used, torch operations are slower: {reason}.'


def _obstacle(device: torch.device, compute: torch.dtype, suffix_tokens: int) -> str:
    if suffix_tokens > MAX_TOKENS:
        return f'{suffix_tokens} suffix tokens, the kernels hold {MAX_TOKENS}'
    if importlib.util.find_spec('triton') is None:
        return 'the package triton is not installed'
    if device.type != 'cuda':
        return f'the device is {device}'
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return f'compute capability {capability[0]}.{capability[1]} is below 8.0'
    if compute not in (torch.bfloat16, torch.float16, torch.float32):
        return f'weights of type {compute}'
    return ''
