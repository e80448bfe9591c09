"""Mask voting: the boxes that a suppression removes still have a say in the mask.

All regions around a kept detection draw their masks into the picture, each with the weight of its
score; the pixels with enough votes are the mask of the detection, and their extent is its box.

Votes are never a stack of pictures. Down a column of pixels, a mask is a few strips; a strip adds
its weight where it begins and takes it away where it ends, and one running sum turns these
differences into votes. Memory is that of the windows of a few detections at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pixelwise.ops.boxes import pairwise_iou
from pixelwise.ops.masks import resized_strips
from pixelwise.ops.rle import encode_columns, split_by
from pixelwise.types import IntArray, RunLengths, Size

_PIXELS = 1 << 22  # of windows at a time: 32 MB of votes
_STRIPS = 1 << 19  # drawn at a time: 4 MB for each temporary
_ROUNDING = 1e-9  # a running sum of weights that ends this close below the threshold has reached it


class Votes(NamedTuple):
    """The votes for some detections, in the pixels of their windows.

    windows: [n, 4] xyxy in the picture. pixels: [total] float64, window after window, each down its
    columns. first: position of the first of these detections.
    """

    windows: IntArray
    pixels: npt.NDArray[np.float64]
    first: int


def vote_weights(
    boxes: Tensor, scores: Tensor, kept: Tensor, labels: Tensor, *, iou_thresh: float = 0.5
) -> Tensor:
    """Which regions vote for which detections, and with what weight.

    Args:
        boxes:  [R, 4] xyxy of all regions.
        scores: [R, K] of every class.
        kept:   [N] int64, the regions that are detections.
        labels: [N] int64, the class of each.
        iou_thresh: a region votes for a detection from this overlap on.

    Returns:
        [N, R] weights, each row sums to 1; the region's score of that class over the sum of all
        voters'.

    Source:  FCIS (arXiv:1611.07709), section 3.3, after MNC (arXiv:1512.04412), section 4.
    """
    votes = scores[:, labels].T * (pairwise_iou(boxes[kept], boxes) >= iou_thresh)  # [N, R]
    return votes / votes.sum(dim=1, keepdim=True)


def vote_masks(
    masks: Tensor, boxes: Tensor, weights: Tensor, size: Size, *, thresh: float = 0.4
) -> RunLengths:
    """Merge the masks of regions into those of detections.

    Args:
        masks:   [R, S, S] in [0, 1], inside the region's box.
        boxes:   [R, 4] xyxy in pixels of the picture.
        weights: [N, R] of `vote_weights`.
        size:    (height, width) of the picture.
        thresh:  a region's pixel is inside its mask from this probability on, and a picture's
                 pixel inside the merged mask from this sum of weights on; above 0.

    Returns:
        N masks with tight windows; one may be empty.

    Source:  FCIS (arXiv:1611.07709), section 3.3.
    Differs: the released code shrinks the votes within the new box to S x S and enlarges them
        again for the result; here the pixels with enough votes are the result.
    """
    parts = (
        encode_columns(votes.pixels >= thresh - _ROUNDING, votes.windows, size)
        for votes in cast_votes(masks, boxes, weights, size, thresh=thresh)
    )
    return RunLengths.concat(chain([RunLengths.empty(size)], parts))


def cast_votes(
    masks: Tensor, boxes: Tensor, weights: Tensor, size: Size, *, thresh: float = 0.4
) -> Iterator[Votes]:
    """The sums behind `vote_masks`, which see for the arguments.

    Yields:
        the votes for a few detections at a time, in order, all N together.
    """
    share: npt.NDArray[np.float64] = weights.detach().cpu().double().numpy().copy()  # [N, R]
    frames = _whole_pixels(boxes, size)  # [R, 4]
    share[:, (frames[:, 2:] <= frames[:, :2]).any(axis=1)] = 0
    voters = np.flatnonzero((share > 0).any(axis=0))
    share, frames = share[:, voters], frames[voters]
    maps = masks.detach().float().cpu().numpy()[voters]
    owner, column, rows = resized_strips(maps, frames, thresh)
    bounds = np.searchsorted(owner, np.arange(len(voters) + 1))  # voter v owns bounds[v]:[v + 1]
    strips = np.stack([column, *rows]).astype(np.int32)  # [3, T]
    del owner, column, rows
    windows = _windows(share, frames)
    areas = (windows[:, 2] - windows[:, 0]) * (windows[:, 3] - windows[:, 1])
    for part in split_by(areas, _PIXELS):
        pixels = _draw(share[part], strips, bounds, windows[part])
        yield Votes(windows[part], pixels, part.start)


def _whole_pixels(boxes: Tensor, size: Size) -> IntArray:
    """Boxes with corners at whole pixels, inside the picture; halves go to even numbers."""
    corners = boxes.detach().double().cpu().numpy()
    # The last pixel is rounded, not the edge behind it; it decides halves only.
    ends = [np.rint(corners[:, :2]), np.rint(corners[:, 2:] - 1) + 1]
    limit = np.tile([size[1], size[0]], 2)
    return np.clip(np.concatenate(ends, axis=1), 0, limit).astype(np.int64)


def _windows(share: npt.NDArray[np.float64], frames: IntArray) -> IntArray:
    """[N, 4] the smallest window around all voters of each detection; zeros where it has none."""
    votes = (share > 0)[:, :, None]  # [N, V, 1]
    far = np.iinfo(np.int64).max
    low = np.where(votes, frames[None, :, :2], far).min(axis=1, initial=far)
    high = np.where(votes, frames[None, :, 2:], 0).max(axis=1, initial=0)
    return np.concatenate([np.where(high > 0, low, 0), high], axis=1)


def _draw(
    share: npt.NDArray[np.float64], strips: npt.NDArray[Any], bounds: IntArray, windows: IntArray
) -> npt.NDArray[np.float64]:
    """The votes [total] in the pixels of n windows.

    Args:
        share:   [n, V] weights.
        strips:  [3, T] column, first row and one past the last, voter after voter.
        bounds:  [V + 1] where each voter's strips begin.
        windows: [n, 4] xyxy.
    """
    heights = windows[:, 3] - windows[:, 1]
    offsets = np.concatenate([[0], np.cumsum(heights * (windows[:, 2] - windows[:, 0]))])
    votes = np.zeros(offsets[-1] + 1)  # differences first; the last strip may end behind all pixels
    of, voter = np.nonzero(share)
    lengths = np.diff(bounds)[voter]  # [pairs]
    for part in split_by(lengths, _STRIPS):
        pair = np.repeat(np.arange(part.start, part.stop), lengths[part])  # [strips]
        within = np.arange(len(pair)) - np.repeat(
            np.cumsum(lengths[part]) - lengths[part], lengths[part]
        )
        column, first, last = strips[:, bounds[voter[pair]] + within]
        n = of[pair]
        # Columns lie one behind another, so what ends at the foot of one ends at the next's head.
        head = offsets[n] + (column - windows[n, 0]) * heights[n] - windows[n, 1]
        weight = share[n, voter[pair]]
        np.add.at(votes, head + first, weight)
        np.subtract.at(votes, head + last, weight)
    return np.cumsum(votes, out=votes)[:-1]
