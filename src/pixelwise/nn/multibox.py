"""Training of anchors that say the class and the box at once: assignment and losses of SSD."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.losses.box import smooth_l1
from pixelwise.losses.hard_negatives import hard_negatives
from pixelwise.ops.boxes import encode_boxes, pairwise_ioa, pairwise_iou
from pixelwise.ops.matching import BACKGROUND, IGNORED, match_one_each
from pixelwise.types import InstanceTarget

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # one over the variances .1, .1, .2, .2 of SSD
POSITIVE_IOU, NEGATIVE_IOU, CROWD_IOA = 0.5, 0.4, 0.7  # of YOLACT, released code
NEGATIVES = 3  # per positive. SSD (arXiv:1512.02325), section 2.2


@torch.no_grad()
def match_targets(anchors: Tensor, targets: Sequence[InstanceTarget]) -> Tensor:
    """Assign the anchors of every image to its objects.

    An anchor that would be background is ignored where it lies inside a crowd.

    Args:
        anchors: [N, 4] xyxy in network-input pixels.
        targets: one per image.

    Returns:
        [B, N] int64: the object's index, -1 background, -2 ignored.
    """
    found: list[Tensor] = []
    for target in targets:
        objects = (~target.crowd).nonzero()[:, 0]
        iou = pairwise_iou(target.boxes[objects], anchors)
        matches = match_one_each(iou, high=POSITIVE_IOU, low=NEGATIVE_IOU)
        # One spare place, for there may be no object.
        named = F.pad(objects, (0, 1))[matches.clamp(min=0)]
        matches = torch.where(matches >= 0, named, matches)
        crowded = pairwise_ioa(anchors, target.boxes[target.crowd]) > CROWD_IOA
        found.append(torch.where((matches < 0) & crowded.any(dim=1), IGNORED, matches))
    return torch.stack(found)


def class_loss(logits: Tensor, matches: Tensor, targets: Sequence[InstanceTarget]) -> Tensor:
    """Softmax cross entropy of all positives and the hardest negatives, summed.

    Args:
        logits:  [B, N, K + 1], background last.
        matches: [B, N] of `match_targets`.
        targets: one per image.
    """
    logits = logits.float()
    background = logits.shape[-1] - 1
    labels = torch.full_like(matches, background)
    for row, match, target in zip(labels, matches, targets, strict=True):
        row[match >= 0] = target.labels[match[match >= 0]]
    hardness = logits.detach().logsumexp(dim=-1) - logits.detach()[..., background]
    chosen = (matches >= 0) | hard_negatives(
        hardness, matches >= 0, matches == BACKGROUND, ratio=NEGATIVES
    )
    return F.cross_entropy(logits[chosen], labels[chosen], reduction="sum")


def box_loss(
    deltas: Tensor, anchors: Tensor, matches: Tensor, targets: Sequence[InstanceTarget]
) -> Tensor:
    """Smooth L1 of the positives' deltas, summed.

    Args:
        deltas:  [B, N, 4].
        anchors: [N, 4] xyxy in network-input pixels.
        matches: [B, N] of `match_targets`.
        targets: one per image.
    """
    positive = matches >= 0
    wanted = [
        encode_boxes(anchors[mine], target.boxes[match[mine]], DELTA_WEIGHTS)
        for mine, match, target in zip(positive, matches, targets, strict=True)
    ]
    return smooth_l1(deltas[positive].float(), torch.cat(wanted), beta=1.0).sum()
