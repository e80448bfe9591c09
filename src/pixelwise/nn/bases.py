"""Bases of a whole image that instance masks are blended from: BlendMask's bottom module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pixelwise.nn.aspp import ASPP
from pixelwise.nn.blocks import ConvNormAct
from pixelwise.ops.resize import resize

_MERGED_LEVELS = 3  # P3, P4 and P5
_RATES = (3, 6, 9)  # at stride 32; DeepLabV3's at 16 are 6, 12 and 18


class MergedBases(nn.Module):
    """A protonet that sees three levels: each is convolved, and their sum at stride 8 goes on.

    Args:
        in_channels: of every level.
        width:       of the hidden convolutions.
        bases:       K.
        convs:       3x3 convolutions at stride 8; one more follows at stride 4.

    Source:  BlendMask (arXiv:2001.00309), section 3.2, as in the released code.
    """

    def __init__(self, in_channels: int, width: int, bases: int, *, convs: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(ConvNormAct(in_channels, width) for _ in range(_MERGED_LEVELS))
        self.convs = nn.Sequential(*(ConvNormAct(width, width) for _ in range(convs)))
        self.refine = ConvNormAct(width, width)
        self.project = nn.Conv2d(width, bases, 1)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """L of [B, C, h_l, w_l], finest first → [B, K, 2 h_0, 2 w_0]."""
        size = (pyramid[0].shape[2], pyramid[0].shape[3])
        x = self.lateral[0](pyramid[0])
        for conv, level in zip(list(self.lateral)[1:], pyramid[1:], strict=False):
            x = x + resize(conv(level), size)
        return self.project(self.refine(_doubled(self.convs(x))))


class DecoderBases(nn.Module):
    """DeepLabV3+'s decoder as bottom module: P5 seen at several scales, with P3 for the outlines.

    Args:
        in_channels: of every level.
        width:       of all hidden convolutions.
        bases:       K.
        convs:       3x3 convolutions of the joined maps.

    Source:  BlendMask (arXiv:2001.00309), section 3.2 and table 5; DeepLabV3+ (arXiv:1802.02611).
    """

    def __init__(self, in_channels: int, width: int, bases: int, *, convs: int) -> None:
        super().__init__()
        self.aspp = ASPP(in_channels, width, rates=_RATES)
        self.reduce = ConvNormAct(in_channels, width, 1)
        self.convs = nn.Sequential(
            *(ConvNormAct(width if i else 2 * width, width) for i in range(convs))
        )
        self.project = nn.Conv2d(width if convs else 2 * width, bases, 1)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """L of [B, C, h_l, w_l], finest first; P3 and P5 are read → [B, K, 2 h_0, 2 w_0]."""
        fine, coarse = pyramid[0], pyramid[2]
        seen = resize(self.aspp(coarse), (fine.shape[2], fine.shape[3]))
        x = self.convs(torch.cat([seen, self.reduce(fine)], dim=1))
        return self.project(_doubled(x))


BOTTOMS = {"protonet": MergedBases, "decoder": DecoderBases}


def _doubled(x: Tensor) -> Tensor:
    return resize(x, (2 * x.shape[2], 2 * x.shape[3]))
