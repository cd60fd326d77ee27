"""Hard limits: SafetyLimits and SafetyGate (signatures; the checks follow)."""

from dataclasses import dataclass

from spear_ros.core.reasons import Reason


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a chunk or a command is refused: a code and a sentence with the figures."""

    reason: Reason
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SafetyLimits:
    """Limits in force: the RobotSpec's, tightened by config/safety/<family>.yaml."""


def load_limits(robot: object, path: object = None) -> SafetyLimits:
    """SafetyLimits of a robot: share file config/safety/<family>.yaml, or ``path``."""
    raise NotImplementedError
