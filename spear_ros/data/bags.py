"""Recordings as timed samples: read, decoded and checked by the code that runs live.

``read_bag`` is shared by ``spear replay`` and by the conversion to training data. What cannot be
used is delivered too, as a sample with a ``problem``, so that nothing disappears without a word.
"""

import difflib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spear_ros.core import geometry
from spear_ros.core.errors import UserError
from spear_ros.core.reasons import Reason
from spear_ros.core.types import EXTERNAL, WRIST, FloatArray, ImageArray
from spear_ros.data.bag_files import MAX_MESSAGE_BYTES, Bag
from spear_ros.data.topic_map import (
    ARM,
    GRIPPER,
    INSTRUCTION,
    ArmTopic,
    CommandTopic,
    TopicMap,
    load_topic_map,
)
from spear_ros.robots.spec import RobotSpec
from spear_ros.runtime import decode

__all__ = ['BagDamageError', 'BagReader', 'BagSample', 'TopicMap', 'load_topic_map', 'read_bag']

Quaternion = tuple[float, float, float, float]
Progress = Callable[[int, int], None]
"""Called with (messages read, messages in all)."""


class BagDamageError(UserError):
    """Raised after everything readable has been delivered, when something was not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BagSample:
    """One message of a mapped topic."""

    stream: str
    """``external``, ``wrist``, ``arm``, ``gripper``, ``instruction`` or ``command``."""
    stamp_ns: int
    """Header stamp; the bag's time of receipt where the message has no header."""
    received_ns: int
    """The bag's time of receipt."""
    value: ImageArray | FloatArray | float | str | None
    """Image (H, W, 3) RGB; joints (n,) rad or pose ``T_base_ee`` (4, 4); opening; text; None when
    the message cannot be used."""
    encoded: bytes | None = None
    """The camera's own JPEG or PNG bytes, where they were asked for instead of pixels."""
    problem: str = ''
    """Why it cannot be used: one sentence."""
    reason: Reason = Reason.NONE


