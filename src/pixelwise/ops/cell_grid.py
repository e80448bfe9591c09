"""Maps whose cells lie on the pixels 0, s, 2s, ...: Caffe's geometry, which sizes of 8n + 1 fit.

Convolutions and pools that are padded evenly put the centre of cell i on pixel s i of the image.
Resizing with aligned corners keeps it there if the result has s (n - 1) + 1 pixels; what the image
has less is cut away, so every size of image works without a shift.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.ops.resize import resize
from pixelwise.types import Size


def grid_size(cells: Size, step: int) -> Size:
    """(height, width) in pixels from the first to the last of (rows, columns) cells."""
    return step * (cells[0] - 1) + 1, step * (cells[1] - 1) + 1


def resize_grid(x: Tensor, size: Size, *, step: int) -> Tensor:
    """Resize maps bilinearly, with cell i on pixel `step` i.

    Args:
        x:    [B, C, h, w].
        size: (H, W) of the result; beyond the last cell its value continues.
        step: pixels from cell to cell.

    Returns:
        [B, C, H, W].
    """
    rows, columns = grid_size((x.shape[2], x.shape[3]), step)
    x = resize(x, (rows, columns), align_corners=True)
    x = F.pad(x, (0, max(0, size[1] - columns), 0, max(0, size[0] - rows)), mode="replicate")
    return x[..., : size[0], : size[1]]


def labels_at_cells(
    labels: Tensor, cells: Size, *, step: float | None = None, outside: float = 0
) -> Tensor:
    """The value of a label map under every cell of a coarser one; never a mixture.

    Args:
        labels:  [B, H, W] labels, or weights.
        cells:   (h, w) of the coarser map.
        step:    cell i lies on pixel `step` i; None: in the middle of the i-th of h equal parts.
        outside: for cells that lie beyond the map.

    Returns:
        [B, h, w].
    """
    for axis, (count, length) in enumerate(zip(cells, labels.shape[1:], strict=True), start=1):
        at = torch.arange(count, device=labels.device, dtype=torch.float64)
        at = (at + 0.5) * (length / count) if step is None else at * step
        index = at.floor().long()
        taken = labels.index_select(axis, index.clamp(max=length - 1))
        shape = (1, -1, 1) if axis == 1 else (1, 1, -1)
        labels = taken.masked_fill((index >= length).view(shape), outside)
    return labels
