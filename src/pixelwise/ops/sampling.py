"""Random choice of the anchors or proposals that a loss is computed on."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def sample_balanced(
    matches: Tensor,
    *,
    count: int,
    positive_frac: float,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw positives up to a share of the count, and fill up with background.

    Args:
        matches:       [A] int64 from `match_boxes`: >= 0 positive, -1 background, else ignored.
        count:         how many to draw altogether, where there are enough.
        positive_frac: largest share of positives, in [0, 1].
        generator:     source of randomness; on any device, the result is on that of `matches`.

    Returns:
        positive and background positions, int64, ascending, without repetition.

    Source: Fast R-CNN (arXiv:1504.08083), section 2.3.
    """
    positive = (matches >= 0).nonzero()[:, 0]
    background = (matches == -1).nonzero()[:, 0]
    num_positive = min(len(positive), int(count * positive_frac))
    num_background = min(len(background), count - num_positive)
    return (
        _draw(positive, num_positive, generator),
        _draw(background, num_background, generator),
    )


def sample_hardest(losses: Tensor, groups: Tensor, *, count: int) -> Tensor:
    """Choose the elements with the highest losses of each group (online hard example mining).

    Args:
        losses: [N]; the sign of infinity is minus for what must not be chosen.
        groups: [N] int64, the image of each element.
        count:  of each group at most; ties go to the lower position.

    Returns:
        [N] bool.

    Source: OHEM (arXiv:1604.03540), section 4.2, without its suppression of overlapping regions, as
        in R-FCN (arXiv:1605.06409), section 2.3.
    """
    order = losses.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]  # group by group, hardest first
    sizes = groups.bincount()
    first = (sizes.cumsum(0) - sizes)[groups[order]]  # [N] where the element's group begins
    rank = torch.arange(len(order), device=order.device) - first
    chosen = torch.zeros_like(losses, dtype=torch.bool)
    chosen[order] = rank < count
    return chosen & (losses > float("-inf"))


def _draw(index: Tensor, count: int, generator: Generator | None) -> Tensor:
    device = index.device if generator is None else generator.device
    order = torch.randperm(len(index), generator=generator, device=device)
    if count == len(index):  # whatever the order, all of them
        return index
    return index[order[:count].to(index.device).sort().values]
