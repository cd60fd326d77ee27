"""The simulated Franka arm (FR3 and Panda share their kinematics) with either gripper.

Surfaces are the Panda meshes of rtb-data in link frames. Masses and inertias are rounded from the
published identification of the Panda (Gaz et al., RA-L 2019); reflected motor inertias are our
estimate. They shape transients only: gravity is compensated and the impedance is the controller's.
"""

import numpy as np

from spear_ros.robots.spec import RobotSpec
from spear_ros.simulation.backend import mujoco
from spear_ros.simulation.grippers import GripperGeometry
from spear_ros.simulation.meshes import PANDA, mesh_file
from spear_ros.simulation.robots.joint_tree import (
    LinkDynamics,
    MeshPart,
    add_collision,
    add_finger,
    add_force_actuator,
    add_joint_tree,
    add_mesh,
    add_pad,
    couple_fingers,
    set_inertia,
)

TORQUE_LIMIT_NM = (87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0)
"""libfranka's limits."""

LINK7_TO_FLANGE_M = 0.107
WHITE = (0.90, 0.90, 0.92, 1.0)
DARK = (0.16, 0.16, 0.18, 1.0)
STEEL = (0.35, 0.35, 0.37, 1.0)

DYNAMICS = (
    LinkDynamics(4.9, (0.00, 0.00, -0.05), (0.06, 0.06, 0.02), 0.20, 1.0),
    LinkDynamics(3.0, (0.00, -0.03, 0.00), (0.03, 0.02, 0.03), 0.20, 1.0),
    LinkDynamics(3.2, (0.03, 0.04, -0.07), (0.04, 0.04, 0.02), 0.15, 1.0),
    LinkDynamics(3.6, (-0.05, 0.06, 0.03), (0.03, 0.03, 0.03), 0.15, 1.0),
    LinkDynamics(1.2, (-0.01, 0.04, -0.04), (0.03, 0.02, 0.02), 0.10, 0.5),
    LinkDynamics(1.7, (0.06, -0.01, -0.01), (0.01, 0.01, 0.01), 0.10, 0.5),
    LinkDynamics(0.7, (0.01, 0.00, 0.06), (0.01, 0.01, 0.01), 0.10, 0.5),
)

_CAPSULES = {
    # body index -> radius, half length, centre, rpy: around the meshes, coarse
    1: (0.060, 0.06, (0.0, 0.0, -0.10), (0, 0, 0)),
    2: (0.060, 0.06, (0.0, 0.0, 0.0), (np.pi / 2, 0, 0)),
    3: (0.060, 0.05, (0.0, 0.0, -0.07), (0, 0, 0)),
    4: (0.060, 0.05, (-0.04, 0.06, 0.0), (np.pi / 2, 0, 0)),
    5: (0.055, 0.09, (0.0, 0.03, -0.13), (0, 0, 0)),
    6: (0.050, 0.02, (0.05, 0.0, 0.0), (np.pi / 2, 0, 0)),
    7: (0.045, 0.02, (0.0, 0.0, 0.07), (0, 0, 0)),
}


def build(robot: RobotSpec, gripper: GripperGeometry) -> 'mujoco.MjSpec':
    """Return the model of arm and gripper alone; fingers are ``finger_left`` and ``finger_right``.

    Raises:
        UserError: the meshes are not installed.
    """
    spec = mujoco.MjSpec()
    bodies = add_joint_tree(spec, robot, DYNAMICS)
    for index, body in enumerate(bodies):
        name = f'link{index}'
        add_mesh(spec, body, MeshPart(name, mesh_file(PANDA, f'{name}.stl'), WHITE))
        if index in _CAPSULES:
            radius, half, pos, rpy = _CAPSULES[index]
            add_collision(body, 'capsule', (radius, half), pos, rpy)
    for joint, limit in zip(robot.joint_names, TORQUE_LIMIT_NM, strict=True):
        add_force_actuator(spec, joint, limit)
    if gripper.name == 'franka_hand':
        _add_franka_hand(spec, bodies[-1])
    else:
        _add_robotiq(spec, bodies[-1])
    for finger in ('finger_left', 'finger_right'):
        add_force_actuator(spec, finger, 150.0)
    couple_fingers(spec, 'finger_left', 'finger_right')
    return spec


