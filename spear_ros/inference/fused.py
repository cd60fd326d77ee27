"""SPEAR-1 as a short list of stages over static buffers: the same functions eager and captured.

    upload -> preprocess -> vision -> prefill -> denoise -> download

Each stage reads and writes :class:`~spear_ros.inference.chunk_buffers.ChunkBuffers` and holds no
state of its own. What they compute is :meth:`spear_ros.networks.spear1.Spear1.sample` in another
order of the same products:

- the tokens of both pictures run through every map together and attend apart;
- the language stack's last layer gives keys and values only;
- proprioception is a sixth token of the first Euler step, so that its keys and values need no pass
  over the expert's weights of their own; later steps find them in the cache;
- where committed actions must be at every step is worked out in one go before the steps.

Shapes: M tokens of this call, T rows of the cache, W encoder width, D language width, H horizon.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from spear_ros.inference.chunk_buffers import ChunkBuffers, ChunkShape, cache_layout
from spear_ros.inference.fused_weights import PIXEL_CENTRE, FusedWeights, VitWeights
from spear_ros.inference.kernels import running_on
from spear_ros.inference.ops import SuffixKeys, TorchOps
from spear_ros.networks import flow_matching
from spear_ros.processing.images import ImageFit, ImageSize, fit_image


class Stage(NamedTuple):
    """One part of a chunk, for timing; run in order they are the whole."""

    name: str
    run: Callable[[ChunkBuffers], None]


class FusedSpear1:
    """The network; see the module's docstring.

    Args:
        weights: fused with ``ops.adjacent_pairs``.
        ops: how the parts are computed.
        fit: how pictures are brought to the network's size.
    """

    def __init__(self, weights: FusedWeights, ops: TorchOps, fit: ImageFit = 'crop') -> None:
        self.weights, self.ops, self.fit = weights, ops, fit
        self.config, self.device = weights.config, weights.device
        config = self.config
        self.sizes = (ImageSize(*config.external_size), ImageSize(*config.wrist_size))
        self.image_tokens = (config.external_tokens, config.wrist_tokens)
        # SigLIP and MoGe each fill a large GPU only in part; inside a graph they run side by side.
        cuda = self.device.type == 'cuda'
        self._side = torch.cuda.Stream(self.device) if cuda else None
        # One for all graphs: blocks of a shared pool are used again on their own stream only.
        # (torch's own is one per process, on the device of the first capture.)
        self.capture_stream = torch.cuda.Stream(self.device) if cuda else None
        longest = ChunkShape(config.text_length, (0, 0), (0, 0))
        self.rotary = ops.rotary_table(cache_layout(config, longest).rows)
        times = flow_matching.euler_times(weights.steps)
        self.step = 1.0 / weights.steps
        self.ends = torch.tensor(times[1:], device=self.device).view(-1, 1, 1)

    def make_buffers(self, shape: ChunkShape) -> ChunkBuffers:
        """Allocate the static memory of a shape."""
        rows = cache_layout(self.config, shape).rows
        if rows > len(self.rotary):
            self.rotary = self.ops.rotary_table(rows)
        return ChunkBuffers(self.weights, shape, self.rotary)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages in order, each of which makes the network's device the current one."""
        parts = (
            self.upload,
            self.preprocess,
            self.vision,
            self.prefill,
            self.denoise,
            self.download,
        )
        return tuple(Stage(part.__name__, self._there(part)) for part in parts)

    def _there(self, part: Callable[[ChunkBuffers], None]) -> Callable[[ChunkBuffers], None]:
        def run(b: ChunkBuffers) -> None:
            with running_on(self.device):
                part(b)

        return run

    @torch.no_grad()
    def __call__(self, buffers: ChunkBuffers) -> None:
        """Run all stages: a chunk from the host's inputs to the host's actions."""
        for stage in self.stages:
            stage.run(buffers)

    # ------------------------------------------------------------------------------------ stages

    def upload(self, b: ChunkBuffers) -> None:
        """Copy the host's inputs to the device; nothing to do where both are the same memory."""
        if b.block is not b.host_block:
            b.block.copy_(b.host_block, non_blocking=True)
            for image, source in zip(b.images, b.host_images, strict=True):
                image.copy_(source, non_blocking=True)

    def preprocess(self, b: ChunkBuffers) -> None:
        """Camera pictures to the rows of patches (tokens, 588) that both encoders read."""
        side, start = self.config.siglip.patch, 0
        for image, size, tokens in zip(b.images, self.sizes, self.image_tokens, strict=False):
            pixels = fit_image(image, size, self.fit).sub_(PIXEL_CENTRE)
            grid = pixels.unflatten(2, (-1, side)).unflatten(1, (-1, side))
            rows = b.patches[start : start + tokens].view(
                size.height // side, size.width // side, 3, side, side
            )
            rows.copy_(grid.permute(1, 3, 0, 2, 4))
            start += tokens

    def vision(self, b: ChunkBuffers) -> None:
        """Both encoders and the projector: patches to the image rows of the prefix."""
        if self._side is None:
            self._siglip(b)
            self._moge(b)
        else:
            main = torch.cuda.current_stream(self.device)
            self._side.wait_stream(main)
            with torch.cuda.stream(self._side):
                self._moge(b)
            self._siglip(b)
            main.wait_stream(self._side)
        b.prefix[: b.layout.images] = self.ops.linear(b.features, self.weights.projector)

    def prefill(self, b: ChunkBuffers) -> None:
        """Language stack over images and text: keys and values of the prefix."""
        ops, layout, x = self.ops, b.layout, b.prefix
        text = F.embedding(b.inputs['tokens'], self.weights.embedding)
        x[layout.images :] = text.to(x.dtype).mul_(self.weights.embedding_scale)
        factors = b.rotary.index_select(0, b.inputs['positions'][: layout.prefix])
        mask = b.inputs['key_bias'][: layout.suffix].to(x.dtype).view(1, 1, 1, -1)
        y: Tensor | None = None
        for layer, kv in zip(self.weights.language, b.kv, strict=True):
            qkv = ops.linear(ops.add_rms_norm(x, y), layer.qkv)
            q = ops.rotate_and_store(qkv, factors, kv[: layout.prefix])
            if not q.shape[1]:
                return  # the last layer has nothing but keys and values
            a = ops.linear(ops.attend(q, kv[: layout.suffix], mask), layer.out)
            h = ops.geglu(ops.linear(ops.add_rms_norm(x, a), layer.gate_up))
            y = ops.linear(h, layer.down)

    def denoise(self, b: ChunkBuffers) -> None:
        """Integrate the flow from noise to the chunk."""
        ops, flow, expert = self.ops, self.config.flow, self.weights.expert
        noise, layout = b.inputs['noise'], b.layout
        owed = flow_matching.path(noise[None], b.inputs['committed'][None], self.ends, flow)
        count = b.inputs['committed_mask'][:, None]
        factors = b.rotary.index_select(0, b.inputs['positions'][layout.suffix : layout.end])
        bias = b.inputs['key_bias'].to(self.weights.compute)
        proprio = ops.linear(b.inputs['proprio'][None].to(self.weights.compute), expert.proprio_in)
        actions = noise
        for i in range(self.weights.steps):
            x = ops.embed_actions(actions, i, expert)
            if i == 0:
                x = torch.cat([proprio, x])
                x = self._run_expert(x, b, factors, self._first_mask(b, bias))
                x = x[1:]
            else:
                x = self._run_expert(x, b, factors[1:], bias.view(1, 1, 1, -1))
            velocity = ops.head(x, expert.head)
            actions = ops.euler(actions, velocity, self.step, (owed[i], count), flow)
        b.actions.copy_(flow_matching.finish(actions, flow))

    def download(self, b: ChunkBuffers) -> None:
        """Copy the actions to the host."""
        if b.actions is not b.host_actions:
            b.host_actions.copy_(b.actions, non_blocking=True)

    # ------------------------------------------------------------------------------------- parts

    def _siglip(self, b: ChunkBuffers) -> None:
        weights = self.weights.siglip
        x = self._first_rows(weights, b)
        y: Tensor | None = None
        for i in range(len(weights.layers)):
            y = self._vit_layer(weights, i, x, y)
        width = x.shape[1]
        b.features[:, :width] = self.ops.layer_norm(x.add_(y), weights.eps)

    def _moge(self, b: ChunkBuffers) -> None:
        """The last blocks' patch rows side by side, behind SigLIP's columns."""
        weights, config = self.weights.moge, self.config
        column = config.siglip.width
        x = self._first_rows(weights, b)
        patches = [rows[weights.classes :] for rows in x.split(self._segments(weights, b))]
        y: Tensor | None = None
        first = len(weights.layers) - config.moge_layers
        for i in range(len(weights.layers)):
            y = self._vit_layer(weights, i, x, y)
            if i < first:
                continue
            x.add_(y)
            y, out = None, x
            if config.moge_norm:
                out = self.ops.layer_norm(x, weights.eps)
                patches = [r[weights.classes :] for r in out.split(self._segments(weights, b))]
            target = b.features[:, column : column + x.shape[1]]
            start = 0
            for rows in patches:
                target[start : start + len(rows)] = rows
                start += len(rows)
            column += x.shape[1]

    def _first_rows(self, weights: VitWeights, b: ChunkBuffers) -> Tensor:
        """Embedded patches of all pictures, (tokens, W)."""
        segments = self._segments(weights, b)
        x = torch.cat(weights.start[: len(segments)])
        if not weights.classes:
            return x.addmm_(b.patches, weights.patch.T)
        start = 0
        for rows in x.split(segments):
            rows = rows[weights.classes :]
            rows.addmm_(b.patches[start : start + len(rows)], weights.patch.T)
            start += len(rows)
        return x

    def _segments(self, weights: VitWeights, b: ChunkBuffers) -> list[int]:
        return [n + weights.classes for n in self.image_tokens[: len(b.sizes)]]

    def _vit_layer(self, weights: VitWeights, i: int, x: Tensor, y: Tensor | None) -> Tensor:
        """One block: ``x`` takes in ``y``, what the block before it owes; return what this owes."""
        ops, layer = self.ops, weights.layers[i]
        qkv = ops.linear(ops.add_layer_norm(x, y, layer.norm1), layer.qkv)
        a = [
            _attend_picture(part, weights.heads) for part in qkv.split(self._split(weights, len(x)))
        ]
        y = ops.linear(a[0] if len(a) == 1 else torch.cat(a), layer.out)
        h = ops.linear(ops.add_layer_norm(x, y, layer.norm2), layer.up)
        return ops.linear(ops.gelu(h, weights.gelu), layer.down)

    def _split(self, weights: VitWeights, rows: int) -> list[int]:
        first = self.image_tokens[0] + weights.classes
        return [first] if rows == first else [first, rows - first]

    def _first_mask(self, b: ChunkBuffers, bias: Tensor) -> Tensor:
        """Additive mask of the first step: proprioception must not look at the actions."""
        heads = self.config.language.heads // self.config.language.kv_heads
        tokens = self.config.suffix_tokens
        mask = bias.repeat(tokens, 1)
        mask[0, b.layout.actions :].fill_(float('-inf'))
        return mask[:, None].expand(-1, heads, -1).reshape(1, 1, tokens * heads, -1)

    def _run_expert(self, x: Tensor, b: ChunkBuffers, factors: Tensor, mask: Tensor) -> Tensor:
        first = b.layout.end - len(x)
        causal = first == b.layout.suffix
        for layer, kv in zip(self.weights.expert.layers, b.kv, strict=True):
            keys = SuffixKeys(
                kv=kv, first=first, bias=b.inputs['key_bias'], mask=mask, causal=causal
            )
            x = self.ops.expert_layer(x, layer, factors, keys)
        return x


def _attend_picture(qkv: Tensor, heads: int) -> Tensor:
    """Attention inside one picture: (M, 3 W) rows [q | k | v] to (M, W)."""
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    q, k, v = qkv.view(1, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4).unbind(0)
    y = F.scaled_dot_product_attention(q, k, v)
    return y.transpose(1, 2).reshape(tokens, width)
