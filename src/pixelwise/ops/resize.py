"""Bilinear resizing, and label maps from coarse logits without a full-size stack of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.types import ImageSize, SemanticPrediction, Size

_CHUNK_ELEMENTS = 1 << 23  # 32 MB of float32 per intermediate


def resize(x: Tensor, size: Size | tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Resize feature maps bilinearly.

    Args:
        x:    [B, C, h, w].
        size: (height, width) of the result.
        align_corners: the centres of the corner cells lie on each other (TensorFlow's DeepLab,
            Caffe's Interp) instead of the corners of the images.

    Returns:
        [B, C, *size].
    """
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def logits_to_predictions(
    logits: Tensor, sizes: Sequence[ImageSize], *, align_corners: bool, with_probs: bool = False
) -> list[SemanticPrediction]:
    """`logits_to_prediction` for every image of a batch: [B, K, h, w] → B predictions."""
    return [
        logits_to_prediction(one, size, align_corners=align_corners, with_probs=with_probs)
        for one, size in zip(logits, sizes, strict=True)
    ]


def logits_to_prediction(
    logits: Tensor, size: ImageSize, *, align_corners: bool, with_probs: bool = False
) -> SemanticPrediction:
    """Turn one image's logits into a label per pixel of the original picture.

    The logits are resized to the network input, cut to its content, resized to the original
    picture, and only then compared: resizing labels would give ragged outlines. This goes strip by
    strip, so that K x H x W numbers never exist at once (unless the probabilities are asked for);
    the labels are exactly those of one whole.

    Args:
        logits: [K, h, w] at the network's stride.
        size:   the picture's sizes.
        align_corners: of the first resize, as the network was trained; the second aligns the
            pictures' corners (False).
        with_probs: return the softmax too, [K, H, W] float32.

    Returns:
        labels [H, W] on the CPU, uint8 for up to 255 classes.
    """
    classes = logits.shape[0]
    dtype = torch.uint8 if classes <= 255 else torch.int64
    labels = torch.empty(size.original, dtype=dtype)
    probs = torch.empty((classes, *size.original)) if with_probs else None
    for rows, part in strips_of_original(logits, size, align_corners=align_corners):
        labels[rows] = part.argmax(0).to(dtype)
        if probs is not None:
            probs[:, rows] = part.softmax(0)
    return SemanticPrediction(labels=labels, probs=probs)


def strips_of_original(
    maps: Tensor, size: ImageSize, *, align_corners: bool, extra_channels: int = 0
) -> Iterator[tuple[slice, Tensor]]:
    """Bring one image's maps to the original picture, a few rows at a time.

    Args:
        maps: [C, h, w] at the network's stride.
        size: the picture's sizes.
        align_corners: of the first resize, see `logits_to_prediction`.
        extra_channels: numbers per pixel that the caller makes of a strip; it is lower for them.

    Yields:
        rows of the original from the top down, and what they hold, [C, rows, W] float32.
    """
    height, width = size.original
    columns = _Steps(maps.shape[2], size, axis=1, align_corners=align_corners)
    rows = _Steps(maps.shape[1], size, axis=0, align_corners=align_corners)
    numbers = (maps.shape[0] + extra_channels) * max(width, size.input[1])  # of a row
    strip = rows.strip_height(_CHUNK_ELEMENTS // max(1, numbers))
    for top in range(0, height, strip):
        bottom = min(top + strip, height)
        first, last = rows.source_range(top, bottom)
        part = maps[:, first:last].float()  # [C, rows used, w]
        part = columns.apply(part, 0, width, 0, dim=2)  # [C, rows used, W]
        part = rows.apply(part, top, bottom, first, dim=1)  # [C, bottom - top, W]
        yield slice(top, bottom), part


class _Steps:
    """One axis of the way from logits to the original picture: two linear maps, row ranges of each.

    A strip of the result needs a range of input pixels, which need a range of logits; asking for
    that range alone is what makes strips exact.
    """

    def __init__(self, cells: int, size: ImageSize, *, axis: int, align_corners: bool) -> None:
        self.cells, self.input = cells, size.input[axis]
        self.content, self.original = size.content[axis], size.original[axis]
        self.align_corners = align_corners

    def strip_height(self, budget: int) -> int:
        """Rows of the original that keep both intermediates within `budget` rows."""
        shrink = max(1.0, self.content / self.original)
        return max(1, int(budget / shrink))

    def source_range(self, start: int, stop: int) -> tuple[int, int]:
        """First and last + 1 cell that the pixels start..stop of the original depend on."""
        low, high = self._pixel_range(start, stop)
        left, right, _ = _taps(low, high, self.cells, self.input, self.align_corners)
        return int(left[0]), int(right[-1]) + 1

    def apply(self, x: Tensor, start: int, stop: int, offset: int, *, dim: int) -> Tensor:
        """Cells (the first is number `offset`) → pixels start..stop of the original."""
        low, high = self._pixel_range(start, stop)
        if (self.cells, low, high, offset) != (self.input, 0, self.input, 0):
            taps = _taps(low, high, self.cells, self.input, self.align_corners)
            x = _blend(x, taps, offset, dim)
        if self.content != self.original:
            x = _blend(x, _taps(start, stop, self.content, self.original, False), low, dim)
        return x

    def _pixel_range(self, start: int, stop: int) -> tuple[int, int]:
        """First and last + 1 pixel of the content that the original's start..stop depend on."""
        if self.content == self.original:
            return start, stop
        left, right, _ = _taps(start, stop, self.content, self.original, False)
        return int(left[0]), int(right[-1]) + 1


def _taps(
    start: int, stop: int, source: int, target: int, align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Left and right source positions, and the right one's weight, of target start..stop."""
    position = torch.arange(start, stop, dtype=torch.float64)
    if align_corners:
        position = position * ((source - 1) / max(1, target - 1))
    else:
        position = ((position + 0.5) * (source / target) - 0.5).clamp_(min=0)
    left = position.floor().long().clamp_(max=source - 1)
    right = (left + 1).clamp_(max=source - 1)
    return left, right, (position - left).float()


def _blend(x: Tensor, taps: tuple[Tensor, Tensor, Tensor], offset: int, dim: int) -> Tensor:
    left, right, weight = (t.to(x.device) for t in taps)
    shape = [-1 if axis == dim else 1 for axis in range(x.ndim)]
    low, high = x.index_select(dim, left - offset), x.index_select(dim, right - offset)
    # Not torch.lerp: its vectorised and scalar paths round differently, so strips would differ.
    return high.sub_(low).mul_(weight.view(shape)).add_(low)