def _add_franka_hand(spec: 'mujoco.MjSpec', link7: 'mujoco.MjsBody') -> None:
    half_turn = np.pi / 4
    hand = link7.add_body(
        name='hand',
        pos=(0, 0, LINK7_TO_FLANGE_M),
        quat=[np.cos(half_turn / 2), 0, 0, -np.sin(half_turn / 2)],
        gravcomp=1,
    )
    set_inertia(hand, 0.73, (0, 0, 0.03), (2.5e-3, 6e-4, 2e-3))
    add_mesh(spec, hand, MeshPart('hand', mesh_file(PANDA, 'hand.stl'), WHITE))
    add_collision(hand, 'box', (0.030, 0.100, 0.033), (0, 0, 0.033))
    for name, side in (('finger_left', 1), ('finger_right', -1)):
        finger = add_finger(hand, name, side, (0, 0, 0.0584), (0.0, 0.04), 60.0)
        yaw = 0.0 if side > 0 else np.pi
        add_mesh(
            spec,
            finger,
            MeshPart('finger', mesh_file(PANDA, 'finger.stl'), STEEL, rpy=(0, 0, yaw)),
        )
        add_pad(finger, (0.0095, 0.004, 0.009), (0, side * 0.004, 0.0449), f'pad_{name}')
        add_collision(finger, 'box', (0.0100, 0.0085, 0.018), (0, side * 0.0175, 0.018))
    add_wrist_camera(hand, (-0.085, 0.0, 0.045), (0.0, 0.0, 0.128))


def _add_robotiq(spec: 'mujoco.MjSpec', link7: 'mujoco.MjsBody') -> None:
    """A 2F-85 of boxes: body to 95 mm, parallel fingers that pinch at 145 mm from the flange."""
    hand = link7.add_body(name='hand', pos=(0, 0, LINK7_TO_FLANGE_M), gravcomp=1)
    set_inertia(hand, 0.9, (0, 0, 0.05), (2.5e-3, 2.5e-3, 1e-3))
    add_collision(hand, 'cylinder', (0.038, 0.008), (0, 0, 0.008), visible_rgba=STEEL)
    add_collision(hand, 'box', (0.030, 0.036, 0.030), (0, 0, 0.046), visible_rgba=DARK)
    add_collision(hand, 'box', (0.018, 0.060, 0.010), (0, 0, 0.084), visible_rgba=DARK)
    for name, side in (('finger_left', 1), ('finger_right', -1)):
        finger = add_finger(hand, name, side, (0, 0, 0.094), (0.0, 0.0425), 60.0)
        add_collision(
            finger, 'box', (0.011, 0.007, 0.028), (0, side * 0.013, 0.028), visible_rgba=STEEL
        )
        add_pad(finger, (0.011, 0.004, 0.016), (0, side * 0.004, 0.046), f'pad_{name}', DARK)
    add_wrist_camera(hand, (-0.085, 0.0, 0.070), (0.0, 0.0, 0.165))


def add_wrist_camera(
    hand: 'mujoco.MjsBody',
    eye: tuple[float, float, float],
    target: tuple[float, float, float],
    up: tuple[float, float, float] = (1.0, 0.0, 0.0),
) -> None:
    """Mount the wrist camera at ``eye``, looking at ``target``, in the frame of the hand."""
    hand.add_camera(name='wrist', pos=eye, quat=look_at(eye, target, up), fovy=68)


def look_at(
    eye: tuple[float, ...], target: tuple[float, ...], up: tuple[float, ...] = (0.0, 0.0, 1.0)
) -> list[float]:
    """Quaternion of a MuJoCo camera (looks along -z, y up) at ``eye`` that faces ``target``."""
    back = np.subtract(eye, target)
    back = back / np.linalg.norm(back)
    right = np.cross(up, back)
    right /= np.linalg.norm(right)
    matrix = np.stack([right, np.cross(back, right), back], axis=1)
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, matrix.ravel())
    return [float(v) for v in quat]
