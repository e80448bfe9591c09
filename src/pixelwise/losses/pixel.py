"""Per-pixel classification losses: one value per pixel, and the ways to average them.

Projects agree on the cross-entropy and differ in the average: over valid pixels, over the sum of
class weights, over all pixels with the ignored ones, over the hardest. Each has its function here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.types import IGNORE


def cross_entropy(logits: Tensor, labels: Tensor, *, ignore: int = IGNORE) -> Tensor:
    """Softmax cross-entropy of every pixel, in float32.

    Args:
        logits: [B, K, H, W], any float type.
        labels: [B, H, W] int64, 0..K-1 or `ignore`.
        ignore: label of pixels that count for nothing.

    Returns:
        [B, H, W] float32 >= 0; 0 where ignored.
    """
    return F.cross_entropy(logits.float(), labels, ignore_index=ignore, reduction="none")


def pixel_weights(
    labels: Tensor,
    *,
    class_weights: Tensor | None = None,
    weights: Tensor | None = None,
    ignore: int = IGNORE,
) -> Tensor:
    """How much each pixel counts: 0 where ignored, else its class's weight times its own.

    Args:
        labels:        [B, H, W] int64.
        class_weights: [K], or None for ones.
        weights:       [B, H, W], or None for ones.
        ignore:        label of pixels that count for nothing.

    Returns:
        [B, H, W] float32.
    """
    valid = labels != ignore
    result = valid.float()
    if class_weights is not None:
        result = result * class_weights.float()[torch.where(valid, labels, 0)]
    return result if weights is None else result * weights


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """The mean of losses with weights, divided by the sum of the weights (torch's convention).

    Args:
        losses:  [B, H, W].
        weights: [B, H, W] >= 0, 0 where ignored.

    Returns:
        A scalar; 0, with a gradient of 0, where all weights are 0 (no valid pixel).
    """
    total = weights.sum()
    return (losses * weights).sum() / torch.where(total > 0, total, 1.0)


def mean_over_all(losses: Tensor, weights: Tensor) -> Tensor:
    """The mean over all pixels, ignored ones included in the divisor (mmseg's default).

    It makes the loss of a picture with many ignored pixels smaller.

    Args:
        losses:  [B, H, W].
        weights: [B, H, W].

    Returns:
        A scalar.
    """
    return (losses * weights).sum() / losses.numel()


def hardest_by_loss(
    losses: Tensor, labels: Tensor, *, thresh: float = 0.7, min_frac: float = 1 / 16
) -> Tensor:
    """Select hard pixels: true-class probability below a threshold, but never too few.

    Online hard example mining over the whole batch. Pixels with loss above -ln(thresh) stay; where
    they are fewer than `min_frac` of the valid ones, that many of the largest stay instead.

    Args:
        losses:   [B, H, W] cross-entropy, 0 where ignored.
        labels:   [B, H, W] int64.
        thresh:   probability.
        min_frac: least share of the valid pixels.

    Returns:
        [B, H, W] bool. The loss is their mean: `weighted_mean(losses, kept.float())`.

    Source: CoinCheung/BiSeNet, form of BiSeNet (arXiv:1808.00897).
    """
    valid = labels != IGNORE
    least = int(int(valid.sum()) * min_frac)
    kept = (losses > -math.log(thresh)) & valid
    if int(kept.sum()) < least:
        index = losses.detach().masked_fill(~valid, -1.0).flatten().topk(least).indices
        kept = torch.zeros_like(kept).flatten().index_fill_(0, index, True).view_as(losses)
    return kept


def hardest_by_probability(
    logits: Tensor, labels: Tensor, *, thresh: float = 0.7, min_kept: int = 100_000
) -> Tensor:
    """Select pixels whose true-class probability is below a threshold that adapts to the batch.

    The threshold is the larger of `thresh` and the probability at sorted position min_kept * B, so
    about that many pixels stay even when all are easy.

    Args:
        logits:   [B, K, H, W].
        labels:   [B, H, W] int64.
        thresh:   probability.
        min_kept: pixels per image.

    Returns:
        [B, H, W] bool. mmseg takes `mean_over_all(losses, kept.float())`.

    Source: mmsegmentation's OHEMPixelSampler.
    """
    valid = labels != IGNORE
    if not bool(valid.any()):
        return valid
    safe = torch.where(valid, labels, 0)
    probs = logits.detach().float().softmax(1).gather(1, safe[:, None])[:, 0]  # [B, H, W]
    ordered = probs[valid].sort().values
    position = min(min_kept * len(labels), len(ordered) - 1)
    limit = max(float(ordered[position]), thresh)
    return valid & (probs < limit)
