"""Average precision of instances as COCO defines it: the numbers of pycocotools, to the last digit.

Matching and accumulation are faster-coco-eval's, a C++ rewrite of pycocotools that returns the same
arrays. Held in memory are compressed run lengths, boxes and scores; never a dense mask.

Source: the COCO detection evaluation, cocodataset.org/#detection-eval; boundary AP:
    arXiv:2103.16562, where a pair's IoU is the smaller of mask IoU and boundary IoU (a crowd's
    stays the mask IoU).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pixelwise.data.sample import Instances
from pixelwise.errors import UsageError
from pixelwise.ops import rle
from pixelwise.types import InstancePrediction, RunLengths

Kind = Literal["mask", "box", "boundary"]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

IOU_THRESHS: FloatArray = np.linspace(0.5, 0.95, 10)
RECALLS: FloatArray = np.linspace(0.0, 1.0, 101)
AREAS = ("all", "small", "medium", "large")  # bounds 32^2 and 96^2 pixels, inclusive
_IOU_TYPES: dict[Kind, Any] = {"mask": "segm", "box": "bbox", "boundary": "boundary"}


@dataclass(frozen=True, eq=False)
class _Objects:
    """The annotated or the detected objects of one picture, compressed."""

    rles: list[dict[str, Any]]  # compressed, one per object
    mask_areas: FloatArray  # [N] pixels
    boxes_xywh: FloatArray  # [N, 4]
    labels: IntArray  # [N]
    crowd: npt.NDArray[np.bool_]  # [N]
    mask_scores: FloatArray  # [N]
    box_scores: FloatArray  # [N]


@dataclass(frozen=True, eq=False)
class APResult:
    """Average precision and recall of one kind, whole and in parts.

    Args:
        kind:      "mask", "box" or "boundary".
        classes:   class names in label order.
        max_dets:  the detections per picture and class that were looked at, ascending.
        precision: [T, R, K, A, D] at 10 IoU thresholds, 101 recalls, K classes, the areas all,
                   small, medium, large, and every entry of `max_dets`; -1 where nothing is
                   annotated.
        recall:    [T, K, A, D] the highest recall reached; -1 where nothing is annotated.
        annotated: [K] annotated objects that are not crowds.
    """

    kind: Kind
    classes: tuple[str, ...]
    max_dets: tuple[int, ...]
    precision: FloatArray
    recall: FloatArray
    annotated: IntArray

    def ap(self, *, iou: float | None = None, area: str = "all", label: int | None = None) -> float:
        """Average precision at the largest of `max_dets`; -1 where nothing is annotated.

        Args:
            iou:   one of the thresholds 0.5, 0.55 .. 0.95; None averages over all.
            area:  "all", "small", "medium" or "large".
            label: one class; None averages over those with annotations.
        """
        values = self.precision[..., AREAS.index(area), -1]  # [T, R, K]
        if iou is not None:
            values = values[[_threshold(iou)]]
        return _mean(values if label is None else values[..., label])

    def ar(
        self, *, max_dets: int | None = None, area: str = "all", label: int | None = None
    ) -> float:
        """Average recall over the IoU thresholds; -1 where nothing is annotated.

        Args:
            max_dets: an entry of `max_dets`; None takes the largest.
            area:     "all", "small", "medium" or "large".
            label:    one class; None averages over those with annotations.
        """
        top = -1 if max_dets is None else self.max_dets.index(max_dets)
        values = self.recall[..., AREAS.index(area), top]  # [T, K]
        return _mean(values if label is None else values[..., label])

    def stats(self) -> tuple[float, ...]:
        """The numbers in the order of pycocotools; twelve with the usual three `max_dets`.

        AP, AP50, AP75, AP small, medium, large, one AR per entry of `max_dets`, AR small, medium,
        large.
        """
        return tuple(self.named().values())

    def named(self) -> dict[str, float]:
        """The numbers by name (`mask_ap`, `mask_ap50`, .., `mask_ar100`, ..), in COCO's order."""
        sizes = AREAS[1:]
        numbers = {"ap": self.ap(), "ap50": self.ap(iou=0.5), "ap75": self.ap(iou=0.75)}
        numbers |= {f"ap_{size}": self.ap(area=size) for size in sizes}
        numbers |= {f"ar{top}": self.ar(max_dets=top) for top in self.max_dets}
        numbers |= {f"ar_{size}": self.ar(area=size) for size in sizes}
        return {f"{self.kind}_{name}": value for name, value in numbers.items()}

    def per_class(self) -> list[dict[str, Any]]:
        """One row per class: name, annotated objects, AP, AP50, AP75 and AR."""
        return [
            {
                "class": name,
                "annotated": int(self.annotated[i]),
                f"{self.kind}_ap": self.ap(label=i),
                f"{self.kind}_ap50": self.ap(iou=0.5, label=i),
                f"{self.kind}_ap75": self.ap(iou=0.75, label=i),
                f"{self.kind}_ar": self.ar(label=i),
            }
            for i, name in enumerate(self.classes)
        ]

    def curve(self, label: int | None = None, *, iou: float = 0.5) -> FloatArray:
        """[101] precision at the recalls 0, 0.01 .. 1 (`RECALLS`).

        Args:
            label: one class; None averages over those with annotations.
            iou:   one of the thresholds 0.5, 0.55 .. 0.95.

        Returns:
            -1 throughout where nothing is annotated.
        """
        values = self.precision[_threshold(iou), :, :, 0, -1]  # [R, K]
        if label is not None:
            return values[:, label]
        kept = values[:, (values > -1).all(0)]
        return kept.mean(1) if kept.size else np.full(len(RECALLS), -1.0)


