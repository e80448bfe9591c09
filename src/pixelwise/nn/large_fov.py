"""DeepLab's LargeFOV: VGG's first fully connected layer as an atrous 3x3 convolution."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from pixelwise.nn.fully_convolutional import FullyConvolutional

_SPREAD = 0.01  # standard deviation of a new classifier's weights, as in Caffe


class LargeFOV(FullyConvolutional):
    """fc6 and fc7 with a field of view that the rate chooses, not the kernel.

    A 7x7 kernel of rate 4 spans 25 cells, and so does a 3x3 kernel of rate 12 with a fifth of the
    weights.

    Args:
        in_channels: of the map.
        width:       channels of fc6 and fc7: 1024, or VGG's 4096.
        kernel:      side of fc6's kernel: 3, or VGG's 7, or 4.
        rate:        of fc6, in cells; rate (kernel - 1) is even, so that the size is kept.
        dropout:     probability, after both.

    Source: DeepLab V1 (arXiv:1412.7062), section 3.2 and table 2.
    """

    def __init__(
        self,
        in_channels: int,
        width: int = 1024,
        *,
        kernel: int = 3,
        rate: int = 12,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(in_channels, width, kernel=kernel, dilation=rate, dropout=dropout)


def make_classifier(
    in_channels: int, num_classes: int, *, kernel: int = 1, rate: int = 1
) -> nn.Conv2d:
    """A biased convolution to class scores (fc8); small weights let all classes start alike.

    Args:
        in_channels: of its input.
        num_classes: K.
        kernel:      side, odd; the padding keeps the size.
        rate:        dilation.
    """
    padding = rate * (kernel // 2)
    conv = nn.Conv2d(in_channels, num_classes, kernel, padding=padding, dilation=rate)
    nn.init.normal_(conv.weight, std=_SPREAD)
    nn.init.zeros_(cast("Tensor", conv.bias))
    return conv
