"""Pictures too large for one pass: one rule for the tiles, one for the seams, for both tasks.

Tiles lie on a grid with a fixed overlap; the last of each row and column is pushed back inside, so
every tile has the full size (unless the picture is smaller than a tile).

Seams. Semantic: probabilities of overlapping tiles are averaged, weighted by the distance to the
border of their tile, so a pixel follows the tile that sees it best. Instance: an object cut by a
tile's border is dropped where a neighbour shows the same object, and pieces that are cut in every
tile are united.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pixelwise.errors import UsageError
from pixelwise.ops.rle import decode_crops, encode_crops
from pixelwise.types import InstancePrediction, IntArray, MaskCrops, RunLengths, Size

_SAME_OBJECT = 0.5  # share of the smaller piece, within the overlap, that two views must agree on
_TOUCH_PX = 1.5  # a box this close to a tile's border counts as cut


def window_starts(length: int, tile: int, stride: int) -> list[int]:
    """First pixel of each tile along one axis; the last tile ends at the picture's end.

    Raises:
        UsageError: the stride is not between 1 and the tile.
    """
    if not 1 <= stride <= tile:
        raise UsageError(f"tiles of {tile} px need a stride of 1..{tile}, not {stride}")
    if length <= tile:
        return [0]
    count = -(-(length - tile) // stride) + 1
    return [min(i * stride, length - tile) for i in range(count)]


def tile_windows(size: Size, tile: Size, *, overlap_px: int) -> IntArray:
    """The tiles of a picture, row after row.

    Args:
        size:       (height, width) of the picture.
        tile:       (height, width) of a tile.
        overlap_px: shared by neighbours, at least.

    Returns:
        [T, 4] int64 xyxy, inside the picture.

    Raises:
        UsageError: the overlap is negative or not smaller than the tile.
    """
    if not 0 <= overlap_px < min(tile):
        raise UsageError(f"an overlap of {overlap_px} px does not fit tiles of {tile[0]}x{tile[1]}")
    tops = window_starts(size[0], tile[0], tile[0] - overlap_px)
    lefts = window_starts(size[1], tile[1], tile[1] - overlap_px)
    rows = [
        (left, top, min(left + tile[1], size[1]), min(top + tile[0], size[0]))
        for top in tops
        for left in lefts
    ]
    return np.asarray(rows, np.int64)


def blend_weights(size: Size) -> Tensor:
    """[h, w] in (0, 1]: 1 in the middle of a tile, falling linearly towards its border."""
    axes = [
        torch.minimum(torch.arange(n) + 0.5, n - torch.arange(n) - 0.5) / (0.5 * n) for n in size
    ]
    return axes[0][:, None] * axes[1][None, :]


class SemanticStitcher:
    """Joins class probabilities of tiles into labels, holding no more than one row of tiles.

    Tiles come in the order of `tile_windows`; rows of pixels that no later tile reaches are decided
    at once, so memory is K x (tile height) x (picture width), never the whole picture.

    Args:
        size:        (height, width) of the picture.
        num_classes: K.
    """

    def __init__(self, size: Size, num_classes: int) -> None:
        self.size = size
        dtype = torch.uint8 if num_classes <= 255 else torch.int64
        self.labels = torch.zeros(size, dtype=dtype)
        self.band = torch.zeros(num_classes, 0, size[1])  # [K, rows not decided yet, W]
        self.top = 0  # picture row of the band's first row

    def add(self, probs: Tensor, window: Sequence[int]) -> None:
        """Blend one tile in.

        Args:
            probs:  [K, h, w] on any device.
            window: xyxy of the tile.
        """
        left, top, right, bottom = (int(v) for v in window)
        self._decide(top)
        missing = bottom - self.top - self.band.shape[1]
        if missing > 0:
            self.band = torch.cat(
                [self.band, self.band.new_zeros(len(probs), missing, self.size[1])], 1
            )
        weights = blend_weights((bottom - top, right - left))
        part = self.band[:, top - self.top : bottom - self.top, left:right]
        part += probs.to("cpu", torch.float32) * weights

    def finish(self) -> Tensor:
        """[H, W] labels of the whole picture."""
        self._decide(self.size[0])
        return self.labels

    def _decide(self, row: int) -> None:
        """Fix the labels of all rows above this one; a weighted sum has the mean's argmax."""
        count = min(row - self.top, self.band.shape[1])
        if count > 0:
            decided = self.band[:, :count].argmax(0)
            self.labels[self.top : self.top + count] = decided.to(self.labels.dtype)
            self.band = self.band[:, count:].clone()
            self.top += count


