"""From a decoded picture and an instruction to a chunk in model units, with every stage timed.

The engine owns a model on a device, the preprocessing and one runner per shape. It knows nothing of
robots, poses or ROS: actions and proprioception are model units, made by
:mod:`spear_ros.processing.action_space`.

Instructions are padded to few lengths ("buckets") with a mask, so that few graphs are captured.
Nothing is computed in a way that depends on what was computed before: the same request gives the
same bytes on a CPU.
"""

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spear_ros.core.errors import UserError
from spear_ros.core.types import FloatArray, ImageArray
from spear_ros.inference.denoiser import (
    CapturedRunner,
    ChunkInputs,
    ChunkRunner,
    ChunkShape,
    refuse_on_failure,
)
from spear_ros.networks.flow_matching import sample_noise
from spear_ros.networks.spear1 import Spear1, Spear1Config
from spear_ros.processing.images import ImageFit, ImageSize, fit_image
from spear_ros.processing.tokens import TextTokens

# Each shape holds its own key-value cache and graphs; four buckets with and without wrist fit.
MAX_RUNNERS = 8

_BUCKETS = (16, 32, 48, 64)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """How an engine runs a model."""

    image_fit: ImageFit = 'crop'
    steps: int = 0
    """Euler steps of the flow; 0 = the model's own."""
    capture_graph: bool = True
    """Record CUDA graphs; without effect on a CPU."""

    def __post_init__(self) -> None:
        if not 0 <= self.steps <= 100:
            raise UserError(f"steps = {self.steps} must lie between 0 and 100 (0 = the model's).")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequest:
    """One chunk to compute."""

    external: ImageArray
    """(H, W, 3) uint8 RGB of any size."""
    wrist: ImageArray | None
    """(H, W, 3) uint8 RGB, or None."""
    text: TextTokens
    """Padded to one of :attr:`Engine.buckets`."""
    proprio: FloatArray
    """(8,) in model units."""
    noise: NDArray[np.float32]
    """(H, 8), see :func:`chunk_noise`."""
    committed: FloatArray | None = None
    """(K, 8) in model units, K < H: the first K actions of the chunk must be these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTimes:
    """Milliseconds of one request, measured with the device synchronised at each boundary."""

    preprocess_ms: float
    prefill_ms: float
    denoise_ms: float

    @property
    def total_ms(self) -> float:
        """Sum of the stages."""
        return self.preprocess_ms + self.prefill_ms + self.denoise_ms


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineResult:
    """A chunk in model units and what it cost."""

    actions: FloatArray
    """(H, 8)."""
    times: StageTimes


def text_buckets(config: Spear1Config) -> tuple[int, ...]:
    """Lengths that instructions are padded to, up to the model's budget."""
    return (*(b for b in _BUCKETS if b < config.text_length), config.text_length)


def noise_seed(seed: int, t_obs_ns: int) -> int:
    """Mix the operator's seed with the observation time into 63 bits.

    A plain sum would give seed 1 at time 0 the noise of seed 0 at time 1.
    """
    digest = hashlib.sha256(f'{seed}:{t_obs_ns}'.encode()).digest()
    return int.from_bytes(digest[:8], 'little') >> 1


def chunk_noise(config: Spear1Config, seed: int, t_obs_ns: int) -> NDArray[np.float32]:
    """Noise (H, 8) of one chunk: the same for the same seed and observation on every device."""
    generator = torch.Generator('cpu').manual_seed(noise_seed(seed, t_obs_ns))
    return sample_noise(1, config.flow, generator)[0].numpy()


