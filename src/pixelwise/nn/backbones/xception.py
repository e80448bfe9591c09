"""Modified aligned Xception-41, -65 and -71, the backbones of DeepLabV3+."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.norm import Norm, make_norm

NORM_EPS = 1e-3  # of every norm in this backbone

# Where the tap of a level sits; the keys are arguments of `Xception`.
STYLES: dict[str, dict[str, Any]] = {
    "tf": {"tap_after_relu": False},
    "timm": {"tap_after_relu": True},
}


class Unit(NamedTuple):
    """One block: output channels of its three separable convolutions, stride, form."""

    channels: tuple[int, int, int]
    stride: int = 1
    shortcut: str = "conv"  # "conv", "identity" or "none"


def _entry(*rows: tuple[int, int]) -> list[Unit]:
    return [Unit((c, c, c), stride) for c, stride in rows]


_MIDDLE = Unit((728, 728, 728), 1, "identity")
_EXIT = [Unit((728, 1024, 1024), 2), Unit((1536, 1536, 2048), 1, "none")]

XCEPTIONS: dict[str, list[Unit]] = {
    "xception41": [*_entry((128, 2), (256, 2), (728, 2)), *[_MIDDLE] * 8, *_EXIT],
    "xception65": [*_entry((128, 2), (256, 2), (728, 2)), *[_MIDDLE] * 16, *_EXIT],
    "xception71": [
        *_entry((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)),
        *[_MIDDLE] * 16,
        *_EXIT,
    ],
}


class Separable(nn.Module):
    """Depthwise 3x3 and pointwise 1x1, a norm after each.

    Args:
        in_channels, out_channels: of the pair.
        stride, dilation: of the depthwise convolution; padding is the same on both sides.
        relu_first: one ReLU before the pair; otherwise one after each of the two norms.
        norm:       see `make_norm`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        dilation: int,
        relu_first: bool,
        norm: Norm | str | None,
    ) -> None:
        super().__init__()
        # Not in place: the block's shortcut adds the input as it was before this ReLU.
        self.before = nn.ReLU() if relu_first else nn.Identity()
        act = None if relu_first else "relu"
        self.depthwise = ConvNormAct(
            in_channels,
            in_channels,
            stride=stride,
            dilation=dilation,
            groups=in_channels,
            bias=False,
            norm=norm,
            norm_eps=NORM_EPS,
            act=act,
        )
        self.pointwise = ConvNormAct(
            in_channels, out_channels, 1, bias=False, norm=norm, norm_eps=NORM_EPS, act=act
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] → [B, out, ceil(H / stride), ceil(W / stride)]."""
        return self.pointwise(self.depthwise(self.before(x)))


class XceptionBlock(nn.Module):
    """Three separable convolutions beside a shortcut; the last of them carries the stride.

    Args:
        in_channels: of the input.
        unit:        its row of the table.
        stride:      of the third convolution and of the shortcut.
        dilations:   of each depthwise convolution.
        norm:        see `make_norm`.
    """

    def __init__(
        self,
        in_channels: int,
        unit: Unit,
        *,
        stride: int,
        dilations: Sequence[int],
        norm: Norm | str | None,
    ) -> None:
        super().__init__()
        inputs = (in_channels, *unit.channels[:-1])
        # The last block of the network has no shortcut, and its ReLUs come after the norms.
        convs = [
            Separable(
                c_in,
                c_out,
                stride=stride if i == 2 else 1,
                dilation=dilations[i],
                relu_first=unit.shortcut != "none",
                norm=norm,
            )
            for i, (c_in, c_out) in enumerate(zip(inputs, unit.channels, strict=True))
        ]
        self.conv1, self.conv2, self.conv3 = convs
        self.shortcut: nn.Module | None = None
        if unit.shortcut == "conv":
            self.shortcut = nn.Sequential()
            self.shortcut.add_module(
                "conv", nn.Conv2d(in_channels, unit.channels[2], 1, stride=stride, bias=False)
            )
            self.shortcut.add_module("norm", make_norm(norm, unit.channels[2], NORM_EPS))
        elif unit.shortcut == "identity":
            self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, and its second convolution's before the stride and any ReLU."""
        tap = self.conv2(self.conv1(x))  # [B, c2, H, W]
        y = self.conv3(tap)  # [B, c3, H / stride, W / stride]
        return (y if self.shortcut is None else y.add_(self.shortcut(x))), tap


