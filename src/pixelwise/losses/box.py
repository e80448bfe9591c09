"""Losses on box coordinates; one value per element, the caller reduces."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

OverlapKind = Literal["log", "linear", "giou"]


def smooth_l1(pred: Tensor, target: Tensor, *, beta: float) -> Tensor:
    """Absolute difference, with the corner at 0 rounded off by a parabola.

    Args:
        pred:   [...] any coordinates.
        target: [...] the same.
        beta:   difference from which on the loss is linear; 0 is plain L1. Fast R-CNN's sigma is
            1 / sqrt(beta).

    Returns:
        [...] d² / (2 beta) below beta, |d| - beta / 2 above.

    Source: Fast R-CNN (arXiv:1504.08083), eq. 3.
    """
    # Without the case beta = 0 the gradient at equality would be 0 / 0.
    if beta == 0:
        return F.l1_loss(pred, target, reduction="none")
    return F.smooth_l1_loss(pred, target, reduction="none", beta=beta)


def ltrb_overlap_loss(
    pred: Tensor, target: Tensor, *, kind: OverlapKind = "log", smooth: float = 0.0
) -> Tensor:
    """Loss on the overlap of two boxes around the same point.

    All four distances are judged together, and scaling both boxes changes nothing.

    Args:
        pred:   [..., 4] distances >= 0 to left, top, right and bottom, in any unit.
        target: [..., 4] the same, positive.
        kind:   with IoU = I / U and C the smallest box around both: "log" is -log IoU, "linear" is
            1 - IoU, "giou" is 1 - IoU + (C - U) / C, which has a gradient for an empty box too.
        smooth: added to I and U (released FCOS code: 1).

    Returns:
        [...], at least 0; 0 where both boxes are equal.

    Source:  UnitBox (arXiv:1608.01471), section 3.2; GIoU (arXiv:1902.09630), section 3.
    """
    inter = _extent(torch.minimum(pred, target)).prod(dim=-1)
    union = _extent(pred).prod(dim=-1) + _extent(target).prod(dim=-1) - inter
    iou = (inter + smooth) / (union + smooth)
    if kind == "log":
        return -iou.clamp(min=1e-6).log()  # an empty box: 14, not infinity
    if kind == "linear":
        return 1 - iou
    around = _extent(torch.maximum(pred, target)).prod(dim=-1)
    return 1 - iou + (around - union) / around


def _extent(ltrb: Tensor) -> Tensor:
    """Width and height, [..., 2]."""
    return ltrb[..., :2] + ltrb[..., 2:]
