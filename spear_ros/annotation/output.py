"""Training data from records: pictures, annotations, questions with answers, bins and a report.

``OUT/train`` and ``OUT/val`` each hold ``questions-NNNNN.jsonl`` (one pair a line, with provenance
and scale type), ``annotations-NNNNN.jsonl`` and ``images/``; ``OUT/bins.json`` holds the 3D tokens'
bins, fitted on the training answers. One folder has one scale type: metric and affine lengths never
share a table of bins.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from spear_ros.annotation.images import ImageSettings, open_image
from spear_ros.annotation.pipeline import count_record, read_records
from spear_ros.annotation.questions import (
    RawPair,
    answer_text,
    fit_bins,
    make_pairs,
    round_trip_errors,
)
from spear_ros.annotation.store import write_atomically
from spear_ros.annotation.types import (
    AnnotationError,
    FailureKind,
    ImageAnnotation,
    ScaleType,
)
from spear_ros.core.errors import UserError
from spear_ros.processing.spatial_bins import SpatialBins, read_bins

SPLITS = ('train', 'val')
BINS = 'bins.json'


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputSettings:
    """How the training data are written."""

    val_percent: int = 5
    """Pictures held out, chosen by their content."""
    images_per_file: int = 1000
    scale: ScaleType | None = None
    """Which scale type to keep where both occur; None refuses a mixture."""
    source: str = ''
    """Name of the data, for provenance and for mixture weights."""
    bins: Path | None = None
    """A table to use in place of one fitted on these answers."""


def split_of(annotation: ImageAnnotation, val_percent: int) -> str:
    """``val`` for about so many percent of pictures, by their content: copies stay together."""
    return 'val' if int(annotation.digest[-8:], 16) % 100 < val_percent else 'train'


def write_output(
    folder: Path, out: Path, images: ImageSettings, settings: OutputSettings
) -> dict[str, Any]:
    """Write everything from the records in ``out``; return the report, which is written too.

    Raises:
        UserError: records are missing, scale types are mixed, a picture has changed since, or no
            question could be made.
    """
    records = read_records(out)
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(count_record(record))
    annotations = _usable(records, settings, counts, out)
    pairs = [make_pairs(a) for a in annotations]
    counts[f'image:{FailureKind.NO_QUESTION.value}'] += sum(not p for p in pairs)
    asked = [(a, p) for a, p in zip(annotations, pairs, strict=True) if p]
    if not asked:
        raise UserError(f'{out}: no question could be made from {len(records)} pictures.')
    parts = {s: [x for x in asked if split_of(x[0], settings.val_percent) == s] for s in SPLITS}
    scale = asked[0][0].scale
    bins, how = _bins([pair for _, p in parts['train'] or asked for pair in p], scale, settings)
    write_atomically(out / BINS, _bins_json(bins, scale, how).encode())
    for split, part in parts.items():
        _write_split(folder, out / split, part, bins, images, settings)
    report = {
        'counts': dict(sorted(counts.items())),
        'scale_type': scale,
        'pairs': {s: sum(len(p) for _, p in part) for s, part in parts.items()},
        'families': dict(sorted(Counter(p.family for _, q in asked for p in q).items())),
        'bins': how,
        'round_trip_error': round_trip_errors([p for _, q in asked for p in q], bins),
    }
    write_atomically(out / 'report.json', (json.dumps(report, indent=2) + '\n').encode())
    return report


def _bins(
    training: Sequence[RawPair], scale: ScaleType, settings: OutputSettings
) -> tuple[SpatialBins, str]:
    """The table of bins and how it was made."""
    if settings.bins is None:
        return fit_bins(training)
    bins, of = read_bins(settings.bins)
    if of != scale:
        raise UserError(f'{settings.bins}: bins of {of} lengths, these are {scale}; leave it away.')
    return bins, f'given: {settings.bins.name}'


def _bins_json(bins: SpatialBins, scale: str, how: str) -> str:
    data = {'scale_type': scale, 'made_from': how, 'edges': bins.edges, 'centres': bins.centres}
    return json.dumps(data) + '\n'


def _usable(
    records: Sequence[Mapping[str, Any]],
    settings: OutputSettings,
    counts: Counter[str],
    out: Path,
) -> list[ImageAnnotation]:
    """Annotations of different pictures, in the order of their content, of one scale type."""
    by_digest: dict[str, ImageAnnotation] = {}
    try:
        for record in records:
            if 'failure' not in record:
                annotation = ImageAnnotation.from_json(record)
                counts['copies'] += annotation.digest in by_digest
                by_digest.setdefault(annotation.digest, annotation)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f'{out}: a record is damaged ({error}); annotate again.') from None
    found = [by_digest[d] for d in sorted(by_digest)]
    scales = Counter(a.scale for a in found)
    if len(scales) > 1 and settings.scale is None:
        raise UserError(
            f'{out}: {scales["metric"]} pictures are metric and {scales["affine"]} affine; choose '
            'one with --scale, the two are never mixed.'
        )
    kept = [a for a in found if a.scale == (settings.scale or a.scale)]
    counts['other_scale'] += len(found) - len(kept)
    return kept


def _write_split(
    folder: Path,
    place: Path,
    part: Sequence[tuple[ImageAnnotation, list[RawPair]]],
    bins: SpatialBins,
    images: ImageSettings,
    settings: OutputSettings,
) -> None:
    count = math.ceil(len(part) / settings.images_per_file)
    for kind in ('questions', 'annotations'):
        for old in place.glob(f'{kind}-*.jsonl'):
            if int(old.stem.rsplit('-', 1)[1]) >= count:
                old.unlink()  # of an earlier, larger run
    for number in range(count):
        start = number * settings.images_per_file
        chosen = part[start : start + settings.images_per_file]
        asked, labels = [], []
        for annotation, pairs in chosen:
            picture = _write_picture(folder, place, annotation, images)
            asked += [
                _line(annotation, pair, f'{annotation.digest[:16]}-{i}', picture, bins, settings)
                for i, pair in enumerate(pairs)
            ]
            labels.append({**annotation.as_json(), 'image': picture, 'source': settings.source})
        for kind, lines in (('annotations', labels), ('questions', asked)):
            text = ''.join(json.dumps(line) + '\n' for line in lines)
            write_atomically(place / f'{kind}-{number:05d}.jsonl', text.encode())


def _line(
    annotation: ImageAnnotation,
    pair: RawPair,
    key: str,
    picture: str,
    bins: SpatialBins,
    settings: OutputSettings,
) -> dict[str, object]:
    return {
        'key': key,
        'image': picture,
        'question': pair.question,
        'answer': answer_text(pair, bins),
        'family': pair.family,
        'scale_type': annotation.scale,
        'objects': pair.objects,
        'values': pair.lengths or [pair.places],
        'provenance': {
            'name': annotation.name, 'source': settings.source, 'stages': dict(annotation.keys),
        },
    }  # fmt: skip


def _write_picture(
    folder: Path, place: Path, annotation: ImageAnnotation, images: ImageSettings
) -> str:
    relative = f'images/{annotation.digest[:2]}/{annotation.digest}.jpg'
    path = place / relative
    if path.is_file():
        return relative
    try:
        image = open_image(folder, annotation.name, images)
    except AnnotationError as error:
        raise UserError(f'{folder / annotation.name}: {error.text}; annotate again.') from None
    if image.digest != annotation.digest:
        raise UserError(f'{folder / annotation.name}: changed since; annotate again.')
    bgr = cv2.cvtColor(image.pixels, cv2.COLOR_RGB2BGR)
    ok, jpeg = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])
    assert ok
    write_atomically(path, jpeg.tobytes())
    return relative
