"""Annotated pictures to look at: PNGs and one HTML page that shows them with their questions."""

import html
import itertools
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
VIEW_YAW, VIEW_PITCH = 50.0, 15.0
"""Degrees; the view of the cloud from the side."""
PAPER = 205
"""Grey behind the cloud: white things must be seen."""


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
    """The picture with masks tinted, 3D boxes projected and labels written.

    The near side of a box is drawn bold; a dot marks its first vertex (near, top, left).
    """
    canvas = rgb.copy()
    coloured = list(zip(annotation.objects, _colours(), strict=False))
    for thing, colour in coloured:
        mask = masks.get(thing.number)
        if mask is not None:
            canvas[mask] = (0.6 * canvas[mask] + 0.4 * np.array(colour)).astype(np.uint8)
    for thing, colour in coloured:
        pixels = project(thing.vertices, annotation.K)
        _draw_edges(canvas, pixels, colour)
        if np.isfinite(pixels[0]).all():
            cv2.circle(canvas, _pixel(pixels[0]), 5, colour, -1, cv2.LINE_AA)
    for thing, colour in coloured:
        x, y = (int(v) for v in thing.box_xyxy[:2])
        _write(canvas, thing.label, (max(x, 2), max(y - 6, 16)), colour)
    return canvas


def draw_cloud(
    rgb: ImageArray,
    annotation: ImageAnnotation,
    masks: Mapping[int, MaskArray],
    cloud: FloatArray,
) -> ImageArray:
    """Points around the objects from above and from the side (side, 2 * side), in their colours.

    From above: x to the right, z upwards. From the side: turned by VIEW_YAW and VIEW_PITCH about
    the objects' middle. Points of masks are tinted; the bar says how long a part of the view is.
    """
    side = rgb.shape[0]
    if not annotation.objects:
        return np.full((side, 2 * side, 3), PAPER, np.uint8)
    colours = rgb.astype(float)
    for thing, colour in zip(annotation.objects, _colours(), strict=False):
        mask = masks.get(thing.number)
        if mask is not None:
            colours[mask] = 0.5 * colours[mask] + 0.5 * np.array(colour)
    known = cloud[..., 2] > 0
    points, colours = cloud[known], colours[known].astype(np.uint8)
    from_above = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    views = [_view(side, annotation, points, colours, R) for R in (from_above, _oblique())]
    return np.concatenate(views, axis=1)


def _view(
    side: int, annotation: ImageAnnotation, points: FloatArray, colours: ImageArray, R: FloatArray
) -> ImageArray:
    """Parallel view along the third axis of ``R`` (view axes from camera axes), square."""
    canvas = np.full((side, side, 3), PAPER, np.uint8)
    corners = np.concatenate([o.vertices for o in annotation.objects])
    low, high = (corners @ R.T).min(axis=0), (corners @ R.T).max(axis=0)
    middle, span = (low + high) / 2, float((high - low)[:2].max())
    scale = 0.6 * side / span

    def place(what: FloatArray) -> np.ndarray:
        return ((what @ R.T - middle) * scale)[:, :2] + side / 2

    far_first = np.argsort(-(points @ R[2]))
    dots = place(points[far_first]).astype(int)
    seen = ((dots >= 0) & (dots < side - 1)).all(axis=1)
    dots, tints = dots[seen], colours[far_first][seen]
    for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
        canvas[dots[:, 1] + down, dots[:, 0] + right] = tints
    for thing, colour in zip(annotation.objects, _colours(), strict=False):
        flat = place(thing.vertices)
        _draw_edges(canvas, flat, colour)
        _write(canvas, thing.label, _pixel(flat.min(axis=0) - (0, 8)), colour)
    length = 10.0 ** np.floor(np.log10(0.5 * span))
    unit = 'm' if annotation.scale == 'metric' else '(affine)'
    end = (10 + round(length * scale), side - 12)
    cv2.line(canvas, (10, side - 12), end, (0, 0, 0), 2)
    _write(canvas, f'{length:g} {unit}', (10, side - 20), (0, 0, 0))
    return canvas


def _oblique() -> FloatArray:
    """View axes from camera axes (3, 3): turned to the side, then looked at from higher up."""
    yaw, pitch = np.deg2rad(VIEW_YAW), np.deg2rad(VIEW_PITCH)
    c, s, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    turn = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    return np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]]) @ turn


def _colours() -> Iterator[tuple[int, int, int]]:
    return itertools.cycle(COLOURS)


def _pixel(place: FloatArray) -> tuple[int, int]:
    x, y = np.clip(place, -1e4, 1e4)
    return int(x), int(y)


def _draw_edges(canvas: ImageArray, pixels: FloatArray, colour: tuple[int, int, int]) -> None:
    """Edges of a box whose 8 vertices lie at ``pixels`` (8, 2); those of the near side are bold."""
    for a, b in edges():
        if np.isfinite(pixels[[a, b]]).all():
            bold = 3 if max(a, b) < 4 else 1
            cv2.line(canvas, _pixel(pixels[a]), _pixel(pixels[b]), colour, bold, cv2.LINE_AA)


def _write(
    canvas: ImageArray, text: str, place: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    """Text on a white ground, kept inside of the picture."""
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 2)
    x = int(np.clip(place[0], 2, max(2, canvas.shape[1] - width - 2)))
    y = int(np.clip(place[1], height + 3, canvas.shape[0] - 4))
    cv2.rectangle(canvas, (x - 2, y - height - 3), (x + width + 2, y + 4), (255, 255, 255), -1)
    cv2.putText(canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.6, colour, 2, cv2.LINE_AA)


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
