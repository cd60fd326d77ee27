"""The values that travel between layers: frozen, with shape, unit and frame per field.

Conventions of the house: poses of frame ``b`` in frame ``a`` are ``T_a_b`` (4x4), positions in
metres, quaternions ``(w, x, y, z)`` with unit norm, times in integer nanoseconds of one clock,
gripper opening 1 = open and 0 = closed. Nothing in here validates what came over a wire: that is
the work of ``runtime.decode`` (inputs) and ``runtime.safety`` (chunks), which say why they refuse.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
ImageArray = NDArray[np.uint8]

EXTERNAL = 'external'
WRIST = 'wrist'


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraFrame:
    """One image as decoded from a driver's message."""

    image: ImageArray
    """(H, W, 3) uint8 RGB, rows from the top."""
    stamp_ns: int
    """Header stamp: when the picture was taken (a bag's receive time where there is no header)."""
    received_ns: int
    """Receipt on the clock of the node (bag time offline)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RobotState:
    """Proprioception at one instant."""

    stamp_ns: int
    T_base_ee: FloatArray
    """(4, 4) pose of the frame that the model was trained on (``link8``, ``ee_gripper_link``)."""
    gripper: float
    """1 = open, 0 = closed."""
    q_rad: FloatArray | None = None
    """(n,) joint angles in the order of the RobotSpec; None where only a pose was recorded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """Everything a policy may look at, aligned on ``t_obs_ns``."""

    t_obs_ns: int
    """Stamp of the newest external image."""
    embodiment: str
    images: Mapping[str, CameraFrame]
    """Keys ``external`` and ``wrist``; a camera that is absent has no key."""
    state: RobotState
    """Interpolated at ``t_obs_ns``."""
    instruction: str
    instruction_id: str = ''
    privileged: Mapping[str, FloatArray] = field(default_factory=dict)
    """Object name -> (4, 4) pose in the base frame; simulation only, for policy ``scripted``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionChunk:
    """H absolute end-effector targets. Knot i stands at ``t_obs + (i + 1) * step``.

    Quaternions and positions are kept as they came, so that the safety gate can reject them.
    """

    t_obs_ns: int
    step_s: float
    embodiment: str
    base_frame: str
    ee_frame: str
    p_base_ee: FloatArray
    """(H, 3) m."""
    q_base_ee: FloatArray
    """(H, 4) wxyz."""
    gripper: FloatArray
    """(H,) 1 = open."""
    anchor_p: FloatArray
    """(3,) m: the measured position at ``t_obs`` that the deltas were composed on."""
    anchor_q: FloatArray
    """(4,) wxyz."""
    instruction_id: str = ''
    checkpoint_id: str = ''
    policy_session: str = ''
    sequence: int = 0

    @property
    def horizon(self) -> int:
        """Number of knots H."""
        return len(self.p_base_ee)

    @property
    def expiry_ns(self) -> int:
        """Time of the last knot: the chunk is never followed past it."""
        return self.t_obs_ns + round(self.horizon * self.step_s * 1e9)


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionSpec:
    """What an action of a checkpoint means on one embodiment; travels inside the checkpoint.

    SPEAR-1 (arXiv 2511.17411): translation deltas in the robot base frame, rotation deltas in the
    end-effector frame, H = 5 at 5 Hz. ``relative_to`` is unconfirmed in the paper; ``chunk_start``
    is our default (see doc/units_and_frames.md).
    """

    embodiment: str
    base_frame: str
    ee_frame: str
    rate_hz: float = 5.0
    horizon: int = 5
    relative_to: Literal['chunk_start', 'previous_step'] = 'chunk_start'
    translation_frame: Literal['base'] = 'base'
    rotation_frame: Literal['ee'] = 'ee'
    reference_rotation: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    """wxyz of D in R_model = R_base_ee @ D.T: Bridge's top-down reference, identity elsewhere."""
    gripper_threshold: float = 0.5
    proprio_pole: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    """wxyz; of q and -q the proprioceptive input is the one with a non-negative dot product with
    this. The default is the paper's half-space w >= 0; an arm whose working poses have w about 0
    needs another, or the input flips its sign with sensor noise. Deltas always use w >= 0."""

    @property
    def step_s(self) -> float:
        """Seconds between knots."""
        return 1.0 / self.rate_hz


@dataclass(frozen=True, kw_only=True, slots=True)
class NormStats:
    """Affine normalisation of translation deltas and positions; never of quaternions.

    model = 2 (x - low) / (high - low) - 1 for ``quantile`` and ``minmax`` (low, high are q01/q99 or
    constants), model = (x - low) / high for ``mean_std`` (low = mean, high = standard deviation).
    """

    kind: Literal['quantile', 'minmax', 'mean_std']
    translation_low: tuple[float, float, float]
    translation_high: tuple[float, float, float]
    position_low: tuple[float, float, float]
    position_high: tuple[float, float, float]
    data_hash: str = ''
    """SHA-256 prefix of the data the figures were computed from."""
