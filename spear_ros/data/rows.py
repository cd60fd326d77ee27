"""One declarative row per data set: which columns hold what, in which convention.

A row turns the raw columns of a recording (an RLDS record, a LeRobot episode) into an
:class:`~spear_ros.data.episodes.Episode`. The published Open X-Embodiment sets are in
``config/training/datasets/oxe.yaml``; a lab's own LeRobot recordings get a file of the same form
(the "contract"). What is special about a set is data in the row, never a branch in code.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from spear_ros.core.config import load_yaml
from spear_ros.core.errors import UserError
from spear_ros.core.geometry import quat_multiply, quat_normalize
from spear_ros.core.resources import share_file
from spear_ros.core.types import EXTERNAL, WRIST, ActionSpec, FloatArray
from spear_ros.data.conventions import (
    CommandEncoding,
    PoseEncoding,
    Poses,
    command_from_motion,
    decode_commands,
    decode_poses,
    opening,
    opening_from_pulses,
    settle,
)
from spear_ros.data.episodes import Episode, Frames, IntArray, PoseTrack, ValueTrack, check_episode
from spear_ros.processing.embodiments import default_action_specs

_COLUMN = re.compile(r'^(?P<path>[^\[\]]+)(\[(?P<start>-?\d*)(?P<colon>:)?(?P<stop>-?\d*)\])?$')


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseColumn:
    """Where the end-effector pose is."""

    column: str
    """``path[a:b]``, for example ``observation/state[0:6]``; several joined by `` + ``."""
    encoding: PoseEncoding
    robot: str = ''
    """Robot whose kinematics apply to ``encoding: joints``."""
    rotation_is_model: bool = False
    """The recorded rotation is R_base_ee D^T with D of the embodiment's ActionSpec (Bridge)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandColumn:
    """Where the commanded motion is."""

    column: str
    encoding: CommandEncoding


@dataclass(frozen=True, kw_only=True, slots=True)
class GripperColumn:
    """Where an opening is; ``open`` and ``closed`` say what the values mean (widths, signs)."""

    column: str
    open: float
    closed: float
    relative: bool = False
    """The values are pulses: one changes the state, zero keeps it."""

    def __post_init__(self) -> None:
        if self.open == self.closed:
            raise UserError(f'gripper column {self.column}: open and closed are both {self.open}.')


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetRow:
    """One data set."""

    name: str
    """Id in mixtures, shards and keys."""
    format: Literal['rlds', 'lerobot'] = 'rlds'
    folder: str = ''
    """Folder of the published version below the data root; the name where empty."""
    version: str = ''
    embodiment: str
    """Key of the ActionSpec; sets whose poses are of the same frame of the same arm share one."""
    robot: str
    """For people."""
    ee_frame: str
    """Which frame the poses are of, as far as published."""
    proprio_pole: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    """See ActionSpec; for embodiments that the package does not know."""
    rate_hz: float
    pose: PoseColumn
    command: CommandColumn | None = None
    gripper: GripperColumn | None = None
    gripper_command: GripperColumn | None = None
    gripper_constant: float | None = None
    """Opening of a data set that records no gripper at all."""
    external: tuple[str, ...]
    """External views; of several, one is chosen at random for every sample."""
    wrist: str = ''
    stored_aspect: float | None = None
    """Width / height of the camera where the publisher squashed the pictures to another shape."""
    language: tuple[str, ...] = ()
    """Columns with the instruction; the first that is not empty is used."""
    fixed_instruction: str = ''
    """Where the recording has none, or one that says nothing."""
    drop_first: int = 0
    """Samples to cut off at the start."""
    drop_idle: bool = False
    """Leave out samples whose whole chunk stands still."""
    traps: tuple[str, ...] = ()
    """What goes wrong when this set is read like the others; each is tested."""
    unverified: tuple[str, ...] = ()
    """What the publication does not settle; look at `spear data check` before use."""
    tried_on_real_data: str = 'no'

    def __post_init__(self) -> None:
        if not 0 < self.rate_hz <= 1000:
            raise UserError(f'row {self.name}: rate_hz = {self.rate_hz} must lie in 0..1000.')
        sources = (self.gripper, self.gripper_command, self.gripper_constant)
        if all(s is None for s in sources):
            raise UserError(f'row {self.name}: give gripper, gripper_command or gripper_constant.')
        if not self.external:
            raise UserError(f'row {self.name}: external names no camera.')


@dataclass(frozen=True, kw_only=True, slots=True)
class RowFile:
    """A YAML file of rows."""

    rows: tuple[DatasetRow, ...]


class Columns(Protocol):
    """Raw content of one recorded episode, by path."""

    def __len__(self) -> int: ...

    def numbers(self, path: str) -> FloatArray:
        """(n, k) float64; UserError naming the path where it is absent."""
        ...

    def texts(self, path: str) -> list[str]:
        """One text per sample (or a single one for the episode); empty list where absent."""
        ...

    def frames(self, path: str, stamps_ns: IntArray) -> Frames:
        """Pictures of a camera with the given stamps (all samples of the episode)."""
        ...

    def stamps(self, rate_hz: float) -> IntArray:
        """(n,) times of the samples; made from the rate where none are recorded."""
        ...


def load_rows(path: Path | None = None) -> dict[str, DatasetRow]:
    """Rows by name; without a path, the published sets that come with the package."""
    path = path or share_file('config/training/datasets/oxe.yaml')
    rows = load_yaml(path, RowFile).rows
    names = [row.name for row in rows]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f'{path}: two rows are named "{name}"; rename one.')
    return {row.name: row for row in rows}


