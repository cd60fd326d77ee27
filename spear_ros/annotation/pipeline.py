"""From a picture to its labels: the stages in order, each stored, each failure counted.

Objects fail one by one; a picture fails as a whole where a stage before the objects does. Nothing
here stops a run but a UserError (full disk, refused key).
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spear_ros.annotation.box_geometry import vertices
from spear_ros.annotation.boxes import BoxSettings, fit_box, object_points, require_agreement
from spear_ros.annotation.given import points_of_depth
from spear_ros.annotation.images import ImageSettings, image_digest, open_image
from spear_ros.annotation.questions import ambiguous
from spear_ros.annotation.store import Entry, Store, write_atomically
from spear_ros.annotation.types import (
    AnnotationError,
    DepthEstimator,
    Detection,
    Detector,
    Failure,
    FailureKind,
    ImageAnnotation,
    MaskArray,
    ObjectLabel,
    PointMap,
    Segmenter,
    Stage,
    WorkingImage,
)
from spear_ros.core.errors import UserError

STORE = 'store'


@dataclass(frozen=True, kw_only=True, slots=True)
class Stages:
    """What annotates."""

    detector: Detector
    segmenter: Segmenter
    depth: DepthEstimator
    boxes: BoxSettings = field(default_factory=BoxSettings)
    images: ImageSettings = field(default_factory=ImageSettings)


def annotate_image(image: WorkingImage, stages: Stages, store: Store) -> ImageAnnotation:
    """Labels of one picture.

    Raises:
        AnnotationError: the picture as a whole has none.
    """
    detect_key, detections = run_detector(image, stages.detector, store)
    if not detections:
        raise AnnotationError(FailureKind.NO_OBJECTS, 'the detector found nothing')
    mask_key, masks = run_segmenter(image, stages.segmenter, detections, detect_key, store)
    depth_key, points = run_depth(image, stages.depth, store)
    box_key, entry = store.run(
        'boxes',
        stages.boxes.as_json(),
        [detect_key, mask_key, depth_key],
        lambda: _box_entry(detections, masks, points, stages.boxes),
    )
    failures = [
        Failure(FailureKind(kind), f'{image.name}: {label}', text)
        for kind, label, text in entry.data['failures']
    ]
    labels = tuple(d.label for d in detections)
    failures += [
        Failure(FailureKind.SEVERAL_INSTANCES, f'{image.name}: {label}', why)
        for label, why in ambiguous(labels).items()
    ]
    return ImageAnnotation(
        name=image.name,
        digest=image.digest,
        size=(image.pixels.shape[1], image.pixels.shape[0]),
        scale=points.scale,
        K=points.K,
        detected=labels,
        objects=tuple(ObjectLabel.from_json(o) for o in entry.data['objects']),
        failures=tuple(failures),
        keys={
            stages.detector.name: detect_key,
            stages.segmenter.name: mask_key,
            stages.depth.name: depth_key,
            'boxes': box_key,
        },
    )


def run_detector(
    image: WorkingImage, detector: Detector, store: Store
) -> tuple[str, list[Detection]]:
    """Key and boxes."""
    key, entry = store.run(
        detector.name,
        detector.settings(),
        _inputs(image, detector),
        lambda: Entry({'boxes': [asdict(d) for d in detector.detect(image)]}),
    )
    boxes = [{**d, 'box_xyxy': tuple(d['box_xyxy'])} for d in entry.data['boxes']]
    return key, [Detection(**d) for d in boxes]


def run_segmenter(
    image: WorkingImage,
    segmenter: Segmenter,
    detections: list[Detection],
    detect_key: str,
    store: Store,
) -> tuple[str, list[MaskArray]]:
    """Key and masks, one per detection."""

    def compute() -> Entry:
        masks = segmenter.segment(image, detections)
        if len(masks) != len(detections) or any(m.shape != shape for m in masks):
            raise AnnotationError(
                FailureKind.BAD_MASK, f'{len(masks)} masks for {len(detections)} boxes'
            )
        return Entry({'numbers': numbers}, {'bits': np.packbits(np.array(masks, bool), axis=-1)})

    shape = image.pixels.shape[:2]
    numbers = [d.number for d in detections]
    inputs = [*_inputs(image, segmenter), detect_key]
    key, entry = store.run(segmenter.name, segmenter.settings(), inputs, compute)
    return key, unpack_masks(entry, shape[1])


def unpack_masks(entry: Entry, width: int) -> list[MaskArray]:
    """Masks (H, W) of a stored result."""
    return list(np.unpackbits(entry.arrays['bits'], axis=-1, count=width).astype(bool))


def run_depth(image: WorkingImage, depth: DepthEstimator, store: Store) -> tuple[str, PointMap]:
    """Key and point map, from the stored depth and camera."""

    def compute() -> Entry:
        points = depth.estimate(image)
        z = np.where(points.valid, points.points[..., 2], 0.0).astype(np.float32)
        return Entry({'scale': points.scale}, {'depth': z, 'K': points.K})

    key, entry = store.run(depth.name, depth.settings(), _inputs(image, depth), compute)
    return key, unpack_points(entry)


def unpack_points(entry: Entry) -> PointMap:
    """Point map of a stored result."""
    z = entry.arrays['depth'].astype(float)
    return points_of_depth(z, entry.arrays['K'], entry.data['scale'])


def _inputs(image: WorkingImage, stage: Stage) -> list[str]:
    """Digests that a stage's result depends on: the picture, and the file that it reads."""
    digest = getattr(stage, 'digest', None)
    return [image.digest] + ([digest(image)] if digest else [])


