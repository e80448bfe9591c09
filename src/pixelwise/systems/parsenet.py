"""ParseNet: each position's feature beside the mean of the whole image, both at length one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.losses.semantic import PixelLoss, check_pixel_loss, stack_targets
from pixelwise.nn.backbones import Backbone, build_backbone
from pixelwise.nn.backbones.vgg import VGG, VGGS, MaxPool
from pixelwise.nn.global_context import GlobalContext, L2Norm
from pixelwise.nn.large_fov import LargeFOV, make_classifier
from pixelwise.nn.norm import NORMS, Norm
from pixelwise.nn.pixel_criterion import PixelCriterion
from pixelwise.ops.cell_grid import grid_size, resize_grid
from pixelwise.ops.resize import logits_to_predictions, resize
from pixelwise.settings import check_config
from pixelwise.types import ImageSize, SemanticPrediction, SemanticTarget

_LAST = 5  # level of the map that fc6 reads


@dataclass(frozen=True, kw_only=True)
class ParseNetConfig:
    """Settings of ParseNet; the defaults are those of its network for PASCAL VOC.

    Args:
        num_classes:    K, background included where the data has one.
        backbone:       any name of `build_backbone`.
        in_channels:    of the images.
        output_stride:  input pixels per cell of fc7.
        backbone_style: set of knobs of our own backbones; None gives VGGs DeepLab's 3x3 pools.
        norm:           of the backbone: "batch", "frozen", "sync" or "group"; VGGs have none.
        fc_kernel:      side of fc6's kernel: 3, or VGG's 7 on the base of FCN-32s.
        fc_rate:        dilation of fc6, in cells.
        fc_width:       channels of fc6 and fc7.
        skips:          levels scored besides fc7: (4, 5) for conv4 and conv5 (SiftFlow),
                        (3, 4, 5) for PASCAL-Context.
        with_norm:      L2 norms before all classifiers; without, the layer of the largest scale
                        drowns the others (section 3.3).
        scale:          of the norms, at the start.
        dropout:        probability after fc6 and fc7.
        align_corners:  cell i of the scores lies on pixel stride * i, as Caffe has it; False
                        spreads the cells evenly over the image.
        class_weights:  one weight per class in the loss, or None.
        loss:           of the pixels, see `semantic_loss`.

    Source: ParseNet (arXiv:1506.04579).
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
    skips: tuple[int, ...] = ()
    with_norm: bool = True
    scale: float = 10.0
    dropout: float = 0.5
    align_corners: bool = True
    class_weights: tuple[float, ...] | None = None
    loss: PixelLoss = "cross_entropy"

    def __post_init__(self) -> None:
        check_config(self, {"norm": NORMS})
        check_pixel_loss(self.loss)
        if self.fc_kernel < 1 or self.fc_kernel % 2 == 0:
            raise UsageError(f"fc_kernel is odd, such as 3 or 7; it cannot be {self.fc_kernel}")
        if self.fc_rate < 1:
            raise UsageError(f"fc_rate is at least 1, not {self.fc_rate}")
        if list(self.skips) != sorted(set(self.skips)) or not set(self.skips) <= {2, 3, 4, 5}:
            raise UsageError(f"skips are levels from 2 to 5 in order, as (4, 5), not {self.skips}")


class ParseNetRaw(NamedTuple):
    """What the network computes.

    Args:
        logits: [B, K, h, w] at the stride of the finest map that is scored.
    """

    logits: Tensor


