from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from spear_ros.annotation.text_detector import TextDetector
from spear_ros.annotation.types import AnnotationError, FailureKind, WorkingImage
from spear_ros.core.errors import UserError

IMAGE = WorkingImage(
    name='x', digest='d', pixels=np.zeros((60, 80, 3), np.uint8), original_size=(80, 60)
)


class Model(nn.Linear):
    def __init__(self):
        super().__init__(1, 1)

    def forward(self, **inputs):
        return SimpleNamespace(**inputs)


class Inputs(dict):
    def to(self, device):
        return self


class Processor:
    """Stands for a processor of transformers; answers with fixed boxes."""

    def __init__(self, labels, boxes):
        self.labels, self.boxes = labels, torch.tensor(boxes, dtype=torch.float)

    def __call__(self, images, text, return_tensors):
        assert images.shape == (60, 80, 3)
        return Inputs(text=text)

    def post_process_grounded_object_detection(self, outputs, threshold, target_sizes, text_labels):
        assert target_sizes == [(60, 80)]
        assert outputs.text == text_labels
        scores = torch.full((len(self.labels),), threshold + 0.1)
        return [{'scores': scores, 'text_labels': self.labels, 'boxes': self.boxes}]


def detector(found, boxes, labels=('mug', 'pan')):
    return TextDetector(Model(), Processor(found, boxes), labels, threshold=0.3, identity='w')


def test_named_things_come_with_their_boxes():
    mug, pan = detector(['mug', 'pan'], [[1, 2, 30, 40], [-30, 2, 30, 40]]).detect(IMAGE)
    assert (mug.label, mug.box_xyxy, mug.problem) == ('mug', (1, 2, 30, 40), '')
    assert mug.score == pytest.approx(0.4)
    assert pan.problem


def test_a_mixture_of_names_is_no_label():
    with pytest.raises(AnnotationError) as caught:
        detector(['mug pan'], [[1, 2, 30, 40]]).detect(IMAGE)
    assert caught.value.kind is FailureKind.MALFORMED_ANSWER


@pytest.mark.parametrize('labels', [(), (' ',)])
def test_something_must_be_named(labels):
    with pytest.raises(UserError, match='name at least one'):
        detector([], [], labels)
