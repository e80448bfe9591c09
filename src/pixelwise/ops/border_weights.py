"""Loss weights that make a network learn the thin background between touching objects."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Objects = npt.NDArray[np.integer]

_NEGLIGIBLE = 1e-3  # of a weight: beyond the distance that gives it, no distances are computed


def separate_touching(objects: Objects) -> Objects:
    """Give the pixels where two objects touch to the background.

    A pixel goes where one of its eight neighbours belongs to another object, so that at least two
    pixels of background lie between any two objects.

    Args:
        objects: [H, W] a number per object, 0 is background.

    Returns:
        [H, W] the same with more zeros.

    Source: U-Net (arXiv:1505.04597), section 3: a separation border by morphological operations.
    """
    padded = np.pad(objects, 1)
    height, width = objects.shape
    touching = np.zeros(objects.shape, bool)
    for dy in range(3):
        for dx in range(3):
            other = padded[dy : dy + height, dx : dx + width]
            touching |= (other != 0) & (other != objects)
    return np.where(touching & (objects != 0), 0, objects)


def border_weights(objects: Objects, *, peak: float = 10.0, sigma_px: float = 5.0) -> Floats:
    """U-Net's additional weight of background pixels near two objects.

    peak * exp(-(d1 + d2)² / (2 sigma²)), d1 and d2 the distances to the nearest and the second
    nearest object. It is added to the class weight w_c. Pixels of objects get none, as the paper's
    figure 3 d shows; neither does anything in a picture with fewer than two objects.

    Args:
        objects:  [H, W] a number per object, 0 is background; see `separate_touching`.
        peak:     w0, the weight where both distances are 0.
        sigma_px: pixels.

    Returns:
        [H, W] float32 in [0, peak]; values below a thousandth are 0.

    Source: U-Net (arXiv:1505.04597), eq. 2.
    """
    result = np.zeros(objects.shape, np.float32)
    if peak <= _NEGLIGIBLE:
        return result
    reach = math.ceil(sigma_px * math.sqrt(2 * math.log(peak / _NEGLIGIBLE)))
    first, second = nearest_two_distances(objects, reach)
    near = np.isfinite(second) & (objects == 0)
    result[near] = peak * np.exp(-((first[near] + second[near]) ** 2) / (2 * sigma_px**2))
    result[result < _NEGLIGIBLE] = 0
    return result


def nearest_two_distances(objects: Objects, reach: int) -> tuple[Floats, Floats]:
    """Distance from every pixel to the nearest object, and to the second nearest.

    Between pixel centres, Euclidean, exact; 0 and above for the object that a pixel belongs to.

    Args:
        objects: [H, W] a number per object, 0 is background.
        reach:   pixels; what is further away counts as infinitely far.

    Returns:
        first, second: [H, W] float32.
    """
    first = np.full(objects.shape, np.inf, np.float32)
    second = first.copy()
    for number, (top, bottom, left, right) in _extents(objects):
        window = (
            slice(max(0, top - reach), bottom + reach),
            slice(max(0, left - reach), right + reach),
        )
        distance = _distance(objects[window] == number, reach)
        a, b = first[window], second[window]  # views
        np.minimum(b, np.maximum(a, distance), out=b)
        np.minimum(a, distance, out=a)
    return first, second


def _extents(objects: Objects) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Number and (top, bottom, left, right) of every object, bottom and right exclusive."""
    rows, columns = np.nonzero(objects)
    if not len(rows):
        return []
    numbers, which = np.unique(objects[rows, columns], return_inverse=True)
    low = np.full((2, len(numbers)), max(objects.shape), np.int64)
    high = np.zeros((2, len(numbers)), np.int64)
    for axis, position in enumerate((rows, columns)):
        np.minimum.at(low[axis], which, position)
        np.maximum.at(high[axis], which, position + 1)
    boxes = np.stack([low[0], high[0], low[1], high[1]], axis=1).tolist()
    return [
        (int(number), (box[0], box[1], box[2], box[3]))
        for number, box in zip(numbers, boxes, strict=True)
    ]


def _distance(mask: npt.NDArray[np.bool_], reach: int) -> Floats:
    """Exact Euclidean distance to a mask: down the columns first, then the best of each row."""
    height, width = mask.shape
    rows = np.arange(height)[:, None]
    far = height + width + reach
    above = np.maximum.accumulate(np.where(mask, rows, -far), axis=0)
    below = np.minimum.accumulate(np.where(mask, rows, height + far)[::-1], axis=0)[::-1]
    squared = np.minimum(rows - above, below - rows).astype(np.float32) ** 2  # [h, w]
    best = squared.copy()
    for shift in range(1, min(reach, width - 1) + 1):
        moved = np.float32(shift * shift)
        np.minimum(best[:, shift:], squared[:, :-shift] + moved, out=best[:, shift:])
        np.minimum(best[:, :-shift], squared[:, shift:] + moved, out=best[:, :-shift])
    best = np.sqrt(best)
    best[best > reach] = np.inf
    return best
