"""Detectors: labelled boxes from stored answers or from Gemini.

A box that cannot be trusted (turned round, outside of the picture, cut by it) is not dropped but
handed on with its ``problem``: it gets no label, and still counts as an instance of its class, so
that a class with a second, doubtful instance is not mistaken for one with a single one.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from spear_ros.annotation.images import working_pixels
from spear_ros.annotation.types import AnnotationError, Detection, FailureKind, WorkingImage
from spear_ros.core.errors import UserError

MAX_BOXES = 100
MAX_LABEL = 60
MIN_INSIDE = 0.9
"""Share of a box that must lie in the working image; less is an object cut by its border."""
OUTSIDE = 'it is not in the picture'
MAX_FILE_BYTES = 10 << 20
KEY_VARIABLES = ('GEMINI_API_KEY', 'GOOGLE_API_KEY')


def checked(label: object, box: Sequence[float], size: tuple[int, int], score: float) -> Detection:
    """One box in pixels of a picture of (width, height) ``size``, cut to it, its problem named.

    Raises:
        AnnotationError: the label or a number is none.
    """
    if not isinstance(label, str) or not label.strip() or len(label) > MAX_LABEL:
        raise AnnotationError(FailureKind.MALFORMED_ANSWER, f'label {str(label)[:60]!r}')
    if any(c in label for c in '<>') or not label.isprintable():
        raise AnnotationError(FailureKind.MALFORMED_ANSWER, f'label {label!r} is not plain text')
    numbers = np.array(box, float)
    if numbers.shape != (4,) or not np.isfinite(numbers).all():
        raise AnnotationError(FailureKind.MALFORMED_ANSWER, f'box {str(box)[:60]} of "{label}"')
    name = ' '.join(label.lower().split())
    x0, y0, x1, y1 = numbers.tolist()
    if x1 <= x0 or y1 <= y0:
        return Detection(label=name, box_xyxy=(x0, y0, x1, y1), score=score,
                         problem='its ends are in the wrong order')  # fmt: skip
    cut = (max(x0, 0.0), max(y0, 0.0), min(x1, float(size[0])), min(y1, float(size[1])))
    inside = max(cut[2] - cut[0], 0.0) * max(cut[3] - cut[1], 0.0) / ((x1 - x0) * (y1 - y0))
    problem = '' if inside >= MIN_INSIDE else f'only {inside:.0%} of it is in the picture'
    if inside <= 0:
        problem = OUTSIDE
    return Detection(label=name, box_xyxy=cut, score=score, problem=problem)


class ReplayDetector:
    """Stored boxes: ``DIR/<picture's name without suffix>.json``.

    The file: ``{"boxes": [{"label": "mug", "box_xyxy": [x0, y0, x1, y1], "score": 0.9}, ...]}`` in
    pixels of the upright original picture.
    """

    name = 'detect-replay'

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f'{folder}: no such folder of boxes.')
        self._folder = folder

    def settings(self) -> Mapping[str, object]:
        """See Stage; the file's content is an input: :meth:`digest`."""
        return {'version': 1}

    def digest(self, image: WorkingImage) -> str:
        """Digest of the stored answer, so that an edited file is read again."""
        return file_digest(self._path(image))

    def detect(self, image: WorkingImage) -> list[Detection]:
        """See Detector."""
        path = self._path(image)
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise AnnotationError(FailureKind.MALFORMED_ANSWER, f'{path.name} is too large')
            boxes = json.loads(path.read_bytes())['boxes']
            size = (image.pixels.shape[1], image.pixels.shape[0])
            found = []
            for entry in _boxes(boxes):
                xy = np.array(entry['box_xyxy'], float).reshape(2, 2)
                moved = working_pixels(xy, image.original_size, size).ravel().tolist()
                found.append(checked(entry['label'], moved, size, float(entry.get('score', 1.0))))
        except FileNotFoundError:
            raise AnnotationError(FailureKind.NOTHING_GIVEN, f'no {path.name}') from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            text = ' '.join(f'{type(error).__name__} {error}'.split())[:100]
            raise AnnotationError(FailureKind.MALFORMED_ANSWER, f'{path.name}: {text}') from None
        # Wholly outside of the crop: not in the working image at all.
        numbered = [replace(d, number=i) for i, d in enumerate(found, 1)]
        return [d for d in numbered if d.problem != OUTSIDE]

    def _path(self, image: WorkingImage) -> Path:
        return (self._folder / image.name).with_suffix('.json')


def file_digest(path: Path) -> str:
    """Digest of a file's content; of its absence where it is missing."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else 'absent'
    except OSError:
        return 'absent'


def _boxes(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise AnnotationError(FailureKind.MALFORMED_ANSWER, 'the boxes are no list')
    if len(value) > MAX_BOXES:
        raise AnnotationError(FailureKind.MALFORMED_ANSWER, f'{len(value)} boxes')
    return value


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


class Reply(NamedTuple):
    """An answer of the service."""

    text: str
    finish: str
    """``STOP`` where it is whole; else the service's reason (MAX_TOKENS, SAFETY, ...)."""


class ServiceBusyError(Exception):
    """Too many requests or a passing fault of the service: worth another try later."""


