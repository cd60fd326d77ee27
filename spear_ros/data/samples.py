"""One training sample, its numbers and its pictures, as stored in a shard and as fed to training.

The numbers of a sample are one array (1 + H, 9) float64. Row 0 is the measured state
``[x y z qw qx qy qz gripper | 1 if the position means something]``, rows 1..H are the absolute
targets ``[x y z qw qx qy qz gripper | 1 if valid]``. Deltas are not stored: the checkpoint's
ActionSpec decides how they are taken, at training time, by the code that also serves.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.types import WRIST, FloatArray, ImageArray
from spear_ros.data.episodes import JPEG_MAGIC, Episode
from spear_ros.data.resampling import Steps

STATE_DIM = 9
P, Q, GRIPPER, VALID = slice(0, 3), slice(3, 7), 7, 8
TARGETS = slice(1, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureSettings:
    """How pictures are stored; written into the shard's card."""

    external_size: tuple[int, int] = (240, 320)
    """Largest rows and columns; their ratio is the ratio that external pictures are cropped to."""
    wrist_size: tuple[int, int] = (240, 320)
    """The same for the wrist; the networks crop a square from it."""
    fit: str = 'crop'
    """``crop`` to the ratio about the centre, or ``keep`` the camera's own ratio."""
    jpeg_quality: int = 92

    def __post_init__(self) -> None:
        if self.fit not in ('crop', 'keep'):
            raise UserError(f'fit = "{self.fit}" must be "crop" or "keep".')
        if not 50 <= self.jpeg_quality <= 100:
            raise UserError(f'jpeg_quality = {self.jpeg_quality} must lie between 50 and 100.')
        for size in (self.external_size, self.wrist_size):
            if not all(16 <= side <= 4096 for side in size):
                raise UserError(f'picture size {size} must lie between 16 and 4096 pixels.')


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One instant of one episode."""

    key: str
    """Unique: the episode's key and the number of the instant."""
    dataset: str
    embodiment: str
    instruction: str
    numbers: FloatArray
    """(1 + H, 9), see the module's text."""
    external: bytes
    """JPEG."""
    wrist: bytes | None = None
    info: Mapping[str, float | str] = field(default_factory=dict)
    """Facts for checks: ``step``, ``image_age_s``, ``view``; of simulated demonstrations also those
    of :mod:`spear_ros.data.seen_objects`."""


def samples_of(
    episode: Episode, steps: Steps, pictures: PictureSettings, *, drop_idle: bool = False
) -> Iterator[Sample]:
    """Samples of an episode, one in memory at a time.

    Of several external views one is chosen for each sample by a hash of its key, so that every view
    is used and a repeated conversion yields the same bytes.
    """
    for i in range(len(steps)):
        if drop_idle and steps.idle[i]:
            continue
        key = f'{episode.key}-{i:05d}'
        view = _choose_view(episode, steps, i, key)
        aspect = episode.stored_aspect
        wrist_frame = int(steps.image_index[WRIST][i]) if WRIST in steps.image_index else -1
        wrist = None
        if wrist_frame >= 0:
            wrist = store_picture(episode, WRIST, wrist_frame, (pictures, pictures.wrist_size))
        yield Sample(
            key=key,
            dataset=episode.dataset,
            embodiment=episode.embodiment,
            instruction=episode.instruction,
            numbers=sample_numbers(steps, i, episode.has_proprio),
            external=store_picture(
                episode,
                view,
                int(steps.image_index[view][i]),
                (pictures, pictures.external_size),
                aspect,
            ),
            wrist=wrist,
            info={
                'step': i,
                'image_age_s': round(float(steps.image_age_ns[view][i]) / 1e9, 6),
                'view': view,
            },
        )


def sample_numbers(steps: Steps, i: int, has_proprio: bool) -> FloatArray:
    """The (1 + H, 9) array of sample ``i``."""
    numbers = np.zeros((1 + steps.mask.shape[1], STATE_DIM))
    numbers[0, P], numbers[0, Q] = steps.p[i], steps.q[i]
    numbers[0, GRIPPER], numbers[0, VALID] = steps.gripper[i], float(has_proprio)
    numbers[TARGETS, P], numbers[TARGETS, Q] = steps.target_p[i], steps.target_q[i]
    numbers[TARGETS, GRIPPER], numbers[TARGETS, VALID] = steps.target_gripper[i], steps.mask[i]
    return numbers


