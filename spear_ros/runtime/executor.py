"""Executor: state machine + watchdog + player + gate + inverse kinematics, without ROS.

``executor_node`` wraps it thinly, the fuzzers drive it on an injected clock, lockstep roll-outs use
it between policy and simulator. It never prints, never writes a file, never waits.

Thread rule: every ``on_*``, request, ``snapshot`` and ``preview`` may be called from any thread and
returns at once (one short lock); ``tick`` is called from one thread at the control rate. The costly
half of judging a chunk (inverse kinematics at its knots) runs in the caller of ``on_chunk`` and
outside the lock, so that it cannot delay a command.
"""

import threading
import traceback
from collections.abc import Callable, Sequence

import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import pose, quat_normalize
from spear_ros.core.reasons import Reason
from spear_ros.core.types import ActionChunk, FloatArray
from spear_ros.robots.kinematics import IkResult, chain_of
from spear_ros.robots.spec import RobotSpec
from spear_ros.runtime.control_cycle import Clocks, ControlCycle
from spear_ros.runtime.executor_types import (
    Answer,
    Command,
    DriverState,
    ExecutorSettings,
    ExecutorSnapshot,
    PolicyHealth,
)
from spear_ros.runtime.joint_motion import JointMove, plan_joint_move
from spear_ros.runtime.preflight import preflight
from spear_ros.runtime.safety import Rejection, SafetyLimits
from spear_ros.runtime.state_machine import TABLE, Event, Phase, State

__all__ = [
    'Answer',
    'Command',
    'DriverState',
    'Executor',
    'ExecutorSettings',
    'ExecutorSnapshot',
    'PolicyHealth',
]

_COUNTED = frozenset({Phase.ARMED, Phase.RUNNING, Phase.HOLD})


