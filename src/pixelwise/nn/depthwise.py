"""Depthwise convolutions that train fast on a CPU."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from pixelwise.ops.depthwise import depthwise_conv2d
from pixelwise.types import Size


class DepthwiseConv(nn.Conv2d):
    """A `Conv2d` with one kernel per channel whose gradients avoid oneDNN's slow kernels.

    Source: MobileNets (arXiv:1704.04861), section 3.1.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, h, w]."""
        return depthwise_conv2d(
            input,
            self.weight,
            self.bias,
            stride=cast("Size", self.stride),
            padding=cast("Size", self.padding),
            dilation=cast("Size", self.dilation),
        )


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution has one kernel per channel and zeros around its input."""
    return (
        1 < conv.groups == conv.in_channels == conv.out_channels
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


def use_depthwise(module: nn.Module) -> None:
    """Make every depthwise convolution of a network a `DepthwiseConv`, in place.

    Results, parameters and the keys of the state dict stay what they are.

    Args:
        module: any network.
    """
    for conv in module.modules():
        if type(conv) is nn.Conv2d and is_depthwise(conv):
            conv.__class__ = DepthwiseConv  # keeps parameters, hooks and everyone's references
