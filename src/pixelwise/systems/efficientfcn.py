"""EfficientFCN: deep maps write a codebook of the image, shallow ones spell each pixel with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.losses.semantic import PixelLoss, check_pixel_loss, stack_targets
from pixelwise.nn.backbones import Backbone, build_backbone
from pixelwise.nn.backbones.resnet import RESNETS
from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.holistic import CodewordAssembly, HolisticCodebook, MultiScaleFusion
from pixelwise.nn.norm import NORMS, Norm
from pixelwise.nn.pixel_criterion import PixelCriterion
from pixelwise.ops.resize import logits_to_predictions
from pixelwise.settings import check_config
from pixelwise.types import ImageSize, SemanticPrediction, SemanticTarget

_LEVELS = (3, 4, 5)
_RESNET_STYLE = "efficientfcn"  # deep stem and averaging shortcuts


@dataclass(frozen=True, kw_only=True)
class EfficientFCNConfig:
    """Settings of EfficientFCN; the defaults are those for PASCAL-Context.

    Args:
        num_classes:    K, background included where the data has one.
        backbone:       any name of `build_backbone`; needs maps at strides 8, 16 and 32, none of
                        them dilated.
        in_channels:    of the images.
        backbone_style: set of knobs of our ResNets; None takes the released one, a stem of three
                        3x3 convolutions and shortcuts that average before they skip.
        norm:           "batch", "frozen", "sync" or "group".
        compress_width: channels to which the maps at strides 16 and 32 are reduced.
        codewords:      n; 256, and 600 for ADE20K.
        codeword_width: D, channels of a codeword, of the guide and of the last map.
        dropout:        probability, per channel, before the classifier.
        class_weights:  one weight per class in the loss, or None.
        loss:           of the pixels, see `semantic_loss`.

    Source: EfficientFCN (arXiv:2008.10487), sections 3 and 4, and its release.
    """

    num_classes: int = 59
    backbone: str = "resnet101"
    in_channels: int = 3
    backbone_style: str | None = None
    norm: Norm = "batch"
    compress_width: int = 512
    codewords: int = 256
    codeword_width: int = 1024
    dropout: float = 0.1
    class_weights: tuple[float, ...] | None = None
    loss: PixelLoss = "cross_entropy"

    def __post_init__(self) -> None:
        check_config(self, {"norm": NORMS})
        check_pixel_loss(self.loss)
        for key in ("compress_width", "codewords", "codeword_width"):
            if getattr(self, key) < 1:
                raise UsageError(f"{key} is at least 1, not {getattr(self, key)}")


class EfficientFCNRaw(NamedTuple):
    """What the network computes.

    Args:
        logits: [B, K, ceil(H / 8), ceil(W / 8)].
    """

    logits: Tensor


class EfficientFCN(nn.Module):
    """EfficientFCN (a `System`): fusion at two scales, codebook, assembly, classifier.

    Maps are resized with aligned corners inside the decoder; the logits, as in the released code,
    without. The loss is taken on logits resized to the labels.

    Args:
        cfg: the settings.

    Source: EfficientFCN: Holistically-guided Decoding for Semantic Segmentation, ECCV 2020
        (arXiv:2008.10487).
    """

    CLASS_ROWS: ClassVar[dict[str, int]] = {"classify": 1}

    def __init__(self, cfg: EfficientFCNConfig) -> None:
        super().__init__()
        self.cfg = cfg
        style = cfg.backbone_style or (_RESNET_STYLE if cfg.backbone in RESNETS else None)
        self.backbone: Backbone = build_backbone(
            cfg.backbone, in_channels=cfg.in_channels, levels=_LEVELS, norm=cfg.norm, style=style
        )
        width, norm = cfg.codeword_width, cfg.norm
        self.fusion = MultiScaleFusion(self.backbone.channels, cfg.compress_width, norm=norm)
        fused = self.fusion.out_channels
        self.codebook = HolisticCodebook(fused, width, cfg.codewords, norm=norm)
        self.assembly = CodewordAssembly(fused, width, cfg.codewords, norm=norm)
        self.join = ConvNormAct(2 * width, width, 1, norm=norm)
        self.dropout = nn.Dropout2d(cfg.dropout)
        self.classify = nn.Conv2d(width, cfg.num_classes, 1)
        self.criterion = PixelCriterion(cfg.loss, cfg.class_weights)

    def forward(self, images: Tensor) -> EfficientFCNRaw:
        """[B, C, H, W] normalised images of any size → logits at stride 8."""
        fine, coarse = self.fusion(*self.backbone(images))
        assembled = self.assembly(fine, self.codebook(coarse))  # [B, 2 * D, H/8, W/8]
        return EfficientFCNRaw(self.classify(self.dropout(self.join(assembled))))

    def loss(self, images: Tensor, targets: Sequence[SemanticTarget]) -> dict[str, Tensor]:
        """What is minimised: "pixel".

        Args:
            images:  [B, C, H, W].
            targets: one per image, labels [H, W].
        """
        labels, own = stack_targets(targets)  # [B, H, W]
        return {"pixel": self.criterion(self(images).logits, labels, own)}

    @torch.no_grad()
    def decode(
        self, raw: EfficientFCNRaw, sizes: Sequence[ImageSize], *, with_probs: bool = False
    ) -> list[SemanticPrediction]:
        """One label map per image, in original pixels; the probabilities too where asked for."""
        return logits_to_predictions(raw.logits, sizes, align_corners=False, with_probs=with_probs)
