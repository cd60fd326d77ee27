"""The protocol that every policy implements, and what it says about itself.

A policy is a pure function of the observation, the instruction and a seed: it knows nothing of
topics, clocks or robots' drivers. ``policy_node``, ``spear replay``, the lockstep roll-outs and the
contract test all use exactly this.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from spear_ros.core.types import ActionChunk, ActionSpec, FloatArray, Observation
from spear_ros.processing.action_space import Pose, Targets


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyInfo:
    """What the node and the checks need to know about a loaded policy."""

    name: str
    checkpoint_id: str
    """First 12 hex digits of the checkpoint's SHA-256; the policy's name where there is none."""
    spec: ActionSpec
    cameras: tuple[str, ...] = ()
    """Cameras that the policy looks at; ``external`` is required, ``wrist`` optional."""
    privileged: bool = False
    """Needs object poses (simulation only)."""
    trained: bool = True
    """False for untrained weights: said plainly wherever results are shown."""
    execute_steps: int = 1
    """Knots that are followed before the next chunk is asked for."""
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkPrefix:
    """Committed actions for real-time chunking: absolute targets of the first knots.

    The new chunk must start with these; ``T_base_ee`` is (K, 4, 4) with K < H, on the knot times
    of the new chunk, ``gripper`` is (K,).
    """

    T_base_ee: FloatArray
    gripper: FloatArray


def make_chunk(
    observation: Observation,
    spec: ActionSpec,
    anchor: Pose,
    targets: Targets,
    checkpoint_id: str,
) -> ActionChunk:
    """Build the chunk of absolute ``targets`` for an observation.

    ``anchor`` is the measured pose that deltas were composed on. Session and sequence are the
    node's to fill in.
    """
    return ActionChunk(
        t_obs_ns=observation.t_obs_ns,
        step_s=spec.step_s,
        embodiment=spec.embodiment,
        base_frame=spec.base_frame,
        ee_frame=spec.ee_frame,
        p_base_ee=targets.p,
        q_base_ee=targets.q,
        gripper=targets.gripper,
        anchor_p=anchor.p,
        anchor_q=anchor.q,
        instruction_id=observation.instruction_id,
        checkpoint_id=checkpoint_id,
    )


@runtime_checkable
class Policy(Protocol):
    """Observation in, chunk of absolute end-effector targets out.

    A policy may also have ``check_instruction(text) -> None``, raising UserError for a text that it
    can never follow (too many tokens, no known task): the service then refuses it at once.
    ``prefix`` may be ignored by policies without a memory of their own motion (``scripted``).
    """

    def describe(self) -> PolicyInfo:
        """Return the constant facts about this policy."""
        ...

    def warm_up(self) -> None:
        """Run everything once so that the first real chunk is as fast as the rest."""
        ...

    def reset(self) -> None:
        """Forget the episode: called on every new instruction, arm and home."""
        ...

    def infer(self, observation: Observation, prefix: ChunkPrefix | None = None) -> ActionChunk:
        """Compute the chunk for one observation.

        Deterministic: noise comes from a generator seeded by (seed, ``observation.t_obs_ns``), so
        the result does not depend on which observations were dropped before.

        Raises:
            UserError: the observation lacks what the policy needs (camera, object poses); the
                sentence says which.
        """
        ...

    def close(self) -> None:
        """Release memory and devices."""
        ...
