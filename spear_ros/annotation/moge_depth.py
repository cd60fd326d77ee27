"""Depth by MoGe-1: our own network with weights that the user converted.

Points are affine-invariant: the focal length and the shift along the axis are recovered, the scale
stays unknown and differs between pictures. Checked against the published model's numbers on a small
random network (networks tests); never run with the published weights, which are not to be had here.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from spear_ros.annotation.detectors import file_digest
from spear_ros.annotation.types import AnnotationError, FailureKind, PointMap, WorkingImage
from spear_ros.checkpoints.moge import load_moge_model
from spear_ros.networks.config import VitConfig
from spear_ros.networks.moge_head import MogeModel


class MogeDepth:
    """Point maps by a MoGe-1 model.

    Args:
        model: in eval mode.
        identity: what tells its weights apart, for the key of stored results.
    """

    name = 'depth-moge1'

    def __init__(self, model: MogeModel, identity: str) -> None:
        self._model, self._identity = model, identity

    @classmethod
    def from_folder(
        cls, folder: Path, device: str = 'cpu', encoder: VitConfig | None = None
    ) -> 'MogeDepth':
        """Load a converted folder.

        Raises:
            UserError: missing or damaged.
        """
        model = load_moge_model(folder, device, encoder)
        return cls(model, file_digest(folder / 'config.json') + _weights_digest(folder))

    def settings(self) -> Mapping[str, object]:
        """See Stage."""
        return {'version': 1, 'weights': self._identity}

    def estimate(self, image: WorkingImage) -> PointMap:
        """See DepthEstimator."""
        device = next(self._model.parameters()).device
        pixels = torch.from_numpy(np.ascontiguousarray(image.pixels)).to(device)
        result = self._model.infer(pixels.permute(2, 0, 1)[None].float() / 255)
        height, width = image.pixels.shape[:2]
        K = result.intrinsics[0].double().cpu().numpy()
        K[0] *= width
        K[1] *= height
        K[:2, 2] -= 0.5  # MoGe counts from the picture's edge, we from the first pixel's centre
        points = result.points[0].double().cpu().numpy()
        valid = result.mask[0].cpu().numpy() & np.isfinite(points).all(axis=-1)
        valid &= np.where(np.isfinite(points[..., 2]), points[..., 2], 0.0) > 0
        if not valid.any() or not np.isfinite(K).all() or K[0, 0] <= 0:
            raise AnnotationError(FailureKind.BAD_DEPTH, 'the model trusts no pixel of the picture')
        points = np.where(valid[..., None], points, 0.0)
        return PointMap(points=points, valid=valid, K=K, scale='affine')


def _weights_digest(folder: Path) -> str:
    """SHA-256 of the weights."""
    import hashlib

    digest = hashlib.sha256()
    with open(folder / 'model.safetensors', 'rb') as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
