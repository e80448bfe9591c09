"""Run-length coding of binary masks: the form in which annotations and predictions are held.

`RunLengths` and `MaskCrops` are defined in `pixelwise.types`; here they are made, read and brought
to and from COCO's run-length format. Everything is lossless and works on all masks at once: the
1-runs of all masks form one table of spans, and a mask moves between frames (its window, the
picture) by arithmetic on that table, without touching pixels.

Source: the run-length format of the COCO API (column-major, 0-runs first).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pixelwise.errors import DataError
from pixelwise.ops.coco_counts import read_counts, size_of
from pixelwise.types import IntArray, MaskCrops, RunLengths, Size

Bytes = npt.NDArray[np.uint8]

_RUNS_CHUNK = 1 << 18  # runs brought to another frame at a time: 2 MB for each int64 temporary
_CHUNK = 1 << 24  # pixels unpacked at a time: 16 MB for each byte-sized temporary


class _Spans(NamedTuple):
    """The 1-runs of N masks, mask by mask, ascending.

    Args:
        owner: [T] the mask of each span.
        first: [T] column-major position of its first pixel in its mask's frame.
        last:  [T] one past its last pixel.
    """

    owner: IntArray
    first: IntArray
    last: IntArray


def encode(masks: npt.NDArray[Any] | Tensor) -> RunLengths:
    """Code dense binary masks.

    Args:
        masks: [N, H, W], bool or number; everything but 0 belongs to the mask.

    Returns:
        N masks with tight windows.
    """
    stack = masks.detach().cpu().numpy() if isinstance(masks, Tensor) else np.asarray(masks)
    n, height, width = stack.shape
    size = (height, width)
    windows = np.zeros((n, 4), np.int64)
    crops: list[npt.NDArray[np.bool_]] = [np.zeros(0, bool)]
    for i, mask in enumerate(stack):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            windows[i] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            x0, y0, x1, y1 = windows[i]
            crops.append((mask[y0:y1, x0:x1] != 0).T.reshape(-1))
    return encode_columns(np.concatenate(crops), windows, size)


def encode_crops(masks: MaskCrops) -> RunLengths:
    """Code the pixels of crop windows.

    Args:
        masks: N masks on any device.

    Returns:
        The same masks with tight windows.
    """
    pixels = masks.pixels.detach().cpu().numpy().astype(np.uint8, copy=False)
    windows = masks.windows.detach().cpu().numpy()
    return encode_columns(_transpose(pixels, windows, by_column=False), windows, masks.size)


def encode_columns(pixels: npt.NDArray[Any], windows: IntArray, size: Size) -> RunLengths:
    """Code crop windows whose pixels already run down the columns.

    Args:
        pixels:  [total] bool or uint8, column-major window after window.
        windows: [N, 4] xyxy, inside the picture.
        size:    (height, width) of the picture.

    Returns:
        N masks with tight windows.
    """
    bounds = np.concatenate([[0], np.cumsum(_areas_of(windows))]).astype(np.int64)
    return _tighten(_spans_of_pixels(pixels, bounds), windows, size)


def encode_strips(
    owner: IntArray, column: IntArray, rows: tuple[IntArray, IntArray], *, count: int, size: Size
) -> RunLengths:
    """Code masks given as vertical strips of one pixel's width.

    Args:
        owner:  [T] the mask of each strip, ascending.
        column: [T] its column, ascending within a mask.
        rows:   two of [T], its first row and the one past its last; ascending within a column,
            without overlap; strips without rows are skipped.
        count:  number of masks N.
        size:   (height, width) of the picture, which contains all strips.

    Returns:
        N masks with tight windows.
    """
    some = rows[1] > rows[0]
    owner, column = owner[some], column[some] * size[0]
    spans = _Spans(owner, column + rows[0][some], column + rows[1][some])
    picture = np.tile(np.array([0, 0, size[1], size[0]], np.int64), (count, 1))
    return _tighten(spans, picture, size)


def fill_boxes(boxes: Tensor, size: Size) -> RunLengths:
    """Code boxes as the masks of all pixels whose centres they contain.

    Args:
        boxes: [N, 4] xyxy in pixels, on any device.
        size:  (height, width) of the picture.

    Returns:
        N masks with tight windows; empty where a box holds no centre.
    """
    corners = np.ceil(boxes.detach().double().cpu().numpy() - 0.5).astype(np.int64)
    windows = np.clip(corners, 0, np.tile([size[1], size[0]], 2))
    windows[(windows[:, 2:] <= windows[:, :2]).any(axis=1)] = 0
    filled = _areas_of(windows)
    runs = np.stack([np.zeros_like(filled), filled], axis=1)[filled > 0]  # no 0-run, one 1-run
    starts = np.concatenate([[0], np.cumsum(2 * (filled > 0))]).astype(np.int64)
    return RunLengths(size, windows, runs.reshape(-1).astype(np.uint32), starts)


def decode(masks: RunLengths) -> Bytes:
    """Unpack masks into a dense stack; N x H x W bytes, so only where a consumer insists.

    Args:
        masks: N masks of a picture of H x W.

    Returns:
        [N, H, W] uint8, 0 or 1.
    """
    height, width = masks.size
    dense = np.zeros((len(masks), height, width), np.uint8)
    for i, (x0, y0, x1, y1), crop in _each_crop(masks):
        dense[i, y0:y1, x0:x1] = crop
    return dense


def decode_crops(masks: RunLengths) -> MaskCrops:
    """Unpack masks into the pixels of their windows.

    Args:
        masks: N masks.

    Returns:
        The same masks and windows, on the CPU.
    """
    pixels = _transpose(_columns(masks), masks.windows, by_column=True)
    return MaskCrops(masks.size, torch.from_numpy(masks.windows.copy()), torch.from_numpy(pixels))


def crops_from_dense(masks: Tensor) -> MaskCrops:
    """Cut dense masks down to tight crop windows.

    Args:
        masks: [N, H, W] bool or number.

    Returns:
        N masks on the device of the input.
    """
    return decode_crops(encode(masks)).to(masks.device)


def dense_crops(masks: MaskCrops) -> Tensor:
    """Lay crop windows out as a dense stack (tests and small pictures).

    Args:
        masks: N masks of a picture of H x W.

    Returns:
        [N, H, W] uint8, 0 or 1, on the device of the masks.
    """
    dense = masks.pixels.new_zeros((len(masks), *masks.size))
    starts = masks.starts.tolist()
    for i, (x0, y0, x1, y1) in enumerate(masks.windows.tolist()):
        pixels = masks.pixels[starts[i] : starts[i + 1]]
        dense[i, y0:y1, x0:x1] = pixels.reshape(y1 - y0, x1 - x0)
    return dense


def areas(masks: RunLengths) -> IntArray:
    """Count the pixels of every mask.

    Args:
        masks: N masks.

    Returns:
        [N] int64.
    """
    result = np.zeros(len(masks), np.int64)
    for part in split_by(np.diff(masks.starts), _RUNS_CHUNK):
        spans = _spans_of_runs(masks.select(np.arange(part.start, part.stop)))
        total = np.concatenate([[0], np.cumsum(spans.last - spans.first)])
        bounds = np.searchsorted(spans.owner, np.arange(part.stop - part.start + 1))
        result[part] = np.diff(total[bounds])
    return result


def tight_boxes(masks: RunLengths) -> npt.NDArray[np.float32]:
    """Find the smallest box around every mask.

    Args:
        masks: N masks.

    Returns:
        [N, 4] xyxy in pixels, right and bottom exclusive; zeros for an empty mask.
    """
    boxes = np.zeros((len(masks), 4), np.float32)
    for part in split_by(np.diff(masks.starts), _RUNS_CHUNK):
        some = masks.select(np.arange(part.start, part.stop))
        boxes[part] = _tighten(_spans_of_runs(some), some.windows, some.size).windows
    return boxes


def paint(masks: RunLengths, values: Sequence[int] | IntArray, *, fill: int) -> IntArray:
    """Paint masks one over another into a label map, without a dense stack.

    Args:
        masks:  N masks of a picture of H x W.
        values: [N] what each mask is painted with; later masks cover earlier ones.
        fill:   what remains where there is no mask.

    Returns:
        [H, W] int64.
    """
    labels = np.full(masks.size, fill, np.int64)
    for i, (x0, y0, x1, y1), crop in _each_crop(masks):
        labels[y0:y1, x0:x1][crop != 0] = values[i]
    return labels


def from_coco(rles: Sequence[Mapping[str, Any]], *, size: Size | None = None) -> RunLengths:
    """Read COCO run lengths of one picture.

    Args:
        rles: each with `size` [height, width] and `counts`, a list of runs or the packed string.
        size: (height, width) they must have; needed where the list may be empty.

    Returns:
        The masks, in order, with tight windows.

    Raises:
        DataError: counts that are damaged, do not cover the picture exactly, or belong to a
            picture of another size.
    """
    if size is None:
        if not rles:
            raise ValueError("an empty list of masks says nothing about the picture: pass size=")
        size = size_of(rles[0], 0)
    parts: list[IntArray] = []
    for i, rle in enumerate(rles):
        if size_of(rle, i) != size:
            raise DataError(
                f"mask {i} has run lengths of a picture of {size_of(rle, i)} (height, width), "
                f"the picture is {size}: export the annotation again for this picture"
            )
        parts.append(read_counts(rle.get("counts"), size, i))
    starts = np.cumsum([0, *(len(p) for p in parts)]).astype(np.int64)
    runs = np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.uint32)
    windows = np.tile(np.array([0, 0, size[1], size[0]], np.int64), (len(parts), 1))
    return _tighten(_spans_of_runs(RunLengths(size, windows, runs, starts)), windows, size)


def to_coco(masks: RunLengths) -> list[dict[str, Any]]:
    """Write COCO's compressed run lengths.

    Args:
        masks: N masks.

    Returns:
        N dicts with `size` [height, width] and `counts`, a string; they go into json as they are.
    """
    from faster_coco_eval.core import mask as coco

    height, width = masks.size
    plain: list[dict[str, Any]] = []
    for part in split_by(np.diff(masks.starts), _RUNS_CHUNK):
        some = masks.select(np.arange(part.start, part.stop))
        runs, starts = _runs_of(_to_picture(some), np.full(len(some), height * width))
        values, bounds = runs.tolist(), starts.tolist()
        lists = [values[a:b] for a, b in pairwise(bounds)]
        packed: Any = coco.frPyObjects(
            [{"size": [height, width], "counts": counts} for counts in lists], height, width
        )
        plain += [{"size": [height, width], "counts": p["counts"].decode("ascii")} for p in packed]
    return plain


def from_polygons(polygons: Sequence[Sequence[Sequence[float]]], size: Size) -> RunLengths:
    """Rasterise polygons by COCO's rule; the parts of one instance are united.

    The rule draws the outline on a grid five times finer, so its pixels are not those of a generic
    polygon fill.

    Args:
        polygons: per instance a list of parts, each a flat list x, y, x, y, ... of at least three
            points, in pixels.
        size:     (height, width) of the picture.

    Returns:
        One mask per instance.

    Raises:
        DataError: a part with fewer than three points, an odd count, or a value that is no number.
    """
    from faster_coco_eval.core import mask as coco

    rles: list[dict[str, Any]] = []
    for i, parts in enumerate(polygons):
        for part in parts:
            if len(part) < 6 or len(part) % 2 or not np.isfinite(part).all():
                raise DataError(
                    f"polygon of instance {i} has {len(part)} numbers: a part needs at least three "
                    "points x, y, all finite; correct or remove it"
                )
        drawn: Any = coco.frPyObjects([list(map(float, p)) for p in parts], *size) if parts else []
        rles.append(coco.merge(drawn) if drawn else {"size": list(size), "counts": []})
    return from_coco(rles, size=size)


def split_by(counts: IntArray, limit: int) -> Iterator[slice]:
    """Cut a sequence into groups that stay small.

    Args:
        counts: [N] how much each item weighs.
        limit:  largest weight of a group, unless a single item weighs more.

    Returns:
        Slices of neighbours, in order; together they are all N items.
    """
    total, first = np.concatenate([[0], np.cumsum(counts)]), 0
    while first < len(counts):
        last = int(np.searchsorted(total, total[first] + limit, side="right")) - 1
        last = max(last, first + 1)
        yield slice(first, last)
        first = last


def _areas_of(windows: IntArray) -> IntArray:
    return (windows[:, 2] - windows[:, 0]) * (windows[:, 3] - windows[:, 1])


def _spans_of_pixels(pixels: npt.NDArray[Any], bounds: IntArray) -> _Spans:
    """Spans of flat pixels; mask i owns pixels[bounds[i]:bounds[i + 1]]."""
    on = pixels if pixels.dtype == np.bool_ else pixels != 0
    rising, falling = on.copy(), on.copy()
    rising[1:] &= ~on[:-1]
    falling[:-1] &= ~on[1:]
    # A run never continues from one mask into the next.
    begins, ends = bounds[:-1][bounds[:-1] < len(on)], bounds[1:][bounds[1:] > 0] - 1
    rising[begins], falling[ends] = on[begins], on[ends]
    first, last = np.flatnonzero(rising), np.flatnonzero(falling) + 1
    owner = np.searchsorted(bounds[1:], first, side="right").astype(np.int64)
    return _Spans(owner, first - bounds[owner], last - bounds[owner])


def _spans_of_runs(masks: RunLengths) -> _Spans:
    """Spans in the frame of each mask's window; touching ones are joined."""
    owner = np.repeat(np.arange(len(masks)), np.diff(masks.starts))
    end = np.cumsum(masks.runs, dtype=np.int64)
    before = np.concatenate([[0], end])[masks.starts[:-1]]
    is_one = ((np.arange(len(owner)) - masks.starts[owner]) % 2 == 1) & (masks.runs > 0)
    last = (end - before[owner])[is_one]
    return _join(_Spans(owner[is_one], last - masks.runs[is_one].astype(np.int64), last))


