"""FCIS checkpoints of its authors, whose MXNet names have `.weight` for `_weight` and so on.

Norms are named as in PyTorch: `gamma` is `.weight`, `beta` `.bias`, `moving_mean` `.running_mean`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from pixelwise.convert import Origin
from pixelwise.convert.detection import renamed_shapes
from pixelwise.convert.resnet import infer_resnet
from pixelwise.convert.rules import Rename, Rows, Rule, prefixed, roll
from pixelwise.convert.shapes import rows_of, shape_of
from pixelwise.errors import ConversionError
from pixelwise.spec import FCIS_BGR
from pixelwise.systems.fcis import FCISConfig

# Of the released networks: 21 x 21 cells of 7 x 7 parts, and a largest anchor of 512 px.
CELLS_PER_PART, LARGEST_ANCHOR_PX, RATIOS = 3, 512, 3


def caffe_resnet_rules(*, numbered: bool) -> list[Rule]:
    """Rules for the ResNets of their authors: `res2a_branch2a`, blocks as letters.

    Args:
        numbered: the middle stages have so many blocks (ResNet-101 and deeper) that after the first
            they are called b1, b2 and so on.
    """
    rules: list[Rule] = [
        Rename(r"conv1\.", "stem.0.conv."),
        Rename(r"bn_conv1\.", "stem.0.norm."),
    ]
    for stage in (2, 3, 4, 5):
        with_numbers = numbered and stage in (3, 4)
        names = {letter: str(i) for i, letter in enumerate("a" if with_numbers else "abcdef")}
        if with_numbers:
            names[r"b(\d+)"] = r"\1"
        for name, block in names.items():
            source, ours = rf"{stage}{name}_branch", rf"layer{stage - 1}.{block}."
            for theirs, kind in (("res", "conv"), ("bn", "norm")):
                rules.append(Rename(rf"{theirs}{source}1\.", f"{ours}shortcut.{kind}."))
                rules += [
                    Rename(rf"{theirs}{source}2{letter}\.", f"{ours}{kind}{i}.")
                    for i, letter in enumerate("abc", start=1)
                ]
    return rules


def _rules(cfg: FCISConfig) -> list[Rule]:
    numbered = cfg.backbone in ("resnet101", "resnet152")
    return [
        *prefixed(caffe_resnet_rules(numbered=numbered), "", "backbone."),
        Rename(r"rpn_conv_3x3\.", "rpn.convs.0.conv."),
        Rename(r"rpn_cls_score\.", "rpn.objectness."),
        Rename(r"rpn_bbox_pred\.", "rpn.deltas."),
        Rename(r"conv_new_1\.", "score_maps.reduce.conv."),
        # Its class 0 is the background: last in ours.
        Rows(r"fcis_cls_seg\.", "score_maps.class_maps.", order=roll(2 * cfg.parts**2)),
        Rename(r"fcis_bbox\.", "score_maps.box_maps."),
    ]


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    parts, blocks = _infer_parts(rows_of(state, "fcis_bbox.weight"))
    maps = rows_of(state, "fcis_cls_seg.weight")
    if maps % (2 * parts**2):
        raise ConversionError(f"{maps} class maps are no pairs of {parts} x {parts} parts")
    per_ratio = rows_of(state, "rpn_cls_score.weight") // (2 * RATIOS)
    with_small = per_ratio > 3  # the settings for COCO
    return {
        "num_classes": maps // (2 * parts**2) - 1,
        "in_channels": shape_of(state, "conv1.weight")[1],
        "backbone": _infer_backbone(state),
        "parts": parts,
        "mask_side": CELLS_PER_PART * parts,
        "assembling": "pool",
        "box_blocks": blocks,
        "width": rows_of(state, "conv_new_1.weight"),
        "rpn_width": rows_of(state, "rpn_conv_3x3.weight"),
        "anchor_sizes": tuple(LARGEST_ANCHOR_PX >> i for i in reversed(range(per_ratio))),
        "with_ohem": with_small,
        "min_side_px": 2.0 if with_small else 16.0,
    }


def _infer_parts(maps: int) -> tuple[int, int]:
    """Parts per side, and blocks of four, from the number of box maps; no number fits both."""
    for blocks in (1, 2):
        parts = isqrt(maps // (4 * blocks))
        if 4 * blocks * parts**2 == maps:
            return parts, blocks
    raise ConversionError(f"{maps} box maps are not four or eight for each part of a square grid")


def _infer_backbone(state: Mapping[str, Tensor]) -> str:
    numbered = any(key.startswith("res4b1_") for key in state)
    shapes = renamed_shapes(caffe_resnet_rules(numbered=numbered), state)
    return infer_resnet({key: torch.empty(s, device="meta") for key, s in shapes.items()})


ORIGINS: dict[str, Origin] = {
    "fcis": Origin(rules=_rules, infer=_infer, input=FCIS_BGR),
}
