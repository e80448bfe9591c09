"""Mask Scoring R-CNN: Mask R-CNN that also says how good each of its masks is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, get_args

import torch
from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.nn.backbones import Backbone, build_backbone
from pixelwise.nn.box_head import TRUNKS, BoxHead, BoxOutput, ConvTrunk, TrunkKind
from pixelwise.nn.conventions import CONVENTIONS, Origin
from pixelwise.nn.detections import Detections
from pixelwise.nn.fpn import FPN
from pixelwise.nn.mask_head import MaskHead
from pixelwise.nn.mask_iou_head import MaskIoUHead, MaskIoUPool
from pixelwise.nn.norm import NORMS
from pixelwise.nn.regions import RegionPool, on_regions
from pixelwise.nn.rpn import RPN, AnchorGrid
from pixelwise.settings import check_config
from pixelwise.types import ImageSize, InstancePrediction, InstanceTarget

_BOX_SIDE, _MASK_SIDE = 7, 14  # cells of pooled regions; Mask R-CNN, figure 4
_ANCHOR_RATIOS = (0.5, 1.0, 2.0)  # height / width; FPN (arXiv:1612.03144), section 4.1


@dataclass(frozen=True, kw_only=True)
class MaskScoringRCNNConfig:
    """Everything that distinguishes one Mask Scoring R-CNN from another.

    Args:
        num_classes:   K, without background.
        in_channels:   of the images.
        backbone:      one of our ResNets or any convolutional model of timm.
        backbone_norm: "frozen" for pretrained weights, as published; "batch", "sync", "group".
        backbone_style: of our ResNets: "caffe" puts the stride in the 1x1; None is "pytorch", in
                       the 3x3.
        channels:      of the pyramid and the convolutions of the heads; the fully connected layers
                       have four times as many features.
        box_head:      "2fc" or "4conv1fc".
        head_norm:     norm of the neck's, the box head's and the mask head's convolutions, None as
                       published; the mask IoU head has none.
        iou_pool:      what the mask IoU head does with its last map: "flatten" (figure 3), or
                       "mean", a reading of the text with a hundredth of the weights.
        conventions:   whose numbers fill what the paper leaves open, a row of `CONVENTIONS`;
                       weights need those of their origin.
        anchor_sizes:  square roots of the anchor areas, pixels, one per level from stride 4 on,
                       four or five.
        pre_nms:       candidates per level before the suppression (training, inference).
        proposals:     regions per image after it (training, inference).
        regions_per_image: drawn for the heads while training.
        score_thresh:  a detection must score more than this, 0..1.
        iou_thresh:    of the suppression within each class, 0..1.
        detections_per_image: most detections per image, all classes together. Section 3.4.

    Source:  Huang et al., "Mask Scoring R-CNN" (arXiv:1903.00241), the defaults ResNet-50-FPN;
        what it leaves open is Mask R-CNN's (arXiv:1703.06870).
    """

    num_classes: int = 80
    in_channels: int = 3
    backbone: str = "resnet50"
    backbone_norm: str = "frozen"
    backbone_style: str | None = None
    channels: int = 256
    box_head: TrunkKind = "2fc"
    head_norm: str | None = None
    iou_pool: MaskIoUPool = "flatten"
    conventions: Origin = "detectron2"
    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    pre_nms: tuple[int, int] = (2000, 1000)
    proposals: tuple[int, int] = (2000, 1000)
    regions_per_image: int = 512
    score_thresh: float = 0.05
    iou_thresh: float = 0.5
    detections_per_image: int = 100

    def __post_init__(self) -> None:
        check_config(
            self,
            {
                "backbone_norm": NORMS,
                "box_head": tuple(TRUNKS),
                "head_norm": (*NORMS, None),
                "iou_pool": get_args(MaskIoUPool),
                "conventions": get_args(Origin),
            },
        )
        if len(self.anchor_sizes) not in (4, 5):
            raise UsageError(
                f"anchor_sizes has one size per level, 4 or 5, not {len(self.anchor_sizes)}"
            )


class Raw(NamedTuple):
    """D detections per image, best class score first; zeros where not valid.

    boxes: [B, D, 4] xyxy in network-input pixels. scores: [B, D] in [0, 1], of the class.
    labels: [B, D] int64. valid: [B, D] bool. mask_logits: [B, D, M, M], of the detection's class
    inside its box. mask_scores: [B, D], class score times mask IoU; an estimate, so it may lie a
    little outside [0, 1].
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    mask_logits: Tensor
    mask_scores: Tensor