class Executor:
    """Turns chunks into judged commands and owns every time-out.

    Args:
        robot: what is driven.
        limits: limits in force (``safety.load_limits``).
        clock_ns: the node's clock; simulated time works.
        settings: everything else.
        steady_ns: a clock that cannot jump (``time.monotonic_ns``); None under simulated time.
    """

    def __init__(
        self,
        robot: RobotSpec,
        limits: SafetyLimits,
        clock_ns: Callable[[], int],
        settings: ExecutorSettings | None = None,
        steady_ns: Callable[[], int] | None = None,
    ) -> None:
        self._robot = robot
        self._limits = limits
        self._clock_ns = clock_ns
        self._settings = settings or ExecutorSettings()
        self._lock = threading.RLock()
        self._cycle = ControlCycle(robot, limits, self._settings, Clocks(clock_ns, steady_ns))
        self._speed_scale = self._settings.speed_scale
        self._recovery_due = self._recovering = False
        self.internal_error = ''
        """Traceback of an exception in ``tick``, for the node's log; empty = none."""

    @property
    def period_s(self) -> float:
        """Control period that ``tick`` is to be called with."""
        return self._cycle.period_s

    # --------------------------------------------------------------------------------------- inputs

    def on_joints(
        self, stamp_ns: int, received_ns: int, names: Sequence[str], q: FloatArray
    ) -> None:
        """Take measured joints as they came; names in any order, others among them."""
        with self._lock:
            self._cycle.inputs.on_joints(stamp_ns, received_ns, names, q)

    def on_gripper(self, stamp_ns: int, received_ns: int, opening: float) -> None:
        """Take the measured gripper opening, 1 = open."""
        with self._lock:
            self._cycle.inputs.on_gripper(stamp_ns, received_ns, opening)

    def on_efforts(self, received_ns: int, efforts: FloatArray) -> None:
        """Take measured efforts (n,), base to wrist, of an arm that may give way."""
        give_way = self._cycle.stage.give_way
        if give_way is not None:
            with self._lock:
                give_way.on_efforts(received_ns, efforts)

    def on_driver(self, state: DriverState) -> None:
        """Take what the driver adapter knows; at least at 10 Hz."""
        with self._lock:
            self._cycle.inputs.driver = state

    def on_publisher_count(self, n: int) -> None:
        """Take the number of publishers on the command topic, ourselves included."""
        with self._lock:
            self._cycle.inputs.publishers = n

    def on_policy_status(self, health: PolicyHealth) -> None:
        """Take the health of the policy process; a new instruction ends the old one's chunk."""
        with self._lock:
            self._cycle.inputs.on_policy(health)
            replaced = self._cycle.intake.instruct(health.instruction_id)
            if replaced:
                self._cycle.end_instruction(replaced, self._clock_ns())

    def on_chunk(self, chunk: ActionChunk, received_ns: int) -> Rejection | None:
        """Judge a chunk; None = accepted, it is followed from the next tick on if the state allows.

        Too late through nobody's fault (before the last arm or home, replaced instruction) is
        answered with CHUNK_OLD and not counted as a reject.
        """
        cycle = self._cycle
        with self._lock:
            dropped = cycle.intake.drop(chunk)
            if dropped is not None:
                return dropped
            epoch = cycle.intake.epoch
            q = cycle.inputs.joints.at(chunk.t_obs_ns)
            context = cycle.intake.context(chunk, received_ns, q)
        verdict = cycle.gate.examine(chunk, context)
        with self._lock:
            if epoch != cycle.intake.epoch:
                return Rejection(Reason.CHUNK_OLD, 'armed or homed while the chunk was judged.')
            cycle.intake.record(chunk, verdict)
            if verdict.rejection is not None and cycle.machine.phase in _COUNTED:
                cycle.reject = verdict.rejection
        return verdict.rejection

    # ------------------------------------------------------------------------------------- requests

    def arm(self) -> Answer:
        """Run the preflight and, if it passes, command the measured pose from the next tick on."""
        with self._lock:
            now, cycle = self._clock_ns(), self._cycle
            refused = self._refused(Event.ARM, now)
            if refused is not None:
                return refused
            found = preflight(self._robot, cycle.inputs, cycle.gate, self._settings, now)
            if found:
                more = f' ({len(found) - 1} more)' if len(found) > 1 else ''
                return Answer(False, f'not armed: {found[0].text}{more}')
            cycle.apply(Event.ARM, now, text='armed; waiting for a chunk.')
            return Answer(True, 'armed.')

    def disarm(self) -> Answer:
        """Brake, then send nothing."""
        with self._lock:
            return self._request(Event.DISARM, Reason.OPERATOR, 'disarming: braking first.')

    def stop(self) -> Answer:
        """Brake and latch a fault; accepted in every state."""
        with self._lock:
            return self._request(
                Event.STOP, Reason.STOP_SERVICE, 'stopped by the operator; call reset, then arm.'
            )

    def reset(self) -> Answer:
        """Leave FAULT for DISARMED; never moves the robot."""
        with self._lock:
            now = self._clock_ns()
            if self._recovering:
                return Answer(False, 'a recovery is under way; call reset when it has ended.')
            if self._cycle.machine.state is State.FAULT and not self._cycle.stage.standstill(now):
                return Answer(False, 'still braking; call reset again in a moment.')
            answer = self._request(Event.RESET, Reason.NONE, 'disarmed; call arm to start.')
            if answer.accepted:
                self._cycle.intake.stop()
                self._cycle.progress = ''
            return answer

    def home(self) -> Answer:
        """Move slowly to the start pose; goes on in the control thread."""
        with self._lock:
            now, cycle = self._clock_ns(), self._cycle
            refused = self._refused(Event.HOME, now)
            if refused is not None:
                return refused
            move = plan_joint_move(
                self._robot,
                (cycle.stage.q_target, np.asarray(self._robot.q_home_rad)),
                self._limits.home,
                now,
                self._speed_scale,
            )
            blocked = self._blocked(move)
            if blocked is not None:
                return Answer(False, f'not moving home: on the way {blocked.text}')
            cycle.apply(Event.HOME, now, Reason.OPERATOR, 'moving to the start pose.')
            cycle.followed = None
            cycle.intake.start(now, cycle.intake.pinned)
            cycle.stage.go(move, now)
            return Answer(True, f'moving home, {move.duration_s:.1f} s.')

    def recover(self) -> Answer:
        """Ask the driver to recover the robot (FAULT only); the robot does not move by itself."""
        with self._lock:
            if self._cycle.machine.state is not State.FAULT:
                return Answer(False, f'recover works in FAULT only, not in {self._state_name()}.')
            if self._recovering:
                return Answer(False, 'a recovery is under way.')
            self._recovery_due = self._recovering = True
            self._cycle.progress = 'recover: asked for'
            return Answer(True, 'recovering; see progress in executor_status.')

    def take_recovery(self) -> bool:
        """True once after an accepted ``recover``: the driver adapter shall recover now."""
        with self._lock:
            due = self._recovery_due
            self._recovery_due = False
            return due

    def on_recovery(self, text: str, finished: bool = False, success: bool = False) -> None:
        """Show a step of the driver's recovery; the state stays FAULT until reset."""
        with self._lock:
            self._recovering = self._recovering and not finished
            outcome = ('; call reset, then arm' if success else '; failed') if finished else ''
            self._cycle.progress = f'recover: {text}{outcome}'

    def drop_target(self) -> None:
        """Forget the target, at rest: what was commanded before does not count any more."""
        with self._lock:
            self._cycle.drop_target()
            self._cycle.intake.stop()

    def fail(self, text: str) -> None:
        """Latch INTERNAL_ERROR: what carries the commands out has failed."""
        with self._lock:
            cycle = self._cycle
            cycle.machine.apply(Event.HARD, self._clock_ns(), Reason.INTERNAL_ERROR, text)
            cycle.drop_target()

    def set_speed_scale(self, speed_scale: float) -> None:
        """Set the factor on velocities, 0.05 to 1; works while moving, not on a home under way.

        Raises:
            UserError: out of range.
        """
        if not 0.05 <= speed_scale <= 1.0:
            raise UserError(f'speed_scale = {speed_scale} must lie between 0.05 and 1.')
        with self._lock:
            self._speed_scale = speed_scale
            self._cycle.stage.player.speed_scale = speed_scale

    # ------------------------------------------------------------------------------- control thread

    def tick(self) -> Command | None:
        """Run one control period; None = send nothing.

        An exception inside (a bug) does not stop the loop: it is a FAULT, INTERNAL_ERROR, and the
        last command is repeated.
        """
        with self._lock:
            try:
                return self._cycle.tick()
            except Exception as error:
                self.internal_error = traceback.format_exc()
                cycle, now = self._cycle, self._clock_ns()
                cycle.machine.apply(
                    Event.HARD,
                    now,
                    Reason.INTERNAL_ERROR,
                    f'internal error ({type(error).__name__}: {error}); see the log.',
                )
                return cycle.stage.freeze(now)

    # -------------------------------------------------------------------------------------- outputs

    def snapshot(self) -> ExecutorSnapshot:
        """Return the fields of ``ExecutorStatus.msg``."""
        with self._lock:
            now, cycle = self._clock_ns(), self._cycle
            machine, intake, inputs = cycle.machine, cycle.intake, cycle.inputs
            followed = cycle.followed
            chunk = None if followed is None else followed.chunk
            sample = cycle.stage.sample
            interval = cycle.stats.intervals_ms()
            first = cycle.stats.first_ages_ms()
            reject = intake.last_reject
            stopped = machine.state in (State.HOLD, State.FAULT)
            pinned = intake.pinned
            return ExecutorSnapshot(
                stamp_ns=now,
                state=machine.state,
                reason=machine.reason if stopped else Reason.NONE,
                text=machine.text,
                robot=self._robot.name,
                embodiment=self._robot.embodiment,
                checkpoint_id=pinned.checkpoint_id if pinned else '',
                policy_session=pinned.policy_session if pinned else '',
                instruction_id=chunk.instruction_id if chunk else '',
                sequence=chunk.sequence if chunk else 0,
                chunk_age_s=(now - chunk.t_obs_ns) * 1e-9 if chunk else -1.0,
                arm_age_s=inputs.joints.meter.age_s(now),
                gripper_age_s=inputs.gripper.age_s(now),
                policy_age_s=inputs.policy.age_s(now),
                stretch=sample.stretch if sample is not None and followed is not None else 1.0,
                speed_scale=self._speed_scale,
                chunks_accepted=intake.accepted,
                chunks_rejected=intake.rejected,
                last_reject_reason=reject.reason if reject else Reason.NONE,
                last_reject_text=reject.text if reject else '',
                progress=cycle.progress or cycle.stage.giving_way,
                command_interval_p50_ms=interval[0],
                command_interval_p99_ms=interval[1],
                first_command_age_p50_ms=first[0],
                first_command_age_p99_ms=first[1],
                commands=cycle.stats.commands,
                reject_counts=dict(intake.counts),
                standstill=cycle.stage.standstill(now),
            )

    def status_key(self) -> tuple[State, Reason, str]:
        """State, reason and progress: cheap enough to look for changes in every period."""
        with self._lock:
            machine = self._cycle.machine
            return machine.state, machine.reason, self._cycle.progress

    def preview(self) -> FloatArray:
        """Poses (K, 4, 4) of the newest valid chunk, anchor first; (0, 4, 4) = none."""
        with self._lock:
            newest = self._cycle.intake.newest
        if newest is None:
            return np.zeros((0, 4, 4))
        chunk = newest.chunk
        return pose(
            np.vstack([chunk.anchor_p, chunk.p_base_ee]),
            quat_normalize(np.vstack([chunk.anchor_q, chunk.q_base_ee])),
        )

    # -------------------------------------------------------------------------------------- private

    def _request(self, event: Event, reason: Reason, text: str) -> Answer:
        transition = self._cycle.apply(event, self._clock_ns(), reason, text)
        if not transition.known:
            return self._refusal(event)
        return Answer(True, text)

    def _refused(self, event: Event, now: int) -> Answer | None:
        if (self._cycle.machine.phase, event) not in TABLE:
            return self._refusal(event)
        if not self._cycle.stage.standstill(now):
            return Answer(False, 'still braking; call again in a moment.')
        return None

    def _refusal(self, event: Event) -> Answer:
        state = self._cycle.machine.state
        allowed = dict.fromkeys(p.state.name for p in Phase if (p, event) in TABLE)
        mend = ' Call reset first.' if state is State.FAULT else ''
        return Answer(
            False,
            f'{event.name.lower()} is not possible in {self._state_name()}, only in '
            f'{", ".join(allowed)}.{mend}',
        )

    def _state_name(self) -> str:
        return self._cycle.machine.state.name

    def _blocked(self, move: JointMove) -> Rejection | None:
        chain = chain_of(self._robot)
        for q in move.waypoints():
            result = IkResult(q, True, 0.0, 0.0, 0, chain.links(q))
            rejection = self._cycle.gate.check_pose(result)
            if rejection is not None:
                return rejection
        return None
