"""PANet checkpoints of its authors (Detectron.pytorch's naming) and OpenMMLab's PAFPN detectors."""

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
    mmdet_convs,
    mmdet_input,
    mmdet_rules,
    shared_settings,
)
from pixelwise.convert.resnet import detectron_pytorch_rules, infer_resnet
from pixelwise.convert.rules import Rename, Rows, Rule, prefixed, roll, skip
from pixelwise.systems.panet import PANetConfig

_BODY = "Conv_Body.conv_body."
_LEVELS = 4
_PARTS = r"(weight|bias)$"


def _panet_rules(cfg: PANetConfig) -> list[Rule]:
    """Rules of the authors' naming; their parts of a sequence are numbered, a bare layer is not.

    Args:
        cfg: whose norms and box head decide what is bare, and what a sequence holds.
    """
    step = 2 if cfg.head_norm is None else 3  # layers per convolution in a sequence
    body = detectron_pytorch_rules(norm="gn" if cfg.backbone_norm == "group" else "bn")
    return [
        *prefixed(body, _BODY, "backbone."),
        *_neck(with_norm=cfg.neck_norm is not None),
        Rename(r"RPN\.FPN_RPN_conv\.", "rpn.convs.0.conv."),
        Rename(r"RPN\.FPN_RPN_cls_score\.", "rpn.objectness."),
        Rename(r"RPN\.FPN_RPN_bbox_pred\.", "rpn.deltas."),
        *_box_trunk(cfg.box_head, step),
        # Its class 0 is the background: last in ours, and without a box or a mask.
        Rows(r"Box_Outs\.cls_score\.", "box_head.classify.", order=roll(1)),
        Rows(r"Box_Outs\.bbox_pred\.", "box_head.regress.", order=skip(4)),
        *_mask_convs(cfg.mask_branch, step),
        *_per_level(r"Mask_Head\.mask_conv1", "mask_head.fuse.layers", ("conv", "norm")),
        Rename(r"Mask_Head\.upconv\.", "mask_head.upsample."),
        Rows(r"Mask_Outs\.classify\.", "mask_head.class_logits.", order=skip(1)),
    ]


def _box_trunk(kind: str, step: int) -> list[Rule]:
    layers = "box_head.trunk.fuse.layers"
    if kind == "4conv1fc":
        return [
            *_per_level(r"Box_Head\.conv1_head", layers, ("conv", "norm")),
            *_sequence(r"Box_Head\.convs", "box_head.trunk.convs", 3, step),
            Rename(r"Box_Head\.fc\.", "box_head.trunk.fcs.0."),
        ]
    return [
        *_per_level(r"Box_Head\.fc1", layers, ("fcs.0", "fc_norms.0")),
        Rename(r"Box_Head\.fc2\.0\.", "box_head.trunk.fcs.0."),
        Rename(r"Box_Head\.fc2\.1\.", "box_head.trunk.fc_norms.0."),
    ]


def _mask_convs(branch: str | None, step: int) -> list[Rule]:
    """The convolutions after the fusion; where there is a branch, the last stands apart with it."""
    theirs, ours = r"Mask_Head\.", "mask_head."
    if branch is None:
        return _sequence(rf"{theirs}conv_fcn", f"{ours}convs", 3, step)
    return [
        *_sequence(rf"{theirs}conv_fcn", f"{ours}convs", 2, step),
        *_conv_norm(rf"{theirs}mask_conv4", f"{ours}convs.2"),
        *_conv_norm(rf"{theirs}mask_conv4_fc", f"{ours}branch.convs.0"),
        *_conv_norm(rf"{theirs}mask_conv5_fc", f"{ours}branch.convs.1"),
        Rename(rf"{theirs}mask_fc\.0\.", f"{ours}branch.fc."),
    ]


def _neck(*, with_norm: bool) -> list[Rule]:
    """The pyramid's modules run from its coarsest level to the finest, the path's upwards."""
    body = r"Conv_Body\."
    pairs = {rf"{body}conv_top": f"neck.lateral.{_LEVELS - 1}"}
    for i in range(_LEVELS):
        pairs[rf"{body}posthoc_modules\.{i}"] = f"neck.output.{_LEVELS - 1 - i}"
    for i in range(_LEVELS - 1):
        lateral = rf"{body}topdown_lateral_modules\.{i}\.conv_lateral"
        pairs[lateral] = f"neck.lateral.{_LEVELS - 2 - i}"
        pairs[rf"{body}panet_buttomup_conv1_modules\.{i}"] = f"path.down.{i}"
        pairs[rf"{body}panet_buttomup_conv2_modules\.{i}"] = f"path.output.{i}"
    if with_norm:
        return [rule for theirs, ours in pairs.items() for rule in _conv_norm(theirs, ours)]
    return [Rename(rf"{theirs}\.{_PARTS}", rf"{ours}.conv.\1") for theirs, ours in pairs.items()]


