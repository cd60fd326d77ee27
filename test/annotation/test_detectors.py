import json

import numpy as np
import pytest

from spear_ros.annotation.detectors import ReplayDetector, clean_label
from spear_ros.annotation.types import AnnotationError, FailureKind, WorkingImage


def image(original=(80, 60)):
    pixels = np.zeros((60, 80, 3), np.uint8)
    return WorkingImage(name='a/x.jpg', digest='d', pixels=pixels, original_size=original)


def kind_of(call):
    with pytest.raises(AnnotationError) as caught:
        call()
    return caught.value.kind


def test_stored_boxes_follow_the_crop(tmp_path):
    boxes = [
        {'label': 'mug', 'box_xyxy': [40, 10, 60, 30]},
        {'label': 'pot', 'box_xyxy': [5, 10, 25, 30]},
        {'label': 'pan', 'box_xyxy': [0, 10, 15, 30]},
    ]
    (tmp_path / 'a').mkdir()
    path = tmp_path / 'a' / 'x.json'
    path.write_text(json.dumps({'boxes': boxes}))
    detector = ReplayDetector(tmp_path)
    mug, pot = detector.detect(image((120, 60)))  # 4:3 keeps columns 20 .. 100
    assert mug.box_xyxy == pytest.approx((20, 10, 40, 30))
    assert (mug.number, pot.number) == (1, 2)
    assert 'only 25%' in pot.problem
    before = detector.digest(image())
    path.write_text('{"boxes": []}')
    assert detector.digest(image()) != before


def test_a_box_beside_its_picture_is_kept_with_its_problem(tmp_path):
    """As boxes in other units than pixels are: they must be counted, not vanish."""
    (tmp_path / 'a').mkdir()
    boxes = [{'label': 'mug', 'box_xyxy': [400, 100, 600, 300]}]
    (tmp_path / 'a' / 'x.json').write_text(json.dumps({'boxes': boxes}))
    (mug,) = ReplayDetector(tmp_path).detect(image((120, 60)))
    assert mug.problem == 'it is not in the picture'


@pytest.mark.parametrize(
    ('label', 'name'),
    [
        ('A  Mug', 'mug'), ('the red mug', 'red mug'), ('mug 2', 'mug'), ('mug #2', 'mug'),
        ('mug (2)', 'mug'), ('red_mug', 'red mug'), ('a', 'a'),
        ('7', '7'), ('can of 7up', 'can of 7up'),
    ],
)  # fmt: skip
def test_articles_and_counting_numbers_do_not_make_a_class(label, name):
    assert clean_label(label) == name


@pytest.mark.parametrize(
    'text',
    [
        '', '[]', '{"boxes": 3}', '{"boxes": [{"label": "a"}]}', '{', '{"boxes": [[]]}',
        '{"boxes": [{"label": "a", "box_xyxy": "1234"}]}',
        '{"boxes": [{"label": "a", "box_xyxy": [true, 2, 3, 4]}]}',
        '{"boxes": [{"label": "a", "box_xyxy": [1, 2, 3, 1%s]}]}' % ('0' * 400),
        '{"boxes": [{"label": "a", "box_xyxy": [1, 2, 30, 40], "score": NaN}]}',
        '{"boxes": [{"label": "a", "box_xyxy": [1, 2, 30, 40], "score": 1%s}]}' % ('0' * 400),
        '{"boxes": [{"label": "a {0}", "box_xyxy": [1, 2, 30, 40]}]}',
        '{"boxes": [{"label": "\\ud800", "box_xyxy": [1, 2, 30, 40]}]}',
    ],
)  # fmt: skip
def test_damaged_stored_boxes_are_failures(tmp_path, text):
    (tmp_path / 'a').mkdir()
    detector = ReplayDetector(tmp_path)
    assert kind_of(lambda: detector.detect(image())) is FailureKind.NOTHING_GIVEN
    (tmp_path / 'a' / 'x.json').write_text(text)
    assert kind_of(lambda: detector.detect(image())) is FailureKind.MALFORMED_ANSWER
