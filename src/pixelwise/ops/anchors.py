"""Anchors: the reference boxes of a region proposal network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pixelwise.types import Size


def base_anchors(
    sizes: Sequence[float],
    ratios: Sequence[float],
    *,
    order: Literal["ratio", "size"] = "ratio",
    rounding: bool = False,
) -> Tensor:
    """Make the anchors of one cell, centred on the origin; every ratio keeps the area of its size.

    Args:
        sizes:    square roots of the areas, in pixels.
        ratios:   height over width.
        order:    the outer loop: "ratio" (torchvision, MMDetection, FCIS) or "size" (Detectron2).
            It matters to checkpoints with several sizes per level.
        rounding: round the corners to whole pixels (torchvision).

    Returns:
        [A, 4] float32 xyxy in pixels.

    Source: Faster R-CNN (arXiv:1506.01497), section 3.1.1.
    """
    ratio = torch.tensor(ratios, dtype=torch.float32)
    size = torch.tensor(sizes, dtype=torch.float32)
    tall, wide = ratio.sqrt(), 1 / ratio.sqrt()  # [ratios]
    if order == "ratio":
        w, h = wide[:, None] * size, tall[:, None] * size  # [ratios, sizes]
    else:
        w, h = size[:, None] * wide, size[:, None] * tall  # [sizes, ratios]
    corners = torch.stack([-w, -h, w, h], dim=-1).reshape(-1, 4) / 2  # [A, 4]
    return corners.round() if rounding else corners


def plus_one_anchors(stride: int, scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Make the anchors of one cell as the first Detectron, R-FCN and FCIS do.

    They start from the cell itself, the window (0, 0, stride - 1, stride - 1), give it each ratio
    in whole pixels, and then scale it; widths count x2 - x1 + 1.

    Args:
        stride: input pixels per cell.
        scales: sizes over the stride.
        ratios: height over width.

    Returns:
        [A, 4] float32 xyxy in pixels, ratios in the outer loop, for `plus_one` arithmetic.
    """
    ratio = np.asarray(ratios, np.float64)
    w = np.round(np.sqrt(stride * stride / ratio))
    h = np.round(w * ratio)
    scale = np.asarray(scales, np.float64)
    extent = np.stack([w[:, None] * scale, h[:, None] * scale], -1).reshape(-1, 2)  # [A, 2]
    centre = (stride - 1) / 2
    corners = np.concatenate([centre - (extent - 1) / 2, centre + (extent - 1) / 2], 1)
    return torch.from_numpy(corners.astype(np.float32))


def square_anchors(base: Tensor) -> Tensor:
    """Give every anchor its width for a height too.

    The released YOLACT does so by mistake, and its weights need it.

    Args:
        base: [A, 4] xyxy in pixels, around the origin.

    Returns:
        [A, 4] xyxy.

    Source:  YOLACT (arXiv:1904.02689), released code: `use_square_anchors`.
    """
    return base[:, [0, 0, 2, 2]]


def centred_anchors(base: Tensor, grid: Size, size: tuple[float, float]) -> Tensor:
    """Repeat the anchors of one cell over a map that divides the whole input into equal cells.

    The centres are those of the cells, whose sides need not be whole pixels: of 550 pixels, 69
    cells have 7.97 each.

    Args:
        base: [A, 4] xyxy in pixels, around the origin.
        grid: (height, width) of the feature map in cells.
        size: (height, width) of the network input in pixels.

    Returns:
        [h * w * A, 4] xyxy in pixels; rows slowest, then columns, then the A anchors.
    """
    pitch = (size[0] / grid[0], size[1] / grid[1])
    half = base.new_tensor([pitch[1], pitch[0]]).repeat(2) / 2
    return grid_anchors(base + half, grid, pitch)


def grid_anchors(base: Tensor, grid: Size, stride: tuple[float, float]) -> Tensor:
    """Repeat the anchors of one cell over a feature map.

    Args:
        base:   [A, 4] xyxy in pixels, around the origin.
        grid:   (height, width) of the feature map in cells.
        stride: input pixels per cell, (y, x). Nominal, except torchvision's, which is the padded
            image's size divided by the map's, rounded down.

    Returns:
        [h * w * A, 4] xyxy in pixels; rows slowest, then columns, then the A anchors.
    """
    y = torch.arange(grid[0], device=base.device, dtype=base.dtype) * stride[0]  # [h]
    x = torch.arange(grid[1], device=base.device, dtype=base.dtype) * stride[1]  # [w]
    yy, xx = torch.meshgrid(y, x, indexing="ij")  # [h, w]
    shifts = torch.stack([xx, yy, xx, yy], dim=-1).reshape(-1, 1, 4)  # [h * w, 1, 4]
    return (shifts + base).reshape(-1, 4)  # [h * w * A, 4]
