"""Simulated pictures with exact annotations and questions: the data of ``vlm_ablation.py``.

Views are those that the depth encoder is trained on (any camera, light and arm pose); masks, depth
and boxes are the simulator's own, the questions come from the code that asks about real pictures.
"""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np

from spear_ros.annotation.box_geometry import vertices
from spear_ros.annotation.given import points_of_depth
from spear_ros.annotation.questions import RawPair, answer_text, fit_bins, make_pairs
from spear_ros.annotation.types import ImageAnnotation, ObjectLabel, OrientedBox
from spear_ros.processing.tokens import LOC_TOKEN
from spear_ros.robots.registry import get_robot
from spear_ros.simulation.backend import mujoco, new_renderer
from spear_ros.simulation.catalogue import SIZE_VARIATION, split_name
from spear_ros.simulation.depth_views import DepthViewer
from spear_ros.simulation.tasks import HELD_OUT_SEEDS, TRAINING_SEEDS
from spear_ros.simulation.world import World

ROBOTS = ('fr3', 'wx250s')
RENDERED = (168, 210)
"""Rows and columns of depth and masks."""
STORED = (112, 140)
"""Of the pictures: what the network reads."""
LEAST_MASK_PX = 40
FARTHEST_M = 2.0
"""Random pixels are asked about up to here: the range of the objects, and of the 3D tokens."""
PIXEL_QUESTION = 'What is the 3D point at {place}?'
PLACE_QUESTION = 'Where in the image is the {a}?'
PER_FILE = 100


class LabelledViewer(DepthViewer):
    """Depth views with the objects in them."""

    def __init__(self, robot):
        self.world = World(get_robot(robot))
        super().__init__(self.world, RENDERED)
        height, width = RENDERED
        self.parts = new_renderer(self.world.model, width, height)
        self.parts.enable_segmentation_rendering()

    def _choose_camera(self, rng):
        self.camera, fov = super()._choose_camera(rng)
        return self.camera, fov

    def labelled(self, robot, seed):
        """Picture (stored size), annotation and point map of one seed."""
        view = self.view(seed)
        height, width = RENDERED
        focal = 0.5 * height / np.tan(0.5 * view.fov_y_rad)
        K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
        points = points_of_depth(np.where(view.depth_m < 6.5, view.depth_m, 0), K, 'metric')
        self.parts.update_scene(self.world.data, camera=self.camera)
        numbers, kinds = np.moveaxis(self.parts.render(), -1, 0)
        bodies = np.full(numbers.shape, -1)
        is_geom = kinds == int(mujoco.mjtObj.mjOBJ_GEOM)
        bodies[is_geom] = self.world.model.geom_bodyid[numbers[is_geom]]
        objects, seen = [], []
        for number, item in enumerate(self.world.scene.layout.objects, 1):
            _, shape = split_name(item.name)
            body = self.world.model.body(shape.name if shape.receptacle else f'slot{item.slot}').id
            mask = (bodies == body) & points.valid
            if mask.sum() < LEAST_MASK_PX:
                continue
            seen.append(item.name.replace('_', ' '))
            objects.append(self._label(item, shape, mask, points.points, number))
        annotation = ImageAnnotation(
            name=f'{robot}-{seed}',
            digest=hashlib.sha256(f'{robot}-{seed}'.encode()).hexdigest(),
            size=(width, height), scale='metric', K=K, detected=tuple(seen),
            objects=tuple(objects), failures=(), keys={'simulator': robot},
        )  # fmt: skip
        small = cv2.resize(view.image, STORED[::-1], interpolation=cv2.INTER_AREA)
        return small, annotation, points

    def _label(self, item, shape, mask, points, number):
        """True box and the extreme points of what is seen."""
        box = self._true_box(item, shape)
        cloud = points[mask]
        far = np.linalg.norm(cloud, axis=1)
        rows, columns = np.nonzero(mask)
        return ObjectLabel(
            label=item.name.replace('_', ' '),
            box_xyxy=tuple(map(float, (columns.min(), rows.min(), columns.max(), rows.max()))),
            centre=box.centre, vertices=vertices(box), closest=cloud[far.argmin()],
            furthest=cloud[far.argmax()], n_points=int(mask.sum()), number=number,
        )  # fmt: skip

    def _true_box(self, item, shape):
        model, data = self.world.model, self.world.data
        camera = model.camera(self.camera).id
        R = data.cam_xmat[camera].reshape(3, 3) * np.array([1.0, -1.0, -1.0])
        T = self.world.object_poses()[item.name]
        axes = T[:3, :3]
        if shape.fold == 0:
            # A round thing has no yaw: its box faces the camera.
            way = T[:2, 3] - data.cam_xpos[camera][:2]
            c, s = way / max(float(np.linalg.norm(way)), 1e-9)
            axes = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
        scale = self.world.gripper.object_scale
        if not shape.receptacle:
            scale = scale * SIZE_VARIATION[item.slot]
        return OrientedBox(
            centre=R.T @ (T[:3, 3] - data.cam_xpos[camera]), axes=R.T @ axes,
            extents=2 * scale * np.array(shape.half_extents),
        )  # fmt: skip

    def close(self):
        """Release everything."""
        super().close()
        self.parts.close()
        self.world.close()


