"""Mask R-CNN: detect, then segment inside each box."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.nn.backbones import Backbone, build_backbone
from pixelwise.nn.backbones.resnet import RESNETS, STYLES, make_stage
from pixelwise.nn.box_head import TRUNKS, BoxHead, BoxOutput, ConvTrunk, MeanTrunk, TrunkKind
from pixelwise.nn.conventions import CONVENTIONS, Origin
from pixelwise.nn.detections import Detections
from pixelwise.nn.fpn import FPN
from pixelwise.nn.mask_head import MaskHead
from pixelwise.nn.norm import NORMS
from pixelwise.nn.regions import RegionPool, on_regions
from pixelwise.nn.rpn import RPN, AnchorGrid
from pixelwise.settings import check_config
from pixelwise.types import ImageSize, InstancePrediction, InstanceTarget

_BOX_SIDE, _MASK_SIDE = 7, 14  # cells of pooled regions; figure 4


@dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig:
    """Everything that distinguishes one Mask R-CNN from another.

    Args:
        num_classes:   K, without background.
        in_channels:   of the images.
        backbone:      one of our ResNets or any convolutional model of timm.
        backbone_norm: "frozen" for pretrained weights, as published; "batch", "sync", "group".
        backbone_style: of our ResNets: "caffe" puts the stride in the 1x1; None is "pytorch", in
                       the 3x3.
        neck:          "fpn"; "c4": heads behind layer3, layer4 runs on every region; "dc5": one
                       level, layer4 dilated to stride 16.
        channels:      of the pyramid and the convolutions of the heads; the fully connected layers
                       have four times as many features. Source: FPN, section 4.
        box_head:      "2fc" (FPN, section 4.2) or "4conv1fc" (Group Normalization, section 4.2);
                       "c4" has layer4 in its place.
        head_norm:     norm of the neck's and the heads' convolutions, None as published.
        rpn_convs:     hidden convolutions of the proposal network.
        class_agnostic_masks: one mask per region instead of one per class (section 4.2).
        conventions:   whose numbers fill what the papers leave open, a row of `CONVENTIONS`;
                       weights need those of their origin.
        anchor_sizes:  square roots of the anchor areas, pixels. "fpn": one per level from stride 4
                       on, four or five; else all on the one level.
        anchor_ratios: height / width of the anchors.
        pre_nms:       candidates per level before the suppression (training, inference).
        proposals:     regions per image after it (training, inference). Section 3.1.
        regions_per_image: drawn for the heads while training. 512 with FPN, section 3.1.
        score_thresh:  a detection must score more than this, 0..1.
        iou_thresh:    of the suppression within each class, 0..1.
        detections_per_image: most detections per image, all classes together. Section 3.1.

    Source:  He et al., "Mask R-CNN" (arXiv:1703.06870), the defaults ResNet-50-FPN.
    """

    num_classes: int = 80
    in_channels: int = 3
    backbone: str = "resnet50"
    backbone_norm: str = "frozen"
    backbone_style: str | None = None
    neck: Literal["fpn", "c4", "dc5"] = "fpn"
    channels: int = 256
    box_head: TrunkKind = "2fc"
    head_norm: str | None = None
    rpn_convs: int = 1
    class_agnostic_masks: bool = False
    conventions: Origin = "detectron2"
    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    pre_nms: tuple[int, int] = (2000, 1000)
    proposals: tuple[int, int] = (1000, 1000)
    regions_per_image: int = 512
    score_thresh: float = 0.05
    iou_thresh: float = 0.5
    detections_per_image: int = 100

    def __post_init__(self) -> None:
        check_config(
            self,
            {
                "backbone_norm": NORMS,
                "neck": ("fpn", "c4", "dc5"),
                "box_head": tuple(TRUNKS),
                "head_norm": (*NORMS, None),
                "conventions": get_args(Origin),
            },
        )
        if self.neck == "fpn" and len(self.anchor_sizes) not in (4, 5):
            raise UsageError(
                f"mask_rcnn with neck='fpn' needs one of anchor_sizes per level: 4 or 5, "
                f"not {len(self.anchor_sizes)}"
            )
        if self.neck == "c4" and self.backbone not in RESNETS:
            raise UsageError(
                f"mask_rcnn with neck='c4' runs a ResNet's last stage on regions, which "
                f"{self.backbone!r} has not; choose one of {', '.join(RESNETS)} or neck='fpn'"
            )


class Raw(NamedTuple):
    """D detections per image, best first, in network-input pixels; zeros where not valid.

    boxes: [B, D, 4] xyxy. scores: [B, D] in [0, 1]. labels: [B, D] int64. valid: [B, D] bool.
    mask_logits: [B, D, M, M], of the detection's class inside its box.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    mask_logits: Tensor


