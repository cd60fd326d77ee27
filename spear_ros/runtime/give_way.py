"""Lets a stiff arm give way where it pushes, before the guard on its motor currents has to stop it.

A position-controlled servo turns the distance between target and measured joint into current. Where
the fingers meet a table or an object from above, a target a centimetre inside of it is a stall
current within a tenth of a second. Here the target of a joint that pushes with more than its soft
effort is drawn back towards where the joint is, so far that the soft effort remains, and comes back
as soon as nothing is pushed. The arm's guard (:mod:`spear_ros.runtime.effort_guard`) stays what
stops the arm when giving way was not enough.

No stiffness has to be known: of a servo whose effort follows its error, the share ``soft / effort``
of the error is the one that leaves the soft effort.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spear_ros.core.types import FloatArray

GIVE_WAY_SHARE = 0.75
"""Of the limits of an arm's effort guard, where a joint begins to give way."""
_MIX = 0.8
"""Share of the computed step that is taken per period: command and measurement are each a period
late, and a whole step would overshoot."""
_SLOW_SHARE = 0.3
"""Of the soft effort: in contact, an arm within this share of it slows down."""
_SLOWEST = 0.1
_NOTHING_RAD = 1e-7
_NO_EFFORT = 1e-3
"""Of the soft effort: below this share nothing is pushed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GiveWaySettings:
    """How much and how fast."""

    soft_effort: tuple[float, ...]
    """Per joint, in the unit of the arm's joint states (WidowX: mA), above which it gives way."""
    unit: str = 'mA'
    most_rad: float = 0.12
    """How far a target may lie behind what is asked before it is taken along. An effort that is
    reported wrongly, or a weight in the fingers, cannot let the arm sink further."""
    back_rad_s: float = 0.6
    forth_rad_s: float = 0.3
    """Fastest drawing back, and fastest return."""
    acceleration_rad_s2: float = 15.0
    """Of a target that is drawn back: what the limits call nominal."""
    max_age_s: float = 0.1
    """Older efforts say nothing."""

    @classmethod
    def below(cls, limits: tuple[float, ...], share: float) -> 'GiveWaySettings | None':
        """Giving way at a share of the limits of the arm's effort guard; share 0: None."""
        return cls(soft_effort=tuple(share * v for v in limits)) if share > 0.0 else None


class GiveWay:
    """The distance (n,) that is added to the joint targets of a stiff arm.

    Args:
        settings: see :class:`GiveWaySettings`.
        period_s: nominal control period.
    """

    def __init__(self, settings: GiveWaySettings, period_s: float) -> None:
        self._settings, self._period_s = settings, period_s
        self._soft = np.array(settings.soft_effort)
        self._effort: FloatArray | None = None
        self._pushed: FloatArray = np.zeros(len(self._soft))
        self._heard_ns = 0
        self.clear()

    @property
    def gives_way(self) -> bool:
        """Some target is drawn back."""
        return bool(self.offset_rad.any())

    def on_efforts(self, received_ns: int, efforts: FloatArray) -> None:
        """Take measured efforts (n,), base to wrist; what is not finite was not measured."""
        if efforts.shape == self._soft.shape and np.isfinite(efforts).all():
            self._effort, self._heard_ns = efforts, received_ns

    def clear(self) -> None:
        """The targets start anew from where the arm was told to be."""
        self.offset_rad: FloatArray = np.zeros(len(self._soft))
        self.pushing: tuple[int, ...] = ()

    def rest(self) -> None:
        """The arm follows nothing now: nothing pushes because of a target that goes on."""
        self.pushing = ()

    def text(self, names: Sequence[str]) -> str:
        """What to tell the operator: which joints push now; '' = none."""
        told = ', '.join(
            f'{names[i]} pushes with {self._pushed[i]:.0f} {self._settings.unit} (soft limit '
            f'{self._soft[i]:.0f})'
            for i in self.pushing
        )
        return f'gives way: {told}.' if told else ''

    def update(
        self, now_ns: int, q_asked: FloatArray, sent: tuple[FloatArray, FloatArray], q: FloatArray
    ) -> FloatArray:
        """Return the joint targets (n,) of this period: ``q_asked``, or drawn back from it.

        While a joint pushes too hard the whole arm stands still: a wrist that is stuck is pushed by
        every other joint that goes on. Once it is ``most_rad`` behind, it is taken along.

        Args:
            now_ns: time of the command.
            q_asked: (n,) targets as they would be without giving way.
            sent: targets (n,) of the period before, and their speed (n,) in rad/s.
            q: (n,) where the joints are measured.
        """
        self.rest()
        q_sent, _ = sent
        age_ns = now_ns - self._heard_ns
        if self._effort is None or not 0 <= age_ns <= self._settings.max_age_s * 1e9:
            # Nothing is known of what pushes: an arm that gave way stands.
            return self._towards(q_sent, q_asked, sent) if self.gives_way else q_asked
        error, effort = q_sent - q, abs(self._effort)
        share = self._soft / np.maximum(effort, _NO_EFFORT * self._soft)
        step = _MIX * error * (share - 1.0)
        # An effort against the error (a brake) is none that the target causes.
        pushes = self._effort * error > 0.0
        drawn = pushes & (share < 1.0)
        if drawn.any():
            self.pushing, self._pushed = tuple(np.flatnonzero(drawn).tolist()), effort
            far, most = self._settings.most_rad, self._settings.back_rad_s * self._period_s
            target = q_sent + np.where(drawn, step, 0.0)
            taken = q_asked + np.clip(target - q_asked, -far, far)
            return self._towards(q_sent + np.clip(taken - q_sent, -most, most), q_asked, sent)
        if not self.gives_way:
            return q_asked
        # Back to what is asked; where that pushes again, only as far as there is room.
        old, most = self.offset_rad, self._settings.forth_rad_s * self._period_s
        way = np.where(pushes & (error * old < 0.0), np.minimum(abs(step), most), most)
        target = q_asked + np.sign(old) * np.maximum(abs(old) - way, 0.0)
        # Still in contact: the nearer to the soft effort, the slower the arm goes on. It does not
        # stand, for the way may be the one that relieves the joint.
        left = 1.0 - float((effort / self._soft)[pushes].max(initial=0.0))
        slow = min(1.0, max(_SLOWEST, left / _SLOW_SHARE))
        return self._towards(q_sent + slow * (target - q_sent), q_asked, sent)

    def stand(self, q_asked: FloatArray, q_sent: FloatArray) -> None:
        """The target of this period was refused and the last one is sent again."""
        self.offset_rad = q_sent - q_asked

    def _towards(
        self, target: FloatArray, q_asked: FloatArray, sent: tuple[FloatArray, FloatArray]
    ) -> FloatArray:
        """The target within the bound of acceleration; what it is behind is the offset."""
        (q_sent, dq_sent), dt = sent, self._period_s
        change = self._settings.acceleration_rad_s2 * dt
        target = q_sent + dt * np.clip((target - q_sent) / dt, dq_sent - change, dq_sent + change)
        offset = target - q_asked
        self.offset_rad = np.where(abs(offset) < _NOTHING_RAD, 0.0, offset)
        return q_asked + self.offset_rad
