"""MAP.yaml: which topic of a recording is what. Shared by replay, conversion and recording."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from spear_ros.core.config import load_yaml
from spear_ros.core.errors import UserError
from spear_ros.core.resources import share_roots
from spear_ros.core.types import EXTERNAL, WRIST

ARM = 'arm'
GRIPPER = 'gripper'
INSTRUCTION = 'instruction'
COMMAND = 'command'

PoseFrame = Literal['ee_gripper_link', 'bridge_state', 'link8']

_ROBOTS = {'franka_droid': 'fr3', 'widowx_bridge': 'wx250s'}
_FRAMES = {'franka_droid': ('link8',), 'widowx_bridge': ('ee_gripper_link', 'bridge_state')}


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraTopics:
    """Images: sensor_msgs/Image or CompressedImage."""

    external: str
    wrist: str | None = None
    """null = the recording has no wrist camera."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmTopic:
    """Where the arm is: joint angles or end-effector poses."""

    topic: str
    kind: Literal['joints', 'pose']
    """``joints``: sensor_msgs/JointState with the robot's joint names; ``pose``: PoseStamped."""
    pose_frame: PoseFrame | None = None
    """What a pose is the pose of, for ``kind: pose``. ``bridge_state``: BridgeData V2's state, with
    its orientation relative to the top-down gripper (R_state = R_ee_gripper_link D^T)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GripperTopic:
    """How far the gripper is open: opening = (reading - closed) / (open - closed)."""

    topic: str
    kind: Literal['float', 'joints']
    """``float``: std_msgs/Float32 or Float64; ``joints``: one joint of a sensor_msgs/JointState."""
    open: float
    """Reading when open, in the topic's unit."""
    closed: float
    """Reading when closed."""
    joint: str | None = None
    """Name of the joint, for ``kind: joints``."""

    def __post_init__(self) -> None:
        if self.open == self.closed:
            raise UserError(f'gripper: open and closed are both {self.open:g}; they must differ.')
        if self.kind == 'joints' and not self.joint:
            raise UserError('gripper: kind "joints" needs the key "joint", the name of the joint.')


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandTopic:
    """Where the arm was told to go, for ``recorded --commanded`` and commanded labels."""

    topic: str
    kind: Literal['pose', 'joints']
    pose_frame: PoseFrame | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MapLimits:
    """Ages on bag time, where a recording's rates do not meet the live limits (seconds)."""

    image_max_age_s: float = 0.15
    arm_max_age_s: float = 0.05
    gripper_max_age_s: float = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class TopicMap:
    """The schema of MAP.yaml."""

    embodiment: Literal['franka_droid', 'widowx_bridge']
    cameras: CameraTopics
    arm: ArmTopic
    gripper: GripperTopic
    instruction: str
    """A topic (starts with ``/``) of std_msgs/String, or the text itself."""
    robot: str = ''
    """Robot model whose kinematics and joint names apply; empty = fr3 or wx250s."""
    command: CommandTopic | None = None
    limits: MapLimits = field(default_factory=MapLimits)

    def __post_init__(self) -> None:
        self._check_frame('arm', self.arm)
        if self.command is not None:
            self._check_frame('command', self.command)
        if not self.instruction.strip():
            raise UserError('instruction is empty; give a text, or a topic that starts with "/".')
        for stream, topic in self.topics().items():
            if not topic.startswith('/'):
                raise UserError(f'{stream}: topic "{topic}" must start with "/".')

    def _check_frame(self, name: str, source: ArmTopic | CommandTopic) -> None:
        allowed = _FRAMES[self.embodiment]
        if source.kind == 'pose' and source.pose_frame not in allowed:
            raise UserError(
                f'{name}: pose_frame is {source.pose_frame or "missing"}, but poses of '
                f'{self.embodiment} are of {" or ".join(allowed)}.'
            )

    @property
    def robot_name(self) -> str:
        """Name for ``robots.registry.get_robot``."""
        return self.robot or _ROBOTS[self.embodiment]

    @property
    def instruction_topic(self) -> str | None:
        """The topic, or None where the map holds the text itself."""
        return self.instruction if self.instruction.startswith('/') else None

    def topics(self) -> dict[str, str]:
        """Stream -> topic, for every stream that the recording must carry."""
        topics = {EXTERNAL: self.cameras.external, ARM: self.arm.topic, GRIPPER: self.gripper.topic}
        if self.cameras.wrist is not None:
            topics[WRIST] = self.cameras.wrist
        if self.instruction_topic is not None:
            topics[INSTRUCTION] = self.instruction_topic
        if self.command is not None:
            topics[COMMAND] = self.command.topic
        return topics


def load_topic_map(path: Path | str) -> TopicMap:
    """Read a MAP.yaml; a bare name also finds the examples in ``config/replay``.

    Raises:
        UserError: no such file, or it does not fit the schema.
    """
    path = Path(path)
    if not path.exists() and path.parent == Path('.'):
        names = [root / 'config/replay' / f'{path.stem}.yaml' for root in share_roots()]
        path = next((name for name in names if name.is_file()), path)
    return load_yaml(path, TopicMap)
