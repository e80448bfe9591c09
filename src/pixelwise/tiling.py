"""Pictures too large for one pass: one rule for the tiles, one for the seams, for both tasks.

Tiles lie on a grid with a fixed overlap; the last of each row and column is pushed back inside, so
every tile has the full size (unless the picture is smaller than a tile).

Seams. Semantic: probabilities of overlapping tiles are averaged, weighted by the distance to the
border of their tile, so a pixel follows the tile that sees it best. Instance: an object that an
inner border of its tile cuts is dropped where a neighbour shows it whole; pieces of an object that
no tile shows whole are united; of several whole views of one object the best scored one stays.
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
from pixelwise.types import (
    InstancePrediction,
    IntArray,
    MaskCrops,
    RunLengths,
    SemanticPrediction,
    Size,
)

_Crop = tuple[npt.NDArray[np.uint8], tuple[int, int]]  # pixels [h, w] and their (left, top)

_SAME_OBJECT = 0.5  # share that must be covered, within the shared part of two tiles
_NEXT_TO_NOTHING = 1e-6  # weight of what a tile says in its margin
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
        margin_px:   what a tile says this close to a border of it that is no border of the picture
            counts only where no other tile says anything: the network saw too little there. An
            overlap of twice as much leaves no such place. Source: U-Net (arXiv:1505.04597),
            figure 2, the overlap-tile strategy.
        with_probs:  keep the probabilities of the whole picture too, for what comes after.
    """

    def __init__(
        self, size: Size, num_classes: int, *, margin_px: int = 0, with_probs: bool = False
    ) -> None:
        self.size = size
        self.margin_px = margin_px
        self.probs = torch.empty(num_classes, *size) if with_probs else None
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
        weights = blend_weights((bottom - top, right - left)) * self._trust(window)
        part = self.band[:, top - self.top : bottom - self.top, left:right]
        part += probs.to("cpu", torch.float32) * weights

    def _trust(self, window: Sequence[int]) -> Tensor:
        """[h, w] 1 inside a tile, next to nothing in its margins."""
        left, top, right, bottom = (int(v) for v in window)
        trust = torch.full((bottom - top, right - left), _NEXT_TO_NOTHING)
        rows, columns = (
            slice(
                self.margin_px if start > 0 else 0,
                stop - start - (self.margin_px if stop < length else 0),
            )
            for start, stop, length in ((top, bottom, self.size[0]), (left, right, self.size[1]))
        )
        trust[rows, columns] = 1.0
        return trust

    def finish(self) -> SemanticPrediction:
        """The whole picture: labels [H, W]; with `probs` [K, H, W] where they were kept."""
        self._decide(self.size[0])
        return SemanticPrediction(labels=self.labels, probs=self.probs)

    def _decide(self, row: int) -> None:
        """Fix the labels of all rows above this one; a weighted sum has the mean's argmax."""
        count = min(row - self.top, self.band.shape[1])
        if count > 0:
            sums = self.band[:, :count]
            rows = slice(self.top, self.top + count)
            self.labels[rows] = sums.argmax(0).to(self.labels.dtype)
            if self.probs is not None:
                self.probs[:, rows] = sums / sums.sum(0)
            self.band = self.band[:, count:].clone()
            self.top += count


@dataclass(frozen=True, eq=False)
class _Views:
    """All detections of all tiles, in picture coordinates."""

    found: InstancePrediction
    tile: IntArray  # [N] which tile saw it
    cut: npt.NDArray[np.bool_]  # [N] whether an inner tile border cuts it


@dataclass(frozen=True, eq=False)
class _Links:
    """Pairs of views of different tiles that have pixels in common.

    Args:
        first, second: [P] the two views.
        covered: [P] share of the first that the second covers, within both tiles.
        covers:  [P] share of the second that the first covers.
    """

    first: IntArray
    second: IntArray
    covered: npt.NDArray[np.float64]
    covers: npt.NDArray[np.float64]


