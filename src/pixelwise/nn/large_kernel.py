"""Large kernels at the price of their two sides, and the residual block that redraws boundaries."""

from __future__ import annotations

from torch import Tensor, nn

from pixelwise.nn.blocks import ConvNormAct


class GlobalConv(nn.Module):
    """A k x k convolution of rank two: down then across, plus across then down.

    Nothing non-linear lies between the two halves of a branch, so the sum is a linear map with the
    dense support of a k x k kernel, for 2k C (in + C) weights instead of k² in C.

    Args:
        in_channels:  of the feature map.
        out_channels: C, of the score map and between the two halves of each branch.
        kernel:       k, odd.

    Source: Large Kernel Matters (arXiv:1703.02719), section 3.1 and figure 3.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int = 15) -> None:
        super().__init__()
        down, across = (kernel, 1), (1, kernel)
        self.down_across = nn.Sequential(
            _bare_conv(in_channels, out_channels, down),
            _bare_conv(out_channels, out_channels, across),
        )
        self.across_down = nn.Sequential(
            _bare_conv(in_channels, out_channels, across),
            _bare_conv(out_channels, out_channels, down),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] → [B, C, H, W]."""
        return self.down_across(x) + self.across_down(x)


class BoundaryRefinement(nn.Module):
    """A residual correction of score maps: x + conv(relu(conv(x))), without norms.

    Args:
        channels: C of the score map.

    Source: Large Kernel Matters (arXiv:1703.02719), section 3.1 and figure 2 C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, channels, norm=None)
        self.conv2 = ConvNormAct(channels, channels, norm=None, act=None)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → the same shape."""
        return x + self.conv2(self.conv1(x))


def _bare_conv(in_channels: int, out_channels: int, kernel: tuple[int, int]) -> nn.Conv2d:
    """A convolution that keeps the size and, at the start, the variance."""
    padding = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=padding)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
    return conv
