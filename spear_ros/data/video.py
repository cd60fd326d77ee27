"""Single pictures out of MP4 files, forwards at full speed and backwards by seeking (PyAV)."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.types import ImageArray

MAX_FORWARD_FRAMES = 64
"""Further ahead than this, seeking to a key frame is cheaper than decoding on."""


class VideoReader:
    """Decoder of one file that remembers where it is; not for several threads."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self.fps = fps
        self._container: av.container.InputContainer | None = None
        self._frames: Iterator[av.VideoFrame] | None = None
        self._last: tuple[float, av.VideoFrame] | None = None

    def rgb(self, time_s: float) -> ImageArray:
        """Picture shown at ``time_s`` of the file, (H, W, 3) uint8 RGB.

        Raises:
            UserError: unreadable file, or no frame within half a period of that time.
        """
        tolerance = 0.5 / self.fps
        try:
            frame = self._find(time_s, tolerance)
        except (av.error.FFmpegError, OSError) as error:
            raise UserError(f'{self.path}: the video cannot be decoded ({error}).') from None
        if frame is None:
            raise UserError(
                f'{self.path}: no frame at {time_s:.3f} s (tolerance {tolerance:.3f} s); '
                'the video is shorter than the episode table says.'
            )
        return np.asarray(frame.to_ndarray(format='rgb24'), np.uint8)

    def close(self) -> None:
        """Release the file."""
        if self._container is not None:
            self._container.close()
        self._container, self._frames, self._last = None, None, None

    def _find(self, time_s: float, tolerance: float) -> av.VideoFrame | None:
        if self._last is not None and abs(self._last[0] - time_s) < tolerance:
            return self._last[1]
        ahead = 0.0 if self._last is None else (time_s - self._last[0]) * self.fps
        if self._frames is None or not 0 < ahead <= MAX_FORWARD_FRAMES:
            self._seek(time_s)
        assert self._frames is not None
        for frame in self._frames:
            at = float(frame.time or 0.0)
            if at > time_s - tolerance:
                self._last = (at, frame)
                return frame if at < time_s + tolerance else None
        self._frames = None
        return None

    def _seek(self, time_s: float) -> None:
        if self._container is None:
            self._container = av.open(str(self.path))
            self._container.streams.video[0].thread_type = 'AUTO'
        stream = self._container.streams.video[0]
        base = stream.time_base or Fraction(1, 1000)
        self._container.seek(max(0, int((time_s - 0.5 / self.fps) / base)), stream=stream)
        self._frames = self._container.decode(stream)
        self._last = None


class VideoWriter:
    """Encodes frames into one MP4 file at a fixed rate; the file is complete only after close."""

    def __init__(self, path: Path, fps: float, codec: str = 'libx264') -> None:
        self.path = path
        self.count = 0
        self._fps = Fraction(fps).limit_denominator(1001)
        self._codec = codec
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None

    def add(self, image: ImageArray) -> None:
        """Append (H, W, 3) uint8 RGB; H and W must be even and the same throughout the file.

        Raises:
            UserError: another size than the first frame, or odd sides.
        """
        height, width = image.shape[:2]
        stream = self._stream or self._open(height, width)
        assert self._container is not None
        if (stream.height, stream.width) != (height, width):
            raise UserError(
                f'{self.path}: frame {self.count} has {width} x {height} pixels, the first had '
                f'{stream.width} x {stream.height}.'
            )
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format='rgb24')
        frame.pts = self.count
        frame.time_base = 1 / self._fps
        self._container.mux(stream.encode(frame))
        self.count += 1

    def _open(self, height: int, width: int) -> av.VideoStream:
        if height % 2 or width % 2:
            raise UserError(f'{self.path}: {width} x {height} pixels; video needs even sides.')
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self.path), 'w')
        stream = self._container.add_stream(self._codec, rate=self._fps)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
        # Every second frame is a key frame: training jumps about, and a long group of pictures
        # would have to be decoded for each jump.
        stream.gop_size = 2
        stream.options = {'crf': '18', 'g': '2'}
        self._stream = stream
        return stream

    def close(self) -> None:
        """Flush and finish the file."""
        if self._container is not None and self._stream is not None:
            self._container.mux(self._stream.encode())
            self._container.close()
        self._container, self._stream = None, None

    def __enter__(self) -> 'VideoWriter':
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
