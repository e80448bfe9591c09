"""DeepLab's LargeFOV: VGG's first fully connected layer as an atrous 3x3 convolution."""

from __future__ import annotations

from torch import Tensor, nn

from pixelwise.nn.blocks import ConvNormAct


class LargeFOV(nn.Module):
    """fc6 and fc7, each with ReLU and dropout.

    A 7x7 kernel of rate 4 sees 25 cells, a 3x3 kernel of rate 12 as well, with a fifth of the
    weights: the field of view is the rate's to choose, not the kernel's.

    Args:
        in_channels: of the map.
        width:       channels of fc6 and fc7: 1024, or VGG's 4096.
        kernel:      side of fc6's kernel: 3, or VGG's 7.
        rate:        of fc6, in cells.
        dropout:     probability, after both.

    Source: DeepLab V1 (arXiv:1412.7062), section 3.2.
    """

    def __init__(
        self,
        in_channels: int,
        width: int = 1024,
        *,
        kernel: int = 3,
        rate: int = 12,
        dropout: float,
    ) -> None:
        super().__init__()
        self.fc6 = ConvNormAct(in_channels, width, kernel, dilation=rate, norm=None)
        self.fc7 = ConvNormAct(width, width, 1, norm=None)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, h, w] → [B, width, h, w]."""
        return self.dropout(self.fc7(self.dropout(self.fc6(x))))
