"""Franka Research 3 and Franka Emika Panda as DROID uses them: base = link0, end-effector = link8.

Sources: franka_description robots/{fer,fr3} (kinematics.yaml is the same for both; joint limits
differ), libfranka include/franka/rate_limiting.h (accelerations), droid-dataset/droid
config/{panda,fr3} (``ee_link_name: panda_link8``, start pose). The FR3's joint velocity limits
shrink towards the joint limits; the table holds the maxima, and the nominal share of one half keeps
the arm below the shrunk ones away from the limits.
"""

from math import pi

from spear_ros.robots.spec import (
    Joint,
    LinkSphere,
    MotionLimits,
    RobotSpec,
    StepLimits,
    Vector3,
)

FRANKA_HAND = 'franka_hand'
ROBOTIQ = 'robotiq_2f85'

# Origin of each joint in its parent link, and its fixed rotation; every axis is z.
_ORIGINS: tuple[tuple[Vector3, Vector3], ...] = (
    ((0.0, 0.0, 0.333), (0.0, 0.0, 0.0)),
    ((0.0, 0.0, 0.0), (-pi / 2, 0.0, 0.0)),
    ((0.0, -0.316, 0.0), (pi / 2, 0.0, 0.0)),
    ((0.0825, 0.0, 0.0), (pi / 2, 0.0, 0.0)),
    ((-0.0825, 0.384, 0.0), (-pi / 2, 0.0, 0.0)),
    ((0.0, 0.0, 0.0), (pi / 2, 0.0, 0.0)),
    ((0.088, 0.0, 0.0), (pi / 2, 0.0, 0.0)),
)

# lower, upper [rad], velocity [rad/s], acceleration [rad/s^2]
_FR3_LIMITS = (
    (-2.7437, 2.7437, 2.62, 10.0),
    (-1.7837, 1.7837, 2.62, 10.0),
    (-2.9007, 2.9007, 2.62, 10.0),
    (-3.0421, -0.1518, 2.62, 10.0),
    (-2.8065, 2.8065, 5.26, 10.0),
    (0.5445, 4.5169, 4.18, 10.0),
    (-3.0159, 3.0159, 5.26, 10.0),
)
_PANDA_LIMITS = (
    (-2.8973, 2.8973, 2.175, 15.0),
    (-1.7628, 1.7628, 2.175, 7.5),
    (-2.8973, 2.8973, 2.175, 10.0),
    (-3.0718, -0.0698, 2.175, 12.5),
    (-2.8973, 2.8973, 2.61, 15.0),
    (-0.0175, 3.7525, 2.61, 20.0),
    (-2.8973, 2.8973, 2.61, 20.0),
)

# DROID starts with q7 = 0 because its Robotiq is bolted straight onto the flange; the Franka hand
# is turned by -45 degrees about the flange, so the same view needs q7 = 45 degrees.
_START = (0.0, -pi / 5, 0.0, -4 * pi / 5, 0.0, 3 * pi / 5)
_HOMES = {FRANKA_HAND: (*_START, pi / 4), ROBOTIQ: (*_START, 0.0)}

# Hulls of the visual meshes, measured by eye on franka_description: elbow, forearm, wrist, flange
# and the body (not the fingers) of either gripper. Fingers touch tables by profession.
_SPHERES = (
    LinkSphere(after_joint=4, center_m=(0.0, 0.0, 0.0), radius_m=0.08),
    LinkSphere(after_joint=5, center_m=(0.0, 0.06, -0.15), radius_m=0.07),
    LinkSphere(after_joint=6, center_m=(0.0, 0.0, 0.0), radius_m=0.07),
    LinkSphere(after_joint=7, center_m=(0.0, 0.0, 0.06), radius_m=0.06),
    LinkSphere(after_joint=7, center_m=(0.0, 0.0, 0.142), radius_m=0.05),
)


def _spec(name: str, limits: tuple[tuple[float, float, float, float], ...]) -> RobotSpec:
    joints = tuple(
        Joint(
            name=f'{name}_joint{i + 1}',
            xyz=xyz,
            rpy=rpy,
            axis=(0.0, 0.0, 1.0),
            lower_rad=lower,
            upper_rad=upper,
            velocity_rad_s=velocity,
            acceleration_rad_s2=acceleration,
        )
        for i, ((xyz, rpy), (lower, upper, velocity, acceleration)) in enumerate(
            zip(_ORIGINS, limits, strict=True)
        )
    )
    return RobotSpec(
        name=name,
        family='franka',
        embodiment='franka_droid',
        joints=joints,
        ee_xyz=(0.0, 0.0, 0.107),
        base_frame='base',
        ee_frame='link8',
        driver_frames={'base': f'{name}_link0', 'link8': f'{name}_link8'},
        q_home_rad=_HOMES[FRANKA_HAND],
        q_rest_rad=_HOMES[FRANKA_HAND],
        homes_rad=_HOMES,
        # Reach is 0.855 m; DROID's own wall (a cube of 1 m) is no wall. Behind x = 0.2 m the arm
        # folds onto its own base, and below z = 0 link8 would be under the mounting plane.
        workspace_min_m=(0.20, -0.60, 0.0),
        workspace_max_m=(0.85, 0.60, 0.90),
        table_z_m=-0.10,
        # Speeds: the hard step per 0.2 s. Accelerations: the FR3's Cartesian limits in libfranka.
        hard=MotionLimits(
            linear_m_s=1.125, linear_m_s2=9.0, angular_rad_s=2.25, angular_rad_s2=17.0
        ),
        nominal=MotionLimits(
            linear_m_s=0.5,
            linear_m_s2=2.0,
            angular_rad_s=1.0,
            angular_rad_s2=4.0,
            joint_fraction=0.5,
        ),
        step=StepLimits(per_s=0.2, norm_m=0.225, norm_rad=0.45),
        link_spheres=_SPHERES,
        control_rate_hz=100.0,
        finger_open_m=0.04,
        finger_closed_m=0.0,
    )


FR3 = _spec('fr3', _FR3_LIMITS)
PANDA = _spec('panda', _PANDA_LIMITS)