class ParseNet(nn.Module):
    """ParseNet (a `System`): LargeFOV's fc7 with its global context, classified.

    Scores of earlier maps, each after its own L2 norm, are added. That is the paper's early fusion:
    a 1x1 convolution of concatenated maps is the sum of one convolution of each.

    Args:
        cfg: the settings.

    Source: *ParseNet: Looking Wider to See Better* (arXiv:1506.04579).
    """

    CLASS_ROWS: ClassVar[dict[str, int]] = {"classify": 1}

    def __init__(self, cfg: ParseNetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        ours = cfg.backbone in VGGS
        # conv3 to conv5 are convolutions, while fc6 reads the last pool.
        knobs: dict[str, Any] = {"before_pool": True} if ours else {}
        self.backbone: Backbone = build_backbone(
            cfg.backbone,
            in_channels=cfg.in_channels,
            output_stride=cfg.output_stride,
            levels=sorted({*cfg.skips, _LAST}),
            norm=cfg.norm,
            style=cfg.backbone_style or ("deeplab" if ours else None),
            **knobs,
        )
        channels, strides = self.backbone.channels, self.backbone.strides
        self.pool = cast("VGG", self.backbone).last_pool if ours else nn.Identity()
        deep = strides[-1] * (self.pool.stride if isinstance(self.pool, MaxPool) else 1)
        # Of all scores, finest first.
        self.strides = (*strides[: len(cfg.skips)], deep)
        self.head = LargeFOV(
            channels[-1],
            cfg.fc_width,
            kernel=cfg.fc_kernel,
            rate=cfg.fc_rate,
            dropout=cfg.dropout,
        )
        self.context = GlobalContext(cfg.fc_width, cfg.scale, with_norm=cfg.with_norm)
        skipped = channels[: len(cfg.skips)]
        self.norms = nn.ModuleList(
            L2Norm(width, cfg.scale) if cfg.with_norm else nn.Identity() for width in skipped
        )
        # Of the skipped maps, then of fc7 with its context.
        self.classify = nn.ModuleList(
            make_classifier(width, cfg.num_classes)
            for width in (*skipped, self.context.out_channels)
        )
        self.criterion = PixelCriterion(cfg.loss, cfg.class_weights)

    def forward(self, images: Tensor) -> ParseNetRaw:
        """[B, C, H, W] normalised images of any size → logits at the finest scored stride."""
        maps = self.backbone(images)
        deep = self.context(self.head(self.pool(maps[-1])))  # [B, 2 fc_width, h, w]
        features = [norm(x) for norm, x in zip(self.norms, maps, strict=False)]
        scores = [classify(x) for classify, x in zip(self.classify, [*features, deep], strict=True)]
        return ParseNetRaw(self._add(scores))

    def loss(self, images: Tensor, targets: Sequence[SemanticTarget]) -> dict[str, Tensor]:
        """What is minimised: "pixel", on scores at the size of the labels.

        Args:
            images:  [B, C, H, W].
            targets: one per image, labels [H, W].
        """
        labels, own = stack_targets(targets)  # [B, H, W]
        logits = self(images).logits
        if self.cfg.align_corners:
            size = (labels.shape[1], labels.shape[2])
            logits = resize_grid(logits, size, step=self.strides[0])  # [B, K, H, W]
        return {"pixel": self.criterion(logits, labels, own)}

    @torch.no_grad()
    def decode(
        self, raw: ParseNetRaw, sizes: Sequence[ImageSize], *, with_probs: bool = False
    ) -> list[SemanticPrediction]:
        """One label map per image, in original pixels; the probabilities too where asked for."""
        aligned = self.cfg.align_corners
        if aligned:
            cells = (raw.logits.shape[2], raw.logits.shape[3])
            sizes = [replace(size, input=grid_size(cells, self.strides[0])) for size in sizes]
        return logits_to_predictions(
            raw.logits, sizes, align_corners=aligned, with_probs=with_probs
        )

    def _add(self, scores: list[Tensor]) -> Tensor:
        """The sum of [B, K, h, w] maps at the size of the first, the finest."""
        total = scores[0]
        size = (total.shape[2], total.shape[3])
        for score, stride in zip(scores[1:], self.strides[1:], strict=True):
            total = total + (
                resize_grid(score, size, step=stride // self.strides[0])
                if self.cfg.align_corners
                else resize(score, size)
            )
        return total
