"""One robot, one policy, one executor on simulated time: what the processes do, without processes.

Nothing here decides about motion: observations come from the ObservationBuffer, chunks pass the
SafetyGate and the ChunkPlayer inside the Executor, commands go to the simulated robot's own
controller. Only the middleware is missing, and time passes exactly as fast as the computer can.
"""

import secrets
import time
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.reasons import Reason
from spear_ros.core.types import EXTERNAL, ActionChunk, CameraFrame, ImageArray
from spear_ros.policies.base import Policy
from spear_ros.runtime.effort_guard import (
    WIDOWX_EFFORT_LIMITS_MA,
    WIDOWX_EFFORT_TIME_S,
    EffortGuard,
)
from spear_ros.runtime.executor import Executor
from spear_ros.runtime.executor_types import Command, DriverState, ExecutorSettings, PolicyHealth
from spear_ros.runtime.give_way import GIVE_WAY_SHARE, GiveWaySettings
from spear_ros.runtime.observation_buffer import ObservationBuffer
from spear_ros.runtime.observation_config import InputProblem, ObservationConfig
from spear_ros.runtime.safety import SafetyLimits
from spear_ros.runtime.state_machine import State
from spear_ros.simulation.world import World

SENSOR_PERIOD_NS = 10_000_000
"""Joint states at 100 Hz, as both drivers publish them."""
STATUS_PERIOD_NS = 100_000_000
STEP_NS = 2_000_000
START_NS = 1_000_000_000_000
"""Simulated clocks start well away from zero, as real ones do."""
WIDOWX_PROFILE_MS = (50.0, 20.0)
"""``set_operating_modes(group, arm, position, time, 50, 20)`` for commands at 25 Hz."""
WIDOWX_GIVES_WAY = GiveWaySettings.below(WIDOWX_EFFORT_LIMITS_MA, GIVE_WAY_SHARE)
PERSON_WAITS_S = 30.0
"""How long an operator would wait for arm or home in simulated time."""


@dataclass(slots=True)
class ChunkStats:
    """Counts of one episode."""

    chunks: int = 0
    inference_ms: list[float] | None = None
    problem: str = ''
    """Last reason why there was no observation."""


