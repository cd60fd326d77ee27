"""What the published data sets' actions mean on the robots we know, and whether a robot fits.

The specs made here are written into a checkpoint when it is created (conversion, training); from
then on the checkpoint's own copy is the truth and these defaults are not consulted.
"""

import math

from spear_ros.core.errors import UserError
from spear_ros.core.types import ActionSpec, NormStats
from spear_ros.robots.spec import RobotSpec

FRANKA_DROID = 'franka_droid'
WIDOWX_BRIDGE = 'widowx_bridge'

_HALF = math.sqrt(0.5)

# D = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]] is a quarter turn about +y (rail-berkeley/bridge_data_robot
# widowx_controller.py DEFAULT_ROTATION): a gripper that points straight down has R_model = 1.
BRIDGE_REFERENCE = (_HALF, 0.0, _HALF, 0.0)

# DROID's start pose has link8 turned by pi about x: (0, 1, 0, 0), so w hovers about zero.
DROID_PROPRIO_POLE = (0.0, 1.0, 0.0, 0.0)


def default_action_specs() -> dict[str, ActionSpec]:
    """Specs for new checkpoints, keyed by embodiment.

    ``franka_droid``: pose of the bare flange ``link8`` in ``base`` (DROID ``franka_panda.yaml:
    ee_link_name``), no reference rotation. ``widowx_bridge``: ``ee_gripper_link`` in ``base`` with
    Bridge's top-down reference. Both 5 knots at 5 Hz, relative to the chunk's start (the paper does
    not confirm the latter).
    """
    return {
        FRANKA_DROID: ActionSpec(
            embodiment=FRANKA_DROID,
            base_frame='base',
            ee_frame='link8',
            proprio_pole=DROID_PROPRIO_POLE,
        ),
        WIDOWX_BRIDGE: ActionSpec(
            embodiment=WIDOWX_BRIDGE,
            base_frame='base',
            ee_frame='ee_gripper_link',
            reference_rotation=BRIDGE_REFERENCE,
        ),
    }


def default_norm_stats() -> NormStats:
    """Round figures for weights that were never trained; a trained checkpoint carries its own.

    Deltas of one second at hand speed, positions of both robots' workspaces.
    """
    return NormStats(
        kind='minmax',
        translation_low=(-0.15, -0.15, -0.15),
        translation_high=(0.15, 0.15, 0.15),
        position_low=(0.1, -0.45, -0.1),
        position_high=(0.8, 0.45, 0.8),
        data_hash='',
    )


def check_action_spec(spec: ActionSpec) -> None:
    """Refuse a spec that no chunk can be made from.

    Raises:
        UserError: names the field, the value and what it must be.
    """
    where = f'embodiments.{spec.embodiment}'
    if not 0.5 <= spec.rate_hz <= 100.0:
        raise UserError(f'{where}: rate_hz = {spec.rate_hz} must lie between 0.5 and 100.')
    if not 1 <= spec.horizon <= 100:
        raise UserError(f'{where}: horizon = {spec.horizon} must lie between 1 and 100.')
    if not 0.0 < spec.gripper_threshold < 1.0:
        raise UserError(
            f'{where}: gripper_threshold = {spec.gripper_threshold} must lie between 0 and 1.'
        )
    for name in ('reference_rotation', 'proprio_pole'):
        q = getattr(spec, name)
        if not abs(math.sqrt(sum(c * c for c in q)) - 1.0) < 1e-6:
            raise UserError(f'{where}: {name} = {list(q)} must be a unit quaternion (w, x, y, z).')


def spec_mismatch(spec: ActionSpec, robot: RobotSpec) -> str:
    """Compare what the checkpoint was trained on with the robot, field by field.

    Returns:
        '' where they agree, else one sentence naming every field that differs with both values;
        the node shows it and the executor refuses to arm on it.
    """
    differences = [
        f'{name} is "{getattr(spec, name)}" in the checkpoint and "{getattr(robot, name)}" on '
        f'robot {robot.name}'
        for name in ('embodiment', 'base_frame', 'ee_frame')
        if getattr(spec, name) != getattr(robot, name)
    ]
    return '; '.join(differences)
