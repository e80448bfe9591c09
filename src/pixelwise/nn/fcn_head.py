"""The small classifier that looks at one map: 3x3 convolutions, dropout, class scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.norm import Norm


class FCNHead(nn.Module):
    """A 3x3 convolution with norm and ReLU, dropout, and a 1x1 convolution to class scores.

    The head of torchvision's FCN, and everyone's auxiliary head: on an earlier map it gives the
    gradient a short way. mmseg's FCN has two convolutions more, and shows the last one the map
    again.

    Args:
        in_channels: of the map.
        num_classes: K.
        width:       inner channels; None for a quarter of the map's.
        depth:       number of 3x3 convolutions: 1, or mmseg's 3.
        with_concat: the last of them sees the map itself beside what the others made of it.
        dilation:    of all but a last one behind a concatenation; 6 in mmseg's "d6" networks.
        norm:        see `make_norm`.
        dropout:     probability, per channel.

    Raises:
        UsageError: a concatenation with nothing to join.

    Source: PSPNet (arXiv:1612.01105), section 3.3; torchvision's and mmseg's heads of FCN.
    """

    def __init__(  # noqa: PLR0913 (the knobs in which checkpoints differ)
        self,
        in_channels: int,
        num_classes: int,
        *,
        width: int | None = None,
        depth: int = 1,
        with_concat: bool = False,
        dilation: int = 1,
        norm: Norm | str | None = "batch",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if depth < 1 + with_concat:
            raise UsageError(f"depth is at least {1 + with_concat} here, not {depth}")
        width = width or max(1, in_channels // 4)
        self.with_concat = with_concat
        self.refine = nn.Sequential()
        channels = in_channels
        for _ in range(depth - 1):
            self.refine.append(ConvNormAct(channels, width, dilation=dilation, norm=norm))
            channels = width
        self.fuse = ConvNormAct(
            in_channels + width if with_concat else channels,
            width,
            dilation=1 if with_concat else dilation,
            norm=norm,
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] → [B, K, h, w]."""
        refined = self.refine(x)
        if self.with_concat:
            refined = torch.cat([x, refined], 1)  # [B, in + width, h, w]
        return self.classify(self.dropout(self.fuse(refined)))