def _join(spans: _Spans) -> _Spans:
    """The same pixels with touching spans of a mask made one."""
    if not len(spans.owner):
        return spans
    touches = (spans.owner[1:] == spans.owner[:-1]) & (spans.first[1:] == spans.last[:-1])
    head = np.concatenate([[True], ~touches])
    tail = np.concatenate([~touches, [True]])
    return _Spans(spans.owner[head], spans.first[head], spans.last[tail])


def _runs_of(spans: _Spans, frame_areas: IntArray) -> tuple[npt.NDArray[np.uint32], IntArray]:
    """Alternating runs that cover each mask's frame, and where each mask's runs start."""
    owner, first, last = spans
    counts = np.bincount(owner, minlength=len(frame_areas))
    bounds = np.concatenate([[0], np.cumsum(counts)])  # mask i owns spans bounds[i]:bounds[i + 1]
    covered = np.where(counts > 0, np.concatenate([last, [0]])[bounds[1:] - 1], 0)
    rest = frame_areas - covered
    starts = np.concatenate([[0], np.cumsum(2 * counts + (rest > 0))]).astype(np.int64)
    is_first = np.arange(len(owner)) == bounds[owner]
    previous = np.where(is_first, 0, np.concatenate([[0], last[:-1]]))
    runs = np.zeros(starts[-1], np.uint32)
    at = starts[owner] + 2 * (np.arange(len(owner)) - bounds[owner])
    runs[at], runs[at + 1] = first - previous, last - first
    runs[starts[1:][rest > 0] - 1] = rest[rest > 0]
    return runs, starts


