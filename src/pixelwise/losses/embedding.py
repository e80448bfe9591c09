"""The discriminative loss: pixels of one instance close together, instances far apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DiscriminativeTerms(NamedTuple):
    """The three terms of one image, scalars, unweighted.

    variance: pixels pulled towards the mean of their instance. distance: means pushed apart.
    regularisation: means pulled towards the origin.
    """

    variance: Tensor
    distance: Tensor
    regularisation: Tensor


def discriminative_loss(
    embeddings: Tensor, instances: Tensor, *, delta_v: float = 0.5, delta_d: float = 1.5
) -> DiscriminativeTerms:
    """Pull pixels to within delta_v of the mean of their instance, push means 2 delta_d apart.

    Beyond these margins nothing is gained, so the terms are exactly 0 there. Distances are
    Euclidean. Without an instance all terms are 0; with a single one the distance term is. Two
    means in exactly the same place have no direction in which to part: their gradient is 0.

    Args:
        embeddings: [D, P] of the P pixels of one image.
        instances:  [P] int64, which instance each pixel belongs to, any numbers from 0 on; negative
            for pixels that take no part (background).
        delta_v:    radius of the pull, in units of the embedding space.
        delta_d:    half the distance that two means should keep.

    Returns:
        The terms, in float32 at least.

    Source:  De Brabandere, Neven, Van Gool (arXiv:1708.02551), section 3.1, eq. 1-3.
    Differs: nothing from the paper; a widespread implementation halves the distance term.
    """
    embeddings = embeddings.float() if embeddings.itemsize < 4 else embeddings
    chosen = (instances >= 0).nonzero()[:, 0]  # [Q]
    points = embeddings.index_select(1, chosen).T  # [Q, D]
    _, owner, counts = instances[chosen].unique(return_inverse=True, return_counts=True)
    count = len(counts)  # C
    sizes = counts.to(points.dtype)  # [C]
    means = points.new_zeros(count, points.shape[1]).index_add(0, owner, points) / sizes[:, None]

    # Where nothing is chosen, sums over nothing keep the graph and give 0.
    instance_count = max(count, 1)
    away = torch.linalg.vector_norm(points - means[owner], dim=1)  # [Q]
    pull = (away - delta_v).clamp(min=0).square()
    variance = points.new_zeros(count).index_add(0, owner, pull) / sizes  # [C]

    one, other = torch.triu_indices(count, count, offset=1, device=points.device)
    apart = torch.linalg.vector_norm(means[one] - means[other], dim=1)  # every pair once
    push = (2 * delta_d - apart).clamp(min=0).square()
    ordered_pairs = max(count * (count - 1), 1)

    lengths = torch.linalg.vector_norm(means, dim=1)  # [C]
    return DiscriminativeTerms(
        variance=variance.sum() / instance_count,
        distance=2 * push.sum() / ordered_pairs,
        regularisation=lengths.sum() / instance_count,
    )
