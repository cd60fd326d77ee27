"""From any rate to 5 Hz samples: what the model sees at an instant, and where it should go next.

Rules (the paper resamples by interpolation, arXiv 2511.17411; the rest is the serving rule, so that
training sees what the robot will): positions are interpolated linearly, rotations by slerp, always
on absolute poses; a picture is the latest one taken at or before the instant, never a later one;
the gripper that goes with a knot is the last command issued strictly before the knot's time, which
keeps the published pairing "action t leads to state t + 1" exactly.

With ``anchor='image'`` the instants are the stamps of external pictures, at most one per 200 ms, as
live (t_obs = stamp of the newest external image); knots then stand at t_obs + (i + 1) * 200 ms.
With ``anchor='grid'`` they are an even grid, as a LeRobot file needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import quat_angle, quat_slerp
from spear_ros.core.types import EXTERNAL, FloatArray
from spear_ros.data.episodes import Episode, IntArray, PoseTrack, ValueTrack

BoolArray = NDArray[np.bool_]
Label = Literal['reached', 'commanded']


@dataclass(frozen=True, kw_only=True, slots=True)
class ResampleSettings:
    """How an episode becomes samples."""

    rate_hz: float = 5.0
    horizon: int = 5
    label: Label = 'reached'
    """Targets are the poses that the arm reached, or those that it was told to reach. On real
    Bridge data the reached steps are 0.71 to 0.80 of the commanded ones."""
    anchor: Literal['image', 'grid'] = 'image'
    max_gap_s: float = 0.7
    """Nothing is interpolated across a longer hole in the poses; never below 1.5 periods."""
    max_image_age_s: float = 0.7
    """An external picture older than this counts as absent, and with it the sample."""
    max_wrist_age_s: float = 0.1
    """An older wrist picture is left out (the serving rule)."""
    idle_m: float = 1e-3
    idle_rad: float = 5e-3
    """A chunk that stays within both of these and keeps its gripper is idle."""

    def __post_init__(self) -> None:
        if not 0.5 <= self.rate_hz <= 100.0:
            raise UserError(f'rate_hz = {self.rate_hz} must lie between 0.5 and 100.')
        if not 1 <= self.horizon <= 100:
            raise UserError(f'horizon = {self.horizon} must lie between 1 and 100.')

    @property
    def step_ns(self) -> int:
        """Nanoseconds between knots."""
        return round(1e9 / self.rate_hz)


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """N samples of one episode with H knots each."""

    t_ns: IntArray
    """(N,) the instants."""
    p: FloatArray
    """(N, 3) m, pose measured at the instant."""
    q: FloatArray
    """(N, 4) wxyz."""
    gripper: FloatArray
    """(N,) opening measured at or before the instant."""
    target_p: FloatArray
    """(N, H, 3) m, absolute; where the mask is False the last valid knot is repeated."""
    target_q: FloatArray
    """(N, H, 4) wxyz."""
    target_gripper: FloatArray
    """(N, H)."""
    mask: BoolArray
    """(N, H) True where the recording really goes on; once False, False to the end of the chunk."""
    image_index: Mapping[str, IntArray]
    """Camera -> (N,) frame number, -1 where there is none."""
    image_age_ns: Mapping[str, IntArray]
    """Camera -> (N,) instant minus the picture's stamp."""
    idle: BoolArray
    """(N,) nothing moves during the chunk."""

    def __len__(self) -> int:
        return len(self.t_ns)


