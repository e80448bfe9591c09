"""Xception-39, the thin backbone of real-time networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.norm import Norm

STYLES: dict[str, dict[str, Any]] = {"plain": {}}  # there is one form of it

_STEM = 8
_STAGES = ((4, 16), (8, 32), (4, 64))  # blocks and inner width
_EXPANSION = 4


def _separable(
    in_channels: int, out_channels: int, *, stride: int, norm: Norm | str | None, act: bool
) -> nn.Sequential:
    """Depthwise 3x3, bare, then pointwise 1x1 with the norm."""
    return nn.Sequential(
        ConvNormAct(
            in_channels,
            in_channels,
            stride=stride,
            groups=in_channels,
            bias=False,
            norm=None,
            act=None,
        ),
        ConvNormAct(in_channels, out_channels, 1, norm=norm, act="relu" if act else None),
    )


class ThinBlock(nn.Module):
    """Three separable convolutions beside a shortcut, shaped like a bottleneck.

    Args:
        in_channels: of the input.
        width:       inner width; the block gives four times as many channels.
        stride:      of the first convolution; with 2 the shortcut is a separable convolution too.
        norm:        see `make_norm`.
    """

    def __init__(
        self, in_channels: int, width: int, *, stride: int, norm: Norm | str | None
    ) -> None:
        super().__init__()
        out_channels = width * _EXPANSION
        self.residual = nn.Sequential(
            _separable(in_channels, width, stride=stride, norm=norm, act=True),
            _separable(width, width, stride=1, norm=norm, act=True),
            _separable(width, out_channels, stride=1, norm=norm, act=False),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1
            else _separable(in_channels, out_channels, stride=stride, norm=norm, act=False)
        )
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] → [B, 4 * width, ceil(H / stride), ceil(W / stride)]."""
        return self.act(self.residual(x).add_(self.shortcut(x)))


class Xception39(nn.Module):
    """A stem of 8 channels and stages of 4, 8 and 4 thin blocks, at strides 8, 16 and 32.

    The number in the name is its cost: 39 million multiply-adds for a picture of 224x224.

    Args:
        in_channels:   of the images.
        output_stride: 32; there is no atrous form of it.
        levels:        1 is the stem, 2 the max-pool, 3 to 5 the stages: 8, 8, 64, 128, 256
                       channels at stride 2^level.
        norm:          see `make_norm`.

    Raises:
        UsageError: another output stride.

    Source: BiSeNet (arXiv:1808.00897), section 3.2; widths from the authors' code.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        output_stride: int = 32,
        levels: Sequence[int] = (2, 3, 4, 5),
        norm: Norm | str | None = "batch",
    ) -> None:
        super().__init__()
        if output_stride != 32:
            raise UsageError(f"xception39 has output_stride 32 only, not {output_stride}")
        self.levels = tuple(sorted(levels))
        self.stem = ConvNormAct(in_channels, _STEM, stride=2, norm=norm)
        self.pool = nn.MaxPool2d(3, 2, 1)
        channels = [_STEM, _STEM]
        self.stages = nn.ModuleList()
        for blocks, width in _STAGES[: max(0, self.levels[-1] - 2)]:
            stage = nn.Sequential(ThinBlock(channels[-1], width, stride=2, norm=norm))
            for _ in range(blocks - 1):
                stage.append(ThinBlock(width * _EXPANSION, width, stride=1, norm=norm))
            self.stages.append(stage)
            channels.append(width * _EXPANSION)
        self.channels = tuple(channels[level - 1] for level in self.levels)
        self.strides = tuple(2**level for level in self.levels)
        self._frozen = 0

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, C, H, W] → one map per level, finest first."""
        maps = [self.stem(images)]  # [B, 8, H/2, W/2]
        maps.append(self.pool(maps[-1]))  # [B, 8, H/4, W/4]
        for stage in self.stages:
            maps.append(stage(maps[-1]))  # [B, 64 | 128 | 256, H/8 | H/16 | H/32, ...]
        return [maps[level - 1] for level in self.levels]

    def freeze(self, stages: int) -> None:
        """Stop training the first parts of the network, their batch statistics included.

        Args:
            stages: 0 none, 1 the stem, 2 the stem and the first stage, and so on.
        """
        self._frozen = stages
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Xception39:
        """As usual; frozen parts stay in evaluation."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def _frozen_parts(self) -> list[Any]:
        return [self.stem, *self.stages][: self._frozen]
