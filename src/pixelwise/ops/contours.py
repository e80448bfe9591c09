"""Outlines of masks as points at pixel centres, for all masks of a picture at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.ops.masks import by_area, gather_crops
from pixelwise.types import MaskCrops

# The sides of a pixel, clockwise: top, right, bottom, left. Walking along one with the mask at the
# right hand goes (dy, dx) = _FORWARD; what lies beyond it is at _OUTWARD.
_FORWARD = ((0, 1), (1, 0), (0, -1), (-1, 0))
_OUTWARD = ((-1, 0), (0, 1), (1, 0), (0, -1))


class Contours(NamedTuple):
    """One outline of each of N masks.

    xy: [P, 2] int64 pixels (float32 after `subdivide`), outline after outline. Each begins with its
    first pixel in reading order and runs counter-clockwise on the screen; a pixel that it passes
    twice is there twice.
    starts: [N + 1] int64, outline i owns xy[starts[i]:starts[i + 1]].
    """

    xy: Tensor
    starts: Tensor


@torch.no_grad()
def largest_contours(masks: MaskCrops, index: Tensor) -> Contours:
    """The outline that encloses the largest area, of every mask: holes and smaller parts are lost.

    Pixels that touch at a corner belong together. The area is that of the polygon through the
    outline's pixel centres, so of two lines none is larger than the other; the first one counts.

    Args:
        masks: of one picture, at least one pixel each.
        index: [N] int64, the masks wanted.

    Source:  Suzuki and Abe, "Topological Structural Analysis of Digitized Binary Images by Border
        Following" (1985), gives the same points in the same order.
    """
    windows, starts = masks.windows[index], masks.starts[index]  # [N, 4], [N]
    pixels = F.pad(masks.pixels, (0, masks.size[1]))  # as `gather_crops` wants it
    owners: list[Tensor] = [index[:0]]
    points: list[Tensor] = [windows[:0, :2]]
    for part, size in by_area(windows):
        corner, extent = windows[part, :2], windows[part, 2:] - windows[part, :2]  # [n, 2]
        crops = gather_crops(pixels, starts[part], extent, size)  # [n, h, w]
        columns, rows = (  # beyond a crop's own extent is garbage
            torch.arange(crops.shape[2 - axis], device=crops.device) < extent[:, axis, None]
            for axis in (0, 1)
        )
        crops = crops.bool() & columns[:, None] & rows[:, :, None]
        owner, xy = _outlines(F.pad(crops, (1, 1, 1, 1)), corner - 1)
        owners.append(part[owner])
        points.append(xy)
    owner = torch.cat(owners)
    order = owner.argsort(stable=True)
    counts = torch.bincount(owner, minlength=len(index))
    return Contours(torch.cat(points)[order], torch.cat([counts.new_zeros(1), counts.cumsum(0)]))


def subdivide(contours: Contours, parts: int) -> Contours:
    """The same outlines with points between their pixels too.

    Args:
        contours: N of them.
        parts:    of every step from a pixel to the next.

    Returns:
        parts times as many points, float32.
    """
    xy = contours.xy.float()
    ahead = torch.arange(1, len(xy) + 1, device=xy.device)
    begin, end = contours.starts[:-1], contours.starts[1:]
    ahead[end[end > begin] - 1] = begin[end > begin]  # the last is followed by the first
    share = torch.arange(parts, device=xy.device)[:, None] / parts  # [parts, 1]
    between = xy[:, None] + share * (xy[ahead] - xy)[:, None]  # [P, parts, 2]
    return Contours(between.flatten(0, 1), contours.starts * parts)


def centroids(contours: Contours) -> Tensor:
    """The mass centres of polygons, rounded down to whole pixels.

    Args:
        contours: N of them.

    Returns:
        [N, 2] int64, x and y. Without an area, the mean of the polygon's points.

    Source:  PolarMask (arXiv:1909.13226), section 3.2. Sums run along the outline in double
        precision, as in its released code: rounding decides where a centre is a whole number.
    """
    count = len(contours.starts) - 1
    # On the CPU, where adding follows the order of the points.
    xy, starts = contours.xy.cpu().double(), contours.starts.cpu()
    lengths = starts.diff()
    owner = torch.arange(count).repeat_interleave(lengths)  # [P]
    before = torch.arange(len(xy)) - 1
    before[starts[:-1][lengths > 0]] = starts[1:][lengths > 0] - 1  # the first follows the last
    last = xy[before]

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(count, *values.shape[1:]).index_add_(0, owner, values)

    share = (xy[:, 0] * last[:, 1] - xy[:, 1] * last[:, 0]) / 2  # [P]
    area = total(share)[:, None]
    moment = total(share[:, None] * (xy + last) / 3)  # [N, 2]
    mean = total(xy) / lengths.clamp(min=1)[:, None]
    centre = torch.where(area == 0, mean, moment / torch.where(area == 0, 1, area))
    return centre.floor().long().to(contours.xy.device)


def _outlines(solid: Tensor, corner: Tensor) -> tuple[Tensor, Tensor]:
    """Follow the outlines of masks [n, h, w], bool with an empty border, at corners [n, 2] xy.

    Returns:
        owner [P] and points [P, 2] of each mask's largest outline, in their order.
    """
    height, width = solid.shape[1:]
    pixel, following = _edges(solid.flatten(), width)
    owner = torch.div(pixel, height * width, rounding_mode="floor")  # [E]
    row = torch.div(pixel, width, rounding_mode="floor")  # through all masks
    x = pixel - row * width + corner[:, 0].index_select(0, owner)
    y = row - owner * height + corner[:, 1].index_select(0, owner)
    rounds = int(torch.bincount(owner).max()).bit_length() if len(owner) else 0
    root = _roots(following, rounds)
    # Along edges of one pixel the shoelace formula adds nothing, so it is that of the pixels.
    cross = x * y.index_select(0, following) - y * x.index_select(0, following)
    doubled = torch.zeros_like(cross).index_add_(0, root, cross)  # [E], at the roots
    chosen = _largest(doubled.abs(), root, owner, len(corner)).index_select(0, owner)
    # One point per visit of a pixel, where the walk enters it; a single pixel is never entered.
    enters = torch.zeros_like(root, dtype=torch.bool)
    enters[following] = pixel.index_select(0, following) != pixel
    moves = torch.bincount(root, enters, minlength=len(root))  # [E], at the roots
    enters |= (root == _numbers(root)) & (moves == 0)
    taken = ((root == chosen) & enters).nonzero()[:, 0]
    owner, rest = owner[taken], _steps_left(following, root, rounds)[taken]
    order = (owner * (len(root) + 1) + rest).argsort()
    taken = taken[order]
    return owner[order], torch.stack([x[taken], y[taken]], dim=1)


def _edges(flat: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Pixel sides between mask and background: whose [E], and the next one clockwise [E]."""
    total = len(flat)
    reach = width + 1
    inner = flat[reach : total - reach]  # the border is empty
    steps = [dy * width + dx for dy, dx in _OUTWARD]
    surrounded = torch.ones_like(inner)
    for step in steps:
        surrounded &= flat[reach + step : total - reach + step]
    border = (inner & ~surrounded).nonzero()[:, 0] + reach
    key = torch.cat(
        [
            border[~flat.index_select(0, border + step)] + side * total
            for side, step in enumerate(steps)
        ]
    )  # [E] ascending
    side = torch.div(key, total, rounding_mode="floor") if total else key
    pixel = key - side * total
    forward = [dy * width + dx for dy, dx in _FORWARD]
    ahead = pixel + torch.tensor(forward, device=flat.device).index_select(0, side)
    diagonal = ahead + torch.tensor(steps, device=flat.device).index_select(0, side)
    # Left if a pixel touches at the corner, straight on if one follows, else round this one.
    is_ahead, is_diagonal = (flat.index_select(0, at) for at in (ahead, diagonal))
    turned = torch.where(is_ahead, side * total + ahead, (side + 1) % 4 * total + pixel)
    turned = torch.where(is_diagonal, (side + 3) % 4 * total + diagonal, turned)
    return pixel, torch.searchsorted(key, turned)


