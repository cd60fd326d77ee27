"""One control period: findings to events, events through the table, actions on the command stage.

The order inside a period is fixed, so that a run on an injected clock is reproducible: clock, hard
reasons, soft reasons, timers, the newest chunk, then the command and what its judgement means.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from spear_ros.core.reasons import Reason
from spear_ros.robots.spec import RobotSpec
from spear_ros.runtime.chunk_intake import REJECTS_TO_FAULT, AcceptedChunk, ChunkIntake
from spear_ros.runtime.command_stage import CommandStage, Source
from spear_ros.runtime.executor_inputs import ExecutorInputs
from spear_ros.runtime.executor_stats import ExecutorStats
from spear_ros.runtime.executor_types import Command, ExecutorSettings, PolicyHealth
from spear_ros.runtime.following_watch import FollowingWatch
from spear_ros.runtime.give_way import GiveWay
from spear_ros.runtime.safety import Rejection, SafetyGate, SafetyLimits
from spear_ros.runtime.state_machine import (
    Action,
    Event,
    Phase,
    StateMachine,
    Transition,
    event_of,
)
from spear_ros.runtime.watchdog import ClockWatch, Finding

_SHORTEST_GAP_S = 0.1
_ARRIVES_S = 2.0
"""After the end of the way home, for an arm that lags."""
_LIVE = frozenset({Phase.ARMED, Phase.RUNNING, Phase.HOLD})
_MOVING = frozenset({Phase.RUNNING, Phase.HOLD})


@dataclass(frozen=True, slots=True)
class Clocks:
    """The node's clock, and one that cannot jump (None under simulated time)."""

    now_ns: Callable[[], int]
    steady_ns: Callable[[], int] | None = None


