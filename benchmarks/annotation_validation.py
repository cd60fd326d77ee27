"""Annotated boxes against the simulator's truth: overlap, centres, distances, both box kinds.

    python benchmarks/annotation_validation.py [--robot fr3] [--scenes 200] [--moge FOLDER]

Scenes as the external camera sees them. Masks are true; depth is true, or with --moge that of a
converted MoGe (its scale is unknown: points are brought to the truth's by the median ratio of depth
over the picture, which no real picture would allow). Graspable objects only; overlap is judged for
cubes and blocks, whose true box is one; the others count for centres and distances.
Prints one JSON object in the last line.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from spear_ros.annotation.box_geometry import iou
from spear_ros.annotation.boxes import BOX_KINDS, BoxSettings, fit_box, object_points
from spear_ros.annotation.given import points_of_depth
from spear_ros.annotation.moge_depth import MogeDepth
from spear_ros.annotation.types import AnnotationError, OrientedBox, WorkingImage
from spear_ros.core.types import EXTERNAL
from spear_ros.robots.registry import get_robot
from spear_ros.simulation.backend import mujoco, new_renderer
from spear_ros.simulation.world import World


class TruthViewer:
    """Depth and objects of the external camera, exact."""

    def __init__(self, robot):
        self.world = World(get_robot(robot))
        info = self.world.camera_info(EXTERNAL)
        self.depth = new_renderer(self.world.model, info.width, info.height)
        self.depth.enable_depth_rendering()
        self.parts = new_renderer(self.world.model, info.width, info.height)
        self.parts.enable_segmentation_rendering()

    def view(self, seed):
        """Picture, depth, camera, and (mask, true box, is a box) of each graspable object."""
        world = self.world
        world.reset_scene(seed)
        mujoco.mj_forward(world.model, world.data)
        info = world.camera_info(EXTERNAL)
        self.depth.update_scene(world.data, camera=EXTERNAL)
        self.parts.update_scene(world.data, camera=EXTERNAL)
        depth = self.depth.render().astype(float)
        numbers, kinds = np.moveaxis(self.parts.render(), -1, 0)
        numbers = np.where(kinds == int(mujoco.mjtObj.mjOBJ_GEOM), numbers, -1)
        things = [
            (numbers == i, *self.true_box(i, info.T_base_camera))
            for i in np.unique(numbers[numbers >= 0])
            if world.model.body(world.model.geom(i).bodyid[0]).name.startswith('slot')
        ]
        return world.render(EXTERNAL), depth, info.K, things

    def true_box(self, geom, T_base_camera):
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
        self.depth.close()
        self.parts.close()
        self.world.close()


def point_map(image, depth, K, moge):
    """True points, or MoGe's brought to the truth's scale."""
    truth = points_of_depth(np.where(depth < 6.5, depth, 0), K, 'metric')
    if moge is None:
        return truth
    size = (image.shape[1], image.shape[0])
    guess = moge.estimate(WorkingImage(name='', digest='', pixels=image, original_size=size))
    both = truth.valid & guess.valid
    ratio = np.median(truth.points[both][:, 2] / guess.points[both][:, 2])
    return replace(guess, points=guess.points * ratio)


def measure(scene, moge, results):
    """Add the errors of one scene."""
    image, depth, K, things = scene
    points = point_map(image, depth, K, moge)
    for kind in BOX_KINDS:
        settings, found = BoxSettings(kind=kind), []
        for mask, truth, is_box in things:
            results[kind]['objects'] += 1
            try:
                box = fit_box(object_points(points, mask, settings), settings)
            except AnnotationError as error:
                failed = results[kind]['failures']
                failed[error.kind.value] = failed.get(error.kind.value, 0) + 1
                continue
            results[kind]['centre_m'].append(np.linalg.norm(box.centre - truth.centre))
            if is_box:
                results[kind]['iou'].append(iou(box, truth))
            found.append((box.centre, truth.centre))
        for i, (a, true_a) in enumerate(found):
            for b, true_b in found[:i]:
                error = np.linalg.norm(a - b) - np.linalg.norm(true_a - true_b)
                results[kind]['distance_m'].append(abs(error))


def summary(result):
    """Medians and 90 % quantiles."""
    told = {'objects': result['objects'], 'failures': result['failures']}
    for name in ('iou', 'centre_m', 'distance_m'):
        values = np.array(result[name])
        told[name] = {'n': len(values)}
        if len(values):
            told[name] |= {
                'median': round(float(np.median(values)), 4),
                'p10': round(float(np.quantile(values, 0.1)), 4),
                'p90': round(float(np.quantile(values, 0.9)), 4),
            }
    return told


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--robot', default='fr3')
    parser.add_argument('--scenes', type=int, default=200)
    parser.add_argument('--moge', type=Path)
    args = parser.parse_args()
    moge = None if args.moge is None else MogeDepth.from_folder(args.moge)
    viewer = TruthViewer(args.robot)
    results = {
        kind: {'objects': 0, 'failures': {}, 'iou': [], 'centre_m': [], 'distance_m': []}
        for kind in BOX_KINDS
    }
    try:
        for seed in range(args.scenes):
            measure(viewer.view(seed), moge, results)
    finally:
        viewer.close()
    depth = 'true' if moge is None else 'moge'
    told = {kind: summary(result) for kind, result in results.items()}
    print(json.dumps({'robot': args.robot, 'scenes': args.scenes, 'depth': depth, **told}))


if __name__ == '__main__':
    main()