def _roots(following: Tensor, rounds: int) -> Tensor:
    """[E] the smallest number in the cycle of each edge; cycles have less than 2^rounds edges."""
    root = torch.minimum(_numbers(following), following)
    for _ in range(rounds):  # each looks twice as far
        root = torch.minimum(root, root.index_select(0, following))
        following = following.index_select(0, following)
    return root


def _steps_left(following: Tensor, root: Tensor, rounds: int) -> Tensor:
    """[E] how many steps lead from each edge to the root of its cycle."""
    is_root = root == _numbers(root)
    following = torch.where(is_root, root, following)  # the walk ends there
    steps = (~is_root).long()
    for _ in range(rounds):
        steps = steps + steps.index_select(0, following)
        following = following.index_select(0, following)
    return steps


def _largest(areas: Tensor, root: Tensor, place: Tensor, count: int) -> Tensor:
    """[count] the root of each mask's outline of the largest area [E], the first of equal ones."""
    is_root = (root == _numbers(root)).nonzero()[:, 0]
    own, area = place[is_root], areas[is_root]
    most = area.new_full((count,), -1).scatter_reduce_(0, own, area, "amax")
    winner = is_root[area == most[own]]
    first = root.new_full((count,), len(root))
    return first.scatter_reduce_(0, place[winner], winner, "amin")


def _numbers(like: Tensor) -> Tensor:
    return torch.arange(len(like), device=like.device)
