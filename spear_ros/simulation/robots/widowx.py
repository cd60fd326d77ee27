"""The simulated WidowX-250s and ViperX-300s: Interbotix arms with their parallel fingers.

Surfaces of the WidowX are the STL meshes of rtb-data, put on the joint tree of RobotSpec. The
package's own description turns elbow and wrist by pi about x and so flips two joint signs; the
meshes of the two forearm links and of the wrist are turned back here. Robots without meshes in the
package (vx300s) are drawn with capsules. Masses are those of the description, rounded.
"""

import numpy as np

from spear_ros.robots.spec import RobotSpec
from spear_ros.simulation.backend import mujoco
from spear_ros.simulation.grippers import GripperGeometry
from spear_ros.simulation.meshes import WX250S, mesh_file
from spear_ros.simulation.robots.franka import add_wrist_camera
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
)

BLACK = (0.10, 0.10, 0.11, 1.0)
GREY = (0.20, 0.20, 0.22, 1.0)
PI = np.pi

TORQUE_LIMIT_NM = (8.2, 16.4, 16.4, 4.1, 4.1, 1.6)
"""Stall torques at 12 V: XM430-W350 4.1 Nm, two of them in shoulder and elbow, XL430 1.6 Nm; the
waist is doubled here so that it follows fast profiles as the real one's high gains do."""

DYNAMICS = (
    LinkDynamics(0.48, (0, 0, 0.007), (4e-4, 6e-4, 6e-4), 0.03, 0.3),
    LinkDynamics(0.43, (0.017, 0, 0.19), (3.5e-3, 3.6e-3, 5e-4), 0.05, 0.3),
    LinkDynamics(0.23, (0.108, 0, 0), (1e-4, 9e-4, 9e-4), 0.05, 0.3),
    LinkDynamics(0.22, (0.037, 0, 0.005), (1e-4, 2e-4, 2e-4), 0.015, 0.1),
    LinkDynamics(0.085, (0.042, 0, 0.010), (1e-4, 1e-4, 1e-4), 0.015, 0.1),
    LinkDynamics(0.20, (0.040, 0, 0.010), (2e-4, 2e-4, 2e-4), 0.010, 0.1),
)

_MESHES: tuple[tuple[int, str, tuple[float, float, float], tuple[float, float, float]], ...] = (
    # body index, file, xyz, rpy (extrinsic) in the frames of RobotSpec
    (0, 'WXSA-250-M-1-Base', (0, 0, 0), (0, 0, PI / 2)),
    (1, 'WXSA-250-M-2-Shoulder', (0, 0, -0.003), (0, 0, PI / 2)),
    (2, 'WXSA-250-M-3-UA', (0, 0, 0), (0, 0, PI / 2)),
    (3, 'WXSA-250-M-4-UF', (0, 0, 0), (PI, 0, 0)),
    (4, 'WXSA-250-M-5-LF', (0, 0, 0), (PI, 0, 0)),
    # Rx(pi) Rz(pi/2) Ry(pi), multiplied out
    (5, 'WXSA-250-M-6-Wrist', (0, 0, 0), (0, 0, PI / 2)),
    (6, 'WXSA-250-M-7-Gripper', (-0.02, 0, 0), (0, 0, PI / 2)),
    (6, 'WXSA-250-M-8-Gripper-Prop', (0.043 + 0.0055 - 0.0685, 0, 0), (0, 0, PI / 2)),
    (6, 'WXSA-250-M-9-Gripper-Bar', (0.043 - 0.063, 0, 0), (0, 0, PI / 2)),
)

FINGER_MARGIN_M = (0.0005, 0.002)
"""Travel beyond closed and open. The wx250s description says 0.015 to 0.037 m, Bridge's convention
closes to 0.010 m, where these pads have met."""


def build(robot: RobotSpec, gripper: GripperGeometry) -> 'mujoco.MjSpec':
    """Return the model of arm and fingers alone; fingers are ``finger_left`` and ``finger_right``.

    Raises:
        UserError: the meshes are not installed.
    """
    spec = mujoco.MjSpec()
    bodies = add_joint_tree(spec, robot, DYNAMICS)
    if robot.name == 'wx250s':
        for index, name, xyz, rpy in _MESHES:
            part = MeshPart(name, mesh_file(WX250S, f'{name}.stl'), BLACK, xyz, rpy, 0.001)
            add_mesh(spec, bodies[index], part)
    for index, joint in enumerate(robot.joints[1:], start=1):
        _add_link_capsule(bodies[index], joint.xyz, visible=robot.name != 'wx250s')
    for name, limit in zip(robot.joint_names, TORQUE_LIMIT_NM, strict=True):
        add_force_actuator(spec, name, limit)
    _add_fingers(spec, robot, gripper, bodies[-1])
    return spec


def _add_link_capsule(
    body: 'mujoco.MjsBody', xyz: tuple[float, float, float], visible: bool
) -> None:
    """Add a capsule along the link, up to where the next joint sits."""
    geom = add_collision(body, 'capsule', (0.026,), visible_rgba=BLACK if visible else None)
    geom.fromto = [0, 0, 0, *xyz]


def _add_fingers(
    spec: 'mujoco.MjSpec',
    robot: RobotSpec,
    gripper: GripperGeometry,
    gripper_link: 'mujoco.MjsBody',
) -> None:
    """Carriage and two fingers; the finger frame lies 27.575 mm behind the end-effector frame."""
    finger_x = robot.ee_xyz[0] - 0.027575
    span = (
        gripper.finger_closed_m - FINGER_MARGIN_M[0],
        gripper.finger_open_m + FINGER_MARGIN_M[1],
    )
    inner = gripper.finger_touch_m
    add_collision(gripper_link, 'box', (0.022, 0.045, 0.020), (finger_x - 0.030, 0, 0.004))
    for name, side in (('finger_left', 1), ('finger_right', -1)):
        finger = add_finger(gripper_link, name, side, (finger_x, 0, 0), span, 160.0)
        finger.joints[0].frictionloss = 3.0
        yaw = PI if side > 0 else 0.0
        # Left as described: rpy (pi, pi, 0) = Rz(pi); right: Ry(pi), which mirrors z as well.
        rpy = (0, 0, yaw) if side > 0 else (0, PI, 0)
        part = MeshPart(
            'wx_finger',
            mesh_file(WX250S, 'WXSA-250-M-10-Finger.stl'),
            GREY,
            (0, side * (0.016 - inner), 0),
            rpy,
            0.001,
        )
        add_mesh(spec, finger, part)
        add_pad(finger, (0.013, 0.003, 0.011), (0.030, side * (0.003 - inner), 0), f'pad_{name}')
        add_collision(finger, 'box', (0.020, 0.005, 0.0125), (0.022, side * (0.011 - inner), 0))
        add_force_actuator(spec, name, 60.0)
    couple_fingers(spec, 'finger_left', 'finger_right')
    hand = gripper_link.add_body(name='hand', pos=(finger_x, 0, 0), gravcomp=1)
    hand.explicitinertial = True
    hand.mass, hand.inertia = 1e-3, [1e-6, 1e-6, 1e-6]
    add_wrist_camera(hand, (-0.035, 0.0, 0.075), (0.075, 0.0, 0.0), up=(0.0, 0.0, 1.0))