class BagReader:
    """A recording with its map: what is in it, and its samples in order of time.

    Args:
        path: See :class:`spear_ros.data.bag_files.Bag`.
        topic_map: Which topic is what.
        robot: Joint names and kinematics; its embodiment must be the map's.
        reference_rotation: wxyz of the ActionSpec's D, needed for ``bridge_state`` only:
            R_base_ee = R_state D. It comes with the checkpoint (or the embodiment's defaults).
        max_message_bytes: Larger messages are skipped and reported.

    Raises:
        UserError: the recording is unreadable or empty, or lacks a mapped topic (the sentence
            lists the topics that it has, closest first).
    """

    def __init__(
        self,
        path: Path | str,
        topic_map: TopicMap,
        robot: RobotSpec,
        *,
        reference_rotation: Quaternion,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        if robot.embodiment != topic_map.embodiment:
            raise UserError(
                f'robot {robot.name} is a {robot.embodiment}, but the map says '
                f'{topic_map.embodiment}; change "robot" or "embodiment" in the map.'
            )
        self.map, self.robot = topic_map, robot
        self._D = geometry.quat_to_matrix(reference_rotation)
        self._bag = Bag(path, max_message_bytes)
        try:
            self._check()
        except BaseException:
            self._bag.close()
            raise

    def __enter__(self) -> 'BagReader':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the recording."""
        self._bag.close()

    @property
    def path(self) -> Path:
        """Where the recording is."""
        return self._bag.path

    @property
    def start_ns(self) -> int:
        """Time of the first message of any topic."""
        return self._bag.start_ns

    @property
    def end_ns(self) -> int:
        """Time of the last message of any topic."""
        return self._bag.end_ns

    @property
    def notes(self) -> list[str]:
        """Oddities that cost nothing."""
        return self._bag.notes

    @property
    def damage(self) -> list[str]:
        """What was lost; complete once the samples have been read to the end."""
        return self._bag.damage

    @property
    def unreadable(self) -> int:
        """Messages of mapped topics that could not be read in the last pass."""
        return self._bag.unreadable

    def samples(
        self,
        streams: Collection[str] | None = None,
        progress: Progress | None = None,
        *,
        keep_encoded: bool = False,
    ) -> Iterator[BagSample]:
        """Yield the samples of ``streams`` (None = all) in order of the time of receipt.

        With ``keep_encoded`` compressed images are not decoded: their bytes come in ``encoded``.
        Undecodable content (a cut JPEG, wrong joint names) comes as a sample with a problem;
        damaged storage is collected in :attr:`damage`.
        """
        by_topic: dict[str, list[str]] = {}
        for stream, topic in self.map.topics().items():
            if streams is None or stream in streams:
                by_topic.setdefault(topic, []).append(stream)
        total = sum(self._bag.topics[topic].count for topic in by_topic)
        for number, (topic, received_ns, data) in enumerate(self._bag.messages(by_topic)):
            if progress is not None:
                progress(number, total)
            try:
                message = self._bag.deserialize(topic, data)
            except UserError as error:
                self._bag.skip_message(str(error))
                continue
            for stream in by_topic[topic]:
                yield self._sample(stream, message, received_ns, keep_encoded)
        if progress is not None:
            progress(total, total)

    def raise_damage(self) -> None:
        """Raise what :attr:`damage` holds as one sentence.

        Raises:
            BagDamageError: something was lost.
        """
        if self.damage:
            more = f' and {len(self.damage) - 1} more' if len(self.damage) > 1 else ''
            raise BagDamageError(
                f'{self._bag.path}: {self.damage[0]}{more}; everything that could be read was used.'
            )

    # -- inside ------------------------------------------------------------------------------

    def _check(self) -> None:
        bag, path = self._bag, self._bag.path
        if bag.message_count == 0:
            raise UserError(f'{path}: the recording is empty (no messages); record it again.')
        for stream, topic in self.map.topics().items():
            if topic not in bag.topics:
                near = difflib.get_close_matches(topic, bag.topics, n=len(bag.topics), cutoff=0.0)
                raise UserError(
                    f'{path}: topic {topic} ({stream}) is not in the recording, which has '
                    f'{_listed(near, bag)}; mend the map.'
                )
            if stream in (EXTERNAL, WRIST) and not _is_image(bag.topics[topic].type):
                raise UserError(
                    f'{path}: topic {topic} ({stream}) is a {bag.topics[topic].type}, not an '
                    f'image; {_image_topics(bag)}; mend the map.'
                )
            if bag.topics[topic].count == 0:
                what = 'images' if stream in (EXTERNAL, WRIST) else 'messages'
                raise UserError(
                    f'{path}: topic {topic} ({stream}) holds no {what}; choose another topic in '
                    'the map or record it again.'
                )
            bag.check_type(topic)

    def _sample(self, stream: str, message: Any, received_ns: int, keep_encoded: bool) -> BagSample:
        value, encoded, problem, reason = None, None, '', Reason.NONE
        try:
            if keep_encoded and stream in (EXTERNAL, WRIST) and hasattr(message, 'format'):
                encoded = bytes(message.data)
            else:
                value = self._decode(stream, message)
        except UserError as error:
            problem, reason = str(error), getattr(error, 'reason', Reason.NONE)
        return BagSample(
            stream=stream,
            stamp_ns=decode.stamp_ns(message, received_ns),
            received_ns=received_ns,
            value=value,
            encoded=encoded,
            problem=problem,
            reason=reason,
        )

    def _decode(self, stream: str, message: Any) -> ImageArray | FloatArray | float | str:
        if stream in (EXTERNAL, WRIST):
            return decode.decode_image(message)
        if stream == INSTRUCTION:
            return decode.decode_text(message)
        if stream == GRIPPER:
            return self._decode_gripper(message)
        source = self.map.arm if stream == ARM else self.map.command
        assert source is not None, stream
        return self._decode_arm(source, message)

    def _decode_gripper(self, message: Any) -> float:
        source = self.map.gripper
        if source.kind == 'float':
            raw = decode.decode_value(message)
        else:
            raw = float(decode.decode_joints(message, [source.joint or ''])[0])
        return decode.decode_opening(raw, source.open, source.closed)

    def _decode_arm(self, source: ArmTopic | CommandTopic, message: Any) -> FloatArray:
        if source.kind == 'joints':
            return decode.decode_joints(message, self.robot.joint_names)
        T = decode.decode_pose(message)
        if source.pose_frame == 'bridge_state':
            T[:3, :3] = T[:3, :3] @ self._D
        return T


def read_bag(
    path: Path | str,
    topic_map: TopicMap,
    robot: RobotSpec,
    *,
    reference_rotation: Quaternion,
    progress: Progress | None = None,
) -> Iterator[BagSample]:
    """Yield every sample of the mapped topics in order of time of receipt.

    Raises:
        UserError: see :class:`BagReader`.
        BagDamageError: at the end, when something could not be read.
    """
    with BagReader(path, topic_map, robot, reference_rotation=reference_rotation) as reader:
        yield from reader.samples(progress=progress)
        reader.raise_damage()


def _listed(topics: list[str], bag: Bag) -> str:
    shown = [f'{t} [{bag.topics[t].type}]' for t in topics[:8]]
    return ', '.join(shown) + (f' and {len(topics) - 8} more' if len(topics) > 8 else '')


def _image_topics(bag: Bag) -> str:
    names = [t.name for t in bag.topics.values() if _is_image(t.type) and t.count]
    return f'images are on {", ".join(names)}' if names else 'the recording holds no images at all'


def _is_image(kind: str) -> bool:
    return kind.startswith('sensor_msgs/') and kind.endswith(('/Image', '/CompressedImage'))