class Engine:
    """Runs one model on one device.

    Args:
        model: loaded; put into eval mode, baked and moved by this constructor.
        device: ``cpu`` or a CUDA device.
        settings: see :class:`EngineSettings`.

    Raises:
        UserError: the device is not there or out of memory.
    """

    def __init__(self, model: Spear1, device: torch.device | str, settings: EngineSettings) -> None:
        self.device = check_device(device)
        self.settings = settings
        with refuse_on_failure(f'moving the model to {self.device}'), torch.no_grad():
            self._model: Spear1 | None = model.to(self.device).eval().requires_grad_(False)
            self._model.bake()
        self.config = model.config
        self.buckets = text_buckets(self.config)
        self._runners: OrderedDict[ChunkShape, ChunkRunner] = OrderedDict()
        self._pool: Any = None

    @property
    def captures(self) -> bool:
        """Whether chunks are computed by captured graphs."""
        return self.device.type == 'cuda' and self.settings.capture_graph

    def warm_up(self, wrist: bool = True) -> None:
        """Make what later calls need: every graph on a GPU, one run on a CPU.

        Args:
            wrist: a wrist camera is expected; shapes without it are prepared too, for when its
                picture is missing.

        Raises:
            UserError: out of memory, or a capture failed.
        """
        with_wrist = (True, False) if wrist else (False,)
        shapes = [ChunkShape(text=b, wrist=w) for b in self.buckets for w in with_wrist]
        for shape in shapes if self.captures else shapes[:1]:
            with refuse_on_failure('warming up'):
                self._runner(shape).run(self._runner(shape).inputs)
        self._synchronize()

    def compute(self, request: EngineRequest) -> EngineResult:
        """Compute one chunk.

        Raises:
            UserError: a picture cannot be used, or memory ran out.
        """
        started = time.perf_counter()
        with refuse_on_failure('computing a chunk'), torch.no_grad():
            inputs = self._preprocess(request)
            shape = ChunkShape(text=inputs.tokens.shape[1], wrist=inputs.wrist is not None)
            runner = self._runner(shape)
            self._synchronize()
            prepared = time.perf_counter()
            runner.load(inputs)
            runner.prefill()
            self._synchronize()
            prefilled = time.perf_counter()
            runner.denoise()
            actions = runner.actions[0].double().cpu().numpy()
            finished = time.perf_counter()
        times = StageTimes(
            preprocess_ms=(prepared - started) * 1e3,
            prefill_ms=(prefilled - prepared) * 1e3,
            denoise_ms=(finished - prefilled) * 1e3,
        )
        return EngineResult(actions=actions, times=times)

    def close(self) -> None:
        """Release graphs, buffers and the model; the engine cannot be used afterwards."""
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()
        self._model, self._pool = None, None
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()

    def _preprocess(self, request: EngineRequest) -> ChunkInputs:
        config, fit = self.config, self.settings.image_fit
        horizon = config.flow.horizon
        noise = self._tensor(request.noise, torch.float32)[None]
        committed, mask = noise.clone(), torch.zeros(1, horizon, dtype=torch.bool)
        if request.committed is not None:
            count = len(request.committed)
            assert 0 < count < horizon, count
            committed[0, :count] = self._tensor(request.committed, torch.float32)
            mask[0, :count] = True
        return ChunkInputs(
            external=self._picture(request.external, ImageSize(*config.external_size), fit),
            wrist=None
            if request.wrist is None
            else self._picture(request.wrist, ImageSize(*config.wrist_size), fit),
            tokens=self._tensor(request.text.ids, torch.int64)[None],
            token_mask=self._tensor(request.text.mask, torch.bool)[None],
            proprio=self._tensor(request.proprio, torch.float32)[None],
            noise=noise,
            committed=committed,
            committed_mask=mask.to(self.device),
        )

    def _picture(self, image: ImageArray, size: ImageSize, fit: ImageFit) -> torch.Tensor:
        pixels = np.ascontiguousarray(image)
        if not pixels.flags.writeable:
            pixels = pixels.copy()  # torch has no read-only tensors and would warn
        return fit_image(torch.from_numpy(pixels).to(self.device), size, fit)[None]

    def _tensor(self, values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype).to(self.device)

    def _runner(self, shape: ChunkShape) -> ChunkRunner:
        if shape in self._runners:
            self._runners.move_to_end(shape)
            return self._runners[shape]
        assert self._model is not None, 'the engine is closed'
        if len(self._runners) >= MAX_RUNNERS:
            self._runners.popitem(last=False)[1].close()
        steps = self.settings.steps or None
        runner: ChunkRunner | CapturedRunner
        if self.captures:
            runner = CapturedRunner(self._model, shape, steps, self._pool)
            self._pool = runner.pool
        else:
            runner = ChunkRunner(self._model, shape, steps)
        self._runners[shape] = runner
        return runner

    def _synchronize(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)


def check_device(device: torch.device | str) -> torch.device:
    """Resolve ``auto`` (CUDA where torch sees one, else CPU) and refuse what is not there.

    Raises:
        UserError: an unknown name, or CUDA without a CUDA device.
    """
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise UserError(f'device "{device}" is unknown; choose auto, cpu or cuda.') from None
    if resolved.type not in ('cpu', 'cuda'):
        raise UserError(f'device "{device}" is not supported; choose auto, cpu or cuda.')
    if resolved.type == 'cuda':
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= count:
            raise UserError(
                f'device "{device}": torch {torch.__version__} sees {count} CUDA devices; install '
                'a CUDA build of torch and its driver, or choose cpu.'
            )
    return resolved
