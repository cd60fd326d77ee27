"""Losses that ask a network where things are, beside the losses of the actions.

SPEAR-1 begins with networks that know what a red cube is. One that begins with nothing has to find
out from actions alone, and for the first hundred thousand samples it does not (doc/log.md): it
moves as the mean of all objects asks. Three small heads, thrown away after the training, ask where
the data know what they show (:mod:`spear_ros.data.seen_objects`):

- patches: each visual token says whether an object's centre lies in its patch, which of some words
  name it, and where in the patch it is.
- points: the visual tokens, as the last layers see them, compete for which of them shows the target
  of the instruction, and which its receptacle; those that show any object say where that one is:
  the external camera's in the base frame, the wrist's in the end effector's, for the prefix does
  not know where the arm is.
- places: the text tokens, as the last layers see them, say where the objects of the instruction are
  in the base frame. So the instruction finds its object inside of the prefix, where the action
  expert reads it. Asked before the last layer only, the expert has one layer to make a motion of
  it; ``layers = 2`` leaves it two.

Shapes: B samples, N visual tokens, L text tokens, D width, W words, K labelled objects.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spear_ros.core.types import FloatArray
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
OBJECTNESS, OFFSET, SEEN = 4.0, 4.0, 4.0


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
    """(K, 3) float32, m, in the base frame; in the end effector's for tokens of the wrist."""
    external: Tensor
    """(K,) bool: seen by the external camera."""
    placed: Tensor
    """(K,) bool: ``xyz`` is known (without the arm's pose the wrist's is not)."""
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
        read_BPD: Sequence[Tensor],
        text_mask_BL: Tensor,
        labels: GroundingLabels,
    ) -> dict[str, Tensor]:
        """Weighted losses ``patch``, ``point`` and ``place``, as far as they are asked.

        Args:
            visual_BND: visual tokens as they were embedded.
            read_BPD: the prefix, P = N + L, as each of the asked layers sees it; their mean counts.
            text_mask_BL: text tokens that are no padding.
            labels: what is right.
        """
        config = self.config
        sizes = [visual_BND.shape[1], text_mask_BL.shape[1]]
        read = [x_BPD.float().split(sizes, 1) for x_BPD in read_BPD]
        losses: dict[str, Tensor] = {}
        if config.patch_weight > 0:
            losses['patch'] = config.patch_weight * self._patch_loss(visual_BND.float(), labels)
        if config.point_weight > 0:
            each = [self._point_loss(seen_BND, labels) for seen_BND, _ in read]
            losses['point'] = config.point_weight * torch.stack(each).mean()
        if config.place_weight > 0:
            each = [self._place_loss(text_BLD, text_mask_BL, labels) for _, text_BLD in read]
            losses['place'] = config.place_weight * torch.stack(each).mean()
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
        where the highest score is (of those that show it), ``seen_mm`` and ``wrist_mm``, the mean
        distance between where objects are and where the tokens of the external and of the wrist's
        camera that show them say, and ``place_mm``, that on the table between where targets are
        and where the instruction's tokens say."""
        text = text_mask_BL.shape[1]
        figures: dict[str, Tensor] = {}
        if self.config.point_weight > 0:
            scores_BN = self.point(read_BPD[:, :-text].float())[..., 0]
            shown = torch.zeros_like(scores_BN)
            shown[labels.row, labels.token] = labels.role[:, 0]
            right = shown.gather(1, scores_BN.argmax(1, keepdim=True)).sum()
            figures['pointed'] = right / shown.amax(1).sum().clamp_min(1)
            seen_KD = read_BPD[labels.row, labels.token].float()
            error = (self._seen_xyz(seen_KD, labels) - labels.xyz).norm(dim=-1)
            for name, camera in (('seen_mm', labels.external), ('wrist_mm', ~labels.external)):
                asked = labels.placed & camera
                figures[name] = 1e3 * (error * asked).sum() / asked.sum().clamp_min(1)
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
        each = _distance(self._seen_xyz(seen_BND[row, token], labels) - labels.xyz).mean(1)
        seen = (each * labels.placed).sum() / labels.placed.sum().clamp_min(1)
        return point + SEEN * seen

    def _seen_xyz(self, seen_KD: Tensor, labels: GroundingLabels) -> Tensor:
        middle_KD = labels.external[:, None] * seen_KD.new_tensor(MIDDLE_M)
        return UNIT_M * self.xyz(seen_KD) + middle_KD

    def _place_loss(
        self, text_BLD: Tensor, text_mask_BL: Tensor, labels: GroundingLabels
    ) -> Tensor:
        each = _distance(self.places(text_BLD, text_mask_BL) - labels.places)
        known = labels.known[..., None].expand_as(each)
        return torch.where(known, each, 0.0).sum() / known.sum().clamp_min(1)

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
    infos: Sequence[Mapping[str, Any]],
    poses: Sequence[FloatArray | None],
    model: Spear1Config,
    words: Sequence[str],
    wrist: bool,
) -> GroundingLabels:
    """Labels of a batch from the samples' facts; samples without facts ask nothing.

    Args:
        infos: what each sample says beside its numbers.
        poses: T_base_ee (4, 4) of each sample, None where it is not known.
        model: gives the patches.
        words: see :class:`~spear_ros.training.config.GroundingConfig`.
        wrist: the wrist's picture is shown too.

    Raises:
        UserError: facts of another form.
    """
    patch = model.siglip.patch
    grids = [model.external_size, model.wrist_size] if wrist else [model.external_size]
    grids = [(h // patch, w // patch) for h, w in grids]
    row, token, named, offset, xyz, role = [], [], [], [], [], []
    external, placed = [], []
    first_wrist = grids[0][0] * grids[0][1]
    places = torch.zeros(len(infos), 2, 3)
    known = torch.zeros(len(infos), 2, dtype=torch.bool)
    for number, info in enumerate(infos):
        objects = _objects(str(info[OBJECTS])) if OBJECTS in info else ()
        T_base_ee = poses[number]
        for thing in objects:
            parts = thing.name.split()
            spelled = [float(word in parts) for word in words]
            for index, inside in _tokens((thing.external, thing.wrist), grids):
                row.append(number)
                token.append(index)
                named.append(spelled)
                offset.append(inside)
                external.append(index < first_wrist)
                placed.append(external[-1] or T_base_ee is not None)
                if external[-1] or T_base_ee is None:
                    xyz.append(thing.p_base)
                else:
                    from_ee = np.asarray(thing.p_base) - T_base_ee[:3, 3]
                    xyz.append(tuple(from_ee @ T_base_ee[:3, :3]))
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
        external=torch.tensor(external, dtype=torch.bool),
        placed=torch.tensor(placed, dtype=torch.bool),
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
