"""Heads on a grid: every cell of an S x S grid has a class and a mask of its own.

Three kinds of mask branches, each a module with the same two steps: `forward` computes what all
cells share, `draw` the masks of chosen cells. So no branch ever holds a mask for every cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.coord_conv import Axes, with_coordinates
from pixelwise.ops.resize import resize
from pixelwise.types import Size

Maps = tuple[Tensor, ...]  # what the cells of one level share, each [B, any, h, w]

PRIOR_PROB = 0.01  # of a class or mask pixel at the start; Focal loss (arXiv:1708.02002), sec. 3.3
FEATURE_WIDTH = 128  # channels per level of SOLOv2's mask features (arXiv:2003.10152), sec. 3.3


def even_levels(pyramid: Sequence[Tensor]) -> list[Tensor]:
    """Bring the finest level to the size of the second, and the coarsest to that of its neighbour.

    Args:
        pyramid: L of [B, C, h_l, w_l], strides 4, 8, 16, 32, 64.

    Returns:
        L of [B, C, h, w], strides 8, 8, 16, 32, 32.
    """
    first, second, *_ = pyramid
    *_, beside, last = pyramid
    return [
        resize(first, (second.shape[-2], second.shape[-1])),
        *pyramid[1:-1],
        resize(last, (beside.shape[-2], beside.shape[-1])),
    ]


def tower(in_channels: int, width: int, convs: int) -> nn.Sequential:
    """3x3 convolutions with group norm and ReLU."""
    return nn.Sequential(
        *(
            ConvNormAct(width if i else in_channels, width, bias=False, norm="group")
            for i in range(convs)
        )
    )


def init_head(head: nn.Module, outputs: Sequence[nn.Conv2d]) -> None:
    """All weights from N(0, 0.01), and outputs that start out as rare events.

    Args:
        head:    module with the convolutions.
        outputs: convolutions whose sigmoid starts at `PRIOR_PROB`.
    """
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
    for conv in outputs:
        assert conv.bias is not None
        nn.init.constant_(conv.bias, -math.log(1 / PRIOR_PROB - 1))


class GridCategories(nn.Module):
    """The class of every cell: each level is resized to its grid and convolved.

    Args:
        in_channels: of every level.
        num_classes: K.
        grids:       S per level.
        width:       of the tower.
        convs:       of the tower.

    Source:  SOLO (arXiv:1912.04488), section 3.1, with interpolation to align to the grid.
    """

    def __init__(
        self, in_channels: int, num_classes: int, grids: Sequence[int], *, width: int, convs: int
    ) -> None:
        super().__init__()
        self.grids = tuple(grids)
        self.tower = tower(in_channels, width, convs)
        self.classify = nn.Conv2d(width, num_classes, 3, padding=1)
        init_head(self, [self.classify])

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """L of [B, C, h_l, w_l] → L of class logits [B, K, S_l, S_l]."""
        return [
            self.classify(self.tower(resize(x, (side, side))))
            for x, side in zip(even_levels(pyramid), self.grids, strict=True)
        ]


class GridMasks(nn.Module):
    """One mask channel per cell, S * S of them: cell (row i, column j) owns channel i * S + j.

    The channels are rows of the last 1x1 convolution, so the masks of a few cells cost a few rows.

    Args:
        in_channels: of every level.
        grids:       S per level.
        width:       of the tower.
        convs:       of the tower.
        with_coords: append both coordinate planes before the tower.

    Source:  SOLO (arXiv:1912.04488), section 3.1.
    """

    strides = (4, 4, 8, 16, 16)  # input pixels per cell of the maps

    def __init__(
        self,
        in_channels: int,
        grids: Sequence[int],
        *,
        width: int,
        convs: int,
        with_coords: bool = True,
    ) -> None:
        super().__init__()
        self.axes: Axes = "xy" if with_coords else ""
        self.tower = tower(in_channels + len(self.axes), width, convs)
        self.cells = nn.ModuleList(nn.Conv2d(width, side * side, 1) for side in grids)
        init_head(self, [c for c in self.cells if isinstance(c, nn.Conv2d)])

    def forward(self, pyramid: Sequence[Tensor]) -> list[Maps]:
        """L of [B, C, h_l, w_l] → per level the features [B, width, 2h, 2w]."""
        return [
            (_doubled(self.tower(with_coordinates(x, self.axes))),) for x in even_levels(pyramid)
        ]

    def draw(self, level: int, maps: Maps, cells: Tensor, size: Size | None = None) -> Tensor:
        """The masks of chosen cells.

        Args:
            level: 0 is the finest.
            maps:  of that level, from `forward`.
            cells: [B, n] int64, row-major positions in the grid.
            size:  (height, width) that masks are resized to, or None for the level's own.

        Returns:
            [B, n, h, w] in [0, 1].
        """
        conv = self.cells[level]
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        kernels = conv.weight.flatten(1)[cells]  # [B, n, width]
        logits = _mixed(kernels, maps[0]) + conv.bias[cells][:, :, None, None]
        return _resized(logits.sigmoid(), size)


class DecoupledMasks(nn.Module):
    """S channels for the columns and S for the rows; a mask is the product of one of each.

    Args:
        in_channels: of every level.
        grids:       S per level.
        width:       of the towers.
        convs:       of a tower.
        with_coords: append coordinates before the towers: x for the columns, y for the rows.
        shared:      one tower, with both coordinates, for columns and rows: the light form.

    Source:  SOLO (arXiv:1912.04488), section 5 (Decoupled SOLO).
    """

    strides = (4, 4, 8, 16, 16)

    def __init__(
        self,
        in_channels: int,
        grids: Sequence[int],
        *,
        width: int,
        convs: int,
        with_coords: bool = True,
        shared: bool = False,
    ) -> None:
        super().__init__()
        axes: tuple[Axes, ...] = ("xy",) if shared else ("x", "y")
        self.axes = axes if with_coords else ("",) * len(axes)
        self.towers = nn.ModuleList(tower(in_channels + len(a), width, convs) for a in self.axes)
        self.columns = nn.ModuleList(nn.Conv2d(width, side, 3, padding=1) for side in grids)
        self.rows = nn.ModuleList(nn.Conv2d(width, side, 3, padding=1) for side in grids)
        outputs = [*self.columns, *self.rows]
        init_head(self, [c for c in outputs if isinstance(c, nn.Conv2d)])

    def forward(self, pyramid: Sequence[Tensor]) -> list[Maps]:
        """L of [B, C, h_l, w_l] → per level the features [B, width, 2h, 2w] of each tower."""
        return [
            tuple(
                _doubled(one(with_coordinates(x, axes)))
                for one, axes in zip(self.towers, self.axes, strict=True)
            )
            for x in even_levels(pyramid)
        ]

    def draw(self, level: int, maps: Maps, cells: Tensor, size: Size | None = None) -> Tensor:
        """As `GridMasks.draw`; only the columns and rows of chosen cells are convolved."""
        columns, rows = self.columns[level], self.rows[level]
        assert isinstance(columns, nn.Conv2d)
        assert isinstance(rows, nn.Conv2d)
        column, row = _split(cells, columns.out_channels)
        first = _planes(columns, maps[0], column, size)
        return first * _planes(rows, maps[-1], row, size)


def _planes(conv: nn.Conv2d, features: Tensor, index: Tensor, size: Size | None) -> Tensor:
    """The channels at [B, n] of a convolution, as probabilities [B, n, h, w]."""
    weight, bias = conv.weight, _bias(conv)
    if not torch.compiler.is_compiling():  # a graph has fixed sizes
        used, index = index.unique(return_inverse=True)
        used = used if len(used) else used.new_zeros(1)  # so that every layer has a gradient
        weight, bias = weight[used], bias[used]
    every = F.conv2d(features, weight, bias, padding=conv.padding).sigmoid()
    if index.shape[1] < every.shape[1]:  # what is chosen is resized, or all that can be chosen
        return _resized(_chosen(every, index), size)
    return _chosen(_resized(every, size), index)


def _split(cells: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Column and row of positions in a grid."""
    return cells % side, torch.div(cells, side, rounding_mode="floor")


