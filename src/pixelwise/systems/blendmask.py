"""BlendMask: a detector's box says which of a few maps of the image make up each part of a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.errors import UsageError
from pixelwise.losses.mask import mask_cross_entropy
from pixelwise.nn.backbones import build_backbone
from pixelwise.nn.backbones.resnet import RESNETS
from pixelwise.nn.bases import BOTTOMS
from pixelwise.nn.blocks import ConvNormAct
from pixelwise.nn.dense_head import flatten_levels
from pixelwise.nn.detections import place_in_pictures
from pixelwise.nn.fcos import (
    PointOutput,
    Positives,
    Selection,
    box_targets,
    fcos_detect,
    fcos_loss,
    gather_objects,
    match_points,
    positives_of,
)
from pixelwise.nn.fpn import OneStageFPN
from pixelwise.nn.norm import NORMS
from pixelwise.nn.regions import join_masks, on_regions
from pixelwise.nn.tower_head import TowerHead
from pixelwise.ops.blend import Interpolation, blend, pool_bases
from pixelwise.ops.label_maps import paint_crops
from pixelwise.ops.masks import mask_targets, paste_masks
from pixelwise.ops.point_conv import convolve_at
from pixelwise.ops.points import Points, box_centerness, place_points
from pixelwise.ops.roi import rois_of
from pixelwise.settings import check_config
from pixelwise.types import IGNORE, ImageSize, InstancePrediction, InstanceTarget, Size

FIRST_STRIDE, FIRST_BOUND = 8, 64  # of P3: pixels per cell; largest distance to a side, pixels
MERGED_LEVELS = 3  # P3 to P5 come from the backbone
SEMANTIC_WEIGHT = 0.3  # released code


@dataclass(frozen=True, kw_only=True)
class BlendMaskConfig:
    """Settings of BlendMask; the defaults are those of its ResNet-50 on COCO.

    Args:
        num_classes:   K classes, without background.
        in_channels:   of the images.
        backbone:      one of our ResNets or any convolutional model of timm.
        backbone_norm: "frozen" for pretrained weights, as published; "batch", "sync", "group".
        backbone_style: set of knobs of our ResNets; None is "caffe", which strides in the first 1x1
                       (released code).
        channels:      of the pyramid and the towers. FCOS: 256.
        levels:        of the pyramid, from P3 on: 5, the 550 models 4, the real-time ones 3.
        head_convs:    3x3 convolutions of the two towers. FCOS: 4.
        shared_convs:  of one tower before them. The 550 models: 3, and no others.
        bottom:        "protonet" (released code) or "decoder", DeepLabV3+'s (section 3.2).
        bottom_convs:  its 3x3 convolutions at stride 8. Released code: 3, the 550 models 2.
        bottom_width:  channels of all its convolutions, and of the semantic branch.
        bases:         maps that masks are blended from. Section 4.1: 4.
        attention_side: M, cells per side of a region's attention. Section 4.1: 14.
        mask_side:     R, cells per side of a mask. Section 4.1: 56.
        interpolation: of the attention, "bilinear" or "nearest". Section 4.1.
        score_thresh:  class probability times centerness must be above this, 0..1.
        pre_nms:       pairs of point and class per level that enter the suppression.
        iou_thresh:    a detection that overlaps a better one of its class by more is dropped.
        detections_per_image: most detections per image, all classes together.

    Source:  Chen et al., "BlendMask: Top-Down Meets Bottom-Up for Instance Segmentation"
        (arXiv:2001.00309).
    """

    num_classes: int = 80
    in_channels: int = 3
    backbone: str = "resnet50"
    backbone_norm: str = "frozen"
    backbone_style: str | None = None
    channels: int = 256
    levels: int = 5
    head_convs: int = 4
    shared_convs: int = 0
    bottom: Literal["protonet", "decoder"] = "protonet"
    bottom_convs: int = 3
    bottom_width: int = 128
    bases: int = 4
    attention_side: int = 14
    mask_side: int = 56
    interpolation: Interpolation = "bilinear"
    score_thresh: float = 0.05
    pre_nms: int = 1000
    iou_thresh: float = 0.6
    detections_per_image: int = 100

    def __post_init__(self) -> None:
        check_config(
            self,
            {
                "backbone_norm": (*NORMS, None),
                "bottom": tuple(BOTTOMS),
                "interpolation": get_args(Interpolation),
            },
        )
        if self.levels < MERGED_LEVELS:
            raise UsageError(
                f"blendmask blends masks from P3 to P5: levels is at least {MERGED_LEVELS}, "
                f"not {self.levels}"
            )


class Raw(NamedTuple):
    """D detections per image, best first, in network-input pixels; zeros where not valid.

    boxes: [B, D, 4] xyxy, may leave the image. scores: [B, D] in [0, 1]. labels: [B, D] int64.
    valid: [B, D] bool. mask_logits: [B, D, R, R] inside the boxes.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    mask_logits: Tensor


