from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from spear_ros.annotation.sam2 import Sam2Segmenter
from spear_ros.annotation.types import Detection, WorkingImage


class BoxFiller(nn.Module):
    """Stands for Sam2Model: fills each prompting box, at a quarter of its picture's size."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        backbone = SimpleNamespace(image_size=[64, 64])
        self.config = SimpleNamespace(vision_config=SimpleNamespace(backbone_config=backbone))

    def forward(self, pixel_values, input_boxes, multimask_output):
        assert pixel_values.shape == (1, 3, 64, 64)
        assert not multimask_output
        v, u = torch.meshgrid(torch.arange(16) * 4 + 2, torch.arange(16) * 4 + 2, indexing='ij')
        x0, y0, x1, y1 = input_boxes[0].T[:, :, None, None]
        inside = (u > x0) & (u < x1) & (v > y0) & (v < y1)
        return SimpleNamespace(pred_masks=(inside.float() * 2 - 1)[None, :, None])


def test_masks_come_back_in_the_order_and_size_of_the_picture():
    pixels = np.zeros((60, 80, 3), np.uint8)
    image = WorkingImage(name='x', digest='d', pixels=pixels, original_size=(80, 60))
    boxes = [
        Detection(label='a', box_xyxy=(40, 30, 80, 60)),
        Detection(label='b', box_xyxy=(9, 9, 3, 3), problem='turned'),
        Detection(label='c', box_xyxy=(0, 0, 20, 15)),
    ]
    first, bad, third = Sam2Segmenter(BoxFiller(), 'w').segment(image, boxes)
    assert first.shape == (60, 80)
    assert first[34:, 46:].all()
    assert not first[:28].any()
    assert not bad.any()
    assert third[:12, :16].all()
    assert not third[18:].any()
