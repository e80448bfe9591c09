"""DeepLab V1: a classification network made dense by atrous convolution, for a CRF to sharpen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.errors import UsageError
from pixelwise.losses.semantic import PixelLoss, check_pixel_loss, stack_targets
from pixelwise.nn.backbones import Backbone, build_backbone
from pixelwise.nn.backbones.vgg import VGGS
from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.large_fov import LargeFOV, make_classifier
from pixelwise.nn.norm import NORMS, Norm
from pixelwise.nn.pixel_criterion import PixelCriterion
from pixelwise.ops.cell_grid import grid_size, labels_at_cells, resize_grid
from pixelwise.ops.resize import logits_to_predictions, resize
from pixelwise.settings import check_config
from pixelwise.types import IGNORE, ImageSize, SemanticPrediction, SemanticTarget


@dataclass(frozen=True, kw_only=True)
class DeepLabV1Config:
    """Settings of DeepLab V1; the defaults are LargeFOV's.

    Args:
        num_classes:    K, background included where the data has one.
        backbone:       any name of `build_backbone`.
        in_channels:    of the images.
        output_stride:  input pixels per cell of the scores.
        backbone_style: set of knobs of our own backbones; None gives VGGs LargeFOV's 3x3 pools.
        norm:           of the backbone: "batch", "frozen", "sync" or "group"; VGGs have none.
        fc_kernel:      side of fc6's kernel: 3, or VGG's own 7, or 4, which have rate 4 (or 8) and
                        width 4096 (table 2).
        fc_rate:        dilation of fc6, in cells; fc_rate (fc_kernel - 1) is even.
        fc_width:       channels of fc6 and fc7.
        with_average_pool: a 3x3 average pool before fc6 (pool5a; zeros at the border counted).
        dropout:        probability after fc6 and fc7, and within the branches.
        with_branches:  classifiers on the image and on the first four levels, added to the scores
                        (MSc, section 4.3).
        branch_width:   channels within such a branch.
        align_corners:  cell i of the scores lies on pixel stride * i, as Caffe has it; False
                        spreads the cells evenly over the image.
        loss_at_cells:  compare the scores with the labels under their cells; False resizes the
                        scores to the labels, which V3 found better.
        class_weights:  one weight per class in the loss, or None.
        loss:           of the pixels, see `semantic_loss`.

    Source: arXiv:1412.7062 and its Caffe release.
    """

    num_classes: int = 21
    backbone: str = "vgg16"
    in_channels: int = 3
    output_stride: int = 8
    backbone_style: str | None = None
    norm: Norm = "batch"
    fc_kernel: int = 3
    fc_rate: int = 12
    fc_width: int = 1024
    with_average_pool: bool = True
    dropout: float = 0.5
    with_branches: bool = False
    branch_width: int = 128
    align_corners: bool = True
    loss_at_cells: bool = True
    class_weights: tuple[float, ...] | None = None
    loss: PixelLoss = "cross_entropy"

    def __post_init__(self) -> None:
        check_config(self, {"norm": NORMS})
        check_pixel_loss(self.loss)
        if self.fc_kernel < 1 or self.fc_rate < 1:
            raise UsageError(
                f"fc_kernel and fc_rate are at least 1, not {self.fc_kernel} and {self.fc_rate}"
            )
        if self.fc_rate * (self.fc_kernel - 1) % 2:
            raise UsageError(
                f"fc_rate (fc_kernel - 1) is even, so that fc6 keeps the size: a kernel of "
                f"{self.fc_kernel} cannot have rate {self.fc_rate}"
            )


class DeepLabV1Raw(NamedTuple):
    """What the network computes.

    Args:
        logits: [B, K, h, w] at the output stride.
    """

    logits: Tensor


class Branch(nn.Module):
    """A look at an early map: 3x3 down to the scores' size and 1x1, with ReLU and dropout.

    Args:
        in_channels: of the map.
        width:       of both convolutions.
        stride:      cells of the map per cell of the scores.
        dropout:     probability, after both.

    Source: arXiv:1412.7062, section 4.3.
    """

    def __init__(self, in_channels: int, width: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.stride = stride
        self.reduce = ConvNormAct(in_channels, width, stride=stride, padding=0, norm=None)
        self.mix = ConvNormAct(width, width, 1, norm=None)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """[B, in, H, W] → [B, width, h, w], with (h, w) = `size`, that of the scores."""
        # One window around each cell, whichever way the pools have rounded: room for the first and
        # the last, and nothing beyond.
        height, width = grid_size(size, self.stride)
        x = F.pad(x, (1, width + 1 - x.shape[3], 1, height + 1 - x.shape[2]))
        return self.dropout(self.mix(self.dropout(self.reduce(x))))


class DeepLabV1(nn.Module):
    """DeepLab V1 (a `System`): a dilated VGG, LargeFOV, a classifier. The CRF comes afterwards.

    The last two pools keep stride 1 and what follows is dilated by what they lost: conv5 by 2, and
    VGG's 7x7 of fc6 by 4. The scores lie at stride 8; n pixels give (n - 1) / 8 + 1 rows of them.

    Args:
        cfg: the settings.

    Source: *Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs*,
        ICLR 2015 (arXiv:1412.7062).
    """

    CLASS_ROWS: ClassVar[dict[str, int]] = {"classify": 1}

    def __init__(self, cfg: DeepLabV1Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone: Backbone = build_backbone(
            cfg.backbone,
            in_channels=cfg.in_channels,
            output_stride=cfg.output_stride,
            levels=(1, 2, 3, 4, 5) if cfg.with_branches else (5,),
            norm=cfg.norm,
            style=cfg.backbone_style or ("deeplab" if cfg.backbone in VGGS else None),
        )
        channels, self.stride = self.backbone.channels, self.backbone.strides[-1]
        self.pool = nn.AvgPool2d(3, 1, 1) if cfg.with_average_pool else nn.Identity()
        self.head = LargeFOV(
            channels[-1],
            cfg.fc_width,
            kernel=cfg.fc_kernel,
            rate=cfg.fc_rate,
            dropout=cfg.dropout,
        )
        # Of the image and the first four levels: channels, and pixels per cell.
        before = (1, *self.backbone.strides[:-1])
        early = zip((cfg.in_channels, *channels[:-1]), before, strict=True)
        self.branches = nn.ModuleList(
            Branch(width, cfg.branch_width, stride=self.stride // step, dropout=cfg.dropout)
            for width, step in early
            if cfg.with_branches
        )
        # fc8, then one per branch: their sum is one classifier on what the paper concatenates.
        widths = [cfg.fc_width, *[cfg.branch_width] * len(self.branches)]
        self.classify = nn.ModuleList(make_classifier(width, cfg.num_classes) for width in widths)
        self.criterion = PixelCriterion(cfg.loss, cfg.class_weights)

    def forward(self, images: Tensor) -> DeepLabV1Raw:
        """[B, C, H, W] normalised images of any size → logits at the output stride."""
        *early, deep = self.backbone(images)
        size = (deep.shape[2], deep.shape[3])
        head, *others = self.classify
        logits = head(self.head(self.pool(deep)))  # [B, K, h, w]
        for x, branch, classify in zip((images, *early), self.branches, others, strict=False):
            logits = logits + classify(branch(x, size))
        return DeepLabV1Raw(logits)

    def loss(self, images: Tensor, targets: Sequence[SemanticTarget]) -> dict[str, Tensor]:
        """What is minimised: "pixel".

        Args:
            images:  [B, C, H, W].
            targets: one per image, labels [H, W].
        """
        labels, own = stack_targets(targets)  # [B, H, W]
        logits = self(images).logits
        if self.cfg.loss_at_cells:
            cells = (logits.shape[2], logits.shape[3])
            step = self.stride if self.cfg.align_corners else None
            labels = labels_at_cells(labels, cells, step=step, outside=IGNORE)  # [B, h, w]
            own = None if own is None else labels_at_cells(own, cells, step=step)
        else:
            size = (labels.shape[1], labels.shape[2])
            logits = (
                resize_grid(logits, size, step=self.stride)
                if self.cfg.align_corners
                else resize(logits, size)
            )  # [B, K, H, W]
        return {"pixel": self.criterion(logits, labels, own)}

    @torch.no_grad()
    def decode(
        self, raw: DeepLabV1Raw, sizes: Sequence[ImageSize], *, with_probs: bool = False
    ) -> list[SemanticPrediction]:
        """One label map per image, in original pixels; the probabilities too where asked for."""
        aligned = self.cfg.align_corners
        cells = (raw.logits.shape[2], raw.logits.shape[3])
        if aligned:
            sizes = [replace(size, input=grid_size(cells, self.stride)) for size in sizes]
        return logits_to_predictions(
            raw.logits, sizes, align_corners=aligned, with_probs=with_probs
        )