def _chosen(maps: Tensor, index: Tensor) -> Tensor:
    """Maps [B, S, h, w] at [B, n] → [B, n, h, w], whole maps being copied at a time."""
    batch, side = maps.shape[:2]
    first = side * torch.arange(batch, device=index.device)[:, None]  # of each image, [B, 1]
    planes = maps.contiguous().flatten(0, 1)  # [B * S, h, w]
    return planes.index_select(0, (first + index).flatten()).unflatten(0, index.shape)


class MaskFeatures(nn.Module):
    """One map at stride 4 from the levels up to stride 32, for all instances of all sizes.

    Level l is convolved and doubled l times, the coarsest with coordinates; the sum passes a 1x1
    convolution.

    Args:
        in_channels: of every level.
        out_channels: E of the result.
        with_coords: append both coordinate planes to the coarsest level.

    Source:  SOLOv2 (arXiv:2003.10152), section 3.3 (Unified mask feature representation).
    """

    LEVELS = 4

    def __init__(self, in_channels: int, out_channels: int, *, with_coords: bool = True) -> None:
        super().__init__()
        self.axes: Axes = "xy" if with_coords else ""
        self.levels = nn.ModuleList(
            nn.ModuleList(
                ConvNormAct(FEATURE_WIDTH if step else channels, FEATURE_WIDTH, norm="group")
                for step in range(max(1, level))
            )
            for level, channels in enumerate(
                [in_channels] * (self.LEVELS - 1) + [in_channels + len(self.axes)]
            )
        )
        self.merge = ConvNormAct(FEATURE_WIDTH, out_channels, 1, norm="group")
        init_head(self, [])

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """[B, C, h_l, w_l] per level, finest first → [B, E, h_0, w_0]."""
        sizes = [(x.shape[-2], x.shape[-1]) for x in pyramid]
        total: Tensor | None = None
        for level, convs in enumerate(self.levels):
            x = pyramid[level]
            if level == self.LEVELS - 1:
                x = with_coordinates(x, self.axes)
            assert isinstance(convs, nn.ModuleList)
            for step, conv in enumerate(convs, start=1):
                x = conv(x)
                # To the finer level's size, not by a factor of 2: odd sizes need no padding.
                x = resize(x, sizes[level - step]) if level else x
            total = x if total is None else total + x
        assert total is not None
        return self.merge(total)