def interpolate_poses(
    track: PoseTrack, t_ns: IntArray, max_gap_ns: int
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Poses at the times ``t_ns`` (any shape S).

    Returns:
        p (S, 3), q (S, 4) and valid (S): False outside of the track and inside of a hole longer
        than ``max_gap_ns``. At a sample's own stamp the sample is returned bit by bit.
    """
    t = np.asarray(t_ns, np.int64)
    n = len(track.stamps_ns)
    left = np.clip(np.searchsorted(track.stamps_ns, t, side='right') - 1, 0, n - 1)
    right = np.minimum(left + 1, n - 1)
    t0, t1 = track.stamps_ns[left], track.stamps_ns[right]
    exact = t == t0
    span = np.maximum(t1 - t0, 1)
    s = np.clip((t - t0) / span, 0.0, 1.0)
    p = (1.0 - s)[..., None] * track.p[left] + s[..., None] * track.p[right]
    q = quat_slerp(track.q[left], track.q[right], s)
    p = np.where(exact[..., None], track.p[left], p)
    q = np.where(exact[..., None], track.q[left], q)
    inside = (t > t0) & (t < t1) & (t1 - t0 <= max_gap_ns)
    return p, q, exact | inside


def last_value(track: ValueTrack, t_ns: IntArray, *, strictly_before: bool = False) -> FloatArray:
    """Value in force at ``t_ns`` (any shape); before the first sample the first one is taken."""
    side: Literal['left', 'right'] = 'left' if strictly_before else 'right'
    index = np.searchsorted(track.stamps_ns, np.asarray(t_ns, np.int64), side=side) - 1
    return track.values[np.maximum(index, 0)]


def latest_index(stamps_ns: IntArray, t_ns: IntArray, max_age_ns: int) -> tuple[IntArray, IntArray]:
    """Number of the latest stamp at or before each instant, -1 where none is young enough; ages."""
    t = np.asarray(t_ns, np.int64)
    index = np.searchsorted(stamps_ns, t, side='right') - 1
    age = np.where(index >= 0, t - stamps_ns[np.maximum(index, 0)], 0)
    return np.where(age <= max_age_ns, index, -1).astype(np.int64), age.astype(np.int64)


def instants(episode: Episode, settings: ResampleSettings) -> IntArray:
    """Times at which samples are taken (N,); see the module's text."""
    track, images = episode.reached, episode.cameras[EXTERNAL].stamps_ns
    start, end = max(track.stamps_ns[0], images[0]), track.stamps_ns[-1]
    if end < start:
        return np.zeros(0, np.int64)
    count = int((end - start) // settings.step_ns) + 1
    grid = start + settings.step_ns * np.arange(count, dtype=np.int64)
    if settings.anchor == 'grid':
        return grid
    chosen = np.unique(np.searchsorted(images, grid, side='right') - 1)
    taken = images[chosen]
    return taken[taken >= track.stamps_ns[0]]


def resample(episode: Episode, settings: ResampleSettings) -> Steps:
    """Cut an episode into samples.

    A sample is dropped when its pose lies in a hole, its external picture is missing or too old, or
    no knot of its chunk is valid (the last instant of an episode).

    Raises:
        UserError: ``label`` is ``commanded`` and the recording has no commanded poses.
    """
    gap_ns = round(1e9 * max(settings.max_gap_s, 1.5 / episode.rate_hz))
    t = instants(episode, settings)
    p, q, ok = interpolate_poses(episode.reached, t, gap_ns)
    index, age = _pictures(episode, t, settings)
    ok &= index[EXTERNAL] >= 0
    knots = t[:, None] + settings.step_ns * np.arange(1, settings.horizon + 1)
    target_p, target_q, mask = interpolate_poses(_labels(episode, settings), knots, gap_ns)
    mask = np.logical_and.accumulate(mask, axis=1)
    if episode.gripper_command is not None:
        target_gripper = last_value(episode.gripper_command, knots, strictly_before=True)
    else:
        target_gripper = last_value(episode.gripper, knots)
    target_p, target_q = _hold_last(target_p, mask, p), _hold_last(target_q, mask, q)
    gripper = last_value(episode.gripper, t)
    target_gripper = _hold_last(target_gripper[..., None], mask, gripper[:, None])[..., 0]
    keep = np.flatnonzero(ok & mask[:, 0])
    moved_m = np.linalg.norm(target_p - p[:, None], axis=-1).max(axis=1, initial=0.0)
    moved_rad = quat_angle(q[:, None], target_q).max(axis=1, initial=0.0)
    still = (moved_m < settings.idle_m) & (moved_rad < settings.idle_rad)
    still &= (np.ptp(target_gripper, axis=1) < 0.05) if len(t) else still
    return Steps(
        t_ns=t[keep],
        p=p[keep],
        q=q[keep],
        gripper=gripper[keep],
        target_p=target_p[keep],
        target_q=target_q[keep],
        target_gripper=target_gripper[keep],
        mask=mask[keep],
        image_index={name: values[keep] for name, values in index.items()},
        image_age_ns={name: values[keep] for name, values in age.items()},
        idle=still[keep],
    )


def _labels(episode: Episode, settings: ResampleSettings) -> PoseTrack:
    if settings.label == 'reached':
        return episode.reached
    if episode.commanded is None:
        raise UserError(
            f'episode {episode.key}: label = "commanded", but {episode.dataset} records no '
            'usable commanded poses; use label = "reached".'
        )
    return episode.commanded


def _pictures(
    episode: Episode, t: IntArray, settings: ResampleSettings
) -> tuple[dict[str, IntArray], dict[str, IntArray]]:
    index, age = {}, {}
    for name, frames in episode.cameras.items():
        external = name in episode.externals
        limit_s = settings.max_image_age_s if external else settings.max_wrist_age_s
        index[name], age[name] = latest_index(frames.stamps_ns, t, round(1e9 * limit_s))
    return index, age


def _hold_last(values: FloatArray, mask: BoolArray, first: FloatArray) -> FloatArray:
    """Replace what the mask excludes by the last valid knot (or the anchor): (N, H, k)."""
    count = mask.sum(axis=1)
    padded = np.concatenate([first[:, None], values], axis=1)
    index = np.minimum(np.arange(1, mask.shape[1] + 1)[None], count[:, None])
    return np.take_along_axis(padded, index[..., None], axis=1)
