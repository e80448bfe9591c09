"""Assignment of anchors or proposals to ground truth by overlap."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

BACKGROUND = -1
IGNORED = -2


def match_boxes(
    iou: Tensor,
    *,
    high: float,
    low: float,
    allow_low_quality: bool = False,
    min_low_quality: float = 0.0,
    low_quality_to: Literal["most", "last"] = "most",
) -> Tensor:
    """Assign every anchor the ground truth it overlaps most, background, or nothing.

    Invariant: with `allow_low_quality`, every ground truth that any anchor overlaps (by
    `min_low_quality` at least) makes all of its best anchors positive, ties included; though not
    always for itself, see `low_quality_to`.

    Args:
        iou:               [N, A] overlaps of N ground truths with A anchors.
        high:              positive from here on.
        low:               background below; between the two an anchor is ignored.
        allow_low_quality: also take the best anchors of each ground truth (RPN).
        min_low_quality:   their smallest IoU (MMDetection 0.3, torchvision and Detectron2 0).
        low_quality_to:    whose they are: "most", of the ground truth that the anchor overlaps most
            (torchvision, Detectron2); "last", of the last one it is a best anchor of (MMDetection).

    Returns:
        [A] int64: the ground truth's index, -1 background, -2 ignored.

    Source:  Faster R-CNN (arXiv:1506.01497), section 3.1.2.
    Differs: a ground truth that overlaps no anchor at all takes none; torchvision and Detectron2
        make every anchor positive that has IoU 0 with it.
    """
    if iou.shape[0] == 0:
        return iou.new_full((iou.shape[1],), BACKGROUND, dtype=torch.int64)  # [A]
    best, matches = iou.max(dim=0)  # [A]
    kept = matches
    matches = matches.masked_fill(best < high, IGNORED)
    matches = matches.masked_fill_(best < low, BACKGROUND)
    if allow_low_quality and iou.shape[1]:
        top = iou.max(dim=1, keepdim=True).values  # [N, 1]
        wanted = (iou == top) & ((top > 0) & (top >= min_low_quality))  # [N, A]
        if low_quality_to == "last":
            kept = len(iou) - 1 - wanted.flip(0).to(torch.uint8).argmax(dim=0)  # [A]
        matches = torch.where(wanted.any(dim=0), kept, matches)
    return matches


def match_one_each(iou: Tensor, *, high: float, low: float) -> Tensor:
    """Assign anchors by overlap, and each ground truth one anchor of its own whatever the overlap.

    Invariant: while anchors last, no ground truth is left without one, and two never get the same.
    The globally largest overlap is taken first, then the largest of the remaining ground truths
    with the remaining anchors, and so on: sequential by its nature.

    Args:
        iou:  [N, A] overlaps of N ground truths with A anchors.
        high: positive from here on.
        low:  background below; between the two an anchor is ignored.

    Returns:
        [A] int64: the ground truth's index, -1 background, -2 ignored.

    Source:  SSD (arXiv:1512.02325), section 2.2, as in the released YOLACT.
    """
    matches = match_boxes(iou, high=high, low=low)
    left = iou.clone()
    rows = torch.arange(len(iou), device=iou.device)
    for _ in range(min(iou.shape)):
        best, columns = left.max(dim=1)  # [N] each
        row = best.argmax()
        column = columns[row]
        matches = matches.index_copy(0, column[None], rows[row][None])
        left.index_fill_(1, column[None], -1.0)
        left.index_fill_(0, row[None], -1.0)
    return matches
