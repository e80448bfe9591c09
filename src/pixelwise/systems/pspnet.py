"""PSPNet: every pixel is judged beside the averages of the regions it lies in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, get_args

import torch
from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.losses.semantic import PixelLoss, check_pixel_loss, stack_targets
from pixelwise.nn.backbones import Backbone, build_backbone
from pixelwise.nn.backbones.resnet import RESNETS
from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.fcn_head import FCNHead
from pixelwise.nn.norm import NORMS, Norm
from pixelwise.nn.pixel_criterion import PixelCriterion
from pixelwise.nn.pyramid_pooling import MapPlace, PyramidPooling
from pixelwise.ops.resize import logits_to_predictions
from pixelwise.settings import check_config
from pixelwise.types import ImageSize, SemanticPrediction, SemanticTarget

_RESNET_STYLE = "semseg"  # deep stem; every block of a dilated stage is dilated
_AUX_LEVEL = 4


@dataclass(frozen=True, kw_only=True)
class PSPNetConfig:
    """Settings of PSPNet; the defaults are those of the authors' PyTorch release.

    Args:
        num_classes:    K, background included where the data has one.
        backbone:       any name of `build_backbone`.
        in_channels:    of the images.
        backbone_style: set of knobs of our ResNets; None takes the authors', a stem of three 3x3
                        convolutions and a uniform dilation in each stage.
        output_stride:  input pixels per cell of the deepest map: 8, 16 or 32.
        level:          map that is pooled: 5, the deepest; 3 in segmentation_models.pytorch.
        norm:           "batch", "frozen", "sync" or "group".
        bins:           cells per axis of each grid of the pyramid; table 1 finds these the best.
        branch_width:   channels of each grid's projection; None is the map's / number of grids.
        with_mean_norm: norm on the grid of one cell too, see `PyramidPooling`.
        map_place:      of the map beside the pyramid: "first" or "last".
        head_width:     channels of the convolution after the pyramid.
        head_kernels:   sides of that convolution and of the classifier: (3, 1); (1, 3) in
                        segmentation_models.pytorch.
        dropout:        probability, per channel, before the classifier.
        align_corners:  of every bilinear resize; pairs with input sizes 8n + 1.
        aux_weight:     weight of a second loss on stage 4's map, 0 for none; training only.
                        Section 4.2 finds 0.4 the best.
        aux_width:      channels inside that head; None for a quarter of the map's.
        class_weights:  one weight per class in the loss, or None.
        loss:           of the pixels, see `semantic_loss`.

    Source: PSPNet (arXiv:1612.01105), sections 3 and 4.
    """

    num_classes: int = 21
    backbone: str = "resnet101"
    in_channels: int = 3
    backbone_style: str | None = None
    output_stride: int = 8
    level: int = 5
    norm: Norm = "batch"
    bins: tuple[int, ...] = (1, 2, 3, 6)
    branch_width: int | None = None
    with_mean_norm: bool = True
    map_place: MapPlace = "first"
    head_width: int = 512
    head_kernels: tuple[int, int] = (3, 1)
    dropout: float = 0.1
    align_corners: bool = True
    aux_weight: float = 0.4
    aux_width: int | None = None
    class_weights: tuple[float, ...] | None = None
    loss: PixelLoss = "cross_entropy"

    def __post_init__(self) -> None:
        check_config(self, {"norm": NORMS, "map_place": get_args(MapPlace)})
        check_pixel_loss(self.loss)
        if not self.bins or min(self.bins) < 1:
            raise UsageError(f"bins are cells per axis, such as (1, 2, 3, 6), not {self.bins}")
        if len(self.head_kernels) != 2 or any(side % 2 == 0 for side in self.head_kernels):
            raise UsageError(f"head_kernels is two odd sides, such as (3, 1): {self.head_kernels}")
        if self.aux_weight and self.level <= _AUX_LEVEL:
            raise UsageError(
                f"aux_weight is of a loss on the map of level {_AUX_LEVEL}, before the pooled one; "
                f"with level={self.level} it must be 0"
            )


class PSPNetRaw(NamedTuple):
    """What the network computes.

    Args:
        logits: [B, K, ceil(H / S), ceil(W / S)], S the stride of the map that is pooled.
    """

    logits: Tensor


class PSPNet(nn.Module):
    """PSPNet (a `System`): dilated backbone, pyramid pooling, classifier.

    The loss is taken on logits resized to the labels. Images of any size go in, since the grids
    divide whatever map there is. Batch size 1 trains, see `PyramidPooling`.

    Args:
        cfg: the settings.

    Source: Pyramid Scene Parsing Network, CVPR 2017 (arXiv:1612.01105).
    """

    CLASS_ROWS: ClassVar[dict[str, int]] = {"classify": 1, "auxiliary.classify": 1}

    def __init__(self, cfg: PSPNetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone: Backbone = build_backbone(
            cfg.backbone,
            in_channels=cfg.in_channels,
            output_stride=cfg.output_stride,
            levels=(_AUX_LEVEL, cfg.level) if cfg.aux_weight else (cfg.level,),
            norm=cfg.norm,
            style=cfg.backbone_style or (_RESNET_STYLE if cfg.backbone in RESNETS else None),
        )
        channels = self.backbone.channels
        self.pyramid = PyramidPooling(
            channels[-1],
            bins=cfg.bins,
            width=cfg.branch_width,
            norm=cfg.norm,
            with_mean_norm=cfg.with_mean_norm,
            map_place=cfg.map_place,
            align_corners=cfg.align_corners,
        )
        first, last = cfg.head_kernels
        self.fuse = ConvNormAct(self.pyramid.out_channels, cfg.head_width, first, norm=cfg.norm)
        self.dropout = nn.Dropout2d(cfg.dropout)
        self.classify = nn.Conv2d(cfg.head_width, cfg.num_classes, last, padding=last // 2)
        self.auxiliary = (
            FCNHead(channels[0], cfg.num_classes, width=cfg.aux_width, norm=cfg.norm)
            if cfg.aux_weight
            else None
        )
        self.criterion = PixelCriterion(
            cfg.loss, cfg.class_weights, align_corners=cfg.align_corners
        )

    def forward(self, images: Tensor) -> PSPNetRaw:
        """[B, C, H, W] normalised images of any size → logits at the pooled map's stride."""
        return PSPNetRaw(self._logits(self.backbone(images)))

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
            auxiliary = self.criterion(self.auxiliary(maps[0]), labels, own)
            losses["auxiliary"] = self.cfg.aux_weight * auxiliary
        return losses

    @torch.no_grad()
    def decode(
        self, raw: PSPNetRaw, sizes: Sequence[ImageSize], *, with_probs: bool = False
    ) -> list[SemanticPrediction]:
        """One label map per image, in original pixels; the probabilities too where asked for."""
        return logits_to_predictions(
            raw.logits, sizes, align_corners=self.cfg.align_corners, with_probs=with_probs
        )

    def _logits(self, maps: list[Tensor]) -> Tensor:
        joined = self.pyramid(maps[-1])  # [B, 2 C, H/S, W/S]
        return self.classify(self.dropout(self.fuse(joined)))  # [B, K, H/S, W/S]
