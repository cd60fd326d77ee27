"""Gripper logic without messages: when to act, and how to tell that a gripper is stuck."""

import threading
from dataclasses import dataclass

_OPEN_ENOUGH = 0.8
_NEARLY_OPEN = 0.85
_MOVED = 0.03


class BinaryTarget:
    """Turns a stream of wanted openings into changes of a binary target.

    The player already applies hysteresis and dwell; here only the change counts, because every
    goal that a real gripper server gets is accepted and blocks it.
    """

    def __init__(self) -> None:
        self.wanted_open: bool | None = None
        self._lock = threading.Lock()

    def update(self, opening: float) -> bool:
        """Take a wanted opening; return True when the target changed."""
        is_open = opening > 0.5
        with self._lock:
            changed = is_open != self.wanted_open
            self.wanted_open = is_open
        return changed

    def forget(self) -> None:
        """The next opening counts as a change."""
        with self._lock:
            self.wanted_open = None


@dataclass
class JamWatch:
    """Compares what the gripper was told with what it measures.

    Opening must succeed. Closing onto an object is success at any width, so only fingers that stood
    open and did not move at all are a jam.
    """

    limit_s: float = 3.0
    _wanted: bool | None = None
    _since_s: float = 0.0
    _start: float = 0.0

    def update(self, wanted_open: bool | None, opening: float | None, now_s: float) -> str:
        """Return a sentence when the gripper is stuck, else nothing."""
        if wanted_open is not self._wanted:
            self._wanted, self._since_s = wanted_open, now_s
            self._start = 0.0 if opening is None else opening
        if wanted_open is None or opening is None or now_s - self._since_s < self.limit_s:
            return ''
        if wanted_open and opening < _OPEN_ENOUGH:
            return (
                f'the gripper was told to open {now_s - self._since_s:.1f} s ago and stands at '
                f'{opening:.2f} (1 = open): free it, then reset.'
            )
        if not wanted_open and self._start > _NEARLY_OPEN and self._start - opening < _MOVED:
            return (
                f'the gripper was told to close {now_s - self._since_s:.1f} s ago and has not '
                'moved: check its power and its driver, then reset.'
            )
        return ''

    def restart(self, now_s: float) -> None:
        """Begin to count anew, for example after homing."""
        self._since_s = now_s


@dataclass
class PwmGripper:
    """PWM of the WidowX gripper over time: drive to the limit, then drop the holding PWM.

    A sustained PWM overloads the motor (interbotix_ros_arms #26), so closing onto an object is
    ended after ``closing_time_s`` and what remains is ``hold_pwm``.
    """

    pwm: float
    hold_pwm: float
    closing_time_s: float
    _wanted: bool | None = None
    _since_s: float = 0.0
    _value: float = 0.0

    def update(self, wanted_open: bool | None, opening: float | None, now_s: float) -> float | None:
        """Return the PWM to send, or None when nothing changes."""
        if wanted_open is None:  # nothing new; what was begun comes to its end
            if self._wanted is not False:
                self._wanted = None
                return self._change(0.0) if self._value > 0.0 else None
            wanted_open = False
        elif wanted_open is not self._wanted:
            self._wanted, self._since_s = wanted_open, now_s
            return self._change(self.pwm if wanted_open else -self.pwm)
        rest = 0.0 if wanted_open else -self.hold_pwm
        at_limit = opening is not None and (opening >= 0.98 if wanted_open else opening <= 0.02)
        if at_limit or now_s - self._since_s >= self.closing_time_s:
            return self._change(rest)
        return None

    def _change(self, value: float) -> float | None:
        if value == self._value:
            return None
        self._value = value
        return value