class MaskRCNN(nn.Module):
    """Faster R-CNN with a third branch that predicts a mask inside each region.

    Three decisions carry it: regions are sampled without rounding (RoIAlign), every class has its
    own sigmoid mask, and the box branch alone says which class it is.

    Args:
        cfg: the variant.

    Source:  He et al., "Mask R-CNN", ICCV 2017 (arXiv:1703.06870).
    """

    CLASS_ROWS: ClassVar[dict[str, int]] = {
        "box_head.classify": 1,
        "box_head.regress": 4,
        "mask_head.class_logits": 1,
    }

    def __init__(self, cfg: MaskRCNNConfig) -> None:
        super().__init__()
        self.cfg = cfg
        rules = CONVENTIONS[cfg.conventions]
        self.backbone = _backbone(cfg)
        strides, widths = self.backbone.strides, self.backbone.channels
        with_pyramid = cfg.neck == "fpn"
        self.neck = FPN(widths, cfg.channels, norm=cfg.head_norm) if with_pyramid else nn.Identity()
        width = cfg.channels if with_pyramid else widths[-1]
        self.rpn = _rpn(cfg, width, strides)
        # "c4" pools as finely for boxes as for masks: layer4 halves both.
        box_side = _MASK_SIDE if cfg.neck == "c4" else _BOX_SIDE
        self.box_pool = RegionPool(side=box_side, strides=strides, conventions=rules)
        self.mask_pool = RegionPool(side=_MASK_SIDE, strides=strides, conventions=rules)
        self.region_stage, width = _region_stage(cfg, width)
        self.box_head = BoxHead(
            _trunk(cfg, width),
            cfg.num_classes,
            rules,
            regions_per_image=cfg.regions_per_image,
            score_thresh=cfg.score_thresh,
            iou_thresh=cfg.iou_thresh,
            detections=cfg.detections_per_image,
        )
        self.mask_head = MaskHead(
            width,
            cfg.num_classes,
            rules,
            convs=0 if cfg.neck == "c4" else 4,
            channels=cfg.channels,
            norm=cfg.head_norm,
            class_agnostic=cfg.class_agnostic_masks,
        )

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Feature maps [B, C, h_l, w_l] of the first stage, finest first."""
        return self.neck(self.backbone(images))

    def box_features(self, pyramid: Sequence[Tensor], rois: Tensor) -> Tensor:
        """What the box head sees of regions [R, 5]: [R, C, 7, 7]."""
        return self.region_stage(self.box_pool(pyramid, rois))

    def mask_features(self, pyramid: Sequence[Tensor], rois: Tensor) -> Tensor:
        """What the mask head sees of regions [R, 5]: [R, C, 14, 14], or 7x7 for "c4"."""
        return self.region_stage(self.mask_pool(pyramid, rois))

    def forward(self, images: Tensor) -> Raw:
        """Detect and segment.

        Args:
            images: [B, C, H, W] normalised.
        """
        size = (images.shape[-2], images.shape[-1])
        pyramid = self.pyramid(images)
        proposals = self.rpn.decode(self.rpn.predict(pyramid), size)

        def classify(rois: Tensor) -> BoxOutput:
            return self.box_head.predict(self.box_features(pyramid, rois))

        def segment(rois: Tensor, labels: Tensor) -> tuple[Tensor]:
            return (self.mask_head.predict_class(self.mask_features(pyramid, rois), labels),)

        boxes = BoxOutput(*on_regions(classify, proposals.boxes, proposals.valid))
        found = self.box_head.decode(boxes, proposals, size)
        return Raw(*found, *on_regions(segment, found.boxes, found.valid, found.labels))

    def loss(self, images: Tensor, targets: Sequence[InstanceTarget]) -> dict[str, Tensor]:
        """The five losses of joint training, all with weight 1.

        Args:
            images:  [B, C, H, W] normalised.
            targets: one per image, in pixels of `images`.

        Returns:
            "rpn_objectness", "rpn_box", "class", "box" and "mask".
        """
        size = (images.shape[-2], images.shape[-1])
        pyramid = self.pyramid(images)
        maps = self.rpn.predict(pyramid)
        # Proposals carry no gradient: the first stage learns from its own losses.
        proposals = self.rpn.decode(maps, size, contents=[target.size for target in targets])
        regions = self.box_head.sample(proposals, targets)
        boxes = self.box_head.predict(self.box_features(pyramid, regions.rois))
        inside = regions.foreground()  # masks are defined for matched regions only
        masks = self.mask_head.predict(self.mask_features(pyramid, inside.rois))
        return (
            self.rpn.loss(maps, size, targets)
            | self.box_head.loss(boxes, regions)
            | self.mask_head.loss(masks, inside)
        )

    @torch.no_grad()
    def decode(self, raw: Raw, sizes: Sequence[ImageSize]) -> list[InstancePrediction]:
        """Bring the detections back to the original pictures and paste their masks.

        Args:
            raw:   of `forward`.
            sizes: one per image.
        """
        return self.mask_head.decode(Detections(*raw[:4]), raw.mask_logits, sizes)


def _backbone(cfg: MaskRCNNConfig) -> Backbone:
    levels = {"fpn": (2, 3, 4, 5), "c4": (4,), "dc5": (5,)}[cfg.neck]
    rules = CONVENTIONS[cfg.conventions]
    knobs = rules.backbone_knobs(cfg.backbone, cfg.backbone_norm)
    if cfg.neck == "dc5" and cfg.backbone in RESNETS:
        knobs["contract_dilation"] = False  # every 3x3 of layer4 is dilated (detectron2, mmdet)
    return build_backbone(
        cfg.backbone,
        in_channels=cfg.in_channels,
        output_stride=16 if cfg.neck == "dc5" else 32,
        levels=levels,
        norm=cfg.backbone_norm,
        style=cfg.backbone_style,
        **knobs,
    )


def _rpn(cfg: MaskRCNNConfig, channels: int, strides: tuple[int, ...]) -> RPN:
    """The proposal network on levels with these strides; FPN adds one if the sizes ask for it."""
    rules = CONVENTIONS[cfg.conventions]
    if cfg.neck == "fpn":
        anchors = AnchorGrid.on_pyramid(cfg.anchor_sizes, cfg.anchor_ratios, strides, rules)
    else:
        anchors = AnchorGrid.on_one_level(cfg.anchor_sizes, cfg.anchor_ratios, strides[0], rules)
    return RPN(
        channels,
        anchors,
        rules,
        convs=cfg.rpn_convs,
        pre_nms=cfg.pre_nms,
        post_nms=cfg.proposals,
    )


def _region_stage(cfg: MaskRCNNConfig, channels: int) -> tuple[nn.Module, int]:
    """What runs on pooled features before the heads, and the channels that it gives."""
    if cfg.neck != "c4":
        return nn.Identity(), channels
    style = STYLES[cfg.backbone_style or "pytorch"]
    knobs: dict[str, Any] = {
        key: style[key] for key in ("stride_in_1x1", "avg_down") if key in style
    }
    knobs |= CONVENTIONS[cfg.conventions].backbone_knobs(cfg.backbone, cfg.backbone_norm)
    stage = make_stage(cfg.backbone, 4, norm=cfg.backbone_norm, **knobs)
    return nn.Sequential(OrderedDict(layer4=stage)), 2 * channels


def _trunk(cfg: MaskRCNNConfig, channels: int) -> ConvTrunk | MeanTrunk:
    if cfg.neck == "c4":
        return MeanTrunk(channels)
    convs, fcs = TRUNKS[cfg.box_head]
    return ConvTrunk(
        channels,
        _BOX_SIDE,
        convs=convs,
        fcs=fcs,
        channels=cfg.channels,
        out_features=4 * cfg.channels,
        norm=cfg.head_norm,
    )
