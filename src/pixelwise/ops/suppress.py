"""Removal of duplicate detections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from pixelwise.ops.boxes import pairwise_iou

Positions = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float32]

_PIXEL_CHUNK = 1 << 22  # mask pixels turned to float32 at a time: 16 MB
_PAIR_CHUNK = 1 << 14  # pairs of boxes at a time: what a core's cache holds
_CALL_PAIRS = 512  # so many pairs take as long as a call of torchvision's operator
_ALL_PAIRS = 1 << 24  # ranks of all pairs of boxes in all classes, at worst: 64 MB
_PAIRS_PER_DETECTION = 10  # of box and class that a graph compares, where classes are many
_FEW_CANDIDATES = 1 << 16  # more are not sorted before most of them are out
_FEW_BOXES = 25_000  # of all groups: so many a GPU suppresses in one call, as in torchvision


def greedy_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, *, iou_thresh: float
) -> Tensor:
    """Keep the best box, drop all that overlap it too much, go on with the best that is left.

    A box falls when its IoU with a kept one of its group is *above* the threshold; equal scores
    rank by position. A GPU may measure the IoU in float64, which decides only where it is the
    threshold but for rounding. The result is a mask over all boxes instead of a list of unknown
    length, so that what follows has fixed shapes and can be exported.

    Args:
        boxes:      [N, 4] xyxy in pixels.
        scores:     [N] any scale.
        groups:     [N] int64, classes or pyramid levels that do not suppress each other; or None.
        iou_thresh: in [0, 1].

    Returns:
        [N] bool, True for the boxes that stay.
    """
    boxes, scores = boxes.float(), scores.float()
    if groups is None:
        return _nms(boxes, scores, iou_thresh)
    if torch.compiler.is_compiling():
        return _nms(_apart(boxes, groups), scores, iou_thresh)
    if _on_gpu(boxes) and 0 < len(boxes) <= _FEW_BOXES:
        # A call for each group would wait each time.
        return _nms(_in_a_row(boxes.double(), groups), scores.double(), iou_thresh)
    sizes = _group_sizes(groups)
    if sum(n * (n - 1) // 2 for n in sizes) <= _CALL_PAIRS * len(sizes):
        return _greedy_of_small_groups(boxes, scores, groups, sizes, iou_thresh)
    order = groups.argsort(stable=True)  # [N], group by group
    parts = (x.split(sizes) for x in (order, boxes[order], scores[order]))
    kept = [
        index if len(index) == 1 else index[torchvision.ops.nms(own, values, iou_thresh)]
        for index, own, values in zip(*parts, strict=True)
    ]
    keep = torch.zeros_like(scores, dtype=torch.bool)  # [N]
    return keep.index_fill_(0, torch.cat(kept), True)


def _greedy_of_small_groups(
    boxes: Tensor, scores: Tensor, groups: Tensor, sizes: list[int], iou_thresh: float
) -> Tensor:
    """`greedy_nms` where most boxes have no rival and only those that have take part in the loop.

    As torchvision's operator, it compares the float32 overlap with the threshold in float64.
    """
    order = np.lexsort((-_array(scores), _array(groups)))  # [N], group by group, best first
    rivals = _rivals(_array(boxes)[order], np.array(sizes, np.intp), np.float64(iou_thresh))
    falls = bytearray(len(order))
    for first, second in rivals:
        for better, worse in zip(first.tolist(), second.tolist(), strict=True):
            if not falls[better]:  # sequential by nature: only what stays may suppress
                falls[worse] = 1
    keep = np.ones(len(order), bool)  # [N]
    keep[order[np.frombuffer(falls, bool)]] = False
    return torch.from_numpy(keep).to(boxes.device)


def classwise_nms(
    boxes: Tensor, scores: Tensor, *, score_thresh: float, iou_thresh: float, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Make detections of boxes that are scored for every class but shared by all of them.

    Args:
        boxes:        [R, 4] xyxy in pixels.
        scores:       [R, K].
        score_thresh: a detection scores this at least.
        iou_thresh:   of the suppression within each class, in [0, 1].
        count:        most detections, all classes together.

    Returns:
        positions [N] int64 in the boxes, labels [N] int64 and scores [N], best first.
    """
    region, label = (scores >= score_thresh).nonzero(as_tuple=True)  # [M] each
    values = scores[region, label]
    keep = greedy_nms(boxes[region], values, label, iou_thresh=iou_thresh)
    region, label, values = region[keep], label[keep], values[keep]
    best = values.argsort(descending=True, stable=True)[:count]
    return region[best], label[best], values[best]


