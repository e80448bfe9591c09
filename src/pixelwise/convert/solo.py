"""SOLO checkpoints of OpenMMLab (mmdet) and of the authors' repository ("solo")."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

from torch import Tensor

from pixelwise.convert import Origin
from pixelwise.convert.resnet import infer_resnet, torchvision_rules
from pixelwise.convert.rules import Rename, Rule, prefixed
from pixelwise.convert.shapes import State, count_of, first_of, rows_of, shape_of
from pixelwise.errors import ConversionError
from pixelwise.spec import DETECTION_RGB, SOLO_LIGHT_RGB, InputSpec
from pixelwise.systems import SYSTEMS
from pixelwise.systems.solo import SOLOConfig

# Published with each form; shapes cannot tell them. SOLOv2's light form has 2 convolutions.
_LIGHT_SCALES = SYSTEMS["decoupled_solo_light"].config.scale_ranges
_LIGHT_V2_SCALES = ((1, 56), (28, 112), (56, 224), (112, 448), (224, 896))
_LIGHT_V2_CONVS = 2


@dataclass(frozen=True)
class Names:
    """What one project calls the parts of the heads; all as prefixes of keys.

    Args:
        classify:   last convolution of the categories.
        tower:      of the categories.
        masks:      tower of the full and of the light form, and up to "_x" and "_y" of the others.
        cells:      last convolutions of the full form, one per level.
        axes:       those of the decoupled and light forms, up to "_x" and "_y".
        kernel_tower, kernels: of SOLOv2.
        features, merge: levels and last convolution of SOLOv2's mask features.
        decoupled_classify: `classify` of the decoupled and light forms.
    """

    classify: str
    tower: str
    masks: str
    cells: str
    axes: str
    kernel_tower: str
    kernels: str
    features: str
    merge: str
    decoupled_classify: str


MMDET = Names(
    classify="mask_head.conv_cls",
    tower="mask_head.cls_convs",
    masks="mask_head.mask_convs",
    cells="mask_head.conv_mask_list",
    axes="mask_head.conv_mask_list",
    kernel_tower="mask_head.kernel_convs",
    kernels="mask_head.conv_kernel",
    features="mask_head.mask_feature_head.convs_all_levels",
    merge="mask_head.mask_feature_head.conv_pred",
    decoupled_classify="mask_head.conv_cls",
)
SOLO = Names(
    classify="bbox_head.solo_cate",
    tower="bbox_head.cate_convs",
    masks="bbox_head.ins_convs",
    cells="bbox_head.solo_ins_list",
    axes="bbox_head.dsolo_ins_list",
    kernel_tower="bbox_head.kernel_convs",
    kernels="bbox_head.solo_kernel",
    features="mask_feat_head.convs_all_levels",
    merge="mask_feat_head.conv_pred.0",
    decoupled_classify="bbox_head.dsolo_cate",
)


def _numbered(theirs: str, ours: str) -> Rename:
    return Rename(_literal(theirs) + r"\.(\d)\.", ours + r".\1.")


def _tower(theirs: str, ours: str) -> list[Rule]:
    return [
        Rename(_literal(theirs) + rf"\.(\d)\.{part}\.", rf"{ours}.\1.{to}.")
        for part, to in (("conv", "conv"), ("gn", "norm"))
    ]


def _literal(key: str) -> str:
    return key.replace(".", r"\.")


def _rules(names: Names, form: str) -> list[Rule]:
    split = form in ("decoupled", "light")
    classify = names.decoupled_classify if split else names.classify
    rules: list[Rule] = [
        *prefixed(torchvision_rules(), "backbone.", "backbone."),
        Rename(r"neck\.lateral_convs\.(\d)\.conv\.", r"neck.lateral.\1.conv."),
        Rename(r"neck\.fpn_convs\.(\d)\.conv\.", r"neck.output.\1.conv."),
        *_tower(names.tower, "categories.tower"),
        Rename(_literal(classify) + r"\.", "categories.classify."),
    ]
    if split:
        rules += [
            _numbered(f"{names.axes}_x", "masks.columns"),
            _numbered(f"{names.axes}_y", "masks.rows"),
        ]
    if form == "full":
        rules += [*_tower(names.masks, "masks.tower"), _numbered(names.cells, "masks.cells")]
    elif form == "light":
        rules += _tower(names.masks, "masks.towers.0")
    elif form == "decoupled":
        rules += _tower(f"{names.masks}_x", "masks.towers.0")
        rules += _tower(f"{names.masks}_y", "masks.towers.1")
    else:
        rules += [
            *_tower(names.kernel_tower, "masks.tower"),
            Rename(_literal(names.kernels) + r"\.", "masks.kernels."),
        ]
        for part, to in (("conv", "conv"), ("gn", "norm")):
            rules += [
                Rename(
                    _literal(names.features) + rf"\.(\d)\.conv(\d)\.{part}\.",
                    rf"masks.features.levels.\1.\2.{to}.",
                ),
                Rename(_literal(names.merge) + rf"\.{part}\.", f"masks.features.merge.{to}."),
            ]
    return rules


def _form(state: State, names: Names) -> str:
    for form, key in {
        "dynamic": f"{names.kernels}.weight",
        "decoupled": f"{names.masks}_x.0.conv.weight",
        "light": f"{names.axes}_x.0.weight",
        "full": f"{names.cells}.0.weight",
    }.items():
        if key in state:
            return form
    raise ConversionError(
        f"the checkpoint has no mask branch of SOLO (such as {names.cells}.0.weight); "
        "check origin and name"
    )


def _infer(names: Names) -> Callable[[Mapping[str, Tensor]], dict[str, Any]]:
    def infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
        form = _form(state, names)
        channels = rows_of(state, "neck.lateral_convs.0.conv.weight")
        tower = {
            "dynamic": names.kernel_tower,
            "decoupled": f"{names.masks}_x",
        }.get(form, names.masks)
        classify = first_of(
            state, [f"{names.classify}.weight", f"{names.decoupled_classify}.weight"]
        )
        settings: dict[str, Any] = {
            "form": form,
            "backbone": infer_resnet(state, "backbone."),
            "in_channels": shape_of(state, "backbone.conv1.weight")[1],
            "channels": channels,
            "num_classes": rows_of(state, classify),
            "head_width": rows_of(state, f"{names.tower}.0.conv.weight"),
            "head_convs": count_of(state, _literal(names.tower) + r"\.(\d+)\."),
            "with_coords": shape_of(state, f"{tower}.0.conv.weight")[1] > channels,
        }
        return settings | _of_form(state, names, form, settings["head_convs"])

    return infer


def _of_form(state: State, names: Names, form: str, convs: int) -> dict[str, Any]:
    """Settings that only some forms have; grids of SOLOv2 are in no shape."""
    default = SOLOConfig()
    if form == "dynamic":
        light = convs == _LIGHT_V2_CONVS
        return {
            "kernel_width": rows_of(state, f"{names.kernels}.weight"),
            "scale_ranges": _LIGHT_V2_SCALES if light else default.scale_ranges,
        }
    outputs = names.cells if form == "full" else f"{names.axes}_x"
    levels = count_of(state, _literal(outputs) + r"\.(\d+)\.")
    rows = [rows_of(state, f"{outputs}.{level}.weight") for level in range(levels)]
    return {
        "grids": tuple(isqrt(n) for n in rows) if form == "full" else tuple(rows),
        "scale_ranges": _LIGHT_SCALES if form == "light" else default.scale_ranges,
    }


def _input(cfg: SOLOConfig) -> InputSpec:
    return SOLO_LIGHT_RGB if cfg.form == "light" else DETECTION_RGB


ORIGINS: dict[str, Origin] = {
    "mmdet": Origin(rules=lambda cfg: _rules(MMDET, cfg.form), infer=_infer(MMDET), input=_input),
    "solo": Origin(rules=lambda cfg: _rules(SOLO, cfg.form), infer=_infer(SOLO), input=_input),
}