def stable_hash(*parts: object) -> int:
    """64-bit number that is the same in every process and on every machine."""
    text = '\x1f'.join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), 'little')


def _choose_view(episode: Episode, steps: Steps, i: int, key: str) -> str:
    views = [v for v in episode.externals if steps.image_index[v][i] >= 0]
    return views[stable_hash('view', key) % len(views)]


def store_picture(
    episode: Episode,
    camera: str,
    index: int,
    how: tuple[PictureSettings, tuple[int, int]],
    stored_aspect: float | None = None,
) -> bytes:
    """JPEG bytes of a frame in the shard's size; the recording's own bytes where they fit already.

    Args:
        episode: the episode.
        camera: a key of its cameras.
        index: frame number.
        how: settings, and the (rows, columns) bound of this camera.
        stored_aspect: ratio to restore first, where the publisher squashed the picture.
    """
    settings, bound = how
    frames = episode.cameras[camera]
    blob = frames.encoded(index)
    if blob is not None and blob.startswith(JPEG_MAGIC) and stored_aspect is None:
        size = jpeg_size(blob)
        if size is not None and _target_size(size, bound, settings.fit)[1] == size:
            return blob
    image = frames.rgb(index)
    if stored_aspect is not None:
        image = restore_aspect(image, stored_aspect)
    image = shrink(image, bound, settings.fit)
    ok, encoded = cv2.imencode(
        '.jpg',
        cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
        [cv2.IMWRITE_JPEG_QUALITY, settings.jpeg_quality],
    )
    assert ok
    return encoded.tobytes()


def restore_aspect(image: ImageArray, aspect: float) -> ImageArray:
    """Undo a squash: widen or heighten, never lose pixels, so that width / height = ``aspect``."""
    height, width = image.shape[:2]
    size = (
        (round(height * aspect), height)
        if width < height * aspect
        else (
            width,
            round(width / aspect),
        )
    )
    if size == (width, height):
        return image
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def shrink(image: ImageArray, bound: tuple[int, int], fit: str) -> ImageArray:
    """Centre-crop to the bound's ratio (``crop``) and scale down to fit; never scale up."""
    (top, left, height, width), size = _target_size(image.shape[:2], bound, fit)
    window = image[top : top + height, left : left + width]
    if (height, width) == size:
        return window
    return np.asarray(cv2.resize(window, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def _target_size(
    size: tuple[int, ...], bound: tuple[int, int], fit: str
) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """Crop window (top, left, height, width) and final (height, width)."""
    height, width = size[0], size[1]
    crop_h, crop_w = height, width
    if fit == 'crop':
        if width * bound[0] > height * bound[1]:
            crop_w = max(1, round(height * bound[1] / bound[0]))
        else:
            crop_h = max(1, round(width * bound[0] / bound[1]))
    scale = min(1.0, bound[0] / crop_h, bound[1] / crop_w)
    final = (max(1, round(crop_h * scale)), max(1, round(crop_w * scale)))
    return ((height - crop_h) // 2, (width - crop_w) // 2, crop_h, crop_w), final


def jpeg_size(blob: bytes) -> tuple[int, int] | None:
    """Rows and columns from the header of a JPEG, None where it is not understood."""
    at = 2
    while at + 9 < len(blob):
        if blob[at] != 0xFF:
            return None
        marker = blob[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(blob[at + 5 : at + 7]), int.from_bytes(blob[at + 7 : at + 9])
        at += 2 + int.from_bytes(blob[at + 2 : at + 4])
    return None


def sample_info(sample: Sample) -> bytes:
    """The JSON member of a stored sample."""
    body = {
        'key': sample.key,
        'dataset': sample.dataset,
        'embodiment': sample.embodiment,
        'instruction': sample.instruction,
        **sample.info,
    }
    return json.dumps(body, ensure_ascii=False).encode()
