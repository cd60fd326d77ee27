"""Labelled boxes by Gemini through google-genai: asked at a bounded price and pace.

Tested against written answers and, with Google's own client, against an HTTP server on this machine
that answers as the service does and as it does not. The service itself has never been asked.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from spear_ros.annotation.detectors import checked, four_numbers, list_of_boxes
from spear_ros.annotation.types import AnnotationError, Detection, FailureKind, WorkingImage
from spear_ros.core.errors import UserError
from spear_ros.core.types import ImageArray

KEY_VARIABLES = ('GEMINI_API_KEY', 'GOOGLE_API_KEY')
TIMEOUT_S = 120.0
LONGEST_PAUSE_S = 120.0

PROMPT = (
    'List every distinct, rigid physical object that is wholly visible, up to {most} of them. For '
    'each give "label", a short noun phrase that tells it apart from the others by colour or '
    'material where needed, and "box_2d" as [ymin, xmin, ymax, xmax], integers from 0 to 1000 '
    'relative to the image. Give every instance its own entry. Leave out people, hands, walls, '
    'floors and table tops.'
)
SCHEMA: Mapping[str, Any] = {
    'type': 'ARRAY',
    'items': {
        'type': 'OBJECT',
        'properties': {
            'label': {'type': 'STRING'},
            'box_2d': {
                'type': 'ARRAY', 'items': {'type': 'INTEGER'}, 'minItems': 4, 'maxItems': 4,
            },
        },
        'required': ['label', 'box_2d'],
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class GeminiSettings:
    """How the service is asked."""

    model: str = 'gemini-2.5-flash'
    most_objects: int = 20
    most_tokens_out: int = 4096
    """More are not paid for: a longer answer is cut short, and then not used."""
    thinking_tokens: int = 0
    """0 = none (billed as tokens out), -1 = as the model likes; some models refuse 0."""
    tries: int = 5
    """Of one picture while the service is busy; such tries cost nothing."""
    tries_malformed: int = 2
    """Paid answers to one picture, where the first is not what was asked for."""
    first_pause_s: float = 2.0
    """After a refusal for load; doubles with each further one. The service may name a longer."""
    requests_per_minute: float = 30.0
    """Of this process."""
    most_failed_in_a_row: int = 5
    """Pictures that the service failed one after the other before the run is stopped."""

    def __post_init__(self) -> None:
        for name in ('tries', 'tries_malformed', 'most_objects', 'most_failed_in_a_row'):
            if getattr(self, name) < 1:
                raise UserError(f'gemini: {name} = {getattr(self, name)} must be at least 1.')
        if not 0 < self.requests_per_minute <= 1e6:
            raise UserError(
                f'gemini: requests_per_minute = {self.requests_per_minute} must be positive.'
            )

    def prompt(self) -> str:
        """What is asked."""
        return PROMPT.format(most=self.most_objects)

    def identity(self) -> Mapping[str, object]:
        """What changes answers; the pace does not."""
        names = ('model', 'most_tokens_out', 'thinking_tokens')
        return {'version': 2, 'prompt': self.prompt(), **{n: getattr(self, n) for n in names}}


class Reply(NamedTuple):
    """An answer of the service."""

    text: str
    finish: str
    """``STOP`` where it is whole; else the service's reason (MAX_TOKENS, SAFETY, ...)."""
    tokens_in: int = 0
    """As billed."""
    tokens_out: int = 0


class ServiceBusyError(Exception):
    """Too many requests or a passing fault of the service: worth another try later."""

    def __init__(self, text: str, wait_s: float = 0.0) -> None:
        super().__init__(text)
        self.wait_s = wait_s
        """The service asks for so long a pause; 0 = it says nothing."""


class BoxService(Protocol):
    """Sends one request."""

    def ask(self, settings: GeminiSettings, jpeg: bytes) -> Reply:
        """Return the reply.

        Raises:
            ServiceBusyError: try again later.
            AnnotationError: this request will not work.
            UserError: no request will.
        """
        ...


