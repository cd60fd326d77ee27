"""The stages of one chunk, each alone and on static buffers, for benchmarks.

These are the plain networks, the engine's reference: what a stage costs by itself, without the
overlap and the fusions that the engine may add. Every function takes nothing, allocates only what
the networks allocate and can be captured.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spear_ros.inference.roofline import DENOISE, MOGE, PREFILL, SIGLIP, Workload
from spear_ros.networks import flow_matching
from spear_ros.networks.gemma import attend
from spear_ros.networks.moge import imagenet_normalize
from spear_ros.networks.spear1 import ChunkCache, PrefixInputs, Spear1
from spear_ros.processing.images import ImageFit, ImageSize, fit_image

COPY_IN, PREPROCESS, COPY_OUT = 'copy in', 'preprocess', 'copy out'

Stage = Callable[[], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class HostInputs:
    """What a robot's computer has before a chunk is computed."""

    pictures: tuple[NDArray[np.uint8], ...]
    """(H, W, 3) RGB as the cameras send them: external, then wrist where there is one."""
    tokens: NDArray[np.int64]
    """(L,), all of them real."""
    proprio: NDArray[np.float32]
    """(8,)."""
    noise: NDArray[np.float32]
    """(horizon, 8)."""


def random_inputs(
    load: Workload, camera: tuple[int, int] = (480, 640), seed: int = 0
) -> HostInputs:
    """Draw pictures of ``camera`` (height, width), an instruction, proprioception and noise."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    vocabulary = load.config.language.vocab_size
    return HostInputs(
        pictures=tuple(
            rng.integers(0, 256, (*camera, 3), dtype=np.uint8) for _ in range(load.cameras)
        ),
        tokens=rng.integers(3, vocabulary, load.text),
        proprio=rng.normal(size=8).astype(np.float32),
        noise=flow_matching.sample_noise(1, load.config.flow, generator)[0].numpy(),
    )


class StageBench:
    """Builds the stages of a workload; results of one are the inputs of the next.

    Args:
        model: in eval mode, baked, on the device that is measured.
        load: what a chunk is asked; ``load.config`` is the model's but for the flow.
        inputs: what the host holds.
        fit: how pictures are brought to size.
    """

    def __init__(
        self, model: Spear1, load: Workload, inputs: HostInputs, fit: ImageFit = 'crop'
    ) -> None:
        self.model, self.load, self.fit = model, load, fit
        self.device = model.vlm.language.norm.weight.device
        pin = self.device.type == 'cuda'
        self._host = [_pinned(torch.from_numpy(p), pin) for p in inputs.pictures]
        self._raw = [h.to(self.device) for h in self._host]
        self._small = [
            _pinned(torch.from_numpy(a), pin) for a in (inputs.tokens, inputs.proprio, inputs.noise)
        ]
        self._small_there = [h.to(self.device) for h in self._small]
        config = load.config
        sizes = [ImageSize(*config.external_size), ImageSize(*config.wrist_size)]
        self._sizes = sizes[: load.cameras]
        with torch.no_grad():
            self._prepare()
        self._answer = _pinned(torch.zeros(config.flow.horizon, 8), pin)

    @property
    def chunk(self) -> Tensor:
        """(1, horizon, 8) on the device: what the denoise stage wrote last."""
        return self._chunk

    def stages(self) -> dict[str, Stage]:
        """Return the stages in their order."""
        return {
            COPY_IN: self.copy_in,
            PREPROCESS: self.preprocess,
            SIGLIP: self.siglip,
            MOGE: self.moge,
            PREFILL: self.language,
            DENOISE: self.denoise,
            COPY_OUT: self.copy_out,
        }

    @torch.no_grad()
    def copy_in(self) -> None:
        """Pictures, token ids, proprioception and noise from pinned memory to the device."""
        for source, target in zip(
            (*self._host, *self._small), (*self._raw, *self._small_there), strict=True
        ):
            target.copy_(source, non_blocking=True)

    @torch.no_grad()
    def preprocess(self) -> None:
        """Pictures to the networks' sizes."""
        for raw, pixels, size in zip(self._raw, self._pixels, self._sizes, strict=True):
            pixels.copy_(fit_image(raw, size, self.fit)[None])

    @torch.no_grad()
    def siglip(self) -> list[Tensor]:
        """SigLIP and its projector on every picture."""
        vlm = self.model.vlm
        return [vlm.siglip_projector(vlm.siglip(x * 2 - 1)) for x in self._pixels]

    @torch.no_grad()
    def moge(self) -> list[Tensor]:
        """MoGe's encoder and its projector on every picture."""
        vlm, config = self.model.vlm, self.load.config
        return [
            vlm.moge_projector(
                vlm.moge(imagenet_normalize(x), config.moge_layers, config.moge_norm)
            )
            for x in self._pixels
        ]

    @torch.no_grad()
    def language(self) -> None:
        """The language stack over the embedded prefix: keys and values into the cache."""
        x_BPD, prefix = self._prefix, self._cache.prefix
        blocks = self.model.vlm.language.blocks
        for i, block in enumerate(blocks):
            if i == len(blocks) - 1:
                k, v = block.project_kv(x_BPD, self._rotary)
            else:
                q, k, v = block.project(x_BPD, self._rotary)
                x_BPD = block.finish(x_BPD, attend(q, k, v, None))
            self._cache.kv[i, 0, :, :, :prefix] = k
            self._cache.kv[i, 1, :, :, :prefix] = v

    @torch.no_grad()
    def denoise(self) -> None:
        """All Euler steps."""
        chunk = flow_matching.integrate(
            lambda actions, i: self.model.denoise_step(
                actions, self._times[i : i + 1], self._cache
            ),
            self._small_there[2][None],
            self.load.config.flow,
            None,
            self.load.euler_steps,
        )
        self._chunk.copy_(chunk)

    @torch.no_grad()
    def copy_out(self) -> None:
        """The chunk back into pinned memory."""
        self._answer.copy_(self._chunk[0], non_blocking=True)

    def _prepare(self) -> None:
        """Run everything once, so that each stage has its inputs."""
        tokens, proprio, noise = (t[None] for t in self._small_there)
        self._pixels = [
            fit_image(r, s, self.fit)[None] for r, s in zip(self._raw, self._sizes, strict=True)
        ]
        inputs = PrefixInputs(
            external=self._pixels[0],
            wrist=self._pixels[1] if self.load.cameras > 1 else None,
            tokens=tokens,
        )
        self._prefix, _ = self.model.vlm.embed_prefix(inputs)
        self._cache: ChunkCache = self.model.prefill(inputs, proprio)
        positions = torch.arange(self._cache.prefix, device=self.device)[None]
        self._rotary = self.model.vlm.language.rotary(positions)
        self._times = self.model.time_table(self.load.euler_steps)
        self._chunk = torch.zeros_like(noise)


def _pinned(tensor: Tensor, pin: bool) -> Tensor:
    return tensor.pin_memory() if pin else tensor.clone()
