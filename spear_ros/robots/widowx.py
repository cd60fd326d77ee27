"""WidowX-250s (Bridge) and ViperX-300s: same driver, same joint tree, other lengths and limits.

Source: interbotix_ros_manipulators ``jazzy`` urdf/{wx250s,vx300s}.urdf.xacro (rpy 0 everywhere, the
base link is the world). The older xacro that PyPI's rtb-data carries turns the elbow and the wrist
angle the other way round: it must not be used with today's xs_sdk. Start pose and workspace:
bridge_data_robot and openvla's Bridge set-up. Dynamixel servos publish no acceleration limit; the
table holds ours, see doc/decisions.
"""

from dataclasses import dataclass
from math import pi, radians

from spear_ros.robots.spec import (
    Joint,
    LinkSphere,
    MotionLimits,
    RobotSpec,
    StepLimits,
    Vector3,
)

_NAMES = ('waist', 'shoulder', 'elbow', 'forearm_roll', 'wrist_angle', 'wrist_rotate')
_AXES: tuple[Vector3, ...] = (
    (0.0, 0.0, 1.0),
    (0.0, 1.0, 0.0),
    (0.0, 1.0, 0.0),
    (1.0, 0.0, 0.0),
    (0.0, 1.0, 0.0),
    (1.0, 0.0, 0.0),
)
_FULL_TURN_RAD = 3.14158
_SERVO_VELOCITY_RAD_S = pi
# A wx250s under Bridge's own profile (velocity 250 ms, acceleration 100 ms) reaches about this.
_SERVO_ACCELERATION_RAD_S2 = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Arm:
    """What differs between the two arms."""

    name: str
    origins: tuple[Vector3, ...]
    limits_rad: tuple[tuple[float, float], ...]
    ee_x_m: float
    q_home_rad: tuple[float, ...]
    workspace: tuple[Vector3, Vector3]
    spheres: tuple[LinkSphere, ...]
    fingers_m: tuple[float, float]
    """Closed, open."""


def _spheres(scale: float, gripper_x_m: float) -> tuple[LinkSphere, ...]:
    """Elbow, forearm, wrist and gripper body; the fingers touch tables by profession."""
    return (
        LinkSphere(after_joint=3, center_m=(0.0, 0.0, 0.0), radius_m=0.045 * scale),
        LinkSphere(after_joint=4, center_m=(0.0, 0.0, 0.0), radius_m=0.04 * scale),
        LinkSphere(after_joint=5, center_m=(0.0, 0.0, 0.0), radius_m=0.035 * scale),
        LinkSphere(after_joint=6, center_m=(gripper_x_m, 0.0, 0.0), radius_m=0.035 * scale),
    )


def _spec(arm: _Arm) -> RobotSpec:
    joints = tuple(
        Joint(
            name=name,
            xyz=xyz,
            rpy=(0.0, 0.0, 0.0),
            axis=axis,
            lower_rad=lower,
            upper_rad=upper,
            velocity_rad_s=_SERVO_VELOCITY_RAD_S,
            acceleration_rad_s2=_SERVO_ACCELERATION_RAD_S2,
        )
        for name, xyz, axis, (lower, upper) in zip(
            _NAMES, arm.origins, _AXES, arm.limits_rad, strict=True
        )
    )
    return RobotSpec(
        name=arm.name,
        family='widowx',
        embodiment='widowx_bridge',
        joints=joints,
        ee_xyz=(arm.ee_x_m, 0.0, 0.0),
        base_frame='base',
        ee_frame='ee_gripper_link',
        driver_frames={
            'base': f'{arm.name}/base_link',
            'ee_gripper_link': f'{arm.name}/ee_gripper_link',
        },
        q_home_rad=arm.q_home_rad,
        q_rest_rad=arm.q_home_rad,
        homes_rad={'widowx': arm.q_home_rad},
        workspace_min_m=arm.workspace[0],
        workspace_max_m=arm.workspace[1],
        # Bridge mounts the base above the work surface; the default configuration tightens this.
        table_z_m=-0.10,
        hard=MotionLimits(linear_m_s=0.8, linear_m_s2=8.0, angular_rad_s=3.0, angular_rad_s2=30.0),
        nominal=MotionLimits(
            linear_m_s=0.4,
            linear_m_s2=1.5,
            angular_rad_s=1.5,
            angular_rad_s2=6.0,
            joint_fraction=0.5,
        ),
        step=StepLimits(per_s=0.2, axis_m=0.05, axis_rad=0.25),
        link_spheres=arm.spheres,
        control_rate_hz=25.0,
        finger_closed_m=arm.fingers_m[0],
        finger_open_m=arm.fingers_m[1],
    )


WX250S = _spec(
    _Arm(
        name='wx250s',
        origins=(
            (0.0, 0.0, 0.072),
            (0.0, 0.0, 0.03865),
            (0.04975, 0.0, 0.25),
            (0.175, 0.0, 0.0),
            (0.075, 0.0, 0.0),
            (0.065, 0.0, 0.0),
        ),
        limits_rad=(
            (-_FULL_TURN_RAD, _FULL_TURN_RAD),
            (-1.8850, 1.9897),
            (-2.1468, 1.6057),
            (-_FULL_TURN_RAD, _FULL_TURN_RAD),
            (-1.7453, 2.1468),
            (-_FULL_TURN_RAD, _FULL_TURN_RAD),
        ),
        ee_x_m=0.093575,
        # [0.3, 0, 0.15] m, gripper straight down: bridge_data_robot's start pose.
        q_home_rad=(0.0, 0.022012, 0.183101, 0.0, 1.365683, 0.0),
        # OpenVLA's and Bridge's boxes together, and the sleep pose at (0.12, 0, 0.08).
        workspace=((0.08, -0.30, -0.10), (0.50, 0.30, 0.45)),
        spheres=_spheres(1.0, 0.043),
        # Bridge's range for the model's gripper value; the finger itself moves 0.015 to 0.037 m.
        fingers_m=(0.010, 0.035),
    )
)

VX300S = _spec(
    _Arm(
        name='vx300s',
        origins=(
            (0.0, 0.0, 0.079),
            (0.0, 0.0, 0.04805),
            (0.05955, 0.0, 0.3),
            (0.2, 0.0, 0.0),
            (0.1, 0.0, 0.0),
            (0.069744, 0.0, 0.0),
        ),
        limits_rad=(
            (-_FULL_TURN_RAD, _FULL_TURN_RAD),
            (radians(-106), radians(72)),
            (radians(-101), radians(92)),
            (-_FULL_TURN_RAD, _FULL_TURN_RAD),
            (radians(-107), radians(128)),
            (-_FULL_TURN_RAD, _FULL_TURN_RAD),
        ),
        ee_x_m=0.042825 + 0.025875 + 0.0385,
        q_home_rad=(0.0, 0.0, 0.2, 0.0, pi / 2 - 0.2, 0.0),
        workspace=((0.10, -0.40, -0.10), (0.60, 0.40, 0.55)),
        spheres=_spheres(1.15, 0.042825),
        fingers_m=(0.021, 0.057),
    )
)
