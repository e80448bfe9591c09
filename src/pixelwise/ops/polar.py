"""Masks as distances from a point to their outline at equal angles."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pixelwise.ops.contours import Contours
from pixelwise.ops.polygon_fill import fill_polygons
from pixelwise.types import ImageSize, RunLengths, Size

NO_RAY = 1e-6  # length in pixels of a ray that never meets the outline
_NEAR = (1, -1, 2, -2, 3, -3)  # degrees beside a ray that may end it, in the order of trying
# Lifts multiples of 45 degrees over the last bit of atan2, which varies with a tensor's layout.
_EXACT_DEG = 2e-5
_PAIRS_CHUNK = 1 << 17  # pairs of a point and a contour pixel at a time: they stay in the cache


def ray_angles(rays: int, like: Tensor) -> Tensor:
    """[rays] int64, whole degrees at equal distances; 0 points down, 90 to the right."""
    return torch.div(torch.arange(rays, device=like.device) * 360, rays, rounding_mode="floor")


@torch.no_grad()
def contour_rays(contours: Contours, points: Tensor, owner: Tensor, *, rays: int) -> Tensor:
    """Measure the distances from points to outlines at equal angles.

    A ray ends at the farthest pixel of the outline whose direction lies in its degree; where none
    does, up to three degrees beside it; where still none does it is 1e-6 long, which happens to
    points outside the outline, and to points near it.

    Args:
        contours: N outlines.
        points:   [R, 2] x and y in pixels.
        owner:    [R] int64, the outline that each point is measured against.
        rays:     1 to 360.

    Returns:
        [R, rays] float32 pixels.

    Source:  PolarMask (arXiv:1909.13226), section 3.2 and 3.3. As in the released code the first
        rays do not look back over 0 degrees.
    """
    counts = contours.starts.diff()[owner]  # [R]
    angles = ray_angles(rays, points)
    parts = [
        _lengths(_farthest_by_degree(contours, points[part], owner[part], counts[part]), angles)
        for part in _groups(counts, _PAIRS_CHUNK)
    ]
    return torch.cat([points.new_zeros(0, rays, dtype=torch.float32), *parts])


def _farthest_by_degree(
    contours: Contours, points: Tensor, owner: Tensor, counts: Tensor
) -> Tensor:
    """[R, 360] the largest squared distance of an outline pixel in each degree, -1 for none."""
    row = torch.arange(len(points), device=points.device).repeat_interleave(counts)  # [pairs]
    shift = contours.starts[owner] - (counts.cumsum(0) - counts)  # [R]
    at = torch.arange(len(row), device=row.device) + shift.index_select(0, row)
    dx, dy = (
        contours.xy[:, axis].float().index_select(0, at)
        - points[:, axis].float().index_select(0, row)
        for axis in (0, 1)
    )
    angle = torch.atan2(dx, dy) * 180 / math.pi + _EXACT_DEG
    degree = torch.where(angle < 0, angle + 360, angle).long().clamp(max=359)
    table = dx.new_full((len(points) * 360,), -1)
    table.scatter_reduce_(0, row * 360 + degree, dx * dx + dy * dy, "amax")
    return table.view(len(points), 360)


def _lengths(table: Tensor, angles: Tensor) -> Tensor:
    """[R, rays] from squares [R, 360] by degree, at the degrees of the rays or beside them."""
    found = table.index_select(1, angles)
    for offset in _NEAR:
        point, ray = (found < 0).nonzero(as_tuple=True)
        degree = angles[ray] + offset
        exists = (degree >= 0) & (degree < 360)
        values = table[point, degree.clamp(0, 359)]
        found[point, ray] = torch.where(exists, values, -1)
    return found.clamp(min=0).sqrt().clamp(min=NO_RAY)


def _groups(counts: Tensor, limit: int) -> Iterator[slice]:
    """Neighbouring items whose counts together stay below a limit, unless a single one is above."""
    ends = counts.cumsum(0).tolist()
    first, done = 0, 0
    for i, end in enumerate(ends):
        if i > first and end - done > limit:
            yield slice(first, i)
            first, done = i, ends[i - 1]
    if ends:
        yield slice(first, len(ends))


def polar_centerness(rays: Tensor) -> Tensor:
    """How even the distances to an outline are: low near the outline, and where it is not met.

    Args:
        rays: [..., n] lengths, positive.

    Returns:
        [...] in (0, 1], 1 for the centre of a circle.

    Source:  PolarMask (arXiv:1909.13226), eq. 2.
    """
    return torch.sqrt(rays.amin(dim=-1) / rays.amax(dim=-1))


def ray_ends(points: Tensor, rays: Tensor) -> Tensor:
    """The polygons that rays span.

    Args:
        points: [..., 2] x and y in pixels.
        rays:   [..., n] lengths in pixels.

    Returns:
        [..., n, 2] x and y.

    Source:  PolarMask (arXiv:1909.13226), section 3.2, eq. 1.
    """
    # The order of rounding counts: an end on a whole pixel is truncated to it or the one before.
    angles = ray_angles(rays.shape[-1], rays).to(rays.dtype) / 180 * math.pi
    directions = torch.stack([angles.sin(), angles.cos()], dim=-1)  # [n, 2]
    return points[..., None, :] + rays[..., None] * directions


def draw_rays(centres: Tensor, rays: Tensor, size: ImageSize, *, aligned: bool) -> RunLengths:
    """The masks of rays in their original picture: the polygons that they span.

    Args:
        centres: [N, 2] x and y in network-input pixels.
        rays:    [N, n] lengths, the same.
        size:    of the picture; ends outside its content are moved to the last pixel inside.
        aligned: the ends go to the picture by the centres of pixels, half a pixel of the network
                 farther out, where the outline's pixels end, and to the nearest pixel. Otherwise
                 they are scaled and truncated (released code), which moves masks to the top left.
    """
    scale = centres.new_tensor(size.scale_yx[::-1]).float()  # [2], network pixels per pixel
    rays = rays.float()
    if aligned:
        # An outline runs through the centres of its pixels, here and there.
        rays = (rays + 0.5 * (1 - scale.mean())).clamp(min=0)
    ends = ray_ends(centres.float(), rays)  # [N, n, 2]
    if aligned:
        ends = ((ends + 0.5) / scale - 0.5).round()
    else:
        ends = torch.minimum(ends.clamp(min=0), _last_pixel(size.content)) / scale
    ends = torch.minimum(ends.clamp(min=0), _last_pixel(size.original))
    return fill_polygons(ends.long().numpy(), size.original)


def _last_pixel(size: Size) -> Tensor:
    """[2] x and y."""
    return torch.tensor([size[1] - 1.0, size[0] - 1.0])
