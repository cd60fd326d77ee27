"""From a decoded picture and an instruction to a chunk in model units, with every stage timed.

The engine owns a fused network on a device and one runner per shape. It knows nothing of robots,
poses or ROS: actions and proprioception are model units, made by
:mod:`spear_ros.processing.action_space`.

Instructions are padded to few lengths ("buckets") with a mask, so that few graphs are captured,
all of them by :meth:`Engine.warm_up`: a changed instruction never captures. Nothing is computed in
a way that depends on what was computed before: the same request gives the same bytes on a CPU.

What happens when a graph cannot be had: out of memory refuses; anything else refuses too, or with
``allow_eager`` runs the eager twin and says so in :attr:`Engine.warnings`.
"""

import hashlib
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spear_ros.core.errors import UserError
from spear_ros.core.types import FloatArray, ImageArray
from spear_ros.inference.chunk_buffers import ChunkInputs, ChunkShape
from spear_ros.inference.denoiser import (
    CapturedRunner,
    ChunkRunner,
    OutOfMemoryError,
    refuse_on_failure,
)
from spear_ros.inference.fused import FusedSpear1
from spear_ros.inference.fused_weights import FuseOptions, fuse
from spear_ros.inference.kernel_trial import proven_ops
from spear_ros.inference.kernels import Kernels
from spear_ros.networks.flow_matching import sample_noise, shrink_noise
from spear_ros.networks.spear1 import Spear1, Spear1Config
from spear_ros.processing.images import ImageFit, ImageSize, place
from spear_ros.processing.tokens import TextTokens

# Each shape holds its own key-value cache and graph; four buckets with and without wrist fit.
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
    allow_eager: bool = False
    """Run line by line, with a warning, where a graph cannot be recorded; otherwise refuse."""
    kernels: Kernels = 'auto'
    """``auto`` (Triton where a trial is right), ``triton`` (or refuse), ``torch``."""
    external_camera: tuple[int, int] = (480, 640)
    """Rows and columns that :meth:`Engine.warm_up` prepares for. Other pictures work too; the first
    of another size records its graph then and there."""
    wrist_camera: tuple[int, int] = (480, 640)

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
    """Milliseconds of one request on the host's clock, the device synchronised at each boundary.

    A captured chunk has no boundaries inside: all of it is ``graph_ms`` (the benchmark times stages
    by graphs of their own), and ``preprocess_ms`` is the host's share, checks and copies.
    """

    preprocess_ms: float
    prefill_ms: float = 0.0
    """Both image encoders and the language stack."""
    denoise_ms: float = 0.0
    graph_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        """Sum of the stages."""
        return self.preprocess_ms + self.prefill_ms + self.denoise_ms + self.graph_ms


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


def chunk_noise(
    config: Spear1Config, seed: int, t_obs_ns: int, spread: float = 1.0
) -> NDArray[np.float32]:
    """Noise (H, 8) of one chunk: the same for the same seed and observation on every device.

    ``spread`` 0 is the middle of the noise (zeros and no turn), 1 the noise of training.
    """
    generator = torch.Generator('cpu').manual_seed(noise_seed(seed, t_obs_ns))
    noise = sample_noise(1, config.flow, generator)[0]
    return noise.numpy() if spread == 1.0 else shrink_noise(noise, spread, config.flow).numpy()


