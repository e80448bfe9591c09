"""DeepLab V2: atrous spatial pyramid pooling, and the best score of three image scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.errors import UsageError
from pixelwise.losses.semantic import PixelLoss, check_pixel_loss, stack_targets
from pixelwise.nn.aspp_sum import SummedASPP
from pixelwise.nn.backbones import Backbone, build_backbone
from pixelwise.nn.backbones.resnet import RESNETS
from pixelwise.nn.backbones.vgg import VGGS
from pixelwise.nn.norm import NORMS, Norm
from pixelwise.nn.pixel_criterion import PixelCriterion
from pixelwise.ops.cell_grid import grid_size, labels_at_cells, resize_grid
from pixelwise.ops.resize import logits_to_predictions, resize
from pixelwise.settings import check_config
from pixelwise.types import IGNORE, ImageSize, SemanticPrediction, SemanticTarget

_MOST_PARTS = 1000  # denominator of a scale


@dataclass(frozen=True, kw_only=True)
class DeepLabV2Config:
    """Settings of DeepLab V2; the defaults are those of ResNet-101.

    Args:
        num_classes:    K, background included where the data has one.
        backbone:       any name of `build_backbone`.
        in_channels:    of the images.
        output_stride:  input pixels per cell of the scores; the rates stay whatever it is.
        backbone_style: set of knobs of our own backbones; None gives ResNets and VGGs those of the
                        authors' Caffe networks.
        norm:           of the backbone: "frozen" as published (crops of 321 in small batches),
                        "batch", "sync" or "group"; VGGs have none.
        rates:          of the branches, in cells; 6, 12, 18, 24 is ASPP-L.
        branch_width:   channels within a branch: 1024 on VGG (fc6, fc7), 0 for branches that are
                        one convolution to the scores.
        dropout:        probability within a branch.
        scales:         sizes of the image that are looked at besides 1, in training too; () for
                        scale 1 alone. The smallest must leave a pixel of the image.
        align_corners:  cell i of the scores lies on pixel stride * i, and pixel j of an image of
                        scale s on pixel j / s, as Caffe has it; False spreads them evenly.
        class_weights:  one weight per class in the loss, or None.
        loss:           of the pixels, see `semantic_loss`.

    Source: arXiv:1606.00915 and its Caffe release.
    """

    num_classes: int = 21
    backbone: str = "resnet101"
    in_channels: int = 3
    output_stride: int = 8
    backbone_style: str | None = None
    norm: Norm = "frozen"
    rates: tuple[int, ...] = (6, 12, 18, 24)
    branch_width: int = 0
    dropout: float = 0.5
    scales: tuple[float, ...] = (0.5, 0.75)
    align_corners: bool = True
    class_weights: tuple[float, ...] | None = None
    loss: PixelLoss = "cross_entropy"

    def __post_init__(self) -> None:
        check_config(self, {"norm": NORMS})
        check_pixel_loss(self.loss)
        if not self.rates or min(self.rates) < 1:
            raise UsageError(f"rates are positive, such as (6, 12, 18, 24), not {self.rates}")
        if (
            min(self.scales, default=1) <= 0
            or 1 in self.scales
            or len(set(self.scales)) < len(self.scales)
        ):
            raise UsageError(
                f"scales are positive, different, and come besides 1, such as (0.5, 0.75), not "
                f"{self.scales}"
            )


class DeepLabV2Raw(NamedTuple):
    """What the network computes.

    Args:
        logits: [B, K, h, w] at the output stride; per class and cell the largest of all scales.
    """

    logits: Tensor


class DeepLabV2(nn.Module):
    """DeepLab V2 (a `System`): one network on several sizes of the image, joined by their maximum.

    Args:
        cfg: the settings.

    Source: *DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution,
        and Fully Connected CRFs*, PAMI 2018 (arXiv:1606.00915).
    """

    CLASS_ROWS: ClassVar[dict[str, int]] = {"aspp.classify": 1}

    def __init__(self, cfg: DeepLabV2Config) -> None:
        super().__init__()
        self.cfg = cfg
        style = cfg.backbone_style
        if style is None and cfg.backbone in RESNETS:
            style = "deeplab-pytorch"
        if style is None and cfg.backbone in VGGS:
            style = "deeplab"
        self.backbone: Backbone = build_backbone(
            cfg.backbone,
            in_channels=cfg.in_channels,
            output_stride=cfg.output_stride,
            levels=(5,),
            norm=cfg.norm,
            style=style,
        )
        self.stride = self.backbone.strides[-1]
        self.aspp = SummedASPP(
            self.backbone.channels[-1],
            cfg.num_classes,
            rates=cfg.rates,
            width=cfg.branch_width,
            dropout=cfg.dropout,
        )
        self.criterion = PixelCriterion(cfg.loss, cfg.class_weights)

    def forward(self, images: Tensor) -> DeepLabV2Raw:
        """[B, C, H, W] normalised images of any size → logits at the output stride."""
        return DeepLabV2Raw(self.fuse(self.scores(images)))

    def scores(self, images: Tensor) -> list[Tensor]:
        """Logits of every scale, [B, K, h, w] each at its own size; scale 1 is the first."""
        inputs = [images, *(self.scaled(images, scale) for scale in self.cfg.scales)]
        return [self.aspp(self.backbone(x)[-1]) for x in inputs]

    def scaled(self, images: Tensor, scale: float) -> Tensor:
        """[B, C, H, W] → the images at another scale; fractions of a pixel at the end are lost."""
        if not self.cfg.align_corners:
            # By the factor, not to a size: pixel centres would move where a fraction is lost.
            return F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
        # In whole numbers, which exporters can follow where sizes are open.
        part = Fraction(scale).limit_denominator(_MOST_PARTS)
        height, width = (
            (side - 1) * part.numerator // part.denominator + 1 for side in images.shape[2:]
        )
        return resize_grid(images, (height, width), step=scale)

    def fuse(self, scores: Sequence[Tensor]) -> Tensor:
        """The largest logit of all scales, not the largest probability.

        Args:
            scores: [B, K, h, w] of every scale, scale 1 first.

        Returns:
            [B, K, h, w] at the size of the first.
        """
        best, *others = scores
        size = (best.shape[2], best.shape[3])
        for other, scale in zip(others, self.cfg.scales, strict=True):
            resized = (
                resize_grid(other, size, step=1 / scale)
                if self.cfg.align_corners
                else resize(other, size)
            )
            best = torch.maximum(best, resized)
        return best

    def loss(self, images: Tensor, targets: Sequence[SemanticTarget]) -> dict[str, Tensor]:
        """What is minimised: "pixel", one such term for every other scale, and "pixel_max".

        Each compares its logits with the labels under their cells. A single scale has one term.

        Args:
            images:  [B, C, H, W].
            targets: one per image, labels [H, W].
        """
        labels, own = stack_targets(targets)  # [B, H, W]
        scores = self.scores(images)
        steps = [self.stride / scale for scale in (1.0, *self.cfg.scales)]
        names = ["pixel", *(f"pixel_{scale:g}" for scale in self.cfg.scales)]
        if len(scores) > 1:
            scores, steps = [*scores, self.fuse(scores)], [*steps, float(self.stride)]
            names.append("pixel_max")
        losses: dict[str, Tensor] = {}
        for name, logits, spacing in zip(names, scores, steps, strict=True):
            cells = (logits.shape[2], logits.shape[3])
            step = spacing if self.cfg.align_corners else None
            losses[name] = self.criterion(
                logits,
                labels_at_cells(labels, cells, step=step, outside=IGNORE),
                None if own is None else labels_at_cells(own, cells, step=step),
            )
        return losses

    @torch.no_grad()
    def decode(
        self, raw: DeepLabV2Raw, sizes: Sequence[ImageSize], *, with_probs: bool = False
    ) -> list[SemanticPrediction]:
        """One label map per image, in original pixels; the probabilities too where asked for."""
        aligned = self.cfg.align_corners
        if aligned:
            cells = (raw.logits.shape[2], raw.logits.shape[3])
            sizes = [replace(size, input=grid_size(cells, self.stride)) for size in sizes]
        return logits_to_predictions(
            raw.logits, sizes, align_corners=aligned, with_probs=with_probs
        )
