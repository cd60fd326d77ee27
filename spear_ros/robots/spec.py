"""RobotSpec: what a robot *is* (kinematics, hard limits, frames), as opposed to how it is wired.

Wiring (topics, rates, gripper adapter) is YAML in ``config/robots``; limits that an operator may
tighten, never loosen, are YAML in ``config/safety``. The numbers come with their source in the
module of each robot.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from spear_ros.core.errors import UserError

Vector3 = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Joint:
    """One revolute joint: fixed transform from the parent link, then a turn about ``axis``."""

    name: str
    """Name in the driver's joint-state message."""
    xyz: Vector3
    rpy: Vector3
    axis: Vector3
    lower_rad: float
    upper_rad: float
    velocity_rad_s: float
    acceleration_rad_s2: float


@dataclass(frozen=True, kw_only=True, slots=True)
class MotionLimits:
    """Speeds and accelerations of the end-effector and of the joints."""

    linear_m_s: float
    linear_m_s2: float
    angular_rad_s: float
    angular_rad_s2: float
    joint_fraction: float = 1.0
    """Share of each joint's own velocity and acceleration limits."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if not 0 < value < 100:
                raise UserError(f'{name} = {value} must lie between 0 and 100.')


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLimits:
    """Hard limits of one knot-to-knot step of ``per_s`` seconds; scaled with the chunk's step.

    A limit on the norm and a limit per axis are both applied; the one that does not belong to the
    data set is infinite.
    """

    per_s: float = 0.2
    norm_m: float = float('inf')
    norm_rad: float = float('inf')
    axis_m: float = float('inf')
    axis_rad: float = float('inf')


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkSphere:
    """A sphere rigidly attached behind joint ``after_joint`` (0 = base), for clearance checks."""

    after_joint: int
    center_m: Vector3
    radius_m: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RobotSpec:
    """Kinematics, hard limits, frames and conventions of one robot model."""

    name: str
    """Model: ``fr3``, ``panda``, ``wx250s``, ``vx300s``."""
    family: str
    """Driver family, selects ros/drivers: ``franka`` or ``widowx``."""
    embodiment: str
    """Key into the checkpoint's ActionSpecs: ``franka_droid``, ``widowx_bridge``."""
    joints: tuple[Joint, ...]
    ee_xyz: Vector3
    """From the last joint's link to the end-effector frame."""
    ee_rpy: Vector3 = (0.0, 0.0, 0.0)
    base_frame: str = 'base'
    ee_frame: str = 'ee'
    """Canonical names; drivers map them to their own."""
    driver_frames: Mapping[str, str] = field(default_factory=dict)
    q_home_rad: tuple[float, ...] = ()
    """Start pose of an episode."""
    q_rest_rad: tuple[float, ...] = ()
    """Null-space reference of the inverse kinematics."""
    homes_rad: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Gripper name -> start pose with that gripper; ``registry.get_robot`` picks one."""
    workspace_min_m: Vector3 = (0.0, 0.0, 0.0)
    """Hard box for the end-effector frame in the base frame."""
    workspace_max_m: Vector3 = (0.0, 0.0, 0.0)
    table_z_m: float = 0.0
    """Height of the table plane in the base frame, for link clearance."""
    hard: MotionLimits
    """Never exceeded by a command; a violation is a hold."""
    nominal: MotionLimits
    """What the player stays under by stretching time."""
    step: StepLimits
    link_spheres: tuple[LinkSphere, ...] = ()
    control_rate_hz: float = 100.0
    finger_open_m: float = 0.04
    """One finger's travel when open, and when closed: gripper = (x - closed) / (open - closed)."""
    finger_closed_m: float = 0.0

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names in the driver's joint-state message, base to wrist."""
        return tuple(j.name for j in self.joints)

    @property
    def n_joints(self) -> int:
        """Number of arm joints n."""
        return len(self.joints)
