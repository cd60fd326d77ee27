"""What goes into a chunk and comes out, and the static memory that it passes through.

A graph reads and writes addresses, so everything that differs from call to call lives in buffers
that are made once per :class:`ChunkShape`. Small inputs are packed into one block, so that one copy
takes them to the device. On a GPU the host's side is pinned memory and the copies are part of the
graph; on a CPU both sides are the same memory and nothing is copied.

Layout of the cache, T rows: [images, text | gap | proprioception, actions | gap]. The gaps round
both parts to multiples of 8, as attention kernels want their masks; they are looked at by nobody.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from spear_ros.core.types import ImageArray
from spear_ros.inference.fused_weights import FusedWeights
from spear_ros.networks.config import Spear1Config

ACTION_DIM = 8
ALIGNMENT = 16  # bytes, of each input in the packed block


class ChunkShape(NamedTuple):
    """What buffers (and a graph) are made for; the rest of the shapes is in the model's config."""

    text: int
    """Padded length of the instruction in tokens."""
    external: tuple[int, int]
    """Rows and columns of the external camera's picture."""
    wrist: tuple[int, int] | None
    """The same of the wrist camera; None has no tokens at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkInputs:
    """Inputs of one chunk, batch 1, on the host."""

    external: ImageArray
    """(H, W, 3) uint8 RGB."""
    tokens: NDArray[np.int64]
    """(L,)."""
    token_mask: NDArray[np.bool_]
    """(L,) True at real tokens, which come first."""
    proprio: NDArray[np.float32]
    """(8,) in model units."""
    noise: NDArray[np.float32]
    """(H, 8), quaternions unit with w >= 0."""
    committed: NDArray[np.float32]
    """(H, 8): actions already owed; any finite value where the mask is False."""
    committed_mask: NDArray[np.bool_]
    """(H,)."""
    wrist: ImageArray | None = None
    """(H, W, 3) uint8 RGB, or None."""

    @property
    def shape(self) -> ChunkShape:
        """The shape of the buffers that these inputs fit into."""
        wrist = None if self.wrist is None else (self.wrist.shape[0], self.wrist.shape[1])
        return ChunkShape(len(self.tokens), (self.external.shape[0], self.external.shape[1]), wrist)


class CacheLayout(NamedTuple):
    """Rows of the cache; see the module's docstring."""

    images: int
    """Image tokens, the first rows."""
    prefix: int
    """Images and text."""
    suffix: int
    """First row of the suffix, a multiple of 8."""
    actions: int
    """First row of the actions: suffix + 1."""
    end: int
    """One past the last action."""
    rows: int
    """T, a multiple of 8."""


def cache_layout(config: Spear1Config, shape: ChunkShape) -> CacheLayout:
    """Work out the rows of a shape."""
    images = config.external_tokens + (0 if shape.wrist is None else config.wrist_tokens)
    prefix = images + shape.text
    suffix = _round_up(prefix, 8)
    end = suffix + config.suffix_tokens
    return CacheLayout(images, prefix, suffix, suffix + 1, end, _round_up(end, 8))


