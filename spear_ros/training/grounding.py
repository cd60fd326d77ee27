"""Losses that ask a network where things are, beside the losses of the actions.

SPEAR-1 begins with networks that know what a red cube is. One that begins with nothing has to find
out from actions alone, and for the first hundred thousand samples it does not (doc/log.md): it
moves as the mean of all objects asks. Three small heads, thrown away after the training, ask where
the data know what they show (:mod:`spear_ros.data.seen_objects`):

- patches: each visual token says whether an object's centre lies in its patch, which of some words
  name it, and where in the patch it is.
- points: the visual tokens, as the last layer sees them, compete for which of them shows the target
  of the instruction, and which its receptacle; those that show any object say where that one is in
  the base frame.
- places: the text tokens, as the last layer sees them, say where the objects of the instruction are
  in the base frame. So the instruction finds its object inside of the prefix, where the action
  expert reads it.

Shapes: B samples, N visual tokens, L text tokens, D width, W words, K labelled objects.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spear_ros.data.seen_objects import (
    OBJECTS,
    RECEPTACLE,
    TARGET,
    Point,
    SeenObject,
    read_objects,
)
from spear_ros.networks.spear1 import Spear1Config
from spear_ros.training.config import GroundingConfig

UNIT_M = 0.1
"""Places are predicted in these units, about their middle."""
MIDDLE_M = (0.4, 0.0, 0.03)
BETA = 0.3
"""Beyond 3 cm an error counts linearly."""
OBJECTNESS, OFFSET = 4.0, 4.0


@dataclass(frozen=True, slots=True)
class GroundingLabels:
    """What the heads are asked; rows count samples."""

    row: Tensor
    """(K,) int64: sample."""
    token: Tensor
    """(K,) int64: visual token, external camera first."""
    words: Tensor
    """(K, W) float32, 1 = the word names the object."""
    offset: Tensor
    """(K, 2) float32 in [0, 1]: place in the patch, right and down."""
    xyz: Tensor
    """(K, 3) float32, m, base frame."""
    role: Tensor
    """(K, 2) float32, 1 = it is the target, it is the receptacle of its sample's instruction."""
    places: Tensor
    """(B, 2, 3) float32, m, base frame: target and receptacle."""
    known: Tensor
    """(B, 2) bool: which of them there are."""
    told: Tensor
    """(B,) bool: samples that know what they show; the others' patches are not asked."""


class GroundingHeads(nn.Module):
    """All three heads.

    Args:
        width: of the language stack.
        config: which losses.
    """

    def __init__(self, width: int, config: GroundingConfig) -> None:
        super().__init__()
        self.config = config
        self.patch = nn.Linear(width, 1 + len(config.words) + 2)
        self.point = nn.Linear(width, 2)
        self.xyz = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 3))
        self.place = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 6))

    def forward(
        self,
        visual_BND: Tensor,
        read_BPD: Tensor,
        text_mask_BL: Tensor,
        labels: GroundingLabels,
    ) -> dict[str, Tensor]:
        """Weighted losses ``patch``, ``point`` and ``place``, as far as they are asked.

        Args:
            visual_BND: visual tokens as they were embedded.
            read_BPD: the prefix, P = N + L, as the last layer sees it.
            text_mask_BL: text tokens that are no padding.
            labels: what is right.
        """
        config = self.config
        seen, text_BLD = read_BPD.float().split([visual_BND.shape[1], text_mask_BL.shape[1]], 1)
        losses: dict[str, Tensor] = {}
        if config.patch_weight > 0:
            losses['patch'] = config.patch_weight * self._patch_loss(visual_BND.float(), labels)
        if config.point_weight > 0:
            losses['point'] = config.point_weight * self._point_loss(seen, labels)
        if config.place_weight > 0:
            each = _distance(self.places(text_BLD, text_mask_BL) - labels.places)
            known = labels.known[..., None].expand_as(each)
            mean = torch.where(known, each, 0.0).sum() / known.sum().clamp_min(1)
            losses['place'] = config.place_weight * mean
        return losses

    def places(self, text_BLD: Tensor, text_mask_BL: Tensor) -> Tensor:
        """Places (B, 2, 3) of target and receptacle, m, base frame."""
        share = text_mask_BL.float() / text_mask_BL.sum(1, keepdim=True)
        pooled = (text_BLD.float() * share[..., None]).sum(1)
        place = self.place(pooled).unflatten(-1, (2, 3))
        return UNIT_M * place + place.new_tensor(MIDDLE_M)

    @torch.no_grad()
    def figures(
        self, read_BPD: Tensor, text_mask_BL: Tensor, labels: GroundingLabels
    ) -> dict[str, Tensor]:
        """What the losses that are asked mean: ``pointed``, the share of samples whose target is
        where the highest score is (of those that show it), and ``place_mm``, the mean distance on
        the table between where targets are and are said to be."""
        text = text_mask_BL.shape[1]
        figures: dict[str, Tensor] = {}
        if self.config.point_weight > 0:
            scores_BN = self.point(read_BPD[:, :-text].float())[..., 0]
            shown = torch.zeros_like(scores_BN)
            shown[labels.row, labels.token] = labels.role[:, 0]
            right = shown.gather(1, scores_BN.argmax(1, keepdim=True)).sum()
            figures['pointed'] = right / shown.amax(1).sum().clamp_min(1)
        if self.config.place_weight > 0:
            error = self.places(read_BPD[:, -text:], text_mask_BL)[:, 0] - labels.places[:, 0]
            known = labels.known[:, 0]
            total = (error[:, :2].norm(dim=-1) * known).sum()
            figures['place_mm'] = 1e3 * total / known.sum().clamp_min(1)
        return figures

    def _point_loss(self, seen_BND: Tensor, labels: GroundingLabels) -> Tensor:
        if not len(labels.row):
            return seen_BND.new_zeros(())
        row, token = labels.row, labels.token
        # All places of one sample share a softmax; one that is seen twice counts half at each.
        logs = F.log_softmax(self.point(seen_BND), dim=1)[row, token]
        seen_times = torch.zeros_like(labels.known, dtype=logs.dtype)
        seen_times.index_add_(0, row, labels.role)
        share = labels.role / seen_times[row].clamp_min(1.0)
        point = -(share * logs).sum() / (seen_times > 0).sum().clamp_min(1)
        xyz = UNIT_M * self.xyz(seen_BND[row, token]) + logs.new_tensor(MIDDLE_M)
        return point + _distance(xyz - labels.xyz).mean()

    def _patch_loss(self, visual_BND: Tensor, labels: GroundingLabels) -> Tensor:
        y = self.patch(visual_BND)
        there = torch.zeros_like(y[..., 0])
        there[labels.row, labels.token] = 1.0
        each = F.binary_cross_entropy_with_logits(y[..., 0], there, reduction='none').mean(1)
        loss = OBJECTNESS * (each * labels.told).sum() / labels.told.sum().clamp_min(1)
        if not len(labels.row):
            return loss
        at = y[labels.row, labels.token]
        words = F.binary_cross_entropy_with_logits(at[:, 1:-2], labels.words, reduction='none')
        return loss + words.sum(1).mean() + OFFSET * F.mse_loss(at[:, -2:], labels.offset)


