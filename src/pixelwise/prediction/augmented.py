"""Test-time augmentation: predict several versions of a picture and join the answers.

Semantic: the softmax of every scale and of its mirror image, brought to the original picture, is
averaged (what PSPNet, DeepLabV3 and DeepLabV3+ report as multi-scale + flip). Instance: detections
of all versions are brought back to the original picture; of those that overlap (box IoU above 0.5,
same class) the best-scored one stays, with its own mask and score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pixelwise.errors import UsageError
from pixelwise.ops import rle
from pixelwise.ops.suppress import greedy_nms
from pixelwise.spec import InputSpec, ResizeRule, Task
from pixelwise.types import (
    InstancePrediction,
    MaskCrops,
    Prediction,
    RunLengths,
    SemanticPrediction,
    Size,
)

_SAME_OBJECT_IOU = 0.5


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Which versions of a picture are predicted.

    Args:
        scales: relative to the size that the model's `ResizeRule` gives.
        flip:   each scale also mirrored left to right.
    """

    scales: tuple[float, ...]
    flip: bool = True

    @classmethod
    def default(cls, task: Task) -> Augmentation:
        """Six scales for label maps, as papers report; three for objects, whose cost is higher."""
        if task == "semantic":
            return cls(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75))
        return cls(scales=(0.75, 1.0, 1.25))

    def __len__(self) -> int:
        return len(self.scales) * (1 + self.flip)


@dataclass(frozen=True)
class Version:
    """One version of a picture.

    Args:
        image:      [H, W, C], mirrored if `is_flipped`.
        input:      how it is fed.
        is_flipped: mirrored left to right.
    """

    image: npt.NDArray[Any]
    input: InputSpec
    is_flipped: bool


def as_augmentation(
    tta: Augmentation | Sequence[float] | bool | None, task: Task
) -> Augmentation | None:
    """What a user's `tta` means: True for the task's default, or scales (with mirror images).

    Raises:
        UsageError: no scales, or one that is not positive.
    """
    if tta is None or tta is False:
        return None
    if tta is True:
        return Augmentation.default(task)
    chosen = tta if isinstance(tta, Augmentation) else Augmentation(scales=tuple(tta))
    if not chosen.scales or min(chosen.scales) <= 0:
        raise UsageError(f"tta scales must be positive numbers such as 0.75, not {chosen.scales}")
    return chosen


def versions(
    image: npt.NDArray[Any], spec: InputSpec, augmentation: Augmentation
) -> Iterator[Version]:
    """The versions of a picture, one after another.

    Args:
        image:        [H, W, C].
        spec:         of the system.
        augmentation: scales and mirror images.
    """
    content = spec.resize.content_size((int(image.shape[0]), int(image.shape[1])))
    for scale in augmentation.scales:
        size = max(1, round(content[0] * scale)), max(1, round(content[1] * scale))
        scaled = replace(spec, resize=_fixed(spec.resize, size))
        yield Version(image, scaled, is_flipped=False)
        if augmentation.flip:
            yield Version(np.ascontiguousarray(image[:, ::-1]), scaled, is_flipped=True)


def _fixed(rule: ResizeRule, size: Size) -> ResizeRule:
    return replace(rule, short_side=None, long_side=None, fixed=size)


def join_semantic(
    parts: Iterator[tuple[SemanticPrediction, bool]], *, with_probs: bool = False
) -> SemanticPrediction:
    """Average the probabilities of all versions; one version is held at a time.

    Args:
        parts:      each with `probs` [K, H, W], and whether it is mirrored.
        with_probs: return the mean too.
    """
    total: Tensor | None = None  # [K, H, W]
    count = 0
    for prediction, is_flipped in parts:
        assert prediction.probs is not None
        probs = prediction.probs.flip(-1) if is_flipped else prediction.probs
        total = probs.clone() if total is None else total.add_(probs)
        count += 1
    assert total is not None
    dtype = torch.uint8 if len(total) <= 255 else torch.int64
    labels = total.argmax(0).to(dtype)
    return SemanticPrediction(labels=labels, probs=total.div_(count) if with_probs else None)


def join_instances(
    parts: Iterator[tuple[InstancePrediction, bool]], *, limit: int | None = None
) -> InstancePrediction:
    """Keep the best of the detections that overlap, per class.

    Args:
        parts: in original pixels, and whether mirrored.
        limit: at most so many objects.
    """
    found = [flip_instances(p) if is_flipped else p for p, is_flipped in parts]
    ranked = [p.mask_scores for p in found]
    every = InstancePrediction(
        boxes=torch.cat([p.boxes for p in found]),
        labels=torch.cat([p.labels for p in found]),
        scores=torch.cat([p.scores for p in found]),
        masks=RunLengths.concat([p.masks for p in found]),
        mask_scores=torch.cat([r for r in ranked if r is not None]) if None not in ranked else None,
    )
    keep = greedy_nms(every.boxes, every.scores, every.labels, iou_thresh=_SAME_OBJECT_IOU)
    kept = every.select(keep)
    return kept.select(kept.scores.argsort(descending=True, stable=True)[:limit])


def flip_instances(found: InstancePrediction) -> InstancePrediction:
    """The same objects in the picture mirrored left to right."""
    width = found.size[1]
    x1, y1, x2, y2 = found.boxes.unbind(1)
    return replace(
        found,
        boxes=torch.stack([width - x2, y1, width - x1, y2], 1),
        masks=flip_masks(found.masks),
    )


def flip_masks(masks: RunLengths) -> RunLengths:
    """Masks mirrored left to right within their picture."""
    crops = rle.decode_crops(masks)
    pixels, starts = crops.pixels.numpy(), crops.starts.numpy()
    windows = masks.windows.copy()
    filled = windows[:, 2] > windows[:, 0]
    windows[filled, 0] = masks.size[1] - masks.windows[filled, 2]
    windows[filled, 2] = masks.size[1] - masks.windows[filled, 0]
    widths = np.diff(masks.windows[:, [0, 2]])[:, 0]
    mirrored = [
        pixels[starts[i] : starts[i + 1]].reshape(-1, max(1, int(widths[i])))[:, ::-1].ravel()
        for i in range(len(masks))
    ]
    flat = np.concatenate([np.zeros(0, np.uint8), *mirrored])
    return rle.encode_crops(MaskCrops(masks.size, torch.as_tensor(windows), torch.as_tensor(flat)))


def predict_augmented(
    image: npt.NDArray[Any],
    spec: InputSpec,
    augmentation: Augmentation,
    predict: Callable[[Version], Prediction],
    *,
    with_probs: bool = False,
) -> Prediction:
    """Predict every version of a picture and join the answers.

    Args:
        image:        [H, W, C].
        spec:         of the system.
        augmentation: scales and mirror images.
        predict:      one version to its prediction in original pixels; with `probs` if semantic.
        with_probs:   keep the mean probabilities.
    """
    answers = ((predict(v), v.is_flipped) for v in versions(image, spec, augmentation))
    first, flipped = next(answers)
    if isinstance(first, SemanticPrediction):
        return join_semantic(_again(first, flipped, answers), with_probs=with_probs)
    return join_instances(_again(first, flipped, answers))


def _again(first: Any, flipped: bool, rest: Iterator[tuple[Any, bool]]) -> Iterator[Any]:
    yield first, flipped
    yield from rest
