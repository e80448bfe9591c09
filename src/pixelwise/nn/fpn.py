"""Feature pyramid network."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pixelwise.nn.blocks import ConvNormAct


class FPN(nn.Module):
    """Give every level of a backbone the semantics of its deepest one, at one common width.

    Each level passes a 1x1 convolution and receives the level above it, doubled by nearest
    neighbour; a 3x3 convolution smooths the sum. There is no activation anywhere. One more level,
    every second cell of the last, follows for the anchors of the largest objects.

    Args:
        in_channels: channels of the backbone's levels, finest first.
        channels:    channels of every output level.
        norm:        norm after each convolution ("group", "batch", ...), or None: biases instead.

    Source:  Lin et al., "Feature Pyramid Networks for Object Detection" (arXiv:1612.03144),
        section 3; the extra level: section 4.1.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int = 256, *, norm: str | None = None
    ) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(
            ConvNormAct(c, channels, 1, bias=norm is None, norm=norm, act=None) for c in in_channels
        )
        self.output = nn.ModuleList(
            ConvNormAct(channels, channels, 3, bias=norm is None, norm=norm, act=None)
            for _ in in_channels
        )
        self.channels = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Merge the levels from the deepest to the finest.

        Args:
            features: L of [B, C_l, h_l, w_l], finest first, each about half the size before it.

        Returns:
            L + 1 of [B, channels, h_l, w_l], finest first.
        """
        laterals = [conv(x) for conv, x in zip(self.lateral, features, strict=True)]
        for finer in range(len(laterals) - 2, -1, -1):
            # To the finer level's size, not by a factor of 2: odd sizes need no padding.
            above = F.interpolate(laterals[finer + 1], size=laterals[finer].shape[-2:])
            laterals[finer] = laterals[finer] + above
        levels = [conv(x) for conv, x in zip(self.output, laterals, strict=True)]
        return [*levels, F.max_pool2d(levels[-1], kernel_size=1, stride=2)]
