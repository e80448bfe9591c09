"""The small classifier that looks at one map: a 3x3 convolution, dropout, class scores."""

from __future__ import annotations

from torch import nn

from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.norm import Norm


class FCNHead(nn.Sequential):
    """A 3x3 convolution with norm and ReLU, dropout, and a 1x1 convolution to class scores.

    The head of torchvision's FCN, and everyone's auxiliary head: on an earlier map it gives the
    gradient a short way.

    Args:
        in_channels: of the map.
        num_classes: K.
        width:       inner channels; None for a quarter of the map's.
        norm:        see `make_norm`.
        dropout:     probability, per channel.

    Source: PSPNet (arXiv:1612.01105), section 3.3; torchvision's and mmseg's heads of FCN.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        width: int | None = None,
        norm: Norm | str | None = "batch",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        width = width or max(1, in_channels // 4)
        self.fuse = ConvNormAct(in_channels, width, norm=norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(width, num_classes, 1)
