"""Gripper command from a noisy opening: two thresholds and a minimum time between changes."""

from dataclasses import dataclass

from spear_ros.core.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class GripperSettings:
    """When the gripper changes its mind."""

    close_below: float = 0.4
    open_above: float = 0.6
    dwell_s: float = 0.6
    """Shortest time between two changes: a parallel gripper needs about this long to travel, and a
    policy at 5 Hz that flickers must not make it chatter."""

    def __post_init__(self) -> None:
        if not 0.0 < self.close_below < self.open_above < 1.0:
            raise UserError(
                f'close_below = {self.close_below} and open_above = {self.open_above} must be '
                'ordered between 0 and 1.'
            )
        if not 0.0 <= self.dwell_s <= 5.0:
            raise UserError(f'dwell_s = {self.dwell_s} must lie between 0 and 5 s.')


class GripperLatch:
    """Hysteresis and dwell; the value is 1.0 (open), 0.0 (closed) or None (not decided yet)."""

    def __init__(self, settings: GripperSettings) -> None:
        self._settings = settings
        self._changed_ns: int | None = None
        self.value: float | None = None

    def reset(self) -> None:
        """Forget the command: nothing is sent until a chunk decides."""
        self.value, self._changed_ns = None, None

    def force(self, value: float, now_ns: int) -> None:
        """Command a state at once (home opens the gripper)."""
        self.value, self._changed_ns = value, now_ns

    def update(self, wanted: float, now_ns: int) -> float | None:
        """Take the chunk's opening at ``now_ns`` and return the command."""
        s = self._settings
        state = 0.0 if wanted < s.close_below else 1.0 if wanted > s.open_above else self.value
        if state != self.value:
            changed = self._changed_ns
            if changed is None or now_ns - changed >= s.dwell_s * 1e9:
                self.value, self._changed_ns = state, now_ns
        return self.value
