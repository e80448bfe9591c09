"""One geometric transform of a picture and of everything annotated on it, exact and invertible.

Coordinates are continuous: pixel i covers [i, i + 1) and has its centre at i + 0.5, so resizing
from `a` to `b` pixels is a multiplication by b / a and nothing else. All numbers are fractions. A
picture, its label map, its boxes and its masks are moved by the same record and stay aligned.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np
import numpy.typing as npt
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from pixelwise.ops.rle import decode_crops
from pixelwise.types import IGNORE, IntArray, MaskCrops, RunLengths, Size

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.uint8]
Span = tuple[int, int]  # first pixel, one past the last

_HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Axis:
    """One axis of a transform: output = scale * input + offset; a negative scale mirrors."""

    scale: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)

    def then(self, other: Axis) -> Axis:
        """First this, then the other."""
        return Axis(other.scale * self.scale, other.scale * self.offset + other.offset)

    def inverse(self) -> Axis:
        """From output to input, without rounding."""
        return Axis(1 / self.scale, -self.offset / self.scale)

    def sources(self, count: int) -> IntArray:
        """Of each of `count` output pixels the input pixel under its centre (it may not exist)."""
        back = self.inverse()
        a, b = back.scale.as_integer_ratio()
        c, d = back.offset.as_integer_ratio()
        return ((2 * np.arange(count) + 1) * (a * d) + 2 * b * c) // (2 * b * d)

    def visible(self, length: int, count: int) -> Span:
        """The input pixels (of `length`) whose centres fall into the `count` output pixels."""
        back = self.inverse()
        ends = sorted((back.offset, back.scale * count + back.offset))
        first, last = (min(max(ceil(end - _HALF), 0), length) for end in ends)
        return first, last


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where each point of a picture goes: scale, shift and mirror per axis, and the two sizes.

    Args:
        y: the vertical axis.
        x: the horizontal axis.
        before: (height, width) of the picture.
        after:  (height, width) of the result; it may cut the picture or reach beyond it.
    """

    y: Axis = Axis()
    x: Axis = Axis()
    before: Size
    after: Size

    @classmethod
    def resize(cls, before: Size, after: Size) -> Geometry:
        """The whole picture at another size."""
        y, x = (Axis(Fraction(b, a)) for a, b in zip(before, after, strict=True))
        return cls(y=y, x=x, before=before, after=after)

    @classmethod
    def window(cls, before: Size, corner_yx: tuple[int, int], after: Size) -> Geometry:
        """Cut out the window of this top left corner and size; beyond the picture is padding."""
        y, x = (Axis(offset=Fraction(-c)) for c in corner_yx)
        return cls(y=y, x=x, before=before, after=after)

    @classmethod
    def mirror(cls, size: Size, *, vertical: bool, horizontal: bool) -> Geometry:
        """Swap top and bottom, left and right."""
        y, x = (
            Axis(Fraction(-1), Fraction(side)) if flip else Axis()
            for side, flip in zip(size, (vertical, horizontal), strict=True)
        )
        return cls(y=y, x=x, before=size, after=size)

    def then(self, other: Geometry) -> Geometry:
        """First this, then the other, as one transform (a picture is resampled once)."""
        if other.before != self.after:
            raise ValueError(f"{self.after} goes in where {other.before} is expected")
        return Geometry(
            y=self.y.then(other.y), x=self.x.then(other.x), before=self.before, after=other.after
        )

    def inverse(self) -> Geometry:
        """From the result back to the picture; `g.then(g.inverse())` is the identity, exactly."""
        return Geometry(
            y=self.y.inverse(), x=self.x.inverse(), before=self.after, after=self.before
        )

    def points(self, points: Floats) -> Floats:
        """Move points.

        Args:
            points: [..., 2] (x, y) in the picture.

        Returns:
            [..., 2] (x, y) in the result.
        """
        scale = np.array([float(self.x.scale), float(self.y.scale)])
        return points * scale + np.array([float(self.x.offset), float(self.y.offset)])

    def boxes(self, boxes: npt.NDArray[np.floating]) -> Floats:
        """Move boxes; the result is not clipped.

        Args:
            boxes: [N, 4] xyxy in the picture.

        Returns:
            [N, 4] xyxy in the result.
        """
        corners = self.points(boxes.astype(np.float64).reshape(-1, 2, 2))
        return np.concatenate([corners.min(1), corners.max(1)], axis=1)

    def image(self, image: Tensor, *, antialias: bool = True) -> Tensor:
        """Resample a picture bilinearly.

        Args:
            image:     [C, H, W] of any type; uint8 laid out channels last is by far the fastest.
            antialias: smooth before shrinking.

        Returns:
            [C, *after], 0 where there is no picture.

        Raises:
            ValueError: the scale does not bring the whole picture to a whole number of pixels.
        """
        scaled = _whole(self.y, self.before[0]), _whole(self.x, self.before[1])
        if scaled != self.before:
            image = tv.resize(image, list(scaled), antialias=antialias)
        (top, bottom, above), (left, right, ahead) = (
            _cut(axis, full, count)
            for axis, full, count in zip((self.y, self.x), scaled, self.after, strict=True)
        )
        image = image[:, top:bottom, left:right]
        flips = [d for d, axis in ((-2, self.y), (-1, self.x)) if axis.scale < 0]
        image = image.flip(flips) if flips else image
        below, behind = self.after[0] - above - (bottom - top), self.after[1] - ahead - right + left
        if any((above, below, ahead, behind)):
            image = torch.nn.functional.pad(image, (ahead, behind, above, below))
        return image

    def labels(self, labels: Labels) -> Labels:
        """Resample a label map: each output pixel takes the label under its centre.

        Args:
            labels: [H, W] of the picture.

        Returns:
            [*after], 255 where there is no picture.
        """
        rows, (top, bottom) = _inside(self.y.sources(self.after[0]), (0, self.before[0]))
        columns, (left, right) = _inside(self.x.sources(self.after[1]), (0, self.before[1]))
        found = labels[rows][:, columns]
        if found.shape == self.after:
            return found
        full = np.full(self.after, IGNORE, np.uint8)
        full[top:bottom, left:right] = found
        return full

    def masks(self, masks: RunLengths) -> tuple[MaskCrops, Floats]:
        """Resample masks at pixel centres, crop by crop.

        Args:
            masks: N masks of the picture.

        Returns:
            crops:   N masks of the result with tight windows; (0, 0, 0, 0) where out of sight.
            visible: [N] share of each mask's pixels that lies inside the result, 0..1.
        """
        reach_y = self.y.visible(self.before[0], self.after[0])
        reach_x = self.x.visible(self.before[1], self.after[1])
        x0, y0, x1, y1 = masks.windows.T
        near = (x1 > reach_x[0]) & (x0 < reach_x[1]) & (y1 > reach_y[0]) & (y0 < reach_y[1])
        crops = decode_crops(masks.select(near))
        at, pixels = crops.starts.tolist(), crops.pixels.numpy()
        rows, columns = self.y.sources(self.after[0]), self.x.sources(self.after[1])
        windows, visible = np.zeros((len(masks), 4), np.int64), np.zeros(len(masks))
        parts: list[Labels] = [np.zeros(0, np.uint8)]
        for i, k in enumerate(near.nonzero()[0].tolist()):
            left, top, right, bottom = masks.windows[k].tolist()
            mask = pixels[at[i] : at[i + 1]].reshape(bottom - top, right - left)
            visible[k] = _share(mask, _shift(reach_y, -top), _shift(reach_x, -left))
            source_rows, (above, _) = _inside(rows, (top, bottom))
            source_columns, (ahead, _) = _inside(columns, (left, right))
            moved = mask[source_rows - top][:, source_columns - left]
            moved, corner = trim(moved)
            if moved.size:
                windows[k, :2] = ahead + corner[1], above + corner[0]
                windows[k, 2:] = windows[k, :2] + moved.shape[::-1]
                parts.append(moved.reshape(-1))
        flat = torch.from_numpy(np.concatenate(parts))
        return MaskCrops(self.after, torch.from_numpy(windows), flat), visible


