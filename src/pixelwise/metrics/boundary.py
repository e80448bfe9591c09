"""How well outlines fit: boundary IoU and boundary F1 of label maps, boundary bands of masks.

Erosion by a 3x3 square repeated d times is erosion by one square of side 2d + 1, and a pixel of a
label map survives it exactly when its whole square carries one label. So one running minimum and
one running maximum give the bands of all classes at once, whatever their number.

Source: Cheng et al., "Boundary IoU" (arXiv:2103.16562); Csurka et al., "What is a good evaluation
    measure for semantic segmentation?" (BMVC 2013).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pixelwise.errors import UsageError
from pixelwise.metrics.miou import FloatArray, IntArray, LabelMap, as_array, divide
from pixelwise.types import Size

BAND_RATIO = 0.02  # of the image diagonal; 0.005 is common for instances at Cityscapes' size
F1_RATIO = 0.0075  # of the image diagonal
_Labels = npt.NDArray[np.int32]
_PARTS = 2.0**40  # resolution of summed scores: 1e-12, and room for 8 million pictures
_OUTSIDE = -1  # what lies beyond the image border, and pixels that are no class


def band_width(size: Size, ratio: float = BAND_RATIO) -> int:
    """Pixels by which a mask is eroded to find its boundary band: ratio x diagonal, at least 1."""
    return max(1, round(ratio * float(np.hypot(*size))))


def mask_band(mask: npt.NDArray[Any], *, ratio: float = BAND_RATIO) -> npt.NDArray[np.uint8]:
    """The boundary band of one mask: its pixels within the band width of anything outside it.

    The image border counts as outside.

    Args:
        mask:  [H, W], nonzero inside.
        ratio: band width as a share of the image diagonal.

    Returns:
        [H, W] uint8, 0 or 1.
    """
    inside = np.where(mask != 0, 0, _OUTSIDE).astype(np.int32)
    width = band_width((mask.shape[0], mask.shape[1]), ratio)
    return _in_band(inside, width).astype(np.uint8)


class BoundaryIoU:
    """Boundary IoU per class, with intersections and unions summed over the data set.

    Pixels whose annotation is ignored belong to no mask, neither annotated nor predicted.

    Args:
        num_classes: number of classes K.
        ratio:       band width as a share of the image diagonal.
    """

    def __init__(self, num_classes: int, *, ratio: float = BAND_RATIO) -> None:
        self.num_classes, self.ratio = num_classes, ratio
        self.intersections: IntArray = np.zeros(num_classes, np.int64)
        self.unions: IntArray = np.zeros(num_classes, np.int64)

    def update(self, prediction: LabelMap, truth: LabelMap) -> FloatArray:
        """Add one picture.

        Args:
            prediction: [H, W] integer labels.
            truth:      [H, W] annotated labels.

        Returns:
            [K] boundary IoU of this picture; nan where both bands of a class are empty.
        """
        pred, gt = clean(prediction, truth, self.num_classes)
        width = band_width((gt.shape[0], gt.shape[1]), self.ratio)
        in_pred, in_gt = _in_band(pred, width), _in_band(gt, width)
        k = self.num_classes
        both = np.bincount(gt[in_pred & in_gt & (pred == gt)], minlength=k)
        union = np.bincount(pred[in_pred], minlength=k) + np.bincount(gt[in_gt], minlength=k) - both
        self.intersections += both
        self.unions += union
        return divide(both, union)

    def merge(self, other: BoundaryIoU) -> BoundaryIoU:
        """Add the sums of another shard to these; returns self."""
        self.intersections += other.intersections
        self.unions += other.unions
        return self

    def compute(self) -> FloatArray:
        """[K] boundary IoU over the data set; nan for a class that never occurred."""
        return divide(self.intersections, self.unions)


class BoundaryF1:
    """Boundary F1 (BF score): are the outlines within a small distance of each other?

    A boundary pixel is a mask pixel with a 4-neighbour outside the mask. Precision is the share of
    predicted boundary pixels within the tolerance of the annotated boundary, recall the reverse.
    The score of a class is the mean over the pictures in which it is annotated.

    Args:
        num_classes: number of classes K.
        ratio:       tolerance as a share of the image diagonal, at least one pixel.
    """

    def __init__(self, num_classes: int, *, ratio: float = F1_RATIO) -> None:
        self.num_classes, self.ratio = num_classes, ratio
        # In whole parts of a score, so that shards joined in any order give the same sum.
        self.sums: IntArray = np.zeros(num_classes, np.int64)
        self.pictures: IntArray = np.zeros(num_classes, np.int64)

    def update(self, prediction: LabelMap, truth: LabelMap) -> FloatArray:
        """Add one picture.

        Args:
            prediction: [H, W] integer labels.
            truth:      [H, W] annotated labels.

        Returns:
            [K] scores of this picture; 0 where one of the two boundaries of a class is empty, nan
            where both are.
        """
        pred, gt = clean(prediction, truth, self.num_classes)
        tolerance = max(1.0, self.ratio * float(np.hypot(*gt.shape)))
        pred_edge, gt_edge = _edges(pred), _edges(gt)
        k = self.num_classes
        of_pred, of_gt = _count(pred_edge, k), _count(gt_edge, k)
        precision = divide(_near(pred_edge, gt_edge, tolerance, k), of_pred)
        recall = divide(_near(gt_edge, pred_edge, tolerance, k), of_gt)
        scores = np.nan_to_num(divide(2 * precision * recall, precision + recall))
        scores[(of_pred == 0) & (of_gt == 0)] = np.nan
        self.sums += np.where(of_gt > 0, np.rint(np.nan_to_num(scores) * _PARTS), 0).astype(
            np.int64
        )
        self.pictures += of_gt > 0
        return scores

    def merge(self, other: BoundaryF1) -> BoundaryF1:
        """Add the sums of another shard to these; returns self."""
        self.sums += other.sums
        self.pictures += other.pictures
        return self

    def compute(self) -> FloatArray:
        """[K] mean score over the pictures that contain the class; nan for a class in none."""
        return divide(self.sums / _PARTS, self.pictures)


def clean(prediction: LabelMap, truth: LabelMap, num_classes: int) -> tuple[_Labels, _Labels]:
    """Both maps as int32, with -1 wherever the annotation is ignored or a label is no class.

    Args:
        prediction:  [H, W] integer labels.
        truth:       [H, W] annotated labels.
        num_classes: number of classes K.

    Raises:
        UsageError: the sizes differ, or the maps are not two-dimensional.
    """
    pred, gt = as_array(prediction), as_array(truth)
    if pred.shape != gt.shape or gt.ndim != 2:
        raise UsageError(
            f"prediction {pred.shape} and annotation {gt.shape} must be maps of one size"
        )
    pred, gt = pred.astype(np.int32), gt.astype(np.int32)
    ignored = (gt < 0) | (gt >= num_classes)
    gt[ignored] = _OUTSIDE
    pred[ignored | (pred < 0) | (pred >= num_classes)] = _OUTSIDE
    return pred, gt


def _in_band(labels: _Labels, width: int) -> npt.NDArray[np.bool_]:
    """Where a class pixel has another label (or the outside) within `width` rows and columns."""
    same = _running(labels, width, np.minimum) == _running(labels, width, np.maximum)
    return ~same & (labels != _OUTSIDE)


def _running(labels: _Labels, width: int, pick: Callable[..., _Labels]) -> _Labels:
    """Minimum or maximum over the square of side 2 width + 1 around every pixel.

    Windows of doubling length are combined, so the cost grows with the logarithm of the width.
    """
    side = 2 * width + 1
    for _ in range(2):  # rows, then (after the transpose) columns
        padded = np.pad(labels, ((width, width), (0, 0)), constant_values=_OUTSIDE)
        length = 1
        while 2 * length <= side:
            padded = pick(padded[:-length], padded[length:])
            length *= 2
        rest = side - length
        if rest:
            padded = pick(padded[:-rest], padded[rest:])
        labels = padded.T
    return labels


def _edges(labels: _Labels) -> _Labels:
    """The map with everything but boundary pixels set to outside."""
    padded = np.pad(labels, 1, constant_values=_OUTSIDE)
    inner = np.ones(labels.shape, bool)
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        inner &= padded[dy : dy + labels.shape[0], dx : dx + labels.shape[1]] == labels
    return np.where(inner, _OUTSIDE, labels).astype(np.int32)


def _count(edges: _Labels, num_classes: int) -> IntArray:
    """[K] boundary pixels of each class."""
    return np.bincount(edges[edges != _OUTSIDE], minlength=num_classes)


def _near(these: _Labels, others: _Labels, tolerance: float, num_classes: int) -> IntArray:
    """[K] boundary pixels with one of the same class in `others` within the Euclidean tolerance.

    Offsets are tried from the nearest on, and a pixel leaves the search once it found its match:
    the work grows with the misses, not with the area of the disc.
    """
    reach = int(tolerance)
    padded = np.pad(others, reach, constant_values=_OUTSIDE)
    y, x = np.nonzero(these != _OUTSIDE)  # [E] each
    label = these[y, x]
    steps = np.arange(-reach, reach + 1)
    dy, dx = (grid.ravel() for grid in np.meshgrid(steps, steps, indexing="ij"))
    squared = dy**2 + dx**2
    order = np.argsort(squared, kind="stable")
    found = np.zeros(num_classes, np.int64)
    for i in order[squared[order] <= tolerance**2]:
        hit = padded[y + reach + dy[i], x + reach + dx[i]] == label
        found += np.bincount(label[hit], minlength=num_classes)
        y, x, label = y[~hit], x[~hit], label[~hit]
        if not len(label):
            break
    return found
