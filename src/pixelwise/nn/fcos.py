"""What detectors without anchors share: which points learn what, losses, detections from points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.losses.box import OverlapKind, ltrb_overlap_loss
from pixelwise.losses.focal import sigmoid_focal
from pixelwise.nn.regions import best_first, usable_objects
from pixelwise.ops.boxes import pairwise_ioa
from pixelwise.ops.matching import BACKGROUND, IGNORED
from pixelwise.ops.points import Points, assign_points, box_centerness, boxes_to_ltrb, ltrb_to_boxes
from pixelwise.ops.suppress import greedy_nms
from pixelwise.types import InstanceTarget

CENTRE_RADIUS = 1.5  # strides


class PointOutput(NamedTuple):
    """What the head says of all N points, in the order of `Points`.

    logits: [B, N, K]. ltrb: [B, N, 4] >= 0, distances to the box's sides in strides. centerness:
    [B, N] logits.
    """

    logits: Tensor
    ltrb: Tensor
    centerness: Tensor


class PointDetections(NamedTuple):
    """The same number of detections for every image, best first; zeros where not valid.

    boxes: [B, D, 4] xyxy in network-input pixels, may leave the image. scores: [B, D] >= 0. labels:
    [B, D] int64. valid: [B, D] bool. points: [B, D] int64, where each comes from, in 0..N-1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    points: Tensor


class Positives(NamedTuple):
    """The M points of a batch that stand for an object.

    image: [M] int64. point: [M] int64 in 0..N-1. owner: [M] int64, position in the image's target.
    """

    image: Tensor
    point: Tensor
    owner: Tensor


@torch.no_grad()
def match_points(
    points: Points, targets: Sequence[InstanceTarget], *, radius: float = CENTRE_RADIUS
) -> Tensor:
    """Assign the points of every image to its objects, by box centres.

    Args:
        points:  N of them.
        targets: one per image.
        radius:  see `assign_points`.

    Returns:
        [B, N] int64: the object's position, BACKGROUND, or IGNORED inside a crowd.
    """
    found: list[Tensor] = []
    for target in targets:
        objects = usable_objects(target)
        owner = assign_points(points, target.boxes[objects], radius=radius)
        found.append(name_owners(owner, objects, points, target))
    return torch.stack(found)


def name_owners(owner: Tensor, objects: Tensor, points: Points, target: InstanceTarget) -> Tensor:
    """Positions among some objects → positions in the target; background in a crowd is IGNORED.

    Args:
        owner:   [N] int64, positions in `objects` or BACKGROUND.
        objects: [G] int64, positions in the target.
        points:  N of them.
        target:  of the image.
    """
    # One spare place, for there may be no object.
    named = torch.where(owner >= 0, F.pad(objects, (0, 1))[owner.clamp(min=0)], owner)
    pixels = torch.cat([points.xy, points.xy + 1], dim=1)  # [N, 4]
    crowded = (pairwise_ioa(pixels, target.boxes[target.crowd]) > 0.5).any(dim=1)
    return torch.where((named == BACKGROUND) & crowded, IGNORED, named)


def positives_of(matches: Tensor) -> Positives:
    """The points of `match_points` [B, N] that stand for an object."""
    image, point = (matches >= 0).nonzero(as_tuple=True)
    return Positives(image, point, matches[image, point])


def gather_objects(values: Sequence[Tensor], found: Positives) -> Tensor:
    """A value per object, [G_i, ...] of each image, for every positive point: [M, ...]."""
    counts = torch.tensor([0, *(len(v) for v in values[:-1])], device=found.owner.device)
    return torch.cat(list(values))[counts.cumsum(0)[found.image] + found.owner]


def point_class_loss(logits: Tensor, matches: Tensor, targets: Sequence[InstanceTarget]) -> Tensor:
    """Focal loss of all classes at all points that are not ignored, summed.

    Args:
        logits:  [B, N, K].
        matches: [B, N] of `match_points`.
        targets: one per image.
    """
    wanted = torch.zeros_like(logits, dtype=torch.float32)
    found = positives_of(matches)
    labels = gather_objects([target.labels for target in targets], found)
    wanted[found.image, found.point, labels] = 1
    losses = sigmoid_focal(logits, wanted)
    return losses.masked_fill((matches == IGNORED)[..., None], 0).sum()


def box_targets(points: Points, found: Positives, targets: Sequence[InstanceTarget]) -> Tensor:
    """[M, 4] distances from the positive points to the sides of their boxes, in strides."""
    boxes = gather_objects([target.boxes for target in targets], found)
    return boxes_to_ltrb(points.xy[found.point], boxes) / points.strides[found.point, None]


