"""Robot family and gripper name -> driver, imported lazily: each needs its own messages."""

from rclpy.node import Node

from spear_ros.core.errors import UserError
from spear_ros.robots.spec import RobotSpec
from spear_ros.ros.config import FrankaHandConfig, RobotConfig, Robotiq2f85Config
from spear_ros.ros.drivers.base import Driver, GripperAdapter


def make_driver(node: Node, spec: RobotSpec, config: RobotConfig) -> Driver:
    """Build the driver that ``config`` chooses.

    Raises:
        UserError: the driver's messages are not installed, or robot, driver section and gripper do
            not belong together.
    """
    if spec.family != config.family:
        raise UserError(
            f'model = {config.model!r} is of the family {spec.family!r} but the driver section is '
            f'{config.family!r}; choose a robot file of the same family.'
        )
    if config.family == 'franka':
        from spear_ros.ros.drivers.franka import FrankaDriver

        return FrankaDriver(node, spec, config, _franka_gripper(node, config))
    if config.gripper != 'widowx':
        raise UserError(f'gripper = {config.gripper!r} does not fit a WidowX; choose "widowx".')
    from spear_ros.ros.drivers.widowx import WidowxDriver

    return WidowxDriver(node, spec, config)


def _franka_gripper(node: Node, config: RobotConfig) -> GripperAdapter:
    section = config.gripper_config
    if isinstance(section, FrankaHandConfig):
        from spear_ros.ros.drivers.franka_hand import FrankaHand

        return FrankaHand(node, section, config.gripper_state)
    if isinstance(section, Robotiq2f85Config):
        from spear_ros.ros.drivers.robotiq_2f85 import Robotiq2f85

        return Robotiq2f85(node, section, config.gripper_state)
    raise UserError(
        f'gripper = {config.gripper!r} does not fit a Franka; choose franka_hand or robotiq_2f85.'
    )