class PackedInputs:
    """The small inputs in one block of bytes, with typed views."""

    def __init__(self, entries: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self.entries = entries
        self._offsets: dict[str, int] = {}
        size = 0
        for name, (dtype, shape) in entries.items():
            self._offsets[name] = size
            size += _round_up(_bytes(dtype, shape), ALIGNMENT)
        self.size = size

    def views(self, block: torch.Tensor) -> dict[str, torch.Tensor]:
        """Typed views of a block of :attr:`size` bytes."""
        return {
            name: block[self._offsets[name] :][: _bytes(dtype, shape)].view(dtype).view(shape)
            for name, (dtype, shape) in self.entries.items()
        }


class ChunkBuffers:
    """All static memory of one shape.

    Args:
        weights: of the network, for sizes, types and the device.
        shape: what the buffers are for.
        rotary: factors of positions, at least as many as the cache has rows.
    """

    def __init__(self, weights: FusedWeights, shape: ChunkShape, rotary: torch.Tensor) -> None:
        config, device = weights.config, weights.device
        self.shape, self.device = shape, device
        self.layout = cache_layout(config, shape)
        self.rotary = rotary
        self.sizes = (shape.external,) if shape.wrist is None else (shape.external, shape.wrist)
        horizon = config.flow.horizon
        self.packed = _packing(config, shape, self.layout)
        pinned = device.type == 'cuda'
        self.host_block = torch.zeros(self.packed.size, dtype=torch.uint8, pin_memory=pinned)
        self.host_images = tuple(
            torch.zeros(*size, 3, dtype=torch.uint8, pin_memory=pinned) for size in self.sizes
        )
        self.host_actions = torch.zeros(horizon, ACTION_DIM, pin_memory=pinned)
        self.block, self.images, self.actions = self.host_block, self.host_images, self.host_actions
        if device.type != 'cpu':
            self.block = torch.zeros_like(self.host_block, device=device)
            self.images = tuple(torch.zeros_like(i, device=device) for i in self.host_images)
            self.actions = torch.zeros_like(self.host_actions, device=device)
        self.inputs = self.packed.views(self.block)
        self._host = {k: v.numpy() for k, v in self.packed.views(self.host_block).items()}
        self._host_images = tuple(i.numpy() for i in self.host_images)
        self._suffix_steps = np.arange(config.suffix_tokens)
        self._prepare_masks()
        self._allocate(weights)
        self.load(example_inputs(config, shape))

    def _allocate(self, weights: FusedWeights) -> None:
        config, like = weights.config, {'dtype': weights.compute, 'device': self.device}
        language, layout = config.language, self.layout
        patch = 3 * config.siglip.patch**2
        self.patches = torch.zeros(layout.images, patch, **like)
        self.features = torch.zeros(layout.images, weights.projector.weight.shape[1], **like)
        self.prefix = torch.zeros(layout.prefix, language.width, **like)
        width = 2 * language.kv_heads * language.head_dim
        self.kv = torch.zeros(language.layers, layout.rows, width, **like)

    def load(self, inputs: ChunkInputs) -> None:
        """Compare every input with its buffer and copy it to the host's side.

        Raises:
            ValueError: a shape or type differs; a mistake of the program, told by name.
        """
        for f in fields(ChunkInputs):
            self._check(f.name, getattr(inputs, f.name))
        for image, new in zip(self._host_images, (inputs.external, inputs.wrist), strict=False):
            np.copyto(image, new)
        host, layout = self._host, self.layout
        for name in ('tokens', 'proprio', 'noise', 'committed', 'committed_mask'):
            np.copyto(host[name], getattr(inputs, name))
        real = int(np.count_nonzero(inputs.token_mask))
        if not inputs.token_mask[:real].all():
            raise ValueError('token_mask: padding stands before real tokens')
        host['key_bias'][layout.images : layout.prefix] = np.where(inputs.token_mask, 0, -np.inf)
        # Rotary positions skip padding: the suffix goes on behind the last real token.
        host['positions'][layout.suffix : layout.end] = layout.images + real + self._suffix_steps

    def _prepare_masks(self) -> None:
        layout, bias = self.layout, self._host['key_bias']
        bias[:] = -np.inf
        bias[: layout.images] = 0
        bias[layout.suffix : layout.end] = 0
        self._host['positions'][: layout.prefix] = np.arange(layout.prefix)

    def _check(self, name: str, new: np.ndarray | None) -> None:
        expected = self._expected(name)
        if (new is None) != (expected is None):
            raise ValueError(f'{name}: given {new is not None}, buffers made for the opposite')
        if new is None or expected is None:
            return
        if not isinstance(new, np.ndarray):
            raise ValueError(f'{name}: {type(new).__name__} instead of an array on the host')
        for what, is_, want in (
            ('shape', new.shape, expected[0]), ('type', new.dtype, np.dtype(expected[1])),
        ):  # fmt: skip
            if is_ != want:
                raise ValueError(f'{name}: {what} is {is_}, the buffers were made for {want}')

    def _expected(self, name: str) -> tuple[tuple[int, ...], type] | None:
        if name == 'external':
            return (*self.shape.external, 3), np.uint8
        if name == 'wrist':
            return None if self.shape.wrist is None else ((*self.shape.wrist, 3), np.uint8)
        if name == 'token_mask':
            return (self.shape.text,), np.bool_
        view = self._host[name]
        return view.shape, view.dtype.type


def example_inputs(config: Spear1Config, shape: ChunkShape) -> ChunkInputs:
    """Return inputs of a shape that a network can digest: black pictures, no padding, no motion."""
    horizon = config.flow.horizon
    noise = np.zeros((horizon, ACTION_DIM), np.float32)
    noise[:, 3] = 1.0
    return ChunkInputs(
        external=np.zeros((*shape.external, 3), np.uint8),
        wrist=None if shape.wrist is None else np.zeros((*shape.wrist, 3), np.uint8),
        tokens=np.zeros(shape.text, np.int64),
        token_mask=np.ones(shape.text, np.bool_),
        proprio=np.zeros(config.expert.proprio_dim, np.float32),
        noise=noise,
        committed=noise,
        committed_mask=np.zeros(horizon, np.bool_),
    )


def _packing(config: Spear1Config, shape: ChunkShape, layout: CacheLayout) -> PackedInputs:
    actions = (config.flow.horizon, ACTION_DIM)
    return PackedInputs(
        {
            'tokens': (torch.int64, (shape.text,)),
            'positions': (torch.int64, (layout.rows,)),
            'key_bias': (torch.float32, (layout.rows,)),
            'proprio': (torch.float32, (config.expert.proprio_dim,)),
            'noise': (torch.float32, actions),
            'committed': (torch.float32, actions),
            'committed_mask': (torch.bool, actions[:1]),
        }
    )


def _bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count * dtype.itemsize


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
