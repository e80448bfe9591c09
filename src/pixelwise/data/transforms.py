"""From an annotated picture to what a network is fed: for training with chance, for evaluation without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchvision.transforms.v2.functional as pixels
from torch import Tensor

from pixelwise.data.geometry import Placement
from pixelwise.data.sample import Instances, Sample
from pixelwise.spec import AugmentSpec, InputSpec, Task
from pixelwise.types import (
    ImageSize,
    InstanceTarget,
    MaskCrops,
    SemanticTarget,
    Size,
    Target,
)

_TRIES = 10  # crops drawn before the last one is taken as it is


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """One picture ready for a network.

    Args:
        image:  [C, H, W] float32, normalised, padded with zeros.
        target: what the system learns from; None where the sample has no annotation.
        size:   original, content and input size.
        index:  position in the data set.
    """

    image: Tensor
    target: Target | None
    size: ImageSize
    index: int


def normalise(image: Tensor, spec: InputSpec) -> Tensor:
    """[C, H, W] pixel values → float32 in the convention of the weights."""
    if image.shape[0] == 3 and spec.channel_order == "bgr":
        image = image.flip(0)
    mean = torch.tensor(spec.mean)[:, None, None]
    std = torch.tensor(spec.std)[:, None, None]
    return (image.float() * spec.scale - mean) / std


def prepare_image(image: npt.NDArray[Any], spec: InputSpec) -> tuple[Tensor, ImageSize]:
    """Resize, normalise and pad one picture for inference.

    Args:
        image: [H, W, C].
        spec:  of the system.

    Returns:
        [C, H', W'] float32 and its sizes.
    """
    original = (int(image.shape[0]), int(image.shape[1]))
    content = spec.resize.content_size(original)
    placement = Placement(
        original=original, scaled=content, output=content, antialias=spec.resize.antialias
    )
    tensor = normalise(placement.image(to_tensor(image)), spec)
    padded = padded_size(content, spec.resize.pad_divisor)
    return pad_to(tensor, padded), ImageSize(original=original, content=content, input=padded)


def to_tensor(image: npt.NDArray[Any]) -> Tensor:
    """[H, W, C] → [C, H, W], own memory."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def padded_size(size: Size, divisor: int) -> Size:
    """The next larger multiple of the divisor, per axis."""
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def pad_to(image: Tensor, size: Size, *, value: float = 0.0) -> Tensor:
    """Pad at the right and the bottom."""
    bottom, right = size[0] - image.shape[-2], size[1] - image.shape[-1]
    if not (bottom or right):
        return image
    return torch.nn.functional.pad(image, (0, right, 0, bottom), value=value)


class EvalTransform:
    """A picture at the size of its `ResizeRule`, with its target in the same frame.

    Args:
        spec: of the system.
        task: which annotation becomes the target.
    """

    def __init__(self, spec: InputSpec, task: Task) -> None:
        self.spec, self.task = spec, task

    def __call__(self, sample: Sample) -> Prepared:
        """The sample without any chance."""
        content = self.spec.resize.content_size(sample.size)
        placement = Placement(
            original=sample.size,
            scaled=content,
            output=content,
            antialias=self.spec.resize.antialias,
        )
        return _place(sample, placement, self.spec, self.task)


