"""CommandStage: from the motion in force to the one command of a control period.

It owns the player, the inverse kinematics and the last command sent, and it is where a command is
judged before it leaves. When the gate refuses a command, that command is not sent, and the stage
steps down by itself, one rung per refusal:

    player or way home  ->  brake in joint space (needs no inverse kinematics, keeps the direction)
                        ->  repeat the last command

The last rung cannot fail: that command was judged when it was sent.
"""

from dataclasses import replace
from enum import Enum, auto

import numpy as np

from spear_ros.core.types import ActionChunk, FloatArray
from spear_ros.robots.kinematics import IkResult, InverseKinematics, chain_of
from spear_ros.robots.spec import RobotSpec
from spear_ros.runtime.chunk_player import ChunkPlayer, PlayerSample, PlayerSettings
from spear_ros.runtime.executor_types import Command
from spear_ros.runtime.give_way import GiveWay
from spear_ros.runtime.joint_motion import JointBrake, JointMove
from spear_ros.runtime.safety import GAP_PERIODS, Rejection, SafetyGate, SafetyLimits, SentCommand

# Warm-started from the last period two steps suffice; a target that needs more is out of reach.
_IK_ITERATIONS = 8


class Source(Enum):
    """What the target comes from."""

    NOTHING = auto()
    PLAYER = auto()
    MOVE = auto()
    JOINT_BRAKE = auto()
    FROZEN = auto()


