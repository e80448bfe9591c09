"""YOLACT and YOLACT++: masks of the whole image at once, combined per instance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from pixelwise.errors import UsageError
from pixelwise.nn.backbones import build_backbone
from pixelwise.nn.backbones.resnet import RESNETS
from pixelwise.nn.dense_head import DenseHead, best_of_levels, flatten_levels
from pixelwise.nn.detections import place_in_pictures
from pixelwise.nn.fpn import OneStageFPN
from pixelwise.nn.mask_rescoring import MaskRescoring
from pixelwise.nn.multibox import DELTA_WEIGHTS, box_loss, class_loss, match_targets
from pixelwise.nn.norm import NORMS
from pixelwise.nn.prototypes import (
    MASK_THRESH,
    ProtoNet,
    in_cells,
    mask_loss,
    sample_masks,
    semantic_loss,
)
from pixelwise.ops.anchors import base_anchors, centred_anchors, square_anchors
from pixelwise.ops.boxes import clip_boxes, decode_boxes
from pixelwise.ops.mask_assembly import assemble_masks
from pixelwise.ops.masks import resize_masks
from pixelwise.ops.suppress import fast_nms, fast_nms_across_classes, top_k_nms
from pixelwise.settings import check_config
from pixelwise.types import ImageSize, InstancePrediction, InstanceTarget, RunLengths, Size

BOX_WEIGHT, MASK_WEIGHT, IOU_WEIGHT = 1.5, 6.125, 25.0  # section 3.4; YOLACT++, released code
LEVEL_STRIDES = (8, 16, 32, 64, 128)  # of P3 to P7, input pixels
_ASSEMBLY_CHUNK = 1 << 19  # mask cells at a time while decoding: 2 MB

Origin = Literal["yolact", "mmdet"]
SUPPRESSIONS = {"fast": fast_nms, "fast_across": fast_nms_across_classes, "greedy": top_k_nms}


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """Where the implementations differ.

    Args:
        extra_from:   the pyramid's P6 comes from P5 ("output") or from C5 ("input").
        with_relu:    P3 to P5 pass a ReLU.
        clip:         boxes end at the border of the image before they suppress each other.
        per_level:    candidates per level before the suppression; None for all.
        by_class:     a detection must reach `score_thresh` in its own class. Otherwise its anchor
                      must in any class, so nearly always the full number of detections comes out.
        anchor_side:  anchors stand as in a square input of so many pixels, whatever the input's
                      size; None: cells divide the input itself. The same at this size.
    """

    extra_from: Literal["output", "input"]
    with_relu: bool
    clip: bool
    per_level: int | None
    by_class: bool
    anchor_side: int | None = None


CONVENTIONS: dict[Origin, Conventions] = {
    "yolact": Conventions(
        extra_from="output", with_relu=True, clip=False, per_level=None, by_class=False
    ),
    "mmdet": Conventions(
        extra_from="input",
        with_relu=False,
        clip=True,
        per_level=1000,
        by_class=True,
        anchor_side=550,
    ),
}


@dataclass(frozen=True, kw_only=True)
class YOLACTConfig:
    """Settings of YOLACT and YOLACT++; the defaults are YOLACT-550 with ResNet-101.

    Args:
        num_classes:   K, without background.
        in_channels:   of the images.
        backbone:      one of our ResNets, "darknet53", or any convolutional model of timm.
        backbone_norm: "batch" as published; "frozen" for fewer than 6 images per device (released
                       README), "sync", "group".
        deform_interval: YOLACT++: every n-th bottleneck of C3 to C5 has a deformable 3x3 (section
                       6.2: 3; the released ResNet-50: 1); 0 for none.
        channels:      of the pyramid, the head and the protonet. Section 4.
        prototypes:    P. Section 3.1: 32.
        conventions:   whose pyramid and candidates, a row of `CONVENTIONS`; weights need theirs.
        anchor_sizes:  square root of the smallest anchor's area per level P3 to P7, network-input
                       pixels. Section 4; for other input sizes they scale with the side.
        scales_per_octave: anchor sizes per level, each 2^(1/n) of the one before. YOLACT++: 3.
        anchor_ratios: height / width of the anchors.
        square_anchors: heights equal widths, the released YOLACT's mistake that its weights need.
        with_rescoring: YOLACT++: masks are ranked by score times predicted IoU (section 6.1).
        suppression:   "fast" (section 4.3), "fast_across" (classes drop each other) or "greedy".
        score_thresh:  an anchor must score more than this in some class, 0..1.
        iou_thresh:    of the suppression, 0..1.
        pre_nms:       candidates per class for the suppression. Released code.
        detections_per_image: most detections per image, all classes together.
        masks_per_image: positives per image that the mask loss uses while training. Released code:
                       100, at 700 pixels 300.

    Source:  Bolya et al., "YOLACT" (arXiv:1904.02689) and "YOLACT++" (arXiv:1912.06218).
    """

    num_classes: int = 80
    in_channels: int = 3
    backbone: str = "resnet101"
    backbone_norm: str = "batch"
    deform_interval: int = 0
    channels: int = 256
    prototypes: int = 32
    conventions: Origin = "yolact"
    anchor_sizes: tuple[float, ...] = (24, 48, 96, 192, 384)
    scales_per_octave: int = 1
    anchor_ratios: tuple[float, ...] = (1.0, 2.0, 0.5)
    square_anchors: bool = True
    with_rescoring: bool = False
    suppression: Literal["fast", "fast_across", "greedy"] = "fast"
    score_thresh: float = 0.05
    iou_thresh: float = 0.5
    pre_nms: int = 200
    detections_per_image: int = 100
    masks_per_image: int = 100

    def __post_init__(self) -> None:
        check_config(
            self,
            {
                "backbone_norm": NORMS,
                "conventions": get_args(Origin),
                "suppression": tuple(SUPPRESSIONS),
            },
        )
        if len(self.anchor_sizes) != 5:
            raise UsageError(
                f"yolact needs one of anchor_sizes for each of its 5 levels, "
                f"not {len(self.anchor_sizes)}"
            )
        if self.deform_interval and self.backbone not in RESNETS:
            raise UsageError(
                f"yolact has no deformable form of backbone {self.backbone!r}; set "
                "deform_interval=0 or choose resnet50, resnet101 or resnet152"
            )

    @property
    def anchors_per_cell(self) -> int:
        """A."""
        return self.scales_per_octave * len(self.anchor_ratios)


class Raw(NamedTuple):
    """D detections per image, best first, in network-input pixels; zeros where not valid.

    boxes: [B, D, 4] xyxy, may leave the image. scores: [B, D] in [0, 1]. labels: [B, D] int64.
    valid: [B, D] bool. mask_scores: [B, D] >= 0, scores again without re-scoring.
    coefficients: [B, D, P]. prototypes: [B, P, h, w] at 1/4 of the input.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    mask_scores: Tensor
    coefficients: Tensor
    prototypes: Tensor


