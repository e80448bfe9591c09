"""Outlines of masks as polygons, and the geometry that checks and joins polygons.

Outlines run along the edges of the pixels, so drawing them by COCO's rule gives back the very same
mask; a contour through the pixel centres would shave the corners off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]  # [P, 2] xy, not closed: the last point is not the first again
Polygon = tuple[Points, list[Points]]  # exterior and its holes

# Directions in clockwise order on a picture whose y runs down: right, down, left, up.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
_PAIRS_AT_ONCE = 1 << 20


def mask_to_polygons(
    mask: npt.NDArray[Any], offset_xy: tuple[float, float] = (0.0, 0.0)
) -> list[Polygon]:
    """Trace a binary mask along the edges of its pixels.

    Pieces that touch only at a corner become separate polygons, so no outline crosses itself.

    Args:
        mask:      [h, w], everything but 0 belongs to it.
        offset_xy: added to every point: the corner of the window that `mask` was cut from.

    Returns:
        One (exterior [P, 2], holes) per piece, in pixels, corners only; exteriors run clockwise on
        the screen, holes counter-clockwise.
    """
    rings = _rings(np.asarray(mask) != 0)
    areas = [polygon_area(ring) for ring in rings]
    outer = [ring for ring, area in zip(rings, areas, strict=True) if area > 0]
    polygons: list[Polygon] = [(ring, []) for ring in outer]
    sizes = [area for area in areas if area > 0]
    for hole in (ring for ring, area in zip(rings, areas, strict=True) if area < 0):
        polygons[_owner_of(hole, outer, sizes)][1].append(hole)
    shift = np.asarray(offset_xy, np.float64)
    return [(ring + shift, [hole + shift for hole in holes]) for ring, holes in polygons]


def polygon_area(points: npt.NDArray[Any]) -> float:
    """Signed area by the shoelace formula, square pixels; positive if clockwise on the screen."""
    x, y = np.asarray(points, np.float64).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2.0


def is_self_crossing(points: npt.NDArray[Any]) -> bool:
    """Whether two sides of a polygon cross in their interiors; touching is no crossing.

    Args:
        points: [P, 2] xy.
    """
    start = np.asarray(points, np.float64)  # [P, 2]
    if len(start) < 4:
        return False
    end = np.roll(start, -1, axis=0)  # [P, 2]
    low, high = np.minimum(start, end), np.maximum(start, end)
    order = np.argsort(low[:, 0], kind="stable")
    start, end, low, high = start[order], end[order], low[order], high[order]
    # Only sides that share some x can cross: those that begin before this one ends.
    reach = np.searchsorted(low[:, 0], high[:, 0], side="right")
    partners = np.maximum(reach - np.arange(len(start)) - 1, 0)  # [P]
    bounds = np.concatenate([[0], np.cumsum(partners)])
    for first in range(0, int(bounds[-1]), _PAIRS_AT_ONCE):
        pair = np.arange(first, min(first + _PAIRS_AT_ONCE, int(bounds[-1])))
        i = np.searchsorted(bounds, pair, side="right") - 1
        j = i + 1 + pair - bounds[i]
        near = (low[i, 1] <= high[j, 1]) & (low[j, 1] <= high[i, 1])
        if _cross(start[i[near]], end[i[near]], start[j[near]], end[j[near]]).any():
            return True
    return False


def contains_point(points: npt.NDArray[Any], xy: tuple[float, float]) -> bool:
    """Whether a point lies inside a polygon (even-odd rule).

    Args:
        points: [P, 2] xy.
        xy:     the point.
    """
    a = np.asarray(points, np.float64)  # [P, 2]
    b = np.roll(a, -1, axis=0)  # [P, 2]
    straddles = (a[:, 1] > xy[1]) != (b[:, 1] > xy[1])
    a, b = a[straddles], b[straddles]
    crossing = a[:, 0] + (xy[1] - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1])
    return bool((crossing > xy[0]).sum() % 2)


def join_rings(rings: Sequence[npt.NDArray[Any]]) -> Points:
    """One outline through several rings, for formats that know no holes and no parts.

    Each further ring is reached over a bridge that is walked there and back, so it has no width and
    drawing it changes nothing. Holes must run against their exterior, as `mask_to_polygons` has it.

    Args:
        rings: at least one, each [P, 2] xy.

    Returns:
        [Q, 2] xy.
    """
    joined = np.asarray(rings[0], np.float64)
    rest = [np.asarray(ring, np.float64) for ring in rings[1:]]
    for ring in sorted(rest, key=lambda ring: float(ring[:, 0].min())):
        gaps = ((joined[:, None] - ring[None]) ** 2).sum(axis=-1)  # [Q, P]
        i, j = divmod(int(gaps.argmin()), len(ring))
        there = np.concatenate([np.roll(ring, -j, axis=0), ring[j : j + 1]])
        joined = np.concatenate([joined[: i + 1], there, joined[i:]])
    return joined


def _cross(a: Points, b: Points, c: Points, d: Points) -> npt.NDArray[np.bool_]:
    """Whether the sides a→b and c→d cross in their interiors, pair by pair."""
    splits_other = _side(a, b, c) * _side(a, b, d) < 0
    is_split = _side(c, d, a) * _side(c, d, b) < 0
    return splits_other & is_split


def _side(a: Points, b: Points, p: Points) -> npt.NDArray[np.float64]:
    """Positive where p is on the one side of the line a→b, negative on the other, 0 on it."""
    d, e = b - a, p - a
    return np.sign(d[..., 0] * e[..., 1] - d[..., 1] * e[..., 0])


def _rings(mask: npt.NDArray[np.bool_]) -> list[Points]:
    """All closed outlines, each the corners of a walk that keeps the mask on its right."""
    height, width = mask.shape
    padded = np.pad(mask, 1)
    above, below = padded[:-1, 1:-1], padded[1:, 1:-1]  # [h + 1, w] of every horizontal edge
    left, right = padded[1:-1, :-1], padded[1:-1, 1:]  # [h, w + 1] of every vertical edge
    leaves = np.zeros((4, height + 1, width + 1), np.bool_)  # direction, y, x of the edge's start
    leaves[0, :, :-1] = below & ~above
    leaves[1, :-1] = left & ~right
    leaves[2, :, 1:] = above & ~below
    leaves[3, 1:] = right & ~left
    direction, y, x = np.nonzero(leaves)
    steps = np.array(_STEPS)[direction]
    head_x, head_y = x + steps[:, 0], y + steps[:, 1]
    turn = _turn(leaves, direction, head_y, head_x)
    number = np.full(leaves.shape, -1, np.int64)
    number[direction, y, x] = np.arange(len(direction))
    following = number[turn, head_y, head_x].tolist()
    is_corner = (turn != direction).tolist()
    corners = np.stack([head_x, head_y], axis=1).astype(np.float64)
    return [corners[ring] for ring in _cycles(following, is_corner)]


def _turn(
    leaves: npt.NDArray[np.bool_],
    direction: npt.NDArray[np.int64],
    y: npt.NDArray[np.int64],
    x: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """The direction of the next edge: right first, which stays with the same pixel at a corner."""
    right, left = (direction + 1) % 4, (direction + 3) % 4
    return np.where(leaves[right, y, x], right, np.where(leaves[direction, y, x], direction, left))


def _cycles(following: list[int], is_corner: list[bool]) -> list[list[int]]:
    done = [False] * len(following)
    rings: list[list[int]] = []
    for begin in range(len(following)):
        if done[begin]:
            continue
        ring: list[int] = []
        edge = begin
        while not done[edge]:
            done[edge] = True
            if is_corner[edge]:
                ring.append(edge)
            edge = following[edge]
        rings.append(ring)
    return rings


def _owner_of(hole: Points, outer: Sequence[Points], areas: Sequence[float]) -> int:
    """The smallest exterior around a hole."""
    if len(outer) == 1:
        return 0
    # A point just inside the mask, to the left of the hole's left-most upright side.
    i = int(np.lexsort((hole[:, 1], hole[:, 0]))[0])
    inside = (float(hole[i, 0]) - 0.5, float(hole[i, 1]) + 0.5)
    around = [n for n, ring in enumerate(outer) if contains_point(ring, inside)]
    return min(around, key=lambda n: areas[n])