def pixel_pairs(annotation, points, count):
    """``count`` questions about random pixels of one picture."""
    rng = np.random.default_rng(int(annotation.digest[16:32], 16))
    near = points.valid & (np.linalg.norm(points.points, axis=-1) < FARTHEST_M)
    places = np.argwhere(near)
    if not len(places):
        return []
    chosen = places[rng.integers(len(places), size=count)]
    return [
        RawPair(
            family='pixel', question=PIXEL_QUESTION.format(place=place_text((y, x))), answer='{}',
            lengths=(tuple(map(float, points.points[y, x])),), objects=(),
        )
        for y, x in chosen
    ]  # fmt: skip


def place_text(pixel):
    """A pixel (row, column) of the rendered picture as location tokens."""
    shares = (np.array(pixel) + 0.5) / RENDERED
    return ''.join(LOC_TOKEN.format(int(np.clip(s * 1024, 0, 1023))) for s in shares)


def centre_pixel(label, K):
    """(row, column) of an object's centre in the rendered picture."""
    x, y, z = label.centre
    return (K[1, 1] * y / z + K[1, 2], K[0, 0] * x / z + K[0, 2])


def render(folder: Path, scenes: int, held_out: int):
    """Render what is missing, block by block; every block is one file of raw pairs."""
    for split, seeds, count in (
        ('held_out', HELD_OUT_SEEDS, held_out),
        ('train', TRAINING_SEEDS, scenes),
    ):
        (folder / split / 'images').mkdir(parents=True, exist_ok=True)
        viewers = {}
        for first in range(0, count, PER_FILE):
            path = folder / split / f'raw-{first:06d}.json'
            if path.exists():
                continue
            lines = []
            for i in range(first, min(first + PER_FILE, count)):
                robot = ROBOTS[i % 2]
                if robot not in viewers:
                    viewers[robot] = LabelledViewer(robot)
                # A stride past the seeds that demonstrations use first.
                lines += one_scene(viewers[robot], robot, seeds.start + 50_000 + i, path.parent)
            path.write_text(json.dumps(lines))
            print(f'{path}', flush=True)
        for viewer in viewers.values():
            viewer.close()


def one_scene(viewer, robot, seed, folder):
    """Raw pairs of one scene as JSON, [] where nothing can be asked."""
    image, annotation, points = viewer.labelled(robot, seed)
    pairs = make_pairs(annotation)
    if not pairs:
        return []
    name = f'images/{robot}-{seed}.jpg'
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    assert cv2.imwrite(str(folder / name), bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])
    pixels = pixel_pairs(annotation, points, len(pairs))
    centres = {o.label: place_text(centre_pixel(o, annotation.K)) for o in annotation.objects}
    return [{
        'image': name, 'pairs': [as_json(p) for p in pairs],
        'pixels': [as_json(p) for p in pixels], 'centres': centres,
    }]  # fmt: skip


def as_json(pair):
    """A raw pair as plain lists."""
    return {f: getattr(pair, f) for f in pair.__dataclass_fields__}


def from_json(data):
    """Inverse of :func:`as_json`."""
    return RawPair(
        family=data['family'], question=data['question'], answer=data['answer'],
        lengths=tuple(tuple(g) for g in data['lengths']), places=tuple(data['places']),
        objects=tuple(data['objects']),
    )  # fmt: skip


def write_questions(folder: Path):
    """Bins and ``questions-00000.jsonl`` of both tasks from the raw pairs."""
    raw = {
        split: [line for f in sorted((folder / split).glob('raw-*.json'))
                for line in json.loads(f.read_text())]
        for split in ('train', 'held_out')
    }  # fmt: skip
    bins, how = fit_bins([from_json(p) for line in raw['train'] for p in line['pairs']])
    data = {'scale_type': 'metric', 'made_from': how, 'edges': bins.edges, 'centres': bins.centres}
    (folder / 'bins.json').write_text(json.dumps(data) + '\n')
    counts = {}
    for split, scenes in raw.items():
        for kind, suffix in (('pairs', ''), ('pixels', '_pixels')):
            lines = [
                line_of(split, scene, i, pair, bins)
                for scene in scenes
                for i, pair in enumerate(map(from_json, scene[kind]))
            ]
            counts[split + suffix] = len(lines)
            write_lines(folder / (split + suffix), lines)
        places = [place_line(split, s, o, t) for s in scenes for o, t in s['centres'].items()]
        places = [line for line in places if line is not None]
        counts[f'{split}_places'] = len(places)
        write_lines(folder / f'{split}_places', places)
    return {'scenes': {split: len(scenes) for split, scenes in raw.items()}, 'questions': counts}


def line_of(split, scene, i, pair, bins):
    """One question as training reads it."""
    return {
        'key': f'{Path(scene["image"]).stem}-{i}', 'image': f'../{split}/{scene["image"]}',
        'question': pair.question, 'answer': answer_text(pair, bins), 'family': pair.family,
        'scale_type': 'metric', 'objects': pair.objects, 'values': pair.lengths or [pair.places],
        'centres': [scene['centres'][o] for o in pair.objects],
    }  # fmt: skip


def place_line(split, scene, name, tokens):
    """A question in two dimensions, the training before the 3D training; None off the picture."""
    bins = [int(tokens[4:8]), int(tokens[13:17])]
    if any(b in (0, 1023) for b in bins):
        return None
    return {
        'key': f'{Path(scene["image"]).stem}-{name}', 'image': f'../{split}/{scene["image"]}',
        'question': PLACE_QUESTION.format(a=name), 'answer': tokens, 'family': 'place',
        'objects': [name], 'values': [[(b + 0.5) / 1024 for b in bins]],
    }  # fmt: skip


def write_lines(folder, lines):
    """One file of questions."""
    folder.mkdir(exist_ok=True)
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (folder / 'questions-00000.jsonl').write_text(text)
