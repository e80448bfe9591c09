"""BlendMask checkpoints of AdelaiDet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

from torch import Tensor

from pixelwise.convert import Origin
from pixelwise.convert.adelaidet import fcos_rules, fcos_settings
from pixelwise.convert.detection import CAFFE_DETECTION
from pixelwise.convert.rules import Rename, Rows, Rule, roll
from pixelwise.convert.shapes import rows_of
from pixelwise.spec import InputSpec, ResizeRule
from pixelwise.systems.blendmask import MERGED_LEVELS, BlendMaskConfig

_TOWER = "basis_module.tower."
# The 550 models and the real-time ones have fewer levels, and see smaller pictures.
_SIDES = {4: (550, 916), 3: (512, 736)}


def _rules(cfg: BlendMaskConfig) -> list[Rule]:
    # The tower's list goes on after its convolutions: upsampling, one more, projection.
    places = {i: f"convs.{i}" for i in range(cfg.bottom_convs)} | {cfg.bottom_convs + 1: "refine"}
    pairs = [
        *((rf"refine\.{i}", f"bottom.lateral.{i}") for i in range(3)),
        *((rf"tower\.{place}", f"bottom.{name}") for place, name in places.items()),
    ]
    convs = [
        Rename(rf"basis_module\.{theirs}\.{place}\.", f"{ours}.{part}.")
        for theirs, ours in pairs
        for place, part in ((0, "conv"), (1, "norm"))
    ]
    branch = r"basis_module\.seg_head\."
    return [
        *fcos_rules(),
        *convs,
        Rename(rf"basis_module\.tower\.{cfg.bottom_convs + 2}\.", "bottom.project."),
        *(
            Rename(rf"{branch}{3 * i + place}\.", f"semantic.{i}.{part}.")
            for i in range(2)
            for place, part in ((0, "conv"), (1, "norm"))
        ),
        Rows(branch + r"6\.", "semantic.2.", order=roll(1)),  # their class 0 is "no object"
        Rename(r"top_layer\.", "attention."),
    ]


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    settings = fcos_settings(state)
    extra, _ = settings.pop("extra_levels"), settings.pop("with_scales")
    pattern = re.compile(re.escape(_TOWER) + r"(\d+)\.0\.weight$")
    convs = len([key for key in state if pattern.match(key)]) - 1
    bases = rows_of(state, f"{_TOWER}{convs + 2}.weight")
    return {
        **settings,
        "backbone_style": "caffe",
        "levels": MERGED_LEVELS + extra,
        "bottom": "protonet",
        "bottom_convs": convs,
        "bottom_width": rows_of(state, "basis_module.refine.0.0.weight"),
        "bases": bases,
        "attention_side": isqrt(rows_of(state, "top_layer.weight") // bases),
    }


def _input(cfg: BlendMaskConfig) -> InputSpec:
    if cfg.levels not in _SIDES:
        return CAFFE_DETECTION
    short, long = _SIDES[cfg.levels]
    return replace(
        CAFFE_DETECTION, resize=ResizeRule(short_side=short, long_side=long, pad_divisor=32)
    )


ORIGINS: dict[str, Origin] = {"adelaidet": Origin(rules=_rules, infer=_infer, input=_input)}
