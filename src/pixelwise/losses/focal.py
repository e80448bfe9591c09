"""Focal loss: cross-entropy that forgets what is already right."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.types import IGNORE


def softmax_focal(
    logits: Tensor, labels: Tensor, *, gamma: float = 2.0, ignore: int = IGNORE
) -> Tensor:
    """Focal loss of every pixel over exclusive classes.

    With gamma = 0 it is the cross-entropy.

    Args:
        logits: [B, K, H, W].
        labels: [B, H, W] int64, 0..K-1 or `ignore`.
        gamma:  >= 0; how fast the loss of a confident pixel fades.
        ignore: label of pixels that count for nothing.

    Returns:
        [B, H, W] (1 - p)^gamma * -log p, p the probability of the true class, in float32 at least;
        0 where ignored.

    Source:  Focal loss (arXiv:1708.02002), eq. 4.
    Differs: softmax where the paper has one sigmoid per class.
    """
    logits = logits.float() if logits.itemsize < 4 else logits
    losses = F.cross_entropy(logits, labels, ignore_index=ignore, reduction="none")  # [B, H, W]
    return _doubt(losses) ** gamma * losses


def sigmoid_focal(
    logits: Tensor, target: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss of every independent yes-or-no decision.

    Args:
        logits: [...] before the sigmoid.
        target: [...] 0 or 1, same shape.
        alpha:  weight of positives; negatives get 1 - alpha. Negative: no such weights.
        gamma:  >= 0; how fast the loss of a confident decision fades.

    Returns:
        [...] alpha_t * (1 - p_t)^gamma * -log p_t, in float32 at least.

    Source: Focal loss (arXiv:1708.02002), eq. 5.
    """
    logits = logits.float() if logits.itemsize < 4 else logits
    target = target.to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    losses = _doubt(losses) ** gamma * losses
    if alpha < 0:
        return losses
    return (alpha * target + (1 - alpha) * (1 - target)) * losses


def _doubt(losses: Tensor) -> Tensor:
    """1 - p from -log p: no second softmax, and exact where p rounds to 1.

    Kept off 0, where a power below 1 has no gradient.
    """
    return (-torch.expm1(-losses)).clamp(min=1e-12)
