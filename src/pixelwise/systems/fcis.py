"""FCIS: one set of position-sensitive maps that detects, classifies and segments at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.nn.backbones import Backbone, build_backbone
from pixelwise.nn.backbones.resnet import RESNETS
from pixelwise.nn.detections import place_in_pictures
from pixelwise.nn.regions import Proposals, on_regions
from pixelwise.nn.score_maps import MASK_THRESH, PartGrid, RegionOutput, ScoreMaps, make_rpn
from pixelwise.ops.mask_voting import vote_masks, vote_weights
from pixelwise.ops.position_sensitive import mask_logits
from pixelwise.ops.rle import tight_boxes
from pixelwise.ops.suppress import classwise_nms
from pixelwise.settings import check_config
from pixelwise.types import ImageSize, InstancePrediction, InstanceTarget

DELTA_WEIGHTS = (5.0, 5.0, 2.0, 2.0)  # one over the standard deviations .2, .2, .5, .5
VOTER_IOU = 0.5  # a region votes on the masks of detections that it overlaps this much


@dataclass(frozen=True, kw_only=True)
class FCISConfig:
    """Settings of FCIS; the defaults are those of Pascal VOC.

    Args:
        num_classes:   K, without background.
        in_channels:   of the images.
        backbone:      one of our ResNets or any convolutional model of timm that can run at output
                       stride 16. Section 3.3.
        backbone_norm: "frozen" for pretrained weights, as published; "batch", "sync", "group".
        backbone_style: of our ResNets; None is "fcis": as in Caffe, all of layer4 dilated.
        parts:         k, parts of a region per side. Section 3.1: 7.
        mask_side:     cells of a region's mask per side. Released code: 21, three per part.
        assembling:    "copy" the value under each cell (section 3.1), or "pool", the mean over what
                       each cell covers, as the released operator does; its weights need that.
        box_blocks:    1; 2 where a checkpoint has maps for the background's box too, as released.
        width:         channels that the backbone's are reduced to. Section 3.3.
        rpn_width:     of the proposal network's hidden convolution. R-FCN, released.
        anchor_sizes:  square roots of the anchor areas, pixels; multiples of 16. COCO has 64 too.
        anchor_ratios: height / width of the anchors.
        proposals:     regions per image, while training and at inference. Section 3.3.
        regions_per_image: that a step learns from.
        with_ohem:     choose the hardest regions (COCO) instead of drawing a quarter of objects.
        min_side_px:   regions with a shorter side are dropped, network-input pixels. COCO: 2.
        score_thresh:  a detection scores this at least, 0..1. Released.
        iou_thresh:    of the suppression within each class, 0..1. Section 3.3.
        detections_per_image: most detections per image, all classes together.

    Source:  Li et al., "Fully Convolutional Instance-aware Semantic Segmentation"
        (arXiv:1611.07709), and its released code.
    """

    num_classes: int = 20
    in_channels: int = 3
    backbone: str = "resnet101"
    backbone_norm: str = "frozen"
    backbone_style: str | None = None
    parts: int = 7
    mask_side: int = 21
    assembling: Literal["copy", "pool"] = "copy"
    box_blocks: int = 1
    width: int = 1024
    rpn_width: int = 512
    anchor_sizes: tuple[float, ...] = (128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    proposals: int = 300
    regions_per_image: int = 128
    with_ohem: bool = False
    min_side_px: float = 16.0
    score_thresh: float = 1e-3
    iou_thresh: float = 0.3
    detections_per_image: int = 100

    def __post_init__(self) -> None:
        check_config(self, {"assembling": ("copy", "pool"), "box_blocks": (1, 2)})
        if self.mask_side < self.parts:
            raise UsageError(
                f"mask_side {self.mask_side} leaves some of {self.parts} parts without a cell; "
                f"it is {self.parts} at least"
            )


class Raw(NamedTuple):
    """2N regions per image, first the N proposals, then the same after regression.

    boxes: [B, 2N, 4] xyxy in network-input pixels, zeros where not valid. probs: [B, 2N, K] of the
    classes. valid: [B, 2N] bool. masks: [B, 2N, S, S] in [0, 1], of the best class in the box.
    """

    boxes: Tensor
    probs: Tensor
    valid: Tensor
    masks: Tensor


class FCIS(nn.Module):
    """R-FCN whose maps come in pairs: inside and outside of the mask, for every class and part.

    A pixel of a region is background (neither side), inside or outside. The larger of the two
    sides says whether the box fits a class, the softmax over both draws the mask. Detection and
    segmentation share every weight, and no layer runs per region.

    Args:
        cfg: the variant.

    Source:  Li, Qi, Dai, Ji, Wei, CVPR 2017 (arXiv:1611.07709).
    """

    def __init__(self, cfg: FCISConfig) -> None:
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
        grid = PartGrid(parts=cfg.parts, side=cfg.mask_side, stride=stride, mode=cfg.assembling)
        self.score_maps = ScoreMaps(
            deep,
            cfg.num_classes,
            grid,
            with_masks=True,
            box_blocks=cfg.box_blocks,
            width=cfg.width,
            weights=DELTA_WEIGHTS,
            regions_per_image=cfg.regions_per_image,
            with_ohem=cfg.with_ohem,
        )
        self.CLASS_ROWS = {"score_maps.class_maps": 2 * cfg.parts**2}

    def forward(self, images: Tensor) -> Raw:
        """Score and segment the proposals, and once more where the first look moved them to.

        Args:
            images: [B, C, H, W] normalised.
        """
        size = (images.shape[-2], images.shape[-1])
        shared, deep = self.backbone(images)
        first = self.rpn.decode(self.rpn.predict([shared]), size)
        read = self.score_maps.reader(self.score_maps(deep))
        before, deltas = self.look(read, first)
        moved = self.score_maps.refine(first.boxes, deltas, size)
        moved = moved.masked_fill(~first.valid[..., None], 0.0)
        after, _ = self.look(read, first._replace(boxes=moved))
        boxes, probs, valid, masks = (
            torch.cat(pair, dim=1) for pair in zip(before, after, strict=True)
        )
        sides = (boxes[..., 2:] - boxes[..., :2]).amin(dim=-1)  # [B, 2N]
        return Raw(boxes, probs, valid & (sides >= self.cfg.min_side_px), masks)

    def look(
        self, read: Callable[[Tensor], RegionOutput], proposals: Proposals
    ) -> tuple[Raw, Tensor]:
        """What the maps say about N regions per image, and the deltas [B, N, 4] that move them."""

        def run(rois: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            output = read(rois)
            masks = mask_logits(output.pairs, output.logits[:, :-1].argmax(dim=1)).sigmoid()
            return output.logits.softmax(dim=1)[:, :-1], masks, output.deltas

        probs, masks, deltas = on_regions(run, proposals.boxes, proposals.valid)
        return Raw(proposals.boxes, probs, proposals.valid, masks), deltas

    def loss(self, images: Tensor, targets: Sequence[InstanceTarget]) -> dict[str, Tensor]:
        """The five losses of joint training, weighted as released.

        Args:
            images:  [B, C, H, W] normalised.
            targets: one per image, in pixels of `images`.

        Returns:
            "rpn_objectness", "rpn_box", "class", "box" and "mask".
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
        """Suppress within each class, and let all regions vote on the masks that remain.

        A detection's box is the extent of its mask; without a pixel it is no detection.

        Args:
            raw:   of `forward`.
            sizes: one per image.
        """
        predictions: list[InstancePrediction] = []
        for image, (index, boxes) in enumerate(place_in_pictures(raw, sizes)):
            probs, maps = (x[image].float().cpu()[index] for x in (raw.probs, raw.masks))
            kept, labels, scores = classwise_nms(
                boxes,
                probs,
                score_thresh=self.cfg.score_thresh,
                iou_thresh=self.cfg.iou_thresh,
                count=self.cfg.detections_per_image,
            )
            weights = vote_weights(boxes, probs, kept, labels, iou_thresh=VOTER_IOU)
            masks = vote_masks(maps, boxes, weights, sizes[image].original, thresh=MASK_THRESH)
            extents = torch.from_numpy(tight_boxes(masks))  # [N, 4]
            found = InstancePrediction(boxes=extents, labels=labels, scores=scores, masks=masks)
            predictions.append(found.select(extents[:, 2] > 0))
        return predictions
