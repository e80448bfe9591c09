"""Instances as one map of numbers: painted from crops, and coded as run lengths."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pixelwise.ops.rle import encode_strips, split_by
from pixelwise.types import IntArray, MaskCrops, RunLengths, Size

Edges = npt.NDArray[np.int32]

_RUNS_CHUNK = 1 << 18  # runs coded at a time


def paint_crops(masks: MaskCrops, order: Tensor) -> Tensor:
    """Paint masks one over another into a map of their numbers, without a dense stack.

    Args:
        masks: N masks of a picture of H x W.
        order: [N] int64, a permutation; later masks cover earlier ones.

    Returns:
        [H, W] int64 on the device of the masks: the number 0..N-1 of the mask, -1 for none.
    """
    painted = torch.full(masks.size, -1, dtype=torch.int64, device=masks.pixels.device)
    starts, windows = masks.starts.tolist(), masks.windows.tolist()
    for i in order.tolist():
        x0, y0, x1, y1 = windows[i]
        crop = masks.pixels[starts[i] : starts[i + 1]].view(y1 - y0, x1 - x0)
        painted[y0:y1, x0:x1].masked_fill_(crop != 0, i)
    return painted


def encode_label_map(labels: Tensor, count: int) -> RunLengths:
    """Code a map of numbers as one mask per number; memory grows with the outlines.

    Args:
        labels: [H, W] integers, 0..N-1, or negative where there is no instance.
        count:  N.

    Returns:
        N masks with tight windows; empty where a number does not occur.
    """
    grid = labels.cpu().numpy()
    height, width = grid.shape
    columns = grid.T  # [W, H]: runs go down the columns
    begins = np.ones((width, height), bool)
    np.not_equal(columns[:, 1:], columns[:, :-1], out=begins[:, 1:])
    owner = columns[begins].astype(np.int32)  # [runs], column by column
    # Every column begins a run, so each run ends where the next begins.
    edges = np.append(np.flatnonzero(begins), height * width).astype(np.int32)
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner[owner >= 0], minlength=count)
    order = order[len(order) - counts.sum() :]  # without the runs of no instance
    return RunLengths.concat(_coded(order, counts, edges, (height, width)))


def _coded(order: IntArray, counts: IntArray, edges: Edges, size: Size) -> Iterator[RunLengths]:
    """The masks whose runs `order` lists, counts [N] for each, in pieces; nothing first.

    Args:
        order:  [T] positions in `edges`, mask by mask.
        counts: [N] runs of each mask.
        edges:  [runs + 1] column-major positions in the picture where runs begin and end.
        size:   (height, width) of the picture.
    """
    yield RunLengths.empty(size)
    bounds = np.concatenate([[0], np.cumsum(counts)])
    for part in split_by(counts, _RUNS_CHUNK):
        runs = order[bounds[part.start] : bounds[part.stop]]
        column, first = np.divmod(edges[runs].astype(np.int64), size[0])
        last = edges[runs + 1].astype(np.int64) - column * size[0]
        owner = np.repeat(np.arange(part.stop - part.start), counts[part])
        yield encode_strips(owner, column, (first, last), count=part.stop - part.start, size=size)
