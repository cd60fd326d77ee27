"""How a robot is wired: topics, frames, gripper adapter, driver names. Schema of config/robots.

Values live in YAML only; what the robot *is* (kinematics, limits) is the RobotSpec that ``model``
names. Topic names are the drivers' own (franka_ros2 3.4, crisp_controllers, interbotix_ros_core),
so that a lab that starts those with their defaults has nothing to edit but its cameras.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from spear_ros.core.config import load_yaml
from spear_ros.core.errors import UserError
from spear_ros.core.resources import share_file
from spear_ros.core.types import EXTERNAL, WRIST
from spear_ros.runtime.effort_guard import WIDOWX_EFFORT_LIMITS_MA, WIDOWX_EFFORT_TIME_S
from spear_ros.runtime.give_way import GIVE_WAY_SHARE, GiveWaySettings

GripperName = Literal['franka_hand', 'robotiq_2f85', 'widowx']


def _topic(name: str, value: str) -> None:
    if not value.startswith('/') or ' ' in value or '//' in value or value.endswith('/'):
        raise UserError(
            f'{name} = {value!r} is not an absolute ROS name; write it like /camera/image_raw.'
        )


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f'{name} = {value} must lie between {low:g} and {high:g}.')


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraConfig:
    """One camera stream of the policy."""

    topic: str
    """sensor_msgs/Image, or sensor_msgs/CompressedImage where ``compressed`` is true."""
    compressed: bool = False
    max_age_s: float = 0.15
    """Older pictures are not acted on."""
    frame_id: str = ''
    """Optical frame in the header; empty: not checked."""

    def __post_init__(self) -> None:
        _topic('topic', self.topic)
        _within('max_age_s', self.max_age_s, 0.02, 2.0)

    @property
    def info_topic(self) -> str:
        """CameraInfo beside the image, by the convention of image_transport."""
        return self.topic.removesuffix('/compressed').rsplit('/', 1)[0] + '/camera_info'


@dataclass(frozen=True, kw_only=True, slots=True)
class CamerasConfig:
    """The two places a camera may stand; ``wrist: null`` where there is none."""

    external: CameraConfig
    wrist: CameraConfig | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmConfig:
    """Measured joint positions of the arm: sensor_msgs/JointState."""

    topic: str
    joint_names: tuple[str, ...] = ()
    """Names in the message, base to wrist; empty: those of the RobotSpec."""
    max_age_s: float = 0.05
    max_rate_hz: float = 250.0
    """A faster stream is refused: it would take the processor from the control loop."""

    def __post_init__(self) -> None:
        _topic('topic', self.topic)
        _within('max_age_s', self.max_age_s, 0.01, 1.0)
        _within('max_rate_hz', self.max_rate_hz, 20.0, 250.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class GripperStateConfig:
    """Measured gripper position, one joint of a sensor_msgs/JointState."""

    topic: str
    joint: str
    """``{model}`` stands for the name of the RobotSpec (``fr3_finger_joint1``)."""
    open: float
    """Joint value (rad or m) that means 1 = open ..."""
    closed: float
    """... and the one that means 0 = closed."""
    max_age_s: float = 0.2

    def __post_init__(self) -> None:
        _topic('topic', self.topic)
        _within('max_age_s', self.max_age_s, 0.02, 2.0)
        if self.open == self.closed:
            raise UserError(f'open = closed = {self.open}; they must differ.')

    def opening(self, value: float) -> float:
        """Joint value to opening: 1 = open, 0 = closed; not clipped, as in the data sets."""
        return (value - self.closed) / (self.open - self.closed)

    def joint_value(self, opening: float) -> float:
        """Opening to joint value, clipped to the range from closed to open."""
        return self.closed + min(max(opening, 0.0), 1.0) * (self.open - self.closed)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrankaHandConfig:
    """The Franka hand behind franka_gripper: actions homing, move, grasp."""

    state: GripperStateConfig
    namespace: str = '/franka_gripper'
    homing: bool = True
    """Run the homing action once, before the first target of the fingers."""
    open_width_m: float = 0.08
    speed_m_s: float = 0.1
    force_n: float = 30.0
    epsilon_m: float = 0.08
    """Inner and outer tolerance of grasp: any object width counts as grasped."""

    def __post_init__(self) -> None:
        _topic('namespace', self.namespace)
        _within('open_width_m', self.open_width_m, 0.01, 0.08)
        _within('speed_m_s', self.speed_m_s, 0.01, 0.2)
        _within('force_n', self.force_n, 1.0, 70.0)
        _within('epsilon_m', self.epsilon_m, 0.005, 0.08)


@dataclass(frozen=True, kw_only=True, slots=True)
class Robotiq2f85Config:
    """Robotiq 2F-85 behind ros2_robotiq_gripper: action ParallelGripperCommand."""

    state: GripperStateConfig
    action: str = '/robotiq/robotiq_gripper_controller/gripper_cmd'
    max_velocity: float = 0.0
    """Field of the goal's JointState; 0 leaves it empty, the controller's own default."""
    max_effort: float = 0.0

    def __post_init__(self) -> None:
        _topic('action', self.action)


@dataclass(frozen=True, kw_only=True, slots=True)
class WidowxGripperConfig:
    """The WidowX gripper in PWM mode: JointSingleCommand on commands/joint_single."""

    state: GripperStateConfig
    pwm: float = 250.0
    """Plus opens, minus closes; the vendor's range is 150 to 350."""
    hold_pwm: float = 0.0
    """Kept on a grasped object after the closing time; sustained closing overloads the motor."""
    closing_time_s: float = 1.5
    """After this long without reaching the limit (an object between the fingers) drop to hold."""

    def __post_init__(self) -> None:
        _within('pwm', self.pwm, 100.0, 350.0)
        _within('hold_pwm', self.hold_pwm, 0.0, 150.0)
        _within('closing_time_s', self.closing_time_s, 0.2, 5.0)


