"""The loop of the policy process: messages in, chunks out, 5 Hz. No ROS in here.

``policy_node`` puts undecoded messages into the :class:`Inbox` from its callbacks and calls
:meth:`InferenceLoop.step` from a thread of its own. Everything slow (decoding, inference) happens
in that thread; the node's executor stays free to answer services and to publish the status, so that
a long inference never looks like a dead process. Time comes from an injected clock.
"""

import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import pose, pose_interpolate
from spear_ros.core.reasons import Reason
from spear_ros.core.types import ActionChunk, FloatArray, Observation
from spear_ros.policies.base import ChunkPrefix, Policy
from spear_ros.runtime.decode import check_instruction
from spear_ros.runtime.drift import DriftAlarm
from spear_ros.runtime.observation_buffer import InputProblem, StreamHealth

# A frame this much early (share of the period) still counts as due: cameras run at 15 or 30 Hz and
# their frames never fall exactly on the 5 Hz grid.
_DUE_SLACK = 0.2


class Buffer(Protocol):
    """What the loop needs of ``runtime.observation_buffer.ObservationBuffer``."""

    def build(self, now_ns: int) -> Observation | InputProblem: ...  # noqa: D102
    def set_instruction(self, text: str, instruction_id: str) -> None: ...  # noqa: D102
    def stream_status(self, now_ns: int) -> list[StreamHealth]: ...  # noqa: D102


class Inbox:
    """Newest undecoded messages per stream, filled by callbacks and drained by one thread."""

    def __init__(self, depths: Mapping[str, int]) -> None:
        self._queues: dict[str, deque[tuple[object, int]]] = {
            name: deque(maxlen=depth) for name, depth in depths.items()
        }
        self._condition = threading.Condition()
        self._fresh = False

    def put(self, stream: str, message: object, received_ns: int) -> None:
        """Store a message; the oldest of a full stream is dropped."""
        with self._condition:
            self._queues[stream].append((message, received_ns))
            self._fresh = True
            self._condition.notify_all()

    def wake(self) -> None:
        """Let :meth:`wait` return although nothing arrived (new instruction, shutdown)."""
        with self._condition:
            self._fresh = True
            self._condition.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Block until something was put since the last call; False on time-out."""
        with self._condition:
            self._condition.wait_for(lambda: self._fresh, timeout_s)
            fresh, self._fresh = self._fresh, False
            return fresh

    def drain(self) -> list[tuple[str, object, int]]:
        """Take everything out, per stream in order of arrival."""
        with self._condition:
            items = [(name, *item) for name, queue in self._queues.items() for item in queue]
            for queue in self._queues.values():
                queue.clear()
            return items


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopSettings:
    """How often to infer, and whether to hand committed actions back to the policy."""

    period_s: float = 0.2
    """SPEAR-1 runs at 5 Hz (paper, section on inference)."""
    realtime_chunking: bool = False
    """Give the policy the part of its own last chunk that will be executed during inference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopReport:
    """The moving half of ``PolicyStatus.msg``."""

    instruction: str
    instruction_id: str
    session: str
    chunks: int
    inference_ms: float
    inference_p50_ms: float
    inference_p99_ms: float
    overhead_p50_ms: float
    overhead_p99_ms: float
    streams: list[StreamHealth]
    ready: bool
    reason: Reason
    text: str