class BoxService(Protocol):
    """Sends one request."""

    def ask(self, model: str, jpeg: bytes, prompt: str) -> Reply:
        """Return the reply.

        Raises:
            ServiceBusyError: try again later.
            AnnotationError: this request will not work.
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
        entries = _boxes(json.loads(reply.text))
        found = []
        for entry in entries:
            label, box = entry['label'], [float(v) for v in entry['box_2d']]
            if len(box) != 4:
                raise ValueError('a box without four numbers')
            ymin, xmin, ymax, xmax = box
            wide = [xmin * size[0], ymin * size[1], xmax * size[0], ymax * size[1]]
            detection = checked(label, [v / 1000 for v in wide], size, 1.0)
            if not all(0 <= v <= 1000 for v in box):
                detection = _with_problem(detection, 'it is outside of 0 .. 1000')
            found.append(detection)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        kind = FailureKind.MALFORMED_ANSWER
        text = ' '.join(f'{type(error).__name__} {error}'.split())[:100]
        raise AnnotationError(kind, text, transient=True) from None
    return [replace(d, number=i) for i, d in enumerate(found, 1)]


def _with_problem(detection: Detection, problem: str) -> Detection:
    return replace(detection, problem=problem)


@dataclass(frozen=True, kw_only=True, slots=True)
class GeminiSettings:
    """How the service is asked."""

    model: str = 'gemini-2.5-flash'
    most_objects: int = 20
    tries: int = 5
    first_pause_s: float = 2.0
    """After a refusal for load; doubles with each further one."""
    requests_per_minute: float = 30.0


class GeminiDetector:
    """Boxes by Gemini through google-genai.

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

    def settings(self) -> Mapping[str, object]:
        """See Stage; the pace does not change answers."""
        return {'version': 1, 'model': self._settings.model, 'prompt': self._prompt()}

    def detect(self, image: WorkingImage) -> list[Detection]:
        """See Detector."""
        bgr = cv2.cvtColor(image.pixels, cv2.COLOR_RGB2BGR)
        ok, jpeg = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])
        assert ok
        size = (image.pixels.shape[1], image.pixels.shape[0])
        pause = self._settings.first_pause_s
        last = AnnotationError(FailureKind.SERVICE, 'never asked', transient=True)
        for attempt in range(self._settings.tries):
            self._keep_pace()
            try:
                return parse_reply(
                    self._service.ask(self._settings.model, jpeg.tobytes(), self._prompt()), size
                )
            except ServiceBusyError as busy:
                last = AnnotationError(FailureKind.SERVICE, str(busy)[:100], transient=True)
            except AnnotationError as error:
                if not error.transient:
                    raise
                last = error
            if attempt + 1 < self._settings.tries:
                self._sleep(pause)
                pause *= 2
        raise last

    def _prompt(self) -> str:
        return PROMPT.format(most=self._settings.most_objects)

    def _keep_pace(self) -> None:
        wait = self._next_s - self._clock()
        if wait > 0:
            self._sleep(wait)
        self._next_s = max(self._clock(), self._next_s) + 60 / self._settings.requests_per_minute


class GenaiService:
    """Google's service. The key comes from the environment alone and is never written anywhere.

    Raises:
        UserError: no key in the environment.
    """

    def __init__(self) -> None:
        key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), '')
        if not key:
            raise UserError(f'the detector gemini needs a key: set {" or ".join(KEY_VARIABLES)}.')
        from google import genai

        self._client = genai.Client(api_key=key)

    def ask(self, model: str, jpeg: bytes, prompt: str) -> Reply:
        """See BoxService."""
        from google.genai import errors, types

        config = types.GenerateContentConfig(
            response_mime_type='application/json', response_schema=dict(SCHEMA), temperature=0.0
        )
        picture = types.Part.from_bytes(data=jpeg, mime_type='image/jpeg')
        try:
            answer = self._client.models.generate_content(
                model=model, contents=[picture, prompt], config=config
            )
        except errors.APIError as error:
            if error.code in (408, 429, 500, 502, 503, 504):
                raise ServiceBusyError(f'status {error.code}') from None
            if error.code in (401, 403, 404):
                # Every further image would fail alike: stop the run.
                raise UserError(
                    f'the service refuses the model "{model}" or the key (status {error.code}).'
                ) from None
            raise AnnotationError(FailureKind.SERVICE, f'status {error.code}') from None
        except (OSError, TimeoutError) as error:
            raise ServiceBusyError(type(error).__name__) from None
        if not answer.candidates:
            return Reply('', 'BLOCKED')
        reason = answer.candidates[0].finish_reason
        return Reply(answer.text or '', reason.name if reason else 'STOP')


TOKENS_PER_IMAGE = 1032
"""840 x 630 is billed as 4 tiles of 258 tokens (Google's documentation of image understanding)."""
TOKENS_OF_PROMPT = 150
TOKENS_OF_ANSWER = 800
"""About 20 boxes; thinking tokens of some models come on top."""


def estimate_cost_usd(images: int, usd_per_million: tuple[float, float]) -> float:
    """Price of asking for so many images, given the prices of a million tokens in and out."""
    price_in, price_out = usd_per_million
    tokens_in = TOKENS_PER_IMAGE + TOKENS_OF_PROMPT
    return images * (tokens_in * price_in + TOKENS_OF_ANSWER * price_out) / 1e6
