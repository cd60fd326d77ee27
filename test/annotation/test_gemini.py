import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from spear_ros.annotation.gemini import (
    GeminiDetector,
    GeminiSettings,
    GenaiService,
    Reply,
    ServiceBusyError,
    estimate_cost_usd,
    parse_reply,
)
from spear_ros.annotation.types import AnnotationError, FailureKind, WorkingImage
from spear_ros.core.errors import UserError

SIZE = (80, 60)


def image():
    pixels = np.zeros((60, 80, 3), np.uint8)
    return WorkingImage(name='a/x.jpg', digest='d', pixels=pixels, original_size=SIZE)


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
        '[{"label": "mug", "box_2d": [1, 2, 3, 1%s]}]' % ('0' * 400),
        '[{"label": "mug", "box_2d": "1234"}]',
        '[{"label": "mug", "box_2d": {"1": 0, "2": 0, "3": 0, "4": 0}}]',
        '[{"label": "mug {}", "box_2d": [1, 2, 3, 4]}]',
    ],
)
def test_malformed_replies_are_failures_that_are_not_stored(text):
    with pytest.raises(AnnotationError) as caught:
        parse_reply(Reply(text, 'STOP'), SIZE)
    assert caught.value.kind is FailureKind.MALFORMED_ANSWER
    assert caught.value.transient


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

    def ask(self, settings, jpeg):
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
    detector, pauses = gemini(service, requests_per_minute=1e6, first_pause_s=2.0)
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
    assert detector.used['requests'] == 1


def test_malformed_answers_are_paid_for_twice_at_most():
    service = Service(*[Reply('nonsense', 'STOP', 1200, 7)] * 5)
    detector, _ = gemini(service)
    assert kind_of(lambda: detector.detect(image())) is FailureKind.MALFORMED_ANSWER
    assert detector.used == {'requests': 2, 'tokens_in': 2400, 'tokens_out': 14}


def test_the_pause_that_the_service_asks_for_is_made():
    service = Service(ServiceBusyError('429', 34.0), ServiceBusyError('429', 9e9), reply([]))
    detector, pauses = gemini(service, requests_per_minute=1e6, first_pause_s=2.0)
    assert detector.detect(image()) == []
    assert [p for p in pauses if p > 1] == [34.0, 120.0]


def test_a_service_that_fails_picture_after_picture_stops_the_run():
    good, bad = reply([]), ServiceBusyError('status 429')
    service = Service(bad, bad, good, bad, bad, bad)
    detector, _ = gemini(service, tries=1, most_failed_in_a_row=3)
    for number in range(5):
        if number == 2:
            detector.detect(image())
        else:
            assert kind_of(lambda: detector.detect(image())) is FailureKind.SERVICE
    with pytest.raises(UserError, match='failed 3 pictures in a row'):
        detector.detect(image())


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


def test_the_price_has_an_upper_end():
    settings = GeminiSettings(most_tokens_out=4000, tries_malformed=2)
    usual, most = estimate_cost_usd(1000, (0.3, 2.5), settings)
    assert usual == pytest.approx(1000 * (1182 * 0.3 + 800 * 2.5) / 1e6)
    assert most == pytest.approx(1000 * 2 * (1182 * 0.3 + 4000 * 2.5) / 1e6)


@pytest.mark.parametrize('change', [{'tries': 0}, {'requests_per_minute': 0.0}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(UserError, match=next(iter(change))):
        GeminiSettings(**change)


# Google's own client against a server on this machine, so that request and schema are what it takes
# and every answer that a network can give has been seen once.


class GoogleLike:
    """An HTTP server that answers in turn: (status, body), or what it does instead."""

    def __init__(self):
        self.answers, self.requests = [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers['Content-Length']))
                outer.requests.append((self.path, dict(self.headers), json.loads(body)))
                answer = outer.answers.pop(0)
                if answer == 'drop':
                    self.connection.close()
                    return
                if answer == 'hang':
                    outer.released.wait(20)
                    return
                self.send_response(answer[0])
                self.end_headers()
                self.wfile.write(answer[1].encode())

            def log_message(self, *_):
                pass

        self.released = threading.Event()
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server.server_port}'
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def google(monkeypatch):
    pytest.importorskip('google.genai', reason='google-genai is not installed')
    monkeypatch.setenv('GEMINI_API_KEY', 'secret-of-the-test')
    server = GoogleLike()
    yield server
    server.close()


def answered(text, finish='STOP'):
    content = {'parts': [{'text': text}], 'role': 'model'}
    usage = {'promptTokenCount': 1200, 'candidatesTokenCount': 50, 'thoughtsTokenCount': 7}
    candidate = {'content': content, 'finishReason': finish}
    return 200, json.dumps({'candidates': [candidate], 'usageMetadata': usage})


