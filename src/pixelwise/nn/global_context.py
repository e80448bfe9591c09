"""ParseNet's module: every position also sees the mean of the whole image, at an equal scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPS = 1e-10  # added to the squared length, so that a position of zeros stays zero


class L2Norm(nn.Module):
    """Divide each position by its length over the channels; multiply by a learnt scale per channel.

    Layers differ in scale by orders of magnitude: joined as they are, the larger one decides and
    the smaller one is noise. A fixed length with a learnt scale lets training weigh them.

    Args:
        channels: of the map.
        scale:    of every channel at the start; ParseNet's 10 (SSD takes 20).

    Source: ParseNet (arXiv:1506.04579), section 3.3, equations 1 to 5.
    """

    def __init__(self, channels: int, scale: float = 10.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), float(scale)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → the same shape."""
        # Squares of half-precision numbers overflow.
        wide = x if x.dtype == torch.float64 else x.float()
        length = wide.square().sum(1, keepdim=True).add(_EPS).sqrt()  # [B, 1, H, W]
        return x / length.to(x.dtype) * self.weight.to(x.dtype)[:, None, None]


class GlobalContext(nn.Module):
    """A map and its global average, each with its L2 norm, concatenated.

    The average is "unpooled": the same at every position.

    Args:
        channels:  of the map.
        scale:     of both norms, see `L2Norm`.
        with_norm: False joins the two at whatever scale they have.

    Attributes:
        out_channels: of the result, twice those of the map.

    Source: ParseNet (arXiv:1506.04579), figure 2.
    """

    def __init__(self, channels: int, scale: float = 10.0, *, with_norm: bool = True) -> None:
        super().__init__()
        self.out_channels = 2 * channels
        self.local_norm = L2Norm(channels, scale) if with_norm else nn.Identity()
        self.global_norm = L2Norm(channels, scale) if with_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, 2 C, H, W]: the map first, then its average."""
        mean = self.global_norm(x.mean((2, 3), keepdim=True))  # [B, C, 1, 1]
        return torch.cat([self.local_norm(x), mean.expand_as(x)], 1)