class Dense(NamedTuple):
    """What the network says before anything is chosen.

    output: of all N points. points: N of them. cells: how many each level has. hidden: L of
    [B, C, h_l, w_l], what the box tower ends with. bases: [B, bases, h, w] at 1/4 of the input.
    """

    output: PointOutput
    points: Points
    cells: list[int]
    hidden: list[Tensor]
    bases: Tensor


class BlendMask(nn.Module):
    """FCOS whose boxes carry small maps of attention, which blend masks from bases of the image.

    YOLACT weighs each of its prototypes with one number per instance, so it needs many, and crops.
    Here the weight varies inside the box, as in FCIS: a few bases do, neighbours of one class come
    apart, and the mask keeps the resolution of the bases. The attention is a 3x3 convolution of the
    box tower and has hundreds of channels; it is computed only where an object was found.

    Args:
        cfg: the variant.

    Source:  Chen, Sun, Tian, Shen, Huang, Yan, CVPR 2020 (arXiv:2001.00309).
    """

    CLASS_ROWS: ClassVar[dict[str, int]] = {
        "head.towers.category.outputs.classify": 1,
        "semantic.2": 1,
    }

    def __init__(self, cfg: BlendMaskConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone = build_backbone(
            cfg.backbone,
            in_channels=cfg.in_channels,
            levels=(3, 4, 5),
            norm=cfg.backbone_norm,
            style=cfg.backbone_style or ("caffe" if cfg.backbone in RESNETS else None),
        )
        self.neck = OneStageFPN(
            cast("tuple[int, ...]", self.backbone.channels),
            cfg.channels,
            extra=cfg.levels - MERGED_LEVELS,
            relu_between=True,
        )
        self.head = TowerHead(
            cfg.channels,
            cfg.channels,
            {"category": {"classify": cfg.num_classes}, "box": {"regress": 4, "centerness": 1}},
            levels=cfg.levels,
            convs=cfg.head_convs,
            shared_convs=cfg.shared_convs,
        )
        self.attention = nn.Conv2d(cfg.channels, cfg.bases * cfg.attention_side**2, 3, padding=1)
        self.bottom = BOTTOMS[cfg.bottom](
            cfg.channels, cfg.bottom_width, cfg.bases, convs=cfg.bottom_convs
        )
        self.semantic = nn.Sequential(  # for training only
            ConvNormAct(cfg.channels, cfg.bottom_width),
            ConvNormAct(cfg.bottom_width, cfg.bottom_width),
            nn.Conv2d(cfg.bottom_width, cfg.num_classes + 1, 1),
        )
        nn.init.normal_(self.attention.weight, std=0.01)
        nn.init.zeros_(cast("Tensor", self.attention.bias))

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """P3 and coarser levels, [B, C, h_l, w_l] each."""
        return self.neck(self.backbone(images))

    def predict(self, pyramid: Sequence[Tensor]) -> Dense:
        """Run the heads over the pyramid, except the attention."""
        hidden = self.head.hidden(pyramid)
        maps = self.head.outputs(hidden)
        grids: list[Size] = [(level.shape[2], level.shape[3]) for level in pyramid]
        return Dense(
            PointOutput(
                flatten_levels(maps["classify"], self.cfg.num_classes),
                F.relu(flatten_levels(maps["regress"], 4)),
                flatten_levels(maps["centerness"], 1)[..., 0],
            ),
            place_points(
                grids,
                [FIRST_STRIDE * 2**i for i in range(len(grids))],
                [FIRST_BOUND * 2**i for i in range(len(grids) - 1)],
                pyramid[0],
            ),
            [height * width for height, width in grids],
            hidden["box"],
            self.bottom(pyramid),
        )

    def attend(self, hidden: Sequence[Tensor], image: Tensor, point: Tensor) -> Tensor:
        """The attention of some points.

        Args:
            hidden: of `Dense`.
            image:  [n] int64, 0..B-1.
            point:  [n] int64, 0..N-1.

        Returns:
            [n, bases, M, M] logits.
        """
        side = self.cfg.attention_side
        values = convolve_at(
            hidden,
            image,
            point,
            weight=self.attention.weight,
            bias=cast("Tensor", self.attention.bias),
        )
        return values.unflatten(1, (self.cfg.bases, side, side))

    def forward(self, images: Tensor) -> Raw:
        """Detect, and blend the mask of each detection inside its box.

        Args:
            images: [B, C, H, W] normalised.
        """
        dense = self.predict(self.pyramid(images))
        found = fcos_detect(dense.output, dense.points, dense.cells, self._selection())

        def segment(rois: Tensor, point: Tensor) -> tuple[Tensor]:
            pooled = pool_bases(dense.bases, rois, self.cfg.mask_side)
            attention = self.attend(dense.hidden, rois[:, 0].long(), point)
            return (blend(pooled, attention, interpolation=self.cfg.interpolation),)

        return Raw(*found[:4], *on_regions(segment, found.boxes, found.valid, found.points))

    def _selection(self) -> Selection:
        return Selection(
            score_thresh=self.cfg.score_thresh,
            with_centerness=True,
            per_level=self.cfg.pre_nms,
            iou_thresh=self.cfg.iou_thresh,
            count=self.cfg.detections_per_image,
        )

    def loss(self, images: Tensor, targets: Sequence[InstanceTarget]) -> dict[str, Tensor]:
        """FCOS's losses, that of the masks, and that of the semantic branch.

        Masks are learnt in the objects' own boxes, so their loss does not wait for good boxes.

        Args:
            images:  [B, C, H, W] normalised.
            targets: one per image, in pixels of `images`.

        Returns:
            "class", "box", "centerness", "mask" and "semantic".
        """
        size = (images.shape[-2], images.shape[-1])
        pyramid = self.pyramid(images)
        dense = self.predict(pyramid)
        matches = match_points(dense.points, targets)
        found = positives_of(matches)
        attention = self.attend(dense.hidden, found.image, found.point)
        weights = box_centerness(box_targets(dense.points, found, targets))
        return {
            **fcos_loss(dense.output, dense.points, matches, targets),
            "mask": mask_loss(
                dense.bases,
                attention,
                found,
                targets,
                weights=weights,
                side=self.cfg.mask_side,
                interpolation=self.cfg.interpolation,
            ),
            "semantic": SEMANTIC_WEIGHT * semantic_loss(self.semantic(pyramid[0]), targets, size),
        }

    @torch.no_grad()
    def decode(self, raw: Raw, sizes: Sequence[ImageSize]) -> list[InstancePrediction]:
        """Bring the detections back to the original pictures and paste their masks.

        Args:
            raw:   of `forward`.
            sizes: one per image.
        """
        predictions: list[InstancePrediction] = []
        for image, (index, boxes) in enumerate(place_in_pictures(raw, sizes)):
            labels, scores, logits = (
                x[image].cpu()[index] for x in (raw.labels, raw.scores, raw.mask_logits)
            )
            predictions.append(
                InstancePrediction(
                    boxes=boxes,
                    labels=labels,
                    scores=scores.float(),
                    masks=paste_masks(logits.float().sigmoid(), boxes, sizes[image].original),
                )
            )
        return predictions


def mask_loss(
    bases: Tensor,
    attention: Tensor,
    found: Positives,
    targets: Sequence[InstanceTarget],
    *,
    weights: Tensor,
    side: int,
    interpolation: Interpolation,
) -> Tensor:
    """Mean binary cross entropy of the blended masks, weighted by the points' centerness.

    Args:
        bases:         [B, bases, h, w].
        attention:     [n, bases, M, M] logits of the n positive points.
        found:         the n positive points.
        targets:       one per image.
        weights:       [n] centerness targets.
        side:          R.
        interpolation: see `blend`.

    Source:  BlendMask (arXiv:2001.00309), section 3.4; the weights: released code.
    """
    rois = rois_of([target.boxes for target in targets])  # [G, 5], all objects of the batch
    objects = torch.arange(len(rois), device=rois.device)
    wanted = mask_targets(join_masks(targets), rois[:, 1:], objects, side)  # [G, R, R]
    own = gather_objects(objects.split([len(target) for target in targets]), found)  # [n]
    pooled = pool_bases(bases, rois, side)  # [G, bases, R, R]
    logits = blend(pooled[own], attention, interpolation=interpolation)  # [n, R, R]
    errors = mask_cross_entropy(logits, wanted[own]).mean(dim=(1, 2))
    return (errors * weights).sum() / weights.sum().clamp(min=1e-6)


def semantic_loss(logits: Tensor, targets: Sequence[InstanceTarget], size: Size) -> Tensor:
    """Cross entropy of every cell against the class of the object seen at its first pixel.

    Args:
        logits:  [B, K + 1, h, w] at 1/8 of the input, background last.
        targets: one per image; of overlapping objects the last is seen.
        size:    (height, width) of the network input.
    """
    rows, columns = (
        (torch.arange(cells, device=logits.device) * FIRST_STRIDE).clamp(max=pixels - 1)
        for cells, pixels in zip(logits.shape[-2:], size, strict=True)
    )
    labels = [
        paint_classes(target, size, logits.shape[1] - 1)[rows[:, None], columns]
        for target in targets
    ]
    losses = F.cross_entropy(
        logits.float(), torch.stack(labels), ignore_index=IGNORE, reduction="none"
    )
    return losses.mean()


def paint_classes(target: InstanceTarget, size: Size, num_classes: int) -> Tensor:
    """[H, W] int64 of the network input: class of the last object there, K for none, 255 crowds."""
    order = torch.arange(len(target), device=target.labels.device)
    # Crowds lie below all objects.
    order = torch.cat([order[target.crowd], order[~target.crowd]])
    painted = paint_crops(target.masks, order)
    # The number of "no mask", -1, reads the last entry.
    classes = target.labels.masked_fill(target.crowd, IGNORE)
    classes = torch.cat([classes, classes.new_tensor([num_classes])])[painted]
    padding = (0, size[1] - target.size[1], 0, size[0] - target.size[0])
    return F.pad(classes, padding, value=num_classes)
