"""Values of the safety gate: what it is told, what it answers."""

from dataclasses import dataclass

from spear_ros.core.reasons import Reason
from spear_ros.core.types import FloatArray


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a chunk or a command is refused: a code and a sentence with the figures."""

    reason: Reason
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkContext:
    """What the gate compares a chunk with. Empty strings and None are not compared."""

    received_ns: int
    q_measured: FloatArray | None
    """(n,) joint angles measured at the chunk's t_obs; None = no measurement, a rejection."""
    not_before_ns: int = 0
    """The last arm or home: older observations are not followed."""
    policy_session: str = ''
    checkpoint_id: str = ''
    last_sequence: int | None = None
    """Newest sequence accepted in this session."""
    horizon: int | None = None
    step_s: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of examining a chunk."""

    rejection: Rejection | None
    segment_rates: tuple[float, ...] = ()
    """(H,) largest rate of time per step that the joints' nominal limits allow."""


@dataclass(frozen=True, slots=True)
class SentCommand:
    """The last command that went out, and its velocities."""

    stamp_ns: int
    T_base_ee: FloatArray
    q_rad: FloatArray
    dq_rad_s: FloatArray
    """(n,) joint speeds since the command before (after a gap: over a short while); 0 = first."""
    dt_s: float
    """Time since the command before; 0 for the first."""
