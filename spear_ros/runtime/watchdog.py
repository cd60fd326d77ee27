"""Watches what comes in: ages, rates, and whether joint readings can be true.

Everything is pure and on the caller's clock. A check answers with a :class:`Finding` (reason and
sentence) or None; what it means for the robot is the state machine's business.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.reasons import Reason
from spear_ros.core.types import FloatArray
from spear_ros.robots.spec import RobotSpec

MAX_SKEW_S = 1.0
JUMP_RAD = 0.3
# Encoder noise and stamp jitter on top of what the velocity limit allows between two samples.
JUMP_NOISE_RAD = 0.02
JUMP_VELOCITY_FACTOR = 1.5
LIMIT_SLACK_RAD = 0.05
FROZEN_S = 0.2
FROZEN_MOVED_M = 0.005
FROZEN_MOVED_RAD = float(np.radians(1.0))
# Less than this between two commands is standing still.
_STILL = 1e-5
_REST_S = 0.5
# After a jump the arm may really be there: this many samples that agree make the new baseline.
_REBASE_SAMPLES = 5
_HISTORY_S = 2.0
_RATE_WINDOW_S = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """A reason and a sentence."""

    reason: Reason
    text: str


class StreamMeter:
    """Age and rate of one stream.

    Args:
        name: for sentences.
        max_age_s: the limit.
    """

    def __init__(self, name: str, max_age_s: float) -> None:
        self.name = name
        self.max_age_s = max_age_s
        self.stamp_ns: int | None = None
        self.received_ns: int | None = None
        self._receipts: deque[int] = deque(maxlen=1024)

    def note(self, stamp_ns: int, received_ns: int) -> Finding | None:
        """Record a message; CLOCK_SKEW (and not recorded) when its stamp is far from receipt."""
        skew_s = (received_ns - stamp_ns) * 1e-9
        if abs(skew_s) > MAX_SKEW_S:
            return Finding(
                Reason.CLOCK_SKEW,
                f'{self.name} stamps are {skew_s:+.2f} s behind receipt (limit {MAX_SKEW_S:g} s); '
                'synchronise the clocks.',
            )
        if self.stamp_ns is None or stamp_ns > self.stamp_ns:
            self.stamp_ns, self.received_ns = stamp_ns, received_ns
            self._receipts.append(received_ns)
        return None

    def age_s(self, now_ns: int) -> float:
        """max(now - stamp, time since receipt); -1 when nothing was received."""
        if self.stamp_ns is None or self.received_ns is None:
            return -1.0
        return max(0.0, (now_ns - min(self.stamp_ns, self.received_ns)) * 1e-9)

    def rate_hz(self, now_ns: int) -> float:
        """Messages per second over the last two seconds."""
        receipts = self._receipts
        while receipts and now_ns - receipts[0] > _RATE_WINDOW_S * 1e9:
            receipts.popleft()
        if len(receipts) < 2:
            return 0.0
        span = max(now_ns - receipts[0], 1) * 1e-9
        return (len(receipts) - 1) / span

    def stale(self, now_ns: int) -> bool:
        """Nothing yet, or older than the limit."""
        age = self.age_s(now_ns)
        return age < 0.0 or age > self.max_age_s

    def forget(self) -> None:
        """Start again (the clock jumped)."""
        self.stamp_ns = self.received_ns = None
        self._receipts.clear()


class JointWatch:
    """Newest measured joints, their recent past, and whether they can be true.

    The documented faults that this catches: a serial error that reads as zero ticks on every joint
    (all angles about -pi with a fresh stamp), stale data with fresh stamps, names in another order
    or missing, NaN.
    """

    def __init__(
        self, robot: RobotSpec, max_age_s: float, joint_names: tuple[str, ...] = ()
    ) -> None:
        self.meter = StreamMeter('joint state', max_age_s)
        self._names = _checked(joint_names, robot) if joint_names else robot.joint_names
        self._index: tuple[tuple[str, ...], list[int]] | None = None
        self._lower = np.array([j.lower_rad for j in robot.joints]) - LIMIT_SLACK_RAD
        self._upper = np.array([j.upper_rad for j in robot.joints]) + LIMIT_SLACK_RAD
        self._velocity = np.array([j.velocity_rad_s for j in robot.joints])
        self._history: deque[tuple[int, FloatArray]] = deque()
        self._outlier: tuple[int, FloatArray] | None = None
        self._agreeing = 0
        self._reference: FloatArray | None = None
        """Command at the last change of the readings; None = take the next one."""
        self._last_command: tuple[int, FloatArray] | None = None
        self._moving_s = self._still_s = 0.0
        self._farthest = (0.0, 0.0)
        self.q: FloatArray | None = None
        """Newest credible joint angles (n,)."""

    def observe(
        self, stamp_ns: int, received_ns: int, names: Sequence[str], q: FloatArray
    ) -> Finding | None:
        """Take a sample; a finding means that it was not taken over."""
        values = self._ordered(names, q)
        if isinstance(values, Finding):
            return values
        if not np.isfinite(values).all():
            return Finding(Reason.JOINTS_NOT_FINITE, 'a measured joint angle is not finite.')
        outside = (values < self._lower) | (values > self._upper)
        if outside.any():
            worst = int(outside.argmax())
            return Finding(
                Reason.JOINTS_LIMIT,
                f'{self._names[worst]} reads {values[worst]:.3f} rad, outside its limits: a '
                'corrupt reading (serial error?) or a wrong robot model.',
            )
        jump = self._jump(stamp_ns, values)
        if jump is not None:
            return jump
        if self.meter.stamp_ns is not None and stamp_ns <= self.meter.stamp_ns:
            return self.meter.note(stamp_ns, received_ns)  # reordered: not newer, not taken
        skew = self.meter.note(stamp_ns, received_ns)
        if skew is not None:
            return skew
        if self.q is None or not np.array_equal(values, self.q):
            self._reference = None
        self.q = values
        self._remember(stamp_ns, values)
        return None

    def at(self, stamp_ns: int) -> FloatArray | None:
        """Joint angles (n,) interpolated at a past time; None outside the recorded past."""
        history = self._history
        if not history or stamp_ns < history[0][0]:
            return None
        if stamp_ns >= history[-1][0]:
            fresh = stamp_ns - history[-1][0] <= self.meter.max_age_s * 1e9
            return history[-1][1] if fresh else None
        i = bisect_left(history, stamp_ns, key=lambda item: item[0])
        if history[i][0] == stamp_ns:
            return history[i][1]
        (t0, q0), (t1, q1) = history[i - 1], history[i]
        s = (stamp_ns - t0) / (t1 - t0)
        return (1.0 - s) * q0 + s * q1

    def frozen(self, now_ns: int, T_command: FloatArray) -> Finding | None:
        """Bit-identical readings although the command moved: old data with fresh stamps."""
        last, self._last_command = self._last_command, (now_ns, T_command)
        if last is None or self._reference is None:
            self._reference, self._moving_s, self._still_s = T_command, 0.0, 0.0
            self._farthest = (0.0, 0.0)
            return None
        dt = (now_ns - last[0]) * 1e-9
        if max(apart(T_command, last[1])) > _STILL:
            self._moving_s, self._still_s = self._moving_s + dt, 0.0
        else:
            self._still_s += dt
            if self._still_s > _REST_S:
                self._reference = None  # what counts begins when the command moves again
                return None
        moved, turned = apart(T_command, self._reference)
        moved, turned = max(moved, self._farthest[0]), max(turned, self._farthest[1])
        self._farthest = (moved, turned)
        if self._moving_s <= FROZEN_S or (moved <= FROZEN_MOVED_M and turned <= FROZEN_MOVED_RAD):
            return None
        return Finding(
            Reason.JOINTS_FROZEN,
            f'joint readings have not changed while the command moved for {self._moving_s:.2f} s, '
            f'{moved * 1e3:.1f} mm and {np.degrees(turned):.1f} deg; check the driver and the '
            'brakes.',
        )

    def restart(self) -> None:
        """Forget the frozen watch's reference (the command starts anew)."""
        self._reference = self._last_command = None

    def forget(self) -> None:
        """Forget everything (the clock jumped)."""
        self.meter.forget()
        self._history.clear()
        self._outlier, self._agreeing, self.q = None, 0, None
        self._reference = self._last_command = None

    def _ordered(self, names: Sequence[str], q: FloatArray) -> FloatArray | Finding:
        key = tuple(names)
        if self._index is None or self._index[0] != key:
            missing = [n for n in self._names if n not in key]
            if missing or len(key) != len(set(key)):
                return Finding(
                    Reason.JOINTS_NAMES,
                    f'joint names {list(key)[:8]} lack {missing}; check the robot model and the '
                    'arm topic.'
                    if missing
                    else f'joint names {list(key)[:8]} repeat.',
                )
            self._index = (key, [key.index(n) for n in self._names])
        values = np.asarray(q, float)
        if values.shape != (len(key),):
            return Finding(
                Reason.JOINTS_NAMES, f'{len(key)} joint names but {values.size} positions.'
            )
        return values[self._index[1]]

    def _jump(self, stamp_ns: int, values: FloatArray) -> Finding | None:
        if not self._history:
            return None
        t0, q0 = self._history[-1]
        finding = self._implausible(t0, q0, stamp_ns, values)
        if finding is None:
            self._outlier, self._agreeing = None, 0
            return None
        outlier = self._outlier
        agrees = outlier is not None and self._implausible(*outlier, stamp_ns, values) is None
        self._agreeing = self._agreeing + 1 if agrees else 0
        self._outlier = (stamp_ns, values)
        if self._agreeing >= _REBASE_SAMPLES:
            self._history.clear()
            self._outlier, self._agreeing = None, 0
            return None
        return finding

    def _implausible(self, t0: int, q0: FloatArray, t1: int, q1: FloatArray) -> Finding | None:
        gap_s = abs(t1 - t0) * 1e-9
        moved = abs(q1 - q0)
        allowed = JUMP_VELOCITY_FACTOR * gap_s * self._velocity + JUMP_NOISE_RAD
        # Between two samples of a live stream no arm turns 0.3 rad; after a long gap it may have.
        if gap_s <= 0.1:
            allowed = np.minimum(allowed, JUMP_RAD)
        if (moved <= allowed).all():
            return None
        worst = int((moved - allowed).argmax())
        return Finding(
            Reason.JOINTS_JUMP,
            f'{self._names[worst]} jumped {moved[worst]:.3f} rad in {gap_s * 1e3:.0f} ms (at most '
            f'{allowed[worst]:.3f} rad is possible).',
        )

    def _remember(self, stamp_ns: int, values: FloatArray) -> None:
        history = self._history
        history.append((stamp_ns, values))
        while stamp_ns - history[0][0] > _HISTORY_S * 1e9:
            history.popleft()


