from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from spear_ros.annotation.box_geometry import (
    canonical,
    contains,
    edges,
    iou,
    project,
    vertices,
)
from spear_ros.annotation.types import OrientedBox

seeds = st.integers(0, 2**32 - 1)


def random_box(rng, centre=(0, 0, 2)):
    axes = Rotation.from_rotvec(rng.normal(size=3) * 2).as_matrix()
    return OrientedBox(
        centre=np.array(centre) + rng.normal(size=3) * 0.1,
        axes=axes,
        extents=rng.uniform(0.05, 1.0, 3),
    )


def relabelings(box):
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        axes = box.axes[:, order] * np.array(signs)
        if np.linalg.det(axes) > 0:
            yield OrientedBox(centre=box.centre, axes=axes, extents=box.extents[list(order)])


@settings(deadline=None, max_examples=60)
@given(seeds)
def test_vertices_do_not_depend_on_how_the_axes_are_named(seed):
    box = random_box(np.random.default_rng(seed))
    same = list(relabelings(box))
    assert len(same) == 24
    for other in same:
        np.testing.assert_allclose(vertices(other), vertices(box), atol=1e-9)


@pytest.mark.parametrize(
    'turn', [(0, 0, 45), (0, 45, 0), (45, 0, 0), (0, 0, 0), (90, 0, 0), (45, 45, 0), (0, 180, 90)]
)
def test_boxes_midway_between_axes_have_one_order_too(turn):
    axes = Rotation.from_euler('xyz', turn, degrees=True).as_matrix()
    for extents in ((1.0, 2.0, 3.0), (1.0, 1.0, 1.0)):
        box = OrientedBox(centre=np.zeros(3), axes=axes, extents=np.array(extents))
        for other in relabelings(box):
            np.testing.assert_allclose(vertices(other), vertices(box), atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(seeds)
def test_canonical_axes_are_a_rotation_close_to_the_camera(seed):
    box = canonical(random_box(np.random.default_rng(seed)))
    assert np.linalg.det(box.axes) == pytest.approx(1)
    assert (np.diag(box.axes) > 0).all()
    corners = vertices(box)
    far, near = corners[4:].mean(axis=0), corners[:4].mean(axis=0)
    assert far[2] > near[2]
    assert corners[[2, 3, 6, 7], 1].mean() > corners[[0, 1, 4, 5], 1].mean()
    assert corners[1::2, 0].mean() > corners[::2, 0].mean()


def test_the_order_is_near_to_far_top_to_bottom_left_to_right():
    box = OrientedBox(centre=np.array([0, 0, 5.0]), axes=np.eye(3), extents=np.array([2.0, 4, 6]))
    expected = [
        (-1, -2, 2), (1, -2, 2), (-1, 2, 2), (1, 2, 2),
        (-1, -2, 8), (1, -2, 8), (-1, 2, 8), (1, 2, 8),
    ]  # fmt: skip
    np.testing.assert_allclose(vertices(box), expected)
    assert len(edges()) == 12


@settings(deadline=None, max_examples=25)
@given(seeds)
def test_overlap_agrees_with_dense_sampling(seed):
    rng = np.random.default_rng(seed)
    a, b = random_box(rng), random_box(rng)
    corners = np.concatenate([vertices(a), vertices(b)])
    points = rng.uniform(corners.min(axis=0), corners.max(axis=0), (40000, 3))
    in_a, in_b = contains(a, points), contains(b, points)
    union = (in_a | in_b).sum()
    sampled = (in_a & in_b).sum() / union if union else 0.0
    noise = 5 * np.sqrt(0.25 / max(union, 1))
    assert iou(a, b) == pytest.approx(sampled, abs=noise)
    assert iou(a, b) == pytest.approx(iou(b, a), abs=1e-9)


def test_overlap_in_cases_known_by_heart():
    unit = OrientedBox(centre=np.zeros(3), axes=np.eye(3), extents=np.ones(3))
    turned = OrientedBox(
        centre=np.zeros(3),
        axes=Rotation.from_euler('z', 45, degrees=True).as_matrix(),
        extents=np.ones(3),
    )
    octagon = 2 * (np.sqrt(2) - 1)
    assert iou(unit, unit) == pytest.approx(1)
    assert iou(unit, turned) == pytest.approx(octagon / (2 - octagon))

    def moved(x, size=1.0):
        return OrientedBox(centre=np.array([x, 0, 0.0]), axes=np.eye(3), extents=np.full(3, size))

    assert iou(unit, moved(0.5)) == pytest.approx(1 / 3)
    assert iou(unit, moved(1.0)) == 0
    assert iou(unit, moved(5.0)) == 0
    assert iou(unit, moved(0.0, 0.5)) == pytest.approx(1 / 8)
    flat = OrientedBox(centre=np.zeros(3), axes=np.eye(3), extents=np.array([1, 1, 0.0]))
    assert iou(flat, flat) == 0


def test_points_behind_the_camera_have_no_pixel():
    K = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
    pixels = project(np.array([[0.1, 0.2, 1.0], [0, 0, -1.0], [0, 0, 0.0]]), K)
    np.testing.assert_allclose(pixels[0], [60, 60])
    assert np.isnan(pixels[1:]).all()


@given(seeds)
@settings(deadline=None, max_examples=50)
def test_a_box_overlaps_itself_wholly_and_its_shifted_half_by_a_third(seed):
    rng = np.random.default_rng(seed)
    box = random_box(rng)
    shift = box.axes[:, 0] * box.extents[0] / 2
    shifted = OrientedBox(centre=box.centre + shift, axes=box.axes, extents=box.extents)
    assert iou(box, box) == pytest.approx(1, abs=1e-6)
    assert iou(box, shifted) == pytest.approx(1 / 3, abs=1e-6)
