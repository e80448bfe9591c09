"""Gaussian filtering in many dimensions, in time linear in the points: the permutohedral lattice.

The cost of a Gaussian between all pairs of N points is quadratic. Here the values are spread over
the corners of the lattice simplices that hold the points (splat), blurred along the d + 1 axes of
the lattice, and read back with the same weights (slice).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.errors import UsageError

_BLUR = (1.0, 0.5, 0.5)  # of a corner and its two neighbours


@dataclass(frozen=True, eq=False)
class Lattice:
    """N points in a permutohedral lattice of d dimensions, of which only the M used corners exist.

    Row M of a table of corners stands for every corner that does not exist; it holds 0. Sums over
    table rows are embedding bags, which need no N x (d + 1) x C intermediate.

    Args:
        corners:       [N, d + 1] int32, rows of the corners around each point.
        weights:       [N, d + 1] float32, share of each corner; they sum to 1 until `scaled`.
        points:        [N (d + 1)] int32, the points around each corner, corner after corner.
        point_weights: [N (d + 1)] float32, share that each gives to the corner.
        starts:        [M + 2] int32, where each corner's points begin; row M has none.
        neighbours:    [d + 1, M + 1, 3] int32, along each axis: the corner, one ahead, one behind.
    """

    corners: Tensor
    weights: Tensor
    points: Tensor
    point_weights: Tensor
    starts: Tensor
    neighbours: Tensor

    def scaled(self, factors: Tensor) -> Lattice:
        """The lattice whose filter is F·K·F, with F the diagonal matrix of these factors [N]."""
        return replace(
            self,
            weights=self.weights * factors[:, None],
            point_weights=self.point_weights * factors[self.points],
        )

    def filter(self, values: Tensor) -> Tensor:
        """Sum the values of all points, weighted by a Gaussian of their distance.

        Args:
            values: [N, C] float32.

        Returns:
            [N, C] float32, K·values up to a constant factor, K[i, j] ≈ exp(-|f_i - f_j|² / 2).
        """
        table = F.embedding_bag(
            self.points,
            values,
            self.starts,
            mode="sum",
            per_sample_weights=self.point_weights,
            include_last_offset=True,
        )  # [M + 1, C]
        kernel = values.new_tensor(_BLUR).expand(len(table), 3).contiguous()  # [M + 1, 3]
        for rows in self.neighbours:
            table = F.embedding_bag(rows, table, mode="sum", per_sample_weights=kernel)
        return F.embedding_bag(self.corners, table, mode="sum", per_sample_weights=self.weights)


def build_lattice(features: Tensor) -> Lattice:
    """Place points in a permutohedral lattice.

    Args:
        features: [N, d], in units of the Gaussian's standard deviation.

    Raises:
        UsageError: the features span so many standard deviations that corners cannot be numbered.

    Source: Adams, Baek, Davis, *Fast High-Dimensional Filtering Using the Permutohedral Lattice*,
        Eurographics 2010, sections 3 and 4. With a blur of (1/2, 1, 1/2) along each axis.
    """
    dims = features.shape[1]
    elevated = _elevate(features.double())  # [d + 1, N]
    origin, rank = _enclosing_simplex(elevated)  # [d + 1, N] twice
    strides, total = _numbering(origin)
    # Corner k adds k to every coordinate, less d + 1 for the k coordinates of highest rank.
    by_rank = torch.zeros_like(origin).scatter_(0, rank, strides[:, None].expand_as(rank))
    first = (origin * strides[:, None]).sum(0)  # [N]
    steps = total - (dims + 1) * by_rank.flip(0)[:dims]  # [d, N]
    codes = torch.cat([first[None], first + steps.cumsum(0)])  # [d + 1, N]
    ordered, by_corner = codes.T.flatten().sort()
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    corners = torch.empty_like(by_corner, dtype=torch.int32)
    corners[by_corner] = is_new.cumsum(0, dtype=torch.int32) - 1
    weights = _barycentric(elevated - origin, rank).T.float().contiguous()  # [N, d + 1]
    starts = is_new.nonzero()[:, 0]
    ends = starts.new_full((2,), len(ordered))
    return Lattice(
        corners=corners.view(-1, dims + 1),
        weights=weights,
        points=torch.div(by_corner, dims + 1, rounding_mode="floor").int(),
        point_weights=weights.flatten()[by_corner],
        starts=torch.cat([starts, ends]).int(),
        neighbours=_neighbours(ordered[is_new], total - (dims + 1) * strides),
    )


def _elevate(features: Tensor) -> Tensor:
    """[N, d] → [d + 1, N] coordinates in the hyperplane of sum 0, scaled to the lattice's blur."""
    dims = features.shape[1]
    # Splat, blur and slice together have the standard deviation sqrt(2/3) (d + 1) in the lattice.
    deviation = math.sqrt(2 / 3) * (dims + 1)
    axes = torch.arange(1, dims + 1, dtype=features.dtype, device=features.device)
    scaled = features.T * (deviation / (axes * (axes + 1)).sqrt())[:, None]  # [d, N]
    after = scaled.flip(0).cumsum(0).flip(0)  # [d, N] sum of this and all later coordinates
    zero = torch.zeros_like(scaled[:1])
    return torch.cat([after, zero]) - torch.cat([zero, axes[:, None] * scaled])


