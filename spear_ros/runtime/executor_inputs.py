"""What the executor has been told, and what is wrong with it now. The caller holds the lock."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from spear_ros.core.reasons import SOFT_REASONS, Reason
from spear_ros.core.types import FloatArray
from spear_ros.robots.spec import RobotSpec
from spear_ros.runtime.executor_types import DriverState, ExecutorSettings, PolicyHealth
from spear_ros.runtime.watchdog import Finding, JointWatch, StreamMeter

# A bad sample or a skewed stamp counts as present for this long after it was seen.
RECENT_S = 0.5
TWO_POLICIES_S = 0.5


class ExecutorInputs:
    """Newest inputs and their health.

    Args:
        robot: joint names and limits.
        settings: age limits and what is required.
    """

    def __init__(self, robot: RobotSpec, settings: ExecutorSettings) -> None:
        self._settings = settings
        self.joints = JointWatch(robot, settings.arm_max_age_s, settings.joint_names)
        self.gripper = StreamMeter('gripper state', settings.gripper_max_age_s)
        self.policy = StreamMeter('policy status', settings.policy_max_age_s)
        self.opening: float | None = None
        self.health: PolicyHealth | None = None
        self.driver: DriverState | None = None
        self.publishers: int | None = None
        self._other_policy: tuple[int, str] | None = None
        self._two_policies: tuple[int, Finding] | None = None
        self.bad_sample: tuple[int, Finding] | None = None
        self._fresh_bad: Finding | None = None
        self._skew: tuple[int, Finding] | None = None

    def on_joints(
        self, stamp_ns: int, received_ns: int, names: Sequence[str], q: FloatArray
    ) -> None:
        """Take a joint sample; remember what is wrong with it."""
        finding = self.joints.observe(stamp_ns, received_ns, names, q)
        if finding is None:
            return
        if finding.reason is Reason.CLOCK_SKEW:
            self._skew = (received_ns, finding)
            return
        self.bad_sample = (received_ns, finding)
        self._fresh_bad = self._fresh_bad or finding

    def on_gripper(self, stamp_ns: int, received_ns: int, opening: float) -> None:
        """Take a gripper reading; one that is not a number is not a reading."""
        if opening != opening or abs(opening) == float('inf'):
            return
        skew = self.gripper.note(stamp_ns, received_ns)
        if skew is not None:
            self._skew = (received_ns, skew)
        else:
            self.opening = opening

    def on_policy(self, health: PolicyHealth) -> None:
        """Take a policy status."""
        skew = self.policy.note(health.stamp_ns, health.received_ns)
        if skew is not None:
            self._skew = (health.received_ns, skew)
            return
        last, self.health = self.health, health
        if last is None or last.policy_session == health.policy_session:
            return
        other, self._other_policy = self._other_policy, (last.received_ns, last.policy_session)
        # Heard, replaced and heard again at once (10 Hz each): not a restart, both are alive.
        if (
            other is not None
            and other[1] == health.policy_session
            and health.received_ns - other[0] <= TWO_POLICIES_S * 1e9
        ):
            text = (
                f'two policy processes report (checkpoints {last.checkpoint_id} and '
                f'{health.checkpoint_id}); stop one of them.'
            )
            self._two_policies = (health.received_ns, Finding(Reason.CHUNK_IDENTITY, text))

    def two_policies(self, now_ns: int) -> Finding | None:
        """More than one policy process was heard a moment ago."""
        seen = self._two_policies
        if seen is None or now_ns - seen[0] > TWO_POLICIES_S * 1e9:
            return None
        return seen[1]

    def paused(self, now_ns: int) -> None:
        """This process stood still: that nothing was heard of the driver is not its fault."""
        if self.driver is not None:
            self.driver = replace(self.driver, received_ns=now_ns)

    def forget(self) -> None:
        """The clock jumped: no stamp means anything any more."""
        self.joints.forget()
        self.gripper.forget()
        self.policy.forget()
        self.health, self.bad_sample, self._skew, self._fresh_bad = None, None, None, None
        self.driver = None

    def take_bad_sample(self) -> Finding | None:
        """The first bad joint sample since the last call."""
        finding, self._fresh_bad = self._fresh_bad, None
        return finding

    def hard(self, now_ns: int) -> Iterator[Finding]:
        """Hard reasons that hold now."""
        settings = self._settings
        if self.driver is not None:
            if self.driver.reason is not Reason.NONE:
                yield Finding(self.driver.reason, self.driver.text)
            age = (now_ns - self.driver.received_ns) * 1e-9
            if settings.require_driver and age > settings.driver_max_age_s:
                yield Finding(
                    Reason.DRIVER_LOST, f'the driver adapter has been silent for {age:.2f} s.'
                )
        expected = settings.expected_publishers
        if expected and self.publishers is not None and self.publishers > expected:
            yield Finding(
                Reason.SECOND_PUBLISHER,
                f'{self.publishers} publishers on the command topic, expected {expected}; stop '
                'the other one.',
            )
        if self.joints.meter.stale(now_ns):
            yield Finding(Reason.JOINTS_STALE, self._stale_joints(now_ns))

    def _stale_joints(self, now_ns: int) -> str:
        age = self.joints.meter.age_s(now_ns)
        limit = self._settings.arm_max_age_s
        text = f'the newest joint state is {age * 1e3:.0f} ms old (limit {limit * 1e3:.0f} ms)'
        skew = self.skew(now_ns)  # messages do arrive, but their stamps cannot be believed
        return f'{text}; check the driver.' if skew is None else f'{text}: {skew.text}'

    def soft(self, now_ns: int, expecting_chunks: bool) -> Finding | None:
        """The first soft reason that holds now.

        Args:
            now_ns: now.
            expecting_chunks: the robot is meant to move: a policy that is alive but has nothing to
                say is then a reason too.
        """
        skew = self.recent(self._skew, now_ns)
        if skew is not None:
            return skew
        if self._settings.require_gripper and self.gripper.stale(now_ns):
            age = self.gripper.age_s(now_ns)
            return Finding(
                Reason.GRIPPER_STALE,
                f'the newest gripper state is {age * 1e3:.0f} ms old (limit '
                f'{self.gripper.max_age_s * 1e3:.0f} ms); check the gripper driver.',
            )
        if self._settings.require_policy:
            return self._policy_problem(now_ns, expecting_chunks)
        return None

    def _policy_problem(self, now_ns: int, expecting_chunks: bool) -> Finding | None:
        health = self.health
        if health is None or self.policy.stale(now_ns):
            age = self.policy.age_s(now_ns)
            return Finding(
                Reason.POLICY_SILENT,
                f'no policy status for {age * 1e3:.0f} ms (limit '
                f'{self.policy.max_age_s * 1e3:.0f} ms); is the policy process alive?',
            )
        two = self.two_policies(now_ns)
        if two is not None:
            return two
        if not health.active:
            return Finding(
                Reason.POLICY_NOT_READY, 'the policy process is not active; activate it.'
            )
        reason = health.reason
        if reason in (Reason.NONE, Reason.CHUNK_MISSING):
            return None
        if reason is Reason.POLICY_NOT_READY or reason not in SOFT_REASONS:
            if not expecting_chunks:
                return None
            reason = Reason.POLICY_NOT_READY
        return Finding(reason, health.text or 'the policy reports a problem with its inputs.')

    def recent(self, seen: tuple[int, Finding] | None, now_ns: int) -> Finding | None:
        """A finding that was seen within the last half second."""
        if seen is None or now_ns - seen[0] > RECENT_S * 1e9:
            return None
        return seen[1]

    def skew(self, now_ns: int) -> Finding | None:
        """A recent clock skew."""
        return self.recent(self._skew, now_ns)
