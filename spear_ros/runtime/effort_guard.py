"""Stops an arm whose motors push for longer than a moment."""

from collections.abc import Sequence
from dataclasses import dataclass, field

WIDOWX_EFFORT_LIMITS_MA = (1360.0, 1700.0, 1020.0, 1020.0, 1020.0, 1190.0)
"""Bridge's guard: 1.7 times (800, 1000, 600, 600, 600, 700) mA, in joint order
(bridge_data_robot)."""
WIDOWX_EFFORT_TIME_S = 0.1
"""The limit counts when it is exceeded for this long: one sample may be noise."""
PUSHES = 'pushes with'
"""Words by which the guard's sentence is told from a motor's own error."""


@dataclass
class EffortGuard:
    """Trips when a joint's effort stays above its limit; Bridge's stack does the same."""

    limits_ma: tuple[float, ...]
    time_s: float
    _since: dict[int, float] = field(default_factory=dict)
    tripped: str = ''

    def update(self, names: Sequence[str], effort_ma: Sequence[float], now_s: float) -> None:
        """Take the efforts of the arm's joints in the order of ``names``."""
        for i, (name, value, limit) in enumerate(
            zip(names, effort_ma, self.limits_ma, strict=True)
        ):
            if abs(value) <= limit:
                self._since.pop(i, None)
            elif now_s - self._since.setdefault(i, now_s) >= self.time_s and not self.tripped:
                self.tripped = (
                    f'joint {name} {PUSHES} {abs(value):.0f} mA, more than its limit of '
                    f'{limit:.0f} mA: free the arm, then reset.'
                )
