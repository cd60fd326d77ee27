"""Pictures of a demo run: a video and a contact sheet with the planned path drawn in.

Frames are kept as JPEG, so that a minute of two cameras is a few megabytes.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import pose_inverse
from spear_ros.core.types import FloatArray, ImageArray

_WIDTH, _HEIGHT = 640, 480
_BAR = 64
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 85]
_PATH_COLOR = (60, 220, 255)  # BGR
_INSET = 0.35


@dataclass(frozen=True, slots=True)
class Camera:
    """Pinhole camera at a known place."""

    K: FloatArray
    """(3, 3) intrinsics in pixels."""
    T_base_camera: FloatArray
    """(4, 4) optical frame (x right, y down, z forward) in the base frame."""

    def project(self, points: FloatArray) -> FloatArray:
        """Points (N, 3) in the base frame to pixels (M, 2); those behind the camera are dropped."""
        T = pose_inverse(self.T_base_camera)
        p = points @ T[:3, :3].T + T[:3, 3]
        p = p[p[:, 2] > 0.05]
        uv = p @ self.K.T
        return uv[:, :2] / uv[:, 2:]


@dataclass(frozen=True, slots=True)
class _Frame:
    jpeg: bytes
    caption: str
    episode: int


class FrameRecorder:
    """Collects frames of a run; thread-safe, fed from subscription callbacks.

    Args:
        tool_offset: (3,) m from the end-effector frame to the fingertips, so that the drawn path is
            that of the fingers and not of the flange.
    """

    def __init__(self, tool_offset: FloatArray) -> None:
        self._tool = np.append(tool_offset, 1.0)
        self._lock = threading.Lock()
        self._frames: list[_Frame] = []
        self._path = np.zeros((0, 3))
        self._wrist: ImageArray | None = None
        self.camera: Camera | None = None
        self.caption = ''
        self.episode = -1
        self.recording = False
        """Frames are kept only while an instruction is being followed."""

    def set_path(self, T_base_ee: FloatArray) -> None:
        """Note the newest planned targets (K, 4, 4)."""
        with self._lock:
            self._path = (T_base_ee @ self._tool)[:, :3]

    def set_wrist(self, image: ImageArray) -> None:
        """Note the newest wrist picture (H, W, 3) RGB."""
        self._wrist = image

    def add(self, image: ImageArray) -> None:
        """Draw the plan over an external picture (H, W, 3) RGB and keep it."""
        if not self.recording:
            return
        picture = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        with self._lock:
            path = self._path
        if self.camera is not None and len(path):
            _draw_path(picture, self.camera.project(path))
        picture = cv2.resize(picture, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_AREA)
        if self._wrist is not None:
            _draw_inset(picture, self._wrist)
        ok, jpeg = cv2.imencode('.jpg', picture, _JPEG)
        if ok:
            with self._lock:
                self._frames.append(_Frame(jpeg.tobytes(), self.caption, self.episode))

    def write_video(self, path: Path, rate_hz: float) -> None:
        """Write all frames as a WebM (VP8) file that browsers play.

        Raises:
            UserError: the file cannot be written.
        """
        size = (_WIDTH, _HEIGHT + _BAR)
        with _quiet_stderr():  # OpenCV grumbles about a tag that it then writes all the same
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'VP80'), rate_hz, size)
        if not writer.isOpened():
            raise UserError(f'{path}: cannot write the video; is the folder writable?')
        for frame in self._frames:
            writer.write(_with_caption(frame))
        writer.release()

    def write_sheet(self, path: Path, columns: int = 5) -> None:
        """Write a PNG with one row of evenly spaced frames per episode."""
        rows = []
        for episode in sorted({f.episode for f in self._frames}):
            frames = [f for f in self._frames if f.episode == episode]
            chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, columns).astype(int)]
            rows.append(np.hstack([_small(_with_caption(f)) for f in chosen]))
        if rows and not cv2.imwrite(str(path), np.vstack(rows)):
            raise UserError(f'{path}: cannot write the contact sheet; is the folder writable?')


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    saved = os.dup(2)
    with open(os.devnull, 'w') as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _draw_path(picture: ImageArray, pixels: FloatArray) -> None:
    points = np.round(pixels).astype(np.int32)
    if len(points) > 1:
        cv2.polylines(picture, [points], False, (0, 0, 0), 5, cv2.LINE_AA)
        cv2.polylines(picture, [points], False, _PATH_COLOR, 2, cv2.LINE_AA)
    for point in points:
        cv2.circle(picture, (int(point[0]), int(point[1])), 4, (0, 0, 0), -1, cv2.LINE_AA)
        cv2.circle(picture, (int(point[0]), int(point[1])), 3, _PATH_COLOR, -1, cv2.LINE_AA)


def _draw_inset(picture: ImageArray, wrist: ImageArray) -> None:
    scale = _INSET * _WIDTH / wrist.shape[1]
    small = cv2.resize(wrist, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    h, w = small.shape[:2]
    picture[8 : 8 + h, 8 : 8 + w] = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
    cv2.rectangle(picture, (8, 8), (8 + w, 8 + h), (255, 255, 255), 1)


def _with_caption(frame: _Frame) -> ImageArray:
    picture = cv2.imdecode(np.frombuffer(frame.jpeg, np.uint8), cv2.IMREAD_COLOR)
    bar = np.full((_BAR, _WIDTH, 3), 24, np.uint8)
    for i, line in enumerate(frame.caption.split('\n')[:2]):
        cv2.putText(bar, line, (10, 24 + 26 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.55,
                    (235, 235, 235), 1, cv2.LINE_AA)  # fmt: skip
    return np.vstack([picture, bar])


def _small(picture: ImageArray) -> ImageArray:
    return np.asarray(cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
