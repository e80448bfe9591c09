"""Mask R-CNN checkpoints of torchvision, OpenMMLab (mmdet) and detectron2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from pixelwise.convert import Origin
from pixelwise.convert.detection import (
    CAFFE_DETECTION,
    Shapes,
    count,
    head_norm,
    mask_rcnn_shapes,
    mmdet_input,
    mmdet_rules,
    shared_settings,
)
from pixelwise.convert.resnet import detectron2_rules, infer_resnet, torchvision_rules
from pixelwise.convert.rules import Drop, Rename, Rows, Rule, prefixed, roll, skip
from pixelwise.spec import DETECTION_RGB
from pixelwise.systems.mask_rcnn import MaskRCNNConfig

# detectron2's ResNeXt weights were trained with a standard deviation of their own.
_CAFFE_RESNEXT = replace(CAFFE_DETECTION, std=(57.375, 57.120, 58.395))

# Where all anchors stand on one level (detectron2, mmdet).
_ONE_LEVEL_PROPOSALS = {"pre_nms": (12000, 6000), "proposals": (2000, 1000)}

_TORCHVISION: list[Rule] = [
    *prefixed(torchvision_rules(), "backbone.body.", "backbone."),
    Rename(r"backbone\.fpn\.inner_blocks\.(\d)\.0\.", r"neck.lateral.\1.conv."),
    Rename(r"backbone\.fpn\.inner_blocks\.(\d)\.1\.", r"neck.lateral.\1.norm."),
    Rename(r"backbone\.fpn\.layer_blocks\.(\d)\.0\.", r"neck.output.\1.conv."),
    Rename(r"backbone\.fpn\.layer_blocks\.(\d)\.1\.", r"neck.output.\1.norm."),
    Rename(r"rpn\.head\.conv\.(\d)\.0\.", r"rpn.convs.\1.conv."),
    Rename(r"rpn\.head\.cls_logits\.", r"rpn.objectness."),
    Rename(r"rpn\.head\.bbox_pred\.", r"rpn.deltas."),
    Rename(r"roi_heads\.box_head\.fc6\.", r"box_head.trunk.fcs.0."),
    Rename(r"roi_heads\.box_head\.fc7\.", r"box_head.trunk.fcs.1."),
    Rename(r"roi_heads\.box_head\.([0-3])\.0\.", r"box_head.trunk.convs.\1.conv."),
    Rename(r"roi_heads\.box_head\.([0-3])\.1\.", r"box_head.trunk.convs.\1.norm."),
    Rename(r"roi_heads\.box_head\.5\.", r"box_head.trunk.fcs.0."),
    # Its class 0 is the background: last in ours, and without a box or a mask.
    Rows(r"roi_heads\.box_predictor\.cls_score\.", r"box_head.classify.", order=roll(1)),
    Rows(r"roi_heads\.box_predictor\.bbox_pred\.", r"box_head.regress.", order=skip(4)),
    Rename(r"roi_heads\.mask_head\.(\d)\.0\.", r"mask_head.convs.\1.conv."),
    Rename(r"roi_heads\.mask_head\.(\d)\.1\.", r"mask_head.convs.\1.norm."),
    Rename(r"roi_heads\.mask_predictor\.conv5_mask\.", r"mask_head.upsample."),
    Rows(
        r"roi_heads\.mask_predictor\.mask_fcn_logits\.", r"mask_head.class_logits.", order=skip(1)
    ),
    # Names before torchvision 0.13.
    Rename(r"backbone\.fpn\.inner_blocks\.(\d)\.(weight|bias)$", r"neck.lateral.\1.conv.\2"),
    Rename(r"backbone\.fpn\.layer_blocks\.(\d)\.(weight|bias)$", r"neck.output.\1.conv.\2"),
    Rename(r"rpn\.head\.conv\.(weight|bias)$", r"rpn.convs.0.conv.\1"),
    *(
        Rename(rf"roi_heads\.mask_head\.mask_fcn{i + 1}\.", f"mask_head.convs.{i}.conv.")
        for i in range(4)
    ),
]


_DETECTRON2_HEADS: list[Rule] = [
    *prefixed(detectron2_rules(), "roi_heads.", "region_stage."),
    *(
        Rename(rf"backbone\.fpn_{name}{i + 2}\.{part}", f"neck.{name}.{i}.{to}")
        for i in range(4)
        for name in ("lateral", "output")
        for part, to in ((r"norm\.", "norm."), (r"(weight|bias)$", r"conv.\1"))
    ),
    Rename(r"proposal_generator\.rpn_head\.conv\.(weight|bias)$", r"rpn.convs.0.conv.\1"),
    Rename(r"proposal_generator\.rpn_head\.conv\.conv(\d)\.", r"rpn.convs.\1.conv."),
    Rename(r"proposal_generator\.rpn_head\.objectness_logits\.", r"rpn.objectness."),
    Rename(r"proposal_generator\.rpn_head\.anchor_deltas\.", r"rpn.deltas."),
    *(
        Rename(rf"{theirs}{i + 1}\.{part}", f"{ours}.{i}.{to}")
        for i in range(4)
        for theirs, ours in (
            (r"roi_heads\.box_head\.conv", "box_head.trunk.convs"),
            (r"roi_heads\.mask_head\.mask_fcn", "mask_head.convs"),
        )
        for part, to in ((r"norm\.", "norm."), (r"(weight|bias)$", r"conv.\1"))
    ),
    Rename(r"roi_heads\.box_head\.fc1\.", r"box_head.trunk.fcs.0."),
    Rename(r"roi_heads\.box_head\.fc2\.", r"box_head.trunk.fcs.1."),
    Rename(r"roi_heads\.box_predictor\.cls_score\.", r"box_head.classify."),
    Rename(r"roi_heads\.box_predictor\.bbox_pred\.", r"box_head.regress."),
    Rename(r"roi_heads\.mask_head\.deconv\.", r"mask_head.upsample."),
    Rename(r"roi_heads\.mask_head\.predictor\.", r"mask_head.class_logits."),
    Drop(r"proposal_generator\.anchor_generator\.", "anchors are computed from the settings"),
    Drop(r"pixel_(mean|std)$", "preprocessing belongs to the input spec"),
]


def _detectron2_rules(body: str) -> list[Rule]:
    """Rules of detectron2's naming; with a pyramid the body of the backbone is `bottom_up`."""
    return [*prefixed(detectron2_rules(), body, "backbone."), *_DETECTRON2_HEADS]


