"""SPEAR-VLM's answer drawn into the picture, with its words below."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.types import FloatArray, ImageArray

if TYPE_CHECKING:
    from spear_ros.annotation.question_words import Asked
    from spear_ros.inference.vlm import Answer
    from spear_ros.processing.spatial_bins import SpatialBins

COLOURS = ((255, 80, 40), (40, 140, 255))
"""RGB of the first and second object."""
LINE_PX = 20
MOST_LINES = 14


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """A question and what is to be shown of its answer."""

    asked: 'Asked'
    answers: Sequence['Answer']
    """Of the question, then of "where do the corners of X lie in the image" for each object."""
    lines: Sequence[str]
    """The answer in words."""
    bins: 'SpatialBins'
    fov_y_deg: float | None = None
    """Camera that 3D answers are drawn by; None draws the boxes of the later answers."""


def draw(out: Path, picture: ImageArray, told: Told) -> None:
    """Write the PNG: the picture (H, W, 3) uint8 RGB as the network saw it, words below.

    Raises:
        UserError: the file cannot be written.
    """
    canvas = np.ascontiguousarray(picture)
    how = f'drawn by a camera of {told.fov_y_deg} degrees'
    if not _by_camera(canvas, told):
        _by_the_network(canvas, told)
        how = 'boxes: where the network sees them (asked in addition)'
    shown = [f'"{told.asked.question}"', *told.lines[: MOST_LINES - 2], how]
    bgr = cv2.cvtColor(np.vstack([canvas, _panel(shown, canvas.shape[1])]), cv2.COLOR_RGB2BGR)
    ok, blob = cv2.imencode('.png', bgr)
    assert ok
    try:
        out.write_bytes(blob.tobytes())
    except OSError as error:
        raise UserError(f'--out {out}: cannot write ({error.strerror}).') from None


def _by_camera(canvas: ImageArray, told: Told) -> bool:
    """Draw points or boxes in 3D; False where there is no camera, or nothing with a place."""
    from spear_ros.annotation.box_geometry import project
    from spear_ros.inference.vlm import lengths

    if told.fov_y_deg is None or told.asked.family in ('distance', 'closer', 'projection'):
        return False
    height, width = canvas.shape[:2]
    focal = 0.5 * height / np.tan(0.5 * np.deg2rad(told.fov_y_deg))
    K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    pixels = project(lengths(told.answers[0], told.bins).value.reshape(-1, 3), K)
    if len(pixels) == 8:
        _box(canvas, pixels, COLOURS[0])
    else:
        _cross(canvas, pixels[0], COLOURS[0])
    return True


def _by_the_network(canvas: ImageArray, told: Told) -> None:
    from spear_ros.inference.vlm import places

    height, width = canvas.shape[:2]
    for name, answer, colour in zip(told.asked.objects, told.answers[1:], COLOURS, strict=False):
        shares = places(answer).value.reshape(8, 2)
        pixels = shares[:, ::-1] * (width, height)
        _box(canvas, pixels, colour)
        at = _pixel(pixels.min(axis=0) - (0, 6))
        if at is not None:
            cv2.putText(canvas, name, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)


def _box(canvas: ImageArray, pixels: FloatArray, colour: tuple[int, int, int]) -> None:
    from spear_ros.annotation.box_geometry import edges

    for a, b in edges():
        ends = _pixel(pixels[a]), _pixel(pixels[b])
        if ends[0] is not None and ends[1] is not None:
            cv2.line(canvas, ends[0], ends[1], colour, 1, cv2.LINE_AA)


def _cross(canvas: ImageArray, pixel: FloatArray, colour: tuple[int, int, int]) -> None:
    at = _pixel(pixel)
    if at is not None:
        cv2.drawMarker(canvas, at, colour, cv2.MARKER_CROSS, 24, 2, cv2.LINE_AA)


def _pixel(pixel: FloatArray) -> tuple[int, int] | None:
    """Whole pixels; None behind the camera or absurdly far out."""
    if not np.isfinite(pixel).all() or np.abs(pixel).max() > 1e4:
        return None
    return int(pixel[0]), int(pixel[1])


def _panel(lines: Sequence[str], width: int) -> ImageArray:
    panel = np.full((LINE_PX * len(lines) + 10, width, 3), 250, np.uint8)
    for i, line in enumerate(lines):
        at = (8, LINE_PX * (i + 1) - 4)
        cv2.putText(panel, line, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (20,) * 3, 1, cv2.LINE_AA)
    return panel
