"""PolarMask: a mask is a centre and the distances from it to the outline at equal angles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.errors import UsageError
from pixelwise.losses.box import ltrb_overlap_loss
from pixelwise.losses.polar import RayLossKind, polar_iou_loss
from pixelwise.nn.backbones import build_backbone
from pixelwise.nn.backbones.resnet import RESNETS
from pixelwise.nn.dense_head import best_of_levels, flatten_levels
from pixelwise.nn.detections import place_in_pictures
from pixelwise.nn.fcos import (
    CENTRE_RADIUS,
    PointDetections,
    Positives,
    best_pairs,
    gather_objects,
    name_owners,
    point_class_loss,
    positives_of,
    suppress,
)
from pixelwise.nn.fpn import OneStageFPN
from pixelwise.nn.norm import NORMS
from pixelwise.nn.regions import usable_objects
from pixelwise.nn.tower_head import TowerHead
from pixelwise.ops.boxes import clip_boxes
from pixelwise.ops.contours import Contours, centroids, largest_contours, subdivide
from pixelwise.ops.points import (
    Points,
    assign_points,
    boxes_to_ltrb,
    ltrb_to_boxes,
    place_points,
)
from pixelwise.ops.polar import contour_rays, draw_rays, polar_centerness, ray_ends
from pixelwise.settings import check_config
from pixelwise.types import ImageSize, InstancePrediction, InstanceTarget, Size

CANDIDATES = 4096  # best pairs of point and class that enter the suppression
MAX_LOG_LENGTH = 10.0  # 22,000 units; untrained networks would overflow in exp
FIRST_STRIDES = (4, 8, 16, 32)  # of the backbone's levels, where the pyramid may begin


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """Where the released code is coarser than the idea.

    Args:
        in_strides: what exp(0) is, for boxes and rays: one stride of the level, as in FCOS, or one
                    pixel. With strides lengths start near those of the objects, and logarithms stay
                    small, which half precision needs.
        contour_points: points of an outline, per pixel of it, that may end a ray. Seen from inside
                    a small object, its pixels are farther apart than rays look: with 1, most points
                    have a ray without an end, and hardly learn.
        aligned:    masks are drawn by the centres of pixels, see `draw_rays`.
    """

    in_strides: bool
    contour_points: int
    aligned: bool


CONVENTIONS: dict[str, Conventions] = {
    "released": Conventions(in_strides=False, contour_points=1, aligned=False),
    "fine": Conventions(in_strides=True, contour_points=4, aligned=True),
}


@dataclass(frozen=True, kw_only=True)
class PolarMaskConfig:
    """Settings of PolarMask; the defaults are those of its ResNet-50 on COCO.

    Args:
        num_classes:   K, without background.
        in_channels:   of the images.
        backbone:      one of our ResNets, or any of timm that has maps of the finest strides.
        backbone_norm: "frozen" for pretrained weights, as published; "batch", "sync", "group".
        backbone_style: set of knobs of our ResNets; None is "caffe", which strides in the first 1x1
                       (released code).
        channels:      of the pyramid and the head. FCOS: 256.
        head_convs:    3x3 convolutions of each of the three towers. FCOS: 4.
        strides:       input pixels per cell of each level, each twice the one before. Those up to
                       32 are the backbone's, coarser ones come from the pyramid. Section 3.1.
        range_bounds:  distances from a point to the farthest side of its object, pixels, that part
                       the levels: one less than there are levels. FCOS, section 3.2.
        rays:          n, at equal angles. Section 4.1: 36.
        conventions:   "released", or "fine" where the released code is coarse, a row of
                       `CONVENTIONS`; released weights need theirs.
        centre:        training points lie around the "mass" centre or the "box" centre of an
                       object. Section 3.2: mass.
        ray_loss:      see `polar_iou_loss`. Section 3.4: "linear".
        boxes_from:    the suppression sees the boxes of the "branch" or those around the "rays".
                       Section 4.1: equally good.
        centerness_offset: added to the centerness before it multiplies the class score. Released
                       code: 0.5; the paper's product is 0.
        pre_nms:       points per level that enter the suppression.
        score_thresh:  a class probability must be above this, 0..1.
        iou_thresh:    a detection that overlaps a better one of its class by more is dropped.
        detections_per_image: most detections per image, all classes together.

    Source:  Xie et al., "PolarMask: Single Shot Instance Segmentation with Polar Representation"
        (arXiv:1909.13226); what it leaves open as in its released code.
    """

    num_classes: int = 80
    in_channels: int = 3
    backbone: str = "resnet50"
    backbone_norm: str = "frozen"
    backbone_style: str | None = None
    channels: int = 256
    head_convs: int = 4
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    range_bounds: tuple[float, ...] = (64, 128, 256, 512)
    rays: int = 36
    conventions: Literal["released", "fine"] = "released"
    centre: Literal["mass", "box"] = "mass"
    ray_loss: RayLossKind = "linear"
    boxes_from: Literal["branch", "rays"] = "branch"
    centerness_offset: float = 0.5
    pre_nms: int = 1000
    score_thresh: float = 0.05
    iou_thresh: float = 0.5
    detections_per_image: int = 100

    def __post_init__(self) -> None:
        check_config(
            self,
            {
                "backbone_norm": (*NORMS, None),
                "conventions": tuple(CONVENTIONS),
                "centre": ("mass", "box"),
                "ray_loss": get_args(RayLossKind),
                "boxes_from": ("branch", "rays"),
            },
        )
        first = self.strides[0] if self.strides else 0
        doubled = tuple(first * 2**i for i in range(len(self.strides)))
        if first not in FIRST_STRIDES or self.strides != doubled:
            raise UsageError(
                f"polarmask cannot have strides={self.strides}: each doubles the one before, "
                f"the first is one of {', '.join(map(str, FIRST_STRIDES))}"
            )
        if len(self.range_bounds) != len(self.strides) - 1:
            raise UsageError(
                f"polarmask has {len(self.strides)} levels: give {len(self.strides) - 1} "
                f"range_bounds between them, not {len(self.range_bounds)}"
            )
        if not 3 <= self.rays <= 360:
            raise UsageError(f"rays is a number from 3 to 360, not {self.rays}")


class Raw(NamedTuple):
    """D detections per image, best first, in network-input pixels; zeros where not valid.

    boxes: [B, D, 4] xyxy. scores: [B, D] >= 0, above 1 where an offset is added to the centerness.
    labels: [B, D] int64. valid: [B, D] bool. centres: [B, D, 2] x and y. rays: [B, D, n] lengths.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    centres: Tensor
    rays: Tensor


