"""Deformable convolution."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F


class DeformConv(nn.Module):
    """A convolution that moves and weighs its samples by what it sees (version 2, modulated).

    A plain convolution beside it predicts three numbers per tap and place: how far the tap moves
    down, how far right, in pixels of the input, and a weight in (0, 1). It starts at zero: taps in
    place with weight 1/2. Unlike the convolution that it replaces, it has a bias before a norm.

    Args:
        in_channels, out_channels: of the convolution.
        kernel:   side of the kernel, odd.
        stride, dilation: of both convolutions.
        groups:   of channels that move together.

    Source:  Zhu et al., "Deformable ConvNets v2" (arXiv:1811.11168), section 3.2; weights in (0, 1)
        as in its released code.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.padding = dilation * (kernel // 2)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.offset_mask = nn.Conv2d(
            in_channels,
            3 * groups * kernel**2,
            kernel,
            stride=stride,
            padding=self.padding,
            dilation=dilation,
        )
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.offset_mask.weight)
        assert self.offset_mask.bias is not None
        nn.init.zeros_(self.offset_mask.bias)

    def taps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Where each tap reads, and how much it counts.

        Args:
            x: [B, in, H, W].

        Returns:
            offsets [B, 2GT, h, w] in input pixels, of T taps in row-major order, y before x; and
            weights [B, GT, h, w] in (0, 1).
        """
        offsets, weights = self.offset_mask(x).tensor_split(
            [self.offset_mask.out_channels // 3 * 2], dim=1
        )
        return offsets, weights.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] → [B, out, ceil(H / stride), ceil(W / stride)]."""
        offsets, weights = self.taps(x)
        if offsets.dtype == self.weight.dtype:
            return self._convolve(x, offsets, weights)
        # Mixed precision. In bf16 places beyond pixel 256 would be even, and a CPU has no kernel.
        with torch.autocast(x.device.type, enabled=False):
            return self._convolve(x.float(), offsets.float(), weights.float()).to(x.dtype)

    def _convolve(self, x: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self.sample(x, offsets, weights)
        return torchvision.ops.deform_conv2d(
            x,
            offsets,
            self.weight,
            self.bias,
            stride=(self.stride, self.stride),
            padding=(self.padding, self.padding),
            dilation=(self.dilation, self.dilation),
            mask=weights,
        )

    def sample(self, x: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        """The same from operators that every exporter knows: sample all taps, then multiply.

        It takes as much memory as the taps, and more time.

        Args:
            x:       [B, in, H, W].
            offsets: [B, 2GT, h, w], see `taps`.
            weights: [B, GT, h, w].
        """
        batch, channels, height, width = x.shape
        h, w = offsets.shape[-2:]
        kernel, count = self.weight.shape[-1], batch * self.groups
        steps = torch.arange(kernel, device=x.device) * self.dilation - self.padding
        tap_y, tap_x = torch.meshgrid(steps, steps, indexing="ij")  # [k, k]
        moved = offsets.reshape(count, kernel**2, 2, h, w)
        y = moved[:, :, 0] + tap_y.reshape(-1, 1, 1)
        y = y + (torch.arange(h, device=x.device) * self.stride)[:, None]
        column = moved[:, :, 1] + tap_x.reshape(-1, 1, 1)
        column = column + torch.arange(w, device=x.device) * self.stride  # [count, T, h, w]
        # From pixels to what grid_sample takes: -1 and 1 are the edges of the picture.
        grid = torch.stack([(2 * column + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
        parts = x.reshape(count, channels // self.groups, height, width)
        read = F.grid_sample(parts, grid.flatten(1, 2), align_corners=False)  # [count, C/G, Th, w]
        read = read.unflatten(2, (kernel**2, h)) * weights.reshape(count, 1, kernel**2, h, w)
        read = read.reshape(batch, channels * kernel**2, h, w)
        return F.conv2d(read, self.weight.flatten(1)[..., None, None], self.bias)
