"""Filling of polygons with whole-pixel corners, straight to run lengths."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from pixelwise.ops.rle import encode_strips, split_by
from pixelwise.types import IntArray, RunLengths, Size

_STRIPS_CHUNK = 1 << 17  # strips made at a time: 1 MB per value
_Strips = tuple[IntArray, IntArray, IntArray, IntArray]  # owner, column, first row, last row


def fill_polygons(corners: IntArray, size: Size) -> RunLengths:
    """Draw polygons with their outlines.

    A pixel is inside if its centre is, by the even-odd rule, or if the line between two corners
    runs through it. Neither pixels nor a stack of masks are made: memory grows with the outlines.

    Args:
        corners: [N, n, 2] x and y of pixels inside the picture.
        size:    (height, width) of the picture.

    Returns:
        N masks with tight windows.

    Source:  the same pixels as OpenCV's `drawContours` with negative thickness.
    """
    return RunLengths.concat(chain([RunLengths.empty(size)], _filled(corners, size)))


def _filled(corners: IntArray, size: Size) -> Iterator[RunLengths]:
    """The masks of a few polygons at a time."""
    around = np.abs(np.roll(corners, -1, axis=1) - corners).sum(axis=(1, 2))  # [N]
    for part in split_by(2 * around + corners.shape[1], _STRIPS_CHUNK):
        own = corners[part]
        start, end = own.reshape(-1, 2), np.roll(own, -1, axis=1).reshape(-1, 2)  # [S, 2] sides
        owner = np.repeat(np.arange(len(own)), own.shape[1])  # [S]
        swap = start[:, :1] > end[:, :1]
        left, right = np.where(swap, end, start), np.where(swap, start, end)
        drawn = zip(_inside(owner, left, right), _lines(owner, left, right), strict=True)
        owner, column, first, last = _united(*(np.concatenate(pair) for pair in drawn))
        yield encode_strips(owner, column, (first, last + 1), count=len(own), size=size)


def _inside(owner: IntArray, left: IntArray, right: IntArray) -> _Strips:
    """Strips between the crossings of each column with the sides."""
    width = right[:, 0] - left[:, 0]
    side, step = _repeated(
        width
    )  # a side crosses the columns from its left end to before its right
    column = left[side, 0] + step
    rise, run = (right[:, 1] - left[:, 1])[side], width[side]
    # Rows times the product of all runs would not fit; rows as floor and remainder do.
    row = left[side, 1] + rise * step // run
    rest = (rise * step % run) / run
    order = np.lexsort((row + rest, column, owner[side]))
    row, beyond = row[order], (rest > 0)[order]
    top, bottom = row[::2] + beyond[::2], row[1::2]
    return owner[side][order][::2], column[order][::2], top, bottom


def _lines(owner: IntArray, left: IntArray, right: IntArray) -> _Strips:
    """The pixels of the sides by Bresenham's rule, begun at the left; ties stay with the start."""
    dx, dy = right[:, 0] - left[:, 0], np.abs(right[:, 1] - left[:, 1])
    along, across = np.maximum(dx, dy), np.minimum(dx, dy)
    side, step = _repeated(along + 1)
    major = np.maximum(along, 1)[side]
    minor = (2 * across[side] * step + major - 1) // (2 * major)
    flat = (dx >= dy)[side]
    down = np.sign(right[:, 1] - left[:, 1])[side]
    column = left[side, 0] + np.where(flat, step, minor)
    row = left[side, 1] + down * np.where(flat, minor, step)
    return owner[side], column, row, row


def _repeated(counts: IntArray) -> tuple[IntArray, IntArray]:
    """Each item as often as its count says, and the number of each repetition."""
    item = np.repeat(np.arange(len(counts)), counts)
    return item, np.arange(len(item)) - np.repeat(np.cumsum(counts) - counts, counts)


def _united(owner: IntArray, column: IntArray, first: IntArray, last: IntArray) -> _Strips:
    """The same pixels as strips in order that neither overlap nor touch."""
    order = np.lexsort((first, column, owner))
    owner, column, first, last = (x[order] for x in (owner, column, first, last))
    if not len(owner):
        return owner, column, first, last
    fresh = np.concatenate(
        [[True], (owner[1:] != owner[:-1]) | (column[1:] != column[:-1])]
    )  # the first strip of a column
    # Shifting every column above the one before keeps its rows out of the running maximum.
    height = int(max(last.max(), first.max())) + 2
    shift = np.cumsum(fresh) * height
    reach = np.maximum.accumulate(last + shift)
    begins = np.concatenate([[True], (first + shift)[1:] > reach[:-1] + 1])
    heads = np.flatnonzero(begins)
    tails = np.append(heads[1:], len(owner)) - 1
    return owner[heads], column[heads], first[heads], (reach - shift)[tails]