GripperConfig = FrankaHandConfig | Robotiq2f85Config | WidowxGripperConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class GrippersConfig:
    """The grippers that this arm may carry; ``gripper`` of the RobotConfig chooses one."""

    franka_hand: FrankaHandConfig | None = None
    robotiq_2f85: Robotiq2f85Config | None = None
    widowx: WidowxGripperConfig | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FrankaDriverConfig:
    """franka_ros2 with a crisp CartesianController that has link8 as its end-effector frame.

    Or, as a fall-back, with a JointTrajectoryController: ``command: joint_trajectory``.
    """

    command: Literal['target_pose', 'joint_trajectory'] = 'target_pose'
    """What ``controller`` takes; see ros/drivers/franka_targets.py."""
    target_pose_topic: str = '/target_pose'
    trajectory_topic: str = '/fr3_arm_controller/joint_trajectory'
    trajectory_time_s: float = 0.1
    """Each joint target is to be reached, at rest, after this long; the next replaces it."""
    robot_state_topic: str = '/franka_robot_state_broadcaster/robot_state'
    """1 kHz: polled raw, never subscribed with a callback."""
    robot_state_poll_hz: float = 20.0
    robot_state_max_age_s: float = 0.3
    controller_manager: str = '/controller_manager'
    controller: str = 'cartesian_impedance_controller'
    """Name under which the controller of ``command`` is loaded."""
    hardware_component: str = 'FrankaHardwareInterface'
    error_recovery_action: str = '/action_server/error_recovery'
    recover_timeout_s: float = 10.0
    """For each step of recover."""

    def __post_init__(self) -> None:
        for name in (
            'target_pose_topic', 'trajectory_topic', 'robot_state_topic', 'controller_manager',
            'error_recovery_action',
        ):  # fmt: skip
            _topic(name, getattr(self, name))
        _within('robot_state_poll_hz', self.robot_state_poll_hz, 5.0, 50.0)
        _within('robot_state_max_age_s', self.robot_state_max_age_s, 0.1, 1.0)
        _within('recover_timeout_s', self.recover_timeout_s, 1.0, 60.0)
        _within('trajectory_time_s', self.trajectory_time_s, 0.03, 0.3)

    @property
    def command_topic(self) -> str:
        """Topic of the targets, on which only one node may publish."""
        poses = self.command == 'target_pose'
        return self.target_pose_topic if poses else self.trajectory_topic


