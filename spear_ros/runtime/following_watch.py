"""Is the arm where it was told to be?

Controllers lag: a target that is a fifth of a second old is where a healthy arm stands now. So the
measured pose is compared with all targets of the last moment, and only an arm that is far from each
of them does not follow: blocked, without torque, or led away by hand.
"""

from collections import deque

import numpy as np

from spear_ros.core.reasons import Reason
from spear_ros.core.types import FloatArray
from spear_ros.robots.kinematics import forward
from spear_ros.robots.spec import RobotSpec
from spear_ros.runtime.watchdog import Finding, apart

MEMORY_S = 0.5
"""Longer than a controller lags: the WidowX by its profile of 50 ms, a trajectory by two thirds of
``trajectory_time_s``."""
_EVERY_S = 0.02
FAR_M, FAR_RAD = 0.08, 0.5
"""A judgement, not measured on an arm: at 400 N/m it takes 32 N to press a Franka so far."""
ARRIVED_M, ARRIVED_RAD = 0.05, 0.3
"""At rest a healthy arm is nearer than this to its target: in simulation the steady
error is 1 cm."""


class FollowingWatch:
    """Compares measured joints with the targets (4, 4) of the last ``MEMORY_S`` seconds.

    Args:
        robot: kinematics.
    """

    def __init__(self, robot: RobotSpec) -> None:
        self._robot = robot
        self._targets: deque[tuple[int, FloatArray]] = deque()

    def restart(self) -> None:
        """The arm gets a new target where it stands."""
        self._targets.clear()

    def sent(self, now_ns: int, T_base_ee: FloatArray) -> None:
        """Note the target that was sent."""
        targets = self._targets
        if targets and now_ns < targets[-1][0]:  # the clock jumped
            targets.clear()
        if not targets or now_ns - targets[-1][0] >= _EVERY_S * 1e9:
            targets.append((now_ns, T_base_ee))
        # One target stays however old it is: what was sent last is still in force.
        while len(targets) > 1 and now_ns - targets[0][0] > MEMORY_S * 1e9:
            targets.popleft()

    def behind(self, q_measured: FloatArray) -> Finding | None:
        """FOLLOWING_ERROR when the arm is far from all of them."""
        if not self._targets:
            return None
        T = forward(self._robot, q_measured)
        metres, radians = apart(T, self._targets[-1][1])
        if any(_near(T, target) for _, target in reversed(self._targets)):
            return None
        return Finding(
            Reason.FOLLOWING_ERROR,
            f'the arm does not follow: it is {metres * 1e3:.0f} mm and {np.degrees(radians):.0f} '
            'deg from its target; see what blocks it, or whether its torque is off.',
        )

    def missed(self, q_measured: FloatArray, T_goal: FloatArray) -> Finding | None:
        """FOLLOWING_ERROR when the arm stands elsewhere than at the goal of a motion."""
        metres, radians = apart(forward(self._robot, q_measured), T_goal)
        if metres <= ARRIVED_M and radians <= ARRIVED_RAD:
            return None
        return Finding(
            Reason.FOLLOWING_ERROR,
            f'the way is over and the arm stands {metres * 1e3:.0f} mm and '
            f'{np.degrees(radians):.0f} deg from its end; see what blocks it.',
        )


def _near(T: FloatArray, target: FloatArray) -> bool:
    metres, radians = apart(T, target)
    return metres <= FAR_M and radians <= FAR_RAD
