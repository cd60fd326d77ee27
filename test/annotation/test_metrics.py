import numpy as np
import pytest

from spear_ros.annotation.box_geometry import vertices
from spear_ros.annotation.metrics import Judged, box_of_vertices, constant_answers, score
from spear_ros.annotation.types import OrientedBox
from spear_ros.core.errors import UserError

TRUTH = {
    'centre_point': (0.1, 0.2, 0.8),
    'distance': (0.3, 0.0, 0.4),
    'projection': tuple(np.linspace(0.2, 0.8, 16)),
    'closer': (0.5, 0.9),
}


def judged(family, truth, told, **more):
    scale = '' if family == 'projection' else 'metric'
    fields = {
        'family': family, 'scale_type': scale, 'truth': np.array(truth),
        'told': None if told is None else np.array(told), 'right_tokens': 0.0,
    }  # fmt: skip
    return Judged(**(fields | more))


def box():
    c, s = np.cos(0.4), np.sin(0.4)
    axes = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return OrientedBox(centre=np.array([0, 0.1, 1]), axes=axes, extents=np.array([0.2, 0.1, 0.3]))


@pytest.mark.parametrize('family', TRUTH)
def test_right_answers_have_no_error(family):
    found = score([judged(family, TRUTH[family], TRUTH[family], right_tokens=1.0)])[family]
    assert found['error_mean'] == found['malformed'] == 0
    assert found['token_accuracy'] == 1


def test_errors_are_distances_in_the_unit_of_the_labels():
    point = score([judged('centre_point', (0, 0, 1), (0.03, 0.04, 1))])['centre_point']
    assert point['error_mean'] == pytest.approx(0.05)
    deep = score([judged('centre_point', (0, 0, 1), (0.3, 0.4, 0.8))])['centre_point']
    assert deep['depth_error_mean'] == pytest.approx(0.2)
    far = score([judged('distance', (0.3, 0, 0.4), (0, 0.3, 0.4))])['distance']
    assert far['error_mean'] == pytest.approx(0.3 * np.sqrt(2))
    assert far['length_error_mean'] == pytest.approx(0)
    moved = np.array(TRUTH['projection']).reshape(8, 2) + np.array([0.03, 0.04])
    place = score([judged('projection', TRUTH['projection'], moved.ravel())])['projection']
    assert place['error_mean'] == pytest.approx(0.05)


def test_a_box_shifted_by_half_overlaps_by_a_third():
    truth = vertices(box())
    told = truth + 0.5 * 0.2 * box().axes[:, 0]
    found = score([judged('box', truth.ravel(), told.ravel())])['box']
    assert found['iou_mean'] == pytest.approx(1 / 3, abs=1e-4)
    assert found['error_mean'] == found['vertex_error_mean'] == pytest.approx(0.1)
    assert score([judged('box', truth.ravel(), truth.ravel())])['box']['iou_mean'] > 0.9999


def test_eight_points_that_are_no_box_become_the_nearest_one():
    corners = vertices(box())
    rng = np.random.default_rng(0)
    found = box_of_vertices((corners + rng.normal(0, 0.005, corners.shape)).ravel())
    np.testing.assert_allclose(found.extents, box().extents, atol=0.02)
    np.testing.assert_allclose(found.axes.T @ found.axes, np.eye(3), atol=1e-9)
    assert np.linalg.det(found.axes) > 0
    squashed = box_of_vertices(np.tile(corners.mean(0), 8))
    np.testing.assert_allclose(squashed.extents, 0, atol=1e-9)


def test_malformed_answers_are_counted_and_keep_out_of_the_errors():
    items = [judged('centre_point', (0, 0, 1), (0, 0, 2)), judged('centre_point', (0, 0, 1), None)]
    found = score(items)['centre_point']
    assert (found['malformed'], found['error_mean'], found['n']) == (0.5, 1.0, 2)
    assert 'error_mean' not in score(items[1:])['centre_point']


def test_the_name_of_the_closer_object_and_the_coverage_are_judged():
    wrong = judged(
        'closer', (0.5, 0.9), (0.5, 0.9), truth_name='red cube', told_name='blue ball',
        low=np.array([0.4, 1.0]), high=np.array([0.6, 1.1]),
    )  # fmt: skip
    found = score([wrong])['closer']
    assert found['right_name'] == 0
    assert found['coverage'] == 0.5


def test_lengths_of_two_scale_types_are_never_averaged():
    items = [
        judged('centre_point', (0, 0, 1), (0, 0, 1)),
        judged('centre_point', (0, 0, 1), (0, 0, 1), scale_type='affine'),
    ]
    with pytest.raises(UserError, match='affine and metric'):
        score(items)


def test_the_constant_predictor_says_medians_of_its_family():
    values = [np.array([0, 0, z]) for z in (1.0, 2.0, 9.0)] + [np.array([5.0, 5.0])]
    told = constant_answers(['centre_point'] * 3 + ['closer'], values)
    np.testing.assert_allclose(told['centre_point'], [0, 0, 2])
    np.testing.assert_allclose(told['closer'], [5, 5])