class TrainTransform:
    """A picture scaled, cropped, flipped and recoloured by chance, its target with it.

    Args:
        spec:    of the system.
        augment: how strong each change is.
        task:    which annotation becomes the target.
    """

    def __init__(self, spec: InputSpec, augment: AugmentSpec, task: Task) -> None:
        self.spec, self.augment, self.task = spec, augment, task

    def __call__(
        self,
        sample: Sample,
        rng: np.random.Generator,
        draw_other: Callable[[], Sample] | None = None,
    ) -> Prepared:
        """The sample changed as this generator says; equal generators give equal results."""
        placement = self._choose_placement(sample, rng)
        prepared = _place(
            sample,
            placement,
            self.spec,
            self.task,
            min_visible_frac=self.augment.min_visible_frac,
            recolour=lambda image: self._recolour(image, rng),
        )
        return prepared

    def _choose_placement(self, sample: Sample, rng: np.random.Generator) -> Placement:
        content = self.spec.resize.content_size(sample.size)
        factor = float(np.exp(rng.uniform(*np.log(self.augment.scale))))
        scaled = (max(1, round(content[0] * factor)), max(1, round(content[1] * factor)))
        flips = (
            bool(rng.random() < self.augment.vertical_flip),
            bool(rng.random() < self.augment.flip),
        )
        crop = self.augment.crop or scaled
        placement = Placement(
            original=sample.size,
            scaled=scaled,
            output=crop,
            flip_yx=flips,
            antialias=self.spec.resize.antialias,
        )
        for _ in range(_TRIES):
            corner = tuple(
                int(rng.integers(0, max(0, side - part) + 1))
                for side, part in zip(scaled, crop, strict=True)
            )
            placement = replace(placement, corner=(corner[0], corner[1]))
            if self._keeps_enough(sample, placement):
                break
        return placement

    def _keeps_enough(self, sample: Sample, placement: Placement) -> bool:
        """Whether a crop shows more than one class (semantic) or at least one object (instance)."""
        if self.task == "semantic" and sample.labels is not None:
            counts = np.bincount(placement.labels(sample.labels).reshape(-1), minlength=256)[:255]
            return counts.sum() > 0 and counts.max() <= self.augment.max_class_frac * counts.sum()
        if self.task == "instance" and sample.instances is not None and len(sample.instances):
            boxes = sample.instances.boxes[~sample.instances.crowd].astype(np.float64)
            centres = placement.points((boxes[:, :2] + boxes[:, 2:]) / 2)
            inside = (centres >= 0) & (centres < np.asarray(placement.output[::-1]))
            return not len(boxes) or bool(inside.all(1).any())
        return True

    def _recolour(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Brightness, contrast, saturation, hue and blur of a [C, H, W] picture."""
        strength = self.augment.color
        if strength > 0:
            factors = rng.uniform(1 - 0.5 * strength, 1 + 0.5 * strength, 3)
            hue = rng.uniform(-0.1, 0.1) * strength
            image = pixels.adjust_brightness(image, float(factors[0]))
            if image.shape[0] in (1, 3):
                image = pixels.adjust_contrast(image, float(factors[1]))
            if image.shape[0] == 3:
                image = pixels.adjust_saturation(image, float(factors[2]))
                image = pixels.adjust_hue(image, float(hue))
        if rng.random() < self.augment.blur:
            sigma = float(rng.uniform(0.3, 1.5))
            image = pixels.gaussian_blur(image, [5, 5], [sigma, sigma])
        return image


def _place(
    sample: Sample,
    placement: Placement,
    spec: InputSpec,
    task: Task,
    *,
    min_visible_frac: float = 0.0,
    recolour: Callable[[Tensor], Tensor] | None = None,
) -> Prepared:
    image = placement.image(to_tensor(sample.image))
    image = normalise(recolour(image) if recolour else image, spec)
    content = placement.output
    padded = padded_size(content, spec.resize.pad_divisor)
    target: Target | None = None
    if task == "semantic" and sample.labels is not None:
        labels = torch.from_numpy(placement.labels(sample.labels)).long()
        target = SemanticTarget(labels=pad_to(labels, padded, value=255))
    elif task == "instance" and sample.instances is not None:
        target = place_instances(sample.instances, placement, min_visible_frac=min_visible_frac)
    size = ImageSize(original=sample.size, content=content, input=padded)
    return Prepared(image=pad_to(image, padded), target=target, size=size, index=sample.index)


def place_instances(
    instances: Instances, placement: Placement, *, min_visible_frac: float = 0.0
) -> InstanceTarget:
    """The objects as a system learns them; those (almost) out of sight are left out.

    Args:
        instances: in the original picture.
        placement: where it goes.
        min_visible_frac: least share of an object's area that stays, 0..1.
    """
    from pixelwise.ops.rle import areas

    crops = placement.masks(instances.masks)
    boxes, visible = _tight(crops)
    scale = placement.scale_yx[0] * placement.scale_yx[1]
    share = visible / np.maximum(areas(instances.masks) * scale, 1e-9)
    keep = (visible > 0) & ((share >= min_visible_frac) | instances.crowd)
    return InstanceTarget(
        boxes=torch.from_numpy(boxes[keep]),
        labels=torch.from_numpy(instances.labels[keep]),
        masks=_select(crops, keep),
        crowd=torch.from_numpy(instances.crowd[keep]),
    )


def _tight(crops: MaskCrops) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """[N, 4] float32 boxes around the set pixels, and [N] their number."""
    boxes = np.zeros((len(crops), 4), np.float32)
    counts = np.zeros(len(crops), np.int64)
    starts, flat = crops.starts.tolist(), crops.pixels.numpy()
    for i, (x1, y1, x2, y2) in enumerate(crops.windows.tolist()):
        mask = flat[starts[i] : starts[i + 1]].reshape(y2 - y1, x2 - x1)
        counts[i] = int(mask.sum())
        if counts[i]:
            columns, rows = mask.any(0).nonzero()[0], mask.any(1).nonzero()[0]
            boxes[i] = x1 + columns[0], y1 + rows[0], x1 + columns[-1] + 1, y1 + rows[-1] + 1
    return boxes, counts


def _select(crops: MaskCrops, keep: npt.NDArray[np.bool_]) -> MaskCrops:
    pixel_keep = np.repeat(keep, crops.areas_of_windows.numpy())
    return MaskCrops(
        crops.size,
        crops.windows[torch.from_numpy(keep)],
        crops.pixels[torch.from_numpy(pixel_keep)],
    )
