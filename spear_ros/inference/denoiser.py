"""One chunk on static buffers: prefill, then the flow's steps; eager, or as two captured graphs.

Both twins run the very same two functions, :func:`prefill` and :func:`denoise`; the captured one
records them once per shape and replays them without a Python line in between. What differs from
call to call (pixels, token ids and their mask, proprioception, noise, committed actions and their
mask) is copied into static buffers first, after its shape, type and device were compared: a graph
would replay over stale or foreign memory without a complaint.

What may not be in these functions, because a capture cannot hold it: copies from host memory,
synchronisation (``.item()``, boolean indexing), branches on values. Flow times are Python floats
that the recording bakes in; time embeddings are a table made before it.

The result buffer is overwritten by the next call: :meth:`ChunkRunner.run` returns it as is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch

from spear_ros.core.errors import UserError
from spear_ros.networks import flow_matching
from spear_ros.networks.spear1 import ChunkCache, PrefixInputs, Spear1

# Lazy initialisation (cuBLAS handles, workspaces, autotuning) must be over before a capture.
WARM_UP_RUNS = 3

NO_CAPTURE = (
    'set capture_graph: false in config/policies/spear1.yaml to run without graphs, and report '
    'this text.'
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkShape:
    """What a runner is made for; everything else of the shapes comes from the model's config."""

    text: int
    """Padded length of the instruction in tokens."""
    wrist: bool
    """Whether there is a wrist image; an absent one has no tokens at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkInputs:
    """Inputs of one chunk, batch 1; also the static buffers that they are copied into."""

    external: torch.Tensor
    """(1, 3, H, W) float32 in [0, 1]."""
    tokens: torch.Tensor
    """(1, L) int64."""
    token_mask: torch.Tensor
    """(1, L) bool."""
    proprio: torch.Tensor
    """(1, 8) float32."""
    noise: torch.Tensor
    """(1, H, 8) float32, quaternions unit with w >= 0."""
    committed: torch.Tensor
    """(1, H, 8) float32: actions already owed; any finite value where the mask is False."""
    committed_mask: torch.Tensor
    """(1, H) bool."""
    wrist: torch.Tensor | None = None
    """(1, 3, h, w) float32 in [0, 1], or None."""


def static_inputs(model: Spear1, shape: ChunkShape, device: torch.device) -> ChunkInputs:
    """Allocate the buffers of a shape, filled with values that a network can digest."""
    config = model.config
    horizon, proprio = config.flow.horizon, config.expert.proprio_dim
    noise = torch.zeros(1, horizon, flow_matching.ACTION_DIM, device=device)
    noise[..., 3] = 1.0
    wrist = torch.zeros(1, 3, *config.wrist_size, device=device) if shape.wrist else None
    return ChunkInputs(
        external=torch.zeros(1, 3, *config.external_size, device=device),
        wrist=wrist,
        tokens=torch.zeros(1, shape.text, dtype=torch.int64, device=device),
        token_mask=torch.ones(1, shape.text, dtype=torch.bool, device=device),
        proprio=torch.zeros(1, proprio, device=device),
        noise=noise,
        committed=noise.clone(),
        committed_mask=torch.zeros(1, horizon, dtype=torch.bool, device=device),
    )


def copy_inputs(source: ChunkInputs, target: ChunkInputs) -> None:
    """Copy inputs into static buffers of exactly the same shape, type and device.

    Raises:
        ValueError: a tensor differs; a mistake of the program, told by name.
    """
    for f in fields(ChunkInputs):
        new, static = getattr(source, f.name), getattr(target, f.name)
        if (new is None) != (static is None):
            raise ValueError(f'{f.name}: given {new is not None}, runner made for the opposite')
        if new is None:
            continue
        for what in ('shape', 'dtype', 'device'):
            a, b = getattr(new, what), getattr(static, what)
            if a != b:
                raise ValueError(f'{f.name}: {what} is {a}, the runner was made for {b}')
        static.copy_(new)


def prefill(model: Spear1, inputs: ChunkInputs, cache: ChunkCache) -> None:
    """Encode images and text; keys and values of prefix and proprioception into the cache."""
    prefix = PrefixInputs(
        external=inputs.external,
        tokens=inputs.tokens,
        wrist=inputs.wrist,
        token_mask=inputs.token_mask,
    )
    model.prefill(prefix, inputs.proprio, cache)


def denoise(
    model: Spear1, inputs: ChunkInputs, cache: ChunkCache, times: torch.Tensor
) -> torch.Tensor:
    """Integrate the flow from noise to a chunk (1, H, 8); one step per row of ``times``."""
    return flow_matching.integrate(
        lambda actions, i: model.denoise_step(actions, times[i : i + 1], cache),
        inputs.noise,
        model.config.flow,
        (inputs.committed, inputs.committed_mask),
        len(times),
    )


class ChunkRunner:
    """The eager twin: runs the two functions line by line, on any device.

    Args:
        model: in eval mode, baked, on ``device``.
        shape: what the buffers are made for.
        steps: Euler steps; None = the model's own.
    """

    def __init__(self, model: Spear1, shape: ChunkShape, steps: int | None = None) -> None:
        self.model, self.shape = model, shape
        self.device = model.vlm.language.norm.weight.device
        self.inputs = static_inputs(model, shape, self.device)
        config = model.config
        tokens = config.external_tokens + shape.text + shape.wrist * config.wrist_tokens
        self.cache = model.make_cache(1, tokens, padded=True)
        with torch.no_grad():
            self.times = model.time_table(steps)
        self.actions = torch.zeros_like(self.inputs.noise)

    @torch.no_grad()
    def prefill(self) -> None:
        """First stage, on the static buffers."""
        prefill(self.model, self.inputs, self.cache)

    @torch.no_grad()
    def denoise(self) -> None:
        """Second stage: writes ``actions``."""
        self.actions.copy_(denoise(self.model, self.inputs, self.cache, self.times))

    def load(self, inputs: ChunkInputs) -> None:
        """Copy the inputs of the next chunk into the static buffers.

        Raises:
            ValueError: they are not of this runner's shape, type or device.
        """
        copy_inputs(inputs, self.inputs)

    def run(self, inputs: ChunkInputs) -> torch.Tensor:
        """Compute one chunk; the result (1, H, 8) is overwritten by the next call.

        Raises:
            ValueError: see :meth:`load`.
        """
        self.load(inputs)
        self.prefill()
        self.denoise()
        return self.actions

    def close(self) -> None:
        """Let go of recordings; the eager twin has none."""


class CapturedRunner(ChunkRunner):
    """The captured twin: one CUDA graph per stage, recorded from the same functions.

    Two graphs and not one, so that the stages can be timed; a launch costs microseconds. Graphs of
    several shapes share one memory pool, since only one runs at a time.

    Raises:
        UserError: the capture failed or memory ran out; the sentence says the mend.
    """

    def __init__(
        self,
        model: Spear1,
        shape: ChunkShape,
        steps: int | None = None,
        pool: Any = None,
    ) -> None:
        super().__init__(model, shape, steps)
        assert self.device.type == 'cuda', self.device
        self.pool = torch.cuda.graph_pool_handle() if pool is None else pool
        with refuse_on_failure(f'capturing the graph of {shape.text} text tokens', NO_CAPTURE):
            self._warm_up()
            self._prefill_graph = self._capture(super().prefill)
            self._denoise_graph = self._capture(super().denoise)

    def prefill(self) -> None:
        """Replay the first stage."""
        self._prefill_graph.replay()

    def denoise(self) -> None:
        """Replay the second stage."""
        self._denoise_graph.replay()

    def close(self) -> None:
        """Free the graphs' memory."""
        self._prefill_graph.reset()
        self._denoise_graph.reset()

    def _warm_up(self) -> None:
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                ChunkRunner.prefill(self)
                ChunkRunner.denoise(self)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)

    def _capture(self, stage: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other threads (a second camera's upload, diagnostics) may call CUDA meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode='thread_local'):
            stage()
        return graph


@contextmanager
def refuse_on_failure(what: str, mend: str = '') -> Iterator[None]:
    """Turn exhausted memory, and with ``mend`` any failure of the device, into a refusal.

    Raises:
        UserError: instead of the device's error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        text = str(error).split('. ')[0][:160]
        raise UserError(
            f'out of memory while {what} ({text}); free the device, use dtype bfloat16 or a '
            'smaller checkpoint.'
        ) from None
    except RuntimeError as error:
        text = ' '.join(str(error).split())[:160]
        if 'allocate memory' in text:
            raise UserError(
                f'out of memory while {what} ({text}); close other programs, use dtype bfloat16 or '
                'a smaller checkpoint.'
            ) from None
        if not mend:
            raise
        raise UserError(f'{what} failed ({text}); {mend}') from None
