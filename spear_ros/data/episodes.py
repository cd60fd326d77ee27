"""Episode: the one form in which recordings of every format meet.

Readers (RLDS, LeRobot, bags, the simulator) produce it; resampling, shards, LeRobot files and
checks consume it. Poses are absolute (``T_base_ee`` of the frame named in the row or contract),
times are integer nanoseconds of one clock per episode, gripper 1 = open. Pictures stay encoded, or
on disk, until someone asks for one: an episode of a thousand frames costs its JPEG bytes, not its
pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import is_unit_quaternion
from spear_ros.core.types import EXTERNAL, FloatArray, ImageArray

IntArray = NDArray[np.int64]

MIN_SAMPLES = 2
JPEG_MAGIC = b'\xff\xd8\xff'


class Frames(Protocol):
    """Pictures of one camera, decoded one at a time."""

    stamps_ns: IntArray
    """(n,) when each was taken, strictly increasing."""

    def rgb(self, index: int) -> ImageArray:
        """Decode picture ``index`` to (H, W, 3) uint8 RGB; UserError where it is damaged."""
        ...

    def encoded(self, index: int) -> bytes | None:
        """Return the stored JPEG or PNG bytes, or None where there are none (video, arrays)."""
        ...


def decode_image_bytes(blob: bytes | memoryview, where: str) -> ImageArray:
    """JPEG or PNG bytes to (H, W, 3) uint8 RGB; UserError naming ``where`` when damaged."""
    image = None
    if len(blob):
        image = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(
            f'{where}: {len(blob)} bytes are not a readable picture; '
            'convert the recording again, or exclude this episode.'
        )
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


class EncodedFrames:
    """Frames held as the recording's own JPEG or PNG bytes."""

    def __init__(
        self, stamps_ns: IntArray, blobs: Sequence[bytes | memoryview], where: str = 'picture'
    ) -> None:
        assert len(stamps_ns) == len(blobs), (len(stamps_ns), len(blobs))
        self.stamps_ns = np.asarray(stamps_ns, np.int64)
        self._blobs = blobs
        self._where = where

    def rgb(self, index: int) -> ImageArray:
        """Decode picture ``index``."""
        return decode_image_bytes(self._blobs[index], f'{self._where} {index}')

    def encoded(self, index: int) -> bytes | None:
        """Return the stored bytes."""
        return bytes(self._blobs[index])


class ArrayFrames:
    """Frames made on request, for example by the simulator or a video decoder."""

    def __init__(self, stamps_ns: IntArray, read: Callable[[int], ImageArray]) -> None:
        self.stamps_ns = np.asarray(stamps_ns, np.int64)
        self._read = read

    def rgb(self, index: int) -> ImageArray:
        """Make picture ``index``."""
        return self._read(index)

    def encoded(self, index: int) -> bytes | None:
        """Nothing is stored."""
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseTrack:
    """Poses over time."""

    stamps_ns: IntArray
    """(n,) strictly increasing."""
    p: FloatArray
    """(n, 3) m in the base frame."""
    q: FloatArray
    """(n, 4) wxyz, unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueTrack:
    """One number over time."""

    stamps_ns: IntArray
    """(n,) strictly increasing."""
    values: FloatArray
    """(n,)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """One demonstration."""

    key: str
    """Unique and stable within the data set; a repeated conversion yields the same."""
    dataset: str
    embodiment: str
    """Key into the ActionSpecs: ``franka_droid``, ``widowx_bridge``, ..."""
    rate_hz: float
    """Nominal rate of the recording's poses."""
    instruction: str
    reached: PoseTrack
    """Measured poses."""
    commanded: PoseTrack | None = None
    """Commanded targets, each stamped with the time at which it was to be reached."""
    gripper: ValueTrack
    """Measured opening, 1 = open."""
    gripper_command: ValueTrack | None = None
    """Commanded opening, stamped with the time of issue; 0 or 1 after settling."""
    cameras: Mapping[str, Frames]
    """``external`` and optionally ``wrist``; further external views are ``external_2``, ..."""
    stored_aspect: float | None = None
    """Width / height of the camera where the recording squashed its pictures; None = as taken."""
    has_proprio: bool = True
    """False where poses were integrated from commands: differences are good, positions are not."""
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def externals(self) -> tuple[str, ...]:
        """Names of the external views, ``external`` first."""
        return tuple(sorted(c for c in self.cameras if c.split('_')[0] == EXTERNAL))


def check_episode(episode: Episode) -> None:
    """Refuse what cannot be learnt from.

    Raises:
        UserError: names the episode, the stream, the first bad sample and why it is bad.
    """
    where = f'episode {episode.key}'
    tracks: dict[str, tuple[IntArray, FloatArray]] = {
        'reached poses': (episode.reached.stamps_ns, episode.reached.p),
        'gripper': (episode.gripper.stamps_ns, episode.gripper.values),
    }
    if episode.commanded is not None:
        tracks['commanded poses'] = (episode.commanded.stamps_ns, episode.commanded.p)
    if episode.gripper_command is not None:
        command = episode.gripper_command
        tracks['gripper command'] = (command.stamps_ns, command.values)
    for name, (stamps, values) in tracks.items():
        _check_track(f'{where}: {name}', stamps, values)
    if len(episode.reached.stamps_ns) < MIN_SAMPLES:
        raise UserError(f'{where}: {len(episode.reached.stamps_ns)} pose(s) are no demonstration.')
    for name, track in (('reached', episode.reached), ('commanded', episode.commanded)):
        if track is not None and not is_unit_quaternion(track.q):
            norms = np.linalg.norm(track.q, axis=-1)
            worst = int(np.argmax(np.abs(np.nan_to_num(norms, nan=9.0) - 1)))
            raise UserError(
                f'{where}: {name} quaternion {worst} is {track.q[worst].tolist()}, not of unit '
                'norm; check the rotation encoding of the row.'
            )
    if not episode.externals:
        raise UserError(f'{where}: no external camera; map one in the row or contract.')
    for name, frames in episode.cameras.items():
        if not len(frames.stamps_ns) or (np.diff(frames.stamps_ns) <= 0).any():
            raise UserError(f'{where}: pictures of camera "{name}" are absent or out of order.')


def _check_track(where: str, stamps: IntArray, values: FloatArray) -> None:
    if len(stamps) != len(values):
        raise UserError(f'{where}: {len(stamps)} stamps but {len(values)} values.')
    if not len(stamps):
        raise UserError(f'{where}: the stream is empty.')
    backwards = np.flatnonzero(np.diff(stamps) <= 0)
    if len(backwards):
        raise UserError(
            f'{where}: time does not advance at sample {int(backwards[0]) + 1} '
            f'({int(stamps[backwards[0] + 1])} ns); sort the recording or drop the duplicates.'
        )
    bad = np.flatnonzero(~np.isfinite(np.asarray(values, float).reshape(len(values), -1)).all(-1))
    if len(bad):
        raise UserError(f'{where}: sample {int(bad[0])} is not finite.')
