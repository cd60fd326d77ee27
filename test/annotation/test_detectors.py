import json

import numpy as np
import pytest

from spear_ros.annotation.detectors import (
    GeminiDetector,
    GeminiSettings,
    GenaiService,
    ReplayDetector,
    Reply,
    ServiceBusyError,
    estimate_cost_usd,
    parse_reply,
)
from spear_ros.annotation.types import AnnotationError, FailureKind, WorkingImage
from spear_ros.core.errors import UserError

SIZE = (80, 60)


def image(original=(80, 60)):
    pixels = np.zeros((60, 80, 3), np.uint8)
    return WorkingImage(name='a/x.jpg', digest='d', pixels=pixels, original_size=original)


def reply(boxes, finish='STOP'):
    return Reply(json.dumps(boxes), finish)


def kind_of(call):
    with pytest.raises(AnnotationError) as caught:
        call()
    return caught.value.kind


def test_boxes_of_a_reply_are_read_in_y_x_order_and_thousandths():
    (found,) = parse_reply(reply([{'label': ' Red  Mug', 'box_2d': [100, 250, 500, 750]}]), SIZE)
    assert found.label == 'red mug'
    assert found.box_xyxy == pytest.approx((20, 6, 60, 30))
    assert found.problem == ''
    assert found.number == 1


@pytest.mark.parametrize(
    'box', [[500, 250, 100, 750], [100, 750, 500, 250], [-5, 0, 500, 500], [0, 0, 500, 1001]]
)
def test_swapped_and_outlying_boxes_stay_with_their_problem(box):
    (found,) = parse_reply(reply([{'label': 'mug', 'box_2d': box}]), SIZE)
    assert found.problem


@pytest.mark.parametrize(
    'text',
    [
        '[{"label": "mug", "box_2d": [1, 2, 3',
        '{"boxes": []}',
        '[{"label": "mug"}]',
        '[{"label": "mug", "box_2d": [1, 2, 3]}]',
        '[{"label": "mug", "box_2d": ["a", 2, 3, 4]}]',
        '[{"label": "mug", "box_2d": null}]',
        '[{"label": "<3d0001>", "box_2d": [1, 2, 3, 4]}]',
        '[{"label": "", "box_2d": [1, 2, 3, 4]}]',
        '[3]',
        '[' * 100000,
        json.dumps([{'label': 'mug', 'box_2d': [1, 2, 3, 4]}] * 101),
        '[{"label": "mug", "box_2d": [NaN, 2, 3, 4]}]',
    ],
)
def test_malformed_replies_are_failures(text):
    assert kind_of(lambda: parse_reply(Reply(text, 'STOP'), SIZE)) is FailureKind.MALFORMED_ANSWER


def test_refused_and_truncated_replies_are_told_apart():
    assert kind_of(lambda: parse_reply(Reply('', 'SAFETY'), SIZE)) is FailureKind.REFUSED
    assert kind_of(lambda: parse_reply(Reply('', 'STOP'), SIZE)) is FailureKind.REFUSED
    cut = reply([{'label': 'mug', 'box_2d': [1, 2, 3, 4]}], 'MAX_TOKENS')
    assert kind_of(lambda: parse_reply(cut, SIZE)) is FailureKind.TRUNCATED_ANSWER


class Service:
    """Answers in turn; exceptions are raised."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.jpegs = []

    def ask(self, model, jpeg, prompt):
        self.jpegs.append(jpeg)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def gemini(service, **settings):
    pauses = []
    detector = GeminiDetector(
        GeminiSettings(**settings), service, sleep=pauses.append, clock=lambda: 0.0
    )
    return detector, pauses


def test_a_busy_service_is_asked_again_after_growing_pauses():
    good = reply([{'label': 'mug', 'box_2d': [0, 0, 500, 500]}])
    service = Service(ServiceBusyError('429'), Reply('nonsense', 'STOP'), good)
    detector, pauses = gemini(service, requests_per_minute=1e9, first_pause_s=2.0)
    assert [d.label for d in detector.detect(image())] == ['mug']
    assert [p for p in pauses if p > 1] == [2.0, 4.0]
    assert service.jpegs[0][:2] == b'\xff\xd8'


def test_a_service_that_stays_busy_is_a_failure_that_may_pass():
    detector, _ = gemini(Service(*[ServiceBusyError('503')] * 3), tries=3)
    with pytest.raises(AnnotationError) as caught:
        detector.detect(image())
    assert caught.value.kind is FailureKind.SERVICE
    assert caught.value.transient


def test_a_refusal_is_not_asked_again():
    service = Service(Reply('', 'SAFETY'))
    detector, _ = gemini(service)
    assert kind_of(lambda: detector.detect(image())) is FailureKind.REFUSED


def test_requests_keep_their_pace():
    good = reply([])
    detector, pauses = gemini(Service(good, good, good), requests_per_minute=30)
    for _ in range(3):
        detector.detect(image())
    assert pauses == [2.0, 4.0]  # the fake clock stands still


def test_the_key_comes_from_the_environment_only(monkeypatch):
    for name in ('GEMINI_API_KEY', 'GOOGLE_API_KEY'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match='GEMINI_API_KEY'):
        GenaiService()


def test_the_price_grows_with_images_and_tokens():
    one = estimate_cost_usd(1, (0.3, 2.5))
    assert one == pytest.approx((1182 * 0.3 + 800 * 2.5) / 1e6)
    assert estimate_cost_usd(1000, (0.3, 2.5)) == pytest.approx(1000 * one)


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


@pytest.mark.parametrize('text', ['', '[]', '{"boxes": 3}', '{"boxes": [{"label": "a"}]}', '{'])
def test_damaged_stored_boxes_are_failures(tmp_path, text):
    (tmp_path / 'a').mkdir()
    detector = ReplayDetector(tmp_path)
    assert kind_of(lambda: detector.detect(image())) is FailureKind.NOTHING_GIVEN
    (tmp_path / 'a' / 'x.json').write_text(text)
    assert kind_of(lambda: detector.detect(image())) is FailureKind.MALFORMED_ANSWER