def parse_reply(reply: Reply, size: tuple[int, int]) -> list[Detection]:
    """Boxes of a reply, in pixels of the working image.

    Raises:
        AnnotationError: refused, cut short or not what the schema asks for. A list that was cut
            short is not used: what it misses could be a second instance.
    """
    if reply.finish == 'MAX_TOKENS':
        raise AnnotationError(FailureKind.TRUNCATED_ANSWER, 'the answer was cut short')
    if reply.finish != 'STOP' or not reply.text.strip():
        raise AnnotationError(FailureKind.REFUSED, f'no answer ({reply.finish})')
    try:
        found = [_detection(entry, size) for entry in list_of_boxes(json.loads(reply.text))]
    except AnnotationError as error:
        raise AnnotationError(error.kind, error.text, transient=True) from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        text = ' '.join(f'{type(error).__name__} {error}'.split())[:100]
        raise AnnotationError(FailureKind.MALFORMED_ANSWER, text, transient=True) from None
    return [replace(d, number=i) for i, d in enumerate(found, 1)]


def _detection(entry: Any, size: tuple[int, int]) -> Detection:
    ymin, xmin, ymax, xmax = box = four_numbers(entry['box_2d'])
    wide = [xmin * size[0], ymin * size[1], xmax * size[0], ymax * size[1]]
    detection = checked(entry['label'], [v / 1000 for v in wide], size, 1.0)
    if not all(0 <= v <= 1000 for v in box):
        return replace(detection, problem='it is outside of 0 .. 1000')
    return detection


class GeminiDetector:
    """Boxes by Gemini.

    Args:
        settings: model and pace.
        service: what sends requests; :class:`GenaiService` for the real one.
        sleep: waits some seconds.
        clock: seconds, monotonic.
    """

    name = 'detect-gemini'

    def __init__(
        self,
        settings: GeminiSettings,
        service: BoxService,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._service = settings, service
        self._sleep, self._clock = sleep, clock
        self._next_s = -np.inf
        self._failed_in_a_row = 0
        self.used: Counter[str] = Counter()
        """Requests sent, and tokens in and out as billed, by this process."""

    def settings(self) -> Mapping[str, object]:
        """See Stage."""
        return self._settings.identity()

    def detect(self, image: WorkingImage) -> list[Detection]:
        """See Detector.

        Raises:
            UserError: the service refuses the key or the model, or fails picture after picture.
        """
        try:
            found = self._detect(image)
        except AnnotationError as error:
            if error.kind is FailureKind.SERVICE:
                self._count_failure(error.text)
            else:
                self._failed_in_a_row = 0
            raise
        self._failed_in_a_row = 0
        return found

    def _detect(self, image: WorkingImage) -> list[Detection]:
        jpeg = _jpeg(image.pixels)
        size = (image.pixels.shape[1], image.pixels.shape[0])
        settings, pause, malformed = self._settings, self._settings.first_pause_s, 0
        for attempt in range(1, settings.tries + 1):
            self._keep_pace()
            wait = 0.0
            try:
                return parse_reply(self._ask(jpeg), size)
            except ServiceBusyError as busy:
                last = AnnotationError(FailureKind.SERVICE, str(busy)[:100], transient=True)
                wait = busy.wait_s
            except AnnotationError as error:
                malformed += 1
                last = error
                asked_again = error.kind is FailureKind.MALFORMED_ANSWER
                if not asked_again or malformed == settings.tries_malformed:
                    raise
            if attempt == settings.tries:
                raise last
            self._sleep(min(max(pause, wait), LONGEST_PAUSE_S))
            pause *= 2
        raise AssertionError  # not reached: at least one try is made

    def _ask(self, jpeg: bytes) -> Reply:
        self.used['requests'] += 1
        reply = self._service.ask(self._settings, jpeg)
        self.used['tokens_in'] += reply.tokens_in
        self.used['tokens_out'] += reply.tokens_out
        return reply

    def _count_failure(self, text: str) -> None:
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self._settings.most_failed_in_a_row:
            raise UserError(
                f'the service failed {self._failed_in_a_row} pictures in a row ({text}); start '
                'the same command later, what is finished is kept.'
            )

    def _keep_pace(self) -> None:
        wait = self._next_s - self._clock()
        if wait > 0:
            self._sleep(wait)
        self._next_s = max(self._clock(), self._next_s) + 60 / self._settings.requests_per_minute


def _jpeg(pixels: ImageArray) -> bytes:
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    ok, jpeg = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])
    assert ok
    return jpeg.tobytes()


