"""How the simulated grippers move their fingers: force on the finger joints per physics step.

One class for all three, since one mechanism (two coupled sliding fingers) stands behind each: a set
point that travels at a speed, a force limit, and for the WidowX a plain PWM force. Semantics follow
libfranka's gripper (``move``, ``grasp`` with epsilon), the Robotiq's position command and xs_sdk's
PWM mode.
"""

from dataclasses import dataclass, field
from typing import Literal

GRIPPER_STIFFNESS_N_M = 4000.0
MOVE_FORCE_N = 40.0
PWM_FORCE_N = 16.0
"""Force of one finger at PWM 350, about what a WidowX pinches with (our estimate)."""
STALL_SPEED_M_S = 0.002
STALL_TIME_S = 0.12
GRIPPER_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class GripperResult:
    """Outcome of a command, in the words of the drivers' action results."""

    success: bool
    width_m: float
    stalled: bool
    error: str = ''


@dataclass(slots=True)
class FingerDrive:
    """State of the gripper's controller. Positions are of one finger joint, m."""

    finger_m: float
    """Set point now."""
    open_m: float
    mode: Literal['position', 'force', 'pwm'] = 'position'
    goal_m: float = field(init=False)
    speed_m_s: float = 0.1
    force_n: float = MOVE_FORCE_N
    pwm: float = 0.0
    epsilon_m: tuple[float, float] | None = None
    """Grasp only: tolerances of the width, inner and outer."""
    grasp_width_m: float = 0.0
    result: GripperResult | None = None
    """None while a command is under way."""
    _measured_m: float = field(init=False)
    """Where the finger was in the last step."""
    _still_s: float = 0.0
    _elapsed_s: float = 0.0

    def __post_init__(self) -> None:
        self.goal_m = self._measured_m = self.finger_m

    def move(self, finger_m: float, speed_m_s: float, force_n: float = MOVE_FORCE_N) -> None:
        """Travel to a finger position; ``speed_m_s`` is of one finger.

        Fingers that were pressing on something start opening from where they are: the set point of
        the grasp lies behind them, and waiting for it would look like a stall.
        """
        self.finger_m = max(self.finger_m, min(self._measured_m, finger_m))
        self._begin('position', finger_m, speed_m_s, force_n)
        self.epsilon_m = None

    def grasp(
        self, width_m: float, speed_m_s: float, force_n: float, inner_m: float, outer_m: float
    ) -> None:
        """Close until something is in the way, then press with ``force_n``.

        Succeeds when the width then lies in [width - inner, width + outer], as libfranka's grasp.
        """
        self._begin('position', 0.0, speed_m_s, force_n)
        self.epsilon_m, self.grasp_width_m = (inner_m, outer_m), width_m

    def drive_pwm(self, pwm: float) -> None:
        """Push with a PWM value, -885 to 885; positive opens. Zero lets friction hold."""
        self.mode, self.pwm = 'pwm', min(max(pwm, -885.0), 885.0)
        self.result = None

    def stop(self, finger_m: float) -> None:
        """Hold where the finger is."""
        self._begin('position', finger_m, self.speed_m_s, self.force_n)
        self.finger_m = finger_m
        self.result = GripperResult(False, 2 * finger_m, False, 'stopped')

    def force(self, finger_m: float, velocity_m_s: float, dt_s: float) -> float:
        """Force on each finger joint for one step (positive opens), N."""
        self._measured_m = finger_m
        if self.mode == 'pwm':
            return self.pwm / 350.0 * PWM_FORCE_N
        self._travel(dt_s)
        self._judge(finger_m, velocity_m_s, dt_s)
        if self.mode == 'force':
            return -self.force_n
        pull = GRIPPER_STIFFNESS_N_M * (self.finger_m - finger_m)
        return min(max(pull, -self.force_n), self.force_n)

    def _begin(
        self, mode: Literal['position', 'force'], goal: float, speed: float, force: float
    ) -> None:
        self.mode, self.goal_m = mode, min(max(goal, 0.0), self.open_m)
        self.speed_m_s, self.force_n = max(speed, 1e-3), max(force, 1.0)
        self.result, self._still_s, self._elapsed_s = None, 0.0, 0.0

    def _travel(self, dt_s: float) -> None:
        step = self.speed_m_s * dt_s
        self.finger_m += min(max(self.goal_m - self.finger_m, -step), step)

    def _judge(self, finger_m: float, velocity_m_s: float, dt_s: float) -> None:
        """Decide whether the command has ended."""
        if self.result is not None:
            return
        self._elapsed_s += dt_s
        arrived = abs(finger_m - self.goal_m) < 5e-4 and self.finger_m == self.goal_m
        # The set point has run ahead of a finger that no longer moves: something is in the way.
        blocked = abs(velocity_m_s) < STALL_SPEED_M_S and abs(self.finger_m - finger_m) > 2e-3
        self._still_s = self._still_s + dt_s if blocked else 0.0
        stalled = self._still_s >= STALL_TIME_S
        width = 2 * finger_m
        if self.epsilon_m is not None and (stalled or arrived):
            inner, outer = self.epsilon_m
            inside = self.grasp_width_m - inner <= width <= self.grasp_width_m + outer
            self.mode = 'force' if stalled else 'position'
            self.result = GripperResult(inside, width, stalled, '' if inside else 'grasp failed')
        elif arrived or stalled or self._elapsed_s > GRIPPER_TIMEOUT_S:
            error = '' if arrived else 'stalled' if stalled else 'timed out'
            self.result = GripperResult(arrived, width, stalled, error)
