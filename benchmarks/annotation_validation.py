"""Annotated boxes against the simulator's truth: overlap, centres, distances, both box kinds.

    python benchmarks/annotation_validation.py [--robot fr3] [--scenes 100] [--moge FOLDER]
    python benchmarks/annotation_validation.py --write DIR --scenes 5   # input of spear annotate

Scenes as the external camera sees them, brought to the working image (840 x 630) as the pipeline
does it. Masks are true; depth is true, or with --moge that of a converted or self-trained MoGe (its
scale is unknown: points are brought to the truth's by the median ratio of depth over the picture,
which no real picture would allow). Graspable objects only; overlap is judged for cubes and blocks,
whose true box is one; the others count for centres and distances. Seeds begin where no training
scene lies. Prints one JSON object in the last line.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from _machine import machine

from spear_ros.annotation.box_geometry import iou
from spear_ros.annotation.boxes import BOX_KINDS, BoxSettings, fit_box, object_points
from spear_ros.annotation.given import points_of_depth
from spear_ros.annotation.images import ImageSettings, to_working, working_camera
from spear_ros.annotation.types import AnnotationError, OrientedBox, WorkingImage
from spear_ros.core.types import EXTERNAL
from spear_ros.robots.registry import get_robot
from spear_ros.simulation.backend import mujoco, new_renderer
from spear_ros.simulation.world import World

FIRST_SEED = 2_500_000
FAR_M = 6.5
SIZE = (ImageSettings().width, ImageSettings().height)


@dataclass(frozen=True)
class Thing:
    """One graspable object: what the pipeline is told of it, and the truth."""

    label: str
    mask: np.ndarray
    box: OrientedBox
    is_box: bool


class TruthViewer:
    """Picture, depth and objects of the external camera, exact."""

    def __init__(self, robot):
        self.world = World(get_robot(robot))
        info = self.world.camera_info(EXTERNAL)
        self.depth = new_renderer(self.world.model, info.width, info.height)
        self.depth.enable_depth_rendering()
        self.parts = new_renderer(self.world.model, info.width, info.height)
        self.parts.enable_segmentation_rendering()

    def view(self, seed):
        """Picture, depth (0 = unknown), camera matrix, things; original size."""
        world = self.world
        scene = world.reset_scene(seed)
        mujoco.mj_forward(world.model, world.data)
        info = world.camera_info(EXTERNAL)
        self.depth.update_scene(world.data, camera=EXTERNAL)
        self.parts.update_scene(world.data, camera=EXTERNAL)
        depth = self.depth.render().astype(float)
        depth = np.where(depth < FAR_M, depth, 0.0)
        numbers, kinds = np.moveaxis(self.parts.render(), -1, 0)
        numbers = np.where(kinds == int(mujoco.mjtObj.mjOBJ_GEOM), numbers, -1)
        names = {f'slot{o.slot}': o.name for o in scene.layout.objects}
        things = []
        for geom in np.unique(numbers[numbers >= 0]):
            body = world.model.body(world.model.geom(geom).bodyid[0]).name
            if body.startswith('slot'):
                box, is_box = self.true_box(geom, info.T_base_camera)
                things.append(Thing(names[body], numbers == geom, box, is_box))
        return world.render(EXTERNAL), depth, info.K, things

    def true_box(self, geom, T_base_camera):
        """Box in the camera frame, and whether the object is one."""
        model, data = self.world.model, self.world.data
        size, kind = model.geom_size[geom], model.geom_type[geom]
        half = {
            int(mujoco.mjtGeom.mjGEOM_BOX): size,
            int(mujoco.mjtGeom.mjGEOM_CYLINDER): size[[0, 0, 1]],
            int(mujoco.mjtGeom.mjGEOM_SPHERE): size[[0, 0, 0]],
        }[int(kind)]
        R = T_base_camera[:3, :3].T
        axes = R @ data.geom_xmat[geom].reshape(3, 3)
        centre = R @ (data.geom_xpos[geom] - T_base_camera[:3, 3])
        box = OrientedBox(centre=centre, axes=axes, extents=2 * np.array(half))
        return box, int(kind) == int(mujoco.mjtGeom.mjGEOM_BOX)

    def close(self):
        """Release the renderers."""
        self.depth.close()
        self.parts.close()
        self.world.close()


def load_moge(folder):
    """A depth estimator; torch is loaded for it alone."""
    from spear_ros.annotation.moge_depth import MogeDepth

    return MogeDepth.from_folder(folder)


def point_map(image, depth, K, moge, told):
    """True points of the working image, or MoGe's brought to the truth's scale."""
    original = (image.shape[1], image.shape[0])
    camera = working_camera(K, original, SIZE)
    truth = points_of_depth(to_working(depth, SIZE, smooth=False), camera, 'metric')
    if moge is None:
        return truth
    pixels = to_working(image, SIZE, smooth=True)
    guess = moge.estimate(WorkingImage(name='', digest='', pixels=pixels, original_size=original))
    both = truth.valid & guess.valid
    true_z, z = truth.points[both][:, 2], guess.points[both][:, 2]
    ratio = np.median(true_z / z)
    told['depth_error'].append(float(np.mean(np.abs(ratio * z - true_z) / true_z)))
    told['focal_ratio'].append(float(guess.K[0, 0] / camera[0, 0]))
    return replace(guess, points=guess.points * ratio)


def clouds(points, things):
    """Points of each object, or the kind of failure; the same for both kinds of box."""
    for thing in things:
        mask = to_working(thing.mask, SIZE, smooth=False)
        try:
            yield object_points(points, mask, BoxSettings())
        except AnnotationError as error:
            yield error.kind.value


def measure(things, found_clouds, kind, result):
    """Add the errors of one scene for one kind of box."""
    settings, found = BoxSettings(kind=kind), []
    for thing, cloud in zip(things, found_clouds, strict=True):
        result['objects'] += 1
        try:
            box = None if isinstance(cloud, str) else fit_box(cloud, settings)
        except AnnotationError as error:
            box, cloud = None, error.kind.value
        if box is None:
            result['failures'][cloud] = result['failures'].get(cloud, 0) + 1
            continue
        result['centre_m'].append(np.linalg.norm(box.centre - thing.box.centre))
        if thing.is_box:
            result['iou'].append(iou(box, thing.box))
        found.append((box.centre, thing.box.centre))
    for i, (a, true_a) in enumerate(found):
        for b, true_b in found[:i]:
            result['distance_xyz_m'] += np.abs((a - b) - (true_a - true_b)).tolist()
            error = np.linalg.norm(a - b) - np.linalg.norm(true_a - true_b)
            result['distance_m'].append(abs(error))


def empty():
    """Nothing measured yet."""
    lists = ('iou', 'centre_m', 'distance_m', 'distance_xyz_m')
    return {'objects': 0, 'failures': {}, **{name: [] for name in lists}}


def quantiles(values):
    """Median, 10 % and 90 % quantiles."""
    if not len(values):
        return {'n': 0}
    shares = {'p10': 0.1, 'median': 0.5, 'p90': 0.9}
    told = {name: round(float(np.quantile(values, q)), 4) for name, q in shares.items()}
    return {'n': len(values), **told}


def write(folder, seed, scene):
    """One scene as pictures, boxes, masks and depth that ``spear annotate`` takes."""
    image, depth, K, things = scene
    boxes, labels = [], np.zeros(depth.shape, np.uint8)
    for number, thing in enumerate(things, 1):
        rows, columns = np.where(thing.mask)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        boxes.append({'label': thing.label, 'box_xyxy': [int(v) for v in box]})
        labels[thing.mask] = number
    for name in ('images', 'boxes', 'masks', 'depth'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f'images/{seed}.png'), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    cv2.imwrite(str(folder / f'masks/{seed}.png'), labels)
    (folder / f'boxes/{seed}.json').write_text(json.dumps({'boxes': boxes}))
    np.savez_compressed(folder / f'depth/{seed}.npz', depth=depth, K=K, scale='metric')


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--robot', default='fr3')
    parser.add_argument('--scenes', type=int, default=100)
    parser.add_argument('--first-seed', type=int, default=FIRST_SEED)
    parser.add_argument('--moge', type=Path)
    parser.add_argument('--write', type=Path, metavar='DIR', help='write scenes, measure nothing')
    args = parser.parse_args()
    moge = None if args.moge is None else load_moge(args.moge)
    started = time.process_time()
    results = {kind: empty() for kind in BOX_KINDS}
    told = {'depth_error': [], 'focal_ratio': []}
    untrusted = 0
    viewer = TruthViewer(args.robot)
    try:
        for seed in range(args.first_seed, args.first_seed + args.scenes):
            scene = viewer.view(seed)
            if args.write is not None:
                write(args.write, seed, scene)
                continue
            image, depth, K, things = scene
            try:
                points = point_map(image, depth, K, moge, told)
            except AnnotationError:
                untrusted += 1
                continue
            found = list(clouds(points, things))
            for kind in BOX_KINDS:
                measure(things, found, kind, results[kind])
            if seed % 10 == 9:
                done = seed - args.first_seed + 1
                told_so_far = {k: quantiles(r['iou']) for k, r in results.items()}
                print(f'{done} scenes: {told_so_far}', file=sys.stderr, flush=True)
    finally:
        viewer.close()
    summary = {
        kind: {k: quantiles(v) if isinstance(v, list) else v for k, v in result.items()}
        for kind, result in results.items()
    }
    depth = 'true' if moge is None else str(args.moge)
    more = {name: quantiles(values) for name, values in told.items()} if moge else {}
    print(
        json.dumps(
            {
                'robot': args.robot, 'scenes': args.scenes, 'first_seed': args.first_seed,
                'depth': depth, 'scenes_without_depth': untrusted, **more, **summary,
                'cpu_s': round(time.process_time() - started, 1), **machine(),
            }
        )
    )  # fmt: skip


if __name__ == '__main__':
    main()
