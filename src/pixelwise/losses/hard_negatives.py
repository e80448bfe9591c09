"""Online hard example mining over anchors: a fixed number of negatives per positive."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def hard_negatives(hardness: Tensor, positive: Tensor, negative: Tensor, *, ratio: int) -> Tensor:
    """Choose the hardest negatives of every image, so many for each of its positives.

    An image without positives has no negatives either.

    Args:
        hardness: [B, A] how wrong each anchor is, any scale.
        positive: [B, A] bool.
        negative: [B, A] bool; what is neither is never chosen.
        ratio:    negatives per positive.

    Returns:
        [B, A] bool; of equally hard ones the first.

    Source:  SSD (arXiv:1512.02325), section 2.2.
    """
    order = hardness.masked_fill(~negative, -torch.inf).sort(dim=1, descending=True, stable=True)
    ranks = order.indices.argsort(dim=1)  # [B, A]
    wanted = ratio * positive.sum(dim=1, keepdim=True)  # [B, 1]
    return negative & (ranks < wanted)
