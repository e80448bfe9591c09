"""Adaptive feature pooling: every region looks at all levels, and keeps what serves it best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pixelwise.nn.conventions import Conventions
from pixelwise.ops.roi import pool_region

Fusion = Literal["max", "sum"]


@dataclass(frozen=True, kw_only=True)
class AdaptivePool:
    """RoIAlign of every region from every level of a pyramid.

    A `RegionPool` picks one level by the region's size instead; both are called alike.

    Args:
        side:        height and width of the result, cells.
        strides:     input pixels per cell of each level, finest first.
        conventions: how samples are placed.

    Source:  PANet (arXiv:1803.01534), section 3.2.
    """

    side: int
    strides: tuple[int, ...]
    conventions: Conventions

    def __call__(self, pyramid: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Pool [R, 5] regions from L levels of [B, C, h, w]: [L, R, C, side, side]."""
        rules = self.conventions
        pooled = [
            # Half precision would round the corners of regions to whole pixels and worse.
            pool_region(
                level.float(),
                rois,
                self.side,
                scale=1 / stride,
                sampling=rules.roi_sampling,
                aligned=rules.roi_aligned,
            )
            for level, stride in zip(pyramid, self.strides, strict=False)
        ]
        return torch.stack(pooled).to(pyramid[0].dtype)


class LevelFusion(nn.Module):
    """The first layer of a head, one for each level, and what is left of the levels after it.

    Fusing after the first non-linearity lets each level's layer say which of its features count.

    Args:
        layers: one per level, finest first; what they return has one shape.
        fusion: "max" or "sum", element by element.

    Source:  PANet (arXiv:1803.01534), section 3.2 and figure 1c.
    """

    def __init__(self, layers: Iterable[nn.Module], fusion: Fusion = "max") -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.fusion: Fusion = fusion

    def forward(self, features: Tensor) -> Tensor:
        """[L, R, C, side, side] → [R, ...], as one layer returns it."""
        views = [layer(x) for layer, x in zip(self.layers, features, strict=True)]
        stacked = torch.stack(views)  # [L, R, ...]
        return stacked.amax(dim=0) if self.fusion == "max" else stacked.sum(dim=0)