class CommandStage:
    """Produces judged commands.

    Args:
        robot: kinematics.
        limits: limits in force.
        gate: the judge.
        period_s: nominal control period.
        speed_scale: 0.05 to 1.
    """

    def __init__(
        self,
        robot: RobotSpec,
        limits: SafetyLimits,
        gate: SafetyGate,
        period_s: float,
        speed_scale: float = 1.0,
    ) -> None:
        self._gate = gate
        self._period_ns = round(period_s * 1e9)
        self._chain, self._names = chain_of(robot), robot.joint_names
        self._ik = InverseKinematics(robot, max_iterations=_IK_ITERATIONS)
        self.player = ChunkPlayer(
            limits.nominal, PlayerSettings(gap_s=GAP_PERIODS * period_s), speed_scale
        )
        self._deceleration = limits.nominal.joint_fraction * np.array(
            [j.acceleration_rad_s2 for j in robot.joints]
        )
        self._source = Source.NOTHING
        self._q_anchor = np.zeros(robot.n_joints)
        self._brake: JointBrake | None = None
        self.move: JointMove | None = None
        self.sent: SentCommand | None = None
        self.sample: PlayerSample | None = None
        self.give_way: GiveWay | None = None
        """Draws the player's targets back where the arm pushes; None: a compliant arm."""

    # -------------------------------------------------------------------------------------- actions

    @property
    def source(self) -> Source:
        """What the target comes from."""
        return self._source

    @property
    def giving_way(self) -> str:
        """Which joints push too hard in this period; '' = none."""
        return '' if self.give_way is None else self.give_way.text(self._names)

    @property
    def q_target(self) -> FloatArray:
        """Joint angles (n,) of the last command, or of the anchor before the first one."""
        return self._q_anchor if self.sent is None else self.sent.q_rad

    def anchor(self, q_measured: FloatArray, now_ns: int) -> None:
        """Stand at the measured pose; earlier commands no longer count."""
        self._q_anchor = np.array(q_measured)
        self.player.reset(self._chain.links(self._q_anchor)[-1], None, now_ns)
        self._source, self.sent, self.sample = Source.PLAYER, None, None
        if self.give_way is not None:
            self.give_way.clear()

    def follow(self, chunk: ActionChunk, segment_rates: tuple[float, ...], now_ns: int) -> None:
        """Follow a chunk that the gate has accepted; only while :meth:`may_follow`."""
        self._to_player(now_ns)
        self.player.load(chunk, now_ns, segment_rates)

    def may_follow(self, now_ns: int) -> bool:
        """The player has the target, or could take it over at rest."""
        return self._source is Source.PLAYER or self.standstill(now_ns)

    def brake(self, now_ns: int) -> None:
        """Come to rest along the current motion."""
        if self._source is Source.PLAYER and self.give_way is not None and self.give_way.gives_way:
            # The player is elsewhere than the arm was told to be: brake what was really sent.
            self._start_joint_brake(now_ns)
        elif self._source is Source.PLAYER:
            self.player.hold()
        elif self._source is Source.MOVE:
            self._start_joint_brake(now_ns)

    def restart_time(self, now_ns: int) -> None:
        """The clock jumped: the last command becomes one of a period ago, and braking starts."""
        if self.sent is None:
            return
        self.sent = replace(self.sent, stamp_ns=now_ns - self._period_ns)
        self._start_joint_brake(now_ns)

    def go(self, move: JointMove, now_ns: int) -> None:
        """Follow a joint move from standstill."""
        self._to_player(now_ns)
        self.move, self._source = move, Source.MOVE

    def arrive(self, now_ns: int) -> None:
        """The joint move is over: stand at its end."""
        self._to_player(now_ns)
        self.move = None

    def drop(self) -> None:
        """Forget the target: no command until the next anchor."""
        if self.give_way is not None:
            self.give_way.rest()
        self._source, self.sent, self.sample, self.move = Source.NOTHING, None, None, None

    def standstill(self, now_ns: int) -> bool:
        """The target does not move."""
        if self._source is Source.PLAYER:
            return self.player.standstill
        if self._source is Source.JOINT_BRAKE:
            assert self._brake is not None
            return self._brake.finished(now_ns)
        if self._source is Source.MOVE:
            assert self.move is not None
            return self.move.finished(now_ns)
        return True

    # ------------------------------------------------------------------------------------- commands

    def produce(
        self, now_ns: int, q_measured: FloatArray | None, may_give_way: bool = True
    ) -> tuple[Command | None, Rejection | None]:
        """Compute, judge and record the command of this period.

        Args:
            now_ns: time of the command.
            q_measured: (n,) pull for the redundant direction, so that the joints that are judged
                stay those that the robot has; None = the rest pose.
            may_give_way: a chunk is followed. Otherwise nothing moves by itself, and an arm that
                gave way brakes from what was really sent.

        Returns:
            The command to send (None: nothing is to be sent) and why a better one was refused.
        """
        if self._source is Source.NOTHING:
            return None, None
        if self.sent is not None and now_ns <= self.sent.stamp_ns:
            return self._repeat(now_ns), None
        give_way = self.give_way
        if give_way is not None and (not may_give_way or self._source is not Source.PLAYER):
            if self._source is Source.PLAYER and give_way.gives_way:
                self._start_joint_brake(now_ns)
            give_way.rest()
        result, why = self._candidate(now_ns, q_measured), None
        if give_way is not None and self._source is Source.PLAYER and may_give_way:
            assert result is not None
            result = self._drawn_back(give_way, now_ns, result, q_measured)
        if result is not None:
            why = self._gate.check_command(now_ns, result, self.sent)
        if why is not None and self._source in (Source.PLAYER, Source.MOVE) and self.sent:
            self._start_joint_brake(now_ns)
            result = self._candidate(now_ns, q_measured)
            assert result is not None
            if self._gate.check_command(now_ns, result, self.sent) is None:
                return self._commit(now_ns, result), why
        if why is not None or result is None:
            self._source = Source.FROZEN
            return (None if self.sent is None else self._repeat(now_ns)), why
        return self._commit(now_ns, result), None

    def freeze(self, now_ns: int) -> Command | None:
        """Repeat the last command from now on, whatever happens; None if there is none."""
        if self.sent is None:
            return None
        self._source = Source.FROZEN
        return self._repeat(now_ns)

    def _candidate(self, now_ns: int, q_measured: FloatArray | None) -> IkResult | None:
        if self._source is Source.PLAYER:
            self.sample = self.player.sample(now_ns)
            result = self._ik.solve(self.sample.T_base_ee, self.q_target, q_measured)
            if result.converged:
                # Sent is what was asked for, not the solver's last micrometre: differenced twice at
                # 100 Hz that would be visible as acceleration.
                result.links[-1] = self.sample.T_base_ee
            return result
        if self._source is Source.MOVE:
            assert self.move is not None
            lost_ns = 0 if self.sent is None else now_ns - self.sent.stamp_ns - self._period_ns
            if lost_ns > (GAP_PERIODS - 1.0) * self._period_ns:  # a gap is not caught up
                self.move = replace(self.move, start_ns=self.move.start_ns + lost_ns)
            return self._exact(self.move.at(now_ns))
        if self._source is Source.JOINT_BRAKE:
            assert self._brake is not None
            return self._exact(self._brake.at(now_ns))
        return None

    def _drawn_back(
        self,
        give_way: GiveWay,
        now_ns: int,
        result: IkResult,
        q_measured: FloatArray | None,
    ) -> IkResult:
        """The player's target with the joints that push drawn back; judged as it will be sent."""
        sent = self.sent
        if not result.converged or sent is None or q_measured is None:
            return result
        last = sent.q_rad, sent.dq_rad_s
        q = give_way.update(now_ns, result.q_rad, last, q_measured)
        if not give_way.gives_way:
            return result
        # The way from the solver's pose to the asked one is kept, as it is without giving way.
        rest = np.linalg.solve(self._chain.links(result.q_rad)[-1], result.links[-1])
        drawn = self._exact(q)
        drawn.links[-1] = drawn.links[-1] @ rest
        if self._gate.check_pose(drawn) is None:
            return drawn
        # Drawing back one joint alone can lower the fingers: at the edge of the box the arm stands.
        give_way.stand(result.q_rad, sent.q_rad)
        standing = self._exact(sent.q_rad)
        standing.links[-1] = sent.T_base_ee
        return standing

    def _exact(self, q: FloatArray) -> IkResult:
        return IkResult(q, True, 0.0, 0.0, 0, self._chain.links(q))

    def _commit(self, now_ns: int, result: IkResult) -> Command:
        last = self.sent
        dt = 0.0 if last is None else (now_ns - last.stamp_ns) * 1e-9
        dq = np.zeros_like(result.q_rad)
        if last is not None:
            dq = (result.q_rad - last.q_rad) / min(dt, GAP_PERIODS * 1e-9 * self._period_ns)
        self.sent = SentCommand(now_ns, result.links[-1], result.q_rad, dq, dt)
        return self._command(now_ns)

    def _repeat(self, now_ns: int) -> Command:
        """Send the last target again, now with no speed."""
        last = self.sent
        assert last is not None
        if now_ns > last.stamp_ns:
            dt = (now_ns - last.stamp_ns) * 1e-9
            zero = np.zeros_like(last.dq_rad_s)
            self.sent = SentCommand(now_ns, last.T_base_ee, last.q_rad, zero, dt)
        return self._command(now_ns)

    def _command(self, now_ns: int) -> Command:
        assert self.sent is not None
        following = self.sample is not None and self.sample.following
        return Command(
            stamp_ns=now_ns,
            T_base_ee=self.sent.T_base_ee,
            q_rad=self.sent.q_rad,
            gripper=self.player.gripper,
            holding=not (
                self._source is Source.MOVE or (self._source is Source.PLAYER and following)
            ),
        )

    def _start_joint_brake(self, now_ns: int) -> None:
        sent = self.sent
        if sent is None:
            self._source = Source.FROZEN
            return
        # After a gap the arm has been waiting at the last command, and lost speed meanwhile:
        # neither is made up for.
        start_ns = max(sent.stamp_ns, now_ns - self._period_ns)
        waited_s = (start_ns - sent.stamp_ns) * 1e-9
        speed = abs(sent.dq_rad_s)
        left = np.maximum(speed - waited_s * self._deceleration, 0.0)
        share = float((left / np.maximum(speed, 1e-9)).min(where=speed > 0.0, initial=1.0))
        dq = share * sent.dq_rad_s
        self._brake = JointBrake(sent.q_rad, dq, self._deceleration, start_ns)
        self._source = Source.JOINT_BRAKE

    def _to_player(self, now_ns: int) -> None:
        """Hand the target, at rest, back to the player."""
        if self._source is Source.PLAYER or self.sent is None:
            return
        self.player.settle(self.sent.T_base_ee, now_ns)
        self._source = Source.PLAYER
        if self.give_way is not None:
            self.give_way.clear()
