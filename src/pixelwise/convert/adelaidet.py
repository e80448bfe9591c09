"""What checkpoints of AdelaiDet share: FCOS on detectron2's backbones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pixelwise.convert.detection import Shapes, count, norm_kind, renamed_shapes
from pixelwise.convert.resnet import detectron2_rules, infer_resnet
from pixelwise.convert.rules import Drop, Rename, Rule, prefixed

_MOST_CONVS = 8  # of a tower
_HEAD = r"proposal_generator\.fcos_head\."


def fcos_rules() -> list[Rule]:
    """Rules from AdelaiDet's FCOS to a backbone, a `OneStageFPN` and a `TowerHead`.

    The head's towers are "category" and "box"; centerness is an output of the latter.
    """
    return [
        *prefixed(detectron2_rules(), "backbone.bottom_up.", "backbone."),
        *(
            Rename(rf"backbone\.fpn_{name}{i + 3}\.", f"neck.{name}.{i}.conv.")
            for name in ("lateral", "output")
            for i in range(3)
        ),
        *(Rename(rf"backbone\.top_block\.p{i + 6}\.", f"neck.extra.{i}.conv.") for i in range(2)),
        *_tower_rules("share_tower", "head.shared"),
        *_tower_rules("cls_tower", "head.towers.category.tower"),
        *_tower_rules("bbox_tower", "head.towers.box.tower"),
        Rename(_HEAD + r"cls_logits\.", "head.towers.category.outputs.classify."),
        Rename(_HEAD + r"bbox_pred\.", "head.towers.box.outputs.regress."),
        Rename(_HEAD + r"ctrness\.", "head.towers.box.outputs.centerness."),
        Rename(_HEAD + r"scales\.(\d)\.scale$", r"head.scales.regress.\1"),
        Drop(r"pixel_(mean|std)$", "preprocessing belongs to the input spec"),
    ]


def _tower_rules(theirs: str, ours: str) -> list[Rule]:
    """A tower is convolution, norm, ReLU, convolution, ..."""
    return [
        Rename(rf"{_HEAD}{theirs}\.{3 * i + place}\.", f"{ours}.{i}.{part}.")
        for i in range(_MOST_CONVS)
        for place, part in ((0, "conv"), (1, "norm"))
    ]


def fcos_settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes of an FCOS tell, by the names that our configs use."""
    shapes: Shapes = renamed_shapes(fcos_rules(), state)
    return {
        "num_classes": shapes["head.towers.category.outputs.classify.weight"][0],
        "in_channels": shapes["backbone.stem.0.conv.weight"][1],
        "backbone": infer_resnet(state, "backbone.bottom_up.", stage=r"res(\d)", first=2),
        "backbone_norm": norm_kind(shapes, "backbone.stem.0.norm", counter_means="sync"),
        "channels": shapes["neck.lateral.0.conv.weight"][0],
        "extra_levels": count(shapes, r"neck\.extra\.(\d)\."),
        "head_convs": count(shapes, r"head\.towers\.category\.tower\.(\d)\."),
        "shared_convs": count(shapes, r"head\.shared\.(\d)\."),
        "with_scales": "head.scales.regress.0" in shapes,
    }