class MaskScoringRCNN(nn.Module):
    """Mask R-CNN with a fourth branch that judges the masks.

    The class score ranks boxes; masks are ranked by it times the IoU that the fourth branch expects
    of the mask with its object. Boxes, classes and masks themselves stay Mask R-CNN's.

    Args:
        cfg: the variant.

    Source:  Huang et al., "Mask Scoring R-CNN", CVPR 2019 (arXiv:1903.00241).
    """

    CLASS_ROWS: ClassVar[dict[str, int]] = {
        "box_head.classify": 1,
        "box_head.regress": 4,
        "mask_head.class_logits": 1,
        "iou_head.iou": 1,
    }

    def __init__(self, cfg: MaskScoringRCNNConfig) -> None:
        super().__init__()
        self.cfg = cfg
        rules = CONVENTIONS[cfg.conventions]
        self.backbone: Backbone = build_backbone(
            cfg.backbone,
            in_channels=cfg.in_channels,
            norm=cfg.backbone_norm,
            style=cfg.backbone_style,
            **rules.backbone_knobs(cfg.backbone, cfg.backbone_norm),
        )
        strides, width = self.backbone.strides, cfg.channels
        self.neck = FPN(self.backbone.channels, width, norm=cfg.head_norm)
        self.rpn = RPN(
            width,
            AnchorGrid.on_pyramid(cfg.anchor_sizes, _ANCHOR_RATIOS, strides, rules),
            rules,
            pre_nms=cfg.pre_nms,
            post_nms=cfg.proposals,
        )
        self.box_pool = RegionPool(side=_BOX_SIDE, strides=strides, conventions=rules)
        self.mask_pool = RegionPool(side=_MASK_SIDE, strides=strides, conventions=rules)
        convs, fcs = TRUNKS[cfg.box_head]
        self.box_head = BoxHead(
            ConvTrunk(
                width,
                _BOX_SIDE,
                convs=convs,
                fcs=fcs,
                channels=width,
                out_features=4 * width,
                norm=cfg.head_norm,
            ),
            cfg.num_classes,
            rules,
            regions_per_image=cfg.regions_per_image,
            score_thresh=cfg.score_thresh,
            iou_thresh=cfg.iou_thresh,
            detections=cfg.detections_per_image,
        )
        self.mask_head = MaskHead(width, cfg.num_classes, rules, channels=width, norm=cfg.head_norm)
        self.iou_head = MaskIoUHead(
            width,
            cfg.num_classes,
            side=_MASK_SIDE,
            channels=width,
            out_features=4 * width,
            pool=cfg.iou_pool,
        )

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Feature maps [B, C, h_l, w_l] of the first stage, finest first."""
        return self.neck(self.backbone(images))

    def forward(self, images: Tensor) -> Raw:
        """Detect, segment and judge.

        Args:
            images: [B, C, H, W] normalised.
        """
        size = (images.shape[-2], images.shape[-1])
        pyramid = self.pyramid(images)
        proposals = self.rpn.decode(self.rpn.predict(pyramid), size)

        def classify(rois: Tensor) -> BoxOutput:
            return self.box_head.predict(self.box_pool(pyramid, rois))

        def segment(rois: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            features = self.mask_pool(pyramid, rois)
            masks = self.mask_head.predict_class(features, labels)
            ious = self.iou_head.predict(features, masks)
            return masks, self.iou_head.of_class(ious, labels)

        boxes = BoxOutput(*on_regions(classify, proposals.boxes, proposals.valid))
        found = self.box_head.decode(boxes, proposals, size)
        masks, ious = on_regions(segment, found.boxes, found.valid, found.labels)
        return Raw(*found, masks, found.scores * ious)

    def loss(self, images: Tensor, targets: Sequence[InstanceTarget]) -> dict[str, Tensor]:
        """The five losses of Mask R-CNN and that of the mask IoU, all with weight 1.

        Args:
            images:  [B, C, H, W] normalised.
            targets: one per image, in pixels of `images`.

        Returns:
            "rpn_objectness", "rpn_box", "class", "box", "mask" and "mask_iou".
        """
        size = (images.shape[-2], images.shape[-1])
        pyramid = self.pyramid(images)
        maps = self.rpn.predict(pyramid)
        # Proposals carry no gradient: the first stage learns from its own losses.
        proposals = self.rpn.decode(maps, size, contents=[target.size for target in targets])
        regions = self.box_head.sample(proposals, targets)
        boxes = self.box_head.predict(self.box_pool(pyramid, regions.rois))
        inside = regions.foreground()  # masks are defined for matched regions only
        features = self.mask_pool(pyramid, inside.rois)
        masks = self.mask_head.predict(features)
        labels = inside.labels.clamp(0, self.cfg.num_classes - 1)  # what is no object has no class
        judged = self.mask_head.of_class(masks, labels)  # [F, M, M], of the objects' classes
        ious = self.iou_head.predict(features, judged)
        return (
            self.rpn.loss(maps, size, targets)
            | self.box_head.loss(boxes, regions)
            | self.mask_head.loss(masks, inside)
            | self.iou_head.loss(ious, judged, inside)
        )

    @torch.no_grad()
    def decode(self, raw: Raw, sizes: Sequence[ImageSize]) -> list[InstancePrediction]:
        """Bring the detections back to the original pictures and paste their masks.

        Detections stay in the order of their class scores; masks are ranked by `mask_scores`.

        Args:
            raw:   of `forward`.
            sizes: one per image.
        """
        found = Detections(*raw[:4])
        return self.mask_head.decode(found, raw.mask_logits, sizes, mask_scores=raw.mask_scores)
