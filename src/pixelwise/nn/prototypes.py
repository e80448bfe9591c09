"""Prototype masks of a whole image, and how they are learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.losses.mask import mask_cross_entropy
from pixelwise.nn.blocks import ConvNormAct
from pixelwise.ops.mask_assembly import combine, crop_support
from pixelwise.ops.masks import downsampled_targets
from pixelwise.ops.resize import resize
from pixelwise.types import InstanceTarget, Size

MASK_THRESH = 0.5  # of soft masks, predicted ones and resized annotations


class ProtoNet(nn.Module):
    """A small fully convolutional network whose channels are masks that instances are made of.

    It sees the finest level of the pyramid and doubles its resolution. Prototypes are not negative
    but unbounded, so one that is sure of the background can win over all others.

    Args:
        in_channels: of the level.
        channels:    of the hidden convolutions.
        prototypes:  P.

    Source:  YOLACT (arXiv:1904.02689), section 3.1.
    """

    def __init__(self, in_channels: int, channels: int, prototypes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(
                ConvNormAct(in_channels if i == 0 else channels, channels, norm=None)
                for i in range(3)
            )
        )
        self.refine = ConvNormAct(channels, channels, norm=None)
        self.project = nn.Conv2d(channels, prototypes, 1)

    def forward(self, level: Tensor) -> Tensor:
        """[B, C, h, w] → [B, P, 2h, 2w] >= 0."""
        return F.relu(self.logits(level))

    def logits(self, level: Tensor) -> Tensor:
        """[B, C, h, w] → [B, P, 2h, 2w] before the last ReLU."""
        x = self.convs(level)
        x = resize(x, (2 * x.shape[2], 2 * x.shape[3]))
        return self.project(self.refine(x))


def in_cells(boxes: Tensor, size: Size, prototypes: Tensor) -> Tensor:
    """Boxes [N, 4] from network-input pixels to cells of the prototypes [P, h, w]."""
    scale = (prototypes.shape[-1] / size[1], prototypes.shape[-2] / size[0])
    return boxes * boxes.new_tensor(scale).repeat(2)


class MaskSamples(NamedTuple):
    """The masks that a step learns from, R over the batch.

    logits: [R, h, w]. inside: [R, h, w] bool, the crop by the object's box. wanted: [R, h, w] 0 or
    1. areas: [R] of the object's box in cells. weights: [R] positives that each stands for.
    labels: [R] int64.
    """

    logits: Tensor
    inside: Tensor
    wanted: Tensor
    areas: Tensor
    weights: Tensor
    labels: Tensor


def sample_masks(
    prototypes: Tensor,
    coefficients: Tensor,
    matches: Tensor,
    targets: Sequence[InstanceTarget],
    *,
    size: Size,
    limit: int,
) -> MaskSamples:
    """Assemble the masks of the positives, at random where an image has too many.

    Args:
        prototypes:   [B, P, h, w].
        coefficients: [B, N, P].
        matches:      [B, N] of `match_targets`.
        targets:      one per image.
        size:         (height, width) of the network input.
        limit:        most masks per image.
    """
    cells = (prototypes.shape[2], prototypes.shape[3])
    found: list[MaskSamples] = []
    for maps, vectors, match, target in zip(
        prototypes, coefficients, matches, targets, strict=True
    ):
        chosen = (match >= 0).nonzero()[:, 0]
        total = len(chosen)
        if total > limit:
            chosen = chosen[torch.randperm(total, device=chosen.device)[:limit]]
        index = match[chosen]
        boxes = in_cells(target.boxes[index], size, maps)
        wanted = downsampled_targets(target.masks, size, cells, thresh=MASK_THRESH)
        sides = boxes[:, 2:] - boxes[:, :2]
        logits = combine(maps, vectors[chosen])
        found.append(
            MaskSamples(
                logits=logits.float() if logits.itemsize < 4 else logits,
                inside=crop_support(boxes, cells),
                wanted=wanted[index],
                areas=sides.prod(dim=1),
                weights=boxes.new_full((len(chosen),), total / max(1, len(chosen))),
                labels=target.labels[index],
            )
        )
    return MaskSamples(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def mask_loss(masks: MaskSamples) -> Tensor:
    """Binary cross entropy inside the crops, each mask divided by the area of its box, summed."""
    losses = mask_cross_entropy(masks.logits, masks.wanted) * masks.inside  # [R, h, w]
    return (losses.sum(dim=(1, 2)) / masks.areas * masks.weights).sum()


def semantic_loss(logits: Tensor, targets: Sequence[InstanceTarget], size: Size) -> Tensor:
    """Binary cross entropy of every class against the union of its masks.

    Summed over classes, for a pixel may have several; averaged over cells and images.

    Args:
        logits:  [B, K, h, w].
        targets: one per image.
        size:    (height, width) of the network input.
    """
    cells = (logits.shape[2], logits.shape[3])
    wanted = torch.zeros_like(logits, dtype=torch.float32)
    for goal, target in zip(wanted, targets, strict=True):
        masks = downsampled_targets(target.masks, size, cells, thresh=MASK_THRESH)  # [N, h, w]
        objects = ~target.crowd
        goal.index_add_(0, target.labels[objects], masks[objects]).clamp_(max=1)
    return mask_cross_entropy(logits, wanted).sum(dim=1).mean()
