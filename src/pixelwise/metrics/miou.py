"""Pixel metrics of semantic segmentation, all read from one confusion matrix of the whole data set.

Source: Long et al., "Fully convolutional networks", section 5; VOC devkit; systems/semantic, 12.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pixelwise.errors import UsageError

Absent = Literal["defined", "in_gt", "all_zero"]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
LabelMap = npt.NDArray[Any] | Tensor

_BLOCK = 1 << 22  # pixels per histogram call; bounds the int64 copies at 100 MB


class Confusion:
    """Counts of (annotated class, predicted class) over all pixels seen so far.

    A pixel counts when its annotation is one of the classes; 255 and any other value are left out.
    A prediction that is no class (255, say) stays in the count of its annotated class and so is
    wrong: a network cannot raise its numbers by declining to answer.

    Args:
        num_classes: number of classes K.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise UsageError(f"a confusion matrix needs at least one class, got {num_classes}")
        self.num_classes = num_classes
        # [K, K + 1]: the last column holds predictions that are no class.
        self.counts: IntArray = np.zeros((num_classes, num_classes + 1), np.int64)

    @property
    def matrix(self) -> IntArray:
        """[K, K] int64, rows are annotated classes, columns are predicted ones."""
        return self.counts[:, :-1]

    def update(self, prediction: LabelMap, truth: LabelMap) -> IntArray:
        """Add one picture or a stack of them.

        Args:
            prediction: integer labels of any type and shape.
            truth:      annotated labels of the same shape.

        Returns:
            [K, K + 1] int64, the counts that these pixels added.

        Raises:
            UsageError: the shapes differ.
        """
        pred, gt = as_array(prediction), as_array(truth)
        if pred.shape != gt.shape:
            raise UsageError(
                f"prediction {pred.shape} and annotation {gt.shape} differ in size; "
                "bring the prediction to the size of the annotation first"
            )
        pred, gt = pred.reshape(-1), gt.reshape(-1)
        k = self.num_classes
        added = np.zeros((k, k + 1), np.int64)
        for start in range(0, gt.size, _BLOCK):
            g = gt[start : start + _BLOCK].astype(np.int64)
            p = pred[start : start + _BLOCK].astype(np.int64)
            kept = (g >= 0) & (g < k)
            p = np.where((p >= 0) & (p < k), p, k)
            cells = g[kept] * (k + 1) + p[kept]
            added += np.bincount(cells, minlength=k * (k + 1)).reshape(k, k + 1)
        self.counts += added
        return added

    def merge(self, other: Confusion) -> Confusion:
        """Add the counts of another shard to these; returns self."""
        if other.num_classes != self.num_classes:
            raise UsageError(
                f"cannot merge counts of {other.num_classes} classes into {self.num_classes}"
            )
        self.counts += other.counts
        return self

    def compute(self, *, absent: Absent = "defined") -> dict[str, float]:
        """The data set's numbers, each a share of 1 (nan where nothing was counted).

        Args:
            absent: how classes that do not occur enter the means, see `mean_over`.

        Returns:
            pixel_accuracy, mean_accuracy, miou, fwiou (frequency-weighted IoU), mean_dice,
            mean_fscore and mean_precision.
        """
        share = self.annotated / max(int(self.annotated.sum()), 1)
        iou, accuracy = self.iou(), self.recall()
        fwiou = float((share * np.nan_to_num(iou)).sum()) if self.annotated.any() else np.nan
        return {
            "miou": self.mean_over(iou, absent),
            "pixel_accuracy": self.pixel_accuracy(),
            "mean_accuracy": self.mean_over(accuracy, absent),
            "fwiou": fwiou,
            "mean_dice": self.mean_over(self.dice(), absent),
            "mean_fscore": self.mean_over(self.fscore(), absent),
            "mean_precision": self.mean_over(self.precision(), absent),
        }

    def mean_over(self, values: FloatArray, absent: Absent = "defined") -> float:
        """Mean of a per-class number under a policy for classes that do not occur.

        Args:
            values: [K], nan where undefined.
            absent: "defined" averages the classes with a value, so one that is only predicted
                    counts with IoU 0 (FCN, mmsegmentation); "in_gt" averages the classes that are
                    annotated somewhere (deeplab-pytorch); "all_zero" averages all K, an undefined
                    one as 0 (semseg).

        Raises:
            UsageError: no such policy.
        """
        if absent not in get_args(Absent):
            raise UsageError(
                f"absent={absent!r} is no policy; choose one of {', '.join(get_args(Absent))}"
            )
        if absent == "all_zero":
            return float(np.nan_to_num(values).mean())
        kept = values[~np.isnan(values) if absent == "defined" else self.annotated > 0]
        return float(kept.mean()) if kept.size else float("nan")

    @property
    def hits(self) -> IntArray:
        """[K] pixels of each class that were predicted as that class."""
        return self.matrix.diagonal()

    @property
    def annotated(self) -> IntArray:
        """[K] pixels annotated as each class."""
        return self.counts.sum(1)

    @property
    def predicted(self) -> IntArray:
        """[K] counted pixels predicted as each class."""
        return self.matrix.sum(0)

    def pixel_accuracy(self) -> float:
        """Share of the annotated pixels with the right class."""
        total = int(self.annotated.sum())
        return int(self.hits.sum()) / total if total else float("nan")

    def iou(self) -> FloatArray:
        """[K] intersection over union; nan for a class neither annotated nor predicted."""
        return divide(self.hits, self.annotated + self.predicted - self.hits)

    def dice(self) -> FloatArray:
        """[K] 2 hits / (annotated + predicted); nan for a class neither annotated nor predicted."""
        return divide(2 * self.hits, self.annotated + self.predicted)

    def precision(self) -> FloatArray:
        """[K] share of the predicted pixels that are right; nan for a class never predicted."""
        return divide(self.hits, self.predicted)

    def recall(self) -> FloatArray:
        """[K] share of the annotated pixels that were found; nan for a class never annotated."""
        return divide(self.hits, self.annotated)

    def fscore(self, beta: float = 1.0) -> FloatArray:
        """[K] weighted harmonic mean of precision and recall.

        Args:
            beta: above 1 recall weighs more, below 1 precision does.

        Returns:
            nan where precision or recall is undefined or both are 0 (as in mmsegmentation; `dice`
            differs there: it is 0 for a class that is only predicted).
        """
        precision, recall = self.precision(), self.recall()
        return divide((1 + beta**2) * precision * recall, beta**2 * precision + recall)


def divide(
    above: IntArray | FloatArray,  # [...]
    below: IntArray | FloatArray,  # [...]
) -> FloatArray:
    """Element-wise quotient, nan where the denominator is 0."""
    result = np.full(np.shape(below), np.nan)
    return np.divide(above, below, out=result, where=np.asarray(below) != 0)


def as_array(labels: LabelMap) -> npt.NDArray[Any]:
    """A label map as a NumPy array on the host, without a copy where it is one already."""
    return labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
