"""ChunkPlayer: turns chunks into a smooth target, sampled by now.

How it works, and why it respects the nominal limits (doc/decisions/chunk_player.md):

1. A chunk is a C1 curve r(tau) over chunk time (:mod:`chunk_path`), tau = 0 at t_obs. Without
   stretching tau = now - t_obs, so the steps that inference consumed fall away by themselves.
2. Where the curve is faster than the nominal limits, tau runs slower than the clock: u = d tau/dt.
   The geometry stays, the time stretches, 1/u is reported. What was lost since a new chunk's t_obs
   is subtracted from its starting tau, because the robot has not been where the chunk assumes.
3. The target follows r with bounded speed and acceleration (:mod:`bounded_motion`). A splice is
   only a jump of the reference: the target's position and velocity are continuous by construction.
4. Every way to stop is the same brake along the current motion. It starts early enough that the
   target stands still at the chunk's expiry; past its expiry a chunk moves nothing.

Not thread-safe: the control thread owns it. Times are integer nanoseconds of one clock.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, pi

import numpy as np

from spear_ros.core.geometry import pose_parts
from spear_ros.core.types import ActionChunk, FloatArray
from spear_ros.robots.spec import MotionLimits
from spear_ros.runtime.bounded_motion import BoundedMotion, Reference
from spear_ros.runtime.chunk_path import ChunkPath, PathPoint, RateProfile
from spear_ros.runtime.gripper_latch import GripperLatch, GripperSettings
from spear_ros.runtime.quaternion import (
    dot,
    scale,
    subtract,
    to_pose,
)

MAX_SUBSTEP_S = 0.01
_HISTORY_S = 2.0
# Rotation counts like this lever when linear and angular speed are weighed against each other.
_LEVER_M = 0.2
_MAX_STRETCH = 100.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PlayerSettings:
    """How the player treats the differences between a chunk and where the target is."""

    switch_m: float = 0.10
    """A new chunk farther than this from the target is another plan: stop first, then follow."""
    switch_rad: float = pi / 3
    slow_m: tuple[float, float] = (0.05, 0.15)
    """The chunk waits for the target: full rate below the first distance, none above the second."""
    slow_rad: tuple[float, float] = (0.35, 1.0)
    gap_s: float = 0.025
    """A sample later than this is a gap in control: the target brakes instead of catching up."""
    gripper: GripperSettings = field(default_factory=GripperSettings)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlayerSample:
    """The target at one instant."""

    T_base_ee: FloatArray
    """(4, 4)."""
    linear: FloatArray
    """(3,) m/s, base axes."""
    angular: FloatArray
    """(3,) rad/s, base axes."""
    gripper: float | None
    """1 = open, 0 = closed, None = not decided since reset."""
    stretch: float
    """1 = nominal time, 2 = motion takes twice as long; 1 while holding."""
    sequence: int
    """Of the followed chunk, or of the last one."""
    following: bool
    """A chunk moves the target; False = braking or standing."""
    finished: bool
    """The chunk ran out (expiry or instruction change) before a newer one came."""
    standstill: bool


class _Followed:
    """One chunk being followed: its curve, its time, its end."""

    def __init__(self, chunk: ActionChunk, path: ChunkPath, profile: RateProfile) -> None:
        self.chunk, self.path, self.profile = chunk, path, profile
        self.cutoff_ns = chunk.expiry_ns
        self.tau = 0.0
        self.u = 0.0
        self.point: PathPoint = path.at(0.0)

    def start(self, tau: float, motion: BoundedMotion, speed_scale: float) -> None:
        """Enter the curve at ``tau`` with the rate that matches the current motion best."""
        self.tau = min(max(tau, 0.0), self.path.duration_s)
        self.point = point = self.path.at(self.tau)
        weight = _LEVER_M * _LEVER_M
        along = dot(motion.v, point.v) + weight * dot(motion.w, point.w)
        square = dot(point.v, point.v) + weight * dot(point.w, point.w)
        top = min(self.profile.rate(self.tau), speed_scale)
        self.u = min(max(along / square, 0.0), top) if square > 1e-12 else top

    def advance(self, dt: float, wanted: float) -> Reference:
        """Move tau by one step and return the reference at its end."""
        slope = self.profile.slope(self.tau, self.u)
        before = self.u
        u = min(max(wanted, before - slope * dt), before + slope * dt)
        self.u = u = min(u, self.profile.rate(self.tau + u * dt))
        old = self.point
        end = self.path.duration_s
        self.tau = min(self.tau + 0.5 * (before + u) * dt, end)
        if self.tau >= end:
            self.u = u = 0.0
        self.point = new = self.path.at(self.tau)
        v, w = scale(u, new.v), scale(u, new.w)
        dv = scale(1.0 / dt, subtract(v, scale(before, old.v)))
        dw = scale(1.0 / dt, subtract(w, scale(before, old.w)))
        return Reference(new.p, new.q, v, w, dv, dw)

    def gripper(self) -> float:
        """Opening that is due at tau: the action of the step in progress."""
        index = ceil(self.tau / self.path.step_s - 1e-9) - 1
        return float(self.chunk.gripper[min(max(index, 0), self.chunk.horizon - 1)])


class ChunkPlayer:
    """Follows the newest chunk smoothly, brakes to hold, never past expiry.

    Args:
        limits: nominal limits of the end-effector.
        settings: thresholds.
        speed_scale: 0.05 to 1; multiplies velocities (stretches time), not braking.
    """

    def __init__(
        self,
        limits: MotionLimits,
        settings: PlayerSettings | None = None,
        speed_scale: float = 1.0,
    ) -> None:
        self._limits = limits
        self._settings = settings or PlayerSettings()
        self.speed_scale = speed_scale
        self._motion = BoundedMotion(limits)
        self._latch = GripperLatch(self._settings.gripper)
        self._now_ns = 0
        self._followed: _Followed | None = None
        self._waiting: _Followed | None = None
        self._finished = False
        self._sequence = 0
        self._lag_s = 0.0
        self._lags: deque[tuple[int, float]] = deque()

    def reset(self, T_base_ee: FloatArray, gripper: float | None, now_ns: int) -> None:
        """Stand still at a pose; ``gripper`` None: none is commanded until a chunk decides."""
        p, q = pose_parts(T_base_ee)
        self._motion.place((p[0].item(), p[1].item(), p[2].item()), tuple(q.tolist()))
        self._latch.reset()
        if gripper is not None:
            self._latch.force(gripper, now_ns)
        self._drop_chunks()
        self._finished = False
        self._now_ns = now_ns

    def settle(self, T_base_ee: FloatArray, now_ns: int) -> None:
        """Stand still at a pose and keep the gripper's command."""
        value = self._latch.value
        self.reset(T_base_ee, value, now_ns)

    @property
    def gripper(self) -> float | None:
        """The gripper's command: 1 = open, 0 = closed, None = none since reset."""
        return self._latch.value

    @property
    def standstill(self) -> bool:
        """The target does not move and no chunk moves it."""
        return self._motion.standstill and self._followed is None

    def load(
        self, chunk: ActionChunk, now_ns: int, segment_rates: Sequence[float] | None = None
    ) -> None:
        """Follow ``chunk`` from ``now_ns`` on; a chunk that the gate has accepted.

        Args:
            chunk: checked chunk.
            now_ns: the current time.
            segment_rates: (H,) largest rate of time per step that the joints allow; None = 1.
        """
        self._advance(now_ns)
        path = ChunkPath(chunk)
        new = _Followed(chunk, path, RateProfile(path, self._limits, segment_rates))
        if self._waiting is not None or self._is_far(new, now_ns):
            # Another plan: come to rest along the current motion first, then take it up.
            self._followed, self._waiting = None, new
            return
        self._enter(new, now_ns)

    def hold(self) -> None:
        """Brake along the current motion and stand; the chunks are forgotten.

        From the last sample on: the command of the period in which this is called brakes already.
        """
        self._drop_chunks()
        self._finished = False

    def end_by(self, cutoff_ns: int) -> None:
        """Treat the followed chunk as expired at ``cutoff_ns`` (the instruction changed)."""
        for chunk in (self._followed, self._waiting):
            if chunk is not None:
                chunk.cutoff_ns = min(chunk.cutoff_ns, cutoff_ns)

    def set_gripper(self, opening: float, now_ns: int) -> None:
        """Command the gripper directly."""
        self._latch.force(opening, now_ns)

    def sample(self, now_ns: int) -> PlayerSample:
        """Advance to ``now_ns`` and return the target there."""
        self._advance(now_ns)
        motion, followed = self._motion, self._followed
        if followed is not None:
            self._latch.update(followed.gripper(), now_ns)
        stretch = 1.0
        if followed is not None:
            stretch = min(1.0 / max(followed.u, 1e-6), _MAX_STRETCH)
        return PlayerSample(
            T_base_ee=to_pose(motion.p, motion.q),
            linear=np.array(motion.v),
            angular=np.array(motion.w),
            gripper=self._latch.value,
            stretch=stretch,
            sequence=self._sequence,
            following=followed is not None,
            finished=self._finished,
            standstill=self.standstill,
        )

    # ------------------------------------------------------------------------------ time and motion

    def _advance(self, now_ns: int) -> None:
        """Integrate from the last sample to ``now_ns``; a gap is braked over, not caught up."""
        left = (now_ns - self._now_ns) * 1e-9
        if left <= 0.0:
            return
        self._now_ns = now_ns
        gap = left - self._settings.gap_s
        if gap > 0.0:
            self._motion.shed_speed(gap)
            self._motion.brake(self._settings.gap_s)
            if self._followed is not None:
                self._lag_s += left
                self._note_lag(now_ns)
                self._rejoin()
            return
        steps = ceil(left / MAX_SUBSTEP_S - 1e-6)
        dt = left / steps
        for k in range(steps):
            self._step(now_ns - round((steps - 1 - k) * dt * 1e9), dt)

    def _step(self, end_ns: int, dt: float) -> None:
        """One step of ``dt`` seconds that ends at ``end_ns``."""
        followed, motion = self._followed, self._motion
        if followed is not None and self._must_stop(followed, end_ns, dt):
            self._drop_chunks()
            self._finished = True
            followed = None
        if followed is None:
            motion.brake(dt)
            if self._waiting is not None and motion.standstill:
                waiting, self._waiting = self._waiting, None
                self._enter(waiting, end_ns)
            return
        wanted = min(self._patience(followed.point), self.speed_scale)
        motion.follow(followed.advance(dt, wanted), dt, self.speed_scale)
        if followed.tau < followed.path.duration_s:
            self._lag_s += (1.0 - followed.u) * dt
        self._note_lag(end_ns)

    def _must_stop(self, followed: _Followed, end_ns: int, dt: float) -> bool:
        """Whether one more step of following would leave too little time to brake."""
        motion = self._motion
        remaining = (followed.cutoff_ns - end_ns) * 1e-9
        return motion.stop_time_s + dt > remaining

    def _patience(self, point: PathPoint) -> float:
        """Rate at which the chunk waits for the target: 1 near the curve, 0 far from it."""
        distance, angle = self._motion.error(point.p, point.q)
        (near_m, far_m), (near_rad, far_rad) = self._settings.slow_m, self._settings.slow_rad
        ratio = max(
            (distance - near_m) / (far_m - near_m), (angle - near_rad) / (far_rad - near_rad)
        )
        return 1.0 - min(max(ratio, 0.0), 1.0)

    # -------------------------------------------------------------------------------------- chunks

    def _enter(self, new: _Followed, now_ns: int) -> None:
        new.start(self._start_tau(new.chunk, now_ns), self._motion, self.speed_scale)
        if self._followed is None:
            self._lag_s = 0.0
            self._lags.clear()
        self._followed, self._finished = new, False
        self._sequence = new.chunk.sequence
        self._note_lag(now_ns)

    def _rejoin(self) -> None:
        """Re-enter the curve where it was left, with the speed that is left."""
        followed = self._followed
        assert followed is not None
        followed.start(followed.tau, self._motion, self.speed_scale)

    def _start_tau(self, chunk: ActionChunk, now_ns: int) -> float:
        """Chunk time of now: the clock's, minus what stretching has lost since t_obs."""
        lost = 0.0
        if self._followed is not None and self._lags:
            lost = self._lag_s - self._lag_at(chunk.t_obs_ns)
        return (now_ns - chunk.t_obs_ns) * 1e-9 - lost

    def _is_far(self, new: _Followed, now_ns: int) -> bool:
        if self._motion.standstill:
            return False
        point = new.path.at(self._start_tau(new.chunk, now_ns))
        distance, angle = self._motion.error(point.p, point.q)
        return distance > self._settings.switch_m or angle > self._settings.switch_rad

    def _drop_chunks(self) -> None:
        self._followed = self._waiting = None
        self._lag_s = 0.0
        self._lags.clear()

    def _note_lag(self, now_ns: int) -> None:
        lags = self._lags
        lags.append((now_ns, self._lag_s))
        while now_ns - lags[0][0] > _HISTORY_S * 1e9:
            lags.popleft()

    def _lag_at(self, stamp_ns: int) -> float:
        """Lag at a time in the past; before the history nothing had been lost."""
        for time_ns, lag in reversed(self._lags):
            if time_ns <= stamp_ns:
                return lag
        return 0.0