class DynamicMasks(nn.Module):
    """Every cell predicts the 1x1 kernel that draws its mask on one shared map.

    Args:
        in_channels:  of every level.
        grids:        S per level.
        width:        of the kernels' tower.
        convs:        of the kernels' tower.
        kernel_width: E, channels of the shared map and numbers per kernel.
        with_coords:  append coordinates before the tower and in the mask features.

    Source:  SOLOv2 (arXiv:2003.10152), section 3.2.
    """

    strides = (4,) * 5

    def __init__(
        self,
        in_channels: int,
        grids: Sequence[int],
        *,
        width: int,
        convs: int,
        kernel_width: int,
        with_coords: bool = True,
    ) -> None:
        super().__init__()
        self.axes: Axes = "xy" if with_coords else ""
        self.grids = tuple(grids)
        self.tower = tower(in_channels + len(self.axes), width, convs)
        self.kernels = nn.Conv2d(width, kernel_width, 3, padding=1)
        init_head(self, [])
        nn.init.zeros_(_bias(self.kernels))
        self.features = MaskFeatures(in_channels, kernel_width, with_coords=with_coords)

    def forward(self, pyramid: Sequence[Tensor]) -> list[Maps]:
        """L of [B, C, h_l, w_l] → per level kernels [B, E, S_l, S_l] and the map [B, E, h, w]."""
        shared = self.features(pyramid)
        return [
            (
                self.kernels(self.tower(resize(with_coordinates(x, self.axes), (side, side)))),
                shared,
            )
            for x, side in zip(even_levels(pyramid), self.grids, strict=True)
        ]

    def draw(self, level: int, maps: Maps, cells: Tensor, size: Size | None = None) -> Tensor:
        """As `GridMasks.draw`."""
        del level  # the kernels came from one convolution for all levels
        kernels = maps[0].flatten(2).transpose(1, 2)  # [B, S * S, E]
        chosen = torch.take_along_dim(kernels, cells[:, :, None], dim=1)  # [B, n, E]
        return _resized(_mixed(chosen, maps[1]).sigmoid(), size)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def _doubled(x: Tensor) -> Tensor:
    return resize(x, (2 * x.shape[-2], 2 * x.shape[-1]))


def _mixed(kernels: Tensor, features: Tensor) -> Tensor:
    """1x1 convolution with kernels per image: [B, n, C] and [B, C, h, w] → [B, n, h, w]."""
    return torch.bmm(kernels, features.flatten(2)).unflatten(2, features.shape[-2:])


def _resized(x: Tensor, size: Size | None) -> Tensor:
    return x if size is None or tuple(x.shape[-2:]) == tuple(size) else resize(x, size)