def _distance(error: Tensor) -> Tensor:
    """Loss of each number of an error in m."""
    units = error / UNIT_M
    return F.smooth_l1_loss(units, torch.zeros_like(units), reduction='none', beta=BETA)


def make_labels(
    infos: Sequence[Mapping[str, Any]], model: Spear1Config, words: Sequence[str], wrist: bool
) -> GroundingLabels:
    """Labels of a batch from the samples' facts; samples without facts ask nothing.

    Raises:
        UserError: facts of another form.
    """
    patch = model.siglip.patch
    grids = [model.external_size, model.wrist_size] if wrist else [model.external_size]
    grids = [(h // patch, w // patch) for h, w in grids]
    row, token, named, offset, xyz, role = [], [], [], [], [], []
    places = torch.zeros(len(infos), 2, 3)
    known = torch.zeros(len(infos), 2, dtype=torch.bool)
    for number, info in enumerate(infos):
        objects = _objects(str(info[OBJECTS])) if OBJECTS in info else ()
        for thing in objects:
            parts = thing.name.split()
            spelled = [float(word in parts) for word in words]
            for index, inside in _tokens((thing.external, thing.wrist), grids):
                row.append(number)
                token.append(index)
                named.append(spelled)
                offset.append(inside)
                xyz.append(thing.p_base)
                role.append([float(info.get(f) == thing.name) for f in (TARGET, RECEPTACLE)])
        by_name = {thing.name: thing.p_base for thing in objects}
        for which, fact in enumerate((TARGET, RECEPTACLE)):
            if info.get(fact) in by_name:
                places[number, which] = torch.tensor(by_name[info[fact]])
                known[number, which] = True
    return GroundingLabels(
        row=torch.tensor(row, dtype=torch.int64),
        token=torch.tensor(token, dtype=torch.int64),
        words=torch.tensor(named, dtype=torch.float32).view(len(row), len(words)),
        offset=torch.tensor(offset, dtype=torch.float32).view(len(row), 2),
        xyz=torch.tensor(xyz, dtype=torch.float32).view(len(row), 3),
        role=torch.tensor(role, dtype=torch.float32).view(len(row), 2),
        places=places,
        known=known,
        told=torch.tensor([OBJECTS in info for info in infos]),
    )


@lru_cache(maxsize=200_000)
def _objects(text: str) -> tuple[SeenObject, ...]:
    """Read once: a picture comes again with every epoch and every instruction."""
    return tuple(read_objects(text))


def _tokens(
    points: Iterable[Point | None], grids: Sequence[tuple[int, int]]
) -> Iterable[tuple[int, Point]]:
    """Visual token of each point that is seen, and its place in the patch."""
    first = 0
    for point, (rows, columns) in zip(points, grids, strict=False):
        if point is not None:
            x, y = point[0] * columns, point[1] * rows
            # A place at the edge may have been rounded to 1.
            column, row = min(int(x), columns - 1), min(int(y), rows - 1)
            yield first + row * columns + column, (x - column, y - row)
        first += rows * columns