def _detectron2_body(neck: str) -> str:
    return "backbone.bottom_up." if neck == "fpn" else "backbone."


def _mask_rows(rules: Sequence[Rule], cfg: MaskRCNNConfig) -> Sequence[Rule]:
    """The rules, with the last mask layer under the name that the config gives it."""
    if not cfg.class_agnostic_masks:
        return rules
    return [
        Rename(rule.pattern, "mask_head.shared_logits.")
        if isinstance(rule, Rename) and rule.to == "mask_head.class_logits."
        else rule
        for rule in rules
    ]


def _neck(shapes: Shapes) -> str:
    if "neck.lateral.0.conv.weight" in shapes:
        return "fpn"
    return "c4" if "region_stage.layer4.0.conv1.weight" in shapes else "dc5"


def _common(shapes: Shapes, *, counter_means: str) -> dict[str, Any]:
    """What the shapes tell, whatever the origin; rows are the source's."""
    settings = shared_settings(shapes, counter_means=counter_means)
    neck = _neck(shapes)
    if neck == "c4":
        del settings["box_head"]
    if neck != "fpn":
        settings |= _ONE_LEVEL_PROPOSALS
    masks = shapes["mask_head.class_logits.weight"][0]
    return settings | {
        "neck": neck,
        "head_norm": head_norm(shapes, "neck.lateral", "box_head.trunk.convs", "mask_head.convs"),
        "rpn_convs": count(shapes, r"rpn\.convs\.(\d)\."),
        "class_agnostic_masks": masks == 1 < settings["num_classes"],
    }


def _infer_torchvision(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        **_common(mask_rcnn_shapes(_TORCHVISION, state), counter_means="batch"),
        "backbone": infer_resnet(state, "backbone.body."),
        "conventions": "torchvision",
        "proposals": (2000, 1000),
    }


def _infer_mmdet(state: Mapping[str, Tensor]) -> dict[str, Any]:
    both = [rule for norm in ("batch", "group") for rule in _mmdet_rules(norm, norm)]
    # Its batch norms have counters, but always use the stored statistics (norm_eval).
    settings = _common(mask_rcnn_shapes(both, state), counter_means="frozen")
    return {
        **settings,
        "backbone": infer_resnet(state, "backbone."),
        "backbone_style": "caffe" if settings["neck"] == "c4" else "pytorch",
        "conventions": "mmdet",
    }


def _mmdet_rules(backbone: str | None, heads: str | None) -> list[Rule]:
    return mmdet_rules(backbone=backbone, neck=heads, heads=heads)


def _infer_detectron2(state: Mapping[str, Tensor]) -> dict[str, Any]:
    pyramid = any(key.startswith("backbone.bottom_up.") for key in state)
    body = _detectron2_body("fpn" if pyramid else "c4")
    settings = _common(mask_rcnn_shapes(_detectron2_rules(body), state), counter_means="batch")
    name = infer_resnet(state, body, stage=r"res(\d)", first=2)
    # R50 and R101 come from Caffe; ResNeXt and everything with group norm strides in the 3x3.
    plain = name.startswith("resnet") and settings["backbone_norm"] == "frozen"
    return {
        **settings,
        "backbone": name,
        "backbone_style": "caffe" if plain else "pytorch",
        "conventions": "detectron2",
    }


ORIGINS: dict[str, Origin] = {
    "torchvision": Origin(
        rules=_TORCHVISION,
        infer=_infer_torchvision,
        input=DETECTION_RGB,
    ),
    "mmdet": Origin(
        rules=lambda cfg: _mask_rows(_mmdet_rules(cfg.backbone_norm, cfg.head_norm), cfg),
        infer=_infer_mmdet,
        input=mmdet_input,
    ),
    "detectron2": Origin(
        rules=lambda cfg: _mask_rows(_detectron2_rules(_detectron2_body(cfg.neck)), cfg),
        infer=_infer_detectron2,
        input=lambda cfg: _CAFFE_RESNEXT if cfg.backbone.startswith("resnext") else CAFFE_DETECTION,
    ),
}
