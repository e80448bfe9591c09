"""Convolutions of a feature pyramid at chosen points only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def convolve_at(
    levels: Sequence[Tensor], image: Tensor, point: Tensor, *, weight: Tensor, bias: Tensor
) -> Tensor:
    """What a 3x3 convolution that keeps the size, the same for all levels, gives at some points.

    A head with many channels costs little where few points ask for them.

    Args:
        levels: L of [B, C, h_l, w_l].
        image:  [M] int64, 0..B-1.
        point:  [M] int64, cells of all levels: finest level first, then rows, then columns.
        weight: [E, C, 3, 3].
        bias:   [E].

    Returns:
        [M, E].
    """
    padded = [F.pad(level, (1, 1, 1, 1)).permute(0, 2, 3, 1) for level in levels]
    cells = torch.cat([level.flatten(1, 2) for level in padded], dim=1)  # [B, T, C]
    taps = _taps([(level.shape[2], level.shape[3]) for level in levels], point)  # [M, 9]
    patches = cells.flatten(0, 1)[image[:, None] * cells.shape[1] + taps]  # [M, 9, C]
    return F.linear(patches.flatten(1), weight.permute(0, 2, 3, 1).flatten(1), bias)


def _taps(grids: Sequence[tuple[int, int]], point: Tensor) -> Tensor:
    """[M, 9] int64, positions among the cells of all levels with their borders of one cell."""
    corners: list[Tensor] = []  # per level the top left tap of every cell, [h * w]
    widths: list[Tensor] = []
    first = 0
    for height, width in grids:
        y, x = (torch.arange(n, device=point.device) for n in (height, width))
        corners.append((first + y[:, None] * (width + 2) + x).flatten())
        widths.append(torch.full_like(corners[-1], width + 2))
        first += (height + 2) * (width + 2)
    corner, row = torch.cat(corners)[point], torch.cat(widths)[point]  # [M] each
    offset = torch.arange(3, device=point.device)
    rows = corner[:, None] + row[:, None] * offset  # [M, 3]
    return (rows[:, :, None] + offset).flatten(1)
