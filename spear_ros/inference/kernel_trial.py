"""Kernels are tried before a robot depends on them: they must compile here, and be right.

Triton compiles on the card at hand, with its own version of everything: a kernel may need more
shared memory than the card has, fail to compile, or compute something else. So a shallow network of
the same widths, with random weights, computes one chunk with the kernels and one with torch.
"""

from contextlib import suppress
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from spear_ros.core.errors import UserError, root_cause
from spear_ros.inference.chunk_buffers import ChunkInputs, ChunkShape
from spear_ros.inference.denoiser import ChunkRunner
from spear_ros.inference.fused import FusedSpear1
from spear_ros.inference.fused_weights import FuseOptions, fuse
from spear_ros.inference.kernels import Kernels, choose_ops
from spear_ros.inference.ops import TorchOps
from spear_ros.networks.flow_matching import sample_noise, shrink_noise
from spear_ros.networks.spear1 import Spear1, Spear1Config

_SHAPE = ChunkShape(16, (120, 160), (120, 160))
_STEPS = 2
_HEAD = 0.2
TOLERANCE = {torch.float32: 0.005, torch.float16: 0.02, torch.bfloat16: 0.02}
"""Largest difference of a chunk in model units. Right kernels differ by up to 0.004 in bfloat16
(40 seeds at debug size, 4 at full width, rounding emulated on a CPU); a wrong activation, rotation
or step by 0.07 and more. What moves the chunk less than this is left to the tests: a key that is
not masked, say."""


def proven_ops(
    kernels: Kernels, config: Spear1Config, device: torch.device, compute: torch.dtype
) -> tuple[type[TorchOps], str]:
    """Choose the operations as :func:`choose_ops` does, and try kernels before they are taken.

    Returns:
        The operations and, where ``auto`` had to fall back on a GPU, why.

    Raises:
        UserError: ``triton`` was asked for and cannot run or computes something else.
    """
    ops, reason = choose_ops(kernels, device, compute, config.suffix_tokens)
    if ops is TorchOps:
        return ops, reason
    wrong = fault_of(ops, config, device, compute)
    if not wrong:
        return ops, ''
    if kernels == 'triton':
        raise UserError(f'kernels = triton cannot run: {wrong}; choose auto or torch.')
    return TorchOps, f'Triton kernels are not used, torch operations are slower: {wrong}.'


@lru_cache(maxsize=16)
def fault_of(
    ops: type[TorchOps], config: Spear1Config, device: torch.device, compute: torch.dtype
) -> str:
    """Say why these operations cannot be used for this network here; empty where they can.

    Raises:
        torch.OutOfMemoryError: there is no room for the shallow network, about 1 GB at full size.
        UserError: a kernel broke the device for this process (an illegal address, say).
    """
    config = _shallow(config)
    expected = _chunk(TorchOps, config, device, compute)
    try:
        actual = _chunk(ops, config, device, compute)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton raises errors of many kinds, none of them RuntimeErrors
        cause = root_cause(error)
        _check_alive(device, cause)
        return f'a kernel failed on {device} ({cause})'
    if device.type == 'cuda':
        with suppress(RuntimeError):
            torch.cuda.empty_cache()  # the model comes next
    difference = float((actual - expected).abs().max())
    if difference <= TOLERANCE[compute]:
        return ''
    return f'kernels and torch differ by {difference:.3g} in the chunk of a trial on {device}'


def _check_alive(device: torch.device, cause: str) -> None:
    if device.type != 'cuda':
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        raise UserError(
            f'{device} failed in the trial of Triton kernels ({cause}) and cannot be used by this '
            'process any more; set kernels: torch in config/policies/spear1.yaml and start again.'
        ) from None


def _shallow(config: Spear1Config) -> Spear1Config:
    """The least layers that run every operation; a small vocabulary."""
    return replace(
        config,
        siglip=replace(config.siglip, layers=1),
        moge=replace(config.moge, layers=config.moge_layers),
        language=replace(config.language, layers=2, vocab_size=64),
    )


@torch.no_grad()
def _chunk(
    ops: type[TorchOps], config: Spear1Config, device: torch.device, compute: torch.dtype
) -> Tensor:
    """A chunk (H, 8), the same weights and inputs whatever computes it."""
    with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []):
        torch.manual_seed(0)
        with torch.device('meta'):
            model = Spear1(config)
        model = model.to(compute).to_empty(device=device)
        model.initialize()
        for parameter in model.parameters():
            if parameter.ndim < 2:  # off the zeros and ones that hide mistakes
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.expert.action_out.weight.mul_(_HEAD)
    model.eval().requires_grad_(False)
    options = FuseOptions(
        compute=compute, steps=_STEPS, adjacent_pairs=ops.adjacent_pairs, consume=True
    )
    weights = fuse(model, options)
    actions = ChunkRunner(FusedSpear1(weights, ops(weights)), _SHAPE).run(_inputs(config))
    return torch.from_numpy(actions)


def _inputs(config: Spear1Config) -> ChunkInputs:
    rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    noise, committed = (
        shrink_noise(sample_noise(1, config.flow, generator)[0], 0.2, config.flow).numpy()
        for _ in range(2)
    )
    picture = rng.integers(0, 256, (*_SHAPE.external, 3), dtype=np.uint8)
    return ChunkInputs(
        external=picture,
        wrist=picture,
        tokens=rng.integers(0, config.language.vocab_size, _SHAPE.text),
        token_mask=np.arange(_SHAPE.text) < 11,
        proprio=rng.normal(size=8).astype(np.float32),
        noise=noise,
        committed=committed,
        committed_mask=np.arange(config.flow.horizon) < 1,
    )