def refused(code, status='', **more):
    return code, json.dumps({'error': {'code': code, 'status': status, 'message': 'no', **more}})


def test_googles_client_sends_picture_prompt_schema_and_limits(google):
    google.answers.append(answered('[{"label": "mug", "box_2d": [1, 2, 3, 4]}]'))
    settings = GeminiSettings()
    detector = GeminiDetector(settings, GenaiService(google.url))
    assert [d.label for d in detector.detect(image())] == ['mug']
    assert detector.used == {'requests': 1, 'tokens_in': 1200, 'tokens_out': 57}
    ((path, headers, body),) = google.requests
    assert path.endswith('/models/gemini-2.5-flash:generateContent')
    assert {k.lower(): v for k, v in headers.items()}['x-goog-api-key'] == 'secret-of-the-test'
    picture, prompt = body['contents'][0]['parts']
    jpeg = base64.urlsafe_b64decode(picture['inlineData']['data'])
    assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (60, 80, 3)
    assert prompt['text'] == settings.prompt()
    config = body['generationConfig']
    assert config['responseMimeType'] == 'application/json'
    assert config['responseSchema']['items']['required'] == ['label', 'box_2d']
    assert config['maxOutputTokens'] == settings.most_tokens_out


BUSY = {
    'quota': refused(429, 'RESOURCE_EXHAUSTED'),
    'overload': refused(503, 'UNAVAILABLE'),
    'page of a proxy': (502, '<html>Bad gateway'),
    'page instead of an answer': (200, '<html>Sign in'),
    'answer cut short on the way': (200, '{"candidates": [{"conte'),
    'answer of another form': (200, '{"candidates": 3}'),
    'empty answer': (200, ''),
    'connection lost': 'drop',
    'no answer in time': 'hang',
}


@pytest.mark.parametrize('name', BUSY)
def test_what_may_pass_is_tried_again(google, name):
    google.answers.append(BUSY[name])
    service = GenaiService(google.url, timeout_s=0.5 if name == 'no answer in time' else 20.0)
    with pytest.raises(ServiceBusyError):
        service.ask(GeminiSettings(), b'x')
    assert len(google.requests) == 1


def test_a_closed_network_is_tried_again(google):
    google.server.shutdown()
    google.server.server_close()
    with pytest.raises(ServiceBusyError):
        GenaiService(google.url).ask(GeminiSettings(), b'x')


def test_the_services_own_pause_is_read(google):
    info = {'@type': 'type.googleapis.com/google.rpc.RetryInfo', 'retryDelay': '34.5s'}
    google.answers.append(refused(429, 'RESOURCE_EXHAUSTED', details=[{'@type': 'x'}, info]))
    with pytest.raises(ServiceBusyError) as caught:
        GenaiService(google.url).ask(GeminiSettings(), b'x')
    assert caught.value.wait_s == 34.5


@pytest.mark.parametrize(
    'answer',
    [
        refused(400, 'INVALID_ARGUMENT', details=[{'reason': 'API_KEY_INVALID'}]),
        refused(403, 'PERMISSION_DENIED'),
        refused(404, 'NOT_FOUND'),
    ],
)
def test_a_wrong_key_or_model_stops_the_run_and_is_not_printed(google, answer):
    google.answers.append(answer)
    with pytest.raises(UserError, match='the key') as caught:
        GenaiService(google.url).ask(GeminiSettings(), b'x')
    assert 'secret-of-the-test' not in str(caught.value)


def test_another_refused_request_is_counted_and_not_stored(google):
    google.answers.append(refused(400, 'INVALID_ARGUMENT'))
    with pytest.raises(AnnotationError) as caught:
        GenaiService(google.url).ask(GeminiSettings(), b'x')
    assert caught.value.kind is FailureKind.SERVICE
    assert caught.value.transient


@pytest.mark.parametrize(
    ('answer', 'kind'),
    [
        (answered('', 'SAFETY'), FailureKind.REFUSED),
        (answered('[]', 'SOMETHING_NEW'), FailureKind.REFUSED),
        ((200, '{"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}'), FailureKind.REFUSED),
        ((200, '{"candidates": [{"finishReason": "STOP"}]}'), FailureKind.REFUSED),
        (answered('[{"label": "mug", "box', 'MAX_TOKENS'), FailureKind.TRUNCATED_ANSWER),
        (answered('[{"label": "mug", "box'), FailureKind.MALFORMED_ANSWER),
    ],
)
@pytest.mark.filterwarnings('ignore:.*is not a valid FinishReason')
def test_refusals_and_cut_answers_of_the_service_are_named(google, answer, kind):
    google.answers.append(answer)
    got = GenaiService(google.url).ask(GeminiSettings(), b'x')
    assert kind_of(lambda: parse_reply(got, SIZE)) is kind
