"""Maps whose cells lie on the pixels 0, s, 2s, ...: Caffe's geometry, which sizes of 8n + 1 fit.

Convolutions and pools that are padded evenly put the centre of cell i on pixel s i of the image.
There, resizing with aligned corners is right if the image has s (n - 1) + 1 pixels for n cells, and
shifts everything else. These functions take the step instead of the size, so every size fits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pixelwise.types import Size


def grid_size(cells: Size, step: int) -> Size:
    """(height, width) in pixels from the first to the last of (rows, columns) cells."""
    return step * (cells[0] - 1) + 1, step * (cells[1] - 1) + 1


def resize_grid(x: Tensor, size: Size, *, step: float) -> Tensor:
    """Resize maps bilinearly, with cell i on position `step` i of the result.

    On a result of `grid_size` this is resizing with aligned corners.

    Args:
        x:    [B, C, h, w].
        size: (H, W) of the result; beyond the last cell its value continues.
        step: above 1 enlarges; below 1 it picks, and mixes neighbours only.

    Returns:
        [B, C, H, W].
    """
    for axis, length in enumerate(size, start=2):
        last = x.shape[axis] - 1
        at = torch.arange(length, device=x.device, dtype=torch.float64) / step
        left = at.floor().long().clamp(max=last)
        right = (left + 1).clamp(max=last)
        weight = (at - left).to(x.dtype).view((-1, 1) if axis == 2 else (-1,))
        low, high = x.index_select(axis, left), x.index_select(axis, right)
        x = low + (high - low) * weight
    return x


def labels_at_cells(
    labels: Tensor, cells: Size, *, step: float | None = None, outside: float = 0
) -> Tensor:
    """The value of a label map under every cell of a coarser one; never a mixture.

    Args:
        labels:  [B, H, W] labels, or weights.
        cells:   (h, w) of the coarser map.
        step:    cell i lies on pixel `step` i, or the nearest one; None: in the middle of the i-th
                 of h equal parts, as Pillow's nearest has it.
        outside: for cells that lie beyond the map.

    Returns:
        [B, h, w].
    """
    for axis, (count, length) in enumerate(zip(cells, labels.shape[1:], strict=True), start=1):
        at = torch.arange(count, device=labels.device)
        # In coordinates in which pixel i reaches from i to i + 1, so that the floor is the nearest.
        index = (
            (2 * at + 1) * length // (2 * count)
            if step is None
            else (at.double() * step + 0.5).floor().long()
        )
        taken = labels.index_select(axis, index.clamp(max=length - 1))
        shape = (1, -1, 1) if axis == 1 else (1, 1, -1)
        labels = taken.masked_fill((index >= length).view(shape), outside)
    return labels
