"""What goes out on the command topic, judged apart from the gate that let it out.

The judge sees only messages, as the robot's controller does: position, rotation or joints, and when
they came. It knows the hard limits from the installed YAML and shares no code with the gate.
"""

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spear_ros.core.geometry import matrix_to_quat
from spear_ros.robots.kinematics import forward
from spear_ros.robots.spec import RobotSpec
from spear_ros.runtime.safety_limits import SafetyLimits

_BOX_SLACK_M = 1e-5
# Rounding of stamps to nanoseconds, and differences of quaternions near identity.
_SLACK = 1.02


@dataclass(frozen=True, slots=True)
class Sent:
    """One command as it was received."""

    received_s: float
    """Monotonic."""
    stamp_ns: int
    """Time of the command: of its header, else of its publication."""
    sent_ns: int
    """Time of its publication (the middleware's source timestamp)."""
    p: np.ndarray
    """(3,) end-effector position, base frame."""
    q: np.ndarray
    """(4,) its rotation, wxyz."""
    joints: np.ndarray | None
    """(n,) rad, where the message is a joint command."""


class CommandJudge:
    """Compares each command with the one before it and with the workspace."""

    def __init__(self, spec: RobotSpec, limits: SafetyLimits) -> None:
        self._spec, self._limits = spec, limits
        self._period_s = 1.0 / spec.control_rate_hz
        self._low = np.array(limits.workspace_min_m) - _BOX_SLACK_M
        self._high = np.array(limits.workspace_max_m) + _BOX_SLACK_M
        self._last: Sent | None = None
        self._armed_ns = 0
        self.violations: list[str] = []
        self.judged = 0
        self.top_speed_m_s = 0.0

    def restart(self) -> None:
        """The next command sent is a first one: arm takes the measured pose as target."""
        self._armed_ns = time.time_ns()

    def take(self, sent: Sent) -> None:
        """Judge one command."""
        self.judged += 1
        problems = self._place(sent)
        last = self._last
        if last is not None and not problems and not last.sent_ns < self._armed_ns <= sent.sent_ns:
            problems += self._motion(last, sent)
        self._last = sent
        self.violations += [f'command {self.judged}: {text}' for text in problems]

    def _place(self, sent: Sent) -> list[str]:
        values = np.concatenate([sent.p, sent.q, [] if sent.joints is None else sent.joints])
        if not np.isfinite(values).all():
            return ['not finite']
        found = []
        if abs(np.linalg.norm(sent.q) - 1.0) > 1e-3:
            found.append(f'quaternion of norm {np.linalg.norm(sent.q):.4f}')
        if (sent.p < self._low).any() or (sent.p > self._high).any():
            found.append(f'position {np.round(sent.p, 4).tolist()} outside the workspace')
        if sent.joints is not None:
            for joint, value in zip(self._spec.joints, sent.joints, strict=True):
                if not joint.lower_rad - 1e-6 <= value <= joint.upper_rad + 1e-6:
                    found.append(f'{joint.name} = {value:.4f} rad beyond its limits')
        return found

    def _motion(self, before: Sent, after: Sent) -> list[str]:
        hard, dt = self._limits.hard, self._interval(before, after)
        moved = float(np.linalg.norm(after.p - before.p))
        turned = 2.0 * math.acos(min(1.0, abs(float(before.q @ after.q))))
        if turned < 1e-6:
            turned = 0.0
        self.top_speed_m_s = max(self.top_speed_m_s, moved / dt)
        found = []
        if moved > hard.linear_m_s * dt * _SLACK:
            found.append(f'{moved * 1e3:.2f} mm in {dt * 1e3:.1f} ms')
        if turned > hard.angular_rad_s * dt * _SLACK + 1e-4:
            found.append(f'{turned:.4f} rad in {dt * 1e3:.1f} ms')
        if before.joints is not None and after.joints is not None:
            for joint, step in zip(
                self._spec.joints, abs(after.joints - before.joints), strict=True
            ):
                limit = hard.joint_fraction * joint.velocity_rad_s * dt
                if step > limit * _SLACK:
                    found.append(f'{joint.name} {step:.4f} rad in {dt * 1e3:.1f} ms')
        return found

    def _interval(self, before: Sent, after: Sent) -> float:
        """Seconds that the step took; messages that were lost on the way here make it longer."""
        dt = (after.stamp_ns - before.stamp_ns) * 1e-9
        # A clock that stood still or went back (simulated time) says nothing: one period.
        return dt if dt > 1e-3 else self._period_s


class CommandLog:
    """Keeps the newest commands and judges all of them; fed by a subscription's callback."""

    def __init__(self, spec: RobotSpec, limits: SafetyLimits, keep: int = 6000) -> None:
        self._spec = spec
        self.judge = CommandJudge(spec, limits)
        self.entries: deque[Sent] = deque(maxlen=keep)
        self.count = 0
        self.worst_lag_s = 0.0
        """Longest time from publication to our callback: how late this process has been."""

    def on_pose(self, message: Any, info: Mapping[str, int]) -> None:
        """Take a geometry_msgs/PoseStamped."""
        stamp, p, o = message.header.stamp, message.pose.position, message.pose.orientation
        self._add(
            Sent(
                time.monotonic(),
                stamp.sec * 1_000_000_000 + stamp.nanosec,
                info['source_timestamp'],
                np.array([p.x, p.y, p.z]),
                np.array([o.w, o.x, o.y, o.z]),
                None,
            )
        )

    def on_group(self, message: Any, info: Mapping[str, int]) -> None:
        """Take an interbotix_xs_msgs/JointGroupCommand, which has no header."""
        self._add_joints(np.array(message.cmd, float), info['source_timestamp'])

    def on_trajectory(self, message: Any, info: Mapping[str, int]) -> None:
        """Take a trajectory_msgs/JointTrajectory, whose stamp of zero means now."""
        (point,) = message.points
        self._add_joints(np.array(point.positions, float), info['source_timestamp'])

    def _add_joints(self, joints: np.ndarray, sent: int) -> None:
        T = forward(self._spec, joints)
        q = matrix_to_quat(T[:3, :3])
        self._add(Sent(time.monotonic(), sent, sent, T[:3, 3], q, joints))

    def _add(self, sent: Sent) -> None:
        self.judge.take(sent)
        self.entries.append(sent)
        self.count += 1
        self.worst_lag_s = max(self.worst_lag_s, time.time() - sent.sent_ns * 1e-9)

    def since(self, time_s: float) -> list[Sent]:
        """Commands received after a monotonic time."""
        return self._newest(lambda s: s.received_s > time_s)

    def sent_since(self, time_ns: int) -> list[Sent]:
        """Commands published after a time of the system clock, whenever they were received."""
        return self._newest(lambda s: s.sent_ns > time_ns)

    def _newest(self, wanted: Callable[[Sent], bool]) -> list[Sent]:
        found = list(itertools.takewhile(wanted, reversed(tuple(self.entries))))
        return found[::-1]

    def still(self, commands: int, after_ns: int) -> bool:
        """The last ``commands`` commands, all published after ``after_ns``, ask for one pose."""
        last = self.sent_since(after_ns)[-commands:]
        if len(last) < commands:
            return False
        return max(distance(last[0], s) for s in last) < 1e-6


def distance(a: Sent, b: Sent) -> float:
    """Largest difference of position [m] and rotation (quaternion components, sign-free)."""
    turned = min(np.abs(a.q - b.q).max(), np.abs(a.q + b.q).max())
    return max(float(np.abs(a.p - b.p).max()), float(turned))