class Xception(nn.Module):
    """The modified aligned Xception of DeepLabV3+, as a list of feature maps.

    All pooling is a strided separable convolution, padded by (k - 1) / 2 on both sides. The map of
    a level is the input of the convolution that leaves its stride: level 2 is the second separable
    convolution of an entry block (256 channels at stride 4, the decoder's shallow feature).

    Args:
        name:          "xception41", "xception65" or "xception71".
        in_channels:   of the images.
        output_stride: 8, 16 or 32; strides beyond it become dilation.
        levels:        1 is the stem, 5 the last map; level n has nominal stride 2^n.
        norm:          see `make_norm`.
        multi_grid:    factors on the dilations of the last block's three convolutions.
        tap_after_relu: levels 2..4 after the ReLU that follows them (timm) or before (TensorFlow).

    Source: DeepLabV3+ (arXiv:1802.02611), figure 4.
    """

    def __init__(
        self,
        name: str = "xception65",
        *,
        in_channels: int = 3,
        output_stride: int = 16,
        levels: Sequence[int] = (2, 5),
        norm: Norm | str | None = "batch",
        multi_grid: Sequence[int] = (1, 1, 1),
        tap_after_relu: bool = False,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise UsageError(f"output_stride is 8, 16 or 32, not {output_stride}")
        self.levels = tuple(sorted(levels))
        self.stem = nn.Sequential(
            ConvNormAct(in_channels, 32, stride=2, norm=norm, norm_eps=NORM_EPS),
            ConvNormAct(32, 64, norm=norm, norm_eps=NORM_EPS),
        )
        self.blocks = nn.ModuleList()
        self.after_tap = nn.ReLU() if tap_after_relu else nn.Identity()
        self._taps: dict[int, int] = {}  # block -> level that its tap gives
        channels, strides = {1: 64}, {1: 2}
        width, stride, dilation, level = 64, 2, 1, 1
        for i, unit in enumerate(XCEPTIONS[name]):
            step, rate = unit.stride, dilation
            if step > 1:
                if i > 0:  # the first block's tap would be level 1 again
                    level += 1
                    self._taps[i] = level
                    channels[level], strides[level] = unit.channels[1], stride
                if stride * step > output_stride:
                    dilation, step = dilation * step, 1
                stride *= step
            grid = multi_grid if unit.shortcut == "none" else (1, 1, 1)
            self.blocks.append(
                XceptionBlock(
                    width, unit, stride=step, dilations=[rate * g for g in grid], norm=norm
                )
            )
            width = unit.channels[2]
        channels[5], strides[5] = width, stride
        self.channels = tuple(channels[level] for level in self.levels)
        self.strides = tuple(strides[level] for level in self.levels)
        self._frozen = 0

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, C, H, W] → one map per level, finest first."""
        x = self.stem(images)  # [B, 64, H/2, W/2]
        maps = {1: x}
        for i, block in enumerate(self.blocks):
            x, tap = block(x)
            if self._taps.get(i) in self.levels:
                maps[self._taps[i]] = self.after_tap(tap)
        maps[5] = x  # [B, 2048, H / output_stride, W / output_stride]
        return [maps[level] for level in self.levels]

    def freeze(self, stages: int) -> None:
        """Stop training the first parts of the network, their batch statistics included.

        Args:
            stages: 0 none, 1 the stem, n the stem and the first n-1 blocks.
        """
        self._frozen = stages
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Xception:
        """As usual; frozen parts stay in evaluation."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        return [self.stem, *self.blocks][: self._frozen]
