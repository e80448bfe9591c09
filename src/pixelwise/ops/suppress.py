"""Removal of duplicate detections."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor


def greedy_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, *, iou_thresh: float
) -> Tensor:
    """Keep the best box, drop all that overlap it too much, go on with the best that is left.

    A box falls when its IoU with a kept one of its group is *above* the threshold; equal scores
    rank by position. The result is a mask over all boxes instead of a list of unknown length, so
    that what follows has fixed shapes and can be exported.

    Args:
        boxes:      [N, 4] xyxy in pixels.
        scores:     [N] any scale.
        groups:     [N] int64, classes or pyramid levels that do not suppress each other; or None.
        iou_thresh: in [0, 1].

    Returns:
        [N] bool, True for the boxes that stay.
    """
    boxes, scores = boxes.float(), scores.float()
    if groups is None:
        return _nms(boxes, scores, iou_thresh)
    if torch.compiler.is_compiling():
        return _nms(_apart(boxes, groups), scores, iou_thresh)
    keep = torch.zeros_like(scores, dtype=torch.bool)  # [N]
    for group in groups.unique().tolist():
        index = (groups == group).nonzero()[:, 0]
        keep[index] = _nms(boxes[index], scores[index], iou_thresh)
    return keep


def classwise_nms(
    boxes: Tensor, scores: Tensor, *, score_thresh: float, iou_thresh: float, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Make detections of boxes that are scored for every class but shared by all of them.

    Args:
        boxes:        [R, 4] xyxy in pixels.
        scores:       [R, K].
        score_thresh: a detection scores this at least.
        iou_thresh:   of the suppression within each class, in [0, 1].
        count:        most detections, all classes together.

    Returns:
        positions [N] int64 in the boxes, labels [N] int64 and scores [N], best first.
    """
    region, label = (scores >= score_thresh).nonzero(as_tuple=True)  # [M] each
    values = scores[region, label]
    keep = greedy_nms(boxes[region], values, label, iou_thresh=iou_thresh)
    region, label, values = region[keep], label[keep], values[keep]
    best = values.argsort(descending=True, stable=True)[:count]
    return region[best], label[best], values[best]


def _nms(boxes: Tensor, scores: Tensor, iou_thresh: float) -> Tensor:
    """[N] bool."""
    kept = torchvision.ops.nms(boxes, scores, iou_thresh)  # [kept], its length depends on the data
    keep = torch.zeros_like(scores, dtype=torch.bool)
    return keep.index_fill(0, kept, True)


def _apart(boxes: Tensor, groups: Tensor) -> Tensor:
    """Boxes moved so that different groups cannot touch: one call, whose graph is independent of N.

    An exported graph cannot loop over groups. Each gets a cell of a square grid around the origin,
    which keeps the coordinates, and with them the rounding, a factor sqrt(groups) smaller than a
    row of cells would: with 80 classes and 3000 px at most 0.001 px.
    """
    cell = (boxes.max() - boxes.min()).ceil() + 1
    side = (groups.max() + 1).to(boxes.dtype).sqrt().ceil()
    row, column = torch.div(groups, side, rounding_mode="floor"), groups % side
    shift = torch.stack([column, row], dim=-1) - torch.div(side, 2, rounding_mode="floor")
    return boxes + (shift * cell).repeat(1, 2)
