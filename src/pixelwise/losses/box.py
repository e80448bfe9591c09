"""Losses on box coordinates; one value per element, the caller reduces."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


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
