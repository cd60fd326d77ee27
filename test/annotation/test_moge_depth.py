import numpy as np
import pytest
import torch
from torch import nn

from spear_ros.annotation.box_geometry import project
from spear_ros.annotation.moge_depth import MogeDepth
from spear_ros.annotation.types import AnnotationError, FailureKind, WorkingImage
from spear_ros.networks import moge_geometry
from spear_ros.networks.moge_head import MogeConfig, MogeModel


class KnownSurface(MogeModel):
    """MoGe's inference on a point map that is known up to a shift along the axis."""

    def __init__(self, trusted):
        nn.Module.__init__(self)
        self.config = MogeConfig()
        self.bias = nn.Parameter(torch.zeros(1))
        self.trusted = trusted

    def forward(self, image, num_tokens):
        height, width = image.shape[-2:]
        u, v = torch.meshgrid(torch.arange(width), torch.arange(height), indexing='xy')
        depth = 2 + 0.5 * torch.sin(u / 9) + 0.01 * v
        camera = moge_geometry.intrinsics(1.1, width / height, depth)
        points = moge_geometry.unproject(depth, camera)
        points[..., 2] -= 0.7
        return points[None], torch.full((1, height, width), 1.0 if self.trusted else 0.0)


@pytest.fixture
def image():
    pixels = np.zeros((60, 80, 3), np.uint8)
    return WorkingImage(name='x.png', digest='d', pixels=pixels, original_size=(80, 60))


def test_focal_and_shift_are_recovered_and_points_are_affine(image):
    found = MogeDepth(KnownSurface(True), 'w').estimate(image)
    assert found.scale == 'affine'
    assert found.valid.all()
    assert found.points[0, 0, 2] == pytest.approx(2.0, abs=1e-3)
    for v, u in ((0, 0), (30, 41), (59, 79)):
        np.testing.assert_allclose(project(found.points[v, u], found.K), [u, v], atol=1e-3)


def test_a_picture_that_the_model_does_not_trust_is_a_failure(image):
    with pytest.raises(AnnotationError) as caught:
        MogeDepth(KnownSurface(False), 'w').estimate(image)
    assert caught.value.kind is FailureKind.BAD_DEPTH
