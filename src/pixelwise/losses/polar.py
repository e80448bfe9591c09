"""Losses on masks given as distances at equal angles; one value per mask, the caller reduces."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

RayLossKind = Literal["linear", "squared", "per_ray"]


def polar_iou_loss(pred: Tensor, target: Tensor, *, kind: RayLossKind = "linear") -> Tensor:
    """The logarithm of the polar IoU, which judges all rays of a mask together.

    In polar coordinates an area is an integral over half the squared distance, so the IoU of two
    masks around the same point is the sum of squared minima over that of squared maxima. Without
    the squares training works as well.

    Args:
        pred:   [..., n] ray lengths > 0.
        target: [..., n] the same.
        kind:   "squared" is -log of that IoU; "linear" leaves the squares out (eq. 7 of the paper);
            "per_ray" is the mean of the rays' own logarithms.

    Returns:
        [...] at least 0; 0 where all rays are equal.

    Source:  PolarMask (arXiv:1909.13226), section 3.4.
    """
    low, high = torch.minimum(pred, target), torch.maximum(pred, target)
    if kind == "per_ray":
        return (high.log() - low.log()).mean(dim=-1)
    if kind == "squared":
        low, high = low.square(), high.square()
    return high.sum(dim=-1).log() - low.sum(dim=-1).log()
