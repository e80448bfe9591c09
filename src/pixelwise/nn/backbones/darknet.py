"""DarkNet-53, the network of YOLOv3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.norm import Norm

DARKNETS: dict[str, tuple[int, ...]] = {"darknet53": (1, 2, 8, 8, 4)}  # blocks per stage
STYLES: dict[str, dict[str, Any]] = {"plain": {}}
_STEM = 32


class Block(nn.Module):
    """A 1x1 convolution to half the width, a 3x3 back to it, and the input added.

    No activation follows the sum.

    Args:
        channels: of the input and the output.
        norm:     see `make_norm`.
    """

    def __init__(self, channels: int, norm: Norm | str | None) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, channels // 2, 1, norm=norm, act="leaky_relu")
        self.conv2 = ConvNormAct(channels // 2, channels, norm=norm, act="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] → the same shape."""
        return self.conv2(self.conv1(x)) + x


class Stage(nn.Module):
    """Half the size, twice the width, then residual blocks.

    Args:
        in_channels: of the input; twice as many leave.
        blocks:      number of residual blocks.
        norm:        see `make_norm`.
    """

    def __init__(self, in_channels: int, blocks: int, norm: Norm | str | None) -> None:
        super().__init__()
        channels = 2 * in_channels
        self.down = ConvNormAct(in_channels, channels, stride=2, norm=norm, act="leaky_relu")
        self.blocks = nn.Sequential(*(Block(channels, norm) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] → [B, 2C, ceil(h / 2), ceil(w / 2)]."""
        return self.blocks(self.down(x))


class DarkNet(nn.Module):
    """DarkNet that returns feature maps.

    Args:
        name:        row of `DARKNETS`.
        in_channels: of the images.
        output_stride: 32; there is no dilated form.
        levels:      which maps to return: level n is that of stage n, with stride 2^n. Stages after
                     the last are not built.
        norm:        see `make_norm`.

    Attributes:
        channels: of each returned map.  strides: input pixels per cell of each returned map.

    Source:  Redmon and Farhadi, "YOLOv3" (arXiv:1804.02767), section 2.4.
    """

    def __init__(
        self,
        name: str = "darknet53",
        *,
        in_channels: int = 3,
        output_stride: int = 32,
        levels: Sequence[int] = (2, 3, 4, 5),
        norm: Norm | str | None = "batch",
    ) -> None:
        super().__init__()
        if output_stride != 32:
            raise UsageError(f"{name} has output_stride 32 only, not {output_stride}")
        self.levels = tuple(sorted(levels))
        self.stem = ConvNormAct(in_channels, _STEM, norm=norm, act="leaky_relu")
        self.stages = nn.ModuleList(
            Stage(_STEM << i, blocks, norm)
            for i, blocks in enumerate(DARKNETS[name][: self.levels[-1]])
        )
        self.channels = tuple(_STEM << level for level in self.levels)
        self.strides = tuple(1 << level for level in self.levels)
        self._frozen = 0

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, C, H, W] → one map per level, finest first."""
        x = self.stem(images)  # [B, 32, H, W]
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
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

    def train(self, mode: bool = True) -> DarkNet:
        """As usual; frozen parts stay in evaluation."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        return [self.stem, *self.stages][: self._frozen]
