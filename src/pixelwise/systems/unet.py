"""U-Net: a contracting path for context, a mirrored expanding path for place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, get_args

import torch
from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.losses.semantic import PixelLoss, check_pixel_loss, stack_targets
from pixelwise.nn.backbones import Backbone, build_backbone
from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.encoder_decoder import (
    ContractingPath,
    ExpandingPath,
    Padding,
    Upsample,
    cut_end,
    pad_mirrored,
    valid_margin,
    valid_output_size,
)
from pixelwise.nn.fcn_head import FCNHead
from pixelwise.nn.norm import NORMS, Norm
from pixelwise.nn.pixel_criterion import PixelCriterion
from pixelwise.ops.resize import logits_to_predictions
from pixelwise.settings import check_config
from pixelwise.types import ImageSize, SemanticPrediction, SemanticTarget

_CHOICES: dict[str, tuple[Any, ...]] = {
    "padding": get_args(Padding),
    "upsample": get_args(Upsample),
    "norm": (None, *NORMS),
    "head_kernel": (1, 3),
}
_OWN = "unet"  # the name of the paper's contracting path among the backbones
_HEAD_DROPOUT = 0.1  # per channel, of mmseg's head


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Settings of U-Net; the defaults are the paper's.

    Args:
        num_classes:    K, background included where the data has one.
        backbone:       "unet", the paper's contracting path, or any name of `build_backbone`.
        in_channels:    of the images; the paper's have 1.
        backbone_style: set of knobs of our ResNets, see `build_backbone`.
        widths:         channels of each level of the paper's contracting path.
        levels:         maps taken from another backbone, level n with stride 2^n.
        decoder_widths: channels of each block of the expanding path, deepest first, down to stride
                        1; a stride without a map has a block without skip.
        padding:        "valid": convolutions that see no zeros, images mirrored at their borders;
                        "same".
        upsample:       "deconv", "bilinear" or "nearest", see `UpBlock`.
        norm:           None as published; "batch", "frozen", "sync" or "group". Another backbone
                        has batch norm even where the expanding path has none.
        dropout:        probability, on the deepest map.
        head_width:     channels of a 3x3 convolution before the classifier, 0 for none.
        head_kernel:    side of the classifier, 1 or 3.
        aux_weight:     weight of a second loss on the map at stride 2, 0 for none; training only.
        aux_width:      channels inside that head; None for a quarter of the map's.
        class_weights:  one weight per class in the loss, or None.
        loss:           of the pixels, see `semantic_loss`.

    Source: U-Net (arXiv:1505.04597), section 2.
    """

    num_classes: int = 2
    backbone: str = _OWN
    in_channels: int = 3
    backbone_style: str | None = None
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    levels: tuple[int, ...] = (1, 2, 3, 4, 5)
    decoder_widths: tuple[int, ...] = (512, 256, 128, 64)
    padding: Padding = "valid"
    upsample: Upsample = "deconv"
    norm: Norm | None = None
    dropout: float = 0.5
    head_width: int = 0
    head_kernel: int = 1
    aux_weight: float = 0.0
    aux_width: int | None = None
    class_weights: tuple[float, ...] | None = None
    loss: PixelLoss = "cross_entropy"

    def __post_init__(self) -> None:
        check_config(self, _CHOICES)
        check_pixel_loss(self.loss)
        self._check_paths()

    def _check_paths(self) -> None:
        own = self.backbone == _OWN
        if own and len(self.widths) < 2:
            raise UsageError("widths needs two levels at least, such as (64, 128)")
        if not own and not self.levels:
            raise UsageError("levels is empty; name the maps to take, such as (1, 2, 3, 4, 5)")
        steps = len(self.widths) - 1 if own else max(self.levels)
        if len(self.decoder_widths) != steps:
            raise UsageError(
                f"decoder_widths has {len(self.decoder_widths)} values, but it takes {steps} "
                "doublings to come up from the deepest map; give one per doubling"
            )
        if self.aux_weight and steps < 2:
            raise UsageError(
                "aux_weight is of a loss at stride 2, which this network does not have"
            )
        if self.padding == "valid" and (not own or self.aux_weight):
            part = "aux_weight" if own else f"backbone={self.backbone!r}"
            raise UsageError(f"unet with {part} needs padding='same'; 'valid' is the paper's form")


class UNetRaw(NamedTuple):
    """What the network computes.

    Args:
        logits: [B, K, H, W].
    """

    logits: Tensor