def _box_entry(
    detections: Sequence[Detection],
    masks: Sequence[MaskArray],
    points: PointMap,
    settings: BoxSettings,
) -> Entry:
    objects, failures = [], []
    for detection, mask in zip(detections, masks, strict=True):
        try:
            objects.append(_label(detection, mask, points, settings).as_json())
        except AnnotationError as error:
            failures.append([error.kind.value, detection.label, error.text])
    return Entry({'objects': objects, 'failures': failures})


def _label(
    detection: Detection, mask: MaskArray, points: PointMap, settings: BoxSettings
) -> ObjectLabel:
    if detection.problem:
        raise AnnotationError(FailureKind.BAD_BOX, detection.problem)
    require_agreement(mask, detection.box_xyxy, settings)
    cloud = object_points(points, mask, settings)
    box = fit_box(cloud, settings)
    far = np.linalg.norm(cloud, axis=1)
    return ObjectLabel(
        label=detection.label,
        box_xyxy=detection.box_xyxy,
        centre=box.centre,
        vertices=vertices(box),
        closest=cloud[int(far.argmin())],
        furthest=cloud[int(far.argmax())],
        n_points=len(cloud),
        number=detection.number,
    )


def count_unasked(
    folder: Path,
    names: Sequence[str],
    images: ImageSettings,
    detector: str,
    settings: Mapping[str, object],
    out: Path,
) -> int:
    """Pictures that a detector, named with its settings, has no stored answer for.

    Copies count once. Nothing is decoded, so files that are no pictures count as well.
    """
    store = Store(out / STORE)
    unasked = set()
    for name in names:
        try:
            path = folder / name
            if path.stat().st_size <= images.max_bytes:
                unasked.add(image_digest(path.read_bytes(), images))
        except OSError:
            continue  # it will be counted when it is opened
    return sum(not store.has(detector, settings, [digest]) for digest in unasked)


def record_name(shard: tuple[int, int]) -> str:
    """Name of the file of records of share i (from 0) of n."""
    return f'records-{shard[0]:04d}-of-{shard[1]:04d}.jsonl'


def annotate_folder(
    folder: Path,
    names: Sequence[str],
    stages: Stages,
    out: Path,
    *,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Mapping[str, int]:
    """Annotate share i of n of the pictures; return counts.

    Results of stages are found again after a kill; the file of records is written whole, last.

    Raises:
        UserError: the disk is full or a service refuses for good.
    """
    store = Store(out / STORE)
    mine = names[shard[0] :: shard[1]]
    lines, counts = [], Counter[str]()
    for done, name in enumerate(mine):
        progress(done, len(mine))
        record = annotate_one(folder, name, stages, store)
        lines.append(json.dumps(record))
        counts.update(count_record(record))
    progress(len(mine), len(mine))
    write_atomically(out / record_name(shard), ''.join(f'{x}\n' for x in lines).encode())
    counts.update({f'stored:{stage}': n for stage, n in store.hits.items()})
    counts.update({f'made:{stage}': n for stage, n in store.made.items()})
    return dict(counts)


def annotate_one(folder: Path, name: str, stages: Stages, store: Store) -> dict[str, Any]:
    """Record of one picture: its annotation as JSON, or ``name`` and ``failure``."""
    try:
        image = open_image(folder, name, stages.images)
        return annotate_image(image, stages, store).as_json()
    except AnnotationError as error:
        return {'name': name, 'failure': [error.kind.value, error.text]}


def count_record(record: Mapping[str, Any]) -> Counter[str]:
    """Counts of one record: images, objects and failures by kind."""
    if 'failure' in record:
        return Counter({'images': 1, f'image:{record["failure"][0]}': 1})
    counts = Counter({'images': 1, 'annotated': 1, 'objects': len(record['objects'])})
    counts.update(f'object:{kind}' for kind, _, _ in record['failures'])
    return counts


def read_records(out: Path) -> list[dict[str, Any]]:
    """Records of all shares.

    Raises:
        UserError: none, a share missing, or shares of different counts.
    """
    files = sorted(out.glob('records-*-of-*.jsonl'))
    totals = {int(f.stem.rsplit('-', 1)[1]) for f in files}
    if len(totals) != 1:
        raise UserError(
            f'{out}: records of {sorted(totals)} shares; annotate first, with one number of shares.'
        )
    (n,) = totals
    missing = [i for i in range(n) if not (out / record_name((i, n))).is_file()]
    if missing:
        raise UserError(f'{out}: shares {missing[:10]} of {n} are missing; run "--shard i/{n}".')
    records = []
    for i in range(n):
        path = out / record_name((i, n))
        for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
            try:
                records.append(dict(json.loads(line)))
            except ValueError:
                raise UserError(f'{path}: line {number} is damaged; run the share again.') from None
    return records
