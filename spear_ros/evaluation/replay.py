"""Offline replay: a recording through the live decode, ObservationBuffer and policy, in lockstep.

Bag time stands for the clock. On a 5 Hz grid, which starts at the first external image, everything
received until then has been fed, an observation is built and the policy asked, exactly as the live
node does; only the waiting is left out. The result depends on the recording, the policy, the seed
and the settings, and on nothing else.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.reasons import Reason
from spear_ros.core.types import (
    EXTERNAL,
    WRIST,
    ActionChunk,
    CameraFrame,
    FloatArray,
    ImageArray,
    Observation,
)
from spear_ros.data.bags import BagReader, BagSample
from spear_ros.data.topic_map import ARM, COMMAND, GRIPPER, INSTRUCTION
from spear_ros.evaluation.faults import FaultInjector, FaultPlan
from spear_ros.policies.base import Policy
from spear_ros.policies.recorded import MotionTrack, RecordedMotion
from spear_ros.robots import kinematics
from spear_ros.runtime.decode import check_instruction
from spear_ros.runtime.observation_buffer import (
    InputProblem,
    ObservationBuffer,
    ObservationConfig,
)

Progress = Callable[[int, int], None]

_STALE = {
    EXTERNAL: Reason.CAMERA_STALE,
    WRIST: Reason.CAMERA_STALE,
    ARM: Reason.JOINTS_STALE,
    GRIPPER: Reason.GRIPPER_STALE,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplaySettings:
    """What may be varied about a replay."""

    latency_s: float = 0.0
    """Fixed time that an inference takes on bag time; grid points while it runs are skipped."""
    rate_hz: float = 5.0
    limit: int | None = None
    """Stop after this many grid points."""
    faults: FaultPlan = field(default_factory=FaultPlan)

    def __post_init__(self) -> None:
        if not 0 <= self.latency_s <= 10:
            raise UserError(f'latency of {self.latency_s * 1e3:g} ms must lie between 0 and 10000.')
        if self.limit is not None and self.limit < 1:
            raise UserError(f'limit = {self.limit} must be at least 1.')


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayStep:
    """What happened at one point of the grid: a chunk, or a problem."""

    now_ns: int
    ages_s: dict[str, float]
    """Stream -> age at ``now_ns``; -1 = nothing received."""
    chunk: ActionChunk | None = None
    problem: InputProblem | None = None
    inference_ms: float = 0.0
    """Wall time of ``policy.infer``; the only thing here that differs between two runs."""
    cameras: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayResult:
    """A finished replay."""

    steps: list[ReplayStep]
    skipped_busy: int
    """Grid points that fell into the latency of an earlier inference."""
    refused: dict[str, tuple[int, str]]
    """Stream -> number of messages that could not be used, and the newest reason."""
    late: dict[str, int]
    """Stream -> samples that came after newer ones."""
    fault_hits: dict[str, int]
    wrist_left_out: int
    instruction: str

    @property
    def chunks(self) -> list[ActionChunk]:
        """The chunks in order."""
        return [s.chunk for s in self.steps if s.chunk is not None]

    def first_problem(self) -> InputProblem | None:
        """The most frequent problem, the earliest among equals."""
        problems = [s.problem for s in self.steps if s.problem is not None]
        if not problems:
            return None
        counts = {p.reason: sum(q.reason == p.reason for q in problems) for p in problems}
        return max(problems, key=lambda p: counts[p.reason])


def check_policy(policy: Policy, reader: BagReader) -> None:
    """Refuse a policy that was trained on other frames than the recording's robot has.

    Raises:
        UserError: names the field with both values.
    """
    spec, robot = policy.describe().spec, reader.robot
    for name in ('embodiment', 'base_frame', 'ee_frame'):
        if getattr(spec, name) != getattr(robot, name):
            raise UserError(
                f'{name} is "{getattr(spec, name)}" in policy {policy.describe().name} and '
                f'"{getattr(robot, name)}" in the recording ({robot.name}); choose the checkpoint '
                'or the map that fits.'
            )


class Replay:
    """Runs one policy over one recording.

    Args:
        reader: The recording.
        policy: Loaded; its frames must be the recording's (:func:`check_policy`).
        settings: Latency, faults, limits.
    """

    def __init__(self, reader: BagReader, policy: Policy, settings: ReplaySettings) -> None:
        self._reader, self._policy, self._settings = reader, policy, settings
        topic_map = reader.map
        self.config = ObservationConfig(
            cameras=(EXTERNAL,) if topic_map.cameras.wrist is None else (EXTERNAL, WRIST),
            topics=topic_map.topics(),
            image_max_age_s=topic_map.limits.image_max_age_s,
            arm_max_age_s=topic_map.limits.arm_max_age_s,
            gripper_max_age_s=topic_map.limits.gripper_max_age_s,
        )
        self._buffer = ObservationBuffer(reader.robot, self.config)
        self._steps: list[ReplayStep] = []
        self._instruction = ''
        self._refused: dict[str, tuple[int, str]] = {}
        self._busy_until_ns = 0
        self._skipped_busy = 0

    def run(self, progress: Progress | None = None) -> ReplayResult:
        """Replay the recording to its end (or the limit).

        Raises:
            UserError: the map's instruction text is no instruction.
        """
        if self._reader.map.instruction_topic is None:
            self._set_instruction(check_instruction(self._reader.map.instruction))
        injector = FaultInjector(self._settings.faults, self._reader.start_ns)
        streams = set(self._reader.map.topics()) - {COMMAND}
        period_ns = round(1e9 / self._settings.rate_hz)
        next_tick_ns: int | None = None
        last_ns = 0
        for sample in injector.apply(self._reader.samples(streams, progress)):
            while next_tick_ns is not None and sample.received_ns > next_tick_ns:
                if self._finished():
                    return self._result(injector)
                self._tick(next_tick_ns)
                next_tick_ns += period_ns
            self._feed(sample)
            last_ns = sample.received_ns
            if next_tick_ns is None and sample.stream == EXTERNAL:
                next_tick_ns = sample.received_ns
        while next_tick_ns is not None and next_tick_ns <= last_ns and not self._finished():
            self._tick(next_tick_ns)
            next_tick_ns += period_ns
        return self._result(injector)

    def _finished(self) -> bool:
        limit = self._settings.limit
        return limit is not None and len(self._steps) + self._skipped_busy >= limit

    def _set_instruction(self, text: str) -> None:
        if text != self._instruction:
            self._instruction = text
            # Random live; here it must not differ between two runs.
            self._buffer.set_instruction(text, hashlib.sha256(text.encode()).hexdigest()[:8])
            self._policy.reset()

    def _feed(self, sample: BagSample) -> None:
        stream, stamp_ns, received_ns = sample.stream, sample.stamp_ns, sample.received_ns
        value = sample.value
        if value is None:
            if stream == INSTRUCTION:
                self._refused[stream] = (self._refused.get(stream, (0, ''))[0] + 1, sample.problem)
            else:
                reason = sample.reason if sample.reason != Reason.NONE else _STALE[stream]
                self._buffer.refuse(stream, received_ns, reason, sample.problem)
        elif stream == INSTRUCTION:
            self._set_instruction(str(value))
        elif stream == GRIPPER:
            assert isinstance(value, float)
            self._buffer.add_gripper(stamp_ns, received_ns, value)
        elif stream == ARM:
            joints = self._reader.map.arm.kind == 'joints'
            add = self._buffer.add_joints if joints else self._buffer.add_pose
            add(stamp_ns, received_ns, cast(FloatArray, value))
        else:
            image = cast(ImageArray, value)
            frame = CameraFrame(image=image, stamp_ns=stamp_ns, received_ns=received_ns)
            self._buffer.add_image(stream, frame)

    def _tick(self, now_ns: int) -> None:
        if now_ns < self._busy_until_ns:
            self._skipped_busy += 1
            return
        observation = self._buffer.build(now_ns)
        ages_s = {s.name: s.age_s for s in self._buffer.stream_status(now_ns)}
        if isinstance(observation, InputProblem):
            self._steps.append(ReplayStep(now_ns=now_ns, ages_s=ages_s, problem=observation))
            return
        self._steps.append(self._infer(now_ns, ages_s, observation))

    def _infer(self, now_ns: int, ages_s: dict[str, float], observation: Observation) -> ReplayStep:
        started = time.perf_counter()
        try:
            chunk = self._policy.infer(observation)
        except UserError as error:
            problem = InputProblem(reason=Reason.POLICY_NOT_READY, text=str(error))
            return ReplayStep(now_ns=now_ns, ages_s=ages_s, problem=problem)
        inference_ms = (time.perf_counter() - started) * 1e3
        self._busy_until_ns = now_ns + round(self._settings.latency_s * 1e9)
        return ReplayStep(
            now_ns=now_ns,
            ages_s=ages_s,
            chunk=chunk,
            inference_ms=inference_ms,
            cameras=tuple(observation.images),
        )

    def _result(self, injector: FaultInjector) -> ReplayResult:
        return ReplayResult(
            steps=self._steps,
            skipped_busy=self._skipped_busy,
            refused=self._refused | self._buffer.refusals(),
            late=self._buffer.late_samples(),
            fault_hits=dict(injector.hits),
            wrist_left_out=self._buffer.wrist_left_out,
            instruction=self._instruction,
        )


def read_motion(reader: BagReader) -> RecordedMotion:
    """Collect the recording's motion as plain arrays; images are not decoded.

    Raises:
        UserError: not one usable arm or gripper message.
    """
    stamps: dict[str, list[int]] = {ARM: [], GRIPPER: [], COMMAND: []}
    values: dict[str, list] = {ARM: [], GRIPPER: [], COMMAND: []}
    first_problem: dict[str, str] = {}
    for sample in reader.samples(set(reader.map.topics()) & set(stamps)):
        if sample.value is None:
            first_problem.setdefault(sample.stream, sample.problem)
            continue
        stamps[sample.stream].append(sample.stamp_ns)
        values[sample.stream].append(sample.value)
    for stream in (ARM, GRIPPER):
        if not stamps[stream]:
            why = first_problem.get(stream, 'no message could be read')
            raise UserError(f'{reader.path}: {reader.map.topics()[stream]} ({stream}): {why}')
    openings = _sorted(stamps[GRIPPER], values[GRIPPER])
    reached = _track(reader, reader.map.arm.kind, _sorted(stamps[ARM], values[ARM]), openings)
    commanded = None
    if reader.map.command is not None and stamps[COMMAND]:
        samples = _sorted(stamps[COMMAND], values[COMMAND])
        commanded = _track(reader, reader.map.command.kind, samples, openings)
    return RecordedMotion(reached=reached, commanded=commanded)


def _sorted(stamps: list[int], values: list) -> tuple[np.ndarray, FloatArray]:
    """Sort by stamp; of equal stamps the first stays, as in the buffer."""
    unique, index = np.unique(np.array(stamps, np.int64), return_index=True)
    return unique, np.array([values[i] for i in index], float)


def _track(
    reader: BagReader,
    kind: str,
    samples: tuple[np.ndarray, FloatArray],
    openings: tuple[np.ndarray, FloatArray],
) -> MotionTrack:
    stamps_ns, values = samples
    if kind == 'joints':
        values = np.stack([kinematics.forward(reader.robot, q) for q in values])
    index = np.clip(np.searchsorted(openings[0], stamps_ns, 'right') - 1, 0, None)
    return MotionTrack(stamps_ns=stamps_ns, T_base_ee=values, gripper=openings[1][index])