class InferenceLoop:
    """Runs one policy on one observation buffer.

    Args:
        policy: loaded and warmed up.
        buffer: shared with nobody else.
        decoders: per stream, a function (message, received_ns) that decodes into the buffer and
            tells the buffer of a message that cannot be used.
        publish: called in the loop's thread with each finished chunk.
        clock_ns: the node's clock; sim time works.
        settings: rate and real-time chunking.
    """

    def __init__(
        self,
        policy: Policy,
        buffer: Buffer,
        decoders: Mapping[str, Callable[[object, int], None]],
        publish: Callable[[ActionChunk], None],
        *,
        clock_ns: Callable[[], int],
        settings: LoopSettings | None = None,
        inbox: Inbox,
    ) -> None:
        self._policy, self._buffer, self._publish = policy, buffer, publish
        self._decoders, self._clock_ns, self._inbox = decoders, clock_ns, inbox
        self._settings = settings or LoopSettings()
        self.session = secrets.token_hex(4)
        self._lock = threading.RLock()  # buffer, instruction and statistics
        self._instruction, self._instruction_id = '', ''
        self._needs_reset = True
        self._next_due_ns: int | None = None
        self._last_chunk: ActionChunk | None = None
        self._discard_before_ns = 0
        self._followed: int | None = None
        self._sequence = 0
        self._inference_ms: deque[float] = deque(maxlen=100)
        self._overhead_ms: deque[float] = deque(maxlen=100)
        self._drift = DriftAlarm(clock_ns)
        self._problem = InputProblem(reason=Reason.POLICY_NOT_READY, text='no instruction yet')

    # ---------------------------------------------------------------- from the node's callbacks

    def set_instruction(self, text: str) -> str:
        """Take a new instruction and return its id; chunks of the old one end here.

        Raises:
            UserError: empty, too long, unprintable, or nothing that this policy can follow.
        """
        text = check_instruction(text)
        check = getattr(self._policy, 'check_instruction', None)
        if check is not None:
            check(text)
        with self._lock:
            self._instruction, self._instruction_id = text, secrets.token_hex(4)
            self._buffer.set_instruction(text, self._instruction_id)
            self._problem = InputProblem(
                reason=Reason.CHUNK_MISSING, text='computing the first chunk of the instruction.'
            )
            self._forget_episode()
        self._inbox.wake()
        return self._instruction_id

    def end_episode(self) -> None:
        """Drop the instruction: the robot was disarmed, and must not follow it on the next arm."""
        with self._lock:
            self._instruction, self._instruction_id = '', ''
            self._buffer.set_instruction('', '')
            self._forget_episode()

    def on_arm_or_home(self, now_ns: int) -> None:
        """Start afresh: observations from before this instant are not acted on."""
        with self._lock:
            self._discard_before_ns = now_ns
            self._forget_episode()

    def on_followed(self, sequence: int | None) -> None:
        """Note which chunk the executor follows; None unless it is RUNNING."""
        self._followed = sequence

    def report(self) -> LoopReport:
        """Decode what has arrived and describe the state of everything, from any thread."""
        with self._lock:
            self._ingest()
            return LoopReport(
                instruction=self._instruction,
                instruction_id=self._instruction_id,
                session=self.session,
                chunks=self._sequence,
                inference_ms=self._inference_ms[-1] if self._inference_ms else 0.0,
                inference_p50_ms=_percentile(self._inference_ms, 50),
                inference_p99_ms=_percentile(self._inference_ms, 99),
                overhead_p50_ms=_percentile(self._overhead_ms, 50),
                overhead_p99_ms=_percentile(self._overhead_ms, 99),
                streams=self._buffer.stream_status(self._now()),
                ready=self._problem.reason == Reason.NONE,
                reason=self._problem.reason,
                text=self._problem.text or self._warnings(),
            )

    # ---------------------------------------------------------------------- in the loop's thread

    def step(self, timeout_s: float = 0.1) -> ActionChunk | None:
        """Wait for input, infer when due, publish; return the published chunk."""
        self._inbox.wait(timeout_s)
        with self._lock:
            self._ingest()
            observation = self._due_observation()
            if observation is None:
                return None
            if self._needs_reset:
                self._policy.reset()
                self._needs_reset = False
            prefix = self._prefix(observation)
        chunk = self._infer(observation, prefix)
        if chunk is None:
            return None
        with self._lock:
            if observation.instruction_id != self._instruction_id:
                return None  # the instruction changed while the policy was thinking
            self._sequence += 1
            chunk = replace(
                chunk,
                instruction_id=self._instruction_id,
                policy_session=self.session,
                sequence=self._sequence,
            )
            self._last_chunk = chunk
        self._publish(chunk)
        received = max(frame.received_ns for frame in observation.images.values())
        total_ms = (self._now() - received) * 1e-6
        with self._lock:
            self._overhead_ms.append(max(0.0, total_ms - self._inference_ms[-1]))
        return chunk

    def _now(self) -> int:
        return self._clock_ns()

    def _ingest(self) -> None:
        for stream, message, received_ns in self._inbox.drain():
            self._decoders[stream](message, received_ns)

    def _due_observation(self) -> Observation | None:
        result = self._buffer.build(self._now())
        if isinstance(result, InputProblem):
            self._problem = result
            return None
        if result.t_obs_ns <= self._discard_before_ns:
            return None
        period_ns = round(self._settings.period_s * 1e9)
        due = self._next_due_ns
        if due is not None:
            if result.t_obs_ns < due - 4 * period_ns:
                due = None  # the clock went back: a looping bag, restarted simulation time
            elif result.t_obs_ns < due - _DUE_SLACK * period_ns:
                return None
        start = result.t_obs_ns if due is None else due
        self._next_due_ns = max(start + period_ns, result.t_obs_ns + period_ns // 2)
        return result

    def _infer(self, observation: Observation, prefix: ChunkPrefix | None) -> ActionChunk | None:
        started = time.perf_counter()
        try:
            chunk = self._policy.infer(observation, prefix)
        except UserError as error:
            self._problem = InputProblem(reason=Reason.POLICY_NOT_READY, text=str(error))
            return None
        except Exception as error:
            # The process stays alive and silent on purpose: no chunk means hold, and the status
            # says why. An inference that fails once (out of memory) may work again.
            self.fail(error)
            return None
        self._inference_ms.append((time.perf_counter() - started) * 1e3)
        self._drift.add(self._inference_ms[-1])
        self._problem = InputProblem(reason=Reason.NONE, text='')
        return chunk

    def fail(self, error: Exception) -> None:
        """Say in the status that the policy fails."""
        text = f'inference failed: {type(error).__name__}: {" ".join(str(error).split())[:300]}'
        self._problem = InputProblem(reason=Reason.POLICY_NOT_READY, text=text)

    def _warnings(self) -> str:
        """Say what is slower than it could be while chunks are produced."""
        return ' '.join([*getattr(self._policy, 'warnings', ()), self._drift.text]).strip()

    def _forget_episode(self) -> None:
        self._needs_reset, self._last_chunk, self._next_due_ns = True, None, None

    def _prefix(self, observation: Observation) -> ChunkPrefix | None:
        """Sample the last chunk at the knots that will pass while the policy computes."""
        last = self._last_chunk
        if not self._settings.realtime_chunking or last is None or not self._inference_ms:
            return None
        if self._followed != last.sequence or observation.t_obs_ns <= last.t_obs_ns:
            return None
        delay_s = _percentile(self._inference_ms, 99) * 1e-3
        count = min(math.ceil(delay_s / last.step_s), last.horizon - 1)
        targets, gripper = [], []
        for i in range(count):
            t = observation.t_obs_ns + round((i + 1) * last.step_s * 1e9)
            if t > last.expiry_ns:
                break
            T, opening = sample_chunk(last, t)
            targets.append(T)
            gripper.append(opening)
        if not targets:
            return None
        return ChunkPrefix(T_base_ee=np.stack(targets), gripper=np.array(gripper))


def sample_chunk(chunk: ActionChunk, t_ns: int) -> tuple[FloatArray, float]:
    """Return the target pose (4, 4) and gripper of a chunk at a time between t_obs and expiry."""
    knots = pose(
        np.concatenate([chunk.anchor_p[None], chunk.p_base_ee]),
        np.concatenate([chunk.anchor_q[None], chunk.q_base_ee]),
    )
    position = (t_ns - chunk.t_obs_ns) * 1e-9 / chunk.step_s
    index = min(max(math.floor(position), 0), chunk.horizon - 1)
    T = pose_interpolate(knots[index], knots[index + 1], min(max(position - index, 0.0), 1.0))
    return T, float(chunk.gripper[index])


def _percentile(values: deque[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else 0.0
