"""Upsampling by a transposed convolution that starts as bilinear interpolation and may learn."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def bilinear_kernel(side: int) -> Tensor:
    """The 2-D tent that makes a transposed convolution interpolate.

    Args:
        side: k, of the kernel.

    Returns:
        [k, k] float32, the outer product of 1 - |i - c| / f with f = (k + 1) // 2 and c the centre.

    Source: FCN (arXiv:1411.4038), section 3.3, as in its released code.
    """
    reach = (side + 1) // 2
    centre = reach - 1 if side % 2 else reach - 0.5
    tent = 1 - (torch.arange(side) - centre).abs() / reach
    return tent[:, None] * tent[None, :]


class BilinearDeconv(nn.ConvTranspose2d):
    """A learnt upsampling by a whole factor, at the start bilinear interpolation of each channel.

    Interior pixels start as `resize(align_corners=False)` gives them; towards the border the map
    fades, since a transposed convolution sees zeros beyond it.

    Args:
        channels: C; every channel may learn to read every other.
        factor:   s >= 2.
        kernel:   side of the kernel; None for 2s - s % 2. FCN's AlexNet has 2s - 1.
        padding:  what is cut off on every side; None for s // 2, with which the map grows s times.

    Source: FCN (arXiv:1411.4038), section 3.3.
    """

    def __init__(
        self,
        channels: int,
        factor: int = 2,
        *,
        kernel: int | None = None,
        padding: int | None = None,
    ) -> None:
        side = kernel or 2 * factor - factor % 2
        cut = factor // 2 if padding is None else padding
        super().__init__(channels, channels, side, stride=factor, padding=cut, bias=False)

    def reset_parameters(self) -> None:
        """Bilinear interpolation again: the tent on the channel diagonal, zero elsewhere."""
        diagonal = torch.arange(self.in_channels)
        with torch.no_grad():
            self.weight.zero_()
            self.weight[diagonal, diagonal] = bilinear_kernel(self.kernel_size[0])
