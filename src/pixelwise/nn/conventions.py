"""CONVENTIONS: the numbers in which the implementations of two-stage detection differ.

None of them matters much to a network that is trained here, and all of them matter to one that was
trained elsewhere: released weights reproduce their results only with the numbers of their origin.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from pixelwise.nn.backbones.resnet import RESNETS
from pixelwise.ops.roi import LevelRule

Origin = Literal[
    "detectron2",
    "mmdet",
    "torchvision",
    "torchvision_v1",
    "detectron",
    "panet",
    "roi_pool",
    "softmax_masks",
]


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """One implementation's answers to the questions its papers leave open.

    Args:
        norm_eps:           added to the variance by the frozen norms of the backbone.
        anchor_order:       outer loop over a cell's anchors; matters with several sizes per level.
        anchor_rounding:    whether the corners of the base anchors are rounded to whole pixels.
        floor_strides:      anchors lie floor(input size / map size) pixels apart, not the nominal
                            stride: at 800x1088 torchvision's coarsest level has 61x64, not 64x64.
        clamp_both:         whether log-size deltas are clamped from below as well as from above.
        min_low_quality:    least IoU, 0..1, at which an object's best anchor becomes positive.
        low_quality_to:     whose such an anchor is, see `match_boxes`.
        proposal_side_px:   proposals and their sides must be longer than this.
        detection_side_px:  the same for detections; negative keeps all.
        level_rule:         rounding of boxes on the boundary between two levels.
        roi_aligned:        shift samples by half a feature pixel; False also widens regions to one.
        roi_sampling:       samples per bin and axis; 0 takes ceil(extent / bins); None is RoIPool.
        rpn_beta:           where the RPN's smooth-L1 turns linear, in units of the deltas; 0 is L1.
        box_beta:           the same in the box head.
        sampled_normaliser: divide the RPN losses by the anchors drawn, not by the number to draw.
        mask_probs:         "sigmoid": each class by itself; "softmax": classes of a pixel compete.
        mask_targets:       "bitmap": binarised at 0.5; "torchvision": soft values.
        paste:              "grid": sampled at pixel centres; "expanded": resized to whole pixels.
        window_anchors:     anchors grow from the window of a cell, not around its corner, and their
                            ratios are rounded to whole pixels of it.
        border_anchors:     whether anchors that reach out of the picture are learnt from.
        softmax_objectness: two maps per anchor, first all those of the background, instead of one.

    Source:  detectron2 0.6, mmdet 3.3, torchvision 0.29, maskrcnn-benchmark and PANet's release:
        their default configurations and code.
    Differs: widths are x2 - x1 throughout; Detectron and its descendants count x2 - x1 + 1, so
        their regions end one pixel earlier at the right and at the bottom.
    """

    norm_eps: float
    anchor_order: Literal["ratio", "size"]
    anchor_rounding: bool
    floor_strides: bool
    clamp_both: bool
    min_low_quality: float
    low_quality_to: Literal["most", "last"]
    proposal_side_px: float
    detection_side_px: float
    level_rule: LevelRule
    roi_aligned: bool
    roi_sampling: int | None
    rpn_beta: float
    box_beta: float
    sampled_normaliser: bool
    mask_probs: Literal["sigmoid", "softmax"]
    mask_targets: Literal["bitmap", "torchvision"]
    paste: Literal["grid", "expanded"]
    window_anchors: bool
    border_anchors: bool
    softmax_objectness: bool

    def backbone_knobs(self, name: str, norm: str) -> dict[str, Any]:
        """What `build_backbone` needs besides: the epsilon of norms whose statistics are fixed.

        Args:
            name: of the backbone; only ours have such a knob.
            norm: of the backbone.
        """
        return {"norm_eps": self.norm_eps} if name in RESNETS and norm == "frozen" else {}


# The reference row; every other one says only what it does differently.
_DETECTRON2 = Conventions(
    norm_eps=1e-5,
    anchor_order="size",
    anchor_rounding=False,
    floor_strides=False,
    clamp_both=False,
    min_low_quality=0.0,
    low_quality_to="most",
    proposal_side_px=0.0,
    detection_side_px=-1.0,
    level_rule="detectron2",
    roi_aligned=True,
    roi_sampling=0,
    rpn_beta=0.0,
    box_beta=0.0,
    sampled_normaliser=False,
    mask_probs="sigmoid",
    mask_targets="bitmap",
    paste="grid",
    window_anchors=False,
    border_anchors=True,
    softmax_objectness=False,
)

_TORCHVISION = replace(
    _DETECTRON2,
    anchor_order="ratio",
    anchor_rounding=True,
    floor_strides=True,
    proposal_side_px=1e-3,
    detection_side_px=1e-2,
    level_rule="torchvision",
    roi_aligned=False,
    roi_sampling=2,
    rpn_beta=1 / 9,
    box_beta=1 / 9,
    sampled_normaliser=True,
    mask_targets="torchvision",
    paste="expanded",
)

# Detectron and its descendants in PyTorch (maskrcnn-benchmark, Detectron.pytorch), whose frozen
# norms have no epsilon.
_DETECTRON = replace(
    _DETECTRON2,
    norm_eps=0.0,
    anchor_order="ratio",
    level_rule="detectron",
    roi_aligned=False,
    roi_sampling=2,
    rpn_beta=1 / 9,
    box_beta=1.0,
    sampled_normaliser=True,
    paste="expanded",
    window_anchors=True,
)

CONVENTIONS: dict[Origin, Conventions] = {
    "detectron2": _DETECTRON2,
    "mmdet": replace(
        _DETECTRON2,
        anchor_order="ratio",
        clamp_both=True,
        min_low_quality=0.3,
        low_quality_to="last",
        level_rule="mmdet",
        sampled_normaliser=True,
    ),
    "torchvision": _TORCHVISION,
    # The published first COCO weights (Mask R-CNN ResNet-50-FPN) were trained before torchvision
    # gave its frozen norms an epsilon.
    "torchvision_v1": replace(_TORCHVISION, norm_eps=0.0),
    "detectron": _DETECTRON,
    "panet": replace(_DETECTRON, box_beta=1 / 3),
    # The ablations of Mask R-CNN, section 4.2: what RoIAlign and independent masks are worth.
    "roi_pool": replace(_DETECTRON2, roi_sampling=None),
    "softmax_masks": replace(_DETECTRON2, mask_probs="softmax"),
}

# The first stage of R-FCN and FCIS, in the code that their authors released. Their second stage has
# no RoIAlign and no mask head, so what concerns those is not read.
POSITION_SENSITIVE = replace(
    _DETECTRON2,
    anchor_order="ratio",
    rpn_beta=1 / 9,
    window_anchors=True,
    border_anchors=False,
    softmax_objectness=True,
)