@dataclass(frozen=True, kw_only=True, slots=True)
class WidowxDriverConfig:
    """interbotix xs_sdk."""

    namespace: str = '/wx250s'
    group: str = 'arm'
    gripper: str = 'gripper'
    """Name of the gripper's motor in joint_single commands and in joint_states."""
    profile_velocity_ms: int = 50
    profile_acceleration_ms: int = 20
    """Bridge's ratios (1.25 and 0.5) of the 40 ms between commands."""
    effort_limits_ma: tuple[float, ...] = WIDOWX_EFFORT_LIMITS_MA
    effort_time_s: float = WIDOWX_EFFORT_TIME_S
    """The limit counts when it is exceeded for this long."""
    give_way_share: float = GIVE_WAY_SHARE
    """Of the limits: a joint that pushes more draws its target back; 0: none does."""
    error_register: str = 'Hardware_Error_Status'
    error_poll_hz: float = 1.0
    service_timeout_s: float = 5.0

    def __post_init__(self) -> None:
        _topic('namespace', self.namespace)
        _within('profile_velocity_ms', self.profile_velocity_ms, 20, 2000)
        _within('profile_acceleration_ms', self.profile_acceleration_ms, 0, 1000)
        _within('effort_time_s', self.effort_time_s, 0.0, 1.0)
        _within('give_way_share', self.give_way_share, 0.0, 1.0)
        limits = self.effort_limits_ma
        if len(limits) != 6 or not all(0.0 < limit <= 5000.0 for limit in limits):
            raise UserError(
                f'effort_limits_ma = {list(limits)} must be six currents, waist to wrist_rotate, '
                'above 0 and at most 5000 mA.'
            )
        _within('error_poll_hz', self.error_poll_hz, 0.1, 5.0)
        _within('service_timeout_s', self.service_timeout_s, 0.5, 30.0)
        if 2 * self.profile_acceleration_ms > self.profile_velocity_ms:
            raise UserError(
                f'profile_acceleration_ms = {self.profile_acceleration_ms} is more than half of '
                f'profile_velocity_ms = {self.profile_velocity_ms}; the motor refuses that.'
            )

    @property
    def give_way(self) -> GiveWaySettings | None:
        """What the executor is told; None where no joint gives way."""
        return GiveWaySettings.below(self.effort_limits_ma, self.give_way_share)


