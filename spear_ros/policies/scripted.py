"""Policy ``scripted``: the simulator's expert behind the protocol of every policy.

It reads the true object poses of a simulated scene (``Observation.privileged``) and no image.
Options: ``gripper`` (name; default the robot family's), ``speed`` (share of the nominal speeds).
"""

from collections.abc import Mapping
from pathlib import Path

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import pose_parts
from spear_ros.core.types import ActionChunk, ActionSpec, Observation
from spear_ros.policies.base import ChunkPrefix, PolicyInfo, make_chunk
from spear_ros.policies.registry import check_options
from spear_ros.processing.action_space import Targets, pose_of
from spear_ros.processing.embodiments import default_action_specs
from spear_ros.robots import kinematics
from spear_ros.robots.spec import RobotSpec
from spear_ros.simulation.expert import Expert
from spear_ros.simulation.grippers import get_gripper, with_home
from spear_ros.simulation.tasks import parse_instruction

NAME = 'scripted'
DEFAULT_SPEED = 0.5


def create(
    *,
    robot: RobotSpec,
    checkpoint: Path | None,
    seed: int,
    device: str,
    options: Mapping[str, object],
) -> 'ScriptedPolicy':
    """Build the policy; it has neither weights nor noise.

    Raises:
        UserError: an option that is unknown or out of range, or a gripper that does not fit.
    """
    check_options(NAME, options, ('gripper', 'speed'))
    speed = options.get('speed', DEFAULT_SPEED)
    if not isinstance(speed, (int, float)) or not 0.05 <= speed <= 1.0:
        raise UserError(f'option speed = {speed!r} must be a number between 0.05 and 1.')
    name = options.get('gripper')
    gripper = get_gripper(robot, None if name is None else str(name))
    robot = with_home(robot, gripper)
    home = kinematics.forward(robot, robot.q_home_rad)
    return ScriptedPolicy(
        default_action_specs()[robot.embodiment], Expert(robot, gripper, home, float(speed))
    )


class ScriptedPolicy:
    """Plans each chunk anew from the observation; remembers nothing."""

    def __init__(self, spec: ActionSpec, expert: Expert) -> None:
        self._spec, self._expert = spec, expert

    def describe(self) -> PolicyInfo:
        """Return the constant facts about this policy."""
        return PolicyInfo(name=NAME, checkpoint_id=NAME, spec=self._spec, privileged=True)

    def warm_up(self) -> None:
        """Nothing to warm up."""

    def reset(self) -> None:
        """Nothing is remembered between chunks."""

    def check_instruction(self, text: str) -> None:
        """Refuse what is no task of the simulator; raises UserError."""
        parse_instruction(text)

    def infer(self, observation: Observation, prefix: ChunkPrefix | None = None) -> ActionChunk:
        """Plan one chunk; the prefix is not needed, plans start at the measured pose.

        Raises:
            UserError: no object poses (not a simulation), an instruction that the expert does not
                understand, or an object that is not on the table.
        """
        if not observation.privileged:
            raise UserError(
                'policy "scripted" needs the object poses of a simulated scene and got none; '
                'choose another policy on a real robot.'
            )
        spec, state = self._spec, observation.state
        task = parse_instruction(observation.instruction)
        plan = self._expert.plan(task, state, observation.privileged, spec.horizon, spec.step_s)
        anchor = pose_of(state)
        p, q = pose_parts(plan.T_base_ee)
        return make_chunk(observation, spec, anchor, Targets(p, q, plan.gripper), NAME)

    def close(self) -> None:
        """Nothing to release."""
