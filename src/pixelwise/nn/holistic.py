"""Holistically-guided decoding: summarise the image in codewords, and spell every pixel with them.

No map is dilated and no deep map is merely enlarged: the summary is taken where maps are small and
deep, the spelling where they are large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.norm import Norm
from pixelwise.ops.resize import resize


class MultiScaleFusion(nn.Module):
    """Bring three maps to one size, twice: to the coarsest and to the finest.

    Args:
        channels: of the maps at strides 8, 16 and 32.
        width:    to which the two deeper ones are compressed; the shallow one stays as it is.
        norm:     see `make_norm`.

    Attributes:
        out_channels: of both results.

    Source: EfficientFCN (arXiv:2008.10487), section 3.
    """

    def __init__(
        self, channels: Sequence[int], width: int, *, norm: Norm | str | None = "batch"
    ) -> None:
        super().__init__()
        at8, at16, at32 = channels
        self.compress16 = ConvNormAct(at16, width, 1, norm=norm)
        self.compress32 = ConvNormAct(at32, width, 1, norm=norm)
        self.out_channels = at8 + 2 * width

    def forward(self, at8: Tensor, at16: Tensor, at32: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, h, w] at strides 8, 16, 32 → [B, out, h8, w8] and [B, out, h32, w32]."""
        maps = [at8, self.compress16(at16), self.compress32(at32)]
        fine, coarse = (
            torch.cat(
                [resize(m, (like.shape[2], like.shape[3]), align_corners=True) for m in maps], 1
            )
            for like in (at8, at32)
        )
        return fine, coarse


class Codebook(NamedTuple):
    """The summary of an image.

    Args:
        codewords: [B, D, n].
        mean:      [B, D, 1, 1], of the map that they were made from.
    """

    codewords: Tensor
    mean: Tensor


class HolisticCodebook(nn.Module):
    """Summarise a map in n codewords, each a weighted mean over all its positions.

    The softmax runs over positions, not over codewords: every codeword is a convex combination of
    what the map holds, and where things lie does not matter to it.

    Args:
        in_channels: of the map.
        width:       D, of a codeword.
        codewords:   n.
        norm:        see `make_norm`.

    Source: EfficientFCN (arXiv:2008.10487), section 3.
    """

    def __init__(
        self, in_channels: int, width: int, codewords: int, *, norm: Norm | str | None = "batch"
    ) -> None:
        super().__init__()
        self.base = ConvNormAct(in_channels, width, 1, norm=norm)
        self.spread = nn.Sequential(
            ConvNormAct(in_channels, codewords, 1, norm=norm),
            ConvNormAct(codewords, codewords, 1, bias=False, norm=norm, act=None),
        )

    def forward(self, x: Tensor) -> Codebook:
        """[B, in, h, w] → n codewords and the mean of the base map."""
        base = self.base(x)  # [B, D, h, w]
        codewords = base.flatten(2) @ self.weights(x).transpose(1, 2)  # [B, D, n]
        return Codebook(codewords, base.mean((2, 3), keepdim=True))

    def weights(self, x: Tensor) -> Tensor:
        """[B, in, h, w] → [B, n, h * w], the share of each position; a codeword's sum to 1."""
        return self.spread(x).flatten(2).softmax(2)


class CodewordAssembly(nn.Module):
    """Give every pixel of a fine map a linear combination of the codewords.

    Args:
        in_channels: of the fine map.
        width:       D, of a codeword and of the guide.
        codewords:   n.
        norm:        see `make_norm`.

    Source:  EfficientFCN (arXiv:2008.10487), section 3.
    Differs: as in the released code, the product is scaled by 1 / sqrt(n), and the mean of the base
        map joins the guide before the coefficients are computed.
    """

    def __init__(
        self, in_channels: int, width: int, codewords: int, *, norm: Norm | str | None = "batch"
    ) -> None:
        super().__init__()
        self.guide = ConvNormAct(in_channels, width, 1, norm=norm)
        self.coefficients = nn.Sequential(
            ConvNormAct(width, codewords, 1, norm=norm),
            ConvNormAct(codewords, codewords, 1, norm=norm),
        )

    def forward(self, x: Tensor, codebook: Codebook) -> Tensor:
        """[B, in, H, W] → [B, 2 * D, H, W]: what was assembled, and the guide."""
        guide = self.guide(x)  # [B, D, H, W]
        coefficients = self.coefficients(guide + codebook.mean)  # [B, n, H, W]
        return torch.cat([assemble(codebook.codewords, coefficients), guide], 1)


def assemble(codewords: Tensor, coefficients: Tensor) -> Tensor:
    """Combine codewords linearly, pixel by pixel.

    Args:
        codewords:    [B, D, n].
        coefficients: [B, n, H, W].

    Returns:
        [B, D, H, W], scaled by 1 / sqrt(n).
    """
    height, width = coefficients.shape[2], coefficients.shape[3]
    product = codewords @ coefficients.flatten(2)  # [B, D, H * W]
    return codewords.shape[2] ** -0.5 * product.unflatten(2, (height, width))