class UNet(nn.Module):
    """U-Net (a `System`): contracting path, expanding path with skips, classifier.

    Images of any size go in and logits of that size come out. The form with valid convolutions
    loses `margin_px` on each side (92 with five levels), so it mirrors the image at its borders by
    that much, and at the right and bottom up to the next size that it can halve evenly. The form
    with padded convolutions pads nothing: a level has ceil(size / stride) cells, and an upsampled
    map that is a cell too large is cut.

    Args:
        cfg: the settings.

    Attributes:
        margin_px: an output pixel this far from the border of the image has seen no padding; 0
            where convolutions pad at every level.

    Source: U-Net (arXiv:1505.04597).
    """

    CLASS_ROWS: ClassVar[dict[str, int]] = {"classify": 1, "auxiliary.classify": 1}

    def __init__(self, cfg: UNetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.margin_px = valid_margin(len(cfg.widths)) if cfg.padding == "valid" else 0
        self.backbone: Backbone = _contracting_path(cfg)
        by_stride = dict(zip(self.backbone.strides, self.backbone.channels, strict=True))
        # One block per doubling, up to strides S/2, S/4, ... 1.
        doublings = len(cfg.decoder_widths)
        self.skip_strides = [2**i for i in reversed(range(doublings))]
        self.dropout = nn.Dropout(cfg.dropout)
        self.decoder = ExpandingPath(
            self.backbone.channels[-1],
            [by_stride.get(stride, 0) for stride in self.skip_strides],
            cfg.decoder_widths,
            upsample=cfg.upsample,
            padding=cfg.padding,
            norm=cfg.norm,
        )
        width = cfg.decoder_widths[-1]
        self.refine: nn.Module = nn.Identity()
        if cfg.head_width:
            self.refine = nn.Sequential(
                ConvNormAct(width, cfg.head_width, norm=cfg.norm), nn.Dropout2d(_HEAD_DROPOUT)
            )
            width = cfg.head_width
        self.classify = nn.Conv2d(
            width, cfg.num_classes, cfg.head_kernel, padding=cfg.head_kernel // 2
        )
        self.auxiliary = _auxiliary(cfg)
        self.criterion = PixelCriterion(cfg.loss, cfg.class_weights)

    def forward(self, images: Tensor) -> UNetRaw:
        """[B, C, H, W] normalised images of any size → logits of that size."""
        return UNetRaw(self._logits(self.expand(images), images))

    def loss(self, images: Tensor, targets: Sequence[SemanticTarget]) -> dict[str, Tensor]:
        """What is minimised: "pixel", and "auxiliary" where the config has one.

        The paper's weights between touching objects come with the targets, see
        `ops.border_weights`.

        Args:
            images:  [B, C, H, W].
            targets: one per image, labels [H, W].
        """
        labels, own = stack_targets(targets)  # [B, H, W]
        maps = self.expand(images)
        losses = {"pixel": self.criterion(self._logits(maps, images), labels, own)}
        if self.auxiliary is not None:
            auxiliary = self.criterion(self.auxiliary(maps[-2]), labels, own)
            losses["auxiliary"] = self.cfg.aux_weight * auxiliary
        return losses

    @torch.no_grad()
    def decode(
        self, raw: UNetRaw, sizes: Sequence[ImageSize], *, with_probs: bool = False
    ) -> list[SemanticPrediction]:
        """One label map per image, in original pixels; the probabilities too where asked for."""
        return logits_to_predictions(raw.logits, sizes, align_corners=False, with_probs=with_probs)

    def expand(self, images: Tensor) -> list[Tensor]:
        """Images → the map of every block of the expanding path, deepest first."""
        if self.cfg.padding == "valid":
            images = self._mirror(images)
        maps = self.backbone(images)
        by_stride = dict(zip(self.backbone.strides, maps, strict=True))
        skips = [by_stride.get(stride) for stride in self.skip_strides]
        return self.decoder(self.dropout(maps[-1]), skips)

    def _mirror(self, images: Tensor) -> Tensor:
        """Extend images such that valid convolutions give at least their size."""
        levels, margin = len(self.cfg.widths), self.margin_px
        height, width = images.shape[2], images.shape[3]
        bottom = margin + valid_output_size(height, levels) - height
        right = margin + valid_output_size(width, levels) - width
        return pad_mirrored(images, (margin, right, margin, bottom))

    def _logits(self, maps: list[Tensor], images: Tensor) -> Tensor:
        logits = self.classify(self.refine(maps[-1]))  # [B, K, >= H, >= W]
        return cut_end(logits, (images.shape[2], images.shape[3]))


def _contracting_path(cfg: UNetConfig) -> Any:
    if cfg.backbone == _OWN:
        return ContractingPath(
            cfg.widths, in_channels=cfg.in_channels, padding=cfg.padding, norm=cfg.norm
        )
    return build_backbone(
        cfg.backbone,
        in_channels=cfg.in_channels,
        levels=cfg.levels,
        norm=cfg.norm or "batch",
        style=cfg.backbone_style,
    )


def _auxiliary(cfg: UNetConfig) -> FCNHead | None:
    """A classifier of the map at stride 2."""
    if not cfg.aux_weight:
        return None
    return FCNHead(cfg.decoder_widths[-2], cfg.num_classes, width=cfg.aux_width, norm=cfg.norm)