def _conv_norm(theirs: str, ours: str) -> list[Rule]:
    """A sequence of one convolution and its norm."""
    return [Rename(rf"{theirs}\.0\.", f"{ours}.conv."), Rename(rf"{theirs}\.1\.", f"{ours}.norm.")]


def _sequence(theirs: str, ours: str, count: int, step: int) -> list[Rule]:
    """A sequence of convolutions, each with a norm (or none) and a ReLU.

    Args:
        theirs: pattern of its name.
        ours:   name of our list of `ConvNormAct`.
        count:  of its convolutions.
        step:   layers per convolution, 3 or 2.
    """
    parts = ("conv", "norm")[: step - 1]
    return [
        Rename(rf"{theirs}\.{step * i + offset}\.", f"{ours}.{i}.{part}.")
        for i in range(count)
        for offset, part in enumerate(parts)
    ]


def _per_level(theirs: str, ours: str, parts: tuple[str, str]) -> list[Rule]:
    """A list with one sequence of a layer and its norm per level."""
    return [
        Rename(rf"{theirs}\.(\d)\.{number}\.", rf"{ours}.\1.{part}.")
        for number, part in enumerate(parts)
    ]


def _mmdet_rules(cfg: PANetConfig) -> list[Rule]:
    """Rules of OpenMMLab's naming.

    Args:
        cfg: whose three norms decide what they are called.
    """
    return [
        *mmdet_rules(backbone=cfg.backbone_norm, neck=cfg.neck_norm, heads=cfg.head_norm),
        *mmdet_convs(r"neck\.downsample_convs", "path.down", norm=cfg.neck_norm),
        *mmdet_convs(r"neck\.pafpn_convs", "path.output", norm=cfg.neck_norm),
    ]


def _infer_panet(state: Mapping[str, Tensor]) -> dict[str, Any]:
    neck_norm = None if "Conv_Body.conv_top.weight" in state else "group"
    with_group_norm = f"{_BODY}res1.gn1.weight" in state
    forms: dict[str, Any] = {
        # Batch norms have no statistics here: they are folded into scale and shift.
        "backbone_norm": "group" if with_group_norm else "affine",
        "neck_norm": neck_norm,
        "path": "linear" if neck_norm is None else "relu",
        "box_head": "4conv1fc" if "Box_Head.fc.weight" in state else "2fc",
        "mask_branch": "relu" if "Mask_Head.mask_fc.0.weight" in state else None,
        # In a sequence without norms, number 1 is a ReLU.
        "head_norm": "group" if "Mask_Head.conv_fcn.1.weight" in state else None,
    }
    shapes = mask_rcnn_shapes(_panet_rules(PANetConfig(**forms)), state)
    backbone = infer_resnet(state, _BODY, stage=r"res(\d)", first=2)
    return {
        **shared_settings(shapes, counter_means="frozen"),
        **forms,
        "backbone": backbone,
        # Plain ones came from Caffe; ResNeXts and those with group norm stride in the 3x3.
        "backbone_style": "pytorch" if with_group_norm or "resnext" in backbone else "caffe",
        "conventions": "panet",
    }


def _infer_mmdet(state: Mapping[str, Tensor]) -> dict[str, Any]:
    both = [
        rule
        for norm in ("batch", "group")
        for rule in _mmdet_rules(PANetConfig(backbone_norm=norm, neck_norm=norm, head_norm=norm))
    ]
    # Its batch norms have counters, but always use the stored statistics (norm_eval).
    shapes: Shapes = mask_rcnn_shapes(both, state)
    return {
        **shared_settings(shapes, counter_means="frozen"),
        "backbone": infer_resnet(state, "backbone."),
        "backbone_style": "pytorch",
        "neck_norm": head_norm(shapes, "neck.lateral"),
        "path": "sum",
        "fusion": None,
        "mask_branch": None,
        "head_norm": head_norm(shapes, "box_head.trunk.convs", "mask_head.convs"),
        "conventions": "mmdet",
        "proposals": (1000, 1000),
    }


ORIGINS: dict[str, Origin] = {
    "panet": Origin(
        rules=_panet_rules,
        infer=_infer_panet,
        input=DETECTRON_BGR,
    ),
    "mmdet": Origin(rules=_mmdet_rules, infer=_infer_mmdet, input=mmdet_input),
}
