"""Losses on instance masks; one value per element, the caller reduces."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def mask_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of a mask pixel, independent of all other classes and pixels.

    Args:
        logits: [...] before the sigmoid.
        target: [...] in [0, 1], same shape; soft values are allowed.

    Returns:
        [...] -t log p - (1 - t) log(1 - p) with p = sigmoid(logits), in float32 at least.

    Source: Mask R-CNN (arXiv:1703.06870), section 3.
    """
    logits = logits.float() if logits.itemsize < 4 else logits
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