class GenaiService:
    """Google's service. The key comes from the environment alone and is never written anywhere.

    Args:
        base_url: another address than Google's, for tests.
        timeout_s: of one request.

    Raises:
        UserError: no key in the environment, or google-genai is not installed.
    """

    def __init__(self, base_url: str = '', timeout_s: float = TIMEOUT_S) -> None:
        key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), '')
        if not key:
            raise UserError(f'the detector gemini needs a key: set {" or ".join(KEY_VARIABLES)}.')
        try:
            from google import genai
            from google.genai import types
        except ImportError:
            raise UserError(
                'google-genai is not installed; install the extra "annotate".'
            ) from None
        options = types.HttpOptions(base_url=base_url or None, timeout=int(timeout_s * 1000))
        self._client = genai.Client(api_key=key, http_options=options)

    def ask(self, settings: GeminiSettings, jpeg: bytes) -> Reply:
        """See BoxService."""
        from google.genai import errors, types

        thinking = types.ThinkingConfig(thinking_budget=settings.thinking_tokens)
        config = types.GenerateContentConfig(
            response_mime_type='application/json',
            response_schema=dict(SCHEMA),
            temperature=0.0,
            max_output_tokens=settings.most_tokens_out,
            thinking_config=None if settings.thinking_tokens < 0 else thinking,
        )
        picture = types.Part.from_bytes(data=jpeg, mime_type='image/jpeg')
        try:
            answer = self._client.models.generate_content(
                model=settings.model, contents=[picture, settings.prompt()], config=config
            )
        except errors.APIError as error:
            raise _named(error, settings.model) from None
        except Exception as error:
            # Whatever else the client raises is the network or an answer that is not the
            # service's: its HTTP library's own errors, JSON cut short, a proxy's page.
            raise ServiceBusyError(type(error).__name__) from None
        return _reply(answer)


def _named(error: Any, model: str) -> Exception:
    """What an error of the service means for us."""
    text = str(error)
    if error.code in (408, 429) or error.code >= 500:
        return ServiceBusyError(f'status {error.code}', _retry_delay_s(error.details))
    if error.code in (401, 403, 404) or 'API_KEY_INVALID' in text or 'API key' in text:
        # Every further picture would fail alike: stop the run.
        return UserError(
            f'the service refuses the model "{model}" or the key (status {error.code}).'
        )
    # Transient, so that nothing is stored: the fault may be in our request or the account.
    status = f'status {error.code} {error.status or ""}'.strip()
    return AnnotationError(FailureKind.SERVICE, status, transient=True)


def _retry_delay_s(details: Any) -> float:
    """The pause that the service asks for (google.rpc.RetryInfo), 0 where it does not."""
    try:
        (delay,) = [d['retryDelay'] for d in details['error']['details'] if 'retryDelay' in d]
        return float(str(delay).removesuffix('s'))
    except (KeyError, TypeError, ValueError):
        return 0.0


def _reply(answer: Any) -> Reply:
    usage = answer.usage_metadata
    counts = [getattr(usage, n, None) or 0 for n in
              ('prompt_token_count', 'candidates_token_count', 'thoughts_token_count')]  # fmt: skip
    tokens = (counts[0], counts[1] + counts[2])
    if not answer.candidates:
        if answer.prompt_feedback is None:
            raise ServiceBusyError('an answer without content')
        reason = answer.prompt_feedback.block_reason
        return Reply('', f'BLOCKED {reason.name if reason else ""}'.strip(), *tokens)
    reason = answer.candidates[0].finish_reason
    return Reply(answer.text or '', reason.name if reason else 'NONE', *tokens)


TOKENS_PER_IMAGE = 1032
"""840 x 630 is billed as 4 tiles of 258 tokens (Google's documentation of image understanding)."""
TOKENS_OF_PROMPT = 150
TOKENS_OF_ANSWER = 800
"""About 20 boxes."""


class Cost(NamedTuple):
    """US dollars."""

    usual: float
    """Every picture answered at once, with about 20 boxes."""
    most: float
    """Every answer as long as allowed and asked for again as often as allowed."""


def estimate_cost_usd(
    images: int, usd_per_million: tuple[float, float], settings: GeminiSettings
) -> Cost:
    """Price of asking for so many images, given the prices of a million tokens in and out."""
    price_in, price_out = usd_per_million
    tokens_in = TOKENS_PER_IMAGE + TOKENS_OF_PROMPT
    usual = tokens_in * price_in + TOKENS_OF_ANSWER * price_out
    most = tokens_in * price_in + settings.most_tokens_out * price_out
    return Cost(images * usual / 1e6, images * settings.tries_malformed * most / 1e6)
