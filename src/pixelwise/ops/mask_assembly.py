"""Masks as linear combinations of prototypes, cropped by boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelwise.types import Size

CROP_MARGIN = 1.0  # cells around a box that a mask may still use; released code


def assemble_masks(
    prototypes: Tensor, coefficients: Tensor, boxes: Tensor, *, with_crop: bool = True
) -> Tensor:
    """Combine prototype maps linearly into one mask per instance.

    The product is cropped with the box after the sigmoid, so a prototype may respond anywhere in
    the image without leaking into other instances; and before any upsampling, so that the edges of
    a crop are blended with zeros there.

    Args:
        prototypes:   [P, h, w] activations at 1/4 of the input resolution.
        coefficients: [N, P] in (-1, 1), after tanh.
        boxes:        [N, 4] xyxy in cells of the prototypes.
        with_crop:    zero everything outside the box.

    Returns:
        probs: [N, h, w] in [0, 1].

    Source:  YOLACT (arXiv:1904.02689), section 3.3, eq. 1.
    """
    probs = combine(prototypes, coefficients).sigmoid()
    if not with_crop:
        return probs
    return probs * crop_support(boxes, (probs.shape[1], probs.shape[2]))


def combine(prototypes: Tensor, coefficients: Tensor) -> Tensor:
    """Mask logits: the sum of prototypes [P, h, w] weighted by coefficients [N, P]; [N, h, w]."""
    return torch.einsum("np,phw->nhw", coefficients, prototypes)


def crop_support(boxes: Tensor, size: Size) -> Tensor:
    """Which cells a mask may use: those of its box and of a margin of one cell.

    A cell counts by its index, not by its centre. Corners may come in any order and lie outside.

    Args:
        boxes: [N, 4] xyxy in cells.
        size:  (height, width) in cells.

    Returns:
        [N, *size] bool: cell i is inside where low - 1 <= i < high + 1.

    Source:  YOLACT, released code.
    """
    low = torch.minimum(boxes[:, :2], boxes[:, 2:]) - CROP_MARGIN  # [N, 2]
    high = torch.maximum(boxes[:, :2], boxes[:, 2:]) + CROP_MARGIN
    y = torch.arange(size[0], device=boxes.device)
    x = torch.arange(size[1], device=boxes.device)
    rows = (y >= low[:, 1:]) & (y < high[:, 1:])  # [N, h]
    columns = (x >= low[:, :1]) & (x < high[:, :1])  # [N, w]
    return rows[:, :, None] & columns[:, None]
