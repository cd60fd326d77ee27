"""What the executor remembers about chunks: whom it armed with, order, rejects, the newest one.

A *rejected* chunk counts: three in a row are a fault. A *dropped* one does not: it was right when
it was made and only comes too late (observed before the last arm or home, or for an instruction
that has been replaced).
"""

from collections import Counter, deque
from dataclasses import dataclass

from spear_ros.core.reasons import Reason
from spear_ros.core.types import ActionChunk
from spear_ros.runtime.executor_types import PolicyHealth
from spear_ros.runtime.safety import ChunkContext, Rejection, Verdict

REJECTS_TO_FAULT = 3
_REMEMBERED_INSTRUCTIONS = 16


@dataclass(frozen=True, slots=True)
class AcceptedChunk:
    """A chunk that may be followed, and how fast its steps may run."""

    chunk: ActionChunk
    segment_rates: tuple[float, ...]


class ChunkIntake:
    """Bookkeeping of incoming chunks; the caller holds the lock."""

    def __init__(self) -> None:
        self.pinned: PolicyHealth | None = None
        """Policy that arm was given with; None while disarmed."""
        self.pin_ids = True
        self.not_before_ns = 0
        self.epoch = 0
        """Counts arms and homes: a verdict from an older epoch is not taken over."""
        self.newest: AcceptedChunk | None = None
        """Newest valid chunk, for the preview."""
        self.pending: AcceptedChunk | None = None
        """The same until the player has it."""
        self.accepted = 0
        self.rejected = 0
        self.in_a_row = 0
        self.counts: Counter[Reason] = Counter()
        self.last_reject: Rejection | None = None
        self._session = ''
        self._sequence: int | None = None
        self._superseded: deque[str] = deque(maxlen=_REMEMBERED_INSTRUCTIONS)
        self._instruction = ''

    def start(self, now_ns: int, pinned: PolicyHealth | None) -> None:
        """Arm or home: nothing that was observed before counts any more."""
        self.pinned = pinned
        self.not_before_ns = now_ns
        self.epoch += 1
        self.in_a_row = 0
        self.newest = self.pending = None

    def stop(self) -> None:
        """Disarmed: no ids are pinned."""
        self.pinned = None
        self.pending = None
        self.epoch += 1

    def clock_jumped(self) -> None:
        """Stamps of before mean nothing now."""
        self.not_before_ns = 0
        self.newest = self.pending = None
        self.epoch += 1

    def instruct(self, instruction_id: str) -> str:
        """Note the policy's instruction; returns the id that it replaces, empty = none."""
        old = self._instruction
        if instruction_id == old:
            return ''
        if old:
            self._superseded.append(old)
        if instruction_id in self._superseded:
            self._superseded.remove(instruction_id)
        self._instruction = instruction_id
        if self.pending is not None and self.pending.chunk.instruction_id == old:
            self.pending = None
        return old

    def drop(self, chunk: ActionChunk) -> Rejection | None:
        """Say why a chunk comes too late for reasons that are nobody's fault."""
        if chunk.t_obs_ns < self.not_before_ns:
            return Rejection(
                Reason.CHUNK_OLD, 'the chunk was observed before the last arm or home; dropped.'
            )
        if chunk.instruction_id in self._superseded:
            return Rejection(
                Reason.CHUNK_OLD,
                f'the chunk follows instruction {chunk.instruction_id}, which was replaced; '
                'dropped.',
            )
        return None

    def ids(self) -> dict[str, object]:
        """What of the policy is pinned, as fields of :class:`ChunkContext`."""
        pinned = self.pinned
        if pinned is None or not self.pin_ids:
            return {}
        return {
            'policy_session': pinned.policy_session,
            'checkpoint_id': pinned.checkpoint_id,
            'horizon': pinned.horizon,
            'step_s': pinned.step_s,
        }

    def context(self, chunk: ActionChunk, received_ns: int, q_measured: object) -> ChunkContext:
        """Build what the gate compares ``chunk`` with."""
        same = chunk.policy_session == self._session
        return ChunkContext(
            received_ns=received_ns,
            q_measured=q_measured,  # type: ignore[arg-type]
            not_before_ns=self.not_before_ns,
            last_sequence=self._sequence if same else None,
            **self.ids(),  # type: ignore[arg-type]
        )

    def record(self, chunk: ActionChunk, verdict: Verdict) -> None:
        """Take over the gate's verdict."""
        rejection = verdict.rejection
        if rejection is not None:
            self.rejected += 1
            self.in_a_row += 1
            self.counts[rejection.reason] += 1
            self.last_reject = rejection
            return
        self.accepted += 1
        self.in_a_row = 0
        self._session, self._sequence = chunk.policy_session, chunk.sequence
        self.newest = self.pending = AcceptedChunk(chunk, verdict.segment_rates)
