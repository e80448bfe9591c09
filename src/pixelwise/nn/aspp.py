"""Atrous spatial pyramid pooling: one map seen at several scales at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pixelwise.nn.blocks import ConvNormAct, SeparableConv
from pixelwise.nn.norm import Norm

Conv = Literal["separable", "bare_separable", "plain"]
ImagePoolPlace = Literal["first", "last", "none"]
Projection = Literal["1x1", "3x3", "1x1+3x3"]


def make_conv3x3(
    kind: Conv, in_channels: int, out_channels: int, *, dilation: int = 1, norm: Norm | str | None
) -> nn.Module:
    """A 3x3 convolution with norm and ReLU, in one of the forms that the DeepLabs use.

    Args:
        kind: "plain"; "separable" (norm and ReLU also between depthwise and pointwise);
            "bare_separable" (nothing between).
        in_channels: of its input.
        out_channels: of its output.
        dilation: of the 3x3.
        norm:     see `make_norm`.
    """
    if kind == "plain":
        return ConvNormAct(in_channels, out_channels, dilation=dilation, norm=norm)
    return SeparableConv(
        in_channels, out_channels, dilation=dilation, norm=norm, with_middle=kind == "separable"
    )


class ImagePool(nn.Module):
    """The mean of the whole map, projected and spread over it again.

    In training with one image per process the mean has one value per channel and no variance; batch
    norm then uses its running statistics (see `BatchNorm`), so batch size 1 trains.

    Args:
        in_channels, out_channels: of the projection.
        norm: see `make_norm`.

    Source: DeepLabV3 (arXiv:1706.05587), section 3.3, after ParseNet.
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm: Norm | str | None) -> None:
        super().__init__()
        self.project = ConvNormAct(in_channels, out_channels, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] → [B, out, h, w], constant over h and w."""
        mean = x.mean((2, 3), keepdim=True)  # [B, in, 1, 1]
        return self.project(mean).expand(-1, -1, *x.shape[2:])


class ASPP(nn.Module):
    """Parallel 1x1 and atrous 3x3 convolutions and an image pool, joined by a projection.

    Args:
        in_channels: of the map.
        width:       channels of every branch and of the result.
        rates:       dilation of each atrous branch.
        conv:        form of the atrous branches, see `make_conv3x3`.
        image_pool:  place of the image pool among the joined branches, or "none".
        projection:  kernel that joins them; "1x1+3x3" adds a convolution of form `refine` after it.
        refine:      None for the form of the branches.
        dropout:     probability, after the first projection.
        norm:        see `make_norm`.

    Source: DeepLabV3 (arXiv:1706.05587), figure 5; separable form DeepLabV3+ (arXiv:1802.02611).
    """

    def __init__(  # noqa: PLR0913 (the knobs in which checkpoints differ)
        self,
        in_channels: int,
        width: int = 256,
        *,
        rates: Sequence[int] = (6, 12, 18),
        conv: Conv = "plain",
        image_pool: ImagePoolPlace = "last",
        projection: Projection = "1x1",
        refine: Conv | None = None,
        dropout: float = 0.0,
        norm: Norm | str | None = "batch",
    ) -> None:
        super().__init__()
        self.pointwise = ConvNormAct(in_channels, width, 1, norm=norm)
        self.atrous = nn.ModuleList(
            make_conv3x3(conv, in_channels, width, dilation=rate, norm=norm) for rate in rates
        )
        self.place = image_pool
        with_pool = image_pool != "none"
        self.pool = ImagePool(in_channels, width, norm=norm) if with_pool else None
        joined = (1 + len(rates) + with_pool) * width
        self.project = ConvNormAct(joined, width, 3 if projection == "3x3" else 1, norm=norm)
        self.dropout = nn.Dropout(dropout)
        self.refine = (
            make_conv3x3(refine or conv, width, width, norm=norm)
            if projection == "1x1+3x3"
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] → [B, width, h, w]."""
        branches = [self.pointwise(x), *(branch(x) for branch in self.atrous)]
        if self.pool is not None:
            branches.insert(0 if self.place == "first" else len(branches), self.pool(x))
        joined = torch.cat(branches, 1)  # [B, branches * width, h, w]
        return self.refine(self.dropout(self.project(joined)))
