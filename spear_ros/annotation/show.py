"""Annotated pictures to look at: PNGs and one HTML page that shows them with their questions."""

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from spear_ros.annotation.box_geometry import edges, project
from spear_ros.annotation.output import SPLITS
from spear_ros.annotation.pipeline import STORE, unpack_masks, unpack_points
from spear_ros.annotation.store import Store, write_atomically
from spear_ros.annotation.types import ImageAnnotation, MaskArray
from spear_ros.core.errors import UserError
from spear_ros.core.types import FloatArray, ImageArray

COLOURS = ((230, 60, 60), (60, 170, 60), (70, 90, 230), (220, 160, 30), (160, 60, 190))
MAX_CLOUD = 4000


def write_page(out: Path, count: int) -> Path:
    """Write ``OUT/show/index.html`` and PNGs of the first pictures; return the page's path.

    Raises:
        UserError: nothing annotated in ``out``, or a damaged line.
    """
    sections = []
    for split, label, pairs in _labels(out):
        if len(sections) == count:
            break
        annotation = ImageAnnotation.from_json(label)
        picture = cv2.imread(str(out / split / str(label['image'])))
        if picture is None:
            raise UserError(f'{out / split / str(label["image"])}: missing; run with --finish.')
        masks, cloud = _stored(out, annotation)
        rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        stem = annotation.digest[:16]
        drawn = {
            f'{stem}-boxes.png': draw(rgb, annotation, masks),
            f'{stem}-cloud.png': draw_cloud(rgb, annotation, masks, cloud),
        }
        for name, image in drawn.items():
            ok, png = cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            assert ok
            write_atomically(out / 'show' / name, png.tobytes())
        sections.append(_section(annotation, list(drawn), pairs))
    if not sections:
        raise UserError(f'{out}: no annotated pictures; run "spear annotate" first.')
    page = out / 'show' / 'index.html'
    text = _PAGE.format(name=html.escape(out.name), sections='\n'.join(sections))
    write_atomically(page, text.encode())
    return page


def draw(
    rgb: ImageArray, annotation: ImageAnnotation, masks: Mapping[int, MaskArray]
) -> ImageArray:
    """The picture with masks tinted, 3D boxes projected and labels written."""
    canvas = rgb.copy()
    for i, thing in enumerate(annotation.objects):
        colour = COLOURS[i % len(COLOURS)]
        mask = masks.get(thing.number)
        if mask is not None:
            canvas[mask] = (0.6 * canvas[mask] + 0.4 * np.array(colour)).astype(np.uint8)
        pixels = project(thing.vertices, annotation.K)
        for a, b in edges():
            if np.isfinite(pixels[[a, b]]).all():
                ends = [tuple(int(v) for v in np.clip(pixels[k], -1e4, 1e4)) for k in (a, b)]
                cv2.line(canvas, ends[0], ends[1], colour, 2, cv2.LINE_AA)
        x, y = (int(v) for v in thing.box_xyxy[:2])
        place = (max(x, 2), max(y - 4, 12))
        cv2.putText(canvas, thing.label, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1,
                    cv2.LINE_AA)  # fmt: skip
    return canvas


def draw_cloud(
    rgb: ImageArray,
    annotation: ImageAnnotation,
    masks: Mapping[int, MaskArray],
    cloud: FloatArray,
) -> ImageArray:
    """Object points and boxes from above (x to the right, z upwards), square."""
    side = rgb.shape[0]
    canvas = np.full((side, side, 3), 255, np.uint8)
    corners = [o.vertices[:, [0, 2]] for o in annotation.objects]
    if not corners:
        return canvas
    everything = np.concatenate(corners)
    low, high = everything.min(axis=0), everything.max(axis=0)
    scale = 0.8 * side / float((high - low).max())
    middle = (low + high) / 2

    def place(points: FloatArray) -> np.ndarray:
        moved = (points - middle) * (scale, -scale) + side / 2
        return np.clip(moved, -1e4, 1e4).astype(int)

    for i, thing in enumerate(annotation.objects):
        colour = COLOURS[i % len(COLOURS)]
        mask = masks.get(thing.number)
        if mask is not None:
            points = cloud[mask][:: max(1, int(mask.sum()) // MAX_CLOUD)]
            dots = place(points[points[:, 2] > 0][:, [0, 2]])
            dots = dots[((dots >= 0) & (dots < side)).all(axis=1)]
            canvas[dots[:, 1], dots[:, 0]] = colour
        flat = place(thing.vertices[:, [0, 2]])
        for a, b in edges():
            cv2.line(canvas, flat[a].tolist(), flat[b].tolist(), colour, 1, cv2.LINE_AA)
    return canvas


def _labels(out: Path) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Split, annotation and pairs of each picture."""
    for split in SPLITS:
        for file in sorted((out / split).glob('annotations-*.jsonl')):
            asked = file.with_name(file.name.replace('annotations', 'questions'))
            pairs: dict[str, list[dict[str, Any]]] = {}
            for pair in _lines(asked):
                pairs.setdefault(str(pair.get('image')), []).append(pair)
            for label in _lines(file):
                yield split, label, pairs.get(str(label.get('image')), [])


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        for line in file.read_text(encoding='utf-8').splitlines():
            yield dict(json.loads(line))
    except (OSError, ValueError) as error:
        raise UserError(f'{file}: cannot be read ({error}); run with --finish again.') from None


def _stored(out: Path, annotation: ImageAnnotation) -> tuple[dict[int, MaskArray], FloatArray]:
    """Masks by the number of their object, and points (H, W, 3), where the store has them."""
    store = Store(out / STORE)
    width, height = annotation.size
    masks: dict[int, MaskArray] = {}
    cloud = np.zeros((height, width, 3))
    for stage, key in annotation.keys.items():
        entry = store.load(stage, key)
        if entry is not None and 'bits' in entry.arrays:
            masks = dict(zip(entry.data['numbers'], unpack_masks(entry, width), strict=True))
        if entry is not None and 'depth' in entry.arrays:
            cloud = unpack_points(entry).points
    return masks, cloud


def _section(
    annotation: ImageAnnotation, pictures: Sequence[str], pairs: Sequence[Mapping[str, Any]]
) -> str:
    images = ''.join(f'<img src="{html.escape(p)}" alt="">' for p in pictures)
    rows = ''.join(
        '<tr>' + ''.join(f'<td>{html.escape(str(p[k]))}</td>' for k in _COLUMNS) + '</tr>'
        for p in pairs
    )
    failures = ''.join(f'<li>{html.escape(f"{f.where}: {f.kind} {f.text}")}</li>'
                       for f in annotation.failures)  # fmt: skip
    title = html.escape(f'{annotation.name} ({annotation.scale})')
    return f'<h2>{title}</h2>{images}<table>{rows}</table><ul>{failures}</ul>'


_COLUMNS = ('family', 'question', 'answer', 'values')
_PAGE = """<!doctype html>
<meta charset="utf-8"><title>{name}</title>
<style>body{{font:14px sans-serif;margin:2em}}img{{max-width:48%}}td{{padding:4px 12px;
vertical-align:top;overflow-wrap:anywhere}}</style>
<h1>{name}</h1>
{sections}
"""