def find_row(rows: Mapping[str, DatasetRow], name: str) -> DatasetRow:
    """Row by name; UserError with the closest name."""
    if name not in rows:
        near = difflib.get_close_matches(name, rows, n=1, cutoff=0.3)
        hint = f'did you mean "{near[0]}"?' if near else f'known: {", ".join(rows)}.'
        raise UserError(f'data set "{name}" has no row; {hint}')
    return rows[name]


def action_spec(row: DatasetRow) -> ActionSpec:
    """What actions of this data set mean; the package's own spec where the embodiment has one."""
    known = default_action_specs()
    if row.embodiment in known:
        return known[row.embodiment]
    return ActionSpec(
        embodiment=row.embodiment,
        base_frame='base',
        ee_frame=row.ee_frame,
        proprio_pole=row.proprio_pole,
    )


def split_column(column: str) -> tuple[str, Callable[[FloatArray], FloatArray]]:
    """``path[a:b]`` to the path and the function that picks the columns."""
    match = _COLUMN.match(column)
    if match is None:
        raise UserError(f'column "{column}" is not of the form path, path[2] or path[0:6].')
    start = int(match['start']) if match['start'] else None
    stop = int(match['stop']) if match['stop'] else None
    if match['colon']:
        return match['path'], lambda values: values[:, start:stop]
    if start is None:
        return match['path'], lambda values: values
    return match['path'], lambda values: values[:, [start]]


def build_episode(row: DatasetRow, columns: Columns, key: str) -> Episode:
    """Turn raw columns into an episode by the row's rules.

    Raises:
        UserError: a column is absent or has the wrong width, or the episode fails
            :func:`~spear_ros.data.episodes.check_episode`; the sentence names row and column.
    """
    try:
        episode = _build(row, columns, key)
    except UserError as error:
        raise UserError(f'{row.name}, episode {key}: {error}') from None
    except (IndexError, ValueError) as error:
        raise UserError(f'{row.name}, episode {key}: the columns do not fit ({error}).') from None
    check_episode(episode)
    return episode


def _build(row: DatasetRow, columns: Columns, key: str) -> Episode:
    stamps = columns.stamps(row.rate_hz)
    keep = slice(row.drop_first, None)
    p, q = _poses(row, columns)
    commanded = None
    if row.command is not None:
        targets = decode_commands(
            _numbers(columns, row.command.column), row.command.encoding, (p, q)
        )
        next_stamps = np.append(stamps[1:], 2 * stamps[-1] - stamps[-2])
        commanded = _track(next_stamps, _unmodel(row, targets), keep)
    measured, command = _grippers(row, columns)
    return Episode(
        key=key,
        dataset=row.name,
        embodiment=row.embodiment,
        rate_hz=row.rate_hz,
        instruction=_instruction(row, columns),
        reached=_track(stamps, _unmodel(row, (p, q)), keep),
        commanded=commanded,
        gripper=ValueTrack(stamps_ns=stamps[keep], values=measured[keep]),
        gripper_command=None
        if command is None
        else ValueTrack(stamps_ns=stamps[keep], values=command[keep]),
        cameras=_cameras(row, columns, stamps),
        stored_aspect=row.stored_aspect,
        has_proprio=not row.pose.encoding.startswith('integrated'),
        provenance={'row': row.name, 'version': row.version},
    )


def _numbers(columns: Columns, column: str) -> FloatArray:
    parts = []
    for part in column.split(' + '):
        path, pick = split_column(part)
        parts.append(pick(columns.numbers(path)))
    return np.concatenate(parts, axis=1)


def _poses(row: DatasetRow, columns: Columns) -> Poses:
    raw = _numbers(columns, row.pose.column)
    return decode_poses(raw, row.pose.encoding, row.pose.robot)


def _unmodel(row: DatasetRow, poses: Poses) -> Poses:
    """R_base_ee = R_model D where the recording holds R_model."""
    p, q = poses
    if row.pose.rotation_is_model:
        q = quat_normalize(quat_multiply(q, action_spec(row).reference_rotation))
    return p, q


def _track(stamps: IntArray, poses: Poses, keep: slice) -> PoseTrack:
    return PoseTrack(stamps_ns=stamps[keep], p=poses[0][keep], q=poses[1][keep])


def _grippers(row: DatasetRow, columns: Columns) -> tuple[FloatArray, FloatArray | None]:
    """Measured opening (n,) and binary command (n,); each is guessed from the other if absent."""
    command = None
    if row.gripper_command is not None:
        g = row.gripper_command
        raw = _numbers(columns, g.column)[:, 0]
        if g.relative:
            command = opening_from_pulses(raw, g.open, g.closed)
        else:
            command = settle(opening(raw, g.open, g.closed))
    if row.gripper is not None:
        raw = _numbers(columns, row.gripper.column)[:, 0]
        measured = opening(raw, row.gripper.open, row.gripper.closed)
        return measured, command_from_motion(measured) if command is None else command
    if command is not None:
        # What was last commanded before the sample is the best guess of where the gripper is.
        return np.concatenate([command[:1], command[:-1]]), command
    assert row.gripper_constant is not None
    return np.full(len(columns), float(row.gripper_constant)), None


def _instruction(row: DatasetRow, columns: Columns) -> str:
    if row.fixed_instruction:
        return row.fixed_instruction
    for path in row.language:
        for text in columns.texts(path):
            if text.strip():
                return ' '.join(text.split())
    return ''


def _cameras(row: DatasetRow, columns: Columns, stamps: IntArray) -> dict[str, Frames]:
    cameras = {}
    for i, path in enumerate(row.external):
        name = EXTERNAL if i == 0 else f'{EXTERNAL}_{i + 1}'
        cameras[name] = columns.frames(path, stamps)
    if row.wrist:
        cameras[WRIST] = columns.frames(row.wrist, stamps)
    return cameras
