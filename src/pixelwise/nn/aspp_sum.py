"""The first atrous spatial pyramid pooling: classifiers of several rates, added."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pixelwise.nn.large_fov import LargeFOV, make_classifier


class SummedASPP(nn.Module):
    """Parallel atrous branches, each with a classifier of its own; their scores are added.

    Rates stay as they are at any output stride. Without `width` a branch is one 3x3 convolution
    from the map to the scores (ResNet): the sum is one convolution with a 49x49 kernel of which 33
    taps are not 0. With `width` it is a `LargeFOV` and a 1x1 (VGG).

    Args:
        in_channels: of the map.
        num_classes: K.
        rates:       of the branches: 6, 12, 18, 24 is ASPP-L, 2, 4, 8, 12 is ASPP-S.
        width:       channels within a branch, 0 for none.
        dropout:     probability, within a branch.

    Source: DeepLab V2 (arXiv:1606.00915), section 3.2, figure 7.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        rates: Sequence[int] = (6, 12, 18, 24),
        width: int = 0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.context = nn.ModuleList(
            LargeFOV(in_channels, width, rate=rate, dropout=dropout) if width else nn.Identity()
            for rate in rates
        )
        self.classify = nn.ModuleList(
            make_classifier(width, num_classes)
            if width
            else make_classifier(in_channels, num_classes, kernel=3, rate=rate)
            for rate in rates
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] → scores [B, K, h, w]."""
        scores = [c(f(x)) for f, c in zip(self.context, self.classify, strict=True)]
        return torch.stack(scores).sum(0)
