import pickle
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from spear_ros.annotation.box_geometry import contains, iou, project, vertices, volume
from spear_ros.annotation.boxes import (
    BoxSettings,
    fit_box,
    object_points,
    remove_outliers,
    require_agreement,
)
from spear_ros.annotation.types import AnnotationError, FailureKind, OrientedBox, PointMap
from spear_ros.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SUNRGBD = ROOT / '../shared/data/real_recordings/sunrgbd'


def scene(depth=2.0):
    v, u = np.mgrid[0:60, 0:80]
    z = np.full(u.shape, depth)
    points = np.stack([(u - 39.5) / 100 * z, (v - 29.5) / 100 * z, z], axis=-1)
    K = np.array([[100, 0, 39.5], [0, 100, 29.5], [0, 0, 1.0]])
    return PointMap(points=points, valid=np.ones((60, 80), bool), K=K, scale='metric')


def kind_of(call):
    with pytest.raises(AnnotationError) as caught:
        call()
    return caught.value.kind


def test_the_border_of_a_mask_is_left_out():
    mask = np.zeros((60, 80), bool)
    mask[10:40, 10:50] = True
    cloud = object_points(scene(), mask, BoxSettings(erosion_px=3, outlier_sigma=100))
    u = cloud[:, 0] / cloud[:, 2] * 100 + 39.5
    assert u.min() == pytest.approx(13)
    assert u.max() == pytest.approx(46)


def test_each_way_to_have_no_points_has_its_name():
    mask = np.zeros((60, 80), bool)
    mask[10:15, 10:15] = True
    assert kind_of(lambda: object_points(scene(), mask, BoxSettings())) is FailureKind.TINY_OBJECT
    mask[10:50, 10:50] = True
    blind = scene()
    blind.valid[:] = False
    assert kind_of(lambda: object_points(blind, mask, BoxSettings())) is FailureKind.NO_VALID_POINTS
    infinite = scene()
    infinite.points[:] = np.inf
    found = kind_of(lambda: object_points(infinite, mask, BoxSettings()))
    assert found is FailureKind.NO_VALID_POINTS
    few = scene()
    few.valid[:] = False
    few.valid[20, 20:30] = True
    assert kind_of(lambda: object_points(few, mask, BoxSettings())) is FailureKind.TOO_FEW_POINTS


@pytest.mark.parametrize(
    ('box', 'fits'),
    [
        ((10, 5, 40, 45), True),
        ((8, 3, 42, 47), True),
        ((5, 10, 45, 40), False),  # x and y exchanged
        ((50, 5, 79, 45), False),
        ((0, 0, 80, 60), False),
        ((10, 5, 25, 45), False),
    ],
)
def test_a_mask_that_is_not_of_its_box_is_refused(box, fits):
    mask = np.zeros((60, 80), bool)
    mask[5:45, 10:40] = True
    mask[0, 79] = True  # a stray pixel is no reason
    if fits:
        require_agreement(mask, box, BoxSettings())
        return
    assert kind_of(lambda: require_agreement(mask, box, BoxSettings())) is FailureKind.BAD_MASK


def test_flying_points_are_removed():
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(500, 3)) * 0.05
    far = rng.normal(size=(5, 3)) + 3
    kept = remove_outliers(np.concatenate([cloud, far]), 20, 2.0)
    assert 450 < len(kept) <= 500
    assert np.abs(kept).max() < 1


@pytest.mark.parametrize('kind', ['pca', 'minimal'])
def test_flat_and_straight_clouds_are_reported(kind):
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(100, 3)) * (1, 1, 0)
    tilted = plane @ Rotation.from_rotvec([0.3, 0.2, 0.5]).as_matrix()
    line = rng.normal(size=(100, 1)) * np.ones(3)
    for cloud in (plane, tilted, line, np.zeros((100, 3))):
        settings = BoxSettings(kind=kind)
        assert kind_of(lambda c=cloud, s=settings: fit_box(c, s)) is FailureKind.COPLANAR
    assert kind_of(lambda: fit_box(plane[:3], BoxSettings())) is FailureKind.TOO_FEW_POINTS


@pytest.mark.parametrize(('kind', 'least'), [('pca', 0.75), ('minimal', 0.93)])
def test_a_filled_box_is_found(kind, least):
    rng = np.random.default_rng(3)
    truth = OrientedBox(
        centre=np.array([0.1, -0.2, 1.5]),
        axes=Rotation.from_rotvec([0.3, -0.4, 0.2]).as_matrix(),
        extents=np.array([0.3, 0.2, 0.1]),
    )
    local = rng.uniform(-0.5, 0.5, (4000, 3)) * truth.extents
    cloud = truth.centre + local @ truth.axes.T
    box = fit_box(cloud, BoxSettings(kind=kind))
    assert iou(box, truth) > least
    grown = OrientedBox(centre=box.centre, axes=box.axes, extents=box.extents + 1e-6)
    assert contains(grown, cloud).all()


def test_the_minimal_box_is_never_larger():
    rng = np.random.default_rng(4)
    for _ in range(5):
        cloud = rng.normal(size=(60, 3)) * rng.uniform(0.1, 1, 3)
        small = fit_box(cloud, BoxSettings(kind='minimal'))
        assert volume(small) <= volume(fit_box(cloud, BoxSettings(kind='pca'))) * (1 + 1e-6)


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match='kind "best"'):
        BoxSettings(kind='best')


# Overlap with the hand-made boxes of SUN RGB-D picture 000017 (night stand, bed), from the points
# inside of them: what a faultless mask would give; raw and after outlier removal. Our own figures,
# held so that a change of the fit is seen. (Open3D on the same item: 0.76 and 0.51 by PCA, 0.45 and
# 0.92 minimal.)
@pytest.mark.parametrize(
    ('kind', 'raw', 'filtered'),
    [('pca', (0.754, 0.621), (0.398, 0.636)), ('minimal', (0.765, 0.955), (0.489, 0.956))],
)
def test_boxes_of_a_real_depth_picture_stay_as_they_were(kind, raw, filtered):
    if not SUNRGBD.is_dir():
        pytest.skip('the SUN RGB-D item is not on this machine')
    blob = np.fromfile(SUNRGBD / 'demo_data_sunrgbd_000017.bin', np.float32)
    cloud = blob.reshape(-1, 6)[:, :3].astype(float)
    infos = pickle.loads((SUNRGBD / 'demo_data_sunrgbd_sunrgbd_000017_infos.pkl').read_bytes())
    item = infos['data_list'][0]
    projection = np.array(item['images']['CAM0']['depth2img'])
    for i, instance in enumerate(item['instances']):
        *place, yaw = instance['bbox_3d']
        c, s = np.cos(yaw), np.sin(yaw)
        axes = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        truth = OrientedBox(centre=np.array(place[:3]), axes=axes, extents=np.array(place[3:]))
        pixels = project(vertices(truth), projection)
        flat = np.array(instance['bbox'])
        assert np.abs(np.concatenate([pixels.min(axis=0), pixels.max(axis=0)]) - flat).max() < 15
        points = cloud[contains(truth, cloud)]
        for kept, expected in ((points, raw), (remove_outliers(points, 20, 2.0), filtered)):
            box = fit_box(kept, BoxSettings(kind=kind))
            assert iou(box, truth) == pytest.approx(expected[i], abs=0.03)
