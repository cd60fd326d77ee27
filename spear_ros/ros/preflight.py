"""Checks of a set-up before the first episode: streams, pictures, gripper jog, +x jog.

What a program can judge it judges; what needs an eye (is this the view that the policy was trained
with?) becomes a sheet of pictures. Motions are small, slow, and go through player and gate.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image, JointState

from spear_ros.core.errors import UserError
from spear_ros.core.types import EXTERNAL, WRIST, FloatArray, ImageArray
from spear_ros.robots.spec import RobotSpec
from spear_ros.ros import qos
from spear_ros.ros.config import RobotConfig
from spear_ros.ros.jog import JogPolicy
from spear_ros.ros.operator_client import OperatorClient
from spear_ros.runtime.decode import decode_image, decode_joints, decode_opening, stamp_ns

_WATCH_S = 3.0
_JOG_M = 0.03
_TILE = (480, 360)
_CHANGED_LEVELS = 12


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table."""

    name: str
    ok: bool | None
    """None: needs an eye."""
    text: str


@dataclass
class _Stream:
    name: str
    topic: str
    max_age_s: float
    count: int = 0
    age_s: float = float('inf')
    problem: str = ''
    image: ImageArray | None = None


@dataclass
class Preflight:
    """Runs the checks one after another on a robot side that is up, without a policy.

    Args:
        client: spins in its own thread.
        config: wiring.
        spec: robot.
        say: prints one finished check.
    """

    client: OperatorClient
    config: RobotConfig
    spec: RobotSpec
    say: Callable[[Check], None]
    checks: list[Check] = field(default_factory=list)
    opening: float | None = None

    def __post_init__(self) -> None:
        self._streams: dict[str, _Stream] = {}
        for name, camera in self.config.camera_topics.items():
            kind = CompressedImage if camera.compressed else Image
            self._watch(name, kind, camera.topic, camera.max_age_s, qos.IMAGE_INPUT)
        arm, gripper = self.config.arm, self.config.gripper_state
        self._watch('arm', JointState, arm.topic, arm.max_age_s, qos.JOINTS_INPUT)
        self._watch('gripper', JointState, gripper.topic, gripper.max_age_s, qos.JOINTS_INPUT)
        self.jog = JogPolicy(self.client.node, self.config, self.spec)

    # ------------------------------------------------------------------------------------ standing

    def check_streams(self) -> None:
        """Rate, age and content of every input."""
        for stream in self._streams.values():
            stream.count = 0
        time.sleep(_WATCH_S)
        for stream in self._streams.values():
            rate = stream.count / _WATCH_S
            if not stream.count:
                self._note(stream.name, False, f'nothing on {stream.topic}: start its driver.')
            elif stream.problem:
                self._note(stream.name, False, stream.problem)
            elif stream.age_s > stream.max_age_s:
                self._note(
                    stream.name,
                    False,
                    f'{stream.topic} is {stream.age_s:.2f} s old (limit {stream.max_age_s:g} s): '
                    'synchronise the clocks (chrony) or speed the driver up.',
                )
            else:
                self._note(stream.name, True, f'{rate:.1f} Hz, {stream.age_s * 1e3:.0f} ms old')

    def save_pictures(self, path: Path, reference: Path | None) -> None:
        """Write a sheet: what each camera sees, beside the training's picture of that camera."""
        rows = []
        for name in self.config.camera_topics:
            image = self._streams[name].image
            live = _tile(image, f'{name}: now')
            picture = _read_reference(reference, name)
            rows.append(np.hstack([live, _tile(picture, f'{name}: training reference')]))
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))
        if reference is None:
            text = f'look at {path}; give --reference FOLDER to see training pictures beside them.'
        else:
            text = f'look at {path}: same view, same side, same crop?'
        self._note('pictures', None, text)

    # -------------------------------------------------------------------------------------- moving

    def arm(self) -> None:
        """Arm; the executor runs its own checks.

        Raises:
            UserError: refused; the sentence says why.
        """
        deadline = time.monotonic() + 10.0
        while True:
            accepted, text = self.client.trigger('arm')
            if accepted:
                break
            if time.monotonic() > deadline:
                raise UserError(f'arm was refused: {text}')
            time.sleep(0.2)
        self._note('arm', True, 'accepted')

    def jog_gripper(self) -> None:
        """Close and open; the measured opening must follow."""
        self._go(None)
        for name, opening in (('gripper closes', 0.0), ('gripper opens', 1.0)):
            before = self.opening
            self.jog.gripper = opening
            reached = self._wait(partial(self._stands_at, opening), 12.0)
            self._note(
                name,
                reached,
                f'opening {_number(before)} -> {_number(self.opening)}'
                + ('' if reached else ': wrong topic, joint name, or open and closed exchanged?'),
            )

    def jog_x(self) -> None:
        """Move 3 cm along +x of the base and back; compare the measured motion and the pictures."""
        start = self._measured()
        before = self._pictures()
        goal = start.copy()
        goal[0, 3] += _JOG_M
        self._go(goal)
        self._wait(lambda: self._measured()[0, 3] - start[0, 3] > 0.8 * _JOG_M, 12.0)
        moved = self._measured()[:3, 3] - start[:3, 3]
        self._judge_motion(moved)
        self._judge_cameras(before, self._pictures())
        self._go(start)
        self._wait(lambda: abs(self._measured()[0, 3] - start[0, 3]) < 0.3 * _JOG_M, 12.0)
        self.jog.goal = None

    def disarm(self) -> None:
        """Disarm."""
        accepted, text = self.client.trigger('disarm')
        self._note('disarm', accepted, text)

    @property
    def failed(self) -> bool:
        """Some check failed."""
        return any(check.ok is False for check in self.checks)

    # ------------------------------------------------------------------------------------- private

    def _stands_at(self, opening: float) -> bool:
        return self.opening is not None and abs(self.opening - opening) < 0.3

    def _judge_motion(self, moved: FloatArray) -> None:
        text = 'moved by ({:+.3f}, {:+.3f}, {:+.3f}) m'.format(*moved)
        ok = bool(moved[0] > 0.5 * _JOG_M and abs(moved[1:]).max() < 0.5 * _JOG_M)
        if not ok:
            text += f'; {self.client.describe()}'
        self._note('+x jog', ok, text)

    def _judge_cameras(self, before: dict[str, ImageArray], after: dict[str, ImageArray]) -> None:
        """A camera on the wrist sees everything move, one beside the table only the arm."""
        share = {name: changed_share(before[name], after[name]) for name in before}
        text = ', '.join(f'{name} {100 * s:.0f} %' for name, s in share.items())
        if WRIST not in share or EXTERNAL not in share:
            self._note('camera swap', None, f'only one camera; changed pixels: {text}')
            return
        ok = share[WRIST] > share[EXTERNAL]
        mend = '' if ok else ': wrist and external are probably exchanged in the robot file'
        self._note('camera swap', ok, f'changed pixels: {text}{mend}')

    def _watch(self, name: str, kind: Any, topic: str, max_age_s: float, profile: Any) -> None:
        stream = self._streams[name] = _Stream(name, topic, max_age_s)

        def handle(message: Any) -> None:
            stream.count += 1
            now = self.client.node.get_clock().now().nanoseconds
            try:
                stream.age_s = (now - stamp_ns(message)) * 1e-9
                if name in self.config.camera_topics:
                    stream.image = decode_image(message)
                elif name == 'gripper':
                    state = self.config.gripper_state
                    (raw,) = decode_joints(message, [state.joint])
                    self.opening = decode_opening(float(raw), state.open, state.closed)
                stream.problem = ''
            except UserError as error:
                stream.problem = str(error)

        self.client.node.create_subscription(kind, topic, handle, profile)

    def _note(self, name: str, ok: bool | None, text: str) -> None:
        check = Check(name, ok, text)
        self.checks.append(check)
        self.say(check)

    def _measured(self) -> FloatArray:
        T = self.jog.T_base_ee
        if T is None:
            raise UserError(f'no joint states on {self.config.arm.topic}.')
        return T.copy()

    def _pictures(self) -> dict[str, ImageArray]:
        return {
            name: image.copy()
            for name in self.config.camera_topics
            if (image := self._streams[name].image) is not None
        }

    def _go(self, goal: FloatArray | None) -> None:
        self.jog.goal = self._measured() if goal is None else goal
        self.client.wait_for_state('RUNNING', timeout_s=10.0)

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline or self.client.state == 'FAULT':
                return False
            time.sleep(0.02)
        time.sleep(0.3)
        return True


def changed_share(before: ImageArray, after: ImageArray) -> float:
    """Share of pixels (0 to 1) that differ by more than noise between two pictures (H, W, 3)."""
    if before.shape != after.shape:
        return 1.0
    difference = cv2.absdiff(cv2.blur(before, (5, 5)), cv2.blur(after, (5, 5)))
    return float((difference.max(axis=-1) > _CHANGED_LEVELS).mean())


def _tile(image: ImageArray | None, caption: str) -> ImageArray:
    tile = np.full((_TILE[1] + 28, _TILE[0], 3), 24, np.uint8)
    if image is not None:
        scale = min(_TILE[0] / image.shape[1], _TILE[1] / image.shape[0])
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        tile[28 : 28 + size[1], : size[0]] = small
    else:
        caption += ' (none)'
    cv2.putText(tile, caption, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 1)
    return tile


def _read_reference(folder: Path | None, name: str) -> ImageArray | None:
    if folder is None:
        return None
    for path in sorted(folder.glob(f'{name}.*')):
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is not None:
            return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]
    return None


def _number(value: float | None) -> str:
    return 'unknown' if value is None else f'{value:.2f}'
