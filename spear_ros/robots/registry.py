"""Robots by name: the one table that maps a model's name to its RobotSpec."""

import difflib
from dataclasses import replace

from spear_ros.core.errors import UserError
from spear_ros.robots.franka import FR3, PANDA
from spear_ros.robots.spec import RobotSpec
from spear_ros.robots.widowx import VX300S, WX250S

ROBOTS: dict[str, RobotSpec] = {spec.name: spec for spec in (FR3, PANDA, WX250S, VX300S)}


def robot_names() -> tuple[str, ...]:
    """Return the names that :func:`get_robot` knows, in the table's order."""
    return tuple(ROBOTS)


def get_robot(name: str, gripper: str | None = None) -> RobotSpec:
    """Return the spec called ``name``, with the start pose that belongs to ``gripper``.

    Args:
        name: ``fr3``, ``panda``, ``wx250s`` or ``vx300s``.
        gripper: ``franka_hand``, ``robotiq_2f85`` or ``widowx``; None keeps the default start pose
            (Franka hand). The start pose is all that a gripper changes here.

    Raises:
        UserError: unknown robot, or a gripper that this robot does not carry.
    """
    if name not in ROBOTS:
        near = difflib.get_close_matches(name, ROBOTS, n=1, cutoff=0.4)
        hint = f'did you mean "{near[0]}"?' if near else f'known robots: {", ".join(ROBOTS)}.'
        raise UserError(f'robot "{name}" is not known; {hint}')
    spec = ROBOTS[name]
    if gripper is None:
        return spec
    if gripper not in spec.homes_rad:
        known = ', '.join(spec.homes_rad)
        raise UserError(f'gripper "{gripper}" does not belong to robot "{name}"; choose {known}.')
    return replace(spec, q_home_rad=spec.homes_rad[gripper], q_rest_rad=spec.homes_rad[gripper])
