"""YOLACT and YOLACT++ checkpoints of the authors (yolact) and YOLACT's of OpenMMLab (mmdet)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import Tensor

from pixelwise.convert import Origin
from pixelwise.convert.resnet import infer_resnet, torchvision_rules
from pixelwise.convert.rules import Drop, Rename, Rows, Rule, prefixed
from pixelwise.convert.shapes import rows_of, shape_of
from pixelwise.spec import YOLACT_RGB, InputSpec, ResizeRule
from pixelwise.systems.yolact import YOLACTConfig

PASCAL_CLASSES = 20
# The released Pascal model has larger anchors, and none of the square ones.
_PASCAL: dict[str, Any] = {"anchor_sizes": (32, 64, 128, 256, 512), "square_anchors": False}
_RATIOS = 3
_MOST_BLOCKS = 36  # of ResNet-152's third stage
# DarkNet learns from pixels that are scaled to 0..1 and nothing else.
_UNIT_RGB = InputSpec(mean=(0.0,) * 3, std=(1.0,) * 3)
_SIDES = {17: 400, 30: 700}  # of the input by the finest anchor size; all others have 550


def anchors_last(per_cell: int, *, first: int = 0) -> Callable[[int], list[int]]:
    """An order for `Rows`: from all numbers of an anchor together to all anchors of a number.

    Args:
        per_cell: A, anchors per cell.
        first:    numbers at the front of each anchor's that go to the end: 1 for a background that
            is class 0.
    """

    def order(rows: int) -> list[int]:
        count = rows // per_cell
        return [
            anchor * count + (number + first) % count
            for number in range(count)
            for anchor in range(per_cell)
        ]

    return order


def _resnet_rules() -> list[Rule]:
    """The authors' names of a ResNet: torchvision's with stages `layers.0` and so on."""
    rules: list[Rule] = [
        Rename(r"conv1\.weight$", "stem.0.conv.weight"),
        Rename(r"bn1\.", "stem.0.norm."),
        Drop(r"layer[1-4]\.", "older name of what is in `layers` too"),
    ]
    for i in range(4):
        block, ours = rf"layers\.{i}\.(\d+)\.", rf"layer{i + 1}.\1."
        rules += [
            Rename(block + r"conv(\d)\.(weight|bias)$", ours + r"conv\2.\3"),
            Rename(block + r"conv2\.conv_offset_mask\.", ours + "conv2.offset_mask."),
            Rename(block + r"bn(\d)\.", ours + r"norm\2."),
            Rename(block + r"downsample\.0\.", ours + "shortcut.conv."),
            Rename(block + r"downsample\.1\.", ours + "shortcut.norm."),
        ]
    return rules


def _darknet_rules() -> list[Rule]:
    """The authors' names of DarkNet-53: number 0 of a stage halves the size."""
    rules: list[Rule] = [
        Rename(r"_preconv\.0\.", "stem.conv."),
        Rename(r"_preconv\.1\.", "stem.norm."),
    ]
    for i, ours in ((0, "conv"), (1, "norm")):
        rules.append(Rename(rf"layers\.(\d)\.0\.{i}\.", rf"stages.\1.down.{ours}."))
        rules += [
            Rename(
                rf"layers\.(\d)\.{block + 1}\.conv(\d)\.{i}\.",
                rf"stages.\1.blocks.{block}.conv\2.{ours}.",
            )
            for block in range(8)
        ]
    return rules


def _yolact_rules(cfg: YOLACTConfig) -> list[Rule]:
    backbone = _darknet_rules() if cfg.backbone == "darknet53" else _resnet_rules()
    plain, shifted = (anchors_last(cfg.anchors_per_cell, first=first) for first in (0, 1))
    head = r"prediction_layers\.0\."
    return [
        *prefixed(backbone, "backbone.", "backbone."),
        # Its lists begin with the deepest level.
        *(
            Rename(rf"fpn\.{theirs}_layers\.{i}\.", f"neck.{ours}.{2 - i}.conv.")
            for theirs, ours in (("lat", "lateral"), ("pred", "output"))
            for i in range(3)
        ),
        Rename(r"fpn\.downsample_layers\.([01])\.", r"neck.extra.\1.conv."),
        Drop(r"fpn\.downsample_layers\.([2-9])\.", "level that the released networks do not use"),
        *_protonet_rules(r"proto_net\."),
        Rename(head + r"upfeature\.0\.", "head.tower.0.conv."),
        Rows(head + r"conf_layer\.", "head.outputs.classify.", order=shifted),
        Rows(head + r"bbox_layer\.", "head.outputs.regress.", order=plain),
        Rows(head + r"mask_layer\.", "head.outputs.coefficients.", order=plain),
        Rename(r"semantic_seg_conv\.", "semantic."),
        *(
            Rename(rf"maskiou_net\.maskiou_net\.{2 * i}\.", f"rescoring.convs.{i}.conv.")
            for i in range(5)
        ),
        Rename(r"maskiou_net\.maskiou_net\.10\.", "rescoring.classify."),
    ]


