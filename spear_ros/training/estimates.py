"""What a run will take, before it starts: memory per process, arithmetic per sample.

Arithmetic counts multiply-adds of matrix products as two operations; a backward pass costs twice
the forward pass of what it goes through, and nothing where no gradient is needed. Model-FLOP
utilisation is the arithmetic that the model needs per second over the device's peak; what
activation checkpointing computes again does not count.
"""

import time
from dataclasses import dataclass

import torch
from torch import nn

from spear_ros.core.errors import UserError
from spear_ros.networks.config import GemmaConfig, Spear1Config, VitConfig
from spear_ros.training.config import TrainConfig
from spear_ros.training.distributed import Place

PEAK_BF16 = {
    'H200': 989e12,
    'H100': 989e12,
    'A100': 312e12,
    'L40S': 362e12,
    'RTX 4090': 165e12,
    'RTX 3090': 71e12,
    'A10': 125e12,
}
"""Dense bfloat16 tensor-core peaks from NVIDIA's data sheets, FLOP/s."""

ACTIVATION_BYTES = 34
"""bfloat16 bytes kept per token and unit of width by a transformer block whose attention does not
keep its scores (Korthikanti et al., arXiv 2205.05198, without the 5 a s / h term)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StackCost:
    """One transformer stack in one pass over one sample."""

    tokens: int
    width: int
    layers: int
    weights: float
    """Of all matrices."""
    trained: bool
    """Gradients go through it: its activations are kept."""
    learns: bool = True
    """Of what is ``trained``: its own weights have gradients too."""
    passes: float = 1.0
    """Per sample; below 1 where samples share one."""

    @property
    def forward(self) -> float:
        """Operations of the forward pass, per sample."""
        attention = 4.0 * self.layers * self.tokens**2 * self.width
        return self.passes * (2.0 * self.tokens * self.weights + attention)

    @property
    def activations(self) -> float:
        """Bytes kept for the backward pass, per sample."""
        return self.passes * ACTIVATION_BYTES * self.tokens * self.width * self.layers


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes on one process."""

    weights: float
    optimizer: float
    gradients: float
    average: float
    activations: float

    @property
    def total(self) -> float:
        """Sum, with a tenth for what is not counted."""
        parts = self.weights, self.optimizer, self.gradients, self.average, self.activations
        return 1.1 * sum(parts)

    def text(self) -> str:
        """One line."""
        names = ('weights', 'gradients', 'optimizer', 'average', 'activations')
        parts = ', '.join(f'{n} {getattr(self, n) / 1e9:.2f}' for n in names)
        return f'memory estimate per process: {self.total / 1e9:.2f} GB ({parts})'


def vit_weights(config: VitConfig) -> float:
    """Weights of the matrices of a vision transformer."""
    block = 4 * config.width**2 + 2 * config.width * config.mlp_width
    return float(config.layers * block + 3 * config.patch**2 * config.width)


def gemma_weights(config: GemmaConfig, width: int, mlp_width: int) -> float:
    """Weights of the matrices of one stack, without the embedding."""
    heads = (2 * config.heads + 2 * config.kv_heads) * config.head_dim
    return float(config.layers * (width * heads + 3 * width * mlp_width))


def spear1_stacks(
    config: Spear1Config, wrist: bool, trained: tuple[str, ...], per_picture: int = 1
) -> list[StackCost]:
    """Stacks of SPEAR-1: each encoder once per camera, language, expert.

    Args:
        config: the sizes.
        wrist: whether there is a wrist camera.
        trained: as in :class:`~spear_ros.training.config.VlaConfig`.
        per_picture: samples that share the encoders' work on a picture.
    """
    images = (config.external_tokens, config.wrist_tokens)[: 2 if wrist else 1]
    prefix = sum(images) + config.text_length
    language, expert = config.language, config.expert
    # What is learnt below or beside a frozen language stack still needs gradients through it.
    through = any(part.startswith(('vlm.', 'projector')) for part in trained)
    encoders = [
        StackCost(
            tokens=tokens,
            width=vit.width,
            layers=vit.layers,
            weights=vit_weights(vit),
            trained=name in trained,
            passes=1.0 / per_picture,
        )
        for name, vit in (('vlm.siglip', config.siglip), ('vlm.moge', config.moge))
        for tokens in images
    ]
    return [
        *encoders,
        StackCost(
            tokens=prefix,
            width=language.width,
            layers=language.layers,
            weights=gemma_weights(language, language.width, language.mlp_width),
            trained=through,
            learns='vlm.language' in trained,
        ),
        StackCost(
            tokens=config.suffix_tokens,
            width=expert.width,
            layers=language.layers,
            weights=gemma_weights(language, expert.width, expert.mlp_width),
            trained=True,
        ),
    ]


def operations(stacks: list[StackCost]) -> float:
    """FLOP of forward and backward passes over one sample."""
    return sum(s.forward * (1.0 + s.trained * (1.0 + s.learns)) for s in stacks)


def estimate_memory(
    module: nn.Module, stacks: list[StackCost], config: TrainConfig, place: Place
) -> MemoryEstimate:
    """Memory of one process; the module may be on the meta device."""
    shards = place.world // config.parallel.replicas
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    stored = 4.0 * trained / shards
    stored += frozen * (2.0 if config.frozen_dtype == 'bfloat16' else 4.0)
    if place.world > 1:  # gathered for computing, in the type of the arithmetic
        stored += trained * (2.0 if config.precision == 'bfloat16' else 4.0)
    samples = config.batch_size / place.world / config.accumulate
    kept = sum(s.activations for s in stacks if s.trained)
    if config.recompute:
        kept = sum(s.passes * 2.0 * s.tokens * s.width * s.layers + s.activations / s.layers
                   for s in stacks if s.trained)  # fmt: skip
    scale = 1.0 if config.precision == 'bfloat16' else 2.0
    return MemoryEstimate(
        weights=stored,
        gradients=4.0 * trained / shards,
        optimizer=8.0 * trained / shards,
        average=4.0 * trained / shards if config.ema_decay else 0.0,
        activations=samples * kept * scale,
    )


def check_memory(estimate: MemoryEstimate, place: Place, enforce: bool) -> None:
    """Refuse a run that cannot fit.

    Raises:
        UserError: the estimate exceeds the device's memory.
    """
    if place.device.type == 'cuda':
        available = float(torch.cuda.get_device_properties(place.device).total_memory)
    else:
        available = _host_memory()
    if enforce and estimate.total > available:
        raise UserError(
            f'{estimate.text()}, and the device has {available / 1e9:.1f} GB; raise accumulate, '
            'set recompute=true, use more processes, or train fewer parts (check_memory=false '
            'starts anyway).'
        )


def _host_memory() -> float:
    try:
        with open('/proc/meminfo', encoding='ascii') as stream:
            return 1024.0 * int(stream.readline().split()[1])
    except (OSError, ValueError, IndexError):
        return float('inf')


def peak_flops(device: torch.device, precision: str) -> float:
    """Peak of the device in FLOP/s: NVIDIA's figure, or for others a matrix product measured now.

    float32 counts against the bfloat16 peak on known GPUs: that is what is left unused.
    """
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
        for part, peak in PEAK_BF16.items():
            if part in name:
                return peak
    dtype = torch.bfloat16 if precision == 'bfloat16' else torch.float32
    size = 1024 if device.type == 'cpu' else 8192
    a = torch.randn(size, size, device=device).to(dtype)
    best = float('inf')
    for _ in range(4):
        started = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best
