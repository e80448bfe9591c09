"""BiSeNet: a short wide path keeps the detail, a deep narrow one finds the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.errors import UsageError
from pixelwise.losses.semantic import PixelLoss, check_pixel_loss, stack_targets
from pixelwise.nn.backbones import Backbone, build_backbone
from pixelwise.nn.bilateral import AttentionRefinement, FeatureFusion, FusionGate, SpatialPath
from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.fcn_head import FCNHead
from pixelwise.nn.norm import NORMS, Norm
from pixelwise.nn.pixel_criterion import PixelCriterion
from pixelwise.ops.resize import logits_to_predictions
from pixelwise.settings import check_config
from pixelwise.types import ImageSize, SemanticPrediction, SemanticTarget

_CHOICES: dict[str, tuple[str, ...]] = {"norm": NORMS, "gate": get_args(FusionGate)}


@dataclass(frozen=True, kw_only=True)
class BiSeNetConfig:
    """Settings of BiSeNet; the defaults are the paper's, in the form of the authors' code.

    Args:
        num_classes:    K, background included where the data has one.
        backbone:       of the context path: any name of `build_backbone`.
        in_channels:    of the images.
        backbone_style: set of knobs of our ResNets, see `build_backbone`.
        norm:           "batch", "frozen", "sync" or "group".
        spatial_widths: of the spatial path, see `SpatialPath`: three values for the paper's text,
                        four for the released form.
        context_width:  channels of the context path's refined maps.
        fusion_width:   channels of the fused map.
        gate:           of the fusion: "two_layer", "norm" or "norm_relu", see `FeatureFusion`.
        head_width:     inner channels of the head.
        aux_width:      inner channels of the two auxiliary heads.
        aux_weight:     alpha, the weight of their losses; 0 builds none. Training only.
        dropout:        probability, per channel, before every classifier.
        class_weights:  one weight per class in the loss, or None.
        loss:           of the pixels, see `semantic_loss`.

    Source: BiSeNet (arXiv:1808.00897), sections 3 and 4.1.
    """

    num_classes: int = 19
    backbone: str = "resnet18"
    in_channels: int = 3
    backbone_style: str | None = None
    norm: Norm = "batch"
    spatial_widths: tuple[int, ...] = (64, 64, 128)
    context_width: int = 128
    fusion_width: int = 256
    gate: FusionGate = "two_layer"
    head_width: int = 256
    aux_width: int = 64
    aux_weight: float = 1.0
    dropout: float = 0.0
    class_weights: tuple[float, ...] | None = None
    loss: PixelLoss = "ohem"

    def __post_init__(self) -> None:
        check_config(self, _CHOICES)
        check_pixel_loss(self.loss)
        if len(self.spatial_widths) not in (3, 4):
            raise UsageError(
                f"spatial_widths has {len(self.spatial_widths)} values; give three (the paper) "
                "or four (the released form)"
            )


class BiSeNetRaw(NamedTuple):
    """What the network computes.

    Args:
        logits: [B, K, ceil(H / 8), ceil(W / 8)].
    """

    logits: Tensor


class ContextPath(nn.Module):
    """Maps at strides 16 and 32, refined by attention and added from the deepest up.

    The deepest map starts with the mean of the whole image, the largest context there is.

    Args:
        channels: of the two maps.
        width:    of the result.
        norm:     see `make_norm`.

    Source: BiSeNet (arXiv:1808.00897), section 3.2.
    """

    def __init__(self, channels: Sequence[int], width: int, *, norm: Norm) -> None:
        super().__init__()
        at16, at32 = channels
        self.image_pool = ConvNormAct(at32, width, 1, norm=norm)
        self.attend16 = AttentionRefinement(at16, width, norm=norm)
        self.attend32 = AttentionRefinement(at32, width, norm=norm)
        self.smooth16 = ConvNormAct(width, width, norm=norm)
        self.smooth32 = ConvNormAct(width, width, norm=norm)

    def forward(self, at16: Tensor, at32: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The context at strides 8 and 16.

        Args:
            at16: [B, C4, H/16, W/16].
            at32: [B, C5, H/32, W/32].
            size: (height, width) at stride 8.

        Returns:
            [B, width, *size] and [B, width, H/16, W/16].
        """
        pooled = self.image_pool(at32.mean((2, 3), keepdim=True))  # [B, width, 1, 1]
        # Nearest, not bilinear: the 3x3 convolution after it smooths, and checkpoints expect it.
        middle = (at16.shape[2], at16.shape[3])
        deep = F.interpolate(self.attend32(at32) + pooled, size=middle, mode="nearest")
        deep = self.smooth32(deep)  # [B, width, H/16, W/16]
        shallow = F.interpolate(self.attend16(at16) + deep, size=size, mode="nearest")
        return self.smooth16(shallow), deep


