"""Mean shift with a flat kernel: clusters of points where their density peaks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_PAIRS_CHUNK = 1 << 18  # distances at a time: 1 MB of float32, which stays in the cache
_MAX_SHIFTS = 100  # a shift that moves no point in or out is the last; this many are never needed


class Clusters(NamedTuple):
    """What mean shift found.

    labels: [P] int64, the cluster of each point, -1 for none. centres: [N, D], where the shifts
    ended.
    """

    labels: Tensor
    centres: Tensor


@torch.no_grad()
def mean_shift(
    points: Tensor, radius: float, *, min_points: int = 1, max_seeds: int | None = None
) -> Clusters:
    """Cluster points one mode at a time.

    The first point without a cluster is the seed, so the order of the points says which are tried
    first. Its centre moves to the mean of all points within the radius until these stay the same;
    they are a cluster, and are taken away. Points at more than twice the radius from all others
    never disturb each other: groups narrower than one radius, with gaps of two, are found exactly,
    in any order.

    A shift costs O(P D), and so does memory; P x P distances never exist.

    Args:
        points:     [P, D].
        radius:     of the kernel, Euclidean.
        min_points: smaller clusters are dropped, and their points belong to none.
        max_seeds:  stop after so many clusters, dropped ones included; None for no limit. It bounds
            the time on points without any structure.

    Returns:
        Labels 0..N-1 in the order of the seeds.

    Source:  Comaniciu and Meer, "Mean Shift" (PAMI 2002), flat kernel; as the clustering of
        De Brabandere et al. (arXiv:1708.02551), section 3.2.
    """
    labels = torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    finite = points.isfinite().all(dim=1).nonzero()[:, 0]  # NaN is near to nothing, not even itself
    columns = points[finite].T.contiguous()  # [D, P]: sums over D then run along memory
    owner = labels[finite]
    free = owner < 0  # [P]
    centres: list[Tensor] = []
    for _ in range(len(finite) if max_seeds is None else max_seeds):
        if not free.any():
            break
        seed = columns[:, int(free.byte().argmax())]
        centre, inside = _settle(columns, free, seed, radius)
        if int(inside.sum()) >= min_points:
            owner[inside] = len(centres)
            centres.append(centre)
        free = free & ~inside
    labels[finite] = owner
    found = torch.stack(centres) if centres else points.new_zeros(0, points.shape[1])
    return Clusters(labels, found)


def nearest_centres(points: Tensor, centres: Tensor, reach: float) -> Tensor:
    """The centre that each point is nearest to; a bounded number of distances exists at a time.

    Args:
        points:  [P, D].
        centres: [N, D].
        reach:   farther than this, Euclidean, a point belongs to none.

    Returns:
        [P] int64 in 0..N-1, or -1.
    """
    if not len(centres):
        return torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    # The nearest one has the largest x c - c c / 2; its distance is then measured without loss.
    offset = -0.5 * centres.square().sum(dim=1)  # [N]
    parts = points.split(max(1, _PAIRS_CHUNK // len(centres)))
    nearest = torch.cat([torch.addmm(offset, part, centres.T).argmax(dim=1) for part in parts])
    away = torch.linalg.vector_norm(points - centres[nearest], dim=1)
    return nearest.masked_fill(~(away <= reach), -1)


def _settle(columns: Tensor, free: Tensor, centre: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Where the shifts from `centre` end, and which free points [P] bool lie within reach of it."""
    inside = _within(columns, centre, radius) & free
    for _ in range(_MAX_SHIFTS):
        weights = inside.to(columns.dtype)
        shifted = columns @ weights / weights.sum()  # [D], the mean of what is inside
        nearby = _within(columns, shifted, radius) & free
        if not nearby.any():  # all exactly on the sphere, and rounding left them outside
            break
        settled = torch.equal(nearby, inside)
        centre, inside = shifted, nearby
        if settled:
            break
    return centre, inside


def _within(columns: Tensor, centre: Tensor, radius: float) -> Tensor:
    # Differences, not the expanded square: that loses digits far from the origin.
    return (columns - centre[:, None]).square_().sum(dim=0) <= radius**2  # [P]
