"""What the stages of the annotation pipeline hand to each other.

Frames: points are in the camera's optical frame (x right, y down, z forward). Pixels are those of
the working image (see ``images``), the centre of the first pixel is (0, 0). Lengths carry a scale
type: ``metric`` (metres) or ``affine`` (MoGe-1's, another unknown scale in every image).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from spear_ros.core.types import FloatArray, ImageArray

ScaleType = Literal['affine', 'metric']
SCALE_TYPES: tuple[ScaleType, ...] = ('affine', 'metric')
MaskArray = NDArray[np.bool_]


class FailureKind(StrEnum):
    """Why an image or one object of it has no label; counted in the report of a run."""

    NOT_AN_IMAGE = 'not_an_image'
    DAMAGED_IMAGE = 'damaged_image'
    TOO_LARGE = 'too_large'
    TOO_SMALL = 'too_small'
    UNREADABLE = 'unreadable'
    NOTHING_GIVEN = 'nothing_given'
    """A replay or a folder of given data holds nothing for this image."""
    MALFORMED_ANSWER = 'malformed_answer'
    TRUNCATED_ANSWER = 'truncated_answer'
    REFUSED = 'refused'
    SERVICE = 'service'
    NO_OBJECTS = 'no_objects'
    BAD_BOX = 'bad_box'
    BAD_MASK = 'bad_mask'
    TINY_OBJECT = 'tiny_object'
    NO_VALID_POINTS = 'no_valid_points'
    TOO_FEW_POINTS = 'too_few_points'
    COPLANAR = 'coplanar'
    BAD_DEPTH = 'bad_depth'
    SEVERAL_INSTANCES = 'several_instances'
    NO_QUESTION = 'no_question'


class AnnotationError(Exception):
    """An image or object that cannot be labelled; the pipeline counts it and goes on."""

    def __init__(self, kind: FailureKind, text: str, *, transient: bool = False) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.transient = transient
        """True where another try may do better: such a failure is never stored."""


class Failure(NamedTuple):
    """One counted failure."""

    kind: FailureKind
    where: str
    """Name of the image, and of the object where it concerns one."""
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkingImage:
    """An opened picture, cropped and resized to the one size that all stages see."""

    name: str
    """Path relative to the folder of images, with forward slashes."""
    digest: str
    """SHA-256 of the file's bytes and of how it was opened, hexadecimal."""
    pixels: ImageArray
    """(H, W, 3) uint8 RGB."""
    original_size: tuple[int, int]
    """Width and height of the upright picture before cropping."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Detection:
    """A labelled box in pixels of the working image."""

    label: str
    box_xyxy: tuple[float, float, float, float]
    score: float = 1.0
    problem: str = ''
    """Why this box must not be labelled; '' for a good one."""
    number: int = 0
    """Place in the detector's list from 1; what given masks refer to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PointMap:
    """The 3D point of every pixel."""

    points: FloatArray
    """(H, W, 3) camera frame; anything where not valid."""
    valid: MaskArray
    """(H, W)."""
    K: FloatArray
    """(3, 3) in pixels of the working image."""
    scale: ScaleType


@dataclass(frozen=True, kw_only=True, slots=True)
class OrientedBox:
    """A box in the camera frame."""

    centre: FloatArray
    """(3,)."""
    axes: FloatArray
    """(3, 3) rotation, one box axis per column."""
    extents: FloatArray
    """(3,) full lengths along the axes, not negative."""


class Stage(Protocol):
    """What every stage tells of itself: it goes into the key of all its stored results."""

    name: str

    def settings(self) -> Mapping[str, object]:
        """Everything that changes results, as JSON: model, thresholds, version of the code."""
        ...


class Detector(Stage, Protocol):
    """Finds labelled boxes."""

    def detect(self, image: WorkingImage) -> list[Detection]:
        """Boxes of one image, in any order.

        Raises:
            AnnotationError: no answer, or one that cannot be trusted.
        """
        ...


class Segmenter(Stage, Protocol):
    """Turns boxes into masks."""

    def segment(self, image: WorkingImage, detections: list[Detection]) -> list[MaskArray]:
        """One mask (H, W) per detection, in their order; an empty one where there is none.

        Raises:
            AnnotationError: no masks for this image.
        """
        ...


class DepthEstimator(Stage, Protocol):
    """Gives every pixel its point."""

    def estimate(self, image: WorkingImage) -> PointMap:
        """Point map of the working image.

        Raises:
            AnnotationError: none to be had.
        """
        ...