class Dense(NamedTuple):
    """What the head says of all N anchors, finest level first.

    logits: [B, N, K + 1], background last. deltas: [B, N, 4]. coefficients: [B, N, P] in (-1, 1).
    """

    logits: Tensor
    deltas: Tensor
    coefficients: Tensor


class YOLACT(nn.Module):
    """One-stage detector whose boxes carry coefficients that combine prototype masks.

    Masks need spatial coherence, which fully connected layers destroy; so convolutions draw
    prototypes of the whole image, and what a vector can hold, the coefficients, is predicted per
    anchor. The mask is their product, cropped by the box. YOLACT++ adds deformable convolutions,
    more anchors and a small network that scores the masks.

    Args:
        cfg: the variant.

    Source:  Bolya, Zhou, Xiao, Lee, ICCV 2019 (arXiv:1904.02689); TPAMI 2020 (arXiv:1912.06218).
    Differs: anchors are fixed in pixels, not relative to the input, so other sizes and aspect
        ratios than those of training work too.
    """

    base_anchors: Tensor

    def __init__(self, cfg: YOLACTConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.rules = CONVENTIONS[cfg.conventions]
        knobs: dict[str, Any] = (
            {"deform_interval": cfg.deform_interval} if cfg.deform_interval else {}
        )
        self.backbone = build_backbone(
            cfg.backbone,
            in_channels=cfg.in_channels,
            levels=(3, 4, 5),
            norm=cfg.backbone_norm,
            **knobs,
        )
        self.neck = OneStageFPN(
            cast("tuple[int, ...]", self.backbone.channels),
            cfg.channels,
            extra_from=self.rules.extra_from,
            upsample="bilinear",
            with_relu=self.rules.with_relu,
        )
        per_cell = cfg.anchors_per_cell
        self.head = DenseHead(
            cfg.channels,
            cfg.channels,
            {
                "classify": per_cell * (cfg.num_classes + 1),
                "regress": per_cell * 4,
                "coefficients": per_cell * cfg.prototypes,
            },
            convs=1,
        )
        self.protonet = ProtoNet(cfg.channels, cfg.channels, cfg.prototypes)
        self.semantic = nn.Conv2d(cfg.channels, cfg.num_classes, 1)  # for training only
        self.rescoring = MaskRescoring(cfg.num_classes) if cfg.with_rescoring else None
        self.register_buffer("base_anchors", _base_anchors(cfg), persistent=False)
        self.CLASS_ROWS = {"head.outputs.classify": per_cell, "semantic": 1}
        if cfg.with_rescoring:
            self.CLASS_ROWS["rescoring.classify"] = 1
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.startswith("backbone."):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """P3 to P7, [B, C, h_l, w_l] each."""
        return self.neck(self.backbone(images))

    def predict(self, pyramid: Sequence[Tensor]) -> Dense:
        """Run the head over all levels."""
        maps = self.head(pyramid)
        return Dense(
            flatten_levels(maps["classify"], self.cfg.num_classes + 1),
            flatten_levels(maps["regress"], 4),
            flatten_levels(maps["coefficients"], self.cfg.prototypes).tanh(),
        )

    def place_anchors(self, pyramid: Sequence[Tensor], size: Size) -> Tensor:
        """[N, 4] xyxy in network-input pixels, in the order of `Dense`."""
        placed: list[Tensor] = []
        for base, level, stride in zip(self.base_anchors, pyramid, LEVEL_STRIDES, strict=True):
            grid = (level.shape[2], level.shape[3])
            extent: tuple[float, float] = size
            if (side := self.rules.anchor_side) is not None:
                pitch = side / math.ceil(side / stride)
                extent = (pitch * grid[0], pitch * grid[1])
            placed.append(centred_anchors(base, grid, extent))
        return torch.cat(placed)

    def forward(self, images: Tensor) -> Raw:
        """Detect, and draw the prototypes.

        Args:
            images: [B, C, H, W] normalised.
        """
        size = (images.shape[-2], images.shape[-1])
        pyramid = self.pyramid(images)
        prototypes = self.protonet(pyramid[0])
        dense = self.predict(pyramid)
        boxes = decode_boxes(dense.deltas, self.place_anchors(pyramid, size), DELTA_WEIGHTS)
        if self.rules.clip:
            boxes = clip_boxes(boxes, size)
        probs = dense.logits.float().softmax(dim=-1)[..., :-1]  # [B, N, K]
        probs = self._candidates(probs, [m.shape[2] * m.shape[3] for m in pyramid])
        found = [
            self._suppress(*image, size=size)
            for image in zip(boxes, probs, dense.coefficients, prototypes, strict=True)
        ]
        return Raw._make([*(torch.stack(parts) for parts in zip(*found, strict=True)), prototypes])

    def _candidates(self, probs: Tensor, cells: Sequence[int]) -> Tensor:
        """The probabilities [B, N, K], negative for what is no candidate."""
        best = probs.amax(dim=-1)  # [B, N]
        if self.rules.by_class or self.cfg.suppression == "greedy":
            kept = probs > self.cfg.score_thresh
        else:
            kept = (best > self.cfg.score_thresh)[..., None]
        if self.rules.per_level is not None:
            kept = (
                kept
                & best_of_levels(
                    best, [n * self.cfg.anchors_per_cell for n in cells], self.rules.per_level
                )[..., None]
            )
        return probs - 2.0 * ~kept

    def _suppress(
        self, boxes: Tensor, probs: Tensor, coefficients: Tensor, prototypes: Tensor, *, size: Size
    ) -> tuple[Tensor, ...]:
        """The detections of one image, in the order of `Raw`, without the prototypes."""
        index, labels, scores = self._best_boxes(boxes, probs)  # [D] each
        valid = scores >= 0  # [D]
        scores = scores.clamp(min=0)
        boxes = boxes[index] * valid[:, None]
        chosen = coefficients[index] * valid[:, None]
        labels = labels * valid
        mask_scores = scores
        if self.rescoring is not None:
            masks = assemble_masks(prototypes, chosen, in_cells(boxes, size, prototypes))
            mask_scores = scores * self.rescoring.of_class(masks, labels)
        return boxes, scores, labels, valid, mask_scores, chosen

    def _best_boxes(self, boxes: Tensor, probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, labels and scores [D] of the detections; the scores of empty places are -1."""
        some: Tensor | slice = slice(None)
        if not torch.compiler.is_compiling():  # few of many thousand anchors are candidates
            is_candidate = (probs >= 0).any(dim=1)  # [N]
            count = max(int(is_candidate.sum()), min(self.cfg.pre_nms, len(boxes)))
            some = is_candidate.argsort(descending=True, stable=True)[:count]
        index, labels, scores = SUPPRESSIONS[self.cfg.suppression](
            boxes[some],
            probs[some],
            iou_thresh=self.cfg.iou_thresh,
            top_k=self.cfg.pre_nms,
            count=self.cfg.detections_per_image,
        )
        return index if isinstance(some, slice) else some[index], labels, scores

    def loss(self, images: Tensor, targets: Sequence[InstanceTarget]) -> dict[str, Tensor]:
        """The losses of all parts, weighted as published.

        Args:
            images:  [B, C, H, W] normalised.
            targets: one per image, in pixels of `images`.

        Returns:
            "class", "box", "mask" and "semantic", and with re-scoring "mask_iou".
        """
        size = (images.shape[-2], images.shape[-1])
        pyramid = self.pyramid(images)
        dense = self.predict(pyramid)
        anchors = self.place_anchors(pyramid, size)
        matches = match_targets(anchors, targets)
        positives = (matches >= 0).sum().clamp(min=1)
        masks = sample_masks(
            self.protonet(pyramid[0]),
            dense.coefficients,
            matches,
            targets,
            size=size,
            limit=self.cfg.masks_per_image,
        )
        losses = {
            "class": class_loss(dense.logits, matches, targets) / positives,
            "box": BOX_WEIGHT * box_loss(dense.deltas, anchors, matches, targets) / positives,
            "mask": MASK_WEIGHT * mask_loss(masks) / positives,
            "semantic": semantic_loss(self.semantic(pyramid[0]), targets, size),
        }
        if self.rescoring is not None:
            losses["mask_iou"] = IOU_WEIGHT * self.rescoring.loss(masks) / positives
        return losses

    @torch.no_grad()
    def decode(self, raw: Raw, sizes: Sequence[ImageSize]) -> list[InstancePrediction]:
        """Assemble the masks and bring everything back to the original pictures.

        Args:
            raw:   of `forward`.
            sizes: one per image.
        """
        predictions: list[InstancePrediction] = []
        for image, (index, boxes) in enumerate(place_in_pictures(raw, sizes)):
            labels, scores, mask_scores = (
                x[image].cpu()[index] for x in (raw.labels, raw.scores, raw.mask_scores)
            )
            predictions.append(
                InstancePrediction(
                    boxes=boxes,
                    labels=labels,
                    scores=scores,
                    masks=RunLengths.concat(_draw_masks(raw, image, index, sizes[image])),
                    mask_scores=None if self.rescoring is None else mask_scores,
                )
            )
        return predictions


def _base_anchors(cfg: YOLACTConfig) -> Tensor:
    """[L, A, 4] xyxy around the origin: sizes in the outer loop, ratios in the inner."""
    steps = [2 ** (i / cfg.scales_per_octave) for i in range(cfg.scales_per_octave)]
    levels = [
        base_anchors([size * step for step in steps], cfg.anchor_ratios, order="size")
        for size in cfg.anchor_sizes
    ]
    return torch.stack([square_anchors(base) if cfg.square_anchors else base for base in levels])


def _draw_masks(raw: Raw, image: int, index: Tensor, size: ImageSize) -> Iterator[RunLengths]:
    """The masks of some detections of an image, a bounded number at a time; nothing first."""
    yield RunLengths.empty(size.original)
    prototypes = raw.prototypes[image].float()  # [P, h, w]
    for some in index.split(max(1, _ASSEMBLY_CHUNK // prototypes[0].numel())):
        boxes, coefficients = (
            x[image][some.to(x.device)].float() for x in (raw.boxes, raw.coefficients)
        )
        probs = assemble_masks(prototypes, coefficients, in_cells(boxes, size.input, prototypes))
        yield resize_masks(probs, size, thresh=MASK_THRESH)
