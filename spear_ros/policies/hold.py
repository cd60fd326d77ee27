"""Policy ``hold``: stay where you are. For wiring up a robot before any model is trusted."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from spear_ros.core.geometry import pose_parts
from spear_ros.core.types import EXTERNAL, ActionChunk, ActionSpec, Observation
from spear_ros.policies.base import ChunkPrefix, PolicyInfo, make_chunk
from spear_ros.policies.registry import check_options
from spear_ros.processing.action_space import Targets, pose_of
from spear_ros.processing.embodiments import default_action_specs
from spear_ros.robots.spec import RobotSpec

NAME = 'hold'


def create(
    *,
    robot: RobotSpec,
    checkpoint: Path | None,
    seed: int,
    device: str,
    options: Mapping[str, object],
) -> 'HoldPolicy':
    """Build the policy; it has neither weights nor noise nor options."""
    check_options(NAME, options, ())
    return HoldPolicy(default_action_specs()[robot.embodiment])


class HoldPolicy:
    """Every knot is the pose measured at ``t_obs``, with the gripper as it is."""

    def __init__(self, spec: ActionSpec) -> None:
        self._spec = spec

    def describe(self) -> PolicyInfo:
        """Return the constant facts about this policy."""
        return PolicyInfo(name=NAME, checkpoint_id=NAME, spec=self._spec, cameras=(EXTERNAL,))

    def warm_up(self) -> None:
        """Nothing to warm up."""

    def reset(self) -> None:
        """Nothing is remembered between chunks."""

    def infer(self, observation: Observation, prefix: ChunkPrefix | None = None) -> ActionChunk:
        """Repeat the measured pose; after a committed prefix, its last pose."""
        spec, anchor = self._spec, pose_of(observation.state)
        p, q = np.tile(anchor.p, (spec.horizon, 1)), np.tile(anchor.q, (spec.horizon, 1))
        gripper = np.full(spec.horizon, np.clip(observation.state.gripper, 0.0, 1.0))
        if prefix is not None:
            count = len(prefix.gripper)
            p[:count], q[:count] = pose_parts(prefix.T_base_ee)
            gripper[:count] = prefix.gripper
            p[count:], q[count:], gripper[count:] = p[count - 1], q[count - 1], gripper[count - 1]
        return make_chunk(observation, spec, anchor, Targets(p, q, gripper), NAME)

    def close(self) -> None:
        """Nothing to release."""