class BiSeNet(nn.Module):
    """BiSeNet V1 (a `System`): spatial path, context path, gated fusion, classifier.

    In training two auxiliary heads look at the context path's maps. The loss is taken on logits
    resized to the labels; the default counts hard pixels only (OHEM), so its value falls more
    slowly than the network improves. Images of any size go in: every map has ceil(size / stride)
    cells.

    Args:
        cfg: the settings.

    Source: BiSeNet, ECCV 2018 (arXiv:1808.00897).
    """

    CLASS_ROWS: ClassVar[dict[str, int]] = {
        "head.classify": 1,
        "auxiliary.0.classify": 1,
        "auxiliary.1.classify": 1,
    }

    def __init__(self, cfg: BiSeNetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.spatial_path = SpatialPath(cfg.in_channels, cfg.spatial_widths, norm=cfg.norm)
        self.backbone: Backbone = build_backbone(
            cfg.backbone,
            in_channels=cfg.in_channels,
            levels=(4, 5),
            norm=cfg.norm,
            style=cfg.backbone_style,
        )
        self.context_path = ContextPath(self.backbone.channels, cfg.context_width, norm=cfg.norm)
        self.fusion = FeatureFusion(
            cfg.spatial_widths[-1] + cfg.context_width,
            cfg.fusion_width,
            gate=cfg.gate,
            norm=cfg.norm,
        )
        self.head = FCNHead(
            cfg.fusion_width,
            cfg.num_classes,
            width=cfg.head_width,
            norm=cfg.norm,
            dropout=cfg.dropout,
        )
        # On the context at strides 8 and 16.
        self.auxiliary = nn.ModuleList(
            FCNHead(
                cfg.context_width,
                cfg.num_classes,
                width=cfg.aux_width,
                norm=cfg.norm,
                dropout=cfg.dropout,
            )
            for _ in range(2 if cfg.aux_weight else 0)
        )
        self.criterion = PixelCriterion(cfg.loss, cfg.class_weights)

    def forward(self, images: Tensor) -> BiSeNetRaw:
        """[B, C, H, W] normalised images of any size → logits at stride 8."""
        logits, _ = self._logits(images)
        return BiSeNetRaw(logits)

    def loss(self, images: Tensor, targets: Sequence[SemanticTarget]) -> dict[str, Tensor]:
        """What is minimised: "pixel", and "auxiliary" where the config has such heads.

        Args:
            images:  [B, C, H, W].
            targets: one per image, labels [H, W].
        """
        labels, own = stack_targets(targets)  # [B, H, W]
        logits, context = self._logits(images)
        losses = {"pixel": self.criterion(logits, labels, own)}
        if self.cfg.aux_weight:
            both = [
                self.criterion(head(x), labels, own)
                for head, x in zip(self.auxiliary, context, strict=True)
            ]
            losses["auxiliary"] = self.cfg.aux_weight * torch.stack(both).sum()
        return losses

    @torch.no_grad()
    def decode(
        self, raw: BiSeNetRaw, sizes: Sequence[ImageSize], *, with_probs: bool = False
    ) -> list[SemanticPrediction]:
        """One label map per image, in original pixels; the probabilities too where asked for."""
        return logits_to_predictions(raw.logits, sizes, align_corners=False, with_probs=with_probs)

    def _logits(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[B, K, H/8, W/8], and the context at strides 8 and 16 for the auxiliary heads."""
        detail = self.spatial_path(images)  # [B, S, H/8, W/8]
        size = (detail.shape[2], detail.shape[3])
        context = self.context_path(*self.backbone(images), size)
        fused = self.fusion(detail, context[0])  # [B, fusion_width, H/8, W/8]
        return self.head(fused), context
