"""Geometry of the simulated grippers: where the fingers pinch, how far they open. No mujoco here.

The tool frame ``tcp`` lies between the pads: z points along the approach (out of the hand), y along
the axis on which the fingers open. Real constants are Franka's hand (franka_description,
``franka_hand_arguments.xacro``: Rz(-45 deg), pinch at 0.1034 m) and the Interbotix fingers
(``wx250s.urdf.xacro``); the Robotiq 2F-85 is a twin with box fingers of our own, of the real one's
stroke (85 mm) and about its length.
"""

from dataclasses import dataclass, replace

import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import FloatArray, rpy_to_matrix
from spear_ros.robots.spec import RobotSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class GripperGeometry:
    """What the expert, the scenes and the simulated controller need to know about a gripper."""

    name: str
    family: str
    """Robot family that it is mounted on: ``franka`` or ``widowx``."""
    ee_tcp_xyz: tuple[float, float, float]
    """Tool frame in the end-effector frame of the RobotSpec, m."""
    ee_tcp_rpy: tuple[float, float, float]
    tip_m: float
    """From the tool frame to the finger tips along the approach."""
    palm_m: float
    """From the tool frame back to the hand's body, which is wider than the fingers."""
    max_width_m: float
    """Gap between the pads when fully open (opening = 1)."""
    finger_closed_m: float
    """Joint value of one finger at opening 0, and at opening 1."""
    finger_open_m: float
    finger_touch_m: float
    """Joint value of one finger at which the pads meet."""
    width_m: float
    """Thickness of the closed fingers across y (seen in a push along x), and along y."""
    breadth_m: float
    object_scale: float
    """Scale of the objects that suit it."""

    @property
    def T_ee_tcp(self) -> FloatArray:
        """(4, 4) pose of the tool frame in the end-effector frame."""
        T = np.eye(4)
        T[:3, :3] = rpy_to_matrix(self.ee_tcp_rpy)
        T[:3, 3] = self.ee_tcp_xyz
        return T

    def opening(self, finger_m: float) -> float:
        """Joint value of one finger to opening, 1 = open; not clipped."""
        return (finger_m - self.finger_closed_m) / (self.finger_open_m - self.finger_closed_m)

    def opening_for(self, width_m: float) -> float:
        """Opening at which the pads touch something of this width."""
        return self.opening(0.5 * width_m + self.finger_touch_m)

    def finger(self, opening: float) -> float:
        """Opening, 1 = open, to the joint value of one finger in metres."""
        return self.finger_closed_m + opening * (self.finger_open_m - self.finger_closed_m)


FRANKA_HAND = GripperGeometry(
    name='franka_hand',
    family='franka',
    ee_tcp_xyz=(0.0, 0.0, 0.1034),
    ee_tcp_rpy=(0.0, 0.0, -np.pi / 4),
    tip_m=0.0089,
    palm_m=0.0374,
    max_width_m=0.08,
    finger_closed_m=0.0,
    finger_open_m=0.04,
    finger_touch_m=0.0,
    width_m=0.021,
    breadth_m=0.05,
    object_scale=1.0,
)
ROBOTIQ_2F85 = GripperGeometry(
    name='robotiq_2f85',
    family='franka',
    ee_tcp_xyz=(0.0, 0.0, 0.145),
    ee_tcp_rpy=(0.0, 0.0, 0.0),
    tip_m=0.011,
    palm_m=0.051,
    max_width_m=0.085,
    finger_closed_m=0.0,
    finger_open_m=0.0425,
    finger_touch_m=0.0,
    width_m=0.024,
    breadth_m=0.04,
    object_scale=1.0,
)
WIDOWX = GripperGeometry(
    name='widowx',
    family='widowx',
    # tcp z is the arm's x axis (the way it points), tcp y the fingers' axis.
    ee_tcp_xyz=(0.005, 0.0, 0.0),
    ee_tcp_rpy=(0.0, np.pi / 2, 0.0),
    tip_m=0.0106,
    palm_m=0.0406,
    # Bridge's convention: opening = (left_finger - 0.010) / 0.025 (bridge_data_robot).
    max_width_m=0.048,
    finger_closed_m=0.010,
    finger_open_m=0.035,
    finger_touch_m=0.011,
    width_m=0.029,
    breadth_m=0.032,
    object_scale=0.72,
)

GRIPPERS = {g.name: g for g in (FRANKA_HAND, ROBOTIQ_2F85, WIDOWX)}
DEFAULT_GRIPPER = {'franka': 'franka_hand', 'widowx': 'widowx'}


def get_gripper(robot: RobotSpec, name: str | None = None) -> GripperGeometry:
    """Return the gripper ``name``, or the one that the robot's start pose belongs to.

    Raises:
        UserError: unknown, or made for another robot family.
    """
    if name is None:
        homes = robot.homes_rad.items()
        mounted = [g for g, home in homes if tuple(home) == tuple(robot.q_home_rad)]
        name = mounted[0] if mounted else DEFAULT_GRIPPER.get(robot.family, '')
    fitting = [g.name for g in GRIPPERS.values() if g.family == robot.family]
    if name not in fitting:
        raise UserError(
            f'gripper "{name}" does not fit the robot "{robot.name}"; choose one of: '
            f'{", ".join(fitting) or "none is simulated for this family"}.'
        )
    geometry = GRIPPERS[name]
    if robot.family != 'widowx' or robot.finger_open_m == geometry.finger_open_m:
        return geometry
    # A sister arm (vx300s): the same fingers on a carriage of another width.
    closed, opened = robot.finger_closed_m, robot.finger_open_m
    return replace(
        geometry,
        finger_closed_m=closed,
        finger_open_m=opened,
        finger_touch_m=closed + 0.001,
        max_width_m=2 * (opened - closed - 0.001),
    )


def with_home(robot: RobotSpec, gripper: GripperGeometry) -> RobotSpec:
    """Return ``robot`` with the start pose that belongs to ``gripper``."""
    home = robot.homes_rad.get(gripper.name, robot.q_home_rad)
    return replace(robot, q_home_rad=home, q_rest_rad=home)