class Dense(NamedTuple):
    """What the head says of all N points, finest level first.

    logits: [B, N, K]. centerness: [B, N] logits. ltrb: [B, N, 4] distances to the middle of the
    box's outermost pixels, pixels. rays: [B, N, n] lengths, pixels.
    """

    logits: Tensor
    centerness: Tensor
    ltrb: Tensor
    rays: Tensor


class PolarTargets(NamedTuple):
    """What the points of a batch should say.

    matches: [B, N] int64, the object's position in its image, BACKGROUND or IGNORED. found: the M
    points that stand for an object. ltrb: [M, 4] pixels, as in `Dense`. rays: [M, n] pixels.
    """

    matches: Tensor
    found: Positives
    ltrb: Tensor
    rays: Tensor


class PolarMask(nn.Module):
    """FCOS with a mask: 36 distances to the outline in place of the 4 to the sides of a box.

    A box in polar form is the special case of four rays. Since a mask takes no more than a vector
    per point, there is neither a second stage nor a full-size mask anywhere in the network; holes
    and what no ray reaches are the price.

    Args:
        cfg: the variant.

    Source:  Xie, Sun, Song, Wang, Liu, Liang, Shen, Luo, CVPR 2020 (arXiv:1909.13226).
    Differs: the released code leaves out objects of at most 15 pixels, or less than 10 wide and
        high, when it reads the data; here they are learnt.
    """

    CLASS_ROWS: ClassVar[dict[str, int]] = {"head.towers.category.outputs.classify": 1}

    def __init__(self, cfg: PolarMaskConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.rules = CONVENTIONS[cfg.conventions]
        inner = [stride for stride in cfg.strides if stride <= FIRST_STRIDES[-1]]
        self.backbone = build_backbone(
            cfg.backbone,
            in_channels=cfg.in_channels,
            levels=[stride.bit_length() - 1 for stride in inner],
            norm=cfg.backbone_norm,
            style=cfg.backbone_style or ("caffe" if cfg.backbone in RESNETS else None),
        )
        self.neck = OneStageFPN(
            cast("tuple[int, ...]", self.backbone.channels),
            cfg.channels,
            extra=len(cfg.strides) - len(inner),
            relu_between=True,
        )
        self.head = TowerHead(
            cfg.channels,
            cfg.channels,
            {
                "category": {"classify": cfg.num_classes, "centerness": 1},
                "box": {"regress": 4},
                "mask": {"rays": cfg.rays},
            },
            levels=len(cfg.strides),
            convs=cfg.head_convs,
            bias=False,
            scaled=("regress", "rays"),
        )

    def predict(self, images: Tensor) -> tuple[Dense, Points, list[int]]:
        """Run the network.

        Args:
            images: [B, C, H, W] normalised.

        Returns:
            what it says, the N points that it says it of, and how many each level has.
        """
        pyramid = self.neck(self.backbone(images))
        maps = self.head(pyramid)
        grids: list[Size] = [(level.shape[2], level.shape[3]) for level in pyramid]
        points = place_points(grids, self.cfg.strides, self.cfg.range_bounds, images)
        unit = points.strides[:, None] if self.rules.in_strides else 1  # [N, 1]
        dense = Dense(
            flatten_levels(maps["classify"], self.cfg.num_classes).float(),
            flatten_levels(maps["centerness"], 1)[..., 0].float(),
            _exp(flatten_levels(maps["regress"], 4)) * unit,
            _exp(flatten_levels(maps["rays"], self.cfg.rays)) * unit,
        )
        return dense, points, [height * width for height, width in grids]

    def forward(self, images: Tensor) -> Raw:
        """Detect.

        Args:
            images: [B, C, H, W] normalised.
        """
        size = (images.shape[-2], images.shape[-1])
        dense, points, cells = self.predict(images)
        boxes = self._boxes(dense, points, size)
        probs, centerness = dense.logits.sigmoid(), dense.centerness.sigmoid()
        best = probs.amax(dim=-1) * centerness  # [B, N]
        kept = best_of_levels(best, cells, self.cfg.pre_nms)[..., None]
        scores = probs * (centerness + self.cfg.centerness_offset)[..., None]  # [B, N, K]
        scores = torch.where(kept & (probs > self.cfg.score_thresh), scores, -1.0)
        kept_of = [self._suppress(*image) for image in zip(boxes, scores, strict=True)]
        found = PointDetections(*(torch.stack(parts) for parts in zip(*kept_of, strict=True)))
        valid = found.valid[..., None]
        rays = torch.take_along_dim(dense.rays, found.points[..., None], dim=1)
        return Raw(*found[:4], points.xy[found.points] * valid, rays * valid)

    def _boxes(self, dense: Dense, points: Points, size: Size) -> Tensor:
        """[B, N, 4] xyxy inside the input, right and bottom exclusive."""
        if self.cfg.boxes_from == "branch":
            boxes = ltrb_to_boxes(points.xy, dense.ltrb)
        else:
            ends = ray_ends(points.xy, dense.rays)  # [B, N, n, 2]
            boxes = torch.cat([ends.amin(dim=2), ends.amax(dim=2)], dim=-1)
        return _half_open(clip_boxes(boxes, size, plus_one=True))

    def _suppress(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        """Detections of one image from boxes [N, 4] and scores [N, K]."""
        values, point, label = best_pairs(scores, [len(scores)], CANDIDATES)
        return suppress(
            boxes,
            values,
            point,
            label,
            iou_thresh=self.cfg.iou_thresh,
            count=self.cfg.detections_per_image,
        )

    def loss(self, images: Tensor, targets: Sequence[InstanceTarget]) -> dict[str, Tensor]:
        """Focal loss of the classes, overlap losses of box and rays, cross entropy of centerness.

        Args:
            images:  [B, C, H, W] normalised.
            targets: one per image, in pixels of `images`.

        Returns:
            "class", "box", "mask" and "centerness".
        """
        dense, points, _ = self.predict(images)
        wanted = assign_targets(points, targets, self.cfg)
        found = wanted.found
        ltrb, rays, logits = (
            values[found.image, found.point]
            for values in (dense.ltrb, dense.rays, dense.centerness)
        )  # [M, 4], [M, n], [M]
        weights = polar_centerness(wanted.rays)  # [M]
        total = weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
        box = ltrb_overlap_loss(_half_open(ltrb), _half_open(wanted.ltrb), kind="log")
        mask = polar_iou_loss(rays, wanted.rays, kind=self.cfg.ray_loss)
        centerness = F.binary_cross_entropy_with_logits(logits, weights, reduction="sum")
        count = len(weights)
        return {
            "class": point_class_loss(dense.logits, wanted.matches, targets)
            / (count + len(targets)),
            "box": (box * weights).sum() / total,
            "mask": (mask * weights).sum() / total,
            "centerness": centerness / max(1, count),
        }

    @torch.no_grad()
    def decode(self, raw: Raw, sizes: Sequence[ImageSize]) -> list[InstancePrediction]:
        """Draw the polygons that the rays span into the original pictures.

        Args:
            raw:   of `forward`.
            sizes: one per image.
        """
        return [
            InstancePrediction(
                boxes=boxes,
                labels=raw.labels[image].cpu()[index],
                scores=raw.scores[image].float().cpu()[index],
                masks=draw_rays(
                    raw.centres[image].cpu()[index],
                    raw.rays[image].cpu()[index],
                    sizes[image],
                    aligned=self.rules.aligned,
                ),
            )
            for image, (index, boxes) in enumerate(place_in_pictures(raw, sizes))
        ]


@torch.no_grad()
def assign_targets(
    points: Points, targets: Sequence[InstanceTarget], cfg: PolarMaskConfig
) -> PolarTargets:
    """Give the points their objects, and measure boxes and outlines from there.

    Args:
        points:  N of them.
        targets: one per image.
        cfg:     "centre", "conventions" and "rays" are read.
    """
    parts = [_match_and_measure(points, target, cfg) for target in targets]
    matches = torch.stack([match for match, _ in parts])
    found = positives_of(matches)
    boxes = gather_objects([_inclusive(target.boxes) for target in targets], found)
    return PolarTargets(
        matches,
        found,
        boxes_to_ltrb(points.xy[found.point], boxes),
        torch.cat([rays for _, rays in parts]),
    )


def _match_and_measure(
    points: Points, target: InstanceTarget, cfg: PolarMaskConfig
) -> tuple[Tensor, Tensor]:
    """Matches [N] of one image, see `PolarTargets`, and the rays [m, n] of its positive points."""
    objects = usable_objects(target)
    contours = largest_contours(target.masks, objects)
    seen = contours.starts.diff() > 0  # an empty mask has no outline
    objects = objects[seen]
    contours = Contours(contours.xy, contours.starts[torch.cat([seen.new_ones(1), seen])])
    centres = centroids(contours).float() if cfg.centre == "mass" else None
    owner = assign_points(
        points, _inclusive(target.boxes[objects]), centres, radius=CENTRE_RADIUS, plus_one=True
    )
    parts = CONVENTIONS[cfg.conventions].contour_points
    if parts > 1:
        contours = subdivide(contours, parts)
    rays = contour_rays(contours, points.xy[owner >= 0], owner[owner >= 0], rays=cfg.rays)
    return name_owners(owner, objects, points, target), rays


def _exp(x: Tensor) -> Tensor:
    """In full precision, and never infinite."""
    return x.float().clamp(max=MAX_LOG_LENGTH).exp()


def _inclusive(boxes: Tensor) -> Tensor:
    """Boxes [..., 4] whose right and bottom are the last pixels inside, as the network has them."""
    return boxes - boxes.new_tensor([0.0, 0.0, 1.0, 1.0])


def _half_open(boxes: Tensor) -> Tensor:
    """The inverse of `_inclusive`, for boxes [..., 4] and distances [..., 4] to their sides."""
    return boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
