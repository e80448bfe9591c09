"""Instances as one map of numbers: painted from crops, and coded as run lengths."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pixelwise.ops.rle import encode_strips
from pixelwise.types import MaskCrops, RunLengths


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
    column, first = np.nonzero(begins)  # column by column, each starts a run
    ends = np.append(first[1:], 0)
    last = np.where(ends == 0, height, ends)
    owner = columns[column, first].astype(np.int64)
    kept = np.flatnonzero(owner >= 0)
    kept = kept[np.argsort(owner[kept], kind="stable")]
    rows = (first[kept].astype(np.int64), last[kept].astype(np.int64))
    return encode_strips(
        owner[kept], column[kept].astype(np.int64), rows, count=count, size=(height, width)
    )
