"""Losses on the overlap of two regions: small and large ones count alike."""

from __future__ import annotations

from torch import Tensor


def dice_loss(probs: Tensor, marks: Tensor, weights: Tensor, *, smooth: float = 0.0) -> Tensor:
    """One minus the soft Dice coefficient of every region.

    Args:
        probs:   [N, P] in [0, 1], what is predicted of each pixel.
        marks:   [N, P] 0 or 1 (or in between), what is true.
        weights: [P] or [N, P] >= 0, how much each pixel counts; 0 where ignored.
        smooth:  added to numerator and denominator.

    Returns:
        [N] in [0, 1]: 1 - 2 sum(w p t) / sum(w (p + t)); on hard predictions 1 - Dice. A region
        where nothing is true and nothing predicted has loss 0.

    Source:  V-Net (arXiv:1606.04797), section 3.
    Differs: plain sums in the denominator, where V-Net squares the terms.
    """
    marks = marks.to(probs.dtype)
    both = (weights * probs * marks).sum(-1)  # [N]
    either = (weights * (probs + marks)).sum(-1)  # [N]
    top, bottom = 2 * both + smooth, either + smooth
    return (bottom - top) / bottom.clamp(min=1e-7)


def squared_dice_loss(probs: Tensor, marks: Tensor, *, smooth: float = 1e-3) -> Tensor:
    """The Dice loss with squared terms in the denominator, of every region.

    Args:
        probs:  [N, P] in [0, 1], what is predicted of each pixel.
        marks:  [N, P] 0 or 1, what is true.
        smooth: added to each of the two sums of the denominator.

    Returns:
        [N] in [0, 1]: 1 - 2 sum(p t) / (sum p^2 + sum t^2 + 2 smooth).

    Source:  V-Net (arXiv:1606.04797), section 3; SOLO (arXiv:1912.04488), eq. 3.
    """
    marks = marks.to(probs.dtype)
    both = (probs * marks).sum(-1)  # [N]
    return 1 - 2 * both / (probs.square().sum(-1) + marks.square().sum(-1) + 2 * smooth)
