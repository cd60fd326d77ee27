"""Builds the moving part of a simulated robot from its RobotSpec, so that there is one kinematics.

A test pins the forward kinematics of the compiled model to ``robots.kinematics`` to 1e-9.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spear_ros.core.geometry import matrix_to_quat, rpy_to_matrix
from spear_ros.robots.spec import RobotSpec
from spear_ros.simulation.backend import mujoco

ROBOT, OBJECT, TABLE = 1, 2, 4
"""Collision bits: two geoms collide when the type of one is in the affinity of the other. The
robot does not collide with itself; its joint limits and the inverse kinematics see to that."""

VISUAL_GROUP, COLLISION_GROUP = 2, 3
"""Geom groups; MuJoCo draws 0 to 2 by default."""

EE_SITE = 'ee'


@dataclass(frozen=True, slots=True)
class LinkDynamics:
    """Mass properties behind one joint, and the joint's own."""

    mass_kg: float
    com_m: tuple[float, float, float]
    inertia_kg_m2: tuple[float, float, float]
    """Principal moments, link axes."""
    armature_kg_m2: float
    """Reflected inertia of the motor."""
    damping_nm_s: float


@dataclass(frozen=True, slots=True)
class MeshPart:
    """One surface mesh on a link."""

    name: str
    file: str
    rgba: tuple[float, float, float, float]
    xyz: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rpy: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: float = 1.0


def add_joint_tree(
    spec: 'mujoco.MjSpec', robot: RobotSpec, dynamics: Sequence[LinkDynamics]
) -> list['mujoco.MjsBody']:
    """Add base and links of ``robot`` under the world; return the bodies, base first, links after.

    Gravity is compensated on every link, as both real arms' controllers do in effect.
    """
    assert len(dynamics) == len(robot.joints), 'one LinkDynamics per joint'
    body = spec.worldbody.add_body(name=f'{robot.name}_base')
    bodies = [body]
    for joint, dyn in zip(robot.joints, dynamics, strict=True):
        body = body.add_body(
            name=f'{joint.name}_link', pos=joint.xyz, quat=quat_of(joint.rpy), gravcomp=1
        )
        made = body.add_joint(
            name=joint.name,
            axis=joint.axis,
            range=[joint.lower_rad, joint.upper_rad],
            armature=dyn.armature_kg_m2,
        )
        made.limited = mujoco.mjtLimited.mjLIMITED_TRUE
        made.damping = [dyn.damping_nm_s, 0, 0]
        set_inertia(body, dyn.mass_kg, dyn.com_m, dyn.inertia_kg_m2)
        bodies.append(body)
    # Group 4 is not drawn.
    body.add_site(name=EE_SITE, pos=robot.ee_xyz, quat=quat_of(robot.ee_rpy), group=4)
    return bodies


def set_inertia(
    body: 'mujoco.MjsBody', mass: float, com: Sequence[float], inertia: Sequence[float]
) -> None:
    """Give ``body`` explicit mass properties, whatever geoms hang on it."""
    body.explicitinertial = True
    body.mass, body.ipos, body.inertia = mass, list(com), list(inertia)


def add_mesh(spec: 'mujoco.MjSpec', body: 'mujoco.MjsBody', part: MeshPart) -> None:
    """Show a mesh on ``body``; it never collides."""
    if spec.mesh(part.name) is None:
        mesh = spec.add_mesh(name=part.name, file=part.file)
        mesh.scale = [part.scale] * 3
        # Surfaces of a visual mesh may be open: a volume is not asked for.
        mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_MESH,
        meshname=part.name,
        rgba=part.rgba,
        pos=part.xyz,
        quat=quat_of(part.rpy),
        contype=0,
        conaffinity=0,
        group=VISUAL_GROUP,
    )


def add_collision(
    body: 'mujoco.MjsBody',
    kind: str,
    size: Sequence[float],
    pos: Sequence[float] = (0.0, 0.0, 0.0),
    rpy: Sequence[float] = (0.0, 0.0, 0.0),
    *,
    name: str = '',
    visible_rgba: Sequence[float] | None = None,
) -> 'mujoco.MjsGeom':
    """Add a primitive (box, cylinder, capsule, sphere) that collides with objects and table."""
    padded = [*size, 0.0, 0.0][:3]
    geom = body.add_geom(
        type=getattr(mujoco.mjtGeom, f'mjGEOM_{kind.upper()}'),
        size=padded,
        pos=pos,
        quat=quat_of(rpy),
        contype=ROBOT,
        conaffinity=0,
        group=COLLISION_GROUP if visible_rgba is None else VISUAL_GROUP,
        rgba=visible_rgba or (0.3, 0.6, 0.3, 0.5),
    )
    if name:
        geom.name = name
    return geom


def add_pad(
    body: 'mujoco.MjsBody',
    half: Sequence[float],
    pos: Sequence[float],
    name: str,
    rgba: Sequence[float] | None = None,
) -> None:
    """Add a finger pad: a box of soft rubber that grips by friction, spin included."""
    geom = add_collision(body, 'box', half, pos, name=name, visible_rgba=rgba)
    geom.condim = 4
    geom.friction = [1.6, 0.03, 0.001]
    geom.solref, geom.solimp = [0.008, 1.0], [0.95, 0.99, 0.001, 0.5, 2.0]
    geom.priority = 1  # the pad's friction counts, not the object's


def add_finger(
    hand: 'mujoco.MjsBody', name: str, side: int, at: Sequence[float], span: tuple[float, float],
    damping_ns_m: float,
) -> 'mujoco.MjsBody':  # fmt: skip
    """Add a finger that slides along ``side`` times y; ``span`` are its joint limits in metres.

    Damping sits in the joint, where MuJoCo integrates it implicitly: as a force of the controller
    it would be at the edge of stability at 2 ms.
    """
    finger = hand.add_body(name=f'{name}_body', pos=at, gravcomp=1)
    joint = finger.add_joint(
        name=name,
        type=mujoco.mjtJoint.mjJNT_SLIDE,
        axis=[0, side, 0],
        range=span,
        armature=0.15,
    )
    joint.limited = mujoco.mjtLimited.mjLIMITED_TRUE
    joint.damping = [damping_ns_m, 0, 0]
    set_inertia(finger, 0.03, (0, 0, 0.02), (2e-5, 2e-5, 1e-5))
    return finger


def couple_fingers(spec: 'mujoco.MjSpec', left: str, right: str) -> None:
    """Keep two finger joints at equal values, as one motor drives both."""
    equality = spec.add_equality(
        type=mujoco.mjtEq.mjEQ_JOINT, name1=left, name2=right, objtype=mujoco.mjtObj.mjOBJ_JOINT
    )
    equality.data[:5] = [0, 1, 0, 0, 0]
    equality.solref, equality.solimp = [0.005, 1.0], [0.98, 0.999, 0.001, 0.5, 2.0]


def add_force_actuator(spec: 'mujoco.MjSpec', joint: str, limit: float) -> None:
    """Drive ``joint`` by a plain force or torque, limited to +-``limit``."""
    actuator = spec.add_actuator(name=joint, target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    actuator.set_to_motor()
    actuator.forcerange, actuator.forcelimited = [-limit, limit], True
    actuator.ctrllimited = False


def quat_of(rpy: Sequence[float]) -> list[float]:
    """Extrinsic x, y, z angles in radians to MuJoCo's (w, x, y, z)."""
    return [float(v) for v in matrix_to_quat(rpy_to_matrix(np.asarray(rpy, float)))]
