"""Both simulated cameras: pictures with CameraInfo, rendered in one thread of their own.

The OpenGL context is bound to the thread that renders first, so everything about pictures happens
in :meth:`CameraStreams.run`.
"""

import threading
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from spear_ros.core.types import ImageArray
from spear_ros.ros.config import CameraConfig
from spear_ros.ros.conversions import header, image_to_msg, jpeg_to_msg
from spear_ros.ros.qos import IMAGE_OUTPUT
from spear_ros.ros.sim_drivers.base import TwinClock
from spear_ros.ros.sim_drivers.faults import FaultBoard
from spear_ros.ros.sim_drivers.lines import CameraLine
from spear_ros.ros.sim_drivers.pacing import Pacer
from spear_ros.simulation.rendering import CameraModel
from spear_ros.simulation.world import World

_JPEG_QUALITY = 90


@dataclass
class _Stream:
    camera: str
    config: CameraConfig
    line: CameraLine
    raw: Publisher | None
    compressed: Publisher | None
    info: Publisher
    frame_id: str
    model: CameraModel | None = field(default=None)


class CameraStreams:
    """Publishers of the cameras that the robot's configuration names.

    Args:
        also_compressed: publish ``<topic>/compressed`` beside the raw pictures, as camera drivers
            with image_transport do.
        encoding: of the raw pictures.
    """

    def __init__(
        self,
        node: Node,
        world: World,
        cameras: dict[str, CameraConfig],
        *,
        faults: FaultBoard,
        clock: TwinClock,
        rate_hz: float,
        encoding: str = 'rgb8',
        also_compressed: bool = False,
    ) -> None:
        self._world, self._clock, self._encoding = world, clock, encoding
        self._pacer = Pacer(1.0 / rate_hz)
        self._log = node.get_logger()
        self._streams = [
            _make_stream(node, name, config, faults, also_compressed)
            for name, config in cameras.items()
        ]
        self.frames = 0
        """Rounds of pictures so far."""

    def open(self) -> None:
        """Open the renderer and draw once; the calling thread owns the pictures from now on."""
        for stream in self._streams:
            self._world.render(stream.camera)

    def run(self, stop: threading.Event) -> None:
        """Render and publish until ``stop``; in the thread that owns the pictures."""
        try:
            while not stop.is_set():
                for stream in self._streams:
                    self._publish(stream)
                self.frames += 1
                self._pacer.wait()
        finally:
            self._world.close()

    def take_worst_delay(self) -> float:
        """Longest delay of a round in seconds since the last call."""
        return self._pacer.take_worst()

    def _publish(self, stream: _Stream) -> None:
        stamp = self._clock()
        image = self._world.render(stream.camera)
        if stream.model is None:
            stream.model = self._world.camera_info(stream.camera)
        frame = stream.frame_id
        if stream.raw is not None:
            message = image_to_msg(image, stamp, frame, self._encoding)
            for out in stream.line.pass_on(message, stamp):
                stream.raw.publish(out)
        if stream.compressed is not None:
            packed = jpeg_to_msg(encode_jpeg(image), stamp, frame)
            # Beside a raw stream the faults act on the raw one only: one line, one history.
            outs = stream.line.pass_on(packed, stamp) if stream.raw is None else [packed]
            for out in outs:
                stream.compressed.publish(out)
        stream.info.publish(camera_info_msg(stream.model, stamp, frame))


def encode_jpeg(image: ImageArray, quality: int = _JPEG_QUALITY) -> bytes:
    """Encode an image (H, W, 3) uint8 RGB."""
    ok, data = cv2.imencode(
        '.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    assert ok
    return data.tobytes()  # type: ignore[no-any-return]


def camera_info_msg(model: CameraModel, stamp_ns: int, frame_id: str) -> Any:
    """Intrinsics of a camera without distortion as a message."""
    K = np.asarray(model.K, float)
    return CameraInfo(
        header=header(stamp_ns, frame_id),
        width=model.width,
        height=model.height,
        distortion_model='plumb_bob',
        d=[0.0] * 5,
        k=K.ravel().tolist(),
        r=np.eye(3).ravel().tolist(),
        p=np.hstack([K, np.zeros((3, 1))]).ravel().tolist(),
    )


def _make_stream(
    node: Node, name: str, config: CameraConfig, faults: FaultBoard, also_compressed: bool
) -> _Stream:
    raw = compressed = None
    if config.compressed:
        compressed = node.create_publisher(CompressedImage, config.topic, IMAGE_OUTPUT)
    else:
        raw = node.create_publisher(Image, config.topic, IMAGE_OUTPUT)
        if also_compressed:
            topic = f'{config.topic}/compressed'
            compressed = node.create_publisher(CompressedImage, topic, IMAGE_OUTPUT)
    return _Stream(
        camera=name,
        config=config,
        line=CameraLine(name, faults),
        raw=raw,
        compressed=compressed,
        info=node.create_publisher(CameraInfo, config.info_topic, IMAGE_OUTPUT),
        frame_id=config.frame_id or f'{name}_camera_optical_frame',
    )
