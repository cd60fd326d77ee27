"""What goes into and comes out of the executor: plain values, no ROS, no behaviour."""

from dataclasses import dataclass, field

from spear_ros.core.errors import UserError
from spear_ros.core.reasons import Reason
from spear_ros.core.types import FloatArray
from spear_ros.runtime.give_way import GiveWaySettings
from spear_ros.runtime.state_machine import State


@dataclass(frozen=True, slots=True)
class Answer:
    """Reply to a Trigger: accepted, or refused with the reason."""

    accepted: bool
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What a driver sends in this control period. No command = send nothing at all."""

    stamp_ns: int
    T_base_ee: FloatArray
    """(4, 4) target of the end-effector frame: crisp's sink."""
    q_rad: FloatArray
    """(n,) the same target as joint angles: xs_sdk's sink."""
    gripper: float | None
    """1 = open, 0 = closed; None = no opinion yet: leave the gripper as it is."""
    holding: bool
    """The target stands still or brakes towards standstill; the chunk is not followed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverState:
    """What the driver adapter knows about its robot, pushed on change and at least at 10 Hz."""

    received_ns: int
    reason: Reason = Reason.NONE
    """NONE = may be commanded; else ROBOT_REFLEX, USER_STOP, DRIVER_LOST, MOTOR_ERROR or
    GRIPPER_FAULT."""
    text: str = ''
    """One sentence: what is wrong and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyHealth:
    """The fields of ``PolicyStatus.msg`` that decide whether the robot may move."""

    stamp_ns: int
    received_ns: int
    active: bool
    """Lifecycle state is active."""
    policy_session: str
    checkpoint_id: str
    embodiment: str
    ee_frame: str
    step_s: float
    horizon: int
    instruction_id: str = ''
    """Empty = no instruction."""
    spec_mismatch: str = ''
    ready: bool = True
    reason: Reason = Reason.NONE
    """Why no chunk is produced."""
    text: str = ''
    stream_problems: tuple[str, ...] = ()
    """One sentence per unhealthy stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutorSettings:
    """Everything about the executor that is not a limit; parameters of executor_node."""

    speed_scale: float = 1.0
    """Multiplies velocities, not braking."""
    arm_max_age_s: float = 0.05
    gripper_max_age_s: float = 0.2
    policy_max_age_s: float = 0.3
    driver_max_age_s: float = 1.0
    resume_window_s: float = 2.0
    """A HOLD resumes by itself within this time; later it needs arm."""
    control_rate_hz: float = 0.0
    """0 = the rate of the RobotSpec."""
    gap_periods: float = 5.0
    """A tick later than this many periods (and 0.1 s) is CONTROL_GAP."""
    require_gripper: bool = True
    """False: a set-up whose gripper reports nothing."""
    require_policy: bool = True
    """False: no policy process (lockstep roll-outs, jogging): neither its silence nor its ids are
    judged."""
    require_driver: bool = True
    """False: no driver adapter reports (lockstep roll-outs)."""
    expected_publishers: int = 1
    """Publishers on the command topic, ourselves included; 0 = not judged."""
    joint_names: tuple[str, ...] = ()
    """Names in the arm's joint states, base to wrist; () = those of the RobotSpec."""
    home_opens_gripper: bool = True
    """Open the gripper once the start pose is reached: episodes start open."""
    give_way: GiveWaySettings | None = None
    """For a stiff arm that reports its efforts; None: its targets are sent as they are."""

    def __post_init__(self) -> None:
        if not 0.05 <= self.speed_scale <= 1.0:
            raise UserError(f'speed_scale = {self.speed_scale} must lie between 0.05 and 1.')
        for name in ('arm_max_age_s', 'gripper_max_age_s', 'policy_max_age_s'):
            if not 0.0 < getattr(self, name) <= 2.0:
                raise UserError(f'{name} = {getattr(self, name)} must lie between 0 and 2 s.')
        if self.control_rate_hz and not 5.0 <= self.control_rate_hz <= 1000.0:
            raise UserError(
                f'control_rate_hz = {self.control_rate_hz} must lie between 5 and 1000 Hz.'
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutorSnapshot:
    """The fields of ``ExecutorStatus.msg``, by the same names."""

    stamp_ns: int
    state: State
    reason: Reason
    text: str
    robot: str
    embodiment: str
    checkpoint_id: str
    policy_session: str
    instruction_id: str
    sequence: int
    chunk_age_s: float
    """-1 = none, as for the other ages."""
    arm_age_s: float
    gripper_age_s: float
    policy_age_s: float
    stretch: float
    speed_scale: float
    chunks_accepted: int
    chunks_rejected: int
    last_reject_reason: Reason
    last_reject_text: str
    progress: str
    """Of home and recover; otherwise where the arm gives way."""
    command_interval_p50_ms: float
    command_interval_p99_ms: float
    first_command_age_p50_ms: float
    """Camera stamp to the first command of its chunk, last 100 chunks."""
    first_command_age_p99_ms: float
    commands: int
    reject_counts: dict[Reason, int] = field(default_factory=dict)
    """Rejected chunks by reason since start."""
    standstill: bool = True
    """The commanded target does not move."""
