"""Connected components of a binary picture."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def connected_components(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Number the connected pieces of a mask; pixels that touch at a corner are connected.

    Works on the runs of each row, so its cost is that of the outline, not of the area.

    Args:
        mask: [H, W] bool.

    Returns:
        [H, W] int32, 0 outside the mask, 1..n by the first pixel of each piece in reading order.
    """
    height, width = mask.shape
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)  # [H, W + 1]
    row, first = np.nonzero(edges == 1)
    last = np.nonzero(edges == -1)[1]  # exclusive; both are in reading order, so they pair up
    parent = _join_runs(row, first, last, height)
    number = np.unique(parent, return_inverse=True)[1] + 1
    lengths = last - first
    labels = np.zeros((height, width), np.int32)
    labels[mask] = np.repeat(number, lengths)  # runs cover the mask exactly, in reading order
    return labels


def _join_runs(
    row: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    last: npt.NDArray[np.int64],
    height: int,
) -> npt.NDArray[np.int64]:
    """[runs] the lowest run that each run is connected with."""
    parent = list(range(len(row)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    starts = np.searchsorted(row, np.arange(height + 1)).tolist()
    begin, end = first.tolist(), last.tolist()
    for y in range(1, height):
        above, here = starts[y - 1], starts[y]
        while above < starts[y] and here < starts[y + 1]:
            if begin[above] <= end[here] and begin[here] <= end[above]:  # corners count
                low, high = sorted((find(above), find(here)))
                parent[high] = low
            if end[above] <= end[here]:
                above += 1
            else:
                here += 1
    return np.array([find(i) for i in range(len(parent))], np.int64)
