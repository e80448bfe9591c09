"""The convolution blocks that every network is made of."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pixelwise.nn.depthwise import DepthwiseConv
from pixelwise.nn.norm import Norm, make_norm

Act = Literal["relu", "hard_swish", "leaky_relu"]


def make_act(kind: Act | None) -> nn.Module:
    """The activation of this name; None is the identity."""
    if kind == "hard_swish":
        return nn.Hardswish(inplace=True)
    if kind == "leaky_relu":
        return nn.LeakyReLU(0.1, inplace=True)  # the slope of Darknet
    return nn.Identity() if kind is None else nn.ReLU(inplace=True)


class ConvNormAct(nn.Module):
    """Convolution, normalisation, activation; each of the last two may be left out.

    Args:
        in_channels, out_channels: of the convolution.
        kernel:   side of the square kernel, odd.
        stride, dilation, groups: of the convolution.
        padding:  zeros on every side; None keeps the size: dilation * (kernel - 1) / 2.
        bias:     of the convolution; None gives it one exactly where there is no norm.
        norm:     see `make_norm`.
        norm_eps: of the norm.
        act:      "relu", "hard_swish", "leaky_relu" or None.
    """

    def __init__(  # noqa: PLR0913 (the knobs of one convolution)
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        padding: int | None = None,
        bias: bool | None = None,
        norm: Norm | str | None = "batch",
        norm_eps: float = 1e-5,
        act: Act | None = "relu",
    ) -> None:
        super().__init__()
        depthwise = 1 < groups == in_channels == out_channels
        self.conv = (DepthwiseConv if depthwise else nn.Conv2d)(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=dilation * (kernel - 1) // 2 if padding is None else padding,
            dilation=dilation,
            groups=groups,
            bias=norm is None if bias is None else bias,
        )
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        self.norm = make_norm(norm, out_channels, norm_eps)
        self.act = make_act(act)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] → [B, out, ceil(H / stride), ceil(W / stride)] at the default padding."""
        return self.act(self.norm(self.conv(x)))


class SeparableConv(nn.Module):
    """Depthwise 3x3, then pointwise 1x1: a full convolution of rank one per output channel.

    Args:
        in_channels, out_channels: of the pair.
        dilation: of the depthwise convolution.
        norm:     see `make_norm`.
        with_middle: norm and ReLU also between the two (DeepLab); without, the depthwise
            convolution is bare (segmentation_models.pytorch).

    Source: DeepLabV3+ (arXiv:1802.02611), section 3.1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dilation: int = 1,
        norm: Norm | str | None = "batch",
        with_middle: bool = True,
    ) -> None:
        super().__init__()
        self.depthwise = ConvNormAct(
            in_channels,
            in_channels,
            dilation=dilation,
            groups=in_channels,
            bias=False,
            norm=norm if with_middle else None,
            act="relu" if with_middle else None,
        )
        self.pointwise = ConvNormAct(in_channels, out_channels, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] → [B, out, H, W]."""
        return self.pointwise(self.depthwise(x))
