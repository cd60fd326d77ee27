"""What the stages of the annotation pipeline hand to each other.

Frames: points are in the camera's optical frame (x right, y down, z forward). Pixels are those of
the working image (see ``images``), the centre of the first pixel is (0, 0). Lengths carry a scale
type: ``metric`` (metres) or ``affine`` (MoGe-1's, another unknown scale in every image).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Protocol

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


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectLabel:
    """What is known of one object; points in the camera frame, unit as the image's scale says."""

    label: str
    box_xyxy: tuple[float, float, float, float]
    centre: FloatArray
    """(3,) of the oriented box."""
    vertices: FloatArray
    """(8, 3) in the canonical order."""
    closest: FloatArray
    """(3,) the object's point that is closest to the camera."""
    furthest: FloatArray
    n_points: int
    number: int
    """The detection it came from."""

    def as_json(self) -> dict[str, object]:
        """The same as plain lists."""
        return {f: _plain(getattr(self, f)) for f in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> 'ObjectLabel':
        """Inverse of :meth:`as_json`."""
        arrays = {f: np.array(data[f], float) for f in _POINTS}
        rest = {f: data[f] for f in ('label', 'n_points', 'number')}
        return cls(box_xyxy=tuple(data['box_xyxy']), **arrays, **rest)


_POINTS = ('centre', 'vertices', 'closest', 'furthest')


def _plain(value: Any) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else value


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageAnnotation:
    """All that is known of one picture."""

    name: str
    digest: str
    size: tuple[int, int]
    """Width and height of the working image."""
    scale: ScaleType
    K: FloatArray
    detected: tuple[str, ...]
    """Labels of all detections, those without a box included."""
    objects: tuple[ObjectLabel, ...]
    failures: tuple[Failure, ...]
    """Of single objects."""
    keys: Mapping[str, str]
    """Stage -> key of its stored result: where the labels came from."""

    def as_json(self) -> dict[str, object]:
        """The same as plain lists."""
        data: dict[str, object] = {f: _plain(getattr(self, f)) for f in self.__dataclass_fields__}
        data['objects'] = [o.as_json() for o in self.objects]
        data['failures'] = [[f.kind.value, f.where, f.text] for f in self.failures]
        data['keys'] = dict(self.keys)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> 'ImageAnnotation':
        """Inverse of :meth:`as_json`."""
        if data['scale'] not in SCALE_TYPES:
            raise ValueError(f'scale {data["scale"]!r}')
        return cls(
            name=data['name'],
            digest=data['digest'],
            size=(int(data['size'][0]), int(data['size'][1])),
            scale=data['scale'],
            K=np.array(data['K'], float),
            detected=tuple(data['detected']),
            objects=tuple(ObjectLabel.from_json(o) for o in data['objects']),
            failures=tuple(Failure(FailureKind(k), w, t) for k, w, t in data['failures']),
            keys=dict(data['keys']),
        )


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