def _enclosing_simplex(elevated: Tensor) -> tuple[Tensor, Tensor]:
    """The corner with remainder 0 of each point's simplex, and the rank of each coordinate.

    Returns:
        origin: [d + 1, N] int64, multiples of d + 1 with sum 0.
        rank:   [d + 1, N] int64, position of each coordinate by falling distance from the corner.
    """
    count = len(elevated)
    multiples = (elevated / count).round()
    distance = elevated - multiples * count
    rank = torch.zeros_like(elevated, dtype=torch.int64)
    for i in range(count):
        for j in range(i + 1, count):
            is_less = distance[i] < distance[j]
            rank[i] += is_less
            rank[j] += ~is_less
    origin = multiples.long()
    rank += origin.sum(0)  # rounding may leave the hyperplane: move the coordinates that are worst
    lift = (rank < 0).long() - (rank >= count).long()
    return (origin + lift) * count, rank + lift * count


def _barycentric(offset: Tensor, rank: Tensor) -> Tensor:
    """[d + 1, N] weights of the simplex's corners, from the offset to the corner of remainder 0."""
    count = len(offset)
    by_rank = torch.zeros_like(offset).scatter_(0, rank, offset / count)  # falling
    falls = by_rank[:-1] - by_rank[1:]  # [d, N] >= 0
    return torch.cat([1 - falls.sum(0, keepdim=True), falls.flip(0)])


def _numbering(origin: Tensor) -> tuple[Tensor, Tensor]:
    """A linear code for lattice points: its factor per coordinate [d + 1], and their sum.

    The last coordinate is the negative sum of the others and needs none.
    """
    count = len(origin)
    margin = 2 * count  # corners and their neighbours lie at most so far away
    spans = (origin.amax(1) - origin.amin(1) + 2 * margin + 1).tolist()
    strides = [math.prod(spans[:i]) for i in range(count - 1)]
    if math.prod(spans[:-1]) >= 2**62:
        raise UsageError(
            "the features span too many standard deviations for the fast filter; raise the sigmas"
        )
    factors = torch.tensor([*strides, 0], dtype=torch.int64, device=origin.device)
    return factors, factors.sum()


def _neighbours(codes: Tensor, steps: Tensor) -> Tensor:
    """[d + 1, M + 1, 3] rows of every corner, and of those one step ahead and behind on each axis.

    Args:
        codes: [M] of the corners, rising.
        steps: [d + 1] difference of the codes along each axis.
    """
    count = len(codes)
    rows = torch.full((len(steps), count + 1, 3), count, dtype=torch.int32, device=codes.device)
    rows[..., 0] = torch.arange(count + 1, device=codes.device)
    for axis, step in enumerate(steps):
        wanted = codes + step
        place = torch.searchsorted(codes, wanted).clamp_(max=count - 1)
        here = (codes[place] == wanted).nonzero()[:, 0]
        rows[axis, here, 1] = place[here].int()
        rows[axis, place[here], 2] = here.int()
    return rows
