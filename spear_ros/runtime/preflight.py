"""Preflight: what must be true before arm is accepted. Judges what is known and never waits."""

from collections.abc import Iterator

from spear_ros.core.reasons import Reason
from spear_ros.robots.kinematics import IkResult, chain_of
from spear_ros.robots.spec import RobotSpec
from spear_ros.runtime.chunk_checks import MAX_HORIZON, STEP_RANGE_S
from spear_ros.runtime.executor_inputs import ExecutorInputs
from spear_ros.runtime.executor_types import ExecutorSettings
from spear_ros.runtime.safety import SafetyGate
from spear_ros.runtime.watchdog import Finding

MAX_ARM_RATE_HZ = 250.0
# Rates are judged with this much tolerance: a 20 Hz stream is not refused for one late message.
_RATE_SLACK = 0.8
# More than this in that time is no noise: the arm falls, coasts or is led by hand.
_STANDS_RAD, _STANDS_S = 0.03, 0.2


def preflight(
    robot: RobotSpec,
    inputs: ExecutorInputs,
    gate: SafetyGate,
    settings: ExecutorSettings,
    now_ns: int,
) -> list[Finding]:
    """Return every reason not to arm, most basic first; empty = arm."""
    found = [*_arm(inputs, settings, now_ns), *_driver(inputs, settings, now_ns)]
    if not found:
        found += _pose(robot, inputs, gate)
    found += _gripper(inputs, settings, now_ns)
    if settings.require_policy:
        found += _policy(robot, inputs, now_ns)
    return found


def _arm(inputs: ExecutorInputs, settings: ExecutorSettings, now_ns: int) -> Iterator[Finding]:
    bad = inputs.recent(inputs.bad_sample, now_ns)
    if bad is not None:
        yield bad
    meter = inputs.joints.meter
    age = meter.age_s(now_ns)
    if age < 0.0:
        yield Finding(Reason.JOINTS_STALE, 'no joint state has arrived; start the arm driver.')
        return
    if age > meter.max_age_s:
        yield Finding(
            Reason.JOINTS_STALE,
            f'the newest joint state is {age * 1e3:.0f} ms old, limit '
            f'{meter.max_age_s * 1e3:.0f} ms; check the arm driver.',
        )
        return
    rate, least = meter.rate_hz(now_ns), _RATE_SLACK / meter.max_age_s
    if not least <= rate <= MAX_ARM_RATE_HZ / _RATE_SLACK:
        yield Finding(
            Reason.JOINTS_STALE,
            f'joint states come at {rate:.0f} Hz, wanted {least:.0f} to {MAX_ARM_RATE_HZ:.0f} Hz; '
            "set the driver's publish rate to 100 Hz.",
        )
    skew = inputs.skew(now_ns)
    if skew is not None:
        yield skew
    q, before = inputs.joints.q, inputs.joints.at(now_ns - round(_STANDS_S * 1e9))
    if q is not None and before is not None and abs(q - before).max() > _STANDS_RAD:
        yield Finding(
            Reason.REFUSED_STATE,
            f'the arm moves ({abs(q - before).max():.2f} rad in {_STANDS_S:g} s); let it come to '
            'rest, then arm.',
        )
    if settings.expected_publishers and inputs.publishers != settings.expected_publishers:
        seen = 'unknown' if inputs.publishers is None else inputs.publishers
        yield Finding(
            Reason.SECOND_PUBLISHER,
            f'publishers on the command topic: {seen}, expected {settings.expected_publishers}; '
            'stop every other controller client.',
        )


def _driver(inputs: ExecutorInputs, settings: ExecutorSettings, now_ns: int) -> Iterator[Finding]:
    driver = inputs.driver
    if driver is None:
        if settings.require_driver:
            yield Finding(
                Reason.DRIVER_LOST, 'the driver adapter has not reported yet; is the driver up?'
            )
        return
    if driver.reason is not Reason.NONE:
        yield Finding(driver.reason, driver.text)
    age = (now_ns - driver.received_ns) * 1e-9
    if settings.require_driver and age > settings.driver_max_age_s:
        yield Finding(Reason.DRIVER_LOST, f'the driver adapter has been silent for {age:.2f} s.')


def _pose(robot: RobotSpec, inputs: ExecutorInputs, gate: SafetyGate) -> Iterator[Finding]:
    q = inputs.joints.q
    if q is None:
        return
    rejection = gate.check_pose(IkResult(q, True, 0.0, 0.0, 0, chain_of(robot).links(q)))
    if rejection is not None:
        yield Finding(
            rejection.reason,
            f'where the arm stands: {rejection.text} Move it by hand or with its own tools.',
        )


def _gripper(inputs: ExecutorInputs, settings: ExecutorSettings, now_ns: int) -> Iterator[Finding]:
    if not settings.require_gripper:
        return
    age = inputs.gripper.age_s(now_ns)
    if age < 0.0:
        yield Finding(Reason.GRIPPER_STALE, 'no gripper state has arrived; start its driver.')
    elif age > inputs.gripper.max_age_s:
        yield Finding(
            Reason.GRIPPER_STALE,
            f'the newest gripper state is {age * 1e3:.0f} ms old, limit '
            f'{inputs.gripper.max_age_s * 1e3:.0f} ms; check the gripper driver.',
        )


def _policy(robot: RobotSpec, inputs: ExecutorInputs, now_ns: int) -> Iterator[Finding]:
    health = inputs.health
    if health is None or inputs.policy.stale(now_ns):
        yield Finding(Reason.POLICY_SILENT, 'no policy status arrives; start policy_node.')
        return
    two = inputs.two_policies(now_ns)
    if two is not None:
        yield two
    if not health.active:
        yield Finding(
            Reason.POLICY_NOT_READY, 'the policy is not active yet; wait for it or see its log.'
        )
        return
    if health.spec_mismatch:
        yield Finding(Reason.CHUNK_IDENTITY, f'checkpoint and robot differ: {health.spec_mismatch}')
    for name, seen, expected in (
        ('embodiment', health.embodiment, robot.embodiment),
        ('end-effector frame', health.ee_frame, robot.ee_frame),
    ):
        if seen != expected:
            yield Finding(
                Reason.CHUNK_IDENTITY,
                f'the policy drives {name} "{seen}", this robot has "{expected}"; load a '
                'checkpoint for this robot.',
            )
    low, high = STEP_RANGE_S
    if not low <= health.step_s <= high or not 1 <= health.horizon <= MAX_HORIZON:
        yield Finding(
            Reason.CHUNK_MALFORMED,
            f'the policy says {health.horizon} knots of {health.step_s:g} s; allowed are 1 to '
            f'{MAX_HORIZON} of {low:g} to {high:g} s.',
        )
    if not health.checkpoint_id or not health.policy_session:
        yield Finding(
            Reason.CHUNK_IDENTITY, 'the policy names no checkpoint_id or policy_session to pin.'
        )
    for problem in health.stream_problems:
        yield Finding(Reason.POLICY_NOT_READY, problem)