def point_nms(probs: Tensor) -> Tensor:
    """Keep local maxima of score maps: points at least as high as three of their neighbours.

    Each point is compared with those above, left, and above left of it only: of two equal
    neighbours both stay, and a slope that rises to the right or downwards stays whole.

    Args:
        probs: [B, K, h, w] >= 0.

    Returns:
        The same shape, 0 where another is higher.

    Source:  SOLO's released code, as in mmdet 3.3.
    """
    highest = F.max_pool2d(probs, 2, stride=1, padding=1)[:, :, :-1, :-1]
    return probs * (highest == probs)


def pairwise_mask_iou(masks: Tensor) -> Tensor:
    """Intersection over union of all pairs of binary masks.

    Args:
        masks: [N, P] bool, pixels in any order.

    Returns:
        [N, N] float32 in [0, 1]; 0 between two empty masks.
    """
    n, pixels = masks.shape
    shared = torch.zeros(n, n, device=masks.device)
    step = max(1, _PIXEL_CHUNK // max(1, n))
    # Products of 0 and 1 are exact in any precision, sums of them only without mixed precision.
    with torch.autocast(masks.device.type, enabled=False):
        for first in range(0, pixels, step):
            part = masks[:, first : first + step]
            if part.device.type == "cpu":  # where most time goes, and most pixels are in no mask
                drawn = part.numpy()
                part = torch.from_numpy(drawn[:, drawn.any(axis=0)])
            part = part.float()
            shared += part @ part.T
    areas = shared.diagonal()  # [N]
    return shared / (areas[:, None] + areas - shared).clamp(min=1)


def matrix_nms(
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    kernel: Literal["gaussian", "linear"] = "gaussian",
    sigma: float = 2.0,
) -> Tensor:
    """Lower the score of a mask by how much better masks of its class overlap it, all at once.

    A mask decays by the worst of its better-scored rivals, and a rival counts the less the more it
    is overlapped itself: that replaces the question whether greedy NMS would have removed it.
    Equal scores rank by position.

    Args:
        masks:  [N, P] bool, pixels in any order.
        labels: [N] int64.
        scores: [N].
        kernel: of the decay with IoU x: "gaussian" is exp(-sigma x^2), "linear" is 1 - x.
        sigma:  of the gaussian; larger decays more.

    Returns:
        [N], nowhere above `scores`.

    Source:  SOLOv2 (arXiv:2003.10152), section 3.4, eq. 4 and 5.
    Differs: sigma multiplies, as in the released code; the paper divides by it. Where linear decay
        is 0 / 0, since a rival is an exact copy of a better mask, it is 0, from that better mask.
    """
    result = scores.clone()
    for index, iou in _overlaps_of_rivals(masks, labels, scores):  # [n], [n, n]
        covered = iou.amax(dim=0)  # [n], by the closest better mask
        if kernel == "gaussian":
            decay = torch.exp(-sigma * (iou.square() - covered.square()[:, None]))
        else:
            decay = (1 - iou) / (1 - covered)[:, None].clamp(min=torch.finfo(iou.dtype).tiny)
        # At most 1: for every mask the best one, with which nothing competes, decides at worst.
        factor = decay.amin(dim=0).clamp(max=1)
        result[index] = scores[index] * factor.to(scores.dtype)
    return result


def mask_nms(masks: Tensor, labels: Tensor, scores: Tensor, *, iou_thresh: float) -> Tensor:
    """Greedy suppression within each class by the overlap of masks instead of boxes.

    Args:
        masks:      [N, P] bool, pixels in any order.
        labels:     [N] int64.
        scores:     [N]; equal ones rank by position.
        iou_thresh: a mask falls when its IoU with a kept one is above this.

    Returns:
        [N] bool, True for the masks that stay.

    Source:  SOLO (arXiv:1912.04488), section 3.3.
    """
    keep = torch.ones(len(scores), dtype=torch.bool, device=masks.device)
    for index, iou in _overlaps_of_rivals(masks, labels, scores):
        rivals = (iou > iou_thresh).cpu().numpy()
        falls = np.zeros(len(rivals), bool)
        for i in range(len(rivals)):  # sequential by nature: only what stays may suppress
            if not falls[i]:
                falls |= rivals[i]
        keep[index] = torch.from_numpy(~falls).to(keep.device)
    return keep


def fast_nms(
    boxes: Tensor, scores: Tensor, *, iou_thresh: float, top_k: int, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Drop every box that a better one of its class overlaps too much, all classes at once.

    One matrix of overlaps per class replaces the loop of `greedy_nms`. A box that is dropped itself
    still drops others, so what stays is a part of what greedy suppression keeps.

    Args:
        boxes:      [N, 4] xyxy in any unit, shared by all classes.
        scores:     [N, K]; what is negative is no candidate.
        iou_thresh: boxes with a larger IoU fall, in [0, 1].
        top_k:      candidates per class, the best ones.
        count:      most detections, all classes together.

    Returns:
        positions [D] int64 in the boxes, labels [D] int64 and scores [D], best first, with
        D = min(count, K * min(top_k, N)); the scores of places that remain empty are -1.

    Source:  YOLACT (arXiv:1904.02689), section 4.3.
    """
    count = min(count, scores.shape[1] * min(top_k, len(boxes)))
    if torch.compiler.is_compiling():
        return _fast_nms(boxes, scores, iou_thresh=iou_thresh, top_k=top_k, count=count)
    if _on_gpu(boxes) and scores.shape[1] * min(top_k, len(boxes)) ** 2 <= _ALL_PAIRS:
        return _fast_nms_of_all(boxes, scores, iou_thresh=iou_thresh, top_k=top_k, count=count)
    row, label, rank = _candidates(scores, top_k)
    sizes = np.bincount(label)  # [K]
    used, place = np.unique(row, return_inverse=True)  # [R] boxes, [M] which of them
    pairs = len(used) ** 2
    if pairs < (sizes * (sizes - 1)).sum() // 2 and pairs * scores.shape[1] <= _ALL_PAIRS:
        own = boxes[torch.from_numpy(used).to(boxes.device)]
        falls = _falls_in_shared_boxes(own, place, label, rank, iou_thresh=iou_thresh)
    else:
        falls = np.zeros(len(row), bool)  # [M]
        for _, worse in _rivals(_array(boxes)[row], sizes, np.float32(iou_thresh)):
            falls[worse] = True
    return _best_of(scores, row[~falls], label[~falls], count)


def _fast_nms_of_all(
    boxes: Tensor, scores: Tensor, *, iou_thresh: float, top_k: int, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`fast_nms` with all pairs in all classes and no wait: the way of a GPU."""
    values, index = scores.T.sort(dim=1, descending=True, stable=True)  # [K, N] each
    values, index = values[:, :top_k], index[:, :top_k]  # [K, T]
    falls = (largest_better_overlap(boxes[index]) > iou_thresh) | (values < 0)
    values, order = values.masked_fill(falls, -1.0).flatten().sort(descending=True, stable=True)
    values, order = values[:count], order[:count]  # [D] each
    labels = torch.div(order, index.shape[1], rounding_mode="floor")
    return index.flatten()[order], labels, values


def _fast_nms(
    boxes: Tensor, scores: Tensor, *, iou_thresh: float, top_k: int, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`fast_nms` as a graph that is independent of the data.

    What falls, falls to a better pair of box and class. With many classes only the best pairs are
    compared: when `count` of them stay, none of the others can be in the result.
    """
    classes, most = scores.shape[1], min(top_k, len(boxes))
    pairs = min(_PAIRS_PER_DETECTION * count, scores.numel())
    if pairs**2 >= classes * most**2:
        values, index = scores.T.topk(most, dim=1)  # [K, T] each
        keep = largest_better_overlap(boxes[index]) <= iou_thresh  # [K, T]
        return _best(values.masked_fill(~keep, -1.0), index, count)
    some = scores.amax(dim=1).topk(min(pairs, len(boxes))).indices  # the boxes of the best pairs
    values, place = scores[some].flatten().topk(pairs)  # [P] each
    labels = place % classes
    index = some[torch.div(place, classes, rounding_mode="floor")]
    better = (labels[:, None] == labels).triu(diagonal=1)  # [P, P], rivals of one class
    falls = better & (pairwise_iou(boxes[index], boxes[index]) > iou_thresh)
    keep = ~falls.any(dim=0) & (better.sum(dim=0) < top_k)
    values, order = values.masked_fill(~keep, -1.0).topk(count)
    return index[order], labels[order], values


def fast_nms_across_classes(
    boxes: Tensor, scores: Tensor, *, iou_thresh: float, top_k: int, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`fast_nms` of each box in its best class alone, where classes drop each other too.

    Args:
        boxes:      see `fast_nms`, as for all arguments.
        scores:     [N, K].
        iou_thresh: in [0, 1].
        top_k:      candidates, all classes together.
        count:      most detections.

    Returns:
        As `fast_nms`, with D = min(count, top_k, N).
    """
    best, labels = scores.max(dim=1)  # [N] each
    values, index = best.topk(min(top_k, len(boxes)))  # [T] each
    keep = largest_better_overlap(boxes[index]) <= iou_thresh  # [T]
    order, _, values = _best(values.masked_fill(~keep, -1.0)[None], index[None], count)
    return order, labels[order], values


def top_k_nms(
    boxes: Tensor, scores: Tensor, *, iou_thresh: float, top_k: int, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Greedy suppression within each class behind the interface of `fast_nms`.

    Args:
        boxes:      see `fast_nms`, as for all arguments.
        scores:     [N, K].
        iou_thresh: in [0, 1].
        top_k:      candidates per class.
        count:      most detections.

    Returns:
        As `fast_nms`.
    """
    if not torch.compiler.is_compiling():
        row, label, _ = _candidates(scores, top_k)
        at, labels = (torch.from_numpy(x).to(boxes.device) for x in (row, label))
        keep = _array(greedy_nms(boxes[at], scores[at, labels], labels, iou_thresh=iou_thresh))
        count = min(count, scores.shape[1] * min(top_k, len(boxes)))
        return _best_of(scores, row[keep], label[keep], count)
    values, index = scores.T.topk(min(top_k, len(boxes)), dim=1)  # [K, T] each
    labels = torch.arange(len(values), device=index.device)[:, None].expand_as(index)  # [K, T]
    flat = index.flatten()
    keep = greedy_nms(boxes[flat], values.flatten(), labels.flatten(), iou_thresh=iou_thresh)
    return _best(values.masked_fill(~keep.view_as(values), -1.0), index, count)


def largest_better_overlap(boxes: Tensor) -> Tensor:
    """The largest IoU of every box with one that stands before it.

    Args:
        boxes: [..., T, 4] xyxy, best first.

    Returns:
        [..., T] in [0, 1]; 0 for the first.
    """
    return pairwise_iou(boxes, boxes).triu(diagonal=1).amax(dim=-2)


def _candidates(scores: Tensor, top_k: int) -> tuple[Positions, Positions, Positions]:
    """Box, class and rank within the class of all candidates of [N, K] scores.

    They stand class by class, best first; equal scores rank by position.
    """
    flat = np.flatnonzero(_array(scores >= 0))
    if len(flat) > _FEW_CANDIDATES:
        least = scores.topk(min(top_k, len(scores)), dim=0).values[-1]  # [K]
        flat = np.flatnonzero(_array(scores >= least.clamp(min=0)))
    row, label = np.divmod(flat, scores.shape[1])
    order = np.lexsort((-_array(scores)[row, label], label))
    row, label = row[order], label[order]
    sizes = np.bincount(label)
    rank = np.arange(len(label)) - np.repeat(sizes.cumsum() - sizes, sizes)
    best = rank < top_k
    return row[best], label[best], rank[best]


def _rivals(
    boxes: Floats, sizes: npt.NDArray[np.integer], iou_thresh: np.floating[Any]
) -> Iterator[tuple[Positions, Positions]]:
    """Pairs of boxes of one group that overlap more than the threshold, some at a time.

    Args:
        boxes:      [M, 4] xyxy, group by group, best first in each.
        sizes:      [G] members of the groups, in their order.
        iou_thresh: its precision is that of the comparison.

    Yields:
        Positions of the better and of the worse boxes; the former never decrease.
    """
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T)  # [M] each
    areas = (x2 - x1) * (y2 - y1)
    at = np.arange(len(boxes))
    later = np.repeat(sizes.cumsum(), sizes) - at - 1  # [M] worse members of the own group
    chunk = later.cumsum() // _PAIR_CHUNK
    for own in np.split(at, np.flatnonzero(np.diff(chunk)) + 1):
        first = np.repeat(own, later[own])  # [P]
        starts = later[own].cumsum() - later[own]
        second = first + 1 + np.arange(len(first)) - np.repeat(starts, later[own])  # [P]
        width = np.minimum(x2[first], x2[second]) - np.maximum(x1[first], x1[second])
        height = np.minimum(y2[first], y2[second]) - np.maximum(y1[first], y1[second])
        shared = width.clip(min=0) * height.clip(min=0)
        with np.errstate(invalid="ignore"):  # empty boxes: 0 / 0 is above no threshold
            iou = shared / (areas[first] + areas[second] - shared)
            # Numpy 1 would bring the threshold to the type of the overlaps.
            over = iou.astype(iou_thresh.dtype, copy=False) > iou_thresh
        yield first[over], second[over]


def _falls_in_shared_boxes(
    boxes: Tensor, place: Positions, label: Positions, rank: Positions, *, iou_thresh: float
) -> npt.NDArray[np.bool_]:
    """Which candidates a better one of their class overlaps too much, where classes share boxes.

    Each pair of boxes is measured once instead of in every class.

    Args:
        boxes: [R, 4] xyxy.
        place: [M] the candidates' boxes.
        label: [M] their classes.
        rank:  [M] how many are better in their class.
        iou_thresh: in [0, 1].
    """
    rivals = _array(pairwise_iou(boxes, boxes) > iou_thresh)  # [R, R]
    np.fill_diagonal(rivals, val=True)  # so every box has some; it is not better than itself
    ranks = np.full((len(boxes), label.max() + 1), len(boxes), np.int32)  # [R, K]
    ranks[place, label] = rank
    first, second = rivals.nonzero()
    starts = np.flatnonzero(np.diff(first, prepend=-1))  # [R]
    best_rival = np.minimum.reduceat(ranks[second], starts, axis=0)  # [R, K]
    return best_rival[place, label] < rank


def _best_of(
    scores: Tensor, row: Positions, label: Positions, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, labels and scores of the best places of [N, K], filled up to a count."""
    index, labels = (torch.from_numpy(x).to(scores.device) for x in (row, label))
    values, order = scores[index, labels].sort(descending=True, stable=True)
    values, order = values[:count], order[:count]
    rest = (0, count - len(values))
    return F.pad(index[order], rest), F.pad(labels[order], rest), F.pad(values, rest, value=-1.0)


def _array(values: Tensor) -> npt.NDArray[Any]:
    """On the CPU; numpy has no bf16."""
    values = values.detach().float() if values.is_floating_point() else values
    return values.cpu().numpy()


def _group_sizes(groups: Tensor) -> list[int]:
    """How many members each group has, in the order of the groups."""
    return groups.unique(return_counts=True)[1].tolist()


def _on_gpu(values: Tensor) -> bool:
    return values.device.type == "cuda"


def _overlaps_of_rivals(
    masks: Tensor, labels: Tensor, scores: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Mask IoU within each label; equal scores rank by position.

    A GPU takes one product of all masks, where pairs of two labels get 0: it would wait for each
    of many small ones.

    Yields:
        Positions [n], best first, and IoU [n, n] of each with those that are worse, else 0.
    """
    order = scores.argsort(descending=True, stable=True)
    if _on_gpu(masks) and len(order):
        own = labels[order]
        yield order, (pairwise_mask_iou(masks[order]) * (own[:, None] == own)).triu(diagonal=1)
        return
    order = order[labels[order].argsort(stable=True)]
    for index in order.split(_group_sizes(labels)):
        yield index, pairwise_mask_iou(masks[index]).triu(diagonal=1)


def _best(values: Tensor, index: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, labels and scores of the largest of [K, T] values at positions [K, T]."""
    scores, order = values.flatten().topk(min(count, values.numel()))  # [D] each
    labels = torch.div(order, values.shape[1], rounding_mode="floor")
    return index.flatten()[order], labels, scores


def _nms(boxes: Tensor, scores: Tensor, iou_thresh: float) -> Tensor:
    """[N] bool."""
    kept = torchvision.ops.nms(boxes, scores, iou_thresh)  # [kept], its length depends on the data
    keep = torch.zeros_like(scores, dtype=torch.bool)
    return keep.index_fill(0, kept, True)


def _in_a_row(boxes: Tensor, groups: Tensor) -> Tensor:
    """Boxes moved so that different groups cannot touch; in float64 that rounds nothing."""
    low, high = boxes.aminmax()
    return boxes + groups[:, None] * (high - low + 1)


def _apart(boxes: Tensor, groups: Tensor) -> Tensor:
    """Boxes moved so that different groups cannot touch: one call, whose graph is independent of N.

    An exported graph cannot loop over groups and stays in float32. Each group gets a cell of a
    square grid around the origin, which keeps the coordinates, and with them the rounding, a factor
    sqrt(groups) smaller than a row of cells would: with 80 classes and 3000 px at most 0.001 px.
    """
    cell = (boxes.max() - boxes.min()).ceil() + 1
    side = (groups.max() + 1).to(boxes.dtype).sqrt().ceil()
    row, column = torch.div(groups, side, rounding_mode="floor"), groups % side
    shift = torch.stack([column, row], dim=-1) - torch.div(side, 2, rounding_mode="floor")
    return boxes + (shift * cell).repeat(1, 2)