class Engine:
    """Runs one model on one device.

    Args:
        model: loaded; moved to the device. The engine keeps its fused weights, not the model.
        device: ``cpu`` or a CUDA device.
        settings: see :class:`EngineSettings`.
        consume: empty the model's weights as they are fused, so that 7 GB are not held twice; the
            model cannot be used afterwards.

    Raises:
        UserError: the device is not there or out of memory, or kernels cannot run.
    """

    def __init__(
        self,
        model: Spear1,
        device: torch.device | str,
        settings: EngineSettings,
        *,
        consume: bool = False,
    ) -> None:
        self.device = check_device(device)
        self.settings = settings
        self.config = model.config
        self.buckets = text_buckets(self.config)
        self.warnings: list[str] = []
        """What runs slower than it could, one sentence each."""
        self._network: FusedSpear1 | None = self._fuse(model, consume)
        self._runners: OrderedDict[ChunkShape, ChunkRunner] = OrderedDict()
        self._captures = self.device.type == 'cuda' and settings.capture_graph
        self._pool: Any = None
        self._warm = False

    @property
    def captures(self) -> bool:
        """Whether chunks are computed by captured graphs."""
        return self._captures

    @property
    def network(self) -> FusedSpear1:
        """The fused network, for benchmarks; not after :meth:`close`."""
        assert self._network is not None, 'the engine is closed'
        return self._network

    def shapes(self, wrist: bool = True) -> list[ChunkShape]:
        """Return the shapes that :meth:`warm_up` prepares, the likeliest first."""
        settings = self.settings
        cameras = [settings.wrist_camera, None] if wrist else [None]
        return [ChunkShape(b, settings.external_camera, w) for b in self.buckets for w in cameras]

    def warm_up(self, wrist: bool = True) -> None:
        """Make what later calls need: every graph on a GPU, one run on a CPU.

        Args:
            wrist: a wrist camera is expected; shapes without it are prepared too, for when its
                picture is missing.

        Raises:
            UserError: out of memory, or a capture failed.
        """
        shapes = self.shapes(wrist)
        for shape in shapes if self.captures else shapes[:1]:
            with refuse_on_failure('warming up'):
                runner = self.runner(shape)
                runner.launch()
                runner.finish()
        self._warm = True

    def compute(self, request: EngineRequest) -> EngineResult:
        """Compute one chunk.

        Raises:
            UserError: a picture cannot be used, or memory ran out.
        """
        started = time.perf_counter()
        with refuse_on_failure('computing a chunk'):
            inputs = self._inputs(request)
            runner = self.runner(inputs.shape)
            runner.load(inputs)
            loaded = time.perf_counter()
            if runner.captured:
                runner.launch()
                actions = runner.finish()
                times = StageTimes(
                    preprocess_ms=(loaded - started) * 1e3,
                    graph_ms=(time.perf_counter() - loaded) * 1e3,
                )
            else:
                times = self._run_stages(runner, started)
                actions = runner.finish()
        return EngineResult(actions=actions.astype(float), times=times)

    def runner(self, shape: ChunkShape) -> ChunkRunner:
        """Return the runner of a shape; a new one captures its graph.

        Raises:
            UserError: out of memory, or the capture failed.
        """
        if shape in self._runners:
            self._runners.move_to_end(shape)
            return self._runners[shape]
        if len(self._runners) >= max(MAX_RUNNERS, len(self.shapes())):
            self._runners.popitem(last=False)[1].close()
        if self._warm and self.captures:
            self._warn(
                f'a graph for pictures of {shape.external} and {shape.wrist} rows and columns was '
                'recorded during operation, that chunk was late; set external_camera and '
                'wrist_camera of config/policies/spear1.yaml.'
            )
        self._runners[shape] = runner = self._make_runner(shape)
        return runner

    def close(self) -> None:
        """Release graphs, buffers and the weights; the engine cannot be used afterwards."""
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()
        self._network, self._pool = None, None
        if self.device.type == 'cuda':
            with suppress(RuntimeError):  # memory stays reserved; nothing else is wrong
                torch.cuda.empty_cache()

    def _fuse(self, model: Spear1, consume: bool) -> FusedSpear1:
        cpu = self.device.type == 'cpu'
        with refuse_on_failure(f'moving the model to {self.device}'), torch.no_grad():
            stored = model.vlm.language.norm.weight.dtype
            # A CPU multiplies in float32, whatever the weights are kept in.
            compute = torch.float32 if cpu else stored
            ops, reason = proven_ops(self.settings.kernels, self.config, self.device, compute)
            if reason:
                self._warn(reason)
            model.to(self.device).eval().requires_grad_(False)
            options = FuseOptions(
                compute=compute,
                steps=self.settings.steps or self.config.flow.steps,
                adjacent_pairs=ops.adjacent_pairs,
                consume=consume,
            )
            weights = fuse(model, options)
            return FusedSpear1(weights, ops(weights), self.settings.image_fit)

    def _make_runner(self, shape: ChunkShape) -> ChunkRunner:
        if not self.captures:
            return ChunkRunner(self.network, shape)
        try:
            runner = CapturedRunner(self.network, shape, self._pool)
        except OutOfMemoryError:
            raise
        except UserError as error:
            if not self.settings.allow_eager:
                raise
            self._captures = False
            self._warn(f'running without graphs, several times slower: {error}')
            return ChunkRunner(self.network, shape)
        self._pool = runner.pool
        return runner

    def _run_stages(self, runner: ChunkRunner, started: float) -> StageTimes:
        ends: dict[str, float] = {}
        with torch.no_grad():
            for stage in runner.stages:
                stage.run(runner.buffers)
                self._synchronize()
                ends[stage.name] = time.perf_counter()
        return StageTimes(
            preprocess_ms=(ends['preprocess'] - started) * 1e3,
            prefill_ms=(ends['prefill'] - ends['preprocess']) * 1e3,
            denoise_ms=(ends['download'] - ends['prefill']) * 1e3,
        )

    def _inputs(self, request: EngineRequest) -> ChunkInputs:
        horizon, fit = self.config.flow.horizon, self.settings.image_fit
        for image, size in (
            (request.external, self.config.external_size),
            (request.wrist, self.config.wrist_size),
        ):
            if image is not None:
                check_image(image, ImageSize(*size), fit)
        committed, mask = request.noise.astype(np.float32), np.zeros(horizon, np.bool_)
        if request.committed is not None:
            count = len(request.committed)
            assert 0 < count < horizon, count
            committed[:count] = request.committed
            mask[:count] = True
        return ChunkInputs(
            external=request.external,
            wrist=request.wrist,
            tokens=request.text.ids.astype(np.int64),
            token_mask=request.text.mask.astype(np.bool_),
            proprio=request.proprio.astype(np.float32),
            noise=request.noise.astype(np.float32),
            committed=committed,
            committed_mask=mask,
        )

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _synchronize(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)


def check_image(image: ImageArray, size: ImageSize, fit: ImageFit) -> None:
    """Refuse a picture before memory is made for its size.

    Raises:
        UserError: not uint8 RGB, or a side outside of the sane range.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise UserError(
            f'image of shape {image.shape} and type {image.dtype}: expected (height, width, 3) '
            'uint8 RGB; decode the message first.'
        )
    place(ImageSize(image.shape[0], image.shape[1]), size, fit)


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
