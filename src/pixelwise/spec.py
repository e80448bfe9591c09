"""Pure data about how a system is fed and where its weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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

    __pydantic_config__ = ConfigDict(extra="forbid")  # an unknown key in a recipe is an error

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
DEEPLAB_BGR = InputSpec(
    mean=(104.008, 116.669, 122.675), std=(1.0, 1.0, 1.0), scale=1.0, channel_order="bgr"
)
FCN_BGR = InputSpec(
    mean=(104.00699, 116.66877, 122.67892), std=(1.0, 1.0, 1.0), scale=1.0, channel_order="bgr"
)
FCIS_BGR = InputSpec(
    mean=(103.06, 115.90, 123.15),
    std=(1.0, 1.0, 1.0),
    scale=1.0,
    channel_order="bgr",
    resize=ResizeRule(short_side=600, long_side=1000),
)
LITE_RGB = InputSpec(  # EfficientNet-Lite's own normalisation, at a size for CPUs
    mean=(127 / 255,) * 3,
    std=(128 / 255,) * 3,
    resize=ResizeRule(short_side=512, long_side=852, pad_divisor=32),
)
POLARMASK_BGR = InputSpec(
    mean=(102.9801, 115.9465, 122.7717),
    std=(1.0, 1.0, 1.0),
    scale=1.0,
    channel_order="bgr",
    resize=ResizeRule(fixed=(768, 1280)),
)
SOLO_LIGHT_RGB = InputSpec(resize=ResizeRule(short_side=512, long_side=852, pad_divisor=32))
YOLACT_RGB = InputSpec(
    mean=(123.68, 116.78, 103.94),
    std=(58.40, 57.12, 57.38),
    scale=1.0,
    resize=ResizeRule(fixed=(550, 550)),
)


Commercial = Literal["yes", "no", "unclear"]


@dataclass(frozen=True, kw_only=True)
class WeightsEntry:
    """One released checkpoint: where it is, what it may be used for, how good it was found to be.

    Args:
        name:     `system_backbone_neck.tag`.
        system:   row of `SYSTEMS` it loads into.
        source:   URL, or `package:PATH` for weights that ship with pixelwise.
        sha256:   of the file, or its published prefix; "" where none is published.
        md5:      prefix of it, where the publisher states that instead.
        classes:  class names in label order.
        licence:  of the weights, or what their publisher says about it.
        data_licence: of what they were trained on.
        commercial: whether weights and data allow commercial use: "yes", "no" or "unclear".
        metrics:  reported or measured numbers by name, as shares of 1.
        metrics_source: the publisher's list of URL and numbers, or the command that measured them.
        origin:   project whose converter reads the file; "pixelwise" for our own files.
        project:  address of that project.
        code_licence: of the project's code.
        data:     what it was trained on, as a row of `weights/published/datasets.json`.
        config:   fields of the system's config that the weights alone cannot tell.
        input:    how pictures are fed; None takes what the converter knows.
        mirrors:  further URLs of the same file.
        by_hand:  why no program can download the source, so that the user saves it; "" if one can.
    """

    name: str
    system: str
    source: str
    sha256: str
    classes: tuple[str, ...]
    licence: str
    data_licence: str
    commercial: Commercial
    task: Task
    metrics: tuple[tuple[str, float], ...] = ()
    metrics_source: str = ""
    md5: str = ""
    origin: str = "pixelwise"
    project: str = ""
    code_licence: str = ""
    data: str = ""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    input: InputSpec | None = None
    mirrors: tuple[str, ...] = ()
    by_hand: str = ""


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
        elastic:        standard deviation of an elastic deformation, pixels of the crop; U-Net's
                        is 10.
        copy_paste:     probability of pasting the objects of another picture (instance task).
        mosaic:         probability of joining four pictures.
        border_weight:  additional loss weight of background between two objects, where both touch
                        it; U-Net's is 10 (semantic task, of data that tells objects apart).
        border_sigma_px: how fast that weight falls with the two distances, pixels of the crop.
        max_class_frac: a semantic crop is drawn again while one class covers more than this.
        min_visible_frac: an object whose visible part falls below this share is dropped.
    """

    crop: Size | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    vertical_flip: float = 0.0
    color: float = 0.0
    blur: float = 0.0
    elastic: float = 0.0
    copy_paste: float = 0.0
    mosaic: float = 0.0
    border_weight: float = 0.0
    border_sigma_px: float = 5.0
    max_class_frac: float = 0.75
    min_visible_frac: float = 0.1


