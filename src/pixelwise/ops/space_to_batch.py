"""Atrous convolution without dilated kernels: a plain one on interleaved sub-maps.

A 3x3 kernel of rate r reads pixels r apart, so an output pixel only ever meets the inputs of its
own residue class modulo r. Sort the map into its r² residue classes, put them on the batch axis,
and an ordinary convolution does the rest.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from pixelwise.types import Size


def space_to_batch(x: Tensor, rate: int) -> Tensor:
    """Sort a map into r² sub-maps x[:, :, i::r, j::r], padded with zeros at the right and bottom.

    Args:
        x:    [B, C, H, W].
        rate: r.

    Returns:
        [r² B, C, ceil(H / r), ceil(W / r)]; sub-map (i, j) of image n is number (i r + j) B + n.

    Source: DeepLab V2 (arXiv:1606.00915), section 3.1; TensorFlow's operator of this name.
    """
    batch, channels, height, width = x.shape
    padded = F.pad(x, (0, -width % rate, 0, -height % rate))
    rows, columns = padded.shape[2] // rate, padded.shape[3] // rate
    cells = padded.view(batch, channels, rows, rate, columns, rate)
    return cells.permute(3, 5, 0, 1, 2, 4).reshape(-1, channels, rows, columns)


def batch_to_space(x: Tensor, rate: int, size: Size) -> Tensor:
    """The inverse of `space_to_batch`, cut to a size.

    Args:
        x:    [r² B, C, h, w].
        rate: r.
        size: (H, W) of the result, at most (h r, w r).

    Returns:
        [B, C, H, W].
    """
    count, channels, rows, columns = x.shape
    cells = x.view(rate, rate, count // rate**2, channels, rows, columns)
    whole = cells.permute(2, 3, 4, 0, 5, 1).reshape(-1, channels, rows * rate, columns * rate)
    return whole[:, :, : size[0], : size[1]]


def atrous_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, rate: int, groups: int = 1
) -> Tensor:
    """Convolve with a dilated kernel by space-to-batch; equal to `conv2d(..., dilation=rate)`.

    Args:
        x:      [B, C, H, W].
        weight: [D, C / groups, k, k], k odd.
        bias:   [D] or None.
        rate:   distance of the kernel's taps; the padding is rate (k - 1) / 2 and keeps the size.
        groups: of the convolution.

    Returns:
        [B, D, H, W].

    Source: DeepLab V2 (arXiv:1606.00915), section 3.1.
    """
    parts = space_to_batch(x, rate)  # [r² B, C, ceil(H / r), ceil(W / r)]
    parts = F.conv2d(parts, weight, bias, padding=weight.shape[-1] // 2, groups=groups)
    return batch_to_space(parts, rate, (x.shape[2], x.shape[3]))
