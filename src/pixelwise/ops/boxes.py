"""Arithmetic on boxes: areas, overlaps, coding against references, clipping.

Boxes are xyxy, right and bottom exclusive, so a width is x2 - x1. Systems of the first generation
(R-FCN, FCIS, the first Detectron) count x2 - x1 + 1 instead; `plus_one=True` is that convention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pixelwise.types import Size

# A box may grow by at most this factor per step; larger deltas come from untrained networks and
# would overflow in exp. The value is Detectron's, kept by all its successors.
MAX_LOG_SCALE = math.log(1000 / 16)

UNIT_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


def box_areas(boxes: Tensor, *, plus_one: bool = False) -> Tensor:
    """Compute width times height.

    Args:
        boxes:    [..., 4] xyxy in pixels.
        plus_one: widths are x2 - x1 + 1.

    Returns:
        [...] square pixels; negative where exactly one side is turned round.
    """
    width, height = _extents(boxes, plus_one).unbind(-1)  # [...] each
    return width * height


def pairwise_iou(a: Tensor, b: Tensor, *, plus_one: bool = False) -> Tensor:
    """Intersection over union of every box with every other.

    Args:
        a:        [..., N, 4] xyxy in pixels.
        b:        [..., M, 4] xyxy in pixels.
        plus_one: widths are x2 - x1 + 1.

    Returns:
        [..., N, M] in [0, 1]; 0 where both boxes are empty.
    """
    inter = _intersections(a, b, plus_one)  # [..., N, M]
    areas_a, areas_b = box_areas(a, plus_one=plus_one), box_areas(b, plus_one=plus_one)
    union = areas_a[..., :, None] + areas_b[..., None, :] - inter  # [..., N, M]
    return torch.where(union > 0, inter / union, 0)


def pairwise_ioa(boxes: Tensor, regions: Tensor, *, plus_one: bool = False) -> Tensor:
    """Share of each box that lies inside each region (intersection over the box's own area).

    This is how a box is compared with a crowd region: being inside it is what counts.

    Args:
        boxes:    [N, 4] xyxy in pixels.
        regions:  [M, 4] xyxy in pixels.
        plus_one: widths are x2 - x1 + 1.

    Returns:
        [N, M] in [0, 1]; 0 for an empty box.
    """
    own = box_areas(boxes, plus_one=plus_one)[:, None]  # [N, 1]
    return torch.where(own > 0, _intersections(boxes, regions, plus_one) / own, 0)


def encode_boxes(
    references: Tensor,
    targets: Tensor,
    weights: Sequence[float] = UNIT_WEIGHTS,
    *,
    plus_one: bool = False,
) -> Tensor:
    """Express boxes relative to references: shift in units of the size, log of the size ratio.

    Args:
        references: [N, 4] xyxy in pixels (anchors or proposals), with positive extents.
        targets:    [N, 4] xyxy in pixels, with positive extents.
        weights:    factors of dx, dy, dw, dh; (10, 10, 5, 5) is the same as dividing by standard
            deviations (.1, .1, .2, .2).
        plus_one:   widths are x2 - x1 + 1.

    Returns:
        [N, 4] deltas dx, dy, dw, dh.

    Source: R-CNN (arXiv:1311.2524), appendix C.
    """
    centres, extents = _centres(references, plus_one)  # [N, 2] each
    target_centres, target_extents = _centres(targets, plus_one)
    shifts = (target_centres - centres) / extents  # [N, 2]
    growths = torch.log(target_extents / extents)  # [N, 2]
    deltas = (*shifts.unbind(-1), *growths.unbind(-1))  # [N] each
    return torch.stack([d * weight for d, weight in zip(deltas, weights, strict=True)], dim=-1)


def decode_boxes(
    deltas: Tensor,
    references: Tensor,
    weights: Sequence[float] = UNIT_WEIGHTS,
    *,
    max_log_scale: float = MAX_LOG_SCALE,
    clamp_both: bool = False,
    plus_one: bool = False,
) -> Tensor:
    """Invert `encode_boxes`.

    Args:
        deltas:        [..., 4 k] dx, dy, dw, dh of k classes one after another; any float type.
        references:    [..., 4] xyxy in pixels; the k boxes of a row share one.
        weights:       the factors that the encoding used.
        max_log_scale: upper bound of dw and dh after division by the weights.
        clamp_both:    bound them from below too, by its negative (MMDetection does).
        plus_one:      widths are x2 - x1 + 1.

    Returns:
        [..., 4 k] xyxy in pixels, not clipped to the image, in the type of the references.

    Source: R-CNN (arXiv:1311.2524), appendix C.
    """
    parts = deltas.to(references.dtype).unflatten(-1, (-1, 4))  # [..., k, 4]
    centres, extents = (v.unsqueeze(-2) for v in _centres(references, plus_one))  # [..., 1, 2]
    centres = _divided(parts[..., :2], weights[:2]) * extents + centres  # [..., k, 2]
    lowest = -max_log_scale if clamp_both else None
    growths = _divided(parts[..., 2:], weights[2:]).clamp(lowest, max_log_scale).exp()
    extents = extents * growths  # [..., k, 2]
    half = 0.5 * (extents - 1 if plus_one else extents)
    return torch.cat([centres - half, centres + half], dim=-1).flatten(-2)


def clip_boxes(boxes: Tensor, size: Size, *, plus_one: bool = False) -> Tensor:
    """Move corners that lie outside a picture onto its border.

    Args:
        boxes:    [..., 4 k] xyxy in pixels, k boxes one after another.
        size:     (height, width) in pixels.
        plus_one: the last pixel is the border, not the edge behind it.

    Returns:
        [..., 4 k] with x in [0, width] and y in [0, height].
    """
    height, width = size
    one = 1 if plus_one else 0
    x = boxes[..., 0::2].clamp(0, width - one)  # [..., 2 k]
    y = boxes[..., 1::2].clamp(0, height - one)
    return torch.stack([x, y], dim=-1).flatten(-2)


def _intersections(a: Tensor, b: Tensor, plus_one: bool) -> Tensor:
    """[..., N, M] common area; one axis at a time, since N x M can be millions."""
    inter = None
    for low, high in ((0, 2), (1, 3)):
        end = torch.minimum(a[..., :, None, high], b[..., None, :, high])  # [..., N, M]
        begin = torch.maximum(a[..., :, None, low], b[..., None, :, low])  # [..., N, M]
        extent = end - begin + 1 if plus_one else end - begin
        extent = extent.clamp(min=0)  # [..., N, M]
        inter = extent if inter is None else inter * extent
    assert inter is not None
    return inter


def _extents(boxes: Tensor, plus_one: bool) -> Tensor:
    """Width and height, [..., 2]."""
    extents = boxes[..., 2:] - boxes[..., :2]
    return extents + 1 if plus_one else extents


def _centres(boxes: Tensor, plus_one: bool) -> tuple[Tensor, Tensor]:
    """Centre (x, y) and extent (width, height); [..., 2] each."""
    extents = _extents(boxes, plus_one)
    return boxes[..., :2] + 0.5 * (extents - 1 if plus_one else extents), extents


def _divided(pairs: Tensor, by: Sequence[float]) -> Tensor:
    """[..., 2] by two numbers; not by a tensor of them, for which a GPU would wait."""
    if by[0] == by[1]:  # as everywhere so far
        return pairs / by[0]
    return torch.stack([v / number for v, number in zip(pairs.unbind(-1), by, strict=True)], dim=-1)
