"""From an annotated picture to what a network is fed: by chance for training, without it else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pixelwise.data.borders import weigh_borders
from pixelwise.data.elastic import deform
from pixelwise.data.geometry import Geometry
from pixelwise.data.images import scale_to_8_bit
from pixelwise.data.mixing import copy_paste, mosaic
from pixelwise.data.photometric import blur, jitter_color
from pixelwise.data.sample import Sample
from pixelwise.data.scene import Scene, place, to_tensor
from pixelwise.data.views import draw_view, force_object
from pixelwise.errors import UsageError
from pixelwise.spec import AugmentSpec, InputSpec, Task
from pixelwise.types import IGNORE, ImageSize, InstanceTarget, SemanticTarget, Size, Target

Pixels = npt.NDArray[np.uint8]

_SMALLEST_MOSAIC_PX = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """One picture ready for a network.

    Args:
        image:  [C, H, W] float32, normalised; zeros beyond the content.
        target: what a system learns from, None where the sample has no such annotation.
        size:   of the picture as stored, of the content and of the network input.
        index:  position in the data set.
    """

    image: Tensor
    target: Target | None
    size: ImageSize
    index: int


def prepare_image(
    image: npt.NDArray[Any], spec: InputSpec, *, device: torch.device | str | None = None
) -> tuple[Tensor, ImageSize]:
    """Resize, normalise and pad one picture as a network expects it.

    Args:
        image: [H, W, C] or [H, W]; RGB where C is 3. Anything but uint8 is brought to 0..255 by the
            rules of `pixelwise.data.images`.
        spec:  how the network is fed.
        device: of the result. A picture travels as bytes, a quarter of what it is afterwards, and
            its numbers are those of the CPU.

    Returns:
        image: [C', H', W'] float32, padded to the divisor of the resize rule.
        size:  its three sizes.

    Raises:
        DataError: a number of channels that cannot be brought to the network's.
    """
    tensor = to_tensor(scale_to_8_bit(image), spec.channels)
    original = (int(tensor.shape[1]), int(tensor.shape[2]))
    content = spec.resize.content_size(original)
    geometry = Geometry.resize(original, content)
    resized = geometry.image(tensor, antialias=spec.resize.antialias)
    padded = padded_size(content, spec.resize.pad_divisor)
    size = ImageSize(original=original, content=content, input=padded)
    return pad_to(normalise(resized.to(device or resized.device), spec), padded), size


def unprepare(image: Tensor, spec: InputSpec, size: ImageSize | None = None) -> Pixels:
    """The picture that a network sees, for looking at it.

    Args:
        image: [C, H, W] normalised.
        spec:  how it was prepared.
        size:  cut to this content; None keeps the padding.

    Returns:
        [h, w, C] uint8, RGB where C is 3.
    """
    if size is not None:
        image = image[:, : size.content[0], : size.content[1]]
    image = image.detach().cpu().float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    values = (image * std + mean) / spec.scale
    if spec.channels == 3 and spec.channel_order == "bgr":
        values = values.flip(0)
    return values.add(0.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def normalise(image: Tensor, spec: InputSpec) -> Tensor:
    """Turn pixel values into the numbers that the weights were trained on.

    Args:
        image: [C, H, W] of any type, 0..255, RGB where C is 3.
        spec:  scale, mean, std and channel order.

    Returns:
        [C, H, W] float32, contiguous.
    """
    if spec.channels == 3 and spec.channel_order == "bgr":
        image = image.flip(0)
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    values = image.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    factor, shift = ((v / std).to(image.device) for v in (spec.scale, mean))  # as on the CPU
    return values.mul_(factor).sub_(shift)


def padded_size(size: Size, divisor: int) -> Size:
    """The next larger (height, width) that the divisor divides."""
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def pad_to(image: Tensor, size: Size, *, value: float = 0.0) -> Tensor:
    """Pad at the right and the bottom.

    Args:
        image: [..., h, w].
        size:  (height, width) of the result.
        value: what the padding holds.

    Raises:
        UsageError: the image is larger.
    """
    bottom, right = size[0] - image.shape[-2], size[1] - image.shape[-1]
    if bottom < 0 or right < 0:
        raise UsageError(
            f"an image of {image.shape[-2]}x{image.shape[-1]} does not fit into "
            f"{size[0]}x{size[1]}; resize it first, or choose a larger size"
        )
    if not (bottom or right):
        return image
    return torch.nn.functional.pad(image, (0, right, 0, bottom), value=value)


class EvalTransform:
    """The whole picture at the size of the resize rule, and its target in that frame.

    Args:
        spec: how the network is fed.
        task: which annotation becomes the target.
    """

    def __init__(self, spec: InputSpec, task: Task) -> None:
        self.spec = spec
        self.task: Task = task

    def __call__(self, sample: Sample) -> Prepared:
        """Prepare one sample."""
        content = self.spec.resize.content_size(sample.size)
        scene = place(
            sample,
            Geometry.resize(sample.size, content),
            channels=self.spec.channels,
            antialias=self.spec.resize.antialias,
            task=self.task,
        )
        padded = padded_size(content, self.spec.resize.pad_divisor)
        size = ImageSize(original=sample.size, content=content, input=padded)
        return Prepared(
            image=pad_to(normalise(scene.image, self.spec), padded),
            target=make_target(scene, self.task, padded),
            size=size,
            index=sample.index,
        )


class TrainTransform:
    """A picture changed by chance, and its target with it.

    In order: mosaic, or scale, crop and flip; copy-paste; elastic deformation; colours; blur;
    normalisation; padding to the crop. All chance comes from the generator that is passed in, so
    the same generator gives the same result.

    Args:
        spec:    how the network is fed; random scales are relative to its resize rule.
        augment: how much of each change.
        task:    which annotation becomes the target.
        background: label between objects, where `augment.border_weight` parts those that touch.
    """

    def __init__(
        self, spec: InputSpec, augment: AugmentSpec, task: Task, *, background: int | None = None
    ) -> None:
        self.spec, self.augment = spec, augment
        self.task: Task = task
        self.with_borders = task == "semantic" and augment.border_weight > 0
        self.background = background

    def __call__(
        self,
        sample: Sample,
        rng: np.random.Generator,
        draw_other: Callable[[], Sample] | None = None,
    ) -> Prepared:
        """Prepare one sample.

        Args:
            sample:     the annotated picture.
            rng:        all chance comes from it.
            draw_other: gives another picture, for copy-paste and mosaic, which are skipped
                without it.
        """
        scene = self._compose(sample, rng, draw_other)
        if self.augment.elastic > 0:
            scene = deform(scene, self.augment.elastic, rng)
        image = scene.image.to(torch.float32, memory_format=torch.contiguous_format)
        if self.augment.color > 0:
            image = jitter_color(image, self.augment.color, rng)
        if rng.random() < self.augment.blur:
            image = blur(image, rng)
        padded = padded_size(self.augment.crop or scene.size, self.spec.resize.pad_divisor)
        return Prepared(
            image=pad_to(normalise(image, self.spec), padded),
            target=self._target(scene, padded),
            size=ImageSize(original=sample.size, content=scene.size, input=padded),
            index=sample.index,
        )

    def _target(self, scene: Scene, padded: Size) -> Target | None:
        if not self.with_borders or scene.labels is None or scene.objects is None:
            return make_target(scene, self.task, padded)
        labels, weights = weigh_borders(
            scene,
            peak=self.augment.border_weight,
            sigma_px=self.augment.border_sigma_px,
            background=self.background,
        )
        target = make_target(replace(scene, labels=labels), self.task, padded)
        assert isinstance(target, SemanticTarget)
        return replace(target, weights=pad_to(torch.from_numpy(weights), padded))

    def _compose(
        self, sample: Sample, rng: np.random.Generator, draw_other: Callable[[], Sample] | None
    ) -> Scene:
        # Both are drawn always, so that switching one off leaves the other's chance as it is.
        with_mosaic, with_paste = rng.random(2) < (self.augment.mosaic, self.augment.copy_paste)
        canvas = self.augment.crop or self.spec.resize.content_size(sample.size)
        if draw_other is not None and with_mosaic and min(canvas) >= _SMALLEST_MOSAIC_PX:
            others = draw_other

            def draw(number: int, size: Size) -> Scene:
                return self._view(others() if number else sample, rng, size, fill=True)

            scene = mosaic(draw, canvas, rng)
        else:
            scene = self._view(sample, rng, self.augment.crop)
        if draw_other is not None and with_paste and self.task == "instance":
            other = self._view(draw_other(), rng, self.augment.crop or scene.size)
            scene = copy_paste(scene, other, rng, min_visible_frac=self.augment.min_visible_frac)
        return scene

    def _view(
        self, sample: Sample, rng: np.random.Generator, crop: Size | None, *, fill: bool = False
    ) -> Scene:
        """A random view of one picture that shows something worth learning from."""
        rule, augment = self.spec.resize, self.augment
        content = rule.content_size(sample.size)
        geometry = draw_view(
            sample, content, augment, task=self.task, rng=rng, crop=crop, fill=fill
        )
        scene = self._place(sample, geometry)
        solid = sample.instances is not None and not sample.instances.crowd.all()
        if self.task == "instance" and solid and _is_empty(scene):
            scene = self._place(sample, force_object(sample, geometry, rng))
        return scene

    def _place(self, sample: Sample, geometry: Geometry) -> Scene:
        return place(
            sample,
            geometry,
            channels=self.spec.channels,
            antialias=self.spec.resize.antialias,
            min_visible_frac=0.0 if self.with_borders else self.augment.min_visible_frac,
            task=None if self.with_borders else self.task,
        )


def make_target(scene: Scene, task: Task, padded: Size) -> Target | None:
    """What a system learns from a scene.

    Args:
        scene:  picture and annotation.
        task:   which annotation.
        padded: (height, width) of the network input.

    Returns:
        Labels with 255 in the padding, or the objects; None without that annotation.
    """
    if task == "instance" or scene.labels is None:
        return scene.objects if task == "instance" else None
    labels = torch.from_numpy(np.ascontiguousarray(scene.labels)).long()
    return SemanticTarget(labels=pad_to(labels, padded, value=IGNORE))


def _is_empty(scene: Scene) -> bool:
    objects: InstanceTarget | None = scene.objects
    return objects is None or bool(objects.crowd.all())
