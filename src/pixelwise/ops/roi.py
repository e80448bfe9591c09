"""Features of regions: level assignment, RoIAlign, RoIPool.

A region (RoI) is a row (image index, x1, y1, x2, y2) in pixels of the network input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from pixelwise.types import Size

LevelRule = Literal["torchvision", "mmdet", "detectron2", "detectron"]

# A box of 224 px, the side of an ImageNet picture, belongs to level 4.
_CANONICAL_SIDE_PX = 224
_CANONICAL_LEVEL = 4


def rois_of(boxes: Sequence[Tensor]) -> Tensor:
    """Put the boxes of several images into one table of regions.

    Args:
        boxes: per image [N_i, 4] xyxy in pixels.

    Returns:
        [R, 5] image index and box, image after image.
    """
    rows = [torch.cat([torch.full_like(b[:, :1], i), b], dim=1) for i, b in enumerate(boxes)]
    return torch.cat(rows)  # [R, 5]


def assign_levels(
    boxes: Tensor, *, finest: int = 2, coarsest: int = 5, rule: LevelRule = "detectron2"
) -> Tensor:
    """Choose the pyramid level whose stride suits the size of each box.

    The rules differ only in where a tiny number guards against rounding, so only for boxes exactly
    on a boundary, such as 112 or 448 px squares; a checkpoint wants its own.

    Args:
        boxes:    [R, 4] xyxy in pixels of the network input.
        finest:   level number of the finest map (2 is stride 4).
        coarsest: level number of the coarsest map.
        rule:     whose rounding.

    Returns:
        [R] int64 level numbers, finest..coarsest.

    Source: FPN (arXiv:1612.03144), section 4.2, eq. 1.
    """
    extent = (boxes[:, 2:] - boxes[:, :2]).float().clamp(min=0)  # [R, 2]
    side = extent.prod(dim=1).sqrt()  # [R]
    if rule == "torchvision":
        level = _CANONICAL_LEVEL + torch.log2(side / _CANONICAL_SIDE_PX) + 1e-6
    elif rule == "mmdet":
        finest_side = _CANONICAL_SIDE_PX / 2 ** (_CANONICAL_LEVEL - finest)
        level = finest + torch.log2(side / finest_side + 1e-6)
    else:
        guard = 1e-6 if rule == "detectron" else 1e-8
        level = _CANONICAL_LEVEL + torch.log2(side / _CANONICAL_SIDE_PX + guard)
    return level.floor().clamp(finest, coarsest).to(torch.int64)


def roi_align(
    features: Tensor, rois: Tensor, side: int | Size, *, scale: float, sampling: int, aligned: bool
) -> Tensor:
    """Average bilinear samples of a feature map over a grid of bins, without rounding coordinates.

    Args:
        features: [B, C, h, w].
        rois:     [R, 5] image index and box in pixels of the network input.
        side:     bins per side, or (rows, columns).
        scale:    feature cells per input pixel.
        sampling: samples per bin and axis; 0 takes as many as the bin has cells, rounded up.
        aligned:  True puts cell centres at half pixels (Detectron2, MMDetection); False is the
            first definition (torchvision, Detectron): half a cell off, regions at least one cell.

    Returns:
        [R, C, side, side] in the order of the regions.

    Source: Mask R-CNN (arXiv:1703.06870), section 3.
    """
    if features.device.type != "cpu" or torch.compiler.is_compiling():
        return torchvision.ops.roi_align(
            features, rois.to(features.dtype), side, scale, sampling, aligned
        )
    height, width = features.shape[2:]
    sides = (side, side) if isinstance(side, int) else side
    # A network that diverged has boxes that are no numbers; they shall not end in an index.
    corners = rois[:, 1:].detach().to(torch.promote_types(features.dtype, torch.float32))
    corners = corners.nan_to_num(0.0, 0.0, 0.0) * scale
    corners = corners - (0.5 if aligned else 0.0)  # [R, 4] in cells
    rows, columns = (
        _axis_taps(corners[:, axis::2], bins, cells, sampling=sampling, aligned=aligned)
        for axis, bins, cells in ((1, sides[0], height), (0, sides[1], width))
    )
    first = rois[:, 0].long() * (height * width)  # [R], of the region's image
    taps = first[:, None, None] + rows.cells * width  # [R, rows, S]
    taps = taps[:, :, None, :, None] + columns.cells[:, None, :, None, :]  # [R, y, x, S, T]
    weights = rows.weights[:, :, None, :, None] * columns.weights[:, None, :, None, :]
    return _weighted_sums(_by_cell(features), taps, weights).permute(0, 3, 1, 2)


def roi_pool(features: Tensor, rois: Tensor, side: int | Size, *, scale: float) -> Tensor:
    """Take the largest feature of every bin, with corners rounded to whole cells.

    Args:
        features: [B, C, h, w].
        rois:     [R, 5] image index and box in pixels of the network input.
        side:     bins per side, or (rows, columns).
        scale:    feature cells per input pixel.

    Returns:
        [R, C, side, side] in the order of the regions.

    Source: Fast R-CNN (arXiv:1504.08083), section 2.1.
    """
    return torchvision.ops.roi_pool(features, rois.to(features.dtype), side, scale)


def pool_region(
    features: Tensor,
    rois: Tensor,
    side: int | Size,
    *,
    scale: float,
    sampling: int | None,
    aligned: bool,
) -> Tensor:
    """RoIAlign, or RoIPool where there is no number of samples.

    Args:
        features: [B, C, h, w].
        rois:     [R, 5] image index and box in pixels of the network input.
        side:     bins per side, or (rows, columns).
        scale:    feature cells per input pixel.
        sampling: see `roi_align`; None for `roi_pool`.
        aligned:  see `roi_align`; RoIPool has no such thing.

    Returns:
        [R, C, side, side] in the order of the regions.
    """
    if sampling is None:
        return roi_pool(features, rois, side, scale=scale)
    return roi_align(features, rois, side, scale=scale, sampling=sampling, aligned=aligned)


def pool_levels(
    pyramid: Sequence[Tensor],
    rois: Tensor,
    side: int | Size,
    *,
    strides: Sequence[int],
    sampling: int | None,
    aligned: bool,
    rule: LevelRule = "detectron2",
) -> Tensor:
    """RoIAlign (or RoIPool) each region on the level that suits its size.

    Args:
        pyramid:  per level [B, C, h, w], finest first.
        rois:     [R, 5] image index and box in pixels of the network input; R may be 0.
        side:     bins per side, or (rows, columns).
        strides:  input pixels per cell of each level, doubling from level to level.
        sampling: see `pool_region`.
        aligned:  see `roi_align`.
        rule:     see `assign_levels`.

    Returns:
        [R, C, side, side] in the order of the regions.
    """
    scales = [1 / s for s in strides]
    if len(pyramid) == 1:
        (only,) = pyramid
        return pool_region(only, rois, side, scale=scales[0], sampling=sampling, aligned=aligned)
    finest = int(math.log2(strides[0]))
    coarsest = finest + len(pyramid) - 1
    level = assign_levels(rois[:, 1:], finest=finest, coarsest=coarsest, rule=rule) - finest  # [R]
    if torch.compiler.is_compiling():
        # A graph of fixed shapes cannot divide the regions: every level pools all of them.
        pooled = [
            pool_region(f, rois, side, scale=s, sampling=sampling, aligned=aligned)
            for f, s in zip(pyramid, scales, strict=True)
        ]
        result = pooled[0]  # [R, C, side, side]
        for i, values in enumerate(pooled[1:], 1):
            result = torch.where((level == i)[:, None, None, None], values, result)
        return result
    order = level.argsort(stable=True)  # [R], level by level
    levels = torch.arange(len(pyramid), device=level.device)
    sizes = (level == levels[:, None]).sum(dim=1).tolist()  # the only wait for a GPU
    parts = [
        pool_region(f, rois[m], side, scale=s, sampling=sampling, aligned=aligned)
        for f, s, m in zip(pyramid, scales, order.split(sizes), strict=True)
    ]
    return torch.cat(parts)[order.argsort()]  # [R, C, side, side]


class _Taps(NamedTuple):
    """What the bins of each region read along one axis: cells [R, bins, T] int64 and weights."""

    cells: Tensor
    weights: Tensor


def _axis_taps(ends: Tensor, bins: int, cells: int, *, sampling: int, aligned: bool) -> _Taps:
    """The two cells around each sample of each bin, in the arithmetic of torchvision's operator.

    Args:
        ends:     [R, 2] where the regions begin and end, in cells.
        bins:     of every region.
        cells:    of the feature map.
        sampling: samples per bin; 0 takes ceil(extent / bins) for each region.
        aligned:  else a region has one cell at least.
    """
    begin, extent = ends[:, 0], ends[:, 1] - ends[:, 0]  # [R]
    step = (extent if aligned else extent.clamp(min=1)) / bins  # [R] cells per bin
    count = torch.full_like(step, sampling) if sampling else step.ceil()  # [R] samples per bin
    most = max(1, int(count.max())) if len(count) else 1
    nth = torch.arange(most, device=ends.device)  # [S]
    inner = (nth + 0.5) * step[:, None] / count.clamp(min=1)[:, None]  # [R, S]
    start = begin[:, None] + torch.arange(bins, device=ends.device) * step[:, None]  # [R, bins]
    at = start[:, :, None] + inner[:, None]  # [R, bins, S]
    counts = (nth < count[:, None])[:, None] & (at >= -1) & (at <= cells)
    share = counts / count.clamp(min=1)[:, None, None]
    at = at.clamp(0, cells - 1)
    low = at.floor()
    far = at - low
    both = torch.cat([low, (low + 1).clamp(max=cells - 1)], dim=2)  # [R, bins, 2 S]
    return _Taps(both.long(), torch.cat([(1 - far) * share, far * share], dim=2))


def _by_cell(features: Tensor) -> Tensor:
    """[B, C, h, w] → [B h w, C], contiguous."""
    cells = features.permute(0, 2, 3, 1)
    if cells.is_contiguous():  # channels last already
        return cells.flatten(0, 2)
    return torch.cat([image.flatten(1).t() for image in features])  # by far the fastest way


def _weighted_sums(table: Tensor, taps: Tensor, weights: Tensor) -> Tensor:
    """Sums of rows of a table: [P, C], taps [R, y, x, S, T] and weights → [R, y, x, C].

    A bag of embeddings is just that. It reads whole rows, where torchvision's operator reads one
    channel after another, and is ten times as fast.
    """
    weights = weights.to(table.dtype)
    used = weights > 0
    sizes = used.sum(dim=(3, 4))  # [R, y, x]
    if 2 * int(sizes.sum()) > used.numel():  # picking costs more than reading for nothing
        bags, values, first = taps.flatten(0, 2).flatten(1), weights.flatten(0, 2).flatten(1), None
    else:
        bags, values, first = taps[used], weights[used], sizes.flatten().cumsum(0) - sizes.flatten()
    sums = F.embedding_bag(bags, table, first, mode="sum", per_sample_weights=values)
    return sums.unflatten(0, taps.shape[:3])
