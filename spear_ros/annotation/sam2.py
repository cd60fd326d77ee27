"""Masks by SAM2 through transformers, prompted with boxes.

The picture is prepared here (stretched to the model's square, as SAM2 does; ImageNet mean and
deviation), because the processor of transformers needs torchvision. Run with a small random model
only: the published weights are not to be had here, so no mask of theirs has been seen.
"""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from spear_ros.annotation.types import (
    AnnotationError,
    Detection,
    FailureKind,
    MaskArray,
    WorkingImage,
)
from spear_ros.core.errors import UserError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Sam2Segmenter:
    """One mask per box.

    Args:
        model: ``transformers.Sam2Model`` in eval mode, or one that is called alike.
        identity: name and revision of its weights, for the key of stored results.
    """

    name = 'segment-sam2'

    def __init__(self, model: Any, identity: str) -> None:
        self._model, self._identity = model, identity
        self._side = int(model.config.vision_config.backbone_config.image_size[0])

    @classmethod
    def from_pretrained(cls, name: str, device: str = 'cpu') -> 'Sam2Segmenter':
        """Load weights by name (such as ``facebook/sam2.1-hiera-large``) or from a folder.

        Raises:
            UserError: they cannot be had.
        """
        from transformers import Sam2Model

        try:
            model = Sam2Model.from_pretrained(name).to(device).eval().requires_grad_(False)
        except (OSError, ValueError) as error:
            text = ' '.join(str(error).split())[:120]
            raise UserError(f'--sam2 {name}: cannot load it ({text}).') from None
        return cls(model, f'{name}@{getattr(model.config, "_commit_hash", None)}')

    def settings(self) -> Mapping[str, object]:
        """See Stage."""
        return {'version': 1, 'weights': self._identity}

    @torch.no_grad()
    def segment(self, image: WorkingImage, detections: list[Detection]) -> list[MaskArray]:
        """See Segmenter; a box with a problem gets an empty mask."""
        height, width = image.pixels.shape[:2]
        masks = [np.zeros((height, width), bool) for _ in detections]
        good = [i for i, d in enumerate(detections) if not d.problem]
        if not good:
            return masks
        device = next(self._model.parameters()).device
        square = cv2.resize(image.pixels, (self._side, self._side), interpolation=cv2.INTER_LINEAR)
        pixels = (square / 255.0 - MEAN) / STD
        scale = np.array([self._side / width, self._side / height] * 2)
        boxes = np.array([detections[i].box_xyxy for i in good]) * scale
        output = self._model(
            pixel_values=torch.from_numpy(pixels).float().permute(2, 0, 1)[None].to(device),
            input_boxes=torch.from_numpy(boxes).float()[None].to(device),
            multimask_output=False,
        )
        logits = output.pred_masks[0].float()
        if logits.shape[:2] != (len(good), 1):
            raise AnnotationError(FailureKind.BAD_MASK, f'masks of shape {tuple(logits.shape)}')
        full = F.interpolate(logits, (height, width), mode='bilinear', align_corners=False)
        for i, mask in zip(good, (full[:, 0] > 0).cpu().numpy(), strict=True):
            masks[i] = mask
        return masks
