"""Points of a feature pyramid as the references of a detector: no anchors, one object per point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pixelwise.ops.boxes import box_areas
from pixelwise.ops.matching import BACKGROUND
from pixelwise.types import Size


class Points(NamedTuple):
    """The middle pixels of all cells of a pyramid: finest level first, then rows, then columns.

    xy: [N, 2] network-input pixels. strides: [N] pixels per cell. ranges: [N, 2], the least and the
    largest distance from a point to the farthest side of its object, pixels, both included.
    """

    xy: Tensor
    strides: Tensor
    ranges: Tensor


def place_points(
    grids: Sequence[Size], strides: Sequence[int], bounds: Sequence[float], like: Tensor
) -> Points:
    """Put a point into every cell of a pyramid, stride * i + stride // 2.

    Args:
        grids:   (height, width) of each of the L levels in cells, finest first.
        strides: input pixels per cell of each level.
        bounds:  L - 1 distances in pixels that part the ranges of neighbouring levels.
        like:    a tensor on the wanted device.

    Source:  FCOS (arXiv:1904.01355), section 3.1 and 3.2.
    """
    edges = (-1.0, *bounds, math.inf)
    xy: list[Tensor] = []
    for (height, width), stride in zip(grids, strides, strict=True):
        y, x = (
            torch.arange(n, device=like.device, dtype=torch.float32) * stride + stride // 2
            for n in (height, width)
        )
        rows, columns = torch.meshgrid(y, x, indexing="ij")  # [h, w] each
        xy.append(torch.stack([columns, rows], dim=-1).reshape(-1, 2))
    levels = list(zip(xy, strides, range(len(xy)), strict=True))
    return Points(
        torch.cat(xy),
        torch.cat([at.new_full((len(at),), stride) for at, stride, _ in levels]),
        torch.cat([at.new_tensor(edges[i : i + 2]).expand(len(at), 2) for at, _, i in levels]),
    )


def ltrb_to_boxes(xy: Tensor, ltrb: Tensor) -> Tensor:
    """Boxes [..., 4] xyxy from points [..., 2] and the distances [..., 4] to their four sides."""
    return torch.cat([xy - ltrb[..., :2], xy + ltrb[..., 2:]], dim=-1)


def boxes_to_ltrb(xy: Tensor, boxes: Tensor) -> Tensor:
    """Distances [..., 4] from points [..., 2] to left, top, right and bottom of boxes [..., 4]."""
    return torch.cat([xy - boxes[..., :2], boxes[..., 2:] - xy], dim=-1)


@torch.no_grad()
def assign_points(
    points: Points,
    boxes: Tensor,
    centres: Tensor | None = None,
    *,
    radius: float,
    plus_one: bool = False,
) -> Tensor:
    """Give every point the object it should find.

    An object takes the points near its centre (center sampling), on the levels whose range holds
    the distance to its farthest side. Of several objects the smallest gets the point.

    Args:
        points:   N of them.
        boxes:    [G, 4] xyxy in network-input pixels.
        centres:  [G, 2] x and y in pixels; None for the boxes' middles.
        radius:   half the side of the square around a centre, in strides; it ends at the box, and
            its border does not belong to it.
        plus_one: areas are those of boxes whose last pixel is inside.

    Returns:
        [N] int64, the object's position or BACKGROUND.

    Source:  FCOS (arXiv:1904.01355), section 3.2; center sampling: arXiv:2006.09214.
    """
    if not len(boxes):
        return torch.full_like(points.strides, BACKGROUND, dtype=torch.int64)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 if centres is None else centres
    reach = radius * points.strides[:, None]  # [N, 1]
    takes = torch.ones(len(points.xy), len(boxes), dtype=torch.bool, device=boxes.device)
    farthest = boxes.new_zeros(len(points.xy), len(boxes))
    for axis in (0, 1):  # one at a time: N x G can be millions
        at = points.xy[:, axis, None]  # [N, 1]
        low, high, middle = boxes[:, axis], boxes[:, axis + 2], centres[:, axis]  # [G] each
        takes &= (at > torch.maximum(middle - reach, low)) & (
            at < torch.minimum(middle + reach, high)
        )
        farthest = torch.maximum(farthest, torch.maximum(at - low, high - at))
    takes &= (farthest >= points.ranges[:, :1]) & (farthest <= points.ranges[:, 1:])
    areas = torch.where(takes, box_areas(boxes, plus_one=plus_one), math.inf)  # [N, G]
    smallest, owner = areas.min(dim=1)
    return torch.where(smallest < math.inf, owner, BACKGROUND)


def box_centerness(ltrb: Tensor) -> Tensor:
    """How central points lie in their boxes.

    Args:
        ltrb: [..., 4] distances to the four sides, in any unit; positive.

    Returns:
        [...] in (0, 1], 1 in the middle.

    Source:  FCOS (arXiv:1904.01355), eq. 3.
    """
    across, along = ltrb[..., [0, 2]], ltrb[..., [1, 3]]
    parts = (x.amin(dim=-1) / x.amax(dim=-1) for x in (across, along))
    return torch.sqrt(next(parts) * next(parts))