def fcos_loss(
    output: PointOutput,
    points: Points,
    matches: Tensor,
    targets: Sequence[InstanceTarget],
    *,
    kind: OverlapKind = "giou",
) -> dict[str, Tensor]:
    """Focal loss of the classes, overlap loss of the boxes, binary cross entropy of centerness.

    The boxes of central points weigh more: by their centerness, whose sum is the divisor.

    Args:
        output:  of the head.
        points:  N of them.
        matches: [B, N] of `match_points`.
        targets: one per image.
        kind:    of the overlap loss.

    Returns:
        "class", "box" and "centerness".

    Source:  FCOS (arXiv:1904.01355), eq. 2; GIoU and the weights: arXiv:2006.09214.
    """
    found = positives_of(matches)
    wanted = box_targets(points, found, targets)
    weights = box_centerness(wanted)  # [M]
    count = max(1, len(weights))
    boxes = output.ltrb[found.image, found.point].float()
    overlap = ltrb_overlap_loss(boxes, wanted, kind=kind, smooth=1.0)
    centerness = output.centerness[found.image, found.point].float()
    return {
        "class": point_class_loss(output.logits, matches, targets) / count,
        "box": (overlap * weights).sum() / weights.sum().clamp(min=1e-6),
        "centerness": F.binary_cross_entropy_with_logits(centerness, weights, reduction="sum")
        / count,
    }


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which pairs of point and class become detections.

    Args:
        score_thresh: a pair must score more than this, 0..1.
        with_centerness: that score is probability times centerness, not the probability alone.
        per_level:    pairs that stay of each level, ranked by probability times centerness.
        iou_thresh:   of the greedy suppression within each class.
        count:        D, detections per image.
    """

    score_thresh: float
    with_centerness: bool
    per_level: int
    iou_thresh: float
    count: int


def fcos_detect(
    output: PointOutput, points: Points, cells: Sequence[int], selection: Selection
) -> PointDetections:
    """Detections of every image: the best pairs of point and class per level, then suppression.

    Args:
        output:    of the head.
        points:    N of them.
        cells:     how many of them each level has.
        selection: its limits.

    Source:  FCOS (arXiv:1904.01355), section 3.3; the score is the square root of the product.
    """
    found: list[tuple[Tensor, ...]] = []
    ltrb = output.ltrb.float() * points.strides[:, None]
    boxes = ltrb_to_boxes(points.xy, ltrb)  # [B, N, 4]
    probs = output.logits.float().sigmoid()  # [B, N, K]
    ranks = probs * output.centerness.float().sigmoid()[..., None]
    passed = (ranks if selection.with_centerness else probs) > selection.score_thresh
    scores = torch.where(passed, ranks, -1.0)
    for image, places in zip(scores, boxes, strict=True):
        values, point, label = best_pairs(image, cells, selection.per_level)
        values = torch.where(values >= 0, values.clamp(min=0).sqrt(), -1.0)
        found.append(
            suppress(
                places,
                values,
                point,
                label,
                iou_thresh=selection.iou_thresh,
                count=selection.count,
            )
        )
    return PointDetections(*(torch.stack(parts) for parts in zip(*found, strict=True)))


def best_pairs(scores: Tensor, cells: Sequence[int], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of point and class of each level.

    Args:
        scores: [N, K].
        cells:  points of each level.
        count:  most pairs per level.

    Returns:
        values [M], points [M] int64 and classes [M] int64, level by level.
    """
    classes = scores.shape[1]
    values: list[Tensor] = []
    index: list[Tensor] = []
    first = 0
    for level in scores.split(list(cells)):
        best, at = level.flatten().topk(min(count, level.numel()))
        values.append(best)
        index.append(at + first * classes)
        first += len(level)
    pairs = torch.cat(index)
    return (
        torch.cat(values),
        torch.div(pairs, classes, rounding_mode="floor"),
        pairs % classes,
    )


def suppress(
    boxes: Tensor, scores: Tensor, point: Tensor, label: Tensor, *, iou_thresh: float, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Greedy suppression within each class, to a fixed number of detections.

    Args:
        boxes:      [N, 4] xyxy of the image's points.
        scores:     [M]; what is negative is no candidate.
        point:      [M] int64, the candidates' points.
        label:      [M] int64.
        iou_thresh: in [0, 1].
        count:      D.

    Returns:
        One image's part of `PointDetections`.
    """
    places = boxes[point]  # [M, 4]
    # What is no candidate comes last, where it can suppress no other.
    kept = greedy_nms(places, scores, label, iou_thresh=iou_thresh)
    scores = scores.masked_fill(~kept, -1.0)
    best, order = best_first(scores[None], min(count, len(scores)))
    missing = count - best.shape[1]
    best, order = F.pad(best[0], (0, missing), value=-1.0), F.pad(order[0], (0, missing))
    valid = best >= 0  # [D]
    return (
        places[order].masked_fill(~valid[:, None], 0.0),
        best.masked_fill(~valid, 0.0),
        label[order].masked_fill(~valid, 0),
        valid,
        point[order].masked_fill(~valid, 0),
    )
