"""DeepLabV3+: atrous context at the bottom, a light decoder that sharpens it with a shallow map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, get_args

import torch
from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.losses.semantic import PixelLoss, check_pixel_loss, stack_targets
from pixelwise.nn.aspp import ASPP, Conv, ImagePoolPlace, Projection, make_conv3x3
from pixelwise.nn.backbones import Backbone, build_backbone
from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.fcn_head import FCNHead
from pixelwise.nn.norm import NORMS, Norm
from pixelwise.nn.pixel_criterion import PixelCriterion
from pixelwise.ops.resize import logits_to_predictions, resize
from pixelwise.settings import check_config
from pixelwise.types import ImageSize, SemanticPrediction, SemanticTarget

_CHOICES: dict[str, tuple[str, ...]] = {
    "norm": NORMS,
    "conv": get_args(Conv),
    "image_pool": get_args(ImagePoolPlace),
    "projection": get_args(Projection),
}


@dataclass(frozen=True, kw_only=True)
class DeepLabV3PlusConfig:
    """Settings of DeepLabV3+; the defaults are the paper's.

    Args:
        num_classes:    K, background included where the data has one.
        backbone:       any name of `build_backbone`.
        in_channels:    of the images.
        output_stride:  input pixels per cell of the deepest map: 8, 16 or 32; 8 with doubled rates
                        is the paper's choice for evaluation.
        backbone_style: set of knobs of our ResNets and Xceptions, see `build_backbone`.
        multi_grid:     factors on the last stage's dilations (ResNet and Xception).
        norm:           "batch", "frozen", "sync" or "group".
        aspp_rates:     dilations of the atrous branches, in cells: 6, 12, 18 at stride 16.
        aspp_width:     channels of each branch and of the context.
        image_pool:     place of the image-level branch, or "none" (the paper's Cityscapes runs).
        conv:           form of the 3x3 convolutions of ASPP and decoder, see `make_conv3x3`.
        projection:     of ASPP.
        low_level_width: channels that the shallow map is reduced to; 48 (or 32).
        decoder_width:  channels of the decoder's 3x3 convolutions.
        decoder_depth:  number of them.
        aspp_dropout:   probability, after ASPP's projection.
        classifier_dropout: probability, per channel, before the classifier.
        align_corners:  of every bilinear resize; pairs with input sizes 16n + 1.
        aux_weight:     weight of a second loss on stage 4's map, 0 for none; training only.
        class_weights:  one weight per class in the loss, or None.
        loss:           of the pixels, see `semantic_loss`; a sum such as "cross_entropy+lovasz".

    Source: DeepLabV3+ (arXiv:1802.02611) and its TensorFlow release.
    """

    num_classes: int = 21
    backbone: str = "xception65"
    in_channels: int = 3
    output_stride: int = 16
    backbone_style: str | None = None
    multi_grid: tuple[int, ...] = (1, 1, 1)
    norm: Norm = "batch"
    aspp_rates: tuple[int, ...] = (6, 12, 18)
    aspp_width: int = 256
    image_pool: ImagePoolPlace = "first"
    conv: Conv = "separable"
    projection: Projection = "1x1"
    low_level_width: int = 48
    decoder_width: int = 256
    decoder_depth: int = 2
    aspp_dropout: float = 0.1
    classifier_dropout: float = 0.0
    align_corners: bool = True
    aux_weight: float = 0.0
    class_weights: tuple[float, ...] | None = None
    loss: PixelLoss = "cross_entropy"

    def __post_init__(self) -> None:
        check_config(self, _CHOICES)
        check_pixel_loss(self.loss)
        if not self.aspp_rates:
            raise UsageError("aspp_rates is empty; give at least one rate, such as (6, 12, 18)")


class DeepLabV3PlusRaw(NamedTuple):
    """What the network computes.

    Args:
        logits: [B, K, ceil(H / 4), ceil(W / 4)].
    """

    logits: Tensor


class Decoder(nn.Module):
    """Bring the context to the shallow map's size, join the two, refine.

    Args:
        context_channels:   of the context.
        low_level_channels: of the shallow map.
        cfg:                widths, depth and form.
    """

    def __init__(
        self, context_channels: int, low_level_channels: int, cfg: DeepLabV3PlusConfig
    ) -> None:
        super().__init__()
        self.align_corners = cfg.align_corners
        self.reduce = ConvNormAct(low_level_channels, cfg.low_level_width, 1, norm=cfg.norm)
        width = context_channels + cfg.low_level_width
        self.refine = nn.Sequential()
        for _ in range(cfg.decoder_depth):
            self.refine.append(make_conv3x3(cfg.conv, width, cfg.decoder_width, norm=cfg.norm))
            width = cfg.decoder_width
        self.out_channels = width

    def forward(self, context: Tensor, low_level: Tensor) -> Tensor:
        """[B, context, h, w], [B, low, H, W] → [B, decoder_width, H, W]."""
        size = (low_level.shape[2], low_level.shape[3])
        context = resize(context, size, align_corners=self.align_corners)
        joined = torch.cat([context, self.reduce(low_level)], 1)
        return self.refine(joined)


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ (a `System`): backbone, ASPP, decoder, classifier.

    The loss is taken on logits resized to the labels, over valid pixels; a batch without any gives
    0. Batch size 1 trains: where batch norm has a single value per channel (the image
    pool), it uses its running statistics.

    Args:
        cfg: the settings.

    Source: DeepLabV3+ (arXiv:1802.02611).
    """

    CLASS_ROWS: ClassVar[dict[str, int]] = {"classify": 1, "auxiliary.classify": 1}

    def __init__(self, cfg: DeepLabV3PlusConfig) -> None:
        super().__init__()
        self.cfg = cfg
        levels = (2, 4, 5) if cfg.aux_weight else (2, 5)
        self.backbone: Backbone = build_backbone(
            cfg.backbone,
            in_channels=cfg.in_channels,
            output_stride=cfg.output_stride,
            levels=levels,
            norm=cfg.norm,
            style=cfg.backbone_style,
            multi_grid=cfg.multi_grid,
        )
        channels = self.backbone.channels
        self.context = ASPP(
            channels[-1],
            cfg.aspp_width,
            rates=cfg.aspp_rates,
            conv=cfg.conv,
            image_pool=cfg.image_pool,
            projection=cfg.projection,
            dropout=cfg.aspp_dropout,
            norm=cfg.norm,
        )
        self.decoder = Decoder(cfg.aspp_width, channels[0], cfg)
        self.dropout = nn.Dropout2d(cfg.classifier_dropout)
        self.classify = nn.Conv2d(self.decoder.out_channels, cfg.num_classes, 1)
        self.auxiliary = (
            FCNHead(channels[1], cfg.num_classes, norm=cfg.norm) if cfg.aux_weight else None
        )
        self.criterion = PixelCriterion(
            cfg.loss, cfg.class_weights, align_corners=cfg.align_corners
        )

    def forward(self, images: Tensor) -> DeepLabV3PlusRaw:
        """[B, C, H, W] normalised images of any size → logits at stride 4."""
        maps = self.backbone(images)
        return DeepLabV3PlusRaw(self._logits(maps))

    def loss(self, images: Tensor, targets: Sequence[SemanticTarget]) -> dict[str, Tensor]:
        """What is minimised: "pixel", and "auxiliary" where the config has one.

        Args:
            images:  [B, C, H, W].
            targets: one per image, labels [H, W].
        """
        labels, own = stack_targets(targets)  # [B, H, W]
        maps = self.backbone(images)
        losses = {"pixel": self.criterion(self._logits(maps), labels, own)}
        if self.auxiliary is not None:
            auxiliary = self.criterion(self.auxiliary(maps[1]), labels, own)
            losses["auxiliary"] = self.cfg.aux_weight * auxiliary
        return losses

    @torch.no_grad()
    def decode(
        self, raw: DeepLabV3PlusRaw, sizes: Sequence[ImageSize], *, with_probs: bool = False
    ) -> list[SemanticPrediction]:
        """One label map per image, in original pixels; the probabilities too where asked for."""
        return logits_to_predictions(
            raw.logits, sizes, align_corners=self.cfg.align_corners, with_probs=with_probs
        )

    def _logits(self, maps: list[Tensor]) -> Tensor:
        refined = self.decoder(self.context(maps[-1]), maps[0])  # [B, D, H/4, W/4]
        return self.classify(self.dropout(refined))  # [B, K, H/4, W/4]
