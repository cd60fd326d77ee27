"""policy_node with a policy that sways, and with faults of a policy as switches.

Everything but the policy is the real node: its cameras, its buffer, its status. The policy moves
the end-effector around a circle in the plane y-z about the start pose, at 6 cm/s, and wants both
cameras, so that every input matters. ``/test/policy_fault`` takes a line of text:

    nan | huge | nonunit | workspace | checkpoint | embodiment | mute | close | late SECONDS
    once FAULT     only the next chunk
    clear
"""

import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from std_msgs.msg import String

from spear_ros.core.geometry import pose_parts
from spear_ros.core.types import EXTERNAL, WRIST, ActionChunk, Observation
from spear_ros.policies.base import ChunkPrefix, PolicyInfo
from spear_ros.processing.action_space import pose_of
from spear_ros.processing.embodiments import default_action_specs
from spear_ros.robots.kinematics import forward
from spear_ros.robots.spec import RobotSpec
from spear_ros.ros.lifecycle import run_node
from spear_ros.ros.nodes import policy_node

NAME = 'sway'
TOPIC = '/test/policy_fault'
RADIUS_M = 0.04
RATE_RAD_S = 1.5
APPROACH_M_S = 0.15


class Switches:
    """Faults that are on; shared by the node's callbacks and the policy's thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._on: dict[str, float] = {}
        self._once: str = ''

    def command(self, line: str) -> None:
        words = line.split()
        with self._lock:
            if words[0] == 'clear':
                self._on, self._once = {}, ''
            elif words[0] == 'once':
                self._once = words[1]
            else:
                self._on[words[0]] = float(words[1]) if len(words) > 1 else 1.0

    def get(self, name: str) -> float:
        """Value of a fault, 0 = off."""
        with self._lock:
            return self._on.get(name, 0.0)

    def for_chunk(self) -> list[str]:
        """Faults of the chunk that goes out now."""
        with self._lock:
            names, self._once = [*self._on, self._once], ''
        return names


SWITCHES = Switches()


class SwayPolicy:
    """Targets on a circle as a function of time; the first steps lead there."""

    def __init__(self, robot: RobotSpec) -> None:
        self._spec = default_action_specs()[robot.embodiment]
        self._center, self._q = pose_parts(forward(robot, np.asarray(robot.q_home_rad)))

    def describe(self) -> PolicyInfo:
        return PolicyInfo(name=NAME, checkpoint_id=NAME, spec=self._spec, cameras=(EXTERNAL, WRIST))

    def warm_up(self) -> None:
        """Nothing to warm up."""

    def reset(self) -> None:
        """Nothing is remembered."""

    def close(self) -> None:
        """Nothing to release."""

    def infer(self, observation: Observation, prefix: ChunkPrefix | None = None) -> ActionChunk:
        time.sleep(SWITCHES.get('late'))
        spec, anchor = self._spec, pose_of(observation.state)
        at, targets = anchor.p, []
        for i in range(spec.horizon):
            step = self._target(observation.t_obs_ns * 1e-9 + (i + 1) * spec.step_s) - at
            length = float(np.linalg.norm(step))
            at = at + step * min(1.0, APPROACH_M_S * spec.step_s / max(length, 1e-9))
            targets.append(at)
        q = self._q if float(self._q @ anchor.q) >= 0.0 else -self._q
        return ActionChunk(
            t_obs_ns=observation.t_obs_ns,
            step_s=spec.step_s,
            embodiment=spec.embodiment,
            base_frame=spec.base_frame,
            ee_frame=spec.ee_frame,
            p_base_ee=np.array(targets),
            q_base_ee=np.tile(q, (spec.horizon, 1)),
            gripper=np.full(spec.horizon, 0.0 if SWITCHES.get('close') else 1.0),
            anchor_p=anchor.p,
            anchor_q=anchor.q,
            instruction_id=observation.instruction_id,
            checkpoint_id=NAME,
        )

    def _target(self, t_s: float) -> np.ndarray:
        angle = RATE_RAD_S * t_s
        return self._center + RADIUS_M * np.array([0.0, np.cos(angle), np.sin(angle)])


def spoil(chunk: ActionChunk, fault: str) -> ActionChunk:
    """Return the chunk as a broken policy would have sent it."""
    p, q = chunk.p_base_ee.copy(), chunk.q_base_ee.copy()
    if fault == 'nan':
        p[2, 1] = np.nan
    elif fault == 'huge':
        p[1:] += 0.5
    elif fault == 'nonunit':
        q *= 1.5
    elif fault == 'workspace':
        # Each step is allowed, their sum leaves the box.
        steps = np.arange(1, chunk.horizon + 1)[:, None]
        p = chunk.anchor_p + steps * np.array([-0.045, 0.045, 0.045])
    changes: Mapping[str, Any] = {
        'checkpoint': {'checkpoint_id': 'other'},
        'embodiment': {
            'embodiment': {'franka_droid': 'widowx_bridge'}.get(chunk.embodiment, 'franka_droid')
        },
    }.get(fault, {})
    return replace(chunk, p_base_ee=p, q_base_ee=q, **changes)


class SwayPolicyNode(policy_node.PolicyNode):
    """The real node, its chunks spoilt on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.create_subscription(String, TOPIC, lambda m: SWITCHES.command(m.data), 10)

    def _publish_chunk(self, chunk: ActionChunk) -> None:
        faults = SWITCHES.for_chunk()
        if 'mute' in faults:
            return
        for fault in faults:
            chunk = spoil(chunk, fault)
        super()._publish_chunk(chunk)


def main() -> int:
    policy_node.create_policy = lambda name, *, robot, **_: SwayPolicy(robot)
    return run_node(SwayPolicyNode)


if __name__ == '__main__':
    sys.exit(main())