def _tighten(spans: _Spans, frames: IntArray, size: Size) -> RunLengths:
    """Masks with the smallest windows, from spans in frames that may be larger."""
    owner, first, last = spans
    n = len(frames)
    h = (frames[:, 3] - frames[:, 1])[owner]
    x, y = first // h, first % h
    crosses = (last - 1) // h > x  # then the span reaches both the top and the bottom of the frame
    rows = np.stack([np.where(crosses, 0, y), np.where(crosses, h, y + last - first)])
    heads = np.flatnonzero(np.diff(owner, prepend=-1))
    some, tails = owner[heads], np.append(heads[1:], len(owner)) - 1
    tight = np.zeros((n, 4), np.int64)
    if len(some):
        tight[some, 0], tight[some, 2] = x[heads], (last - 1)[tails] // h[tails] + 1
        tight[some, 1] = np.minimum.reduceat(rows[0], heads)
        tight[some, 3] = np.maximum.reduceat(rows[1], heads)
    # A span that crosses columns forces the full height, so its pixels stay neighbours.
    moved = (x - tight[owner, 0]) * (tight[:, 3] - tight[:, 1])[owner] + y - tight[owner, 1]
    joined = _join(_Spans(owner, moved, moved + last - first))
    runs, starts = _runs_of(joined, _areas_of(tight))
    tight[some] += frames[some][:, [0, 1, 0, 1]]
    return RunLengths(size, tight, runs, starts)