class CocoAP:
    """Collects detections and annotations picture by picture, then computes average precision.

    Masks are ranked by `mask_scores` where a prediction has them (mask scoring), boxes always by
    `scores`.

    Args:
        classes:  class names in label order.
        max_dets: detections kept per picture and class, best first; several give an average recall
                  each, the largest one is used for average precision. A single number n stands for
                  (1, 10, n). The COCO default of 100 hides objects where a picture holds more.
    """

    def __init__(
        self, classes: Sequence[str], *, max_dets: int | Sequence[int] = (1, 10, 100)
    ) -> None:
        self.classes = tuple(classes)
        self.max_dets = resolve_max_dets(max_dets)
        self._images: dict[int, tuple[_Objects, _Objects]] = {}

    def __len__(self) -> int:
        return len(self._images)

    def update(self, prediction: InstancePrediction, truth: Instances, index: int) -> None:
        """Add one picture.

        Args:
            prediction: what was found, in original pixels.
            truth:      what is annotated, in original pixels. Size ranges go by its `areas`, where
                        the annotation tells them, else by the pixels of the masks.
            index:      position or id of the picture. Pictures are evaluated in ascending order,
                        which decides between equal scores.

        Raises:
            UsageError: the picture was added before.
        """
        if index in self._images:
            raise UsageError(f"picture {index} was added twice to the same evaluation")
        scores = _host(prediction.scores, np.float64)
        mask_scores = prediction.mask_scores
        detected = _compress(
            prediction.masks,
            boxes=_host(prediction.boxes, np.float64),
            labels=_host(prediction.labels, np.int64),
            box_scores=scores,
            mask_scores=scores if mask_scores is None else _host(mask_scores, np.float64),
        )
        annotated = _compress(
            truth.masks,
            boxes=_host(truth.boxes, np.float64),
            labels=_host(truth.labels, np.int64),
            crowd=_host(truth.crowd, np.bool_),
            areas=truth.areas,
        )
        self._images[index] = (annotated, detected)

    def merge(self, other: CocoAP) -> CocoAP:
        """Add the pictures of another shard; returns self.

        Raises:
            UsageError: the classes or the limits differ, or a picture is in both.
        """
        if (other.classes, other.max_dets) != (self.classes, self.max_dets):
            raise UsageError("cannot merge evaluations with different classes or max_dets")
        twice = self._images.keys() & other._images.keys()
        if twice:
            raise UsageError(f"pictures {sorted(twice)[:5]} are in both shards")
        self._images |= other._images
        return self

    def compute(self, kind: Kind = "mask", *, boundary_ratio: float = 0.02) -> APResult:
        """Match, accumulate and summarise all pictures.

        Args:
            kind:           what overlaps are taken of: masks, boxes, or masks and their boundaries.
            boundary_ratio: band width as a share of the image diagonal, for "boundary".
        """
        labels = range(len(self.classes))
        precision, recall = self._run(kind, sorted(self._images), labels, boundary_ratio)
        counts = np.zeros(len(self.classes), np.int64)
        for annotated, _ in self._images.values():
            counts += np.bincount(annotated.labels[~annotated.crowd], minlength=len(counts))
        return APResult(kind, self.classes, self.max_dets, precision, recall, counts)

    def crowded(self) -> int:
        """Pictures with more annotated objects of one class than the largest limit lets count."""
        most = [
            int(np.bincount(annotated.labels[~annotated.crowd]).max(initial=0))
            for annotated, _ in self._images.values()
        ]
        return sum(count > self.max_dets[-1] for count in most)

    def image_ap(self, index: int, kind: Kind = "mask") -> float:
        """Average precision of one picture by itself; -1 where nothing is annotated in it."""
        labels = np.unique(self._images[index][0].labels).tolist()
        if not labels:
            return -1.0
        precision, _ = self._run(kind, [index], labels, 0.02)
        return _mean(precision[..., 0, -1])

    def _run(
        self, kind: Kind, indices: Sequence[int], labels: Sequence[int], boundary_ratio: float
    ) -> tuple[FloatArray, FloatArray]:
        """Precision [T, R, K, A, D] and recall [T, K, A, D] of some pictures and classes."""
        shape = (len(IOU_THRESHS), len(RECALLS), len(labels), len(AREAS), len(self.max_dets))
        if not indices or not labels:
            return np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0)
        from faster_coco_eval import (  # pyright: ignore[reportMissingTypeStubs]
            COCO,
            COCOeval_faster,
        )

        annotated, detected = self._as_coco(kind, indices, labels)
        evaluation = COCOeval_faster(
            COCO(annotated),
            COCO(detected),
            iouType=_IOU_TYPES[kind],
            print_function=_silent,
            boundary_dilation_ratio=boundary_ratio,
        )
        evaluation.params.maxDets = list(self.max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
        results = cast("dict[str, Any]", evaluation.eval)  # pyright: ignore[reportUnknownMemberType]
        return (
            np.asarray(results["precision"], np.float64).reshape(shape),
            np.asarray(results["recall"], np.float64).reshape(shape[0], *shape[2:]),
        )

    def _as_coco(
        self, kind: Kind, indices: Sequence[int], labels: Sequence[int]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Two data sets in COCO's json layout: the annotations and the detections."""
        # Ids count from 1: 0 reads as "unmatched" in the reference.
        head = {"categories": [{"id": i + 1, "name": self.classes[i]} for i in labels]}
        wanted = {i: i + 1 for i in labels}
        sides: list[dict[str, Any]] = []
        for side in (0, 1):
            images: list[dict[str, Any]] = []
            records: list[dict[str, Any]] = []
            for image_id, index in enumerate(indices, 1):
                objects = self._images[index][side]
                size = self._size(index)
                images.append({"id": image_id, "height": size[0], "width": size[1]})
                found = _records(objects, kind, wanted)
                if kind == "box" and side == 1:
                    # A detected box is sized by itself, an annotation always by its annotated area.
                    found = [r | {"area": r["bbox"][2] * r["bbox"][3]} for r in found]
                records += [r | {"image_id": image_id} for r in found]
            for number, record in enumerate(records, 1):
                record["id"] = number
            sides.append(head | {"images": images, "annotations": records})
        return sides[0], sides[1]

    def _size(self, index: int) -> tuple[int, int]:
        """(height, width) of a picture; of no consequence where nothing has a mask."""
        for objects in self._images[index]:
            if objects.rles:
                height, width = objects.rles[0]["size"]
                return int(height), int(width)
        return 1, 1


def resolve_max_dets(max_dets: int | Sequence[int]) -> tuple[int, ...]:
    """The ascending limits that a setting stands for: n is (1, 10, n), a list is itself.

    Raises:
        UsageError: a limit below 1, or none at all.
    """
    if isinstance(max_dets, int):
        limits = tuple(sorted({min(1, max_dets), min(10, max_dets), max_dets}))
    else:
        limits = tuple(sorted(set(max_dets)))
    if not limits or limits[0] < 1:
        raise UsageError(f"max_dets={max_dets!r}: give a number of at least 1, or a list of such")
    return limits


def _compress(
    masks: RunLengths,
    *,
    boxes: FloatArray,  # [N, 4] xyxy
    labels: IntArray,  # [N]
    crowd: npt.NDArray[np.bool_] | None = None,  # [N]
    areas: FloatArray | None = None,  # [N]
    box_scores: FloatArray | None = None,  # [N]
    mask_scores: FloatArray | None = None,  # [N]
) -> _Objects:
    boxes_xywh = boxes.reshape(-1, 4).copy()
    boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
    none = np.zeros(len(labels))
    return _Objects(
        rles=rle.to_coco(masks),
        mask_areas=np.asarray(rle.areas(masks) if areas is None else areas, np.float64),
        boxes_xywh=boxes_xywh,
        labels=labels,
        crowd=np.zeros(len(labels), np.bool_) if crowd is None else crowd,
        mask_scores=none if mask_scores is None else mask_scores,
        box_scores=none if box_scores is None else box_scores,
    )


def _records(objects: _Objects, kind: Kind, wanted: dict[int, int]) -> list[dict[str, Any]]:
    """One COCO record per object of the wanted classes (label → category id)."""
    scores = objects.box_scores if kind == "box" else objects.mask_scores
    records: list[dict[str, Any]] = []
    for i, label in enumerate(objects.labels.tolist()):
        if label not in wanted:
            continue
        box = objects.boxes_xywh[i].tolist()
        record: dict[str, Any] = {
            "category_id": wanted[label],
            "bbox": box,
            "area": float(objects.mask_areas[i]),
            "iscrowd": int(objects.crowd[i]),
            "score": float(scores[i]),
        }
        if kind != "box":
            record["segmentation"] = objects.rles[i]
        records.append(record)
    return records


def _threshold(iou: float) -> int:
    """Position of an IoU threshold.

    Raises:
        UsageError: it is none of the ten.
    """
    found = np.flatnonzero(np.isclose(IOU_THRESHS, iou))
    if not found.size:
        raise UsageError(f"iou={iou} is not evaluated; choose one of 0.5, 0.55 .. 0.95")
    return int(found[0])


def _mean(values: FloatArray) -> float:
    """Mean of the defined values, -1 where there are none (as in pycocotools)."""
    kept = values[values > -1]
    return float(np.mean(kept)) if kept.size else -1.0


def _host(values: Tensor | npt.ArrayLike, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values).astype(dtype)


def _silent(*_: object) -> None:
    """The evaluator's tables stay off the console; numbers are read from its arrays."""