def merge_instances(
    predictions: Sequence[InstancePrediction], windows: IntArray, size: Size
) -> InstancePrediction:
    """Join the objects found in each tile; an object seen by several tiles comes out once.

    Two views of the same class are compared within the part that their tiles share. Whole views
    are taken best score first, and one that agrees with a taken one (more than half of the smaller
    is common) is left out. Then a cut view goes where a taken whole one covers more than half of
    it, and the cut ones that remain are united with all they agree with, directly or through
    others: an object may span many tiles. A union has the best of its scores.

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
    links = _compare(views, windows)
    group = _group(views, links)
    merged = _unite(views.found, group)
    return merged.select(merged.scores.argsort(descending=True, stable=True))


def _group(views: _Views, links: _Links) -> IntArray:
    """[N] the view that stands for each one; -1 for those that are left out."""
    scores = views.found.scores.numpy()
    neighbours: list[list[int]] = [[] for _ in scores]
    covered_by: list[list[int]] = [[] for _ in scores]
    for i, j, i_in_j, j_in_i in zip(
        *(column.tolist() for column in (links.first, links.second, links.covered, links.covers)),
        strict=True,
    ):
        if max(i_in_j, j_in_i) > _SAME_OBJECT:
            neighbours[i].append(j)
            neighbours[j].append(i)
        if i_in_j > _SAME_OBJECT:
            covered_by[i].append(j)
        if j_in_i > _SAME_OBJECT:
            covered_by[j].append(i)
    group = np.full(len(scores), -1, np.int64)
    best_first = np.argsort(-scores, kind="stable").tolist()
    for i in (i for i in best_first if not views.cut[i]):
        if not any(group[j] == j for j in neighbours[i]):
            group[i] = i
    rest = [
        i
        for i in best_first
        if views.cut[i] and not any(group[j] == j and not views.cut[j] for j in covered_by[i])
    ]
    pieces = set(rest)
    for i in rest:
        waiting = [i] if group[i] < 0 else []
        while waiting:
            member = waiting.pop()
            group[member] = i
            waiting += [j for j in neighbours[member] if j in pieces and group[j] < 0]
    return group


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
    return np.any(inner & (distance < _TOUCH_PX), axis=1)


def _compare(views: _Views, windows: IntArray) -> _Links:
    """Compare all views of different tiles whose boxes meet."""
    bounds = np.searchsorted(views.tile, np.arange(len(windows) + 1))
    found: list[tuple[int, int, float, float]] = []
    for a, b in _neighbours(windows):
        shared = _intersection(windows[a], windows[b])
        first, second = (_near(views, bounds[t], bounds[t + 1], shared) for t in (a, b))
        found += _compare_tiles(views.found, first, second, shared)
    columns = np.array(found, np.float64).reshape(-1, 4).T
    return _Links(
        first=columns[0].astype(np.int64),
        second=columns[1].astype(np.int64),
        covered=columns[2],
        covers=columns[3],
    )


def _compare_tiles(
    found: InstancePrediction, first: IntArray, second: IntArray, shared: IntArray
) -> list[tuple[int, int, float, float]]:
    """(i, j, share of i that j covers, share of j that i covers), within the shared region."""
    boxes, labels = found.masks.windows, found.labels.numpy()
    low = np.maximum(boxes[first][:, None, :2], boxes[second][None, :, :2])
    high = np.minimum(boxes[first][:, None, 2:], boxes[second][None, :, 2:])
    low, high = np.maximum(low, shared[:2]), np.minimum(high, shared[2:])
    same = labels[first][:, None] == labels[second][None, :]
    rows, columns = np.nonzero(np.all(low < high, axis=2) & same)
    if not len(rows):
        return []
    crops = [_crops(found.masks.select(k), shared) for k in (first, second)]
    links: list[tuple[int, int, float, float]] = []
    for r, c in zip(rows.tolist(), columns.tolist(), strict=True):
        common = _overlap(crops[0][r], crops[1][c])
        areas = [np.count_nonzero(crops[0][r][0]), np.count_nonzero(crops[1][c][0])]
        if common:
            links.append((int(first[r]), int(second[c]), common / areas[0], common / areas[1]))
    return links


def _neighbours(windows: IntArray) -> Iterator[tuple[int, int]]:
    """Pairs of tiles that overlap."""
    for a in range(len(windows)):
        rest = windows[a + 1 :]
        low = np.maximum(rest[:, :2], windows[a, :2])
        high = np.minimum(rest[:, 2:], windows[a, 2:])
        for b in np.flatnonzero(np.all(low < high, axis=1)).tolist():
            yield a, a + 1 + b


def _near(views: _Views, start: int, stop: int, region: IntArray) -> IntArray:
    """Which of the views start..stop have a mask window that meets a region."""
    boxes = views.found.masks.windows[start:stop]
    meets = (np.maximum(boxes[:, :2], region[:2]) < np.minimum(boxes[:, 2:], region[2:])).all(1)
    return start + np.flatnonzero(meets)


def _intersection(a: IntArray, b: IntArray) -> IntArray:
    return np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])])


def _crops(masks: RunLengths, region: IntArray) -> list[_Crop]:
    """Every mask within a region: its pixels there, and their (left, top) in the picture."""
    crops = decode_crops(masks)
    at, pixels = crops.starts.tolist(), crops.pixels.numpy()
    low_x, low_y, high_x, high_y = region.tolist()
    found: list[_Crop] = []
    for i, (x1, y1, x2, y2) in enumerate(masks.windows.tolist()):
        mask = pixels[at[i] : at[i + 1]].reshape(y2 - y1, x2 - x1)
        left, top = max(0, low_x - x1), max(0, low_y - y1)
        part = mask[top : max(top, high_y - y1), left : max(left, high_x - x1)]
        found.append((part, (x1 + left, y1 + top)))
    return found


def _overlap(a: _Crop, b: _Crop) -> int:
    """Number of pixels that two masks have in common."""
    (first, (ax, ay)), (second, (bx, by)) = a, b
    x1, y1 = max(ax, bx), max(ay, by)
    x2 = min(ax + first.shape[1], bx + second.shape[1])
    y2 = min(ay + first.shape[0], by + second.shape[0])
    if x1 >= x2 or y1 >= y2:
        return 0
    both = (
        first[y1 - ay : y2 - ay, x1 - ax : x2 - ax] & second[y1 - by : y2 - by, x1 - bx : x2 - bx]
    )
    return int(np.count_nonzero(both))


def _unite(found: InstancePrediction, group: IntArray) -> InstancePrediction:
    """One object per group; those of several pieces get the union of mask and box."""
    heads = (group == np.arange(len(group))).nonzero()[0]
    sizes = np.bincount(group[group >= 0], minlength=len(group))[heads]
    merged = found.select(torch.from_numpy(heads))
    boxes = merged.boxes.clone()
    several = (sizes > 1).nonzero()[0]
    unions: list[RunLengths] = []
    for k in several.tolist():
        members = (group == heads[k]).nonzero()[0]
        some = found.boxes[torch.from_numpy(members)]
        boxes[k] = torch.cat([some[:, :2].amin(0), some[:, 2:].amax(0)])
        unions.append(_union(found.masks.select(members)))
    masks = RunLengths.concat([merged.masks, *unions])
    position = np.arange(len(heads))
    position[several] = len(heads) + np.arange(len(several))
    return replace(merged, boxes=boxes, masks=masks.select(position))


def _union(masks: RunLengths) -> RunLengths:
    """All masks as one."""
    filled = masks.windows[masks.windows[:, 2] > masks.windows[:, 0]]
    region = np.concatenate([filled[:, :2].min(0), filled[:, 2:].max(0)])
    x1, y1, x2, y2 = region.tolist()
    dense = np.zeros((y2 - y1, x2 - x1), np.uint8)
    for part, (left, top) in _crops(masks, region):
        dense[top - y1 :, left - x1 :][: part.shape[0], : part.shape[1]] |= part
    pixels = torch.from_numpy(dense.reshape(-1))
    return encode_crops(MaskCrops(masks.size, torch.from_numpy(region)[None], pixels))
