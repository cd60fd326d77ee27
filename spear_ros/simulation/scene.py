"""The room: table, walls, light, external camera and the robot, as one MuJoCo model."""

from dataclasses import dataclass

from spear_ros.robots.spec import RobotSpec
from spear_ros.simulation.backend import mujoco
from spear_ros.simulation.catalogue import TABLE_Z_M
from spear_ros.simulation.grippers import GripperGeometry
from spear_ros.simulation.layout import TABLE_STYLES
from spear_ros.simulation.objects import add_object_pool
from spear_ros.simulation.robots import franka, widowx
from spear_ros.simulation.robots.franka import look_at
from spear_ros.simulation.robots.joint_tree import OBJECT, ROBOT, TABLE

TIMESTEP_S = 0.002
IMAGE_SIZE = (640, 480)
"""Width and height of both cameras."""


@dataclass(frozen=True, slots=True)
class View:
    """Placement of the external camera in the base frame."""

    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    fovy_deg: float


EXTERNAL_VIEWS = {
    # DROID: a stereo camera on a stand beside the table, seeing arm and workspace from the side.
    'franka': View((0.95, 0.50, 0.60), (0.51, 0.015, 0.115), 46.0),
    # Bridge: fixed over the shoulder, looking down at the table.
    'widowx': View((-0.02, 0.36, 0.46), (0.28, 0.0, 0.04), 45.0),
}

_TABLES = (
    # style: base colour, second colour, mark colour, builtin
    ((0.62, 0.47, 0.33), (0.55, 0.41, 0.28), (0.50, 0.37, 0.25), 'flat'),
    ((0.78, 0.77, 0.74), (0.74, 0.73, 0.70), (0.70, 0.69, 0.66), 'flat'),
    ((0.35, 0.37, 0.40), (0.32, 0.34, 0.37), (0.40, 0.42, 0.45), 'flat'),
    ((0.80, 0.70, 0.55), (0.72, 0.61, 0.46), (0.66, 0.55, 0.40), 'gradient'),
    ((0.55, 0.60, 0.58), (0.50, 0.55, 0.53), (0.62, 0.66, 0.64), 'checker'),
    ((0.88, 0.86, 0.82), (0.83, 0.80, 0.75), (0.79, 0.76, 0.71), 'gradient'),
)
assert len(_TABLES) == TABLE_STYLES


def build_model(robot: RobotSpec, gripper: GripperGeometry) -> 'mujoco.MjModel':
    """Compile the room with ``robot`` standing at the origin of the base frame.

    Raises:
        UserError: the meshes are not installed.
    """
    builder = franka if robot.family == 'franka' else widowx
    spec = builder.build(robot, gripper)
    spec.modelname = f'{robot.name}_{gripper.name}'
    _set_options(spec)
    _add_room(spec, robot)
    view = EXTERNAL_VIEWS[robot.family]
    spec.worldbody.add_camera(
        name='external', pos=view.eye, quat=look_at(view.eye, view.target), fovy=view.fovy_deg
    )
    add_object_pool(spec, gripper.object_scale)
    return spec.compile()


def _set_options(spec: 'mujoco.MjSpec') -> None:
    spec.compiler.degree = False
    spec.option.timestep = TIMESTEP_S
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10
    spec.visual.quality.offsamples = 0
    spec.visual.quality.shadowsize = 1024
    spec.visual.global_.offwidth, spec.visual.global_.offheight = IMAGE_SIZE
    spec.visual.headlight.specular = [0.05, 0.05, 0.05]
    # Near plane at 1 cm: MuJoCo's own guess of the extent counts walls and parked objects, and then
    # cuts the fingers out of the wrist camera's picture.
    spec.stat.extent = 1.0
    spec.visual.map.znear = 0.01


def _add_room(spec: 'mujoco.MjSpec', robot: RobotSpec) -> None:
    world = spec.worldbody
    z = TABLE_Z_M
    for style in range(TABLE_STYLES):
        _add_table_material(spec, style)
    wide = robot.family == 'franka'
    half = (0.55, 0.75, 0.02) if wide else (0.45, 0.50, 0.02)
    world.add_geom(
        name='table',
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=half,
        pos=(0.35 if wide else 0.22, 0, z - 0.02),
        material='table0',
        contype=TABLE,
        conaffinity=ROBOT | OBJECT,
        friction=[0.8, 0.005, 0.0005],
        condim=4,
    )
    for name, size, pos, grey in (
        ('wall', (0.02, 3.0, 2.0), (-1.1, 0, 0.6), 0.8),
        ('side_wall', (3.0, 0.02, 2.0), (0.5, -1.7, 0.6), 0.75),
        ('front_wall', (0.02, 3.0, 2.0), (2.4, 0, 0.6), 0.75),
        ('left_wall', (3.0, 0.02, 2.0), (0.5, 2.4, 0.6), 0.75),
        ('floor', (3.0, 3.0, 0.02), (0, 0, z - 0.75), 0.45),
    ):
        world.add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=size,
            pos=pos,
            rgba=(grey, grey, grey, 1),
            contype=0,
            conaffinity=0,
        )
    world.add_light(
        name='lamp', pos=(0.5, 0.5, 2.0), dir=(0, 0, -1), diffuse=(0.5,) * 3, specular=(0.1,) * 3
    )


def _add_table_material(spec: 'mujoco.MjSpec', style: int) -> None:
    first, second, mark, pattern = _TABLES[style]
    spec.add_texture(
        name=f'table{style}',
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=getattr(mujoco.mjtBuiltin, f'mjBUILTIN_{pattern.upper()}'),
        rgb1=first,
        rgb2=second,
        mark=mujoco.mjtMark.mjMARK_RANDOM,
        random=0.2,
        markrgb=mark,
        width=128,
        height=128,
    )
    material = spec.add_material(name=f'table{style}', specular=0.1, shininess=0.2)
    material.texrepeat = [4, 4]
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = f'table{style}'
