"""DeepLabV3: atrous convolutions side by side with the mean of the whole image, concatenated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, get_args

import torch
from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.losses.semantic import PixelLoss, check_pixel_loss, stack_targets
from pixelwise.nn.aspp import ASPP, Conv, ImagePoolPlace, Projection
from pixelwise.nn.backbones import Backbone, build_backbone
from pixelwise.nn.backbones.resnet import RESNETS
from pixelwise.nn.fcn_head import FCNHead
from pixelwise.nn.norm import NORMS, Norm
from pixelwise.nn.pixel_criterion import PixelCriterion
from pixelwise.ops.cell_grid import labels_at_cells
from pixelwise.ops.resize import logits_to_predictions
from pixelwise.settings import check_config
from pixelwise.types import IGNORE, ImageSize, SemanticPrediction, SemanticTarget

_CHOICES: dict[str, tuple[str, ...]] = {
    "norm": NORMS,
    "conv": get_args(Conv),
    "image_pool": get_args(ImagePoolPlace),
    "projection": get_args(Projection),
}
_PAPER_GRID = (1, 2, 4)  # section 4.1, table 3
_NO_GRID = (1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class DeepLabV3Config:
    """Settings of DeepLabV3; the defaults are the paper's for training.

    Args:
        num_classes:    K, background included where the data has one.
        backbone:       any name of `build_backbone`.
        in_channels:    of the images.
        output_stride:  input pixels per cell of the scores: 16 in training; 8, with twice the
                        rates, in evaluation, from the same weights.
        backbone_style: set of knobs of our own backbones; None gives ResNets "uniform", in which
                        every block of a dilated stage has its dilation.
        multi_grid:     factors on the last stage's dilations; None for the paper's (1, 2, 4) on our
                        ResNets and none elsewhere.
        norm:           "batch", "frozen", "sync" or "group".
        aspp_rates:     dilations of the atrous branches, in cells: 6, 12, 18 at stride 16; 12, 24,
                        36 at stride 8.
        aspp_width:     channels of each branch and of the projection.
        image_pool:     place of the image-level branch, or "none".
        conv:           form of the atrous branches, see `make_conv3x3`.
        projection:     of ASPP; a 3x3 after it is plain.
        aspp_dropout:   probability, after ASPP's projection.
        classifier_dropout: probability, per channel, before the classifier.
        align_corners:  of every bilinear resize; pairs with input sizes 16n + 1.
        loss_at_cells:  compare the scores with the labels under their cells, as V1 and V2 do,
                        instead of resizing them to the labels; a switch, to measure what it costs.
        aux_weight:     weight of a second loss on an earlier map, 0 for none; training only.
        aux_level:      that map's level: 4 is stage 4 of a ResNet, at stride 16 without dilation.
        class_weights:  one weight per class in the loss, or None.
        loss:           of the pixels, see `semantic_loss`.

    Source: DeepLabV3 (arXiv:1706.05587) and its TensorFlow release.
    """

    num_classes: int = 21
    backbone: str = "resnet101"
    in_channels: int = 3
    output_stride: int = 16
    backbone_style: str | None = None
    multi_grid: tuple[int, ...] | None = None
    norm: Norm = "batch"
    aspp_rates: tuple[int, ...] = (6, 12, 18)
    aspp_width: int = 256
    image_pool: ImagePoolPlace = "first"
    conv: Conv = "plain"
    projection: Projection = "1x1"
    aspp_dropout: float = 0.1
    classifier_dropout: float = 0.0
    align_corners: bool = True
    loss_at_cells: bool = False
    aux_weight: float = 0.0
    aux_level: int = 4
    class_weights: tuple[float, ...] | None = None
    loss: PixelLoss = "cross_entropy"

    def __post_init__(self) -> None:
        check_config(self, _CHOICES)
        check_pixel_loss(self.loss)
        if not self.aspp_rates:
            raise UsageError("aspp_rates is empty; give at least one rate, such as (6, 12, 18)")
        if self.aux_weight and not 2 <= self.aux_level <= 4:
            raise UsageError(f"aux_level is 2, 3 or 4, before the last, not {self.aux_level}")


class DeepLabV3Raw(NamedTuple):
    """What the network computes.

    Args:
        logits: [B, K, ceil(H / s), ceil(W / s)] at the output stride s.
    """

    logits: Tensor


class DeepLabV3(nn.Module):
    """DeepLabV3 (a `System`): a dilated backbone, ASPP with an image pool, a classifier.

    Nothing comes after the classifier but bilinear upsampling: the loss is taken on the enlarged
    logits. Batch size 1 trains: where batch norm has a single value per channel (the image pool),
    it uses its running statistics.

    Args:
        cfg: the settings.

    Source: *Rethinking Atrous Convolution for Semantic Image Segmentation* (arXiv:1706.05587).
    """

    CLASS_ROWS: ClassVar[dict[str, int]] = {"classify": 1, "auxiliary.classify": 1}

    def __init__(self, cfg: DeepLabV3Config) -> None:
        super().__init__()
        self.cfg = cfg
        ours = cfg.backbone in RESNETS
        self.backbone: Backbone = build_backbone(
            cfg.backbone,
            in_channels=cfg.in_channels,
            output_stride=cfg.output_stride,
            levels=(cfg.aux_level, 5) if cfg.aux_weight else (5,),
            norm=cfg.norm,
            style=cfg.backbone_style or ("uniform" if ours else None),
            multi_grid=cfg.multi_grid or (_PAPER_GRID if ours else _NO_GRID),
        )
        channels, self.stride = self.backbone.channels, self.backbone.strides[-1]
        self.context = ASPP(
            channels[-1],
            cfg.aspp_width,
            rates=cfg.aspp_rates,
            conv=cfg.conv,
            image_pool=cfg.image_pool,
            projection=cfg.projection,
            refine="plain",
            dropout=cfg.aspp_dropout,
            norm=cfg.norm,
        )
        self.dropout = nn.Dropout2d(cfg.classifier_dropout)
        self.classify = nn.Conv2d(cfg.aspp_width, cfg.num_classes, 1)
        self.auxiliary = (
            FCNHead(channels[0], cfg.num_classes, norm=cfg.norm) if cfg.aux_weight else None
        )
        self.criterion = PixelCriterion(
            cfg.loss, cfg.class_weights, align_corners=cfg.align_corners
        )

    def forward(self, images: Tensor) -> DeepLabV3Raw:
        """[B, C, H, W] normalised images of any size → logits at the output stride."""
        return DeepLabV3Raw(self._logits(self.backbone(images)))

    def loss(self, images: Tensor, targets: Sequence[SemanticTarget]) -> dict[str, Tensor]:
        """What is minimised: "pixel", and "auxiliary" where the config has one.

        Args:
            images:  [B, C, H, W].
            targets: one per image, labels [H, W].
        """
        labels, own = stack_targets(targets)  # [B, H, W]
        maps = self.backbone(images)
        losses = {"pixel": self._compare(self._logits(maps), labels, own, self.stride)}
        if self.auxiliary is not None:
            stride = self.backbone.strides[0]
            auxiliary = self._compare(self.auxiliary(maps[0]), labels, own, stride)
            losses["auxiliary"] = self.cfg.aux_weight * auxiliary
        return losses

    @torch.no_grad()
    def decode(
        self, raw: DeepLabV3Raw, sizes: Sequence[ImageSize], *, with_probs: bool = False
    ) -> list[SemanticPrediction]:
        """One label map per image, in original pixels; the probabilities too where asked for."""
        return logits_to_predictions(
            raw.logits, sizes, align_corners=self.cfg.align_corners, with_probs=with_probs
        )

    def _logits(self, maps: list[Tensor]) -> Tensor:
        context = self.context(maps[-1])  # [B, aspp_width, h, w]
        return self.classify(self.dropout(context))  # [B, K, h, w]

    def _compare(self, logits: Tensor, labels: Tensor, own: Tensor | None, stride: int) -> Tensor:
        """The loss of [B, K, h, w] at a stride: at full size, or under the cells."""
        if self.cfg.loss_at_cells:
            cells = (logits.shape[2], logits.shape[3])
            step = stride if self.cfg.align_corners else None
            labels = labels_at_cells(labels, cells, step=step, outside=IGNORE)  # [B, h, w]
            own = None if own is None else labels_at_cells(own, cells, step=step)
        return self.criterion(logits, labels, own)
