"""Blending: instance masks as sums of bases, each weighted by a small map of attention."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from pixelwise.ops.roi import roi_align

Interpolation = Literal["bilinear", "nearest"]

BASES_STRIDE = 4  # input pixels per cell of the bases
_SAMPLING = 1  # per bin and axis; released code


def pool_bases(bases: Tensor, rois: Tensor, side: int) -> Tensor:
    """Cut the bases out at regions.

    Args:
        bases: [B, K, h, w] at 1/4 of the input resolution.
        rois:  [R, 5] image index and xyxy in network-input pixels; they may leave the image.
        side:  cells per side of the result.

    Returns:
        [R, K, side, side] float32.

    Source:  BlendMask (arXiv:2001.00309), section 3.3, eq. 1.
    """
    # Half precision would round the corners of regions to whole pixels and worse.
    return roi_align(
        bases.float(), rois, side, scale=1 / BASES_STRIDE, sampling=_SAMPLING, aligned=True
    )


def blend(bases: Tensor, attention: Tensor, *, interpolation: Interpolation = "bilinear") -> Tensor:
    """Sum the bases of each region, weighted cell by cell.

    The attention is enlarged to the size of the bases first, and then the bases of each cell
    compete (softmax). For "nearest" the order does not matter; for "bilinear" it does.

    With one cell of attention this is YOLACT's linear combination; with one-hot attention over
    M * M bases it is FCIS's assembly of position-sensitive maps.

    Args:
        bases:         [R, K, S, S] of the regions.
        attention:     [R, K, M, M] logits.
        interpolation: of the attention.

    Returns:
        [R, S, S] mask logits, in every cell between the least and the largest of its bases.

    Source:  BlendMask (arXiv:2001.00309), section 3.3, eq. 2 to 5.
    Differs: the paper takes the softmax before it interpolates; here as in the released code.
    """
    align_corners = False if interpolation == "bilinear" else None
    enlarged = F.interpolate(
        attention.float(), bases.shape[-2:], mode=interpolation, align_corners=align_corners
    )  # [R, K, S, S]
    return (enlarged.softmax(dim=1) * bases).sum(dim=1)
