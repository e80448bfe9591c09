"""Mask Scoring R-CNN checkpoints of its authors (maskrcnn-benchmark's naming) and OpenMMLab."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pixelwise.convert import Origin
from pixelwise.convert.detection import (
    DETECTRON_BGR,
    Shapes,
    head_norm,
    mask_rcnn_shapes,
    mmdet_input,
    mmdet_rules,
    shared_settings,
)
from pixelwise.convert.resnet import infer_resnet, torchvision_rules
from pixelwise.convert.rules import Drop, Rename, Rows, Rule, prefixed, roll, skip
from pixelwise.errors import ConversionError
from pixelwise.systems.mask_scoring_rcnn import MaskScoringRCNNConfig

_BODY = "backbone.body."
_LEVELS = 4
_PARTS = r"(weight|bias)$"

# Also of the head alone.
MASK_IOU_HEAD: list[Rule] = [
    *(
        Rename(
            rf"roi_heads\.maskiou\.feature_extractor\.maskiou_fcn{i + 1}\.",
            f"iou_head.convs.{i}.conv.",
        )
        for i in range(4)
    ),
    Rename(r"roi_heads\.maskiou\.feature_extractor\.maskiou_fc1\.", "iou_head.fcs.0."),
    Rename(r"roi_heads\.maskiou\.feature_extractor\.maskiou_fc2\.", "iou_head.fcs.2."),
    # Its output 0 belongs to the background, which has no mask.
    Rows(r"roi_heads\.maskiou\.predictor\.maskiou\.", "iou_head.iou.", order=skip(1)),
]

_MASKSCORING: list[Rule] = [
    Rename(r"backbone\.body\.stem\.conv1\.", "backbone.stem.0.conv."),
    Rename(r"backbone\.body\.stem\.bn1\.", "backbone.stem.0.norm."),
    # Its stages are torchvision's, its stem is not.
    *(
        rule
        for rule in prefixed(torchvision_rules(), _BODY, "backbone.")
        if isinstance(rule, Rename) and "stem" not in rule.to
    ),
    *(
        Rename(rf"backbone\.fpn\.fpn_{theirs}{i + 1}\.{_PARTS}", rf"neck.{ours}.{i}.conv.\1")
        for i in range(_LEVELS)
        for theirs, ours in (("inner", "lateral"), ("layer", "output"))
    ),
    Rename(r"rpn\.head\.conv\.", "rpn.convs.0.conv."),
    Rename(r"rpn\.head\.cls_logits\.", "rpn.objectness."),
    Rename(r"rpn\.head\.bbox_pred\.", "rpn.deltas."),
    Drop(r"rpn\.anchor_generator\.", "anchors are computed from the settings"),
    Rename(r"roi_heads\.box\.feature_extractor\.fc6\.", "box_head.trunk.fcs.0."),
    Rename(r"roi_heads\.box\.feature_extractor\.fc7\.", "box_head.trunk.fcs.1."),
    # Its class 0 is the background: last in ours, and without a box or a mask.
    Rows(r"roi_heads\.box\.predictor\.cls_score\.", "box_head.classify.", order=roll(1)),
    Rows(r"roi_heads\.box\.predictor\.bbox_pred\.", "box_head.regress.", order=skip(4)),
    *(
        Rename(
            rf"roi_heads\.mask\.feature_extractor\.mask_fcn{i + 1}\.", f"mask_head.convs.{i}.conv."
        )
        for i in range(4)
    ),
    Rename(r"roi_heads\.mask\.predictor\.conv5_mask\.", "mask_head.upsample."),
    Rows(
        r"roi_heads\.mask\.predictor\.mask_fcn_logits\.", "mask_head.class_logits.", order=skip(1)
    ),
    *MASK_IOU_HEAD,
]


def _mmdet_rules(cfg: MaskScoringRCNNConfig) -> list[Rule]:
    """Rules of OpenMMLab's naming.

    Args:
        cfg: whose two norms decide what they are called.
    """
    head = r"roi_head\.mask_iou_head\."
    return [
        *mmdet_rules(backbone=cfg.backbone_norm, neck=cfg.head_norm, heads=cfg.head_norm),
        Rename(rf"{head}convs\.(\d)\.", r"iou_head.convs.\1.conv."),
        Rename(rf"{head}fcs\.0\.", "iou_head.fcs.0."),
        Rename(rf"{head}fcs\.1\.", "iou_head.fcs.2."),
        Rename(rf"{head}fc_mask_iou\.", "iou_head.iou."),
    ]


def _common(shapes: Shapes, *, counter_means: str) -> dict[str, Any]:
    """What the shapes tell, whatever the origin; rows are the source's."""
    if "iou_head.fcs.0.weight" not in shapes:
        raise ConversionError("the checkpoint has no mask IoU head; is it a plain Mask R-CNN?")
    flat = shapes["iou_head.fcs.0.weight"][1] > shapes["iou_head.convs.3.conv.weight"][0]
    return {
        **shared_settings(shapes, counter_means=counter_means),
        "head_norm": head_norm(shapes, "neck.lateral", "box_head.trunk.convs", "mask_head.convs"),
        "iou_pool": "flatten" if flat else "mean",
    }


def _infer_mmdet(state: Mapping[str, Tensor]) -> dict[str, Any]:
    both = [
        rule
        for norm in ("batch", "group")
        for rule in _mmdet_rules(MaskScoringRCNNConfig(backbone_norm=norm, head_norm=norm))
    ]
    backbone = infer_resnet(state, "backbone.")
    return {
        # Its batch norms have counters, but always use the stored statistics (norm_eval).
        **_common(mask_rcnn_shapes(both, state), counter_means="frozen"),
        "backbone": backbone,
        # Its published ResNets are Caffe's, its ResNeXts PyTorch's.
        "backbone_style": "caffe" if backbone.startswith("resnet") else "pytorch",
        "conventions": "mmdet",
        "proposals": (1000, 1000),
    }


def _infer_maskscoring(state: Mapping[str, Tensor]) -> dict[str, Any]:
    backbone = infer_resnet(state, _BODY)
    return {
        **_common(mask_rcnn_shapes(_MASKSCORING, state), counter_means="batch"),
        "backbone": backbone,
        "backbone_style": "caffe" if backbone.startswith("resnet") else "pytorch",
        "conventions": "detectron",
    }


ORIGINS: dict[str, Origin] = {
    "maskscoring": Origin(rules=_MASKSCORING, infer=_infer_maskscoring, input=DETECTRON_BGR),
    "mmdet": Origin(rules=_mmdet_rules, infer=_infer_mmdet, input=mmdet_input),
}