class ControlCycle:
    """State machine, inputs, intake and stage of one executor; the caller holds the lock."""

    def __init__(
        self, robot: RobotSpec, limits: SafetyLimits, settings: ExecutorSettings, clocks: Clocks
    ) -> None:
        rate = settings.control_rate_hz or robot.control_rate_hz
        self.period_s = 1.0 / rate
        self.settings = settings
        self.machine = StateMachine()
        self.gate = SafetyGate(robot, limits, self.period_s)
        self.inputs = ExecutorInputs(robot, settings)
        self.intake = ChunkIntake()
        self.intake.pin_ids = settings.require_policy
        self.stage = CommandStage(robot, limits, self.gate, self.period_s, settings.speed_scale)
        if settings.give_way is not None:
            self.stage.give_way = GiveWay(settings.give_way, self.period_s)
        self.following = FollowingWatch(robot)
        self.stats = ExecutorStats()
        self.progress = ''
        self.followed: AcceptedChunk | None = None
        self.reject: Rejection | None = None
        """A rejected chunk that the next tick answers."""
        self._clocks = clocks
        self._clock_watch = ClockWatch(
            self.period_s, max(_SHORTEST_GAP_S, settings.gap_periods * self.period_s)
        )
        self._first_of: AcceptedChunk | None = None
        self._ended_by_instruction = False

    # ---------------------------------------------------------------------------------------- ticks

    def tick(self) -> Command | None:
        """Run one control period."""
        now = self._clocks.now_ns()
        self._judge_clock(now)
        self._judge_inputs(now)
        self._timers(now)
        self._take_chunk(now)
        command = self._command(now)
        if command is None:
            self.stats.silence()
        else:
            self.stats.command(now)
        return command

    def _judge_clock(self, now: int) -> None:
        steady = self._clocks.steady_ns
        finding = self._clock_watch.tick(now, None if steady is None else steady())
        if finding is None:
            return
        if finding.reason is Reason.CLOCK_JUMP:
            self.inputs.forget()
            self.intake.clock_jumped()
            self.stage.restart_time(now)
        else:
            self.inputs.paused(now)
        self.raise_finding(finding, now)

    def _judge_inputs(self, now: int) -> None:
        inputs, phase = self.inputs, self.machine.phase
        bad = inputs.take_bad_sample()
        if phase is Phase.DISARMED:
            self.reject = None
            return
        if bad is not None:
            self.raise_finding(bad, now)
        for finding in inputs.hard(now):
            self.raise_finding(finding, now)
        sent = self.stage.sent
        if sent is not None and phase is not Phase.FAULT:
            frozen = inputs.joints.frozen(now, sent.T_base_ee)
            if frozen is not None:
                self.raise_finding(frozen, now)
            behind = self._behind()
            if behind is not None:
                self.raise_finding(behind, now)
        self._judge_rejects(now)
        soft = inputs.soft(now, self.machine.phase in _MOVING)
        if soft is not None:
            self.raise_finding(soft, now)

    def _judge_rejects(self, now: int) -> None:
        reject, self.reject = self.reject, None
        if reject is None or self.machine.phase not in _LIVE:
            return
        if self.intake.in_a_row >= REJECTS_TO_FAULT:
            text = (
                f'{self.intake.in_a_row} chunks in a row rejected, the last because {reject.text}'
            )
            self.raise_finding(Finding(Reason.THREE_REJECTS, text), now)
        else:
            self.raise_finding(Finding(reject.reason, reject.text), now)

    def _timers(self, now: int) -> None:
        machine = self.machine
        if machine.phase is Phase.HOLD:
            window_ns = self.settings.resume_window_s * 1e9
            if now - machine.since_ns > window_ns:
                self.apply(Event.WINDOW_OVER, now)
        elif machine.phase is Phase.DISARMING and self.stage.standstill(now):
            self.apply(Event.STANDSTILL, now, text='disarmed; call arm to start.')
            self.intake.stop()
        elif machine.phase is Phase.FAULT and self.stage.standstill(now) and self._lost_torque():
            # Sent on, the old target would be jumped to when torque returns. Servos and
            # controllers hold their last one by themselves.
            self.drop_target()

    def _behind(self) -> Finding | None:
        q = self.inputs.joints.q
        return None if q is None else self.following.behind(q)

    def _lost_torque(self) -> bool:
        driver, reason = self.inputs.driver, self.machine.reason
        failed = reason is Reason.MOTOR_ERROR or (
            driver is not None and driver.reason is Reason.MOTOR_ERROR
        )
        # Readings that jumped are doubted: they do not say that the arm is elsewhere.
        return failed or (reason is not Reason.JOINTS_JUMP and self._behind() is not None)

    def drop_target(self) -> None:
        """Forget the target and what was followed; nothing is sent until the next arm."""
        self.stage.drop()
        self.following.restart()
        self.followed = self.intake.pending = None

    def _take_chunk(self, now: int) -> None:
        pending = self.intake.pending
        if pending is None or self.machine.phase not in _LIVE:
            return
        if now >= pending.chunk.expiry_ns:
            self.intake.pending = None
            return
        if not self.stage.may_follow(now):
            return
        if self.inputs.soft(now, self.machine.phase in _MOVING) is None:
            self.apply(Event.CHUNK, now, text='following chunks.')

    def _command(self, now: int) -> Command | None:
        following = self.machine.phase is Phase.RUNNING
        command, why = self.stage.produce(now, self.inputs.joints.q, following)
        if why is not None:
            self.raise_finding(Finding(why.reason, why.text), now)
        if command is not None:
            self.following.sent(now, command.T_base_ee)
            if self.machine.phase is Phase.FAULT:  # the gripper begins nothing new either
                command = replace(command, gripper=None)
        if command is not None and self._first_of is not None and self.followed is self._first_of:
            self.stats.first_command(now, self._first_of.chunk.t_obs_ns)
        self._first_of = None
        sample = self.stage.sample
        if self.machine.phase is Phase.RUNNING and sample is not None and sample.finished:
            self.raise_finding(self._chunk_over(), now)
        if self.machine.phase is Phase.HOMING:
            self._home_progress(now)
        return command

    def _chunk_over(self) -> Finding:
        if self._ended_by_instruction:
            return Finding(
                Reason.CHUNK_MISSING, 'the instruction changed; waiting for its first chunk.'
            )
        return Finding(
            Reason.CHUNK_LATE, 'the chunk ran out before a newer one came; the policy is late.'
        )

    def _home_progress(self, now: int) -> None:
        move = self.stage.move
        if move is None or self.stage.source is not Source.MOVE:
            return
        self.progress = f'home: {100 * move.share(now):.0f} %'
        if move.finished(now):
            sent, q = self.stage.sent, self.inputs.joints.q
            assert sent is not None
            missed = None if q is None else self.following.missed(q, sent.T_base_ee)
            if missed is not None:
                self.progress = 'home: waiting for the arm'
                if now - move.start_ns > (move.duration_s + _ARRIVES_S) * 1e9:
                    self.raise_finding(missed, now)
                return
            self.stage.arrive(now)
            if self.settings.home_opens_gripper:
                self.stage.player.set_gripper(1.0, now)
            self.intake.start(now, self.intake.pinned)
            self.progress = ''
            self.apply(Event.HOMED, now, text='at the start pose; waiting for a chunk.')

    # --------------------------------------------------------------------------------------- events

    def raise_finding(self, finding: Finding, now: int) -> Transition:
        """Turn a reason into its event."""
        return self.apply(event_of(finding.reason), now, finding.reason, finding.text)

    def apply(
        self, event: Event, now: int, reason: Reason = Reason.NONE, text: str = ''
    ) -> Transition:
        """Apply an event and carry out its action (GO_HOME is the request's own work)."""
        transition = self.machine.apply(event, now, reason, text)
        action = transition.action
        if transition.before is Phase.HOMING and transition.after is not Phase.HOMING:
            self.progress = ''
        if action is Action.BRAKE:
            self.stage.brake(now)
            self.followed = None
        elif action in (Action.DROP, Action.SILENCE):
            self.drop_target()
        elif action is Action.FOLLOW:
            self._follow(now)
        elif action is Action.ANCHOR:
            self._anchor(now)
        return transition

    def _follow(self, now: int) -> None:
        pending = self.intake.pending
        assert pending is not None
        self.intake.pending = None
        self.followed = self._first_of = pending
        self._ended_by_instruction = False
        self.stage.follow(pending.chunk, pending.segment_rates, now)

    def _anchor(self, now: int) -> None:
        q = self.inputs.joints.q
        assert q is not None  # the preflight has seen it
        pinned: PolicyHealth | None = self.inputs.health
        self.intake.start(now, pinned)
        self.inputs.joints.restart()
        self.following.restart()
        self.reject, self.followed, self.progress = None, None, ''
        self.stage.anchor(q, now)

    def end_instruction(self, instruction_id: str, now: int) -> None:
        """The instruction was replaced: its chunk may run for one more step."""
        followed = self.followed
        if followed is None or followed.chunk.instruction_id != instruction_id:
            return
        self._ended_by_instruction = True
        self.stage.player.end_by(now + round(followed.chunk.step_s * 1e9))