def _whole(axis: Axis, length: int) -> int:
    scaled = abs(axis.scale) * length
    if scaled.denominator != 1 or axis.offset.denominator != 1:
        raise ValueError(f"{axis} puts {length} pixels between the pixels of the result")
    return int(scaled)


def _cut(axis: Axis, full: int, count: int) -> tuple[int, int, int]:
    """First and last + 1 scaled pixel in sight, and how many output pixels precede them."""
    offset = int(axis.offset)
    if axis.scale > 0:
        first, last = max(0, -offset), min(full, count - offset)
        before = first + offset
    else:
        first, last = max(0, offset - count), min(full, offset)
        before = offset - last
    return (first, last, before) if last > first else (0, 0, 0)


def _inside(sources: IntArray, span: Span) -> tuple[IntArray, Span]:
    """The sources within a span, and the output span they belong to (sources are monotone)."""
    chosen = ((sources >= span[0]) & (sources < span[1])).nonzero()[0]
    if not len(chosen):
        return sources[:0], (0, 0)
    first, last = int(chosen[0]), int(chosen[-1]) + 1
    return sources[first:last], (first, last)


def _shift(span: Span, by: int) -> Span:
    return max(0, span[0] + by), max(0, span[1] + by)


def _share(mask: Labels, rows: Span, columns: Span) -> float:
    """Share of a mask's pixels within these rows and columns."""
    part = mask[slice(*rows), slice(*columns)]
    if part.shape == mask.shape:
        return 1.0
    return np.count_nonzero(part) / max(1, np.count_nonzero(mask))


def trim(mask: Labels) -> tuple[Labels, tuple[int, int]]:
    """The smallest window around a mask, and its (top, left) in the old one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return mask[:0, :0], (0, 0)
    top, left = int(rows[0]), int(columns[0])
    return mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1], (top, left)