def _protonet_rules(source: str) -> list[Rule]:
    return [
        *(Rename(rf"{source}{2 * i}\.", f"protonet.convs.{i}.conv.") for i in range(3)),
        Rename(rf"{source}8\.", "protonet.refine.conv."),
        Rename(rf"{source}10\.", "protonet.project."),
    ]


def _mmdet_rules(cfg: YOLACTConfig) -> list[Rule]:
    order = anchors_last(cfg.anchors_per_cell)
    return [
        *prefixed(torchvision_rules(), "backbone.", "backbone."),
        Rename(r"neck\.lateral_convs\.(\d)\.conv\.", r"neck.lateral.\1.conv."),
        Rename(r"neck\.fpn_convs\.([0-2])\.conv\.", r"neck.output.\1.conv."),
        Rename(r"neck\.fpn_convs\.3\.conv\.", "neck.extra.0.conv."),
        Rename(r"neck\.fpn_convs\.4\.conv\.", "neck.extra.1.conv."),
        *_protonet_rules(r"mask_head\.protonet\."),
        Rename(r"bbox_head\.head_convs\.(\d)\.conv\.", r"head.tower.\1.conv."),
        Rows(r"bbox_head\.conv_cls\.", "head.outputs.classify.", order=order),
        Rows(r"bbox_head\.conv_reg\.", "head.outputs.regress.", order=order),
        Rows(r"bbox_head\.conv_coeff\.", "head.outputs.coefficients.", order=order),
        Rename(r"mask_head\.segm_branch\.segm_conv\.", "semantic."),
        Rename(r"segm_head\.segm_conv\.", "semantic."),  # before mmdet 3
    ]


def _infer_yolact(state: Mapping[str, Tensor]) -> dict[str, Any]:
    head = "prediction_layers.0."
    per_cell = rows_of(state, head + "bbox_layer.weight") // 4
    classes = rows_of(state, head + "conf_layer.weight") // per_cell - 1
    darknet = "backbone._preconv.0.weight" in state
    settings: dict[str, Any] = {
        "num_classes": classes,
        "in_channels": shape_of(
            state, "backbone._preconv.0.weight" if darknet else "backbone.conv1.weight"
        )[1],
        "backbone": "darknet53"
        if darknet
        else infer_resnet(state, "backbone.", stage=r"layers\.(\d)", first=0),
        "deform_interval": _deform_interval(state),
        "channels": rows_of(state, "fpn.lat_layers.0.weight"),
        "prototypes": rows_of(state, "proto_net.10.weight"),
        "conventions": "yolact",
        "scales_per_octave": per_cell // _RATIOS,
        "square_anchors": per_cell == _RATIOS,
        "with_rescoring": "maskiou_net.maskiou_net.0.weight" in state,
    }
    return settings | (_PASCAL if classes == PASCAL_CLASSES else {})


def _deform_interval(state: Mapping[str, Tensor]) -> int:
    """How far apart the deformable blocks of the longest stage that has some are; 0 for none."""
    pattern = re.compile(r"backbone\.layers\.(\d)\.(\d+)\.conv2\.conv_offset_mask\.weight$")
    found = sorted((int(m[1]), int(m[2])) for key in state if (m := pattern.match(key)))
    steps = [b - a for (s, a), (t, b) in pairwise(found) if s == t]
    return steps[0] if steps else (_MOST_BLOCKS if found else 0)  # one per stage: only the first


def _infer_mmdet(state: Mapping[str, Tensor]) -> dict[str, Any]:
    per_cell = rows_of(state, "bbox_head.conv_reg.weight") // 4
    return {
        "num_classes": rows_of(state, "bbox_head.conv_cls.weight") // per_cell - 1,
        "in_channels": shape_of(state, "backbone.conv1.weight")[1],
        "backbone": infer_resnet(state, "backbone."),
        "channels": rows_of(state, "neck.lateral_convs.0.conv.weight"),
        "prototypes": rows_of(state, "mask_head.protonet.10.weight"),
        "conventions": "mmdet",
        "scales_per_octave": per_cell // _RATIOS,
        "anchor_ratios": (0.5, 1.0, 2.0),
        "square_anchors": False,
    }


def _input(cfg: YOLACTConfig) -> InputSpec:
    side = _SIDES.get(int(cfg.anchor_sizes[0]), 550)
    spec = _UNIT_RGB if cfg.backbone == "darknet53" else YOLACT_RGB
    return replace(spec, resize=ResizeRule(fixed=(side, side)))


ORIGINS: dict[str, Origin] = {
    "yolact": Origin(rules=_yolact_rules, infer=_infer_yolact, input=_input),
    "mmdet": Origin(rules=_mmdet_rules, infer=_infer_mmdet, input=YOLACT_RGB),
}
