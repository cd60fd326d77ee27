"""Boxes of named things by GroundingDINO or OWLv2 through transformers.

The labels are asked for by name; what is not named is not found. In the paper GroundingDINO's
labels were clearly less accurate and less consistent than Gemini's. Never run with published
weights, which are not to be had here; tested with stand-ins for model and processor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from spear_ros.annotation.detectors import checked
from spear_ros.annotation.types import AnnotationError, Detection, FailureKind, WorkingImage
from spear_ros.core.errors import UserError


class TextDetector:
    """Finds the things that ``labels`` name.

    Args:
        model: a zero-shot object detector of transformers in eval mode, or one called alike.
        processor: the one that belongs to it.
        labels: names of things, lower case.
        threshold: least score.
        identity: name and revision of the weights, for the key of stored results.
    """

    name = 'detect-text'

    def __init__(
        self,
        model: Any,
        processor: Any,
        labels: Sequence[str],
        *,
        threshold: float,
        identity: str,
    ) -> None:
        if not labels or not all(label.strip() for label in labels):
            raise UserError(f'labels {list(labels)}: name at least one thing to look for.')
        if not 0 < threshold < 1:
            raise UserError(f'detection threshold {threshold}: give a number between 0 and 1.')
        self._model, self._processor = model, processor
        self._labels, self._threshold = tuple(labels), threshold
        self._identity = identity

    @classmethod
    def from_pretrained(
        cls, name: str, labels: Sequence[str], *, threshold: float = 0.3, device: str = 'cpu'
    ) -> 'TextDetector':
        """Load weights by name (``IDEA-Research/grounding-dino-base``) or from a folder.

        Raises:
            UserError: they cannot be had.
        """
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        try:
            processor = AutoProcessor.from_pretrained(name)
            model = AutoModelForZeroShotObjectDetection.from_pretrained(name)
        except (OSError, ValueError, ImportError) as error:
            text = ' '.join(str(error).split())[:120]
            raise UserError(f'detector {name}: cannot load it ({text}).') from None
        identity = f'{name}@{getattr(model.config, "_commit_hash", None)}'
        model = model.to(device).eval().requires_grad_(False)
        return cls(model, processor, labels, threshold=threshold, identity=identity)

    def settings(self) -> Mapping[str, object]:
        """See Stage."""
        return {
            'version': 2,
            'weights': self._identity,
            'labels': list(self._labels),
            'threshold': self._threshold,
        }

    @torch.no_grad()
    def detect(self, image: WorkingImage) -> list[Detection]:
        """See Detector."""
        height, width = image.pixels.shape[:2]
        device = next(self._model.parameters()).device
        inputs = self._processor(
            images=image.pixels, text=[list(self._labels)], return_tensors='pt'
        ).to(device)
        (found,) = self._processor.post_process_grounded_object_detection(
            self._model(**inputs),
            threshold=self._threshold,
            target_sizes=[(height, width)],
            text_labels=[list(self._labels)],
        )
        detections = []
        for score, label, box in zip(
            found['scores'].tolist(), found['text_labels'], found['boxes'].tolist(), strict=True
        ):
            if label not in self._labels:
                # GroundingDINO may answer with a mixture of names: no label at all.
                raise AnnotationError(FailureKind.MALFORMED_ANSWER, f'label {label!r}')
            detections.append(checked(label, box, (width, height), score))
        return [replace(d, number=i) for i, d in enumerate(detections, 1)]
