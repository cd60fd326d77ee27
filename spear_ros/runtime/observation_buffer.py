"""Aligns cameras, arm and gripper on one instant; the same class live, in replay and conversion.

The instant is ``t_obs``, the stamp of the newest external image. The wrist image is the newest one
not after it (within a window), proprioception is interpolated at it. Whatever is stale, frozen or
doubtful gives an :class:`InputProblem` instead of an observation: a reason code and one sentence.

Clocks are injected: every call carries the time, so that nothing here differs between a live node
(node clock) and a recording (bag time). Images are passed by reference and never copied.
"""

import threading
from collections.abc import Mapping

import numpy as np

from spear_ros.core import geometry
from spear_ros.core.reasons import Reason
from spear_ros.core.types import (
    EXTERNAL,
    WRIST,
    CameraFrame,
    FloatArray,
    Observation,
    RobotState,
)
from spear_ros.robots import kinematics
from spear_ros.robots.spec import RobotSpec
from spear_ros.runtime.observation_config import (
    ARM,
    GRIPPER,
    OBJECT_POSES,
    InputProblem,
    ObservationConfig,
)
from spear_ros.runtime.streams import CameraStream, Stream, StreamHealth, StreamLimits

__all__ = [
    'ARM',
    'GRIPPER',
    'OBJECT_POSES',
    'InputProblem',
    'ObservationBuffer',
    'ObservationConfig',
    'StreamHealth',
]

JOINT_MARGIN_RAD = 0.1
"""A reading this far outside the joint limits is corrupt (a failed bus read gives -pi, see
doc/units_and_frames.md); calibration offsets stay far below it."""
CLOCK_BACK_NS = 100_000_000
"""Receipts of one stream may swap by milliseconds; more is a clock that was set back."""