@dataclass(frozen=True, eq=False)
class _Views:
    """All detections of all tiles, in picture coordinates."""

    found: InstancePrediction
    tile: IntArray  # [N] which tile saw it
    cut: npt.NDArray[np.bool_]  # [N] whether an inner tile border cuts it


def merge_instances(
    predictions: Sequence[InstancePrediction], windows: IntArray, size: Size
) -> InstancePrediction:
    """Join the objects found in each tile; an object seen by several tiles comes out once.

    Whole objects go first, best score first, then cut ones. A cut object is dropped where an
    accepted one of its class covers more than half of it within the shared part of their tiles; if
    that one is cut as well, the two are united. Two whole views of one object are one.

    Args:
        predictions: one per tile, in pixels of the tile.
        windows:     [T, 4] xyxy of the tiles, as from `tile_windows`.
        size:        (height, width) of the picture.

    Returns:
        The objects in picture pixels, best first.
    """
    views = _gather(predictions, windows, size)
    if not len(views.found):
        return views.found
    matches = _same_objects(views, windows)
    scores = views.found.scores.numpy()
    order = np.lexsort((-scores, views.cut))
    group = np.full(len(order), -1, np.int64)  # the accepted object that a view belongs to
    for i in order.tolist():
        friends = [int(group[j]) for j in matches[i] if group[j] >= 0]
        group[i] = friends[0] if friends else i
    accepted = [i for i in order.tolist() if group[i] == i]
    pieces = [
        [j for j in (group == i).nonzero()[0].tolist() if j == i or views.cut[i]] for i in accepted
    ]
    merged = _unite(views.found, accepted, pieces)
    return merged.select(merged.scores.argsort(descending=True, stable=True))


def _gather(predictions: Sequence[InstancePrediction], windows: IntArray, size: Size) -> _Views:
    parts: list[InstancePrediction] = []
    cut: list[npt.NDArray[np.bool_]] = []
    for prediction, window in zip(predictions, windows.tolist(), strict=True):
        left, top = window[0], window[1]
        boxes = prediction.boxes + torch.tensor([left, top, left, top], dtype=torch.float32)
        masks = prediction.masks
        occupied = (masks.windows[:, 2] > masks.windows[:, 0])[:, None]
        shifted = np.where(occupied, masks.windows + np.asarray([left, top, left, top]), 0)
        moved = RunLengths(size, shifted, masks.runs, masks.starts)
        parts.append(replace(prediction, boxes=boxes, masks=moved))
        cut.append(_is_cut(shifted, window, size))
    ranked = [p.mask_scores for p in parts]
    found = InstancePrediction(
        boxes=torch.cat([p.boxes for p in parts]),
        labels=torch.cat([p.labels for p in parts]),
        scores=torch.cat([p.scores for p in parts]),
        masks=RunLengths.concat([p.masks for p in parts]),
        mask_scores=torch.cat([r for r in ranked if r is not None]) if None not in ranked else None,
    )
    tile = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    return _Views(found, tile, np.concatenate(cut))


def _is_cut(boxes: IntArray, window: Sequence[int], size: Size) -> npt.NDArray[np.bool_]:
    """[N] whether a box reaches a border of its tile that is no border of the picture."""
    left, top, right, bottom = window
    inner = np.asarray([left > 0, top > 0, right < size[1], bottom < size[0]])
    distance = np.abs(boxes - np.asarray([left, top, right, bottom]))  # [N, 4]
    return (inner & (distance < _TOUCH_PX)).any(1)