class _Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


class ModelRecipe(_Section):
    """What is trained. Every further key is a field of the system's own config.

    Args:
        name:    a row of `SYSTEMS`; may be left out where `weights` names a checkpoint of ours.
        weights: checkpoint to fine-tune from; classes are matched by name.
        backbone_weights: "package:efficientnet-lite0", "timm" or a path; None starts at random.
        licence: of the trained weights, written into their header.
    """

    model_config = ConfigDict(
        extra="allow", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    name: str | None = None
    weights: str | None = None
    backbone_weights: str | None = None
    licence: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """The keys that belong to the system's config."""
        return dict(self.model_extra or {})


class DataRecipe(_Section):
    """What it learns from, how pictures are brought to size, and how they are varied.

    Args:
        source:     a data.yaml, an annotation file or a folder; relative to the working folder.
        images:     folder of the pictures, where the annotation file does not say.
        format:     format of the annotations; guessed if missing.
        train, val: names of the splits.
        limit:      use the first so many pictures of each split only, to try things out.
        batch_size: pictures per optimiser step, over all processes and accumulated parts.
        workers:    reader processes per training process; 0 reads in the training process.
        resize:     how a picture is brought to size; None takes the system's own rule.
        mean, std:  per channel, after scaling to 0..1; None takes what the weights were trained on.
        class_weights: per-pixel loss weights by class: "auto" is median frequency balancing, a
                    list gives one number per class, None weighs all alike (semantic task).

    The remaining keys are those of `AugmentSpec`.
    """

    source: str
    images: str | None = None
    format: str | None = None
    train: str = "train"
    val: str = "val"
    limit: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=8, ge=1)
    workers: int = Field(default=2, ge=0)
    resize: ResizeRule | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_weights: Literal["auto"] | tuple[float, ...] | None = None

    crop: Size | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = Field(default=0.5, ge=0, le=1)
    vertical_flip: float = Field(default=0.0, ge=0, le=1)
    color: float = Field(default=0.0, ge=0, le=1)
    blur: float = Field(default=0.0, ge=0, le=1)
    elastic: float = Field(default=0.0, ge=0)
    copy_paste: float = Field(default=0.0, ge=0, le=1)
    mosaic: float = Field(default=0.0, ge=0, le=1)
    border_weight: float = Field(default=0.0, ge=0)
    border_sigma_px: float = Field(default=5.0, gt=0)
    max_class_frac: float = Field(default=0.75, gt=0, le=1)
    min_visible_frac: float = Field(default=0.1, ge=0, le=1)

    @property
    def augment(self) -> AugmentSpec:
        """The training-time changes to a picture."""
        return AugmentSpec(**{f.name: getattr(self, f.name) for f in fields(AugmentSpec)})