def _to_picture(masks: RunLengths) -> _Spans:
    """Spans in the frame of the whole picture."""
    owner, first, last = _spans_of_runs(masks)
    windows, height = masks.windows, masks.size[0]
    h = (windows[:, 3] - windows[:, 1])[owner]
    column = first // h
    # Where the window is lower than the picture, a span is cut at every column it enters.
    pieces = np.where(h == height, 1, (last - 1) // h - column + 1)
    of = np.repeat(np.arange(len(owner)), pieces)
    nth = np.arange(len(of)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = np.where(nth == 0, first[of], (column[of] + nth) * h[of])
    end = np.where(nth == pieces[of] - 1, last[of], (column[of] + nth + 1) * h[of])
    x0, y0 = windows[owner[of], 0], windows[owner[of], 1]
    start = (begin // h[of] + x0) * height + begin % h[of] + y0
    return _join(_Spans(owner[of], start, start + end - begin))


def _columns(masks: RunLengths) -> Bytes:
    """Column-major pixels of all windows, one after another."""
    spans = _spans_of_runs(masks)
    bounds = np.concatenate([[0], np.cumsum(_areas_of(masks.windows))]).astype(np.int64)
    edges = np.stack([spans.first, spans.last], 1) + bounds[spans.owner][:, None]
    edges = np.concatenate([[0], edges.reshape(-1), bounds[-1:]])
    value = np.zeros(len(edges) - 1, np.uint8)
    value[1::2] = 1
    return np.repeat(value, np.diff(edges))


def _transpose(pixels: Bytes, windows: IntArray, *, by_column: bool) -> Bytes:
    """Row-major pixels from column-major ones, window after window, or the reverse."""
    result = np.empty_like(pixels)
    at = 0
    for x0, y0, x1, y1 in windows.tolist():
        shape = (x1 - x0, y1 - y0) if by_column else (y1 - y0, x1 - x0)
        end = at + shape[0] * shape[1]
        result[at:end].reshape(shape[::-1])[:] = pixels[at:end].reshape(shape).T
        at = end
    return result


def _each_crop(masks: RunLengths) -> Iterator[tuple[int, list[int], Bytes]]:
    """Index, window and pixels [h, w] of every mask; unpacked a bounded number at a time."""
    for group in split_by(_areas_of(masks.windows), _CHUNK):
        part = masks.select(np.arange(group.start, group.stop))
        columns, at = _columns(part), 0
        for i, window in enumerate(part.windows.tolist(), group.start):
            x0, y0, x1, y1 = window
            area = (x1 - x0) * (y1 - y0)
            yield i, window, columns[at : at + area].reshape(x1 - x0, y1 - y0).T
            at += area
