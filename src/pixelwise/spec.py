"""Pure data about how a system is fed and where its weights come from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pixelwise.types import Size

Task = Literal["semantic", "instance"]


@dataclass(frozen=True, kw_only=True)
class ResizeRule:
    """How a picture becomes the content of the network input; keeps its aspect unless `fixed`.

    With none of the sizes set the picture is fed at its own size.

    Args:
        short_side:  the shorter side after resizing, pixels.
        long_side:   upper bound of the longer side, pixels; alone, the longer side becomes this.
        fixed:       (height, width); distorts.
        pad_divisor: the input is padded at the right and bottom to a multiple of this.
        antialias:   smooth before shrinking (as Pillow does); False reproduces OpenCV's linear.
    """

    short_side: int | None = None
    long_side: int | None = None
    fixed: Size | None = None
    pad_divisor: int = 1
    antialias: bool = True

    def content_size(self, original: Size) -> Size:
        """(height, width) after resizing a picture of (height, width) `original`."""
        if self.fixed is not None:
            return self.fixed
        short, long = min(original), max(original)
        scale = 1.0
        if self.short_side is not None:
            scale = self.short_side / short
            if self.long_side is not None:
                scale = min(scale, self.long_side / long)
        elif self.long_side is not None:
            scale = self.long_side / long
        height, width = (max(1, int(side * scale + 0.5)) for side in original)
        return height, width


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How pixels become the numbers a network was trained on: (value * scale - mean) / std.

    Args:
        mean:     per channel, after `scale`, in `channel_order`.
        std:      per channel, after `scale`, in `channel_order`.
        scale:    factor on 0..255 pixel values before mean and std (1/255 for torch's convention).
        channel_order: "rgb" or "bgr" for three channels; ignored for any other number.
        resize:   how the picture is brought to the network's size at inference.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    scale: float = 1 / 255
    channel_order: Literal["rgb", "bgr"] = "rgb"
    resize: ResizeRule = ResizeRule()

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return len(self.mean)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> InputSpec:
        """The inverse of `to_dict`, tolerant of JSON's lists."""
        resize = dict(values["resize"])
        if resize.get("fixed") is not None:
            resize["fixed"] = tuple(resize["fixed"])
        return cls(
            mean=tuple(values["mean"]),
            std=tuple(values["std"]),
            scale=values["scale"],
            channel_order=values["channel_order"],
            resize=ResizeRule(**resize),
        )


IMAGENET_RGB = InputSpec()
DETECTION_RGB = InputSpec(resize=ResizeRule(short_side=800, long_side=1333, pad_divisor=32))
CAFFE_BGR = InputSpec(
    mean=(103.530, 116.280, 123.675), std=(1.0, 1.0, 1.0), scale=1.0, channel_order="bgr"
)


@dataclass(frozen=True, kw_only=True)
class WeightsEntry:
    """One released checkpoint: where it is, what it may be used for, how good it was found to be.

    Args:
        name:     `system_backbone_neck.tag`.
        system:   row of `SYSTEMS` it loads into.
        source:   URL, hub id, or `package:PATH` for weights that ship with pixelwise.
        sha256:   of the file, or its published prefix.
        classes:  class names in label order.
        licence:  of the weights; `data_licence` of what they were trained on.
        commercial: whether commercial use is allowed: "yes", "no" or "unclear".
        metrics:  reported or measured numbers by name.
        metrics_source: who reported them, or the command that measured them.
    """

    name: str
    system: str
    source: str
    sha256: str
    classes: tuple[str, ...]
    licence: str
    data_licence: str
    commercial: Literal["yes", "no", "unclear"]
    task: Task
    metrics: tuple[tuple[str, float], ...] = ()
    metrics_source: str = ""


@dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """Training-time changes to a picture, applied to its masks, boxes and labels alike.

    Args:
        crop:           (height, width) of the training crop; None trains on the whole picture.
        scale:          range of the random scale, relative to the size `ResizeRule` gives.
        flip:           probability of a left-right flip.
        vertical_flip:  probability of a top-bottom flip (microscopy, aerial pictures).
        color:          strength of brightness, contrast, saturation and hue jitter, 0..1.
        blur:           probability of a Gaussian blur.
        copy_paste:     probability of pasting the objects of another picture (instance task).
        mosaic:         probability of joining four pictures.
        max_class_frac: a semantic crop is drawn again while one class covers more than this.
        min_visible_frac: an object whose visible part falls below this share is dropped.
    """

    crop: Size | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    vertical_flip: float = 0.0
    color: float = 0.0
    blur: float = 0.0
    copy_paste: float = 0.0
    mosaic: float = 0.0
    max_class_frac: float = 0.75
    min_visible_frac: float = 0.1
