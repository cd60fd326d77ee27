"""Policy ``recorded``: gives back the motion of a recording, chunk by chunk.

The targets are the poses that the recorded robot reached (or was commanded to) at the knots' times.
They take the same way as a model's output: encoded into model units on the measured pose, then
decoded and composed again. What comes out must equal what was recorded, so that frames, reference
rotation, delta definition and normalisation are proven without any weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spear_ros.core import geometry
from spear_ros.core.errors import UserError
from spear_ros.core.types import (
    EXTERNAL,
    ActionChunk,
    ActionSpec,
    FloatArray,
    NormStats,
    Observation,
)
from spear_ros.policies.base import ChunkPrefix, PolicyInfo, make_chunk
from spear_ros.policies.registry import check_options
from spear_ros.processing.action_space import (
    decode_actions,
    encode_actions,
    pose_of,
    targets_from_poses,
)
from spear_ros.processing.embodiments import default_action_specs, default_norm_stats
from spear_ros.robots.spec import RobotSpec

NAME = 'recorded'
OPTIONS = ('motion', 'commanded', 'spec', 'stats')


@dataclass(frozen=True, kw_only=True, slots=True)
class MotionTrack:
    """A motion as plain arrays: poses of the trained frame in the base frame, and the gripper."""

    stamps_ns: NDArray[np.int64]
    """(N,) strictly increasing, N >= 1."""
    T_base_ee: FloatArray
    """(N, 4, 4)."""
    gripper: FloatArray
    """(N,) 1 = open."""

    def __post_init__(self) -> None:
        count = len(self.stamps_ns)
        assert self.T_base_ee.shape == (count, 4, 4), self.T_base_ee.shape
        assert self.gripper.shape == (count,), self.gripper.shape
        if count == 0 or (count > 1 and not (np.diff(self.stamps_ns) > 0).all()):
            raise UserError('the motion must hold at least one pose, with increasing stamps.')

    def covers(self, times_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell for each time (K,) whether it lies within the recording."""
        return (times_ns >= self.stamps_ns[0]) & (times_ns <= self.stamps_ns[-1])

    def at(self, times_ns: NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        """Interpolate at times (K,): poses (K, 4, 4) and openings (K,).

        Straight in position, geodesic in rotation; the gripper keeps its last value. Before the
        first and after the last sample the motion stands still.
        """
        times = np.clip(times_ns, self.stamps_ns[0], self.stamps_ns[-1])
        after = np.clip(np.searchsorted(self.stamps_ns, times, 'right'), 1, None)
        before = after - 1
        after = np.minimum(after, len(self.stamps_ns) - 1)
        # Integer differences first: nanoseconds since 1970 do not fit into a float64.
        span = np.maximum(self.stamps_ns[after] - self.stamps_ns[before], 1)
        s = (times - self.stamps_ns[before]) / span
        p, q = geometry.pose_parts(self.T_base_ee)
        position = (1 - s[:, None]) * p[before] + s[:, None] * p[after]
        rotation = geometry.quat_slerp(q[before], q[after], s)
        return geometry.pose(position, rotation), self.gripper[before]


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedMotion:
    """What a recording holds of its robot's motion."""

    reached: MotionTrack
    """Where the end-effector was measured to be."""
    commanded: MotionTrack | None = None
    """Where it was told to go; None where no commands were recorded."""


def create(
    *,
    robot: RobotSpec,
    checkpoint: Path | None,
    seed: int,
    device: str,
    options: Mapping[str, object],
) -> 'RecordedPolicy':
    """Build the policy from the option ``motion``, a :class:`RecordedMotion`.

    Further options: ``commanded`` (bool) follows the commands instead of the reached poses;
    ``spec`` and ``stats`` replace the embodiment's defaults, for instance by a checkpoint's.

    Raises:
        UserError: no motion, or no commands in it.
    """
    check_options(NAME, options, OPTIONS)
    motion = options.get('motion')
    if not isinstance(motion, RecordedMotion):
        raise UserError(
            'policy "recorded" needs a recording to give back; use it through '
            '"spear replay BAG --policy recorded".'
        )
    track = motion.reached
    if options.get('commanded'):
        if motion.commanded is None:
            raise UserError(
                'policy "recorded" is asked for commanded motion, but the recording holds no '
                'commands; add "command" to the map or leave --commanded out.'
            )
        track = motion.commanded
    spec = options.get('spec') or default_action_specs()[robot.embodiment]
    stats = options.get('stats') or default_norm_stats()
    assert isinstance(spec, ActionSpec)
    assert isinstance(stats, NormStats)
    return RecordedPolicy(track, spec, stats)


class RecordedPolicy:
    """Looks the knots' poses up in a :class:`MotionTrack`, through the models' own action path."""

    def __init__(self, track: MotionTrack, spec: ActionSpec, stats: NormStats) -> None:
        self._track, self._spec, self._stats = track, spec, stats

    def describe(self) -> PolicyInfo:
        """Return the constant facts about this policy."""
        return PolicyInfo(
            name=NAME,
            checkpoint_id=NAME,
            spec=self._spec,
            cameras=(EXTERNAL,),
            details={'poses': str(len(self._track.stamps_ns))},
        )

    def warm_up(self) -> None:
        """Nothing to warm up."""

    def reset(self) -> None:
        """Nothing is remembered between chunks."""

    def infer(self, observation: Observation, prefix: ChunkPrefix | None = None) -> ActionChunk:
        """Return the recorded motion after ``t_obs``; past its end the last pose."""
        spec = self._spec
        times = observation.t_obs_ns + np.array(
            [round((i + 1) * spec.step_s * 1e9) for i in range(spec.horizon)], np.int64
        )
        T, gripper = self._track.at(times)
        if prefix is not None:
            T[: len(prefix.T_base_ee)] = prefix.T_base_ee
            gripper[: len(prefix.gripper)] = prefix.gripper
        anchor = pose_of(observation.state)
        actions = encode_actions(targets_from_poses(T, gripper), anchor, spec, self._stats)
        targets = decode_actions(actions, anchor, spec, self._stats)
        return make_chunk(observation, spec, anchor, targets, NAME)

    def close(self) -> None:
        """Nothing to release."""
