from dataclasses import replace

import numpy as np
import pytest

from spear_ros.annotation.box_geometry import vertices
from spear_ros.annotation.questions import (
    N_TOKENS,
    TEMPLATES,
    ambiguous,
    answer_text,
    askable,
    fit_bins,
    make_pairs,
    read_answer,
    round_trip_errors,
)
from spear_ros.annotation.store import digest_of
from spear_ros.annotation.types import ImageAnnotation, ObjectLabel, OrientedBox
from spear_ros.core.errors import UserError
from spear_ros.processing.tokens import clean_instruction

K = np.array([[100.0, 0, 39.5], [0, 100, 29.5], [0, 0, 1]])


def thing(label, centre, number=1):
    box = OrientedBox(
        centre=np.array(centre, float), axes=np.eye(3), extents=np.array([0.1, 0.2, 0.1])
    )
    corners = vertices(box)
    return ObjectLabel(
        label=label, box_xyxy=(1, 2, 3, 4), centre=box.centre, vertices=corners,
        closest=corners[0], furthest=corners[7], n_points=99, number=number,
    )  # fmt: skip


def picture(seed, objects, detected=None):
    return ImageAnnotation(
        name='x.jpg', digest=digest_of(seed), size=(80, 60), scale='metric', K=K,
        detected=tuple(detected or [o.label for o in objects]), objects=tuple(objects),
        failures=(), keys={},
    )  # fmt: skip


@pytest.fixture(scope='module')
def pictures():
    rng = np.random.default_rng(0)
    return [
        picture(i, [thing(f'object {k}', (*rng.normal(size=2) * 0.2, rng.uniform(1, 3)))
                    for k in range(3)])
        for i in range(150)
    ]  # fmt: skip


def test_all_families_come_one_to_four_a_picture_and_the_same_every_time(pictures):
    made = [make_pairs(p) for p in pictures]
    assert {len(pairs) for pairs in made} == {1, 2, 3, 4}
    assert {pair.family for pairs in made for pair in pairs} == set(TEMPLATES) == set(N_TOKENS)
    assert [make_pairs(p) for p in pictures] == made
    for pairs in made:
        assert len({(p.family, p.objects) for p in pairs}) == len(pairs)
        for pair in pairs:
            assert clean_instruction(pair.question) == pair.question
            assert '{' not in pair.question


def test_a_class_with_several_instances_is_never_asked_about():
    two = [thing('mug', (0, 0, 1)), thing('mug', (0.3, 0, 1)), thing('pan', (0, 0.2, 2))]
    assert [o.label for o in askable(picture(1, two))] == ['pan']
    # The second mug has no box, but it is in the picture.
    hidden = picture(1, [two[0], two[2]], detected=['mug', 'mug', 'pan'])
    assert [o.label for o in askable(hidden)] == ['pan']
    assert {name for s in range(30) for p in make_pairs(picture(s, two)) for name in p.objects} == {
        'pan'
    }
    assert make_pairs(picture(1, [])) == []


def test_a_name_that_fits_two_things_is_not_asked_about():
    things = [thing('mug', (0, 0, 1)), thing('red mug', (0.3, 0, 1)), thing('smug', (0, 0.2, 2))]
    assert [o.label for o in askable(picture(1, things))] == ['red mug', 'smug']
    assert ambiguous(['mug', 'red mug', 'mug']) == {'mug': '2 of them'}
    assert ambiguous(['mug', 'red mug']) == {'mug': 'there is a red mug as well'}


def test_answers_say_what_was_measured(pictures):
    pairs = [pair for p in pictures for pair in make_pairs(p)]
    bins, how = fit_bins(pairs)
    assert how == 'normal' or len(bins.edges) == 1023
    errors = round_trip_errors(pairs, bins)
    assert set(errors) == set(TEMPLATES)
    assert errors['projection'] <= 0.5 / 1024 + 1e-9
    assert max(errors.values()) < 0.02
    for p in pictures:
        by_name = {o.label: o for o in p.objects}
        for pair in make_pairs(p):
            told = read_answer(answer_text(pair, bins), pair.family, bins)
            first = by_name[pair.objects[0]]
            expected = {
                'closest_point': first.closest, 'furthest_point': first.furthest,
                'centre_point': first.centre, 'box': first.vertices.ravel(),
            }.get(pair.family)  # fmt: skip
            if expected is not None:
                np.testing.assert_allclose(told, expected, atol=0.5)
                assert np.abs(told - expected).mean() < 0.05
            if pair.family == 'distance':
                way = by_name[pair.objects[1]].centre - first.centre
                assert np.abs(told - way).mean() < 0.05
            if pair.family == 'closer':
                far = [np.linalg.norm(by_name[o].centre) for o in pair.objects]
                nearest = pair.objects[int(np.argmin(far))]
                assert answer_text(pair, bins).endswith(f'so the {nearest} is closer.')


def test_corners_outside_of_the_picture_are_not_asked_for():
    outside = [picture(i, [thing('mug', (0.39, 0, 1))]) for i in range(60)]
    families = {pair.family for p in outside for pair in make_pairs(p)}
    assert 'projection' not in families
    assert 'box' in families


def test_equally_far_objects_are_not_compared():
    level = [thing('mug', (0.1, 0, 1)), thing('pan', (-0.1, 0, 1))]
    families = {pair.family for i in range(80) for pair in make_pairs(picture(i, level))}
    assert 'closer' not in families
    assert 'distance' in families


def test_bins_come_from_quantiles_of_enough_data(pictures):
    rng = np.random.default_rng(1)
    pairs = [
        replace(pair, lengths=(tuple(rng.normal(size=24)),), family='box', places=(), answer='{}')
        for p in pictures[:90] for pair in make_pairs(p)[:1]
    ] * 1  # fmt: skip
    more = [replace(p, lengths=(tuple(rng.normal(size=24)),)) for p in pairs for _ in range(3)]
    bins, how = fit_bins(more)
    assert how == 'quantiles'
    used = np.bincount(bins.encode([v for p in more for g in p.lengths for v in g]), minlength=1024)
    assert used.max() <= 3 * used.mean()


@pytest.mark.parametrize(
    'text', ['', '<3d0001>', '<loc0001><loc0001><loc0001>', '<3d0001><3d0002><3d9999>']
)
def test_answers_of_the_wrong_form_are_refused(text, pictures):
    bins, _ = fit_bins([pair for p in pictures for pair in make_pairs(p)])
    with pytest.raises(UserError, match='centre_point'):
        read_answer(text, 'centre_point', bins)


def test_annotations_survive_json(pictures):
    first = pictures[0]
    again = ImageAnnotation.from_json(first.as_json())
    assert again.as_json() == first.as_json()
    assert make_pairs(again) == make_pairs(first)
