"""Instance masks between two frames: from a picture onto regions, and from regions into a picture.

Both directions resample bilinearly, which is separable: what a row of the result reads does not
depend on its columns. Targets are two small matrix products per region. Pasting goes further:
along a column, a bilinear surface is a chain of straight lines, so the places where it crosses
the threshold have closed forms, and a mask is found without computing its pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.ops.division import divide
from pixelwise.ops.rle import encode_strips, split_by
from pixelwise.types import ImageSize, IntArray, MaskCrops, RunLengths, Size

Floats = npt.NDArray[np.floating[Any]]

# Mask pixels gathered at a time: 4 MB, on a GPU, which waits for each piece, 64 MB.
_TARGET_CHUNK, _TARGET_CHUNK_ON_GPU = 1 << 20, 1 << 24
_PASTE_CHUNK = 1 << 14  # columns worked on at a time; with noise each has 14 strips
_LINES_CHUNK = 1 << 19  # values along such columns worked on at a time: 2 MB
_RING = ((0, 0), (1, 1), (1, 1))
_NONE = np.zeros(0, np.int64)
_SNAP_PX = 1e-6  # a crossing this close to a pixel centre is on it; rounding must not decide


@torch.no_grad()
def mask_targets(
    masks: MaskCrops,
    boxes: Tensor,
    index: Tensor,
    side: int,
    *,
    mode: Literal["bitmap", "torchvision"] = "bitmap",
) -> Tensor:
    """Resample ground-truth masks onto regions, as a mask head should predict them.

    This is RoIAlign with scale 1 and as many samples per bin as it has pixels; only the crops
    are read, so memory does not grow with the picture.

    Args:
        masks: N masks of one picture.
        boxes: [R, 4] xyxy in pixels of that picture, usually proposals.
        index: [R] int64, the mask that each region is matched with.
        side:  bins per side.
        mode:  "bitmap" aligns sample and pixel centres and rounds to 0 or 1 (Detectron2,
            MMDetection); "torchvision" is half a pixel off, with regions of one pixel at least, and
            keeps the fractions.

    Returns:
        [R, side, side] float32 in [0, 1].

    Source: Mask R-CNN (arXiv:1703.06870), section 3.1.
    """
    boxes = boxes.detach().float()
    aligned = mode == "bitmap"
    windows, starts = masks.windows[index], masks.starts[index]  # [R, 4], [R]
    targets = boxes.new_zeros((len(boxes), side, side))
    pixels = F.pad(masks.pixels, (0, masks.size[1]))  # see gather_crops
    for part, size in by_area(windows):
        corner, extent = windows[part, :2], windows[part, 2:] - windows[part, :2]  # [n, 2]
        crops = gather_crops(pixels, starts[part], extent, size).float()  # [n, h, w]
        weights = _bin_weights(
            boxes[part], side, masks.size, (corner, extent, max(size)), aligned=aligned
        )  # [n, 2, side, max(h, w)]
        columns, rows = weights[:, 0, :, : size[1]], weights[:, 1, :, : size[0]]
        # Mixed precision would round the products, and with them the comparison below.
        with torch.autocast(boxes.device.type, enabled=False):
            targets[part] = rows @ crops @ columns.transpose(1, 2)
    return (targets >= 0.5).float() if aligned else targets


@torch.no_grad()
def shares_inside(masks: MaskCrops, boxes: Tensor, index: Tensor) -> Tensor:
    """How much of a mask lies inside a box, as a part of its whole area.

    The corners of a box are rounded down to whole pixels.

    Args:
        masks: N masks of one picture.
        boxes: [R, 4] xyxy in pixels of that picture.
        index: [R] int64, the mask that each box is compared with.

    Returns:
        [R] float32 in [0, 1]; 0 for an empty mask.

    Source: Mask Scoring R-CNN (arXiv:1903.00241), section 3.3; whole pixels as in
        MMDetection (the authors clip the polygons instead).
    """
    boxes = boxes.detach().float()
    windows, starts = masks.windows[index], masks.starts[index]  # [R, 4], [R]
    shares = boxes.new_zeros(len(boxes))
    pixels = F.pad(masks.pixels, (0, masks.size[1]))  # see gather_crops
    for part, size in by_area(windows):
        corner, extent = windows[part, :2], windows[part, 2:] - windows[part, :2]  # [n, 2]
        crops = gather_crops(pixels, starts[part], extent, size).float()  # [n, h, w]
        own: list[Tensor] = []
        within: list[Tensor] = []
        for axis in (1, 0):
            place = torch.arange(crops.shape[2 - axis], device=boxes.device)  # [h or w]
            ends = boxes[part, axis::2].floor() - corner[:, axis, None]  # [n, 2]
            own.append((place < extent[:, axis, None]).float())  # [n, h or w]
            within.append(own[-1] * (place >= ends[:, :1]) * (place < ends[:, 1:]))
        with torch.autocast(boxes.device.type, enabled=False):
            inside, whole = (
                torch.einsum("nh,nhw,nw->n", rows, crops, columns)
                for rows, columns in (within, own)
            )
        shares[part] = inside / whole.clamp(min=1)
    return shares


def paste_masks(
    probs: Tensor,
    boxes: Tensor,
    size: Size,
    *,
    thresh: float = 0.5,
    mode: Literal["grid", "expanded"] = "grid",
) -> RunLengths:
    """Draw the masks of detections into their picture.

    Neither pixels nor a stack of masks are made: memory grows with the masks' widths and outlines.

    Args:
        probs:  [N, M, M] in [0, 1], the masks of the regions.
        boxes:  [N, 4] xyxy in pixels of the original picture, where the masks belong.
        size:   (height, width) of that picture.
        thresh: pixels from this probability on belong to the mask; in (0, 1].
        mode:   "grid" samples at pixel centres (Detectron2, MMDetection); "expanded" pads the mask
            by a ring of 0, expands the box with it, and truncates it to whole pixels
            (torchvision, Detectron).

    Returns:
        N masks with tight windows; empty where the box is.

    Source: Mask R-CNN (arXiv:1703.06870), section 3.1.
    """
    if not 0 < thresh <= 1:
        raise ValueError(f"thresh must be in (0, 1], not {thresh}")
    maps = probs.detach().to("cpu", torch.float32).numpy()
    frames = boxes.detach().to("cpu", torch.float32).numpy()
    m = maps.shape[-1]
    # Everything around a map is 0; columns come first, since runs go down them.
    padded = np.zeros((len(maps), m + 2, m + 2), np.float32)
    padded[:, 1:-1, 1:-1] = maps.transpose(0, 2, 1)
    origin, pitch, begin, end = _placement(frames, m, size, mode)
    surfaces = (padded, origin, pitch, begin, end)
    return RunLengths.concat(_drawn(surfaces, size, thresh=thresh, columns=_PASTE_CHUNK))


def resized_strips(
    maps: Floats, windows: IntArray, thresh: float
) -> tuple[IntArray, IntArray, tuple[IntArray, IntArray]]:
    """Resize masks bilinearly to whole-pixel windows, and find what reaches a threshold.

    The edge of a map holds up to the edge of its window, as when a picture is resized; in
    `paste_masks` it fades to 0 instead.

    Args:
        maps:    [n, M, M] float32, any values.
        windows: [n, 4] xyxy in whole pixels, with positive extents.
        thresh:  pixels from this value on belong to the mask; above 0.

    Returns:
        Vertical strips as `rle.encode_strips` takes them: owner [T], column [T], two of rows [T].
    """
    m = maps.shape[-1]
    # The border once more, and then the zeros that end every strip.
    padded = np.pad(np.pad(maps.transpose(0, 2, 1), ((0, 0), (1, 1), (1, 1)), mode="edge"), _RING)
    begin, end = windows[:, :2], windows[:, 2:]
    pitch = (end - begin) / m
    origin = begin - 0.5 * pitch  # the centre of the first cell, which repeats the border
    parts = [
        (owner + part.start, column, rows)
        for part in split_by(end[:, 0] - begin[:, 0], _PASTE_CHUNK)
        for owner, column, rows in [
            _strips(padded[part], origin[part], pitch[part], (begin[part], end[part]), thresh)
        ]
    ]
    owner, column = (np.concatenate([p[i] for p in parts] or [_NONE]) for i in (0, 1))
    first, last = (np.concatenate([p[2][i] for p in parts] or [_NONE]) for i in (0, 1))
    return owner, column, (first, last)


def resize_masks(probs: Tensor, size: ImageSize, *, thresh: float) -> RunLengths:
    """Resize masks of the whole network input bilinearly to the original picture, and cut at that.

    The result is that of resizing all N maps and comparing their pixels; but neither those pixels
    nor a stack of masks are made.

    Args:
        probs:  [N, h, w] in [0, 1], cells that divide the network input, its padding included.
        size:   of the picture.
        thresh: pixels of more than this belong to the mask; in (0, 1).

    Returns:
        N masks with tight windows.
    """
    maps = probs.detach().to("cpu", torch.float32).numpy()
    above = float(np.nextafter(np.float32(thresh), np.float32(1)))
    picture = np.array(size.original[::-1])  # x and y from here on
    per_input = picture / np.array(size.content[::-1])
    pitch = np.array(size.input[::-1]) / np.array(maps.shape[:0:-1]) * per_input  # px per cell
    columns = np.any(maps >= above, axis=1)  # [N, w]
    first, last = columns.argmax(axis=1), maps.shape[2] - columns[:, ::-1].argmax(axis=1)
    begin, end = np.zeros((len(maps), 2), np.int64), np.tile(picture, (len(maps), 1))
    begin[:, 0] = np.floor((first - 1) * pitch[0]).clip(0, picture[0])
    end[:, 0] = np.ceil((last + 1) * pitch[0]).clip(0, picture[0])
    end[:, 0] = np.where(np.any(columns, axis=1), end[:, 0], begin[:, 0])
    # The border once more, and then the zeros that end every strip.
    padded = np.pad(np.pad(maps.transpose(0, 2, 1), ((0, 0), (1, 1), (1, 1)), mode="edge"), _RING)
    origin, pitch = np.tile(-0.5 * pitch, (len(maps), 1)), np.tile(pitch, (len(maps), 1))
    surfaces = (padded, origin, pitch, begin, end)
    chunk = max(1, _LINES_CHUNK // padded.shape[2])
    return RunLengths.concat(_drawn(surfaces, size.original, thresh=above, columns=chunk))


@torch.no_grad()
def downsampled_targets(masks: MaskCrops, frame: Size, size: Size, *, thresh: float) -> Tensor:
    """Ground-truth masks on the cells of a map, by bilinear sampling at the cells' centres.

    Only the pixels that are read are touched: four for each cell of the result.

    Args:
        masks:  N masks of one picture.
        frame:  (height, width) of the network input; the picture lies at its top left.
        size:   (height, width) of the map that divides it.
        thresh: cells of more than this are 1.

    Returns:
        [N, *size] float32, 0 or 1.

    Source:  YOLACT (arXiv:1904.02689), released code: no averaging, however small the map.
    """
    whole = torch.tensor([[0, 0, frame[1], frame[0]]], device=masks.windows.device)
    boxes = whole.expand(len(masks), 4)
    index = torch.arange(len(masks), device=boxes.device)
    return (_sampled(masks, boxes, index, size) > thresh).float()


@torch.no_grad()
def resized_targets(
    masks: MaskCrops, boxes: Tensor, index: Tensor, side: int, *, thresh: float
) -> Tensor:
    """Ground-truth masks cut out by whole-pixel boxes and resized bilinearly, without averaging.

    Only the pixels that are read are touched: four for each cell of the result.

    Args:
        masks:  N masks of one picture.
        boxes:  [R, 4] xyxy in whole pixels of that picture, with positive extents.
        index:  [R] int64, the mask that each box is matched with.
        side:   S, cells per side.
        thresh: cells from this value on are 1.

    Returns:
        [R, S, S] float32, 0 or 1.

    Source:  FCIS (arXiv:1611.07709), section 3.3, as in its released code.
    """
    return (_sampled(masks, boxes, index, (side, side)) >= thresh).float()


def _sampled(masks: MaskCrops, boxes: Tensor, index: Tensor, size: Size) -> Tensor:
    """[R, *size] bilinear samples of the masks `index` [R] on a grid over each box [R, 4]."""
    boxes = boxes.detach().float()
    corner = boxes[:, :2].long()  # [R, 2]
    windows, starts = masks.windows[index], masks.starts[index]  # [R, 4], [R]
    pixels = F.pad(masks.pixels, (0, 1))  # a zero for what lies outside the window
    columns, rows = (
        _taps(boxes[:, axis + 2] - boxes[:, axis], corner[:, axis], size[1 - axis])
        for axis in (0, 1)
    )
    total = boxes.new_zeros(len(boxes), *size)
    for y, wy in rows:
        for x, wx in columns:
            read = _pixels_at(pixels, windows, starts, (x, y))
            total += read * wy[:, :, None] * wx[:, None]
    return total


def _taps(extent: Tensor, corner: Tensor, cells: int) -> list[tuple[Tensor, Tensor]]:
    """The two pixels that each cell of an axis reads, and their weights; all [R, cells]."""
    extent = extent[:, None]
    at = (torch.arange(cells, device=extent.device) + 0.5) * divide(extent, cells) - 0.5
    at = at.clamp(min=0).minimum(extent - 1)
    low = at.floor()
    far = at - low
    low = low.long()
    high = torch.minimum(low + 1, extent.long() - 1)
    return [(corner[:, None] + low, 1 - far), (corner[:, None] + high, far)]


def _pixels_at(
    pixels: Tensor, windows: Tensor, starts: Tensor, where: tuple[Tensor, Tensor]
) -> Tensor:
    """[R, h, w] mask pixels at columns [R, w] and rows [R, h]; the last of `pixels` is 0."""
    x, y = (v - windows[:, i, None] for i, v in enumerate(where))  # [R, w], [R, h]
    width, height = windows[:, 2] - windows[:, 0], windows[:, 3] - windows[:, 1]  # [R] each
    inside_y, inside_x = ((v >= 0) & (v < n[:, None]) for v, n in ((y, height), (x, width)))
    at = starts[:, None, None] + y[:, :, None] * width[:, None, None] + x[:, None]  # [R, h, w]
    inside = inside_y[:, :, None] & inside_x[:, None]
    return pixels[torch.where(inside, at, len(pixels) - 1)]


def by_area(windows: Tensor) -> Iterator[tuple[Tensor, Size]]:
    """Positions of windows of similar size, so many that padded to the largest they stay small.

    Yields:
        The positions, and the largest (height, width) of their windows.
    """
    extent = (windows[:, 2:] - windows[:, :2]).cpu()  # [R, 2]
    order = extent.prod(dim=1).argsort(descending=True, stable=True)
    sides = extent[order].tolist()
    chunk = _TARGET_CHUNK if windows.device.type == "cpu" else _TARGET_CHUNK_ON_GPU
    first, widest, highest = 0, 0, 0
    for i, (w, h) in enumerate(sides):
        wider, higher = max(widest, w), max(highest, h)
        if i > first and (i + 1 - first) * wider * higher > chunk:
            yield order[first:i].to(windows.device), (highest, widest)
            first, wider, higher = i, w, h
        widest, highest = wider, higher
    if first < len(sides):
        yield order[first:].to(windows.device), (highest, widest)


def gather_crops(pixels: Tensor, starts: Tensor, extent: Tensor, size: Size) -> Tensor:
    """[n, *size] uint8: crops with their top left corners at 0; outside a crop is garbage."""
    h, w = size
    rows = torch.arange(h, device=pixels.device) * extent[:, 0, None] + starts[:, None]  # [n, h]
    # Row k of this view is the w pixels from k on: whole rows are copied, not single pixels. The
    # pixels must end with w spare ones: as many as the picture is wide are enough.
    view = pixels.as_strided((len(pixels) - w + 1, w), (1, 1))
    return view[rows.clamp(max=len(pixels) - w)]


def _bin_weights(
    boxes: Tensor, side: int, size: Size, crops: tuple[Tensor, Tensor, int], *, aligned: bool
) -> Tensor:
    """What each bin of a region reads along x and along y.

    Args:
        boxes:   [n, 4] xyxy in pixels, the regions.
        side:    bins along each axis.
        size:    (height, width) of the picture in pixels.
        crops:   [n, 2] first pixel and [n, 2] pixels of each crop, x and y; the most pixels C.
        aligned: see `mask_targets`.

    Returns:
        [n, 2, side, C] weights of the pixels from the first of the crop on; they sum to 1 where the
        bin lies inside picture and crop.
    """
    offset, own, cells = crops
    last = torch.tensor([size[1] - 1, size[0] - 1]).to(boxes.device, non_blocking=True)
    begin, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]  # [n, 2]
    begin, extent = (begin - 0.5, extent) if aligned else (begin, extent.clamp(min=1))
    per_bin = divide(extent, side)  # [n, 2]
    samples = per_bin.ceil().clamp(min=1)  # [n, 2] per bin
    most = int(samples.max())
    bins = torch.arange(side, device=boxes.device)[:, None]  # [side, 1]
    nth = torch.arange(most, device=boxes.device)  # [most]
    inner = (nth + 0.5) * (per_bin / samples)[..., None]  # [n, 2, most]
    at = begin[..., None, None] + bins * per_bin[..., None, None] + inner[:, :, None]
    last = last[:, None, None]  # [2, 1, 1]
    counts = (nth < samples[..., None])[:, :, None] & (at >= -1) & (at <= last + 1)
    counts = counts & (extent > 0)[..., None, None]  # [n, 2, side, most], as `at`
    at = at.clamp(min=0).minimum(last)
    low = at.floor()
    far = at - low
    share = counts / samples[..., None, None]
    first = low.long() - offset[..., None, None]
    # A spare cell takes what falls outside the crop.
    weights = at.new_zeros((*at.shape[:3], cells + 1))
    for step, part in ((0, (1 - far) * share), (1, far * share)):
        cell = first + step
        inside = (cell >= 0) & (cell < own[..., None, None])
        weights.scatter_add_(3, torch.where(inside, cell, cells), part)
    return weights[..., :-1]


def _placement(
    boxes: Floats, m: int, size: Size, mode: str
) -> tuple[Floats, Floats, IntArray, IntArray]:
    """Where maps of M x M cells lie in a picture; each [N, 2], x and y.

    Returns:
        The centre of the first cell, the pixels per cell, and the first and one past the last pixel
        whose centre a map (with its ring of 0) can reach, inside the picture.
    """
    corners = boxes.astype(np.float64).reshape(-1, 2, 2)  # [N, corner, x and y]
    limit = np.array(size[::-1])
    if mode == "expanded":
        # In float32, as upstream: a corner next to a whole number must truncate the same way.
        half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * np.float32((m + 2) / m)
        centre = (boxes[:, 2:] + boxes[:, :2]) * np.float32(0.5)
        first = np.trunc(centre - half).astype(np.int64)
        last = np.trunc(centre + half).astype(np.int64)
        pixels = np.maximum(last - first + 1, 1)
        pitch = pixels / (m + 2)
        origin = first + 1.5 * pitch
        begin, end = first, first + pixels
    else:
        extent = corners[:, 1] - corners[:, 0]
        pitch = np.where(extent > 0, extent, 1) / m
        origin = corners[:, 0] + 0.5 * pitch
        begin = np.floor(corners[:, 0] - 0.5 * pitch).astype(np.int64)
        end = np.ceil(corners[:, 1] + 0.5 * pitch).astype(np.int64) + 1
        end = np.where((extent > 0).all(1, keepdims=True), end, begin)
    begin, end = np.clip(begin, 0, limit), np.clip(end, 0, limit)
    return origin, pitch, begin, np.maximum(begin, end)


def _drawn(
    surfaces: tuple[Floats, Floats, Floats, IntArray, IntArray],
    size: Size,
    *,
    thresh: float,
    columns: int,
) -> Iterator[RunLengths]:
    """Masks from the threshold on, in pieces of about so many columns of pixels; nothing first.

    Args:
        surfaces: N each of padded maps, origin, pitch, first and last pixel, see `_strips`.
        size:     (height, width) of the picture.
        thresh:   see `_strips`.
        columns:  worked on at a time, unless a single mask is wider.
    """
    yield RunLengths.empty(size)
    padded, origin, pitch, begin, end = surfaces
    for part in split_by(end[:, 0] - begin[:, 0], columns):
        strips = _strips(padded[part], origin[part], pitch[part], (begin[part], end[part]), thresh)
        yield encode_strips(*strips, count=part.stop - part.start, size=size)


def _strips(
    padded: Floats, origin: Floats, pitch: Floats, pixels: tuple[IntArray, IntArray], thresh: float
) -> tuple[IntArray, IntArray, tuple[IntArray, IntArray]]:
    """Vertical strips of pixels from the threshold on: owner, column, (first row, one past last).

    Args:
        padded:  [n, M + 2, M + 2] maps with a ring of 0, x first.
        origin:  [n, 2] centre of the first cell, x and y.
        pitch:   [n, 2] pixels per cell.
        pixels:  two of [n, 2], first and one past the last pixel to fill.
        thresh:  above 0, so that every strip ends within the ring.
    """
    begin, end = pixels
    m = padded.shape[1] - 2
    widths = end[:, 0] - begin[:, 0]
    owner = np.repeat(np.arange(len(padded)), widths)  # [columns]
    column = np.arange(len(owner)) - np.repeat(np.cumsum(widths) - widths, widths) + begin[owner, 0]
    u = (column + 0.5 - origin[owner, 0]) / pitch[owner, 0]  # in cells, 0 is the first centre
    cell = np.clip(np.floor(u), -1, m - 1).astype(np.int64)
    far = np.clip(u - cell, 0, 1).astype(np.float32)[:, None]
    # The surface along each column of pixels, at the centres of the cells. [columns, M + 2]
    lines, beside = padded[owner, cell + 1], padded[owner, cell + 2]
    lines *= 1 - far
    beside *= far
    lines += beside
    solid = lines >= thresh
    change = np.flatnonzero(solid[:, 1:] != solid[:, :-1])
    line = change // (solid.shape[1] - 1)
    knot = change - line * (solid.shape[1] - 1)
    before, after = lines[line, knot].astype(np.float64), lines[line, knot + 1].astype(np.float64)
    crossing = knot - 1 + (thresh - before) / (after - before)  # in cells
    of = owner[line]
    row = crossing * pitch[of, 1] + origin[of, 1] - 0.5  # in pixels, whole at their centres
    # Crossings alternate along a column: into the mask, out of it.
    top, bottom = np.ceil(row[::2] - _SNAP_PX), np.floor(row[1::2] + _SNAP_PX) + 1
    of = of[::2]
    top = np.clip(top.astype(np.int64), begin[of, 1], end[of, 1])
    bottom = np.clip(bottom.astype(np.int64), begin[of, 1], end[of, 1])
    return of, column[line[::2]], (top, bottom)