@dataclass(frozen=True, kw_only=True, slots=True)
class SimConfig:
    """What differs when the robot is simulated: the twin speaks the same names."""

    model: str
    gripper: GripperName
    joint_rate_hz: float = 100.0
    gripper_rate_hz: float = 15.0
    camera_rate_hz: float = 15.0
    arm_max_age_s: float = 0.2
    """In place of the arm's 50 ms: a twin at ordinary priority beside a browser is late at times,
    which on a robot, whose driver runs in real time, would be a fault."""
    camera_max_age_s: float = 0.3
    """In place of the cameras' own limit, for the same reason."""
    gripper_max_age_s: float = 0.5
    robot_state_rate_hz: float = 50.0
    """FrankaRobotState is 1 kHz on the real robot; the twin sends fewer of the same messages."""
    encoding: Literal['rgb8', 'bgr8', 'rgba8', 'bgra8'] = 'rgb8'

    def __post_init__(self) -> None:
        _within('joint_rate_hz', self.joint_rate_hz, 20.0, 250.0)
        _within('gripper_rate_hz', self.gripper_rate_hz, 5.0, 100.0)
        _within('camera_rate_hz', self.camera_rate_hz, 1.0, 60.0)
        _within('arm_max_age_s', self.arm_max_age_s, 0.01, 1.0)
        _within('camera_max_age_s', self.camera_max_age_s, 0.02, 2.0)
        _within('gripper_max_age_s', self.gripper_max_age_s, 0.02, 2.0)
        _within('robot_state_rate_hz', self.robot_state_rate_hz, 10.0, 1000.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RobotConfig:
    """Wiring of one robot: the schema of ``config/robots/<name>.yaml``."""

    model: str
    """Name of the RobotSpec: fr3, panda, wx250s, vx300s."""
    gripper: GripperName
    """Which of ``grippers`` is mounted."""
    cameras: CamerasConfig
    arm: ArmConfig
    grippers: GrippersConfig
    franka: FrankaDriverConfig | None = None
    widowx: WidowxDriverConfig | None = None
    sim: SimConfig | None = None

    def __post_init__(self) -> None:
        if getattr(self.grippers, self.gripper) is None:
            raise UserError(
                f'gripper = {self.gripper!r} has no section under "grippers"; add it or choose '
                'another gripper.'
            )
        if (self.franka is None) == (self.widowx is None):
            raise UserError('exactly one driver section must be given: "franka" or "widowx".')

    @property
    def family(self) -> str:
        """Driver family: ``franka`` or ``widowx``; the RobotSpec must be of the same."""
        return 'franka' if self.franka is not None else 'widowx'

    @property
    def gripper_config(self) -> GripperConfig:
        """Section of the mounted gripper."""
        return getattr(self.grippers, self.gripper)  # type: ignore[no-any-return]

    @property
    def gripper_state(self) -> GripperStateConfig:
        """Where the mounted gripper's position is read; ``{model}`` is filled in."""
        state = self.gripper_config.state
        return replace(state, joint=state.joint.replace('{model}', self.model))

    @property
    def camera_topics(self) -> Mapping[str, CameraConfig]:
        """Camera name -> stream, without those that are absent."""
        pairs = ((EXTERNAL, self.cameras.external), (WRIST, self.cameras.wrist))
        return {name: camera for name, camera in pairs if camera is not None}

    def simulated(self) -> 'RobotConfig':
        """Return the wiring of the simulated twin of this robot.

        Raises:
            UserError: the configuration has no ``sim`` section.
        """
        if self.sim is None:
            raise UserError('this robot has no "sim" section; add one to simulate it.')
        age_s = self.sim.camera_max_age_s
        wrist = self.cameras.wrist
        fitted = getattr(self.grippers, self.sim.gripper)
        state = replace(fitted.state, max_age_s=self.sim.gripper_max_age_s)
        return replace(
            self,
            grippers=replace(self.grippers, **{self.sim.gripper: replace(fitted, state=state)}),
            model=self.sim.model,
            gripper=self.sim.gripper,
            arm=replace(self.arm, max_age_s=self.sim.arm_max_age_s),
            cameras=replace(
                self.cameras,
                external=replace(self.cameras.external, max_age_s=age_s),
                wrist=None if wrist is None else replace(wrist, max_age_s=age_s),
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WiringParameters:
    """ROS parameters with which every node chooses its robot; see :func:`robot_config`."""

    robot: str = field(
        default='franka',
        metadata={'description': 'name of a file in config/robots'},
    )
    robot_config: str = field(
        default='', metadata={'description': 'path of a robot YAML instead of config/robots'}
    )
    model: str = field(
        default='', metadata={'description': 'RobotSpec instead of the one in the file'}
    )
    gripper: str = field(
        default='', metadata={'description': 'gripper adapter instead of the one in the file'}
    )
    simulated: bool = field(
        default=False, metadata={'description': 'use the "sim" section of the file'}
    )


def robot_config(wiring: WiringParameters) -> RobotConfig:
    """Load the wiring that the parameters choose; explicit parameters win over the file."""
    config = load_robot_config(wiring.robot_config or wiring.robot)
    if wiring.simulated:
        config = config.simulated()
    if wiring.model:
        config = replace(config, model=wiring.model)
    if wiring.gripper:
        known = GrippersConfig.__dataclass_fields__
        if wiring.gripper not in known:
            raise UserError(
                f'parameter gripper = {wiring.gripper!r} is unknown; choose one of '
                f'{", ".join(known)}.'
            )
        config = replace(config, gripper=wiring.gripper)  # type: ignore[arg-type]
    return config


def load_robot_config(name: str | Path) -> RobotConfig:
    """Read the configuration of a robot by name (``franka``) or by path of a YAML file.

    Raises:
        UserError: no such robot, or the file does not fit :class:`RobotConfig`.
    """
    text = str(name)
    if text.endswith(('.yaml', '.yml')):
        return load_yaml(Path(text).expanduser(), RobotConfig)
    folder = share_file('config/robots')
    known = sorted(p.stem for p in folder.glob('*.yaml'))
    if text not in known:
        raise UserError(
            f'robot {text!r} is unknown; choose one of {", ".join(known)}, or give the path of a '
            'YAML file.'
        )
    return load_yaml(folder / f'{text}.yaml', RobotConfig)
