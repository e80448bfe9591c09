"""Pyramid pooling: a map beside its own averages over coarse grids, from the whole image down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.norm import Norm
from pixelwise.ops.resize import resize

MapPlace = Literal["first", "last"]


def averaging_matrix(length: int, bins: int, *, like: Tensor) -> Tensor:
    """The matrix that averages an axis of cells over equal bins.

    Bin i covers the cells floor(i n / b) to ceil((i + 1) n / b): neighbours overlap where b does
    not divide n, and no cell is left out. With fewer cells than bins, cells repeat.

    Args:
        length: n, cells of the axis.
        bins:   b.
        like:   its type and device are taken.

    Returns:
        [bins, length]; every row has the sum 1.
    """
    number = torch.arange(bins, device=like.device)
    first = number * length // bins  # [b]
    end = ((number + 1) * length + bins - 1) // bins  # [b]
    cell = torch.arange(length, device=like.device)
    inside = (cell >= first[:, None]) & (cell < end[:, None])  # [b, n]
    return inside.to(like.dtype) / (end - first).to(like.dtype)[:, None]


def grid_means(x: Tensor, bins: int) -> Tensor:
    """Average maps over a grid: `F.adaptive_avg_pool2d`, as two products with small matrices.

    ONNX has no such pooling and torch's exporter replaces it only where the size is fixed; products
    with matrices made from the size export at any size.

    Args:
        x:    [B, C, h, w].
        bins: cells of the grid along each axis.

    Returns:
        [B, C, bins, bins].
    """
    rows = averaging_matrix(x.shape[2], bins, like=x)  # [b, h]
    columns = averaging_matrix(x.shape[3], bins, like=x)  # [b, w]
    return rows @ (x @ columns.T)


class PyramidPooling(nn.Module):
    """A map, joined with its averages over several grids, each projected and resized back.

    In training with one image per process the coarsest grid has one value per channel and no
    variance; batch norm then uses its running statistics (see `BatchNorm`), so batch size 1 trains.

    Args:
        in_channels:    of the map.
        bins:           cells per axis of each grid.
        width:          channels of each projection; None divides those of the map among the grids.
        norm:           see `make_norm`.
        with_mean_norm: norm on the grid of one cell too; without, its projection has a bias
                        (segmentation_models.pytorch).
        map_place:      of the map among what is joined: "first", or "last"
                        (segmentation_models.pytorch).
        align_corners:  of the resize.

    Attributes:
        out_channels: of the result; twice `in_channels` at the default width.

    Source: PSPNet (arXiv:1612.01105), section 3.2 and figure 3.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        bins: Sequence[int] = (1, 2, 3, 6),
        width: int | None = None,
        norm: Norm | str | None = "batch",
        with_mean_norm: bool = True,
        map_place: MapPlace = "first",
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        width = width or max(1, in_channels // len(bins))
        self.bins = tuple(bins)
        self.project = nn.ModuleList(
            ConvNormAct(in_channels, width, 1, norm=norm if n > 1 or with_mean_norm else None)
            for n in self.bins
        )
        self.map_first = map_place == "first"
        self.align_corners = align_corners
        self.out_channels = in_channels + len(self.bins) * width

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] → [B, out, h, w]."""
        size = (x.shape[2], x.shape[3])
        pooled = [
            resize(project(grid_means(x, n)), size, align_corners=self.align_corners)
            for n, project in zip(self.bins, self.project, strict=True)
        ]
        return torch.cat([x, *pooled] if self.map_first else [*pooled, x], 1)
