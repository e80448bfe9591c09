"""Panoptic quality: how well the segments of a picture, things and stuff alike, are found.

Source: Kirillov et al., "Panoptic segmentation" (arXiv:1801.00868), section 4.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pixelwise.errors import DataError, UsageError
from pixelwise.metrics.miou import FloatArray, IntArray, divide

VOID = 0  # the id of pixels that belong to no segment


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment of a picture.

    Args:
        label: class, 0..K-1.
        crowd: a region of uncounted things; only annotations have these.
    """

    label: int
    crowd: bool = False


@dataclass(frozen=True, eq=False)
class PanopticResult:
    """Panoptic quality per class; the means leave out classes that never occurred.

    Args:
        classes: class names in label order.
        things:  [K] bool, classes whose objects are counted; the rest is stuff.
        pq:      [K] panoptic quality, SQ x RQ; nan for a class without any segment.
        sq:      [K] segmentation quality, the mean IoU of matched segments; 0 without a match.
        rq:      [K] recognition quality, an F1 score.
        counts:  [K, 3] true positives, false positives, false negatives.
    """

    classes: tuple[str, ...]
    things: npt.NDArray[np.bool_]
    pq: FloatArray
    sq: FloatArray
    rq: FloatArray
    counts: IntArray

    def named(self) -> dict[str, float]:
        """Means over all classes, things and stuff: pq, sq, rq, pq_things, .., rq_stuff."""
        numbers: dict[str, float] = {}
        for suffix, chosen in (("", None), ("_things", self.things), ("_stuff", ~self.things)):
            for name, values in (("pq", self.pq), ("sq", self.sq), ("rq", self.rq)):
                kept = values if chosen is None else values[chosen]
                kept = kept[~np.isnan(kept)]
                numbers[name + suffix] = float(kept.mean()) if kept.size else float("nan")
        return numbers

    def per_class(self) -> list[dict[str, Any]]:
        """One row per class: name, pq, sq, rq, and the counts behind them."""
        return [
            {
                "class": name,
                "pq": float(self.pq[i]),
                "sq": float(self.sq[i]),
                "rq": float(self.rq[i]),
                "true_positives": int(self.counts[i, 0]),
                "false_positives": int(self.counts[i, 1]),
                "false_negatives": int(self.counts[i, 2]),
            }
            for i, name in enumerate(self.classes)
        ]


class PanopticQuality:
    """Counts matches of predicted and annotated segments picture by picture.

    A pair of one class matches if its IoU is above 0.5, so at most one partner exists and no
    assignment is needed. Void pixels of the annotation are taken out of the union.

    Args:
        classes: class names in label order.
        things:  names of the classes whose objects are counted.

    Raises:
        UsageError: `things` names a class that is not in `classes`.
    """

    def __init__(self, classes: Sequence[str], *, things: Collection[str]) -> None:
        unknown = [name for name in things if name not in classes]
        if unknown:
            raise UsageError(f"things {', '.join(unknown)} are none of the classes")
        self.classes = tuple(classes)
        self.things = np.array([name in things for name in classes], np.bool_)
        self.ious: FloatArray = np.zeros(len(classes))
        # [K, 3] true positives, false positives, false negatives.
        self.counts: IntArray = np.zeros((len(classes), 3), np.int64)

    def update(
        self,
        prediction: npt.NDArray[Any],
        predicted: Mapping[int, Segment],
        *,
        truth: npt.NDArray[Any],
        annotated: Mapping[int, Segment],
    ) -> None:
        """Add one picture.

        Args:
            prediction: [H, W] segment ids, 0 for void.
            predicted:  what each predicted id is.
            truth:      [H, W] segment ids, 0 for void.
            annotated:  what each annotated id is.

        Raises:
            DataError: the maps differ in size, or hold an id that is not described.
        """
        if prediction.shape != truth.shape:
            raise DataError(
                f"predicted segments {prediction.shape} and annotated ones {truth.shape} "
                "differ in size"
            )
        overlaps = _overlaps(prediction, truth)
        pred_area, gt_area = _areas(overlaps, 0), _areas(overlaps, 1)
        _check(pred_area, predicted, "predicted")
        _check(gt_area, annotated, "annotated")
        matched_pred, matched_gt = set[int](), set[int]()
        for (p, g), both in overlaps.items():
            if VOID in (p, g) or annotated[g].crowd or predicted[p].label != annotated[g].label:
                continue
            union = pred_area[p] + gt_area[g] - both - overlaps.get((p, VOID), 0)
            iou = both / union
            if iou > 0.5:
                label = annotated[g].label
                self.counts[label, 0] += 1
                self.ious[label] += iou
                matched_pred.add(p)
                matched_gt.add(g)
        for g in gt_area.keys() - matched_gt - {VOID}:
            if not annotated[g].crowd:
                self.counts[annotated[g].label, 2] += 1
        for p in pred_area.keys() - matched_pred - {VOID}:
            if not _excused(p, pred_area[p], overlaps, predicted[p].label, annotated):
                self.counts[predicted[p].label, 1] += 1

    def merge(self, other: PanopticQuality) -> PanopticQuality:
        """Add the counts of another shard to these; returns self."""
        self.ious += other.ious
        self.counts += other.counts
        return self

    def compute(self) -> PanopticResult:
        """Quality per class over all pictures."""
        hits, false_pos, false_neg = self.counts.T
        weight = hits + 0.5 * false_pos + 0.5 * false_neg
        seen = weight > 0
        matched = np.where(hits > 0, self.ious / np.maximum(hits, 1), 0.0)
        return PanopticResult(
            classes=self.classes,
            things=self.things,
            pq=divide(self.ious, weight),
            sq=np.where(seen, matched, np.nan),
            rq=divide(hits, weight),
            counts=self.counts.copy(),
        )


def _overlaps(
    prediction: npt.NDArray[Any],  # [H, W]
    truth: npt.NDArray[Any],  # [H, W]
) -> dict[tuple[int, int], int]:
    """Pixels of every pair (predicted id, annotated id) that occurs."""
    pred_ids, pred = np.unique(prediction, return_inverse=True)
    gt_ids, gt = np.unique(truth, return_inverse=True)
    pairs, pixels = np.unique(pred.ravel() * len(gt_ids) + gt.ravel(), return_counts=True)
    return {
        (int(pred_ids[pair // len(gt_ids)]), int(gt_ids[pair % len(gt_ids)])): int(count)
        for pair, count in zip(pairs, pixels, strict=True)
    }


def _areas(overlaps: Mapping[tuple[int, int], int], side: int) -> dict[int, int]:
    areas: dict[int, int] = {}
    for pair, pixels in overlaps.items():
        areas[pair[side]] = areas.get(pair[side], 0) + pixels
    return areas


def _check(areas: Mapping[int, int], described: Mapping[int, Segment], which: str) -> None:
    unknown = sorted(areas.keys() - described.keys() - {VOID})
    if unknown:
        raise DataError(f"{which} segment ids {unknown[:5]} are in the map but not described")


def _excused(
    segment: int,
    area: int,
    overlaps: Mapping[tuple[int, int], int],
    label: int,
    annotated: Mapping[int, Segment],
) -> bool:
    """Whether more than half of an unmatched prediction is void or crowd of its own class."""
    neutral = sum(
        pixels
        for (p, g), pixels in overlaps.items()
        if p == segment and (g == VOID or (annotated[g].crowd and annotated[g].label == label))
    )
    return neutral > 0.5 * area