def _checked(names: tuple[str, ...], robot: RobotSpec) -> tuple[str, ...]:
    """The driver's own joint names, base to wrist."""
    own = robot.joint_names
    if len(names) != len(own) or len(set(names)) != len(own):
        raise UserError(
            f'arm.joint_names = {list(names)} must be {len(own)} different names, base to wrist.'
        )
    if any(name in own and own.index(name) != i for i, name in enumerate(names)):
        raise UserError(
            f'arm.joint_names = {list(names)} has names of {robot.name} in other places than '
            f'{list(own)}: list them base to wrist.'
        )
    return names


def apart(T0: FloatArray, T1: FloatArray) -> tuple[float, float]:
    """Distance [m] and angle [rad, small] between two poses."""
    x, y, z = (T0[:3, 3] - T1[:3, 3]).tolist()
    chord = T0[:3, :3] - T1[:3, :3]
    return (x * x + y * y + z * z) ** 0.5, (0.5 * float(np.vdot(chord, chord))) ** 0.5


class ClockWatch:
    """Judges the time between two control ticks: gaps, steps back, leaps.

    Args:
        period_s: nominal control period.
        gap_s: a longer interval is CONTROL_GAP.
    """

    MAX_LEAP_S = 0.5

    def __init__(self, period_s: float, gap_s: float) -> None:
        self.period_s = period_s
        self.gap_s = gap_s
        self._last: tuple[int, int | None] | None = None

    def tick(self, now_ns: int, steady_ns: int | None) -> Finding | None:
        """Note a tick.

        Args:
            now_ns: the node clock, which may jump.
            steady_ns: a clock that cannot jump; None under simulated time, where a leap and a gap
                look the same and count as a gap.
        """
        last, self._last = self._last, (now_ns, steady_ns)
        if last is None:
            return None
        elapsed = (now_ns - last[0]) * 1e-9
        if elapsed < 0.0:
            return Finding(
                Reason.CLOCK_JUMP,
                f'the clock went back by {-elapsed:.3f} s; stop whatever sets it.',
            )
        if steady_ns is not None and last[1] is not None:
            real = (steady_ns - last[1]) * 1e-9
            if abs(elapsed - real) > self.MAX_LEAP_S:
                return Finding(
                    Reason.CLOCK_JUMP,
                    f'the clock leapt by {elapsed - real:+.3f} s; stop whatever sets it.',
                )
            elapsed = real
        if elapsed > self.gap_s:
            return Finding(
                Reason.CONTROL_GAP,
                f'the control loop was paused for {elapsed:.3f} s (period {self.period_s:g} s).',
            )
        return None
