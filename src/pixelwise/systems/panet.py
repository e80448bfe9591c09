"""PANet: short paths, regions that look at all levels, and a second view of each mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.nn.adaptive_pooling import AdaptivePool, Fusion, LevelFusion
from pixelwise.nn.backbones import Backbone, build_backbone
from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.box_head import TRUNKS, BoxHead, BoxOutput, ConvTrunk, TrunkKind
from pixelwise.nn.conventions import CONVENTIONS, Conventions, Origin
from pixelwise.nn.detections import Detections
from pixelwise.nn.fpn import FPN
from pixelwise.nn.fully_connected_fusion import FullyConnectedFusion
from pixelwise.nn.mask_head import MaskHead
from pixelwise.nn.norm import NORMS
from pixelwise.nn.path_aggregation import PathAggregation
from pixelwise.nn.regions import RegionPool, on_regions
from pixelwise.nn.rpn import RPN, AnchorGrid
from pixelwise.settings import check_config
from pixelwise.types import ImageSize, InstancePrediction, InstanceTarget

_BOX_SIDE, _MASK_SIDE = 7, 14  # cells of pooled regions; Mask R-CNN, figure 4
_ANCHOR_RATIOS = (0.5, 1.0, 2.0)  # height / width; FPN (arXiv:1612.03144), section 4.1

Path = Literal["relu", "linear", "sum"]


@dataclass(frozen=True, kw_only=True)
class PANetConfig:
    """Everything that distinguishes one PANet from another; the defaults are the released R50.

    Args:
        num_classes:   K, without background.
        in_channels:   of the images.
        backbone:      one of our ResNets or any convolutional model of timm.
        backbone_norm: "frozen" for pretrained weights; "affine" for the released ones, which have
                       their statistics folded in; "batch", "sync", "group".
        backbone_style: of our ResNets: "caffe" puts the stride in the 1x1; None is "pytorch", in
                       the 3x3.
        channels:      of the pyramid and the convolutions of the heads; the fully connected layers
                       have four times as many features.
        path:          how the bottom-up path chains: "relu", over its outputs, with a ReLU after
                       each convolution (section 3.1); "linear", the same without (released networks
                       without group norm); "sum", over the sums before the output convolutions,
                       without ReLUs (OpenMMLab's).
        neck_norm:     of the pyramid's and the path's convolutions, or None.
        fusion:        how a region's views of all levels become one: "max" (section 3.2), "sum"
                       (table 5); None takes one level by the region's size, as FPN does.
        box_head:      "4conv1fc" or "2fc".
        mask_branch:   the fully connected view added to the masks: "relu" as released, "linear" as
                       in section 3.3; None has none.
        head_norm:     of the heads' convolutions, or None; "group" is also that of "2fc".
        conventions:   whose numbers fill what the paper leaves open, a row of `CONVENTIONS`;
                       weights need those of their origin.
        anchor_sizes:  square roots of the anchor areas, pixels, one per level from stride 4 on,
                       four or five.
        pre_nms:       candidates per level before the suppression (training, inference).
        proposals:     regions per image after it (training, inference).
        regions_per_image: drawn for the heads while training. Section 4.1.
        score_thresh:  a detection must score more than this, 0..1.
        iou_thresh:    of the suppression within each class, 0..1.
        detections_per_image: most detections per image, all classes together.

    Source:  Liu et al., "Path Aggregation Network for Instance Segmentation" (arXiv:1803.01534);
        what it leaves open is Mask R-CNN's (arXiv:1703.06870).
    """

    num_classes: int = 80
    in_channels: int = 3
    backbone: str = "resnet50"
    backbone_norm: str = "frozen"
    backbone_style: str | None = None
    channels: int = 256
    path: Path = "relu"
    neck_norm: str | None = "group"
    fusion: Fusion | None = "max"
    box_head: TrunkKind = "4conv1fc"
    mask_branch: Literal["relu", "linear"] | None = "relu"
    head_norm: str | None = "group"
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
                "path": get_args(Path),
                "neck_norm": (*NORMS, None),
                "fusion": (*get_args(Fusion), None),
                "box_head": tuple(TRUNKS),
                "mask_branch": ("relu", "linear", None),
                "head_norm": (*NORMS, None),
                "conventions": get_args(Origin),
            },
        )
        if len(self.anchor_sizes) not in (4, 5):
            raise UsageError(
                f"anchor_sizes has one size per level, 4 or 5, not {len(self.anchor_sizes)}"
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


class PANet(nn.Module):
    """Mask R-CNN in which information travels shorter ways.

    A bottom-up path carries details to the coarse levels, every region is pooled from all levels
    and each head keeps the strongest response, and a fully connected view is added to the masks.

    Args:
        cfg: the variant.

    Source:  Liu et al., "Path Aggregation Network for Instance Segmentation", CVPR 2018
        (arXiv:1803.01534).
    """

    CLASS_ROWS: ClassVar[dict[str, int]] = {
        "box_head.classify": 1,
        "box_head.regress": 4,
        "mask_head.class_logits": 1,
    }

    def __init__(self, cfg: PANetConfig) -> None:
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
        strides = self.backbone.strides
        self.neck = FPN(self.backbone.channels, cfg.channels, norm=cfg.neck_norm)
        self.path = PathAggregation(
            cfg.channels,
            len(strides),
            chain="sum" if cfg.path == "sum" else "output",
            norm=cfg.neck_norm,
            act="relu" if cfg.path == "relu" else None,
        )
        self.rpn = RPN(
            cfg.channels,
            AnchorGrid.on_pyramid(cfg.anchor_sizes, _ANCHOR_RATIOS, strides, rules),
            rules,
            pre_nms=cfg.pre_nms,
            post_nms=cfg.proposals,
        )
        pool = RegionPool if cfg.fusion is None else AdaptivePool
        self.box_pool = pool(side=_BOX_SIDE, strides=strides, conventions=rules)
        self.mask_pool = pool(side=_MASK_SIDE, strides=strides, conventions=rules)
        self.box_head = BoxHead(
            _box_trunk(cfg, len(strides)),
            cfg.num_classes,
            rules,
            regions_per_image=cfg.regions_per_image,
            score_thresh=cfg.score_thresh,
            iou_thresh=cfg.iou_thresh,
            detections=cfg.detections_per_image,
        )
        self.mask_head = _mask_head(cfg, len(strides), rules)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """N levels [B, C, h_l, w_l] of the first stage, finest first."""
        return self.path(self.neck(self.backbone(images)))

    def forward(self, images: Tensor) -> Raw:
        """Detect and segment.

        Args:
            images: [B, C, H, W] normalised.
        """
        size = (images.shape[-2], images.shape[-1])
        pyramid = self.pyramid(images)
        proposals = self.rpn.decode(self.rpn.predict(pyramid), size)

        def classify(rois: Tensor) -> BoxOutput:
            return self.box_head.predict(self.box_pool(pyramid, rois))

        def segment(rois: Tensor, labels: Tensor) -> tuple[Tensor]:
            return (self.mask_head.predict_class(self.mask_pool(pyramid, rois), labels),)

        boxes = BoxOutput(*on_regions(classify, proposals.boxes, proposals.valid))
        found = self.box_head.decode(boxes, proposals, size)
        return Raw(*found, *on_regions(segment, found.boxes, found.valid, found.labels))

    def loss(self, images: Tensor, targets: Sequence[InstanceTarget]) -> dict[str, Tensor]:
        """The five losses of joint training, those of Mask R-CNN, all with weight 1.

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
        boxes = self.box_head.predict(self.box_pool(pyramid, regions.rois))
        inside = regions.foreground()  # masks are defined for matched regions only
        masks = self.mask_head.predict(self.mask_pool(pyramid, inside.rois))
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


def _box_trunk(cfg: PANetConfig, levels: int) -> ConvTrunk:
    """The first layer once per level, then fusion, then the rest; or the plain trunk."""
    width, features = cfg.channels, 4 * cfg.channels
    convs, fcs = TRUNKS[cfg.box_head]
    knobs: dict[str, Any] = {"channels": width, "out_features": features, "norm": cfg.head_norm}
    # Only group norm works on the single vector behind a fully connected layer.
    knobs["fc_norm"] = "group" if cfg.head_norm == "group" and not convs else None
    if cfg.fusion is None:
        return ConvTrunk(width, _BOX_SIDE, convs=convs, fcs=fcs, **knobs)
    if convs:
        first = [ConvNormAct(width, width, 3, norm=cfg.head_norm) for _ in range(levels)]
        fuse = LevelFusion(first, cfg.fusion)
        return ConvTrunk(width, _BOX_SIDE, convs=convs - 1, fcs=fcs, fuse=fuse, **knobs)
    first = [ConvTrunk(width, _BOX_SIDE, convs=0, fcs=1, **knobs) for _ in range(levels)]
    fuse = LevelFusion(first, cfg.fusion)
    return ConvTrunk(features, 1, convs=0, fcs=fcs - 1, fuse=fuse, **knobs)


def _mask_head(cfg: PANetConfig, levels: int, rules: Conventions) -> MaskHead:
    """Four convolutions, the first once per level where levels are fused."""
    width = cfg.channels
    fuse = branch = None
    if cfg.fusion is not None:
        first = [ConvNormAct(width, width, 3, norm=cfg.head_norm) for _ in range(levels)]
        fuse = LevelFusion(first, cfg.fusion)
    if cfg.mask_branch is not None:
        act = "relu" if cfg.mask_branch == "relu" else None
        branch = FullyConnectedFusion(width, _MASK_SIDE, norm=cfg.head_norm, act=act)
    return MaskHead(
        width,
        cfg.num_classes,
        rules,
        convs=4 if fuse is None else 3,
        channels=width,
        norm=cfg.head_norm,
        fuse=fuse,
        branch=branch,
    )
