"""FCN: a classifier made convolutional scores every place of an image; skips sharpen the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.losses.semantic import PixelLoss, check_pixel_loss, stack_targets
from pixelwise.nn.backbones import Backbone, build_backbone
from pixelwise.nn.backbones.vgg import VGGS
from pixelwise.nn.fcn_head import FCNHead
from pixelwise.nn.fully_convolutional import FullyConvolutional
from pixelwise.nn.norm import NORMS, Norm
from pixelwise.nn.pixel_criterion import PixelCriterion
from pixelwise.nn.skip_fusion import Crops, SkipFusion, border_crops
from pixelwise.ops.alignment import Window
from pixelwise.ops.resize import logits_to_predictions
from pixelwise.settings import check_config
from pixelwise.types import ImageSize, SemanticPrediction, SemanticTarget

Head = Literal["skips", "convs", "concat"]
_LEVELS = {32: (5,), 16: (4, 5), 8: (3, 4, 5)}  # stride of the scores -> maps that skips need


@dataclass(frozen=True, kw_only=True)
class FCNConfig:
    """Settings of FCN; the defaults are FCN-8s on VGG16, trained stage by stage, aligned.

    Args:
        num_classes:    K, background included where the data has one.
        backbone:       any name of `build_backbone`.
        in_channels:    of the images.
        output_stride:  input pixels per cell of the finest scores: 32, 16 or 8. Skips reach it by
                        fusion (FCN-32s, 16s, 8s), the other heads by dilation.
        backbone_style: set of knobs of our own backbones, see `build_backbone`.
        norm:           of backbone and heads: "batch", "frozen", "sync" or "group"; VGGs and the
                        skips have none.
        head:           "skips": the paper's; "convs": 3x3 convolutions on the last map
                        (torchvision); "concat": the last of them sees that map again (mmseg).
        with_border:    100 pixels of zeros around the image instead of zeros around every map, and
                        cuts that undo them: the released networks. VGG and AlexNet.
        fc_width:       channels of fc6 and fc7 before the skips: 4096; 0 for none.
        fc_kernel:      side of fc6's kernel, in cells: 7 for VGG, 6 for AlexNet.
        dropout:        probability after fc6 and fc7, or before the classifier of the other heads.
        skip_scales:    constant factors on the maps of stride 16 and 8 before their scores:
                        (0.01, 0.0001) trains all depths at once.
        learn_upsampling: the doublings learn; the last upsampling never does.
        head_width:     channels of the other heads' convolutions.
        head_depth:     their number.
        head_dilation:  their dilation, in cells; 6 in mmseg's "d6" networks.
        aux_weight:     of a second loss on stage 4's map, 0 for none; not with skips. 0.5 in
                        torchvision, 0.4 in mmseg.
        aux_width:      channels within the auxiliary head; None for a quarter of its map's.
        class_weights:  one weight per class in the loss, or None.
        loss:           of the pixels, see `semantic_loss`.

    Source: FCN (arXiv:1411.4038), sections 3 and 4, and the authors' release.
    """

    num_classes: int = 21
    backbone: str = "vgg16"
    in_channels: int = 3
    output_stride: int = 8
    backbone_style: str | None = None
    norm: Norm = "batch"
    head: Head = "skips"
    with_border: bool = False
    fc_width: int = 4096
    fc_kernel: int = 7
    dropout: float = 0.5
    skip_scales: tuple[float, ...] = (1.0, 1.0)
    learn_upsampling: bool = True
    head_width: int = 512
    head_depth: int = 1
    head_dilation: int = 1
    aux_weight: float = 0.0
    aux_width: int | None = None
    class_weights: tuple[float, ...] | None = None
    loss: PixelLoss = "cross_entropy"

    def __post_init__(self) -> None:
        check_config(
            self,
            {"norm": NORMS, "head": get_args(Head), "output_stride": tuple(_LEVELS)},
        )
        check_pixel_loss(self.loss)
        skips = len(_LEVELS[self.output_stride]) - 1
        if len(self.skip_scales) < skips:
            raise UsageError(
                f"skip_scales has {len(self.skip_scales)} values for {skips} skips; "
                "give one per skip, deepest first"
            )
        if self.head == "skips" and self.aux_weight:
            raise UsageError("aux_weight is for head='convs' and 'concat'; set it to 0 with skips")
        if self.with_border:
            self._check_border()

    def _check_border(self) -> None:
        if self.head != "skips":
            raise UsageError("with_border is for head='skips'; leave one of them out")
        if self.backbone not in VGGS and self.backbone != "alexnet":
            raise UsageError(
                f"with_border needs a VGG or alexnet, whose geometry it undoes; {self.backbone!r} "
                "takes any size without it"
            )
        if self.backbone_style not in (None, "fcn"):
            raise UsageError("with_border is backbone_style='fcn'; leave the style out")


class FCNRaw(NamedTuple):
    """What the network computes.

    Args:
        logits: [B, K, ceil(H / stride), ceil(W / stride)], or [B, K, H, W] with the border.
    """

    logits: Tensor


class FCN(nn.Module):
    """FCN (a `System`): a convolutional classifier and its skips, or a head on a dilated network.

    The loss is the mean over valid pixels. The release minimised their sum, with a learning rate
    smaller by the number of pixels.

    Args:
        cfg: the settings.

    Raises:
        UsageError: a border around maps that lie between each other's cells (AlexNet with skips).

    Source: *Fully Convolutional Networks for Semantic Segmentation*, CVPR 2015 (arXiv:1411.4038).
    """

    def __init__(self, cfg: FCNConfig) -> None:
        super().__init__()
        self.cfg = cfg
        skips = cfg.head == "skips"
        levels = _LEVELS[cfg.output_stride] if skips else (4, 5) if cfg.aux_weight else (5,)
        self.backbone: Backbone = build_backbone(
            cfg.backbone,
            in_channels=cfg.in_channels,
            output_stride=32 if skips else cfg.output_stride,
            levels=levels,
            norm=cfg.norm,
            style="fcn" if cfg.with_border else cfg.backbone_style,
        )
        channels = self.backbone.channels
        self.classifier, self.fusion, self.head, self.auxiliary = None, None, None, None
        if skips:
            deepest = channels[-1]
            if cfg.fc_width:
                self.classifier = FullyConvolutional(
                    deepest,
                    cfg.fc_width,
                    kernel=cfg.fc_kernel,
                    with_padding=not cfg.with_border,
                    dropout=cfg.dropout,
                )
                deepest = cfg.fc_width
            self.fusion = SkipFusion(
                cfg.num_classes,
                (deepest, *channels[-2::-1]),
                scales=(1.0, *cfg.skip_scales[: len(channels) - 1]),
                learn=cfg.learn_upsampling,
                crops=_crops(cfg, self.backbone) if cfg.with_border else None,
            )
        else:
            self.head = FCNHead(
                channels[-1],
                cfg.num_classes,
                width=cfg.head_width,
                depth=cfg.head_depth,
                with_concat=cfg.head == "concat",
                dilation=cfg.head_dilation,
                norm=cfg.norm,
                dropout=cfg.dropout,
            )
        if cfg.aux_weight:
            self.auxiliary = FCNHead(
                channels[0],
                cfg.num_classes,
                width=cfg.aux_width,
                dilation=cfg.head_dilation,
                norm=cfg.norm,
                dropout=cfg.dropout,
            )
        self.criterion = PixelCriterion(cfg.loss, cfg.class_weights)

    @property
    def CLASS_ROWS(self) -> dict[str, int]:  # noqa: N802 (a constant of most systems)
        """Parameters whose rows belong to classes."""
        if self.fusion is None:
            return {"head.classify": 1, "auxiliary.classify": 1}
        return {"fusion": 1}

    @property
    def CLASS_COLUMNS(self) -> dict[str, int]:  # noqa: N802
        """Parameters whose columns do: the upsampling reads score maps."""
        return {"fusion.doublings": 1, "fusion.last": 1}

    def forward(self, images: Tensor) -> FCNRaw:
        """[B, C, H, W] normalised images of any size → logits, see `FCNRaw`."""
        return FCNRaw(self._logits(self.backbone(images), images))

    def loss(self, images: Tensor, targets: Sequence[SemanticTarget]) -> dict[str, Tensor]:
        """What is minimised: "pixel", and "auxiliary" where the config has one.

        Args:
            images:  [B, C, H, W].
            targets: one per image, labels [H, W].
        """
        labels, own = stack_targets(targets)  # [B, H, W]
        maps = self.backbone(images)
        losses = {"pixel": self.criterion(self._logits(maps, images), labels, own)}
        if self.auxiliary is not None:
            auxiliary = self.criterion(self.auxiliary(maps[0]), labels, own)
            losses["auxiliary"] = self.cfg.aux_weight * auxiliary
        return losses

    @torch.no_grad()
    def decode(
        self, raw: FCNRaw, sizes: Sequence[ImageSize], *, with_probs: bool = False
    ) -> list[SemanticPrediction]:
        """One label map per image, in original pixels; the probabilities too where asked for."""
        return logits_to_predictions(raw.logits, sizes, align_corners=False, with_probs=with_probs)

    def _logits(self, maps: list[Tensor], images: Tensor) -> Tensor:
        *shallow, deep = maps
        if self.head is not None:
            return self.head(deep)  # [B, K, h, w]
        assert self.fusion is not None
        if self.classifier is not None:
            deep = self.classifier(deep)  # [B, 4096, H/32, W/32]
        return self.fusion([deep, *shallow[::-1]], (images.shape[2], images.shape[3]))


def _crops(cfg: FCNConfig, backbone: Backbone) -> Crops:
    """The cuts of a network with a border, from the layers that lead to each of its maps."""
    windows = getattr(backbone, "windows")  # noqa: B009 (our VGG and AlexNet have it)
    deepest = [*windows(5), *([Window(cfg.fc_kernel)] if cfg.fc_width else [])]
    skips = [windows(level) for level in _LEVELS[cfg.output_stride][-2::-1]]
    try:
        return border_crops([deepest, *skips], cfg.output_stride)
    except ValueError as error:
        raise UsageError(
            f"{cfg.backbone} at output_stride {cfg.output_stride} has no form with a border: "
            f"{error}; set with_border=False or output_stride=32"
        ) from error