class OptimRecipe(_Section):
    """How weights move.

    Args:
        name:           "sgd" or "adamw".
        lr:             peak learning rate, for the total batch size.
        momentum:       of SGD; the first beta of AdamW.
        nesterov:       of SGD.
        weight_decay:   L2 factor (SGD) or decoupled decay (AdamW).
        no_decay_norm_bias: leave norm layers and biases out of the decay.
        schedule:       shape of the learning rate after the warm-up.
        power:          of the poly schedule.
        milestones:     where the step schedule multiplies by `gamma`: below 1 a share of the run,
                        from 1 on a step.
        end_lr:         learning rate at the end of poly and cosine.
        update_every:   steps between two changes of poly and cosine; 10 in DeepLab V2.
        warmup_steps:   steps of warm-up; the schedule spans the rest.
        warmup_start:   share of the peak at step 0.
        warmup:         "linear" or "exp".
        layer_decay:    factor per backbone stage going down from the heads (1 turns it off).
        head_lr_scale:  factor on everything outside the backbone.
        backbone_lr_scale: factor on the backbone.
        lr_scales:      factors on single modules by their path, such as {"head.classify": 10};
                        they replace the two above, and a longer path a shorter one.
        bias_lr_scale:  further factor on the biases of convolutions and linear layers; 2 in Caffe.
        freeze_stages:  leading backbone stages that stay as they are, statistics included
                        (1 is the stem, 2 adds the first stage).
        freeze_norm:    keep statistics, weights and biases of every batch norm.
        grad_clip:      largest norm of the whole gradient.
        accumulate:     parts into which each process splits its share of the batch.
        ema_decay:      of the averaged weights, which are then evaluated and saved.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.01, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=1e-4, ge=0)
    no_decay_norm_bias: bool = False
    schedule: Literal["poly", "step", "cosine", "constant"] = "poly"
    power: float = Field(default=0.9, gt=0)
    milestones: tuple[float, ...] = (0.667, 0.889)
    gamma: float = Field(default=0.1, gt=0)
    end_lr: float = Field(default=0.0, ge=0)
    update_every: int = Field(default=1, ge=1)
    warmup_steps: int = Field(default=0, ge=0)
    warmup_start: float = Field(default=0.001, gt=0, le=1)
    warmup: Literal["linear", "exp"] = "linear"
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    head_lr_scale: float = Field(default=1.0, ge=0)
    backbone_lr_scale: float = Field(default=1.0, ge=0)
    lr_scales: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    bias_lr_scale: float = Field(default=1.0, ge=0)
    freeze_stages: int = Field(default=0, ge=0)
    freeze_norm: bool = False
    grad_clip: float | None = Field(default=None, gt=0)
    accumulate: int = Field(default=1, ge=1)
    ema_decay: float | None = Field(default=None, gt=0, lt=1)


class RunRecipe(_Section):
    """How long, where and how exactly it runs. Exactly one of `steps` and `epochs` is set.

    Args:
        steps:         optimiser steps.
        epochs:        passes over the training split.
        seed:          of weights, order and augmentation.
        device:        "auto", "cpu", "cuda" or "mps".
        precision:     "fp32", "bf16" (CPU and GPU) or "fp16" with loss scaling (GPU).
        channels_last: memory layout that convolutions prefer on GPUs.
        compile:       run the training graph through `torch.compile`.
        deterministic: only algorithms that repeat bit by bit on a GPU (slower).
        save_every_steps: how often the state for resuming is written within an epoch.
    """

    steps: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = False
    save_every_steps: int = Field(default=500, ge=1)

    @model_validator(mode="after")
    def _one_length(self) -> RunRecipe:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("needs exactly one of steps and epochs")
        return self


class EvalRecipe(_Section):
    """How it is watched.

    Args:
        every_epochs: epochs between evaluations.
        every_steps:  steps between evaluations; with neither set it is every epoch of a run in
                      epochs, and 20 times in a run in steps. The last step always evaluates.
        best:         logged metric that chooses best.safetensors and stops early; None is "miou"
                      or "mask_ap". "loss" is the validation loss.
        mode:         whether "max" or "min" of it is better; None knows that losses fall.
        early_stop:   evaluations without a better value before the run ends.
        max_dets:     detections per picture that count (instance task).
        batch_size:   pictures at a time.
    """

    every_epochs: int | None = Field(default=None, ge=1)
    every_steps: int | None = Field(default=None, ge=1)
    best: str | None = None
    mode: Literal["max", "min"] | None = None
    early_stop: int | None = Field(default=None, ge=1)
    max_dets: int = Field(default=100, ge=1)
    batch_size: int = Field(default=1, ge=1)


class LogRecipe(_Section):
    """What is written down besides metrics.csv and metrics.jsonl.

    Args:
        every_steps: steps between rows of training losses.
        tensorboard, wandb, mlflow: also log there (each needs its extra).
        pictures:    validation pictures drawn at every evaluation, always the same ones; 0 draws
                     none, not even the worst ones.
    """

    every_steps: int = Field(default=20, ge=1)
    tensorboard: bool = False
    wandb: bool = False
    mlflow: bool = False
    pictures: int = Field(default=8, ge=0)


class Recipe(_Section):
    """Everything a training run depends on; `pixelwise.training.recipe.read` makes one from YAML.

    Args:
        out: the run folder; None takes the next free `runs/NAME`.
    """

    model: ModelRecipe
    data: DataRecipe
    optim: OptimRecipe = OptimRecipe()
    run: RunRecipe
    eval: EvalRecipe = EvalRecipe()
    log: LogRecipe = LogRecipe()
    out: str | None = None