class Lockstep:
    """The system around a world, stepped by hand.

    Args:
        world: The simulated robot.
        policy: Any policy; if it looks at cameras they are rendered at each inference.
        limits: Safety limits in force.
        latency_s: Time between an observation and the arrival of its chunk.
        settings: Of the executor.
        guard_effort: Stop a WidowX that pushes too hard, as its driver does.
        gives_way: Let a WidowX give way where it pushes, as its executor does.
    """

    def __init__(
        self,
        world: World,
        policy: Policy,
        limits: SafetyLimits,
        *,
        latency_s: float = 0.1,
        settings: ExecutorSettings | None = None,
        guard_effort: bool = True,
        gives_way: bool = True,
    ) -> None:
        if not 0.0 <= latency_s <= 1.0:
            raise UserError(f'latency_s = {latency_s} must lie between 0 and 1 s.')
        self.world, self.policy = world, policy
        self.info = policy.describe()
        settings = settings or ExecutorSettings()
        if gives_way and settings.give_way is None and world.robot.family == 'widowx':
            settings = replace(settings, give_way=WIDOWX_GIVES_WAY)
        self.executor = Executor(world.robot, limits, self.now_ns, settings, self.now_ns)
        self.stats = ChunkStats()
        self.rendered: dict[str, ImageArray] = {}
        """The newest picture of each camera that the policy looks at."""
        self._latency_ns = round(latency_s * 1e9)
        self._period_ns = round(1e9 / world.robot.control_rate_hz)
        self._infer_ns = round(self.info.execute_steps * self.info.spec.step_s * 1e9)
        self._session = secrets.token_hex(4)
        self._instruction_id = ''
        self._sequence = 0
        self._arriving: deque[tuple[int, ActionChunk]] = deque()
        self._due = {'status': 0, 'tick': 0, 'infer': 0}
        self.buffer = ObservationBuffer(
            world.robot,
            ObservationConfig(
                cameras=(EXTERNAL, *(c for c in self.info.cameras if c != EXTERNAL)),
                needs_object_poses=self.info.privileged,
            ),
        )
        self._effort: EffortGuard | None = None
        """The WidowX driver's; a Franka watches its own contacts."""
        if world.robot.family == 'widowx':
            if guard_effort:
                self._effort = EffortGuard(WIDOWX_EFFORT_LIMITS_MA, WIDOWX_EFFORT_TIME_S)
            world.set_joint_targets(world.q_rad, WIDOWX_PROFILE_MS)

    def now_ns(self) -> int:
        """Simulated time on the clock that every component is given."""
        return START_NS + self.world.time_ns

    # -- the operator ----------------------------------------------------------------------------

    def arm_and_home(self) -> str:
        """Reset a fault, arm, drive home; return '' or why it did not work."""
        self._forget_effort()
        if self.executor.snapshot().state == State.FAULT:
            self.executor.reset()
        self.run(0.3)  # let the streams' statistics fill, as a person would
        answer = self.executor.arm()
        if not answer.accepted:  # an arm that still sways: a person waits and calls again
            self.run(1.0)
            answer = self.executor.arm()
        if not answer.accepted:
            return f'arm refused: {answer.text}'
        self.run(0.1)
        answer = self.executor.home()
        if not answer.accepted:
            return f'home refused: {answer.text}'
        deadline = self.now_ns() + round(PERSON_WAITS_S * 1e9)
        while self.now_ns() < deadline:
            self.run(0.05)
            snapshot = self.executor.snapshot()
            if snapshot.state == State.ARMED:
                return ''
            if snapshot.state != State.HOMING:
                return f'home ended in {snapshot.state.name}: {snapshot.text}'
        return f'home took more than {PERSON_WAITS_S:.0f} s'

    def put_right(self) -> None:
        """What a person does whose arm was bent out of its limits in a collision: by hand, home."""
        self.world.reset_robot()
        if self.world.robot.family == 'widowx':
            self.world.set_joint_targets(self.world.q_rad, WIDOWX_PROFILE_MS)
        self.run(1.0)  # the jump of the joints is news for half a second

    def set_instruction(self, text: str) -> None:
        """Tell the policy what to do; empty = nothing."""
        self._instruction_id = secrets.token_hex(4) if text else ''
        self.buffer.set_instruction(text, self._instruction_id)
        self.policy.reset()
        self._arriving.clear()
        self.stats = ChunkStats(inference_ms=[])
        self._due['infer'] = self.now_ns()

    def disarm(self) -> None:
        """End the episode: brake, then send nothing."""
        self.set_instruction('')
        self.executor.disarm()
        self.run(0.5)

    def _forget_effort(self) -> None:
        """As the driver does; somebody has freed the arm."""
        if self._effort is not None:
            self._effort = EffortGuard(self._effort.limits_ma, self._effort.time_s)
            self._tell_status(self.now_ns())

    # -- time ------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let simulated time pass."""
        end = self.now_ns() + round(seconds * 1e9)
        while self.now_ns() < end:
            self.step()

    def step(self) -> None:
        """One sensor period: sensors, inference, executor, robot."""
        now = self.now_ns()
        self._sense(now)
        if self._is_due('status', now, STATUS_PERIOD_NS):
            self._tell_status(now)
        if self._instruction_id and self._is_due('infer', now, self._infer_ns):
            self._infer(now)
        while self._arriving and self._arriving[0][0] <= now:
            self.executor.on_chunk(self._arriving.popleft()[1], now)
        if self._is_due('tick', now, self._period_ns):
            command = self.executor.tick()
            if command is not None:
                self._obey(command)
        self.world.step(SENSOR_PERIOD_NS // STEP_NS)

    def _is_due(self, what: str, now: int, period: int) -> bool:
        if now < self._due[what]:
            return False
        # Missed periods (time stood still for this one) are not made up for.
        self._due[what] = max(self._due[what] + period, now + 1)
        return True

    def _sense(self, now: int) -> None:
        world = self.world
        q = world.q_rad
        self.executor.on_joints(now, now, world.robot.joint_names, q)
        self.executor.on_efforts(now, world.effort)
        self.executor.on_gripper(now, now, world.gripper_opening)
        # Between episodes somebody frees the arm by hand; here it drives home unguarded.
        if self._effort is not None and self._instruction_id:
            self._effort.update(world.robot.joint_names, world.effort.tolist(), now * 1e-9)
        self.buffer.add_joints(now, now, q)
        self.buffer.add_gripper(now, now, world.gripper_opening)

    def _tell_status(self, now: int) -> None:
        spec = self.info.spec
        trouble = self._effort.tripped if self._effort is not None else ''
        reason = Reason.MOTOR_ERROR if trouble else Reason.NONE
        self.executor.on_driver(DriverState(received_ns=now, reason=reason, text=trouble))
        self.executor.on_publisher_count(1)
        self.executor.on_policy_status(
            PolicyHealth(
                stamp_ns=now,
                received_ns=now,
                active=True,
                policy_session=self._session,
                checkpoint_id=self.info.checkpoint_id,
                embodiment=spec.embodiment,
                ee_frame=spec.ee_frame,
                step_s=spec.step_s,
                horizon=spec.horizon,
                instruction_id=self._instruction_id,
            )
        )

    def _infer(self, now: int) -> None:
        """Take pictures, build the observation, send the chunk on its way."""
        self._take_pictures(now)
        if self.info.privileged:
            self.buffer.add_object_poses(now, now, self.world.object_poses())
        observation = self.buffer.build(now)
        if isinstance(observation, InputProblem):
            self.stats.problem = observation.text
            return
        started = time.perf_counter()
        chunk = self.policy.infer(observation)
        assert self.stats.inference_ms is not None
        self.stats.inference_ms.append(1e3 * (time.perf_counter() - started))
        self.stats.chunks += 1
        self._sequence += 1
        chunk = replace(
            chunk,
            instruction_id=observation.instruction_id,
            policy_session=self._session,
            sequence=self._sequence,
        )
        self._arriving.append((now + self._latency_ns, chunk))

    def _take_pictures(self, now: int) -> None:
        for camera in self.buffer.config.cameras:
            if camera in self.info.cameras:
                image = self.rendered[camera] = self.world.render(camera)
            else:
                # A policy that looks at nothing still runs on the external camera's stamps; four
                # bytes that count up stand for its picture.
                image = np.frombuffer(np.uint32(self._sequence).tobytes() * 3, np.uint8)
                image = image.reshape(1, 4, 3)
            self.buffer.add_image(camera, CameraFrame(image=image, stamp_ns=now, received_ns=now))

    def _obey(self, command: Command) -> None:
        """Hand a command to the robot's controller, as its driver adapter does."""
        if self.world.robot.family == 'franka':
            self.world.set_target_pose(command.T_base_ee)
        else:
            self.world.set_joint_targets(command.q_rad)
        if command.gripper is not None:
            self.world.set_gripper(command.gripper)
