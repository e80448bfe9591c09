"""Sliding windows as two projects publish them, to measure a checkpoint by its own protocol.

They differ from our tiles (`pixelwise.tiling`) in three ways. Windows lie on the network input, so
with several scales each scaled picture is crossed by windows of one size. All pixels of a window
count alike. And the scores of a whole picture are held at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.errors import UsageError
from pixelwise.ops.resize import resize
from pixelwise.tiling import tile_windows
from pixelwise.types import ImageSize, SemanticPrediction

SlidingRule = Literal["semseg", "mmseg"]

_LEAST_PROB = torch.finfo(torch.float32).tiny  # its logarithm is finite


@dataclass(frozen=True, kw_only=True)
class Sliding:
    """Windows over the network's input, and how their answers are joined.

    semseg: a picture smaller than a window is padded to it with the mean colour, half on each side;
    probabilities are averaged; mirroring is done to each window, not to the picture. mmseg: windows
    of smaller pictures are smaller; logits are averaged.

    Args:
        rule:   the project.
        window: side of the windows, pixels of the network's input.
        stride: from one window to the next.
    """

    rule: SlidingRule
    window: int
    stride: int

    @classmethod
    def of(cls, rule: SlidingRule, window: int, overlap: float | None) -> Sliding:
        """The windows of a project.

        Args:
            rule:    the project.
            window:  side in pixels.
            overlap: share of a window that its neighbour sees too; semseg fixes the stride at two
                     thirds of the window, rounded up.

        Raises:
            UsageError: an overlap for semseg.
        """
        if rule == "semseg":
            if overlap is not None:
                raise UsageError("seams='semseg' fixes the overlap at a third; leave overlap out")
            return cls(rule=rule, window=window, stride=-(-2 * window // 3))
        share = 0.25 if overlap is None else overlap
        return cls(rule=rule, window=window, stride=window - round(window * share))


def slide(
    image: Tensor,
    size: ImageSize,
    sliding: Sliding,
    predict: Callable[[Tensor], Tensor],
    *,
    is_flipped: bool = False,
) -> SemanticPrediction:
    """Cross a picture with windows and join what the network says about each.

    Args:
        image:      [C, H, W] normalised; 0 is the mean colour.
        size:       of the picture.
        sliding:    windows and rule.
        predict:    [C, h, w] of a window → [K, h, w] class probabilities.
        is_flipped: the picture is mirrored left to right.

    Returns:
        Labels and probabilities at the picture's original size.
    """
    content = image[:, : size.content[0], : size.content[1]]
    by_window = is_flipped and sliding.rule == "semseg"
    if by_window:
        mean = _mean_scores(content.flip(-1), sliding, lambda w: predict(w.flip(-1)).flip(-1))
        mean = mean.flip(-1)
    else:
        mean = _mean_scores(content, sliding, predict)  # [K, h, w]
    if size.content != size.original:
        mean = resize(mean[None], size.original)[0]
    labels = mean.argmax(0).to(torch.uint8 if len(mean) <= 255 else torch.int64)
    probs = mean.softmax(0) if sliding.rule == "mmseg" else mean
    return SemanticPrediction(labels=labels, probs=probs)


def _mean_scores(image: Tensor, sliding: Sliding, predict: Callable[[Tensor], Tensor]) -> Tensor:
    """[K, H, W], the mean of all windows that see a pixel: of its probabilities or its logits.

    log p is the logits less a number that is the same for all classes of a pixel; neither a mean
    nor a bilinear resize makes it differ between classes, so the softmax undoes it.
    """
    height, width = int(image.shape[1]), int(image.shape[2])
    top = left = 0
    if sliding.rule == "semseg":
        more = max(0, sliding.window - height), max(0, sliding.window - width)
        top, left = more[0] // 2, more[1] // 2
        image = F.pad(image, (left, more[1] - left, top, more[0] - top))
    size = int(image.shape[1]), int(image.shape[2])
    side = (sliding.window, sliding.window)
    windows = tile_windows(size, side, overlap_px=sliding.window - sliding.stride)
    total: Tensor | None = None  # [K, H', W']
    visits = torch.zeros(size)
    for x1, y1, x2, y2 in windows.tolist():
        scores = predict(image[:, y1:y2, x1:x2]).to("cpu", torch.float32)
        if sliding.rule == "mmseg":
            scores = scores.clamp(min=_LEAST_PROB).log()
        if total is None:
            total = scores.new_zeros(len(scores), *size)
        total[:, y1:y2, x1:x2] += scores
        visits[y1:y2, x1:x2] += 1
    assert total is not None
    return (total / visits)[:, top : top + height, left : left + width]
