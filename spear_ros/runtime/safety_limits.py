"""The limits in force: a RobotSpec's own, tightened by ``config/safety/<family>.yaml``.

A file can make a robot slower and its room smaller. It cannot do the opposite: every value is
compared with the spec, and a looser one is a :class:`UserError` at start, not a warning.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path

from spear_ros.core.config import load_yaml
from spear_ros.core.errors import UserError
from spear_ros.core.resources import share_file
from spear_ros.robots.spec import MotionLimits, RobotSpec, StepLimits, Vector3

# Bounds that no spec carries.
_LARGEST_AGE_S = 0.4
_LARGEST_ANCHOR_M = 0.05
_LARGEST_ANCHOR_RAD = 0.2
_LEAST_BRAKE = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class SafetyLimits:
    """Schema of ``config/safety``. No value has a default: a safety file says everything."""

    workspace_min_m: Vector3
    """Box for the end-effector frame in the base frame."""
    workspace_max_m: Vector3
    table_z_m: float
    """Height of the table plane in the base frame."""
    table_clearance_m: float
    """Least distance of the link spheres from the table."""
    joint_margin_rad: float
    """Distance that the knots of a chunk keep from the joint limits."""
    step: StepLimits
    hard: MotionLimits
    """Never exceeded by a command; a violation is a hold."""
    nominal: MotionLimits
    """What the player stays under by stretching time, and how every hold brakes."""
    home: MotionLimits
    """Speeds of the motion to the start pose."""
    max_chunk_age_s: float
    """Observation to receipt."""
    anchor_tolerance_m: float
    """Anchor of a chunk against the pose measured at that time."""
    anchor_tolerance_rad: float

    def __post_init__(self) -> None:
        for i, (low, high) in enumerate(
            zip(self.workspace_min_m, self.workspace_max_m, strict=True)
        ):
            if not low < high:
                raise UserError(
                    f'workspace_min_m[{i}] = {low} must be below workspace_max_m[{i}] = {high}.'
                )
        _within('table_clearance_m', self.table_clearance_m, 0.0, 0.5)
        _within('joint_margin_rad', self.joint_margin_rad, 0.0, 0.5)
        _within('max_chunk_age_s', self.max_chunk_age_s, 0.05, _LARGEST_AGE_S)
        _within('anchor_tolerance_m', self.anchor_tolerance_m, 0.001, _LARGEST_ANCHOR_M)
        _within('anchor_tolerance_rad', self.anchor_tolerance_rad, 0.01, _LARGEST_ANCHOR_RAD)
        _no_looser('nominal', self.nominal, 'hard', self.hard)
        _no_looser('home', self.home, 'nominal', self.nominal)
        # Brakes in joint space use this share: a tiny one would make every stop a long way.
        _within('nominal.joint_fraction', self.nominal.joint_fraction, _LEAST_BRAKE, 1.0)

    @classmethod
    def of(cls, robot: RobotSpec) -> 'SafetyLimits':
        """The robot's own limits, nothing tightened: for tests and as the outer bound."""
        nominal = robot.nominal
        return cls(
            workspace_min_m=robot.workspace_min_m,
            workspace_max_m=robot.workspace_max_m,
            table_z_m=robot.table_z_m,
            table_clearance_m=0.0,
            joint_margin_rad=0.02,
            step=robot.step,
            hard=robot.hard,
            nominal=nominal,
            home=MotionLimits(
                linear_m_s=0.4 * nominal.linear_m_s,
                linear_m_s2=0.25 * nominal.linear_m_s2,
                angular_rad_s=0.6 * nominal.angular_rad_s,
                angular_rad_s2=0.4 * nominal.angular_rad_s2,
                joint_fraction=0.5 * nominal.joint_fraction,
            ),
            max_chunk_age_s=_LARGEST_AGE_S,
            anchor_tolerance_m=0.02,
            anchor_tolerance_rad=0.1,
        )

    def require_tighter_than(self, robot: RobotSpec) -> None:
        """Compare with the robot's own limits.

        Raises:
            UserError: a value is looser; the sentence names it, both figures and the mend.
        """
        for i in range(3):
            low, high = robot.workspace_min_m[i], robot.workspace_max_m[i]
            if self.workspace_min_m[i] < low:
                raise _looser(f'workspace_min_m[{i}]', self.workspace_min_m[i], 'at least', low)
            if self.workspace_max_m[i] > high:
                raise _looser(f'workspace_max_m[{i}]', self.workspace_max_m[i], 'at most', high)
        if self.table_z_m < robot.table_z_m:
            raise _looser('table_z_m', self.table_z_m, 'at least', robot.table_z_m)
        _no_looser('hard', self.hard, f'{robot.name}.hard', robot.hard)
        _no_looser('nominal', self.nominal, f'{robot.name}.nominal', robot.nominal)
        for f in fields(StepLimits):
            if f.name != 'per_s':
                own = getattr(robot.step, f.name) / robot.step.per_s
                value = getattr(self.step, f.name) / self.step.per_s
                if value > own * (1 + 1e-9):
                    raise _looser(f'step.{f.name} per second', value, 'at most', own)


def load_limits(robot: RobotSpec, path: Path | str | None = None) -> SafetyLimits:
    """Read the limits in force for ``robot``.

    Args:
        robot: its spec bounds every value.
        path: a file; None = the installed ``config/safety/<name>.yaml`` of this very model, else
            ``<family>.yaml``.

    Raises:
        UserError: unreadable, incomplete, out of range, or looser than the robot allows.
    """
    file = Path(path) if path else _installed(robot)
    limits = load_yaml(file, SafetyLimits)
    try:
        limits.require_tighter_than(robot)
    except UserError as error:
        raise UserError(f'{file}: {error}') from None
    return limits


def _installed(robot: RobotSpec) -> Path:
    own = share_file('config/safety') / f'{robot.name}.yaml'
    return own if own.is_file() else share_file(f'config/safety/{robot.family}.yaml')


def _within(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise UserError(f'{name} = {value} must lie between {low:g} and {high:g}.')


def _no_looser(name: str, limits: MotionLimits, outer_name: str, outer: MotionLimits) -> None:
    for f in fields(MotionLimits):
        value, bound = getattr(limits, f.name), getattr(outer, f.name)
        if value > bound:
            raise UserError(
                f'{name}.{f.name} = {value} is looser than {outer_name} allows ({bound}); '
                f'choose at most {bound}.'
            )


def _looser(name: str, value: float, relation: str, bound: float) -> UserError:
    return UserError(
        f'{name} = {value:g} is looser than the robot allows; choose {relation} {bound:g}.'
    )
