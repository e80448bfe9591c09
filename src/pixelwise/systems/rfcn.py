"""R-FCN: a detector without a layer per region, the base of FCIS; it finds boxes only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pixelwise.nn.backbones import Backbone, build_backbone
from pixelwise.nn.backbones.resnet import RESNETS
from pixelwise.nn.detections import place_in_pictures
from pixelwise.nn.regions import on_regions
from pixelwise.nn.score_maps import PartGrid, ScoreMaps, make_rpn
from pixelwise.ops.rle import fill_boxes
from pixelwise.ops.suppress import classwise_nms
from pixelwise.settings import check_config
from pixelwise.types import ImageSize, InstancePrediction, InstanceTarget

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # one over the standard deviations .1, .1, .2, .2


@dataclass(frozen=True, kw_only=True)
class RFCNConfig:
    """Settings of R-FCN; the defaults are those of Pascal VOC.

    Args:
        num_classes:   K, without background.
        in_channels:   of the images.
        backbone:      one of our ResNets or any convolutional model of timm that can run at output
                       stride 16. Section 2.2.
        backbone_norm: "frozen" for pretrained weights, as published; "batch", "sync", "group".
        backbone_style: of our ResNets; None is "fcis": as in Caffe, all of layer4 dilated.
        parts:         k, parts of a region per side. Section 2.2: 7.
        pooling:       of a part: "pool", the mean of the cells that it touches; torchvision's
                       operators: "align", bilinear samples, "rounded", corners at whole cells.
        width:         channels that the backbone's are reduced to. Section 2.2.
        rpn_width:     of the proposal network's hidden convolution. Released.
        anchor_sizes:  square roots of the anchor areas, pixels; multiples of 16.
        anchor_ratios: height / width of the anchors.
        proposals:     regions per image, while training and at inference. Section 2.3.
        regions_per_image: that a step learns from. Section 2.3.
        with_ohem:     choose the hardest regions (section 2.3) instead of drawing a quarter of
                       objects.
        min_side_px:   proposals with a shorter side are dropped, network-input pixels.
        score_thresh:  a detection scores this at least, 0..1.
        iou_thresh:    of the suppression within each class, 0..1. Section 2.3.
        detections_per_image: most detections per image, all classes together.

    Source:  Dai, Li, He, Sun, "R-FCN: Object Detection via Region-based Fully Convolutional
        Networks" (arXiv:1605.06409).
    """

    num_classes: int = 20
    in_channels: int = 3
    backbone: str = "resnet101"
    backbone_norm: str = "frozen"
    backbone_style: str | None = None
    parts: int = 7
    pooling: Literal["pool", "align", "rounded"] = "pool"
    width: int = 1024
    rpn_width: int = 512
    anchor_sizes: tuple[float, ...] = (128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    proposals: int = 300
    regions_per_image: int = 128
    with_ohem: bool = True
    min_side_px: float = 16.0
    score_thresh: float = 1e-3
    iou_thresh: float = 0.3
    detections_per_image: int = 100

    def __post_init__(self) -> None:
        check_config(self, {"pooling": ("pool", "align", "rounded")})


class Raw(NamedTuple):
    """N regions per image after regression.

    boxes: [B, N, 4] xyxy in network-input pixels, zeros where not valid. probs: [B, N, K] of the
    classes. valid: [B, N] bool.
    """

    boxes: Tensor
    probs: Tensor
    valid: Tensor


class RFCN(nn.Module):
    """Faster R-CNN whose second stage is a pooling: all its layers run on the whole picture.

    Every class has k x k maps, one for each part of an object. A region averages the map of each
    part within that part, and the parts vote. The four numbers of a box have k x k maps each, the
    same for all classes.

    It finds no masks. So that it can be evaluated, drawn and served like every other system, a
    detection's mask is its box filled; its box AP is what counts.

    Args:
        cfg: the variant.

    Source:  Dai, Li, He, Sun, NeurIPS 2016 (arXiv:1605.06409).
    """

    def __init__(self, cfg: RFCNConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone: Backbone = build_backbone(
            cfg.backbone,
            in_channels=cfg.in_channels,
            output_stride=16,
            levels=(4, 5),
            norm=cfg.backbone_norm,
            style=cfg.backbone_style or ("fcis" if cfg.backbone in RESNETS else None),
        )
        shared, deep = self.backbone.channels
        stride = self.backbone.strides[-1]
        self.rpn = make_rpn(
            shared,
            hidden=cfg.rpn_width,
            stride=stride,
            sizes=cfg.anchor_sizes,
            ratios=cfg.anchor_ratios,
            proposals=cfg.proposals,
            min_side_px=cfg.min_side_px,
        )
        self.score_maps = ScoreMaps(
            deep,
            cfg.num_classes,
            PartGrid(parts=cfg.parts, side=cfg.parts, stride=stride, mode=cfg.pooling),
            with_masks=False,
            box_blocks=1,
            width=cfg.width,
            weights=DELTA_WEIGHTS,
            regions_per_image=cfg.regions_per_image,
            with_ohem=cfg.with_ohem,
        )
        self.CLASS_ROWS = {"score_maps.class_maps": cfg.parts**2}

    def forward(self, images: Tensor) -> Raw:
        """Score the proposals and move them.

        Args:
            images: [B, C, H, W] normalised.
        """
        size = (images.shape[-2], images.shape[-1])
        shared, deep = self.backbone(images)
        proposals = self.rpn.decode(self.rpn.predict([shared]), size)
        read = self.score_maps.reader(self.score_maps(deep))

        def run(rois: Tensor) -> tuple[Tensor, Tensor]:
            output = read(rois)
            return output.logits.softmax(dim=1)[:, :-1], output.deltas

        probs, deltas = on_regions(run, proposals.boxes, proposals.valid)
        moved = self.score_maps.refine(proposals.boxes, deltas, size)
        return Raw(moved.masked_fill(~proposals.valid[..., None], 0.0), probs, proposals.valid)

    def loss(self, images: Tensor, targets: Sequence[InstanceTarget]) -> dict[str, Tensor]:
        """The four losses of joint training, all with weight 1.

        Args:
            images:  [B, C, H, W] normalised.
            targets: one per image, in pixels of `images`; their masks are not read.

        Returns:
            "rpn_objectness", "rpn_box", "class" and "box".
        """
        size = (images.shape[-2], images.shape[-1])
        shared, deep = self.backbone(images)
        maps = self.rpn.predict([shared])
        # Proposals carry no gradient: the first stage learns from its own losses.
        proposals = self.rpn.decode(maps, size, contents=[target.size for target in targets])
        regions = self.score_maps.sample(proposals, targets)
        output = self.score_maps.predict(self.score_maps(deep), regions.rois)
        return self.rpn.loss(maps, size, targets) | self.score_maps.loss(
            output, regions, images=len(targets)
        )

    @torch.no_grad()
    def decode(self, raw: Raw, sizes: Sequence[ImageSize]) -> list[InstancePrediction]:
        """Bring the boxes back to the original pictures and suppress within each class.

        Args:
            raw:   of `forward`.
            sizes: one per image.

        Returns:
            one prediction per image; each mask is its box filled.
        """
        predictions: list[InstancePrediction] = []
        for image, (index, boxes) in enumerate(place_in_pictures(raw, sizes)):
            kept, labels, scores = classwise_nms(
                boxes,
                raw.probs[image].float().cpu()[index],
                score_thresh=self.cfg.score_thresh,
                iou_thresh=self.cfg.iou_thresh,
                count=self.cfg.detections_per_image,
            )
            predictions.append(
                InstancePrediction(
                    boxes=boxes[kept],
                    labels=labels,
                    scores=scores,
                    masks=fill_boxes(boxes[kept], sizes[image].original),
                )
            )
        return predictions
