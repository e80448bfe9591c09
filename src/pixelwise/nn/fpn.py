"""Feature pyramid networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from pixelwise.nn.blocks import ConvNormAct
from pixelwise.ops.resize import resize


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


class OneStageFPN(nn.Module):
    """The pyramid of one-stage detectors: C3 to C5 merged into P3 to P5, and coarser levels on top.

    The coarser levels come from 3x3 convolutions of stride 2, the first of P5 or, without having
    been merged, of C5.

    Args:
        in_channels: channels of the backbone's levels, finest first.
        channels:    channels of every output level.
        extra:       number of coarser levels.
        extra_from:  "output", P5 (YOLACT, FCOS), or "input", C5 (RetinaNet).
        upsample:    of the level above before it is added.
        with_relu:   after the convolutions of P3 to P5, so that P6 sees it too (YOLACT).
        relu_between: before the convolution of P7 and later levels (FCOS, detectron2's RetinaNet).

    Source:  Lin et al., "Focal Loss for Dense Object Detection" (arXiv:1708.02002), section 4.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        *,
        extra: int = 2,
        extra_from: Literal["output", "input"] = "output",
        upsample: Literal["nearest", "bilinear"] = "nearest",
        with_relu: bool = False,
        relu_between: bool = False,
    ) -> None:
        super().__init__()
        act = "relu" if with_relu else None
        self.lateral = nn.ModuleList(
            ConvNormAct(c, channels, 1, norm=None, act=None) for c in in_channels
        )
        self.output = nn.ModuleList(
            ConvNormAct(channels, channels, norm=None, act=act) for _ in in_channels
        )
        first = in_channels[-1] if extra_from == "input" else channels
        self.extra = nn.ModuleList(
            ConvNormAct(first if i == 0 else channels, channels, stride=2, norm=None, act=None)
            for i in range(extra)
        )
        self.channels, self.extra_from, self.upsample = channels, extra_from, upsample
        self.relu_between = relu_between
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Merge the levels from the deepest to the finest, and go on to coarser ones.

        Args:
            features: L of [B, C_l, h_l, w_l], finest first, each about half the size before it.

        Returns:
            L + extra of [B, channels, h_l, w_l], finest first.
        """
        merged = [conv(x) for conv, x in zip(self.lateral, features, strict=True)]
        for finer in range(len(merged) - 2, -1, -1):
            merged[finer] = merged[finer] + self._enlarge(merged[finer + 1], merged[finer])
        levels = [conv(x) for conv, x in zip(self.output, merged, strict=True)]
        x = features[-1] if self.extra_from == "input" else levels[-1]
        for i, conv in enumerate(self.extra):
            x = conv(F.relu(x) if i and self.relu_between else x)
            levels.append(x)
        return levels

    def _enlarge(self, above: Tensor, finer: Tensor) -> Tensor:
        """The level above at the finer one's size: not by a factor, odd sizes need no padding."""
        size = (finer.shape[2], finer.shape[3])
        return resize(above, size) if self.upsample == "bilinear" else F.interpolate(above, size)
