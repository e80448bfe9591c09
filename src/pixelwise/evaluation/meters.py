"""What an evaluation collects picture by picture: one meter per task, both mergeable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pixelwise.data.sample import Instances
from pixelwise.errors import DataError
from pixelwise.metrics.boundary import BoundaryF1, BoundaryIoU
from pixelwise.metrics.coco_ap import RECALLS, APResult, CocoAP
from pixelwise.metrics.miou import Absent, Confusion
from pixelwise.types import InstancePrediction, SemanticPrediction


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """The annotation of one picture, without its pixels.

    Args:
        index:     position in the evaluated view.
        path:      of the picture.
        labels:    [H, W] uint8 with 255 ignored, for the semantic task.
        instances: the objects, for the instance task.
    """

    index: int
    path: str
    labels: npt.NDArray[np.uint8] | None = None
    instances: Instances | None = None


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a meter hands to the report; numbers are plain, undefined ones are nan.

    Args:
        metrics:   by name, the main one first.
        rows:      one per class.
        scores:    main metric of each picture by index; nan where undefined.
        confusion: [K, K] pixels, rows annotated, columns predicted (semantic).
        curves:    precision over recall (instance).
        notes:     what the reader of the numbers should know.
    """

    metrics: dict[str, float]
    rows: list[dict[str, Any]]
    scores: dict[int, float]
    confusion: list[list[int]] | None = None
    curves: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


class SemanticMeter:
    """Confusion matrix and boundary scores of label maps.

    Args:
        classes: class names in label order.
        absent:  how classes that do not occur enter the means (`Confusion.mean_over`).
    """

    def __init__(self, classes: Sequence[str], *, absent: Absent = "defined") -> None:
        self.classes = tuple(classes)
        self.absent: Absent = absent
        self.confusion = Confusion(len(classes))
        self.boundary_iou = BoundaryIoU(len(classes))
        self.boundary_f1 = BoundaryF1(len(classes))
        self.scores: dict[int, float] = {}
        self.paths: dict[int, str] = {}

    def update(self, prediction: SemanticPrediction, truth: Truth) -> None:
        """Add one picture.

        Raises:
            DataError: the annotation is missing or of another size than the picture.
        """
        labels = truth.labels
        if labels is None:
            raise DataError(f"{truth.path}: no label map; evaluate a semantic view of the data")
        if labels.shape != tuple(prediction.labels.shape):
            raise DataError(
                f"{truth.path}: the label map is {labels.shape}, the picture "
                f"{tuple(prediction.labels.shape)} (height, width); run `pixelwise data check`"
            )
        added = Confusion(len(self.classes))
        added.update(prediction.labels, labels)
        self.confusion.merge(added)
        self.boundary_iou.update(prediction.labels, labels)
        self.boundary_f1.update(prediction.labels, labels)
        self.scores[truth.index] = added.mean_over(added.iou())
        self.paths[truth.index] = truth.path

    def merge(self, other: SemanticMeter) -> SemanticMeter:
        """Add another shard; returns self."""
        self.confusion.merge(other.confusion)
        self.boundary_iou.merge(other.boundary_iou)
        self.boundary_f1.merge(other.boundary_f1)
        self.scores |= other.scores
        self.paths |= other.paths
        return self

    def findings(self) -> Findings:
        """All numbers of the pictures seen so far."""
        counts = self.confusion
        band, edge = self.boundary_iou.compute(), self.boundary_f1.compute()
        metrics = counts.compute(absent=self.absent)
        metrics["boundary_iou"] = counts.mean_over(band, self.absent)
        metrics["boundary_f1"] = counts.mean_over(edge, self.absent)
        columns = {
            "iou": counts.iou(),
            "accuracy": counts.recall(),
            "precision": counts.precision(),
            "dice": counts.dice(),
            "boundary_iou": band,
            "boundary_f1": edge,
        }
        total = max(int(counts.annotated.sum()), 1)
        rows = [
            {"class": name, "share": int(counts.annotated[i]) / total}
            | {key: float(values[i]) for key, values in columns.items()}
            for i, name in enumerate(self.classes)
        ]
        return Findings(
            metrics=metrics,
            rows=rows,
            scores=dict(sorted(self.scores.items())),
            confusion=counts.matrix.tolist(),
        )


class InstanceMeter:
    """Average precision of masks and boxes, and optionally of boundaries.

    Args:
        classes:  class names in label order.
        max_dets: detections kept per picture and class (`CocoAP`).
        boundary: compute boundary AP too; it decodes every mask once more.
    """

    def __init__(
        self,
        classes: Sequence[str],
        *,
        max_dets: int | Sequence[int] = 100,
        boundary: bool = False,
    ) -> None:
        self.ap = CocoAP(classes, max_dets=max_dets)
        self.boundary = boundary
        self.paths: dict[int, str] = {}

    def update(self, prediction: InstancePrediction, truth: Truth) -> None:
        """Add one picture.

        Raises:
            DataError: the annotation is missing or of another size than the picture.
        """
        instances = truth.instances
        if instances is None:
            raise DataError(f"{truth.path}: no objects; evaluate an instance view of the data")
        if instances.size != prediction.size:
            raise DataError(
                f"{truth.path}: the annotated masks are {instances.size}, the picture "
                f"{prediction.size} (height, width); run `pixelwise data check`"
            )
        self.ap.update(prediction, instances, truth.index)
        self.paths[truth.index] = truth.path

    def merge(self, other: InstanceMeter) -> InstanceMeter:
        """Add another shard; returns self."""
        self.ap.merge(other.ap)
        self.paths |= other.paths
        return self

    def findings(self) -> Findings:
        """All numbers of the pictures seen so far."""
        masks, boxes = self.ap.compute("mask"), self.ap.compute("box")
        results = [masks, boxes] + ([self.ap.compute("boundary")] if self.boundary else [])
        rows: list[dict[str, Any]] = [{} for _ in masks.classes]
        for result in results:
            rows = [old | new for old, new in zip(rows, result.per_class(), strict=True)]
        scores = {i: self.ap.image_ap(i) for i in sorted(self.paths)}
        return Findings(
            metrics={k: v for result in results for k, v in result.named().items()},
            rows=rows,
            scores={i: score if score >= 0 else float("nan") for i, score in scores.items()},
            curves=_curves(masks),
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        crowded, top = self.ap.crowded(), self.ap.max_dets[-1]
        if not crowded:
            return ()
        return (
            f"{crowded} of {len(self.ap)} pictures hold more than {top} objects of a class, of "
            f"which max_dets={top} lets no model find all; raise max_dets",
        )


Meter = SemanticMeter | InstanceMeter


def _curves(result: APResult) -> dict[str, Any]:
    """Precision at 101 recalls: the mean at three IoU thresholds, and each class at 0.5."""
    thresholds = (0.5, 0.75, 0.9)
    return {
        "recall": RECALLS.round(2).tolist(),
        "mean": {str(t): result.curve(iou=t).round(5).tolist() for t in thresholds},
        "classes": {
            name: result.curve(i).round(5).tolist()
            for i, name in enumerate(result.classes)
            if result.annotated[i]
        },
    }
