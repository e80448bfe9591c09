"""MobileNetV3-Large as torchvision has it, whose dilated form carries its DeepLabV3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.nn.blocks import Act, ConvNormAct
from pixelwise.nn.norm import Norm

NORM_EPS = 1e-3  # of every norm in this backbone

# Where the tap of a level sits; the keys are arguments of `MobileNetV3`.
STYLES: dict[str, dict[str, Any]] = {
    "plain": {},
    "torchvision": {"tap_first": True},
}


class Row(NamedTuple):
    """One inverted residual block."""

    kernel: int
    inner: int
    channels: int
    squeeze: bool
    act: Act
    stride: int = 1


# fmt: off
MOBILENETS: dict[str, tuple[Row, ...]] = {
    "mobilenet_v3_large": (
        Row(3, 16, 16, False, "relu"),
        Row(3, 64, 24, False, "relu", 2),
        Row(3, 72, 24, False, "relu"),
        Row(5, 72, 40, True, "relu", 2),
        Row(5, 120, 40, True, "relu"),
        Row(5, 120, 40, True, "relu"),
        Row(3, 240, 80, False, "hard_swish", 2),
        Row(3, 200, 80, False, "hard_swish"),
        Row(3, 184, 80, False, "hard_swish"),
        Row(3, 184, 80, False, "hard_swish"),
        Row(3, 480, 112, True, "hard_swish"),
        Row(3, 672, 112, True, "hard_swish"),
        Row(5, 672, 160, True, "hard_swish", 2),
        Row(5, 960, 160, True, "hard_swish"),
        Row(5, 960, 160, True, "hard_swish"),
    ),
}
# fmt: on

_STEM = 16
_LAST = 6  # the head's channels per channel of the last block


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate that sees the mean of all of them.

    Args:
        channels: of the map.

    Source: arXiv:1709.01507; with a hard sigmoid, MobileNetV3 (arXiv:1905.02244), section 5.3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = _divisible_by_8(channels / 4)
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.expand = nn.Conv2d(inner, channels, 1)
        self.act = nn.ReLU(inplace=True)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → the same shape."""
        mean = x.mean((2, 3), keepdim=True)  # [B, C, 1, 1]
        return x * self.gate(self.expand(self.act(self.reduce(mean))))


class InvertedResidual(nn.Module):
    """1x1 to more channels, depthwise, squeeze and excitation, 1x1 to fewer; a shortcut if it fits.

    Args:
        in_channels: of the input.
        row:         of the table.
        stride:      of the depthwise convolution.
        dilation:    of it.
        norm:        see `make_norm`.
    """

    def __init__(
        self, in_channels: int, row: Row, *, stride: int, dilation: int, norm: Norm | str | None
    ) -> None:
        super().__init__()
        knobs: dict[str, Any] = {"bias": False, "norm": norm, "norm_eps": NORM_EPS}
        self.expand = (
            ConvNormAct(in_channels, row.inner, 1, act=row.act, **knobs)
            if row.inner != in_channels
            else nn.Identity()
        )
        self.depthwise = ConvNormAct(
            row.inner,
            row.inner,
            row.kernel,
            stride=stride,
            dilation=dilation,
            groups=row.inner,
            act=row.act,
            **knobs,
        )
        self.squeeze = SqueezeExcite(row.inner) if row.squeeze else nn.Identity()
        self.project = ConvNormAct(row.inner, row.channels, 1, act=None, **knobs)
        self.with_shortcut = row.stride == 1 and in_channels == row.channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] → [B, out, ceil(H / stride), ceil(W / stride)]."""
        y = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return y.add_(x) if self.with_shortcut else y


class MobileNetV3(nn.Module):
    """MobileNetV3-Large as a list of feature maps, at any output stride.

    A block whose cumulative stride would exceed `output_stride` keeps stride 1, and its depthwise
    convolution and all later ones are dilated by what was removed (timm leaves the first one as it
    was). Level 1 is the first block, levels 2 to 4 the last block at their stride, level 5 the
    convolution after the last block (960 channels).

    Args:
        name:          row of `MOBILENETS`.
        in_channels:   of the images.
        output_stride: 8, 16 or 32.
        levels:        which maps to return.
        norm:          see `make_norm`.
        tap_first:     levels 2 to 4 are the first block at their stride instead of the last, as
                       torchvision's segmentation networks take them.

    Attributes:
        channels: of each returned map.  strides: input pixels per cell of each returned map.

    Source: MobileNetV3 (arXiv:1905.02244), table 1; dilation and taps: torchvision.
    """

    def __init__(
        self,
        name: str = "mobilenet_v3_large",
        *,
        in_channels: int = 3,
        output_stride: int = 32,
        levels: Sequence[int] = (2, 3, 4, 5),
        norm: Norm | str | None = "batch",
        tap_first: bool = False,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise UsageError(f"output_stride is 8, 16 or 32, not {output_stride}")
        self.levels = tuple(sorted(levels))
        knobs: dict[str, Any] = {"norm": norm, "norm_eps": NORM_EPS, "act": "hard_swish"}
        self.stem = ConvNormAct(in_channels, _STEM, stride=2, **knobs)
        self.blocks = nn.ModuleList()
        self._taps: dict[int, int] = {}  # level -> block that gives it
        channels, strides = {1: _STEM}, {1: 2}
        width, stride, dilation, level = _STEM, 2, 1, 1
        for i, row in enumerate(MOBILENETS[name]):
            step = row.stride
            if step > 1:
                level += 1
                if stride * step > output_stride:
                    dilation, step = dilation * step, 1
                stride *= step
            self.blocks.append(
                InvertedResidual(width, row, stride=step, dilation=dilation, norm=norm)
            )
            width = row.channels
            if level not in self._taps or not tap_first:
                self._taps[level] = i
                channels[level], strides[level] = width, stride
        self.head = ConvNormAct(width, _LAST * width, 1, **knobs)
        channels[level] = _LAST * width
        self.channels = tuple(channels[n] for n in self.levels)
        self.strides = tuple(strides[n] for n in self.levels)
        self._frozen = 0

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, C, H, W] → one map per level, finest first."""
        x = self.stem(images)  # [B, 16, H/2, W/2]
        outputs: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        deepest = max(self._taps)
        return [
            self.head(x) if level == deepest else outputs[self._taps[level]]
            for level in self.levels
        ]

    def freeze(self, stages: int) -> None:
        """Stop training the first parts of the network, their batch statistics included.

        Args:
            stages: 0 none, 1 the stem, n the stem and the first n-1 blocks.
        """
        self._frozen = stages
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> MobileNetV3:
        """As usual; frozen parts stay in evaluation."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        return [self.stem, *self.blocks][: self._frozen]


def _divisible_by_8(channels: float) -> int:
    """The nearest multiple of 8, at least 8, and at least 0.9 of what was asked for."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
