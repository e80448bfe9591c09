"""Position-sensitive score maps: each part of a region reads a map of its own.

A network's last layer gives k x k maps per score, one for "top left of the object", one for "top
middle of the object" and so on. A region is divided into k x k parts, and each part reads its own
map: so one convolution over the whole picture answers for every region, and the same pixel answers
differently for two regions that hold it at different places.

Map d * k * k + gy * k + gx belongs to score d and to the part in row gy, column gx.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from pixelwise.ops.division import divide
from pixelwise.types import Size

Assembling = Literal["copy", "pool", "align", "rounded"]

_LEAST_EXTENT = 0.1  # cells; the released operators' guard against regions without any


def assemble(
    maps: Tensor,
    rois: Tensor,
    mode: Assembling,
    *,
    parts: int,
    side: int,
    scale: float,
) -> Tensor:
    """Read every region out of the maps, by one of four definitions.

    Args:
        maps:  [B, D * k * k, h, w].
        rois:  [R, 5] image index and xyxy in pixels of the network input.
        mode:  see `part_reader`.
        parts: k.
        side:  S, cells of the result per side.
        scale: map cells per input pixel.

    Returns:
        [R, D, S, S] float32 in the order of the regions.
    """
    return part_reader(maps, mode, parts=parts, side=side, scale=scale)(rois)


def part_reader(
    maps: Tensor, mode: Assembling, *, parts: int, side: int, scale: float
) -> Callable[[Tensor], Tensor]:
    """Lay maps out once, for regions that are read some at a time.

    Args:
        maps:  [B, D * k * k, h, w].
        mode:  "copy", for every cell of a region the value under its centre, and 0 outside of the
               maps (FCIS); "pool", for every bin the mean of the cells of its map that it touches,
               and 0 for none (R-FCN with one bin per part, FCIS's released operator with 3 x 3);
               torchvision's operators, for which S must be k: "align", two bilinear samples per
               bin and axis, "rounded", corners at whole cells instead of whole pixels.
        parts: k.
        side:  S, cells of the result per side.
        scale: map cells per input pixel.

    Returns:
        a function from regions [R, 5] to [R, D, S, S] float32.

    Source:  copy: FCIS (arXiv:1611.07709), section 3.1; pool: R-FCN (arXiv:1605.06409), eq. 1, and
        borders of the bins as in its released operator.
    """
    maps = maps.float()
    if mode in ("copy", "pool"):
        height, width = maps.shape[-2:]
        read, lay_out = (_copy, _table) if mode == "copy" else (_pool, _integral_table)
        shape = {"cells": (height, width), "parts": parts, "side": side, "scale": scale}
        return partial(read, lay_out(maps, parts), **shape)
    if side != parts:
        raise ValueError(f"mode {mode!r} gives one value per part: side {side} must be {parts}")
    ops = cast("Any", torchvision.ops)
    if mode == "align":
        return lambda rois: ops.ps_roi_align(maps, rois, parts, scale, 2)
    return lambda rois: ops.ps_roi_pool(maps, rois, parts, scale)


def class_scores(pairs: Tensor) -> Tensor:
    """How much a region's pixels speak for each class, be it inside or outside of the mask.

    The larger of the two sides counts, so both "this is the object" and "this is the surroundings
    within its box" are evidence of a good box; then all pixels have one vote each.

    Args:
        pairs: [R, K + 1, sides, S, S], before any softmax; R-FCN has one side, FCIS two.

    Returns:
        [R, K + 1] logits.

    Source:  R-FCN (arXiv:1605.06409), section 2.2; FCIS (arXiv:1611.07709), section 3.2.
    """
    return pairs.amax(dim=2).mean(dim=(2, 3))


def mask_logits(pairs: Tensor, labels: Tensor) -> Tensor:
    """The mask of one class of each region.

    The softmax over the two sides is the sigmoid of their difference.

    Args:
        pairs:  [R, K + 1, 2, S, S], side 0 outside and side 1 inside the mask.
        labels: [R] int64.

    Returns:
        [R, S, S], its sigmoid is the probability of being inside.

    Source:  FCIS (arXiv:1611.07709), section 3.2.
    """
    pair = pairs[torch.arange(len(pairs), device=pairs.device), labels]  # [R, 2, S, S]
    return pair[:, 1] - pair[:, 0]


def _copy(
    table: Tensor, rois: Tensor, *, cells: Size, parts: int, side: int, scale: float
) -> Tensor:
    """[R, D, S, S] the values under the centres of the cells of each region."""
    height, width = cells
    start, extent = _frame(rois, scale)  # [R, 2] each, x and y
    step = torch.arange(side, device=rois.device) + 0.5  # [S]
    # The product before the quotient: centres that lie on the edge of a cell stay exact.
    cell = (start[..., None] + divide(step * extent[..., None], side)).floor().long()  # [R, 2, S]
    x, y = cell[:, 0], cell[:, 1]  # [R, S] each
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None]  # [R, S, S]
    row = _first_rows(rois, side, parts=parts, cells=height * width)
    row = row + y.clamp(0, height - 1)[:, :, None] * width + x.clamp(0, width - 1)[:, None]
    return torch.where(inside[..., None], table[row], 0.0).permute(0, 3, 1, 2)


def _pool(
    table: Tensor, rois: Tensor, *, cells: Size, parts: int, side: int, scale: float
) -> Tensor:
    """[R, D, S, S] the means of the cells that the bins of each region touch.

    From integral images, so a bin costs four reads whatever its size.
    """
    height, width = cells
    start, extent = _frame(rois, scale)  # [R, 2] each, x and y
    number = torch.arange(side, device=rois.device)  # [S]
    # In float32 and in this order, as released: for bins that end on a cell it decides.
    bins = divide(extent, side)[..., None]  # [R, 2, 1]
    limit = torch.tensor([width, height], device=rois.device)[:, None]  # [2, 1]
    first = (number * bins + start[..., None]).floor().long()  # [R, 2, S]
    last = ((number + 1) * bins + start[..., None]).ceil().long()  # [R, 2, S]
    first = torch.minimum(first.clamp(min=0), limit)
    last = torch.minimum(last.clamp(min=0), limit)
    count = (last - first).clamp(min=0)
    area = count[:, 1, :, None] * count[:, 0, None]  # [R, S, S]
    row = _first_rows(rois, side, parts=parts, cells=(height + 1) * (width + 1))

    def corner(y: Tensor, x: Tensor) -> Tensor:
        return table[row + y[:, :, None] * (width + 1) + x[:, None]]  # [R, S, S, D]

    (x0, y0), (x1, y1) = first.unbind(1), last.unbind(1)
    total = corner(y1, x1) - corner(y0, x1) - corner(y1, x0) + corner(y0, x0)
    mean = torch.where((area > 0)[..., None], total / area.clamp(min=1)[..., None], 0.0)
    return mean.float().permute(0, 3, 1, 2)


def _frame(rois: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Top left corner and extent in map cells, [R, 2] each, x and y.

    Corners go to whole pixels, halves away from zero. The released operators count the last pixel
    in; a box of ours ends one after it.
    """
    boxes = rois[:, 1:].float()
    start = _round(boxes[:, :2]) * scale
    end = (_round(boxes[:, 2:] - 1) + 1) * scale
    return start, (end - start).clamp(min=_LEAST_EXTENT)


def _round(x: Tensor) -> Tensor:
    """To whole numbers, halves away from zero (`torch.round` takes them to even ones)."""
    whole = x.trunc()
    return whole + torch.where((x - whole).abs() >= 0.5, x.sign(), 0.0)


def _table(maps: Tensor, parts: int) -> Tensor:
    """The maps as rows of D values, one for each image, part and cell: [B * k * k * h * w, D]."""
    grouped = maps.unflatten(1, (-1, parts * parts)).flatten(3)  # [B, D, k * k, h * w]
    return grouped.permute(0, 2, 3, 1).flatten(0, 2)


def _integral_table(maps: Tensor, parts: int) -> Tensor:
    """`_table` of the sums over all cells above and to the left, (h + 1) x (w + 1) of them."""
    # A sum over the map loses the last digits of its small differences in float32.
    wide = torch.float32 if maps.device.type == "mps" else torch.float64
    return _table(F.pad(maps.to(wide).cumsum(-1).cumsum(-2), (1, 0, 1, 0)), parts)


def _first_rows(rois: Tensor, side: int, *, parts: int, cells: int) -> Tensor:
    """The row of `_table` that holds cell (0, 0) of the map each bin reads, [R, S, S] int64."""
    part = torch.arange(side, device=rois.device) * parts // side  # [S]
    which = part[:, None] * parts + part  # [S, S]
    return (rois[:, 0].long()[:, None, None] * parts * parts + which) * cells
