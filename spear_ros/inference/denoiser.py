"""One chunk on static buffers: line by line, or as one captured graph.

Both twins run the very same stages (``fused.py``); the captured one records them once per shape,
copies from and to the host included, and replays them as one graph. Before each chunk the inputs
are compared with the buffers (shape, type, on the host): a graph would read stale or foreign memory
without a complaint.

What may not be in a stage, because a capture cannot hold it: copies from pageable host memory,
synchronisation (``.item()``, boolean indexing), branches on values; ``audit.py`` finds them.

Ownership: a runner owns its buffers and its graph; :meth:`ChunkRunner.close` frees both. What
:meth:`ChunkRunner.run` returns is a copy.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spear_ros.core.errors import UserError, root_cause
from spear_ros.inference.chunk_buffers import ChunkBuffers, ChunkInputs, ChunkShape
from spear_ros.inference.fused import FusedSpear1, Stage
from spear_ros.inference.kernels import end_broken_capture, running_on

# Lazy initialisation (cuBLAS handles, workspaces, compilation of kernels) must be over before a
# capture.
WARM_UP_RUNS = 3

NO_CAPTURE = (
    'set capture_graph: false in config/policies/spear1.yaml to run without graphs (several times '
    'slower), or allow_eager: true to do so by itself, or kernels: torch if Triton is named, and '
    'report this text.'
)


class ChunkRunner:
    """The eager twin: runs the stages line by line, on any device.

    Args:
        network: fused.
        shape: what the buffers are made for.
    """

    captured = False

    def __init__(self, network: FusedSpear1, shape: ChunkShape) -> None:
        self.network, self.shape = network, shape
        self.device = network.device
        self._buffers: ChunkBuffers | None = network.make_buffers(shape)

    @property
    def buffers(self) -> ChunkBuffers:
        """The static memory; not after :meth:`close`."""
        assert self._buffers is not None, 'the runner is closed'
        return self._buffers

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The parts of a chunk in order, to be timed one by one on :attr:`buffers`."""
        return self.network.stages

    def load(self, inputs: ChunkInputs) -> None:
        """Put the inputs of the next chunk into the host's side of the static buffers.

        Raises:
            ValueError: they are not of this runner's shape or type.
        """
        self.buffers.load(inputs)

    def launch(self) -> None:
        """Start the chunk of what was loaded; on a GPU this returns before it is done."""
        self.network(self.buffers)

    def finish(self) -> NDArray[np.float32]:
        """Wait for the chunk and return a copy of it, (H, 8)."""
        if self.device.type == 'cuda':
            torch.cuda.current_stream(self.device).synchronize()
        return self.buffers.host_actions.numpy().copy()

    def run(self, inputs: ChunkInputs) -> NDArray[np.float32]:
        """Compute one chunk (H, 8).

        Raises:
            ValueError: see :meth:`load`.
        """
        self.load(inputs)
        self.launch()
        return self.finish()

    def close(self) -> None:
        """Let go of the buffers."""
        self._buffers = None


class CapturedRunner(ChunkRunner):
    """The captured twin: one CUDA graph from the host's inputs to the host's actions.

    Graphs of several shapes share one memory pool, since only one runs at a time.

    Raises:
        UserError: the capture failed or memory ran out; the sentence says the mend.
    """

    captured = True

    def __init__(self, network: FusedSpear1, shape: ChunkShape, pool: Any = None) -> None:
        what = f'capturing the graph of {shape.text} text tokens'
        with refuse_on_failure(what, NO_CAPTURE), running_on(network.device):
            super().__init__(network, shape)
            assert self.device.type == 'cuda', self.device
            self.pool = torch.cuda.graph_pool_handle() if pool is None else pool
            self._warm_up()
            self._graph: torch.cuda.CUDAGraph | None = self._capture(network)

    def launch(self) -> None:
        """Replay the graph."""
        assert self._graph is not None, 'the runner is closed'
        self._graph.replay()

    def capture_stages(self) -> dict[str, torch.cuda.CUDAGraph]:
        """Record every stage as a graph of its own, in order, to be timed; the caller keeps them.

        Replaying all of them in order is a chunk. For benchmarks: :meth:`launch` is one graph.

        Raises:
            UserError: a capture failed.
        """
        with refuse_on_failure('capturing the stages', NO_CAPTURE), running_on(self.device):
            return {stage.name: self._capture(stage.run) for stage in self.stages}

    def close(self) -> None:
        """Free the graph's memory and the buffers."""
        if self._graph is not None:
            torch.cuda.current_stream(self.device).synchronize()
            self._graph.reset()
        self._graph = None
        super().close()

    @torch.no_grad()
    def _warm_up(self) -> None:
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                self.network(self.buffers)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)

    @torch.no_grad()
    def _capture(self, part: Callable[[ChunkBuffers], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads (a second camera's upload, diagnostics) may call CUDA meanwhile.
            with torch.cuda.graph(
                graph,
                pool=self.pool,
                stream=self.network.capture_stream,
                capture_error_mode='thread_local',
            ):
                part(self.buffers)
        except Exception:
            end_broken_capture(self.device, self.pool)
            raise
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
        raise OutOfMemoryError(
            f'out of memory while {what} ({text}); free the device, use dtype bfloat16 or a '
            'smaller checkpoint.'
        ) from None
    except RuntimeError as error:
        text = ' '.join(str(error).split())[:160]
        if 'allocate memory' in text:
            raise OutOfMemoryError(
                f'out of memory while {what} ({text}); close other programs, use dtype bfloat16 or '
                'a smaller checkpoint.'
            ) from None
        if not mend:
            raise
        raise UserError(f'{what} failed ({root_cause(error)}); {mend}') from error
    except UserError:
        raise
    except Exception as error:  # Triton's own errors are no RuntimeErrors
        if not mend:
            raise
        raise UserError(f'{what} failed ({root_cause(error)}); {mend}') from error


class OutOfMemoryError(UserError):
    """Memory ran out: nothing slower would help, so this always refuses."""