def _same_objects(views: _Views, windows: IntArray) -> list[list[int]]:
    """For every detection, those of other tiles that show the same object."""
    matches: list[list[int]] = [[] for _ in range(len(views.found))]
    for a, b in _neighbours(windows):
        shared = _intersection(windows[a], windows[b])
        first, second = (_inside(views, tile, shared) for tile in (a, b))
        for i in first:
            for j in second:
                if _agree(views.found, i, j, shared):
                    matches[i].append(j)
                    matches[j].append(i)
    return matches


def _neighbours(windows: IntArray) -> Iterator[tuple[int, int]]:
    """Pairs of tiles that overlap."""
    for a in range(len(windows)):
        rest = windows[a + 1 :]
        low = np.maximum(rest[:, :2], windows[a, :2])
        high = np.minimum(rest[:, 2:], windows[a, 2:])
        for b in (low < high).all(1).nonzero()[0].tolist():
            yield a, a + 1 + b


def _inside(views: _Views, tile: int, region: IntArray) -> list[int]:
    """Detections of a tile whose mask window meets a region."""
    boxes = views.found.masks.windows
    meets = (np.maximum(boxes[:, :2], region[:2]) < np.minimum(boxes[:, 2:], region[2:])).all(1)
    return ((views.tile == tile) & meets).nonzero()[0].tolist()


def _intersection(a: IntArray, b: IntArray) -> IntArray:
    return np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])])


def _agree(found: InstancePrediction, i: int, j: int, shared: IntArray) -> bool:
    """Whether two masks show the same object, judged within the shared part of their tiles."""
    boxes = found.masks.windows
    both = _intersection(boxes[i], boxes[j])
    if int(found.labels[i]) != int(found.labels[j]) or (both[:2] >= both[2:]).any():
        return False
    first, second = (_crop(found.masks, k, shared) for k in (i, j))
    smaller = min(int(first.sum()), int(second.sum()))
    return smaller > 0 and int((first & second).sum()) > _SAME_OBJECT * smaller


def _crop(masks: RunLengths, i: int, region: IntArray) -> npt.NDArray[np.bool_]:
    """[h, w] one mask within a region."""
    x1, y1, x2, y2 = (int(v) for v in region)
    out = np.zeros((y2 - y1, x2 - x1), np.bool_)
    one = decode_crops(masks.select([i]))
    u1, v1, u2, v2 = (int(v) for v in one.windows[0])
    pixels = one.pixels.numpy().reshape(v2 - v1, u2 - u1)
    low_x, low_y, high_x, high_y = max(x1, u1), max(y1, v1), min(x2, u2), min(y2, v2)
    if low_x < high_x and low_y < high_y:
        out[low_y - y1 : high_y - y1, low_x - x1 : high_x - x1] = pixels[
            low_y - v1 : high_y - v1, low_x - u1 : high_x - u1
        ].astype(np.bool_)
    return out


def _unite(
    found: InstancePrediction, accepted: Sequence[int], pieces: Sequence[Sequence[int]]
) -> InstancePrediction:
    """The accepted objects; those with several pieces get the union of mask and box."""
    merged = found.select(torch.tensor(accepted))
    boxes = merged.boxes.clone()
    masks = [merged.masks.select([k]) for k in range(len(accepted))]
    for k, group in enumerate(pieces):
        if len(group) > 1:
            some = found.boxes[list(group)]
            boxes[k] = torch.cat([some[:, :2].amin(0), some[:, 2:].amax(0)])
            masks[k] = _union(found.masks.select(list(group)))
    return replace(merged, boxes=boxes, masks=RunLengths.concat(masks))


def _union(masks: RunLengths) -> RunLengths:
    """All masks as one."""
    filled = masks.windows[masks.windows[:, 2] > masks.windows[:, 0]]
    region = np.concatenate([filled[:, :2].min(0), filled[:, 2:].max(0)])
    dense = np.logical_or.reduce([_crop(masks, i, region) for i in range(len(masks))])
    crop = MaskCrops(
        masks.size,
        torch.from_numpy(region)[None],
        torch.from_numpy(dense.astype(np.uint8).reshape(-1)),
    )
    return encode_crops(crop)
