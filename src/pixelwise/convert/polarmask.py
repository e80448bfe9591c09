"""PolarMask checkpoints of its authors, in the naming of an early OpenMMLab."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from pixelwise.convert import Origin
from pixelwise.convert.detection import count, mmdet_convs, renamed_shapes
from pixelwise.convert.resnet import infer_resnet, torchvision_rules
from pixelwise.convert.rules import Rename, Reshape, Rule, prefixed
from pixelwise.spec import DETECTION_RGB, POLARMASK_BGR, InputSpec
from pixelwise.systems.polarmask import PolarMaskConfig

_MERGED = 3  # levels of the backbone in the pyramid; further ones follow
_MOST_LEVELS = 6
_FIRST_STRIDE, _FIRST_BOUND = 8, 64


def _rules() -> list[Rule]:
    outputs = {
        "polar_cls": "category.outputs.classify",
        "polar_centerness": "category.outputs.centerness",
        "polar_reg": "box.outputs.regress",
        "polar_mask": "mask.outputs.rays",
    }
    return [
        *prefixed(torchvision_rules(), "backbone.", "backbone."),
        Rename(r"neck\.lateral_convs\.(\d)\.conv\.", r"neck.lateral.\1.conv."),
        Rename(r"neck\.fpn_convs\.([0-2])\.conv\.", r"neck.output.\1.conv."),
        *(
            Rename(rf"neck\.fpn_convs\.{i}\.conv\.", f"neck.extra.{i - _MERGED}.conv.")
            for i in range(_MERGED, _MOST_LEVELS)
        ),
        *(
            rule
            for theirs, ours in (("cls", "category"), ("reg", "box"), ("mask", "mask"))
            for rule in mmdet_convs(
                rf"bbox_head\.{theirs}_convs", f"head.towers.{ours}.tower", norm="group"
            )
        ),
        *(Rename(rf"bbox_head\.{name}\.", f"head.towers.{to}.") for name, to in outputs.items()),
        *(
            Reshape(
                rf"bbox_head\.scales_{theirs}\.(\d)\.scale$",
                rf"head.scales.{ours}.\1",
                shape=lambda _: (1,),
                source=lambda _: (),
            )
            for theirs, ours in (("bbox", "regress"), ("mask", "rays"))
        ),
    ]


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    shapes = renamed_shapes(_rules(), state)
    backbone = infer_resnet(state, "backbone.")
    levels = _MERGED + count(shapes, r"neck\.extra\.(\d)\.")
    return {
        "num_classes": shapes["head.towers.category.outputs.classify.weight"][0],
        "in_channels": shapes["backbone.stem.0.conv.weight"][1],
        "backbone": backbone,
        # ResNets come from Caffe, ResNeXts from PyTorch.
        "backbone_style": "pytorch" if backbone.startswith("resnext") else "caffe",
        "channels": shapes["neck.lateral.0.conv.weight"][0],
        "head_convs": count(shapes, r"head\.towers\.category\.tower\.(\d)\."),
        "strides": tuple(_FIRST_STRIDE * 2**i for i in range(levels)),
        "range_bounds": tuple(_FIRST_BOUND * 2**i for i in range(levels - 1)),
        "rays": shapes["head.towers.mask.outputs.rays.weight"][0],
    }


def _input(cfg: PolarMaskConfig) -> InputSpec:
    if cfg.backbone_style == "pytorch":
        return replace(DETECTION_RGB, resize=POLARMASK_BGR.resize)
    return POLARMASK_BGR


ORIGINS: dict[str, Origin] = {"polarmask": Origin(rules=_rules(), infer=_infer, input=_input)}