class ObservationBuffer:
    """Collects samples from any thread and builds observations from them.

    Args:
        robot: Kinematics and joint limits; its embodiment is written into the observations.
        config: Inputs and limits.
    """

    def __init__(self, robot: RobotSpec, config: ObservationConfig | None = None) -> None:
        self.robot = robot
        self.config = config = config or ObservationConfig()
        self.clock_resets = 0
        """How often a clock that ran backwards emptied the buffer."""
        self.wrist_left_out = 0
        """Observations built without a wrist image although the camera is wired up."""
        self._lock = threading.Lock()
        self._built_ns: int | None = None
        self._instruction = ('', '')
        self._cameras: dict[str, CameraStream] = {
            name: CameraStream(name, *self._limits(name, config.image_max_age_s, 32))
            for name in config.cameras
        }
        self._arm: Stream[FloatArray] = Stream(ARM, *self._limits(ARM, config.arm_max_age_s, 2048))
        self._gripper: Stream[float] = Stream(
            GRIPPER, *self._limits(GRIPPER, config.gripper_max_age_s, 2048)
        )
        self._objects: Stream[Mapping[str, FloatArray]] = Stream(
            OBJECT_POSES, *self._limits(OBJECT_POSES, config.object_poses_max_age_s, 256)
        )

    def _limits(self, name: str, max_age_s: float, samples: int) -> tuple[str, StreamLimits]:
        # Images are big: keep no more than a late wrist frame can need.
        image_history_s = self.config.image_max_age_s + self.config.wrist_window_s
        history_s = image_history_s if name in self.config.cameras else self.config.history_s
        limits = StreamLimits(
            max_age_s=max_age_s,
            clock_skew_s=self.config.clock_skew_s,
            history_s=history_s,
            max_samples=samples,
        )
        return self.config.topics.get(name, ''), limits

    # -- inputs ------------------------------------------------------------------------------

    def set_instruction(self, text: str, instruction_id: str = '') -> None:
        """Set what the observations carry from now on; an empty text means none."""
        with self._lock:
            self._instruction = (text, instruction_id)

    def add_image(self, camera: str, frame: CameraFrame) -> None:
        """Store an image of ``external`` or ``wrist``; the array must not be changed afterwards."""
        assert camera in self._cameras, f'camera {camera} is not in the configuration'
        with self._lock:
            self._receive(self._cameras[camera], frame.received_ns)
            self._cameras[camera].add_frame(frame)

    def add_joints(self, stamp_ns: int, received_ns: int, q_rad: FloatArray) -> None:
        """Store joint angles (n,) in the order of the RobotSpec, in rad."""
        q_rad = np.asarray(q_rad, float)
        assert q_rad.shape == (len(self.robot.joints),), f'{q_rad.shape} joint angles'
        problem = self._check_joints(q_rad)
        self._add_arm(stamp_ns, received_ns, q_rad, problem)

    def add_pose(self, stamp_ns: int, received_ns: int, T_base_ee: FloatArray) -> None:
        """Store an end-effector pose (4, 4) where no joint angles are recorded."""
        T_base_ee = np.asarray(T_base_ee, float)
        assert T_base_ee.shape == (4, 4), f'pose of shape {T_base_ee.shape}'
        problem = None
        if not np.isfinite(T_base_ee).all():
            problem = (Reason.JOINTS_NOT_FINITE, 'pose is not finite; check the driver.')
        self._add_arm(stamp_ns, received_ns, T_base_ee, problem)

    def _add_arm(
        self, stamp_ns: int, received_ns: int, value: FloatArray, problem: tuple[Reason, str] | None
    ) -> None:
        with self._lock:
            self._receive(self._arm, received_ns)
            if problem is not None:
                self._arm.refuse(received_ns, *problem)
                return
            kept = self._arm.values
            assert not kept or kept[-1].shape == value.shape, 'joints and poses must not be mixed'
            self._arm.add(stamp_ns, received_ns, value)

    def add_gripper(self, stamp_ns: int, received_ns: int, opening: float) -> None:
        """Store the gripper's opening: 1 = open, 0 = closed."""
        with self._lock:
            self._receive(self._gripper, received_ns)
            if np.isfinite(opening):
                self._gripper.add(stamp_ns, received_ns, float(opening))
            else:
                self._gripper.refuse(
                    received_ns, Reason.GRIPPER_STALE, 'opening is not finite; check the driver.'
                )

    def add_object_poses(
        self, stamp_ns: int, received_ns: int, poses: Mapping[str, FloatArray]
    ) -> None:
        """Store object name -> (4, 4) pose in the base frame (simulation only)."""
        with self._lock:
            self._receive(self._objects, received_ns)
            self._objects.add(stamp_ns, received_ns, dict(poses))

    def refuse(self, stream: str, received_ns: int, reason: Reason, text: str) -> None:
        """Note that a message of ``stream`` could not be decoded, and why."""
        with self._lock:
            self._receive(self._stream(stream), received_ns)
            self._stream(stream).refuse(received_ns, reason, text)

    def clear(self) -> None:
        """Forget all samples; the instruction stays."""
        with self._lock:
            self._clear()

    # -- output ------------------------------------------------------------------------------

    def build(self, now_ns: int) -> Observation | InputProblem:
        """Return the observation at the newest external image, or why there is none.

        Costs well under a millisecond: no image is copied or looked at.
        """
        with self._lock:
            self._check_clock(now_ns)
            problem = self._first_problem(now_ns)
            if problem is not None:
                return problem
            external = self._cameras[EXTERNAL]
            t_obs_ns = external.stamps[-1]
            state = self._state_at(t_obs_ns)
            if isinstance(state, InputProblem):
                return state
            images = {EXTERNAL: external.values[-1]}
            wrist = self._wrist_at(t_obs_ns)
            if wrist is not None:
                images[WRIST] = wrist
            elif WRIST in self._cameras:
                self.wrist_left_out += 1
            return Observation(
                t_obs_ns=t_obs_ns,
                embodiment=self.robot.embodiment,
                images=images,
                state=state,
                instruction=self._instruction[0],
                instruction_id=self._instruction[1],
                privileged=self._objects.values[-1] if self._objects.values else {},
            )

    def stream_status(self, now_ns: int) -> list[StreamHealth]:
        """Health of every stream that is wired up, for policy_status and the doctor."""
        with self._lock:
            return [self._health(s, now_ns) for s in self._wired()]

    def refusals(self) -> dict[str, tuple[int, str]]:
        """Stream -> number of unusable messages so far, if any, and the newest reason."""
        with self._lock:
            return {s.name: (s.refused, s.last_refusal) for s in self._all() if s.refused}

    def late_samples(self) -> dict[str, int]:
        """Stream -> number of samples that came after newer ones, where there are any."""
        with self._lock:
            return {s.name: s.late for s in self._all() if s.late}

    # -- inside ------------------------------------------------------------------------------

    def _all(self) -> list[Stream]:
        return [*self._cameras.values(), self._arm, self._gripper, self._objects]

    def _wired(self) -> list[Stream]:
        return [s for s in self._all() if s is not self._objects or self.config.needs_object_poses]

    def _stream(self, name: str) -> Stream:
        return next(stream for stream in self._all() if stream.name == name)

    def _clear(self) -> None:
        for stream in self._all():
            stream.clear()
        self._built_ns = None

    def _receive(self, stream: Stream, received_ns: int) -> None:
        """Notice a clock that was set back (a simulation or a bag that starts over).

        Judged per stream: the node decodes one stream's queue after another, so that receipts of
        different streams do not come in order.
        """
        last = stream.last_received_ns
        if last is not None and received_ns < last - CLOCK_BACK_NS:
            self._clear()
            self.clock_resets += 1

    def _check_clock(self, now_ns: int) -> None:
        """The same for the time of a build, which must not lie before what was received."""
        seen = [s.last_received_ns for s in self._all() if s.last_received_ns is not None]
        if self._built_ns is not None:
            seen.append(self._built_ns)
        if seen and now_ns < max(seen) - CLOCK_BACK_NS:
            self._clear()
            self.clock_resets += 1
        self._built_ns = now_ns

    def _check_joints(self, q_rad: FloatArray) -> tuple[Reason, str] | None:
        for joint, value in zip(self.robot.joints, q_rad, strict=True):
            if not np.isfinite(value):
                return (
                    Reason.JOINTS_NOT_FINITE,
                    f'position of joint {joint.name} is not finite; check the driver.',
                )
            outside = max(joint.lower_rad - value, value - joint.upper_rad)
            if outside > JOINT_MARGIN_RAD:
                return (
                    Reason.JOINTS_LIMIT,
                    f'joint {joint.name} reads {value:.3f} rad, outside '
                    f'{joint.lower_rad:.3f} .. {joint.upper_rad:.3f}; a corrupt reading or the '
                    'wrong robot model.',
                )
        return None

    def _first_problem(self, now_ns: int) -> InputProblem | None:
        if not self._instruction[0]:
            return InputProblem(
                reason=Reason.POLICY_NOT_READY,
                text='no instruction yet; call /spear/policy_node/set_instruction.',
            )
        for stream, reason in self._needed():
            problem = self._judge(stream, reason, now_ns)
            if problem is not None:
                return problem
        return None

    def _judge(self, stream: Stream, reason: Reason, now_ns: int) -> InputProblem | None:
        """Tell whether a stream can be used; ``reason`` is its code for stale."""
        camera = isinstance(stream, CameraStream)
        bad = stream.bad[0] if stream.bad is not None else None
        # One unreadable image is not the end while the one before it is fresh.
        if bad is not None and (not camera or bad == Reason.CLOCK_SKEW):
            return self._problem(bad if bad != Reason.NONE else reason, stream, now_ns)
        if stream.stale(now_ns):
            return self._problem(reason, stream, now_ns)
        if isinstance(stream, CameraStream) and stream.identical >= self.config.frozen_frames:
            return InputProblem(
                reason=Reason.CAMERA_FROZEN, text=stream.frozen_text(), stream=stream.name
            )
        return None

    def _needed(self) -> list[tuple[Stream, Reason]]:
        needed: list[tuple[Stream, Reason]] = [(self._cameras[EXTERNAL], Reason.CAMERA_STALE)]
        wrist = self._cameras.get(WRIST)
        if wrist is not None and wrist.ever and self.config.wrist_lost == 'hold':
            needed.append((wrist, Reason.CAMERA_STALE))
        needed += [(self._arm, Reason.JOINTS_STALE), (self._gripper, Reason.GRIPPER_STALE)]
        if self.config.needs_object_poses:
            needed.append((self._objects, Reason.POLICY_NOT_READY))
        return needed

    def _problem(self, reason: Reason, stream: Stream, now_ns: int) -> InputProblem:
        return InputProblem(reason=reason, text=stream.problem(now_ns), stream=stream.name)

    def _wrist_at(self, t_obs_ns: int) -> CameraFrame | None:
        wrist = self._cameras.get(WRIST)
        index = wrist.at_or_before(t_obs_ns) if wrist is not None else None
        if wrist is None or index is None or wrist.identical >= self.config.frozen_frames:
            return None
        close = t_obs_ns - wrist.stamps[index] <= round(self.config.wrist_window_s * 1e9)
        return wrist.values[index] if close else None

    def _state_at(self, t_obs_ns: int) -> RobotState | InputProblem:
        """Proprioception at ``t_obs_ns``: interpolated arm, newest gripper not (much) after it."""
        arm = self._arm_at(t_obs_ns)
        if isinstance(arm, InputProblem):
            return arm
        limit_ns = t_obs_ns + round(self.config.gripper_tolerance_s * 1e9)
        index = self._gripper.at_or_before(limit_ns)
        if index is None or (
            t_obs_ns - self._gripper.stamps[index] > self.config.gripper_max_age_s * 1e9
        ):
            return InputProblem(
                reason=Reason.GRIPPER_STALE,
                text=f'{self._gripper.label}: no sample near the image; check its rate and stamps.',
                stream=GRIPPER,
            )
        joints = arm.ndim == 1
        return RobotState(
            stamp_ns=t_obs_ns,
            T_base_ee=kinematics.forward(self.robot, arm) if joints else arm,
            gripper=self._gripper.values[index],
            q_rad=arm if joints else None,
        )

    def _arm_at(self, t_obs_ns: int) -> FloatArray | InputProblem:
        """Interpolate at ``t_obs_ns``; just outside the samples the nearest one, never a guess."""
        stamps, values = self._arm.stamps, self._arm.values
        index = self._arm.at_or_before(t_obs_ns)
        tolerance_ns = round(self.config.arm_max_age_s * 1e9)
        if index is None:
            late_ns = stamps[0] - t_obs_ns
            if late_ns <= tolerance_ns:
                return values[0]
            return self._arm_gap(f'oldest sample is {late_ns / 1e6:.0f} ms after the image')
        before_ns = t_obs_ns - stamps[index]
        if before_ns == 0:
            return values[index]
        if index + 1 == len(stamps):
            if before_ns <= tolerance_ns:
                return values[index]
            return self._arm_gap(f'newest sample is {before_ns / 1e6:.0f} ms before the image')
        gap_ns = stamps[index + 1] - stamps[index]
        if gap_ns > self.config.interpolation_gap_s * 1e9:
            return self._arm_gap(f'samples around the image are {gap_ns / 1e6:.0f} ms apart')
        s = before_ns / gap_ns
        if values[index].ndim == 1:
            return (1 - s) * values[index] + s * values[index + 1]
        return geometry.pose_interpolate(values[index], values[index + 1], s)

    def _arm_gap(self, what: str) -> InputProblem:
        return InputProblem(
            reason=Reason.JOINTS_STALE,
            text=f'{self._arm.label}: the {what}; check the rate and the clocks.',
            stream=ARM,
        )

    def _health(self, stream: Stream, now_ns: int) -> StreamHealth:
        frozen, shape, problem = False, '', stream.problem(now_ns)
        if isinstance(stream, CameraStream):
            frozen = stream.identical >= self.config.frozen_frames
            if stream.values:
                height, width = stream.values[-1].image.shape[:2]
                shape = f'{width}x{height} rgb8'
            if frozen and not problem:
                problem = stream.frozen_text()
        elif stream is self._arm and stream.values:
            shape = f'{stream.values[-1].size} joints' if stream.values[-1].ndim == 1 else 'pose'
        return StreamHealth(
            name=stream.name,
            topic=stream.topic,
            age_s=stream.age_s(now_ns),
            rate_hz=stream.rate_hz(now_ns),
            stale=stream.stale(now_ns),
            frozen=frozen,
            shape=shape,
            problem=problem,
        )
