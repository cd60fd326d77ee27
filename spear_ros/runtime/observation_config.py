"""What an :class:`ObservationBuffer` is told: the inputs, their limits, and how it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from spear_ros.core.errors import UserError
from spear_ros.core.reasons import Reason
from spear_ros.core.types import EXTERNAL, WRIST

ARM = 'arm'
GRIPPER = 'gripper'
OBJECT_POSES = 'object_poses'


@dataclass(frozen=True, kw_only=True, slots=True)
class ObservationConfig:
    """Which inputs there are, and the limits each is judged by."""

    cameras: tuple[str, ...] = (EXTERNAL, WRIST)
    """Cameras that are wired up; ``external`` is always needed."""
    topics: Mapping[str, str] = field(default_factory=dict)
    """Stream name -> topic, for sentences and status only."""
    image_max_age_s: float = 0.15
    arm_max_age_s: float = 0.05
    gripper_max_age_s: float = 0.2
    object_poses_max_age_s: float = 0.2
    wrist_window_s: float = 0.1
    """The wrist image may precede the external one by this much; otherwise it is left out."""
    wrist_lost: Literal['hold', 'drop'] = 'hold'
    """A wrist camera that has delivered and then stops: ``hold`` = no observation, ``drop`` = go on
    without it. One that never delivered is always left out."""
    gripper_tolerance_s: float = 0.02
    """The gripper state is the newest one stamped not later than t_obs plus this (drivers without a
    header are stamped at receipt, slightly late)."""
    interpolation_gap_s: float = 0.25
    """Arm samples farther apart than this are not interpolated between."""
    clock_skew_s: float = 1.0
    frozen_frames: int = 8
    """Byte-identical frames in a row, with advancing stamps, that make a camera frozen."""
    history_s: float = 1.0
    needs_object_poses: bool = False

    def __post_init__(self) -> None:
        if EXTERNAL not in self.cameras or not set(self.cameras) <= {EXTERNAL, WRIST}:
            raise UserError(
                f'cameras = {list(self.cameras)} must be "external", alone or with "wrist".'
            )
        if self.frozen_frames < 2:
            raise UserError(f'frozen_frames = {self.frozen_frames} must be at least 2.')
        for name in self.__dataclass_fields__:
            if name.endswith('_s') and not 0 <= getattr(self, name) <= 60:
                raise UserError(f'{name} = {getattr(self, name)} must lie between 0 and 60 s.')


@dataclass(frozen=True, kw_only=True, slots=True)
class InputProblem:
    """Why there is no observation now."""

    reason: Reason
    text: str
    stream: str = ''
