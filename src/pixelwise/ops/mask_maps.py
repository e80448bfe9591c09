"""Whole-picture masks on feature maps: from annotations to cells, and from cells to the picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pixelwise.ops.masks import resize_masks
from pixelwise.ops.rle import encode_columns, split_by
from pixelwise.types import ImageSize, IntArray, MaskCrops, RunLengths, Size

Floats = npt.NDArray[np.float32]

_CHUNK = 1 << 22  # mask pixels coded at a time, a byte each
_BLOCK = 128  # pixels resized by one product: its matrix is 0 away from the diagonal


@torch.no_grad()
def mass_centres(masks: MaskCrops) -> tuple[Tensor, Tensor]:
    """The mean position of every mask's pixels, pixel 0 being at 0.

    Args:
        masks: N masks.

    Returns:
        areas [N] int64 in pixels and centres [N, 2] float32, x and y; zeros for an empty mask.
    """
    windows, starts, count = masks.windows, masks.starts, len(masks)
    on = masks.pixels.nonzero()[:, 0]  # [T]
    owner = torch.searchsorted(starts[1:], on, right=True)  # [T]
    at = on - starts[owner]
    width = (windows[:, 2] - windows[:, 0])[owner]
    x, y = at % width, torch.div(at, width, rounding_mode="floor")
    position = torch.stack([x, y], dim=1) + windows[owner, :2]  # [T, 2]
    # In whole numbers, so that the sum does not depend on its order.
    totals = position.new_zeros(count, 2).index_add_(0, owner, position)
    areas = torch.bincount(owner, minlength=count)  # [N]
    return areas, (totals.double() / areas.clamp(min=1)[:, None]).float()


@torch.no_grad()
def masks_on_cells(masks: MaskCrops, index: Tensor, size: Size, stride: int) -> Tensor:
    """Masks shrunk onto a feature map, as if by bilinear resizing and rounding.

    A cell is 1 where at least half of the four pixels around its centre are. There is no averaging
    over the whole cell, so what is thinner than a cell may vanish.

    Args:
        masks:  N masks of one picture, which lies at the top left of the network input.
        index:  [n] int64, the masks wanted.
        size:   (height, width) of the map.
        stride: input pixels per cell, even.

    Returns:
        [n, height, width] float32, 0 or 1.

    Source:  SOLO's targets, as in mmdet 3.3.
    Differs: cells have the map's exact stride also where it does not divide the input.
    """
    windows, starts = masks.windows[index], masks.starts[index]  # [n, 4], [n]
    pixels = torch.nn.functional.pad(masks.pixels, (0, 1))  # a zero for what lies outside
    width, height = (windows[:, 2 + a] - windows[:, a] for a in (0, 1))  # [n] each
    total = torch.zeros(len(index), *size, dtype=torch.uint8, device=pixels.device)
    first = [
        torch.arange(n, device=pixels.device) * stride + stride // 2 - 1 - windows[:, a, None]
        for a, n in ((1, size[0]), (0, size[1]))
    ]  # [n, height], [n, width]
    for dy in (0, 1):
        y = first[0] + dy
        for dx in (0, 1):
            x = first[1] + dx
            rows, columns = (y >= 0) & (y < height[:, None]), (x >= 0) & (x < width[:, None])
            at = starts[:, None, None] + y[:, :, None] * width[:, None, None] + x[:, None]
            inside = rows[:, :, None] & columns[:, None]
            total += pixels[torch.where(inside, at, len(pixels) - 1)]
    return (total >= 2).float()


@torch.no_grad()
def masks_from_cells(probs: Tensor, size: ImageSize, *, stride: int, thresh: float) -> RunLengths:
    """Soft masks on a feature map, resized to the picture and cut at a threshold.

    As in the released systems the map is enlarged to the network input, cut to the content and
    resized to the picture, bilinearly both times. Both steps are linear and separable, so they are
    one matrix per axis here, and only the window that a mask can reach is computed: memory grows
    with the masks, never with their number times the picture.

    Args:
        probs:  [N, h, w] in [0, 1]; the map covers stride * h by stride * w input pixels.
        size:   the picture's sizes.
        stride: input pixels per cell.
        thresh: pixels above this belong to the mask; at least 0.

    Returns:
        N masks of the original picture, with tight windows; empty ones stay.
    """
    if size.content == size.original and 0 < thresh < 1:  # the second step changes nothing
        covered = (stride * probs.shape[1], stride * probs.shape[2])
        return resize_masks(probs, replace(size, input=covered), thresh=thresh)
    maps = probs.detach().to("cpu", torch.float32).numpy()
    rows = _Axis(maps.shape[1], size, stride, axis=0)
    columns = _Axis(maps.shape[2], size, stride, axis=1)
    solid = maps > thresh
    top, bottom = rows.reach(np.asarray(solid.any(axis=2)))
    left, right = columns.reach(np.asarray(solid.any(axis=1)))
    windows = np.stack([left, top, right, bottom], axis=1)  # [N, 4]
    windows[(windows[:, 2:] <= windows[:, :2]).any(axis=1)] = 0
    return RunLengths.concat(_cut(maps, windows, (rows, columns), size.original, thresh))


def _cut(
    maps: Floats, windows: IntArray, axes: tuple[_Axis, _Axis], size: Size, thresh: float
) -> Iterator[RunLengths]:
    """Masks [N, h, w] above the threshold inside their windows [N, 4], in pieces; nothing first."""
    yield RunLengths.empty(size)
    rows, columns = axes
    extents = (windows[:, 2] - windows[:, 0]) * (windows[:, 3] - windows[:, 1])
    for part in split_by(extents, _CHUNK):
        crops = [
            (columns.resize(rows.resize(m, y0, y1).T, x0, x1) > thresh).reshape(-1)
            for m, (x0, y0, x1, y1) in zip(maps[part], windows[part].tolist(), strict=True)
        ]
        yield encode_columns(np.concatenate(crops), windows[part], size)


class _Axis:
    """One axis of the way from cells to the picture.

    Args:
        cells:  of the map.
        size:   the picture's sizes.
        stride: input pixels per cell.
        axis:   0 is the height.
    """

    def __init__(self, cells: int, size: ImageSize, stride: int, *, axis: int) -> None:
        content, original = size.content[axis], size.original[axis]
        enlarged = _resampled(np.eye(cells), stride * cells)[:content]  # [content, cells]
        weights = _resampled(enlarged, original)  # [original, cells]
        self.weights = weights.astype(np.float32)
        used = weights > 0
        self.first = used.argmax(axis=1)  # [original], the first cell that a pixel reads
        self.last = cells - used[:, ::-1].argmax(axis=1)  # [original], one past the last

    def reach(self, solid: npt.NDArray[np.bool_]) -> tuple[IntArray, IntArray]:
        """First pixel and one past the last that read any solid cell: [N, cells] → two of [N]."""
        low = solid.argmax(axis=1)
        high = solid.shape[1] - solid[:, ::-1].argmax(axis=1)
        begin = np.searchsorted(self.last, low, side="right")
        end = np.searchsorted(self.first, high, side="left")
        return begin.astype(np.int64), np.where(solid.any(axis=1), end, begin).astype(np.int64)

    def resize(self, x: Floats, begin: int, end: int) -> Floats:
        """Pixels begin..end from all cells along the first axis of [cells, any]."""
        parts = [x[:0]]
        for start in range(begin, end, _BLOCK):
            stop = min(start + _BLOCK, end)
            low, high = int(self.first[start]), int(self.last[stop - 1])
            parts.append(self.weights[start:stop, low:high] @ x[low:high])
        return np.concatenate(parts)


def _resampled(x: npt.NDArray[np.float64], target: int) -> npt.NDArray[np.float64]:
    """Bilinear resizing of the first axis, corners of the pictures aligned."""
    source = len(x)
    at = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    low = np.floor(at).astype(np.int64)
    high, far = np.minimum(low + 1, source - 1), (at - low)[:, None]
    return x[low] * (1 - far) + x[high] * far
