"""What the converters of the detectors share: OpenMMLab's rules, and settings read from shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from pixelwise.convert.resnet import torchvision_rules
from pixelwise.convert.rules import Drop, Rename, Rule, prefixed
from pixelwise.errors import ConversionError
from pixelwise.spec import CAFFE_BGR, DETECTION_RGB, InputSpec

Shapes = dict[str, tuple[int, ...]]

CAFFE_DETECTION = replace(CAFFE_BGR, resize=DETECTION_RGB.resize)
# The mean of Detectron and its descendants, older than that of detectron2.
DETECTRON_BGR = replace(CAFFE_DETECTION, mean=(102.9801, 115.9465, 122.7717))


def mmdet_input(cfg: Any) -> InputSpec:
    """OpenMMLab feeds "caffe" ResNets as Caffe did, all others in RGB."""
    return CAFFE_DETECTION if cfg.backbone_style == "caffe" else DETECTION_RGB


def mmdet_rules(*, backbone: str | None, neck: str | None, heads: str | None) -> list[Rule]:
    """Rules of OpenMMLab's naming, where the kind of a norm is part of its name.

    Args:
        backbone: kind of its norms; "group" is gn, any other bn.
        neck:     kind of the pyramid's norms, likewise.
        heads:    kind of the heads' norms, likewise.
    """
    resnet = torchvision_rules()
    body = with_group_norm(resnet) if backbone == "group" else resnet
    return [
        *prefixed(body, "backbone.", "backbone."),
        *prefixed(body, "roi_head.shared_head.", "region_stage."),
        *mmdet_convs(r"neck\.lateral_convs", "neck.lateral", norm=neck),
        *mmdet_convs(r"neck\.fpn_convs", "neck.output", norm=neck),
        *mmdet_convs(r"roi_head\.bbox_head\.shared_convs", "box_head.trunk.convs", norm=heads),
        *mmdet_convs(r"roi_head\.mask_head\.convs", "mask_head.convs", norm=heads),
        Rename(r"rpn_head\.rpn_conv\.(weight|bias)$", r"rpn.convs.0.conv.\1"),
        Rename(r"rpn_head\.rpn_conv\.(\d)\.conv\.", r"rpn.convs.\1.conv."),
        Rename(r"rpn_head\.rpn_cls\.", r"rpn.objectness."),
        Rename(r"rpn_head\.rpn_reg\.", r"rpn.deltas."),
        Rename(r"roi_head\.bbox_head\.shared_fcs\.(\d)\.", r"box_head.trunk.fcs.\1."),
        Rename(r"roi_head\.bbox_head\.fc_cls\.", r"box_head.classify."),
        Rename(r"roi_head\.bbox_head\.fc_reg\.", r"box_head.regress."),
        Rename(r"roi_head\.mask_head\.upsample\.", r"mask_head.upsample."),
        Rename(r"roi_head\.mask_head\.conv_logits\.", r"mask_head.class_logits."),
    ]


def mmdet_convs(theirs: str, ours: str, *, norm: str | None) -> list[Rule]:
    """Rules of a list of OpenMMLab's convolutions with their norms.

    Args:
        theirs: pattern of the list's name.
        ours:   name of our list of `ConvNormAct`.
        norm:   "group" is gn, any other bn.
    """
    name = "gn" if norm == "group" else "bn"
    return [
        Rename(rf"{theirs}\.(\d)\.conv\.", rf"{ours}.\1.conv."),
        Rename(rf"{theirs}\.(\d)\.{name}\.", rf"{ours}.\1.norm."),
    ]


def with_group_norm(rules: Iterable[Rule]) -> list[Rule]:
    """The same rules for a network whose norms are called `gn` instead of `bn` (OpenMMLab)."""
    return [replace(rule, pattern=rule.pattern.replace("bn", "gn")) for rule in rules]


def renamed_shapes(rules: Sequence[Rule], state: Mapping[str, Tensor]) -> Shapes:
    """Shapes of the source's tensors under the names that rules give them.

    So settings are read from one vocabulary, ours, whatever the origin. Rows are those of the
    source. Keys that no rule covers are left out; `translate` lists them later.
    """
    shapes: Shapes = {}
    for key, value in state.items():
        for rule in rules:
            match = None if isinstance(rule, Drop) else re.match(rule.pattern, key)
            if match and isinstance(rule, Rename):
                shapes[match.expand(rule.to) + key[match.end() :]] = tuple(value.shape)
                break
    return shapes


def mask_rcnn_shapes(rules: Sequence[Rule], state: Mapping[str, Tensor]) -> Shapes:
    """The same for a Mask R-CNN and what grew out of it.

    Raises:
        ConversionError: there are no heads of one.
    """
    shapes = renamed_shapes(rules, state)
    for part, key in {
        "backbone": "backbone.stem.0.conv.weight",
        "class layer": "box_head.classify.weight",
        "mask layer": "mask_head.class_logits.weight",
        "mask upsampling": "mask_head.upsample.weight",
    }.items():
        if key not in shapes:
            raise ConversionError(
                f"the checkpoint has no {part} of a Mask R-CNN of this origin "
                f"(its keys begin with {', '.join(list(state)[:3])}); check origin and name"
            )
    return shapes


def shared_settings(shapes: Shapes, *, counter_means: str) -> dict[str, Any]:
    """What shapes tell about any system that grew out of Mask R-CNN with a pyramid.

    Args:
        shapes: by our names; rows are the source's, with a background class.
        counter_means: the kind of the backbone's norms where their statistics have a counter.
    """
    with_convs = "box_head.trunk.convs.0.conv.weight" in shapes
    return {
        "in_channels": shapes["backbone.stem.0.conv.weight"][1],
        "backbone_norm": norm_kind(shapes, "backbone.stem.0.norm", counter_means=counter_means),
        "channels": shapes["mask_head.upsample.weight"][1],
        "num_classes": shapes["box_head.classify.weight"][0] - 1,
        "box_head": "4conv1fc" if with_convs else "2fc",
    }


def head_norm(shapes: Shapes, *modules: str) -> str | None:
    """The norm of the first of these lists of convolutions that has one."""
    for module in modules:
        kind = norm_kind(shapes, f"{module}.0.norm", counter_means="batch")
        if kind is not None:
            return "batch" if kind == "frozen" else kind
    return None


def count(shapes: Shapes, pattern: str) -> int:
    """How many different first groups a pattern finds at the start of the keys."""
    return len({m[1] for key in shapes if (m := re.match(pattern, key))})


def norm_kind(shapes: Shapes, module: str, *, counter_means: str) -> str | None:
    """Which norm a module is.

    Args:
        shapes: by our names.
        module: name of the norm.
        counter_means: the kind where batch statistics come with a counter.

    Returns:
        "frozen" for statistics without a counter, "group" for none, None where there is no norm.
    """
    if f"{module}.weight" not in shapes:
        return None
    if f"{module}.running_mean" not in shapes:
        return "group"
    return counter_means if f"{module}.num_batches_tracked" in shapes else "frozen"
