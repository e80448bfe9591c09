"""What all networks of mmsegmentation share: the ResNet backbone and the auxiliary head."""

from __future__ import annotations

from typing import Any

from pixelwise.convert.resnet import infer_resnet, infer_stem, torchvision_rules
from pixelwise.convert.rules import Rename, Rule, prefixed
from pixelwise.convert.shapes import State, shape_of

# mmcv's convolution modules: their parts and the parts of our `ConvNormAct`.
PARTS = {"conv": "conv", "bn": "norm"}


def backbone_rules(style: str | None, source: str = "backbone.") -> list[Rule]:
    """From the prefix `source` to "backbone."; the style is what `infer_backbone` found."""
    stem = "sequence" if style in ("v1c", "v1d") else "plain"
    rules = torchvision_rules(stem=stem, avg_down=style == "v1d")
    return prefixed(rules, source, "backbone.")


def block_rules(blocks: dict[str, str]) -> list[Rule]:
    """Rules for convolution modules: from the pattern of each to our module."""
    return [
        Rename(rf"{source}\.{theirs}\.", f"{ours}.{part}.")
        for source, ours in blocks.items()
        for theirs, part in PARTS.items()
    ]


def auxiliary_rules() -> list[Rule]:
    """The auxiliary head, an `FCNHead` of ours under "auxiliary."."""
    return [
        *block_rules({r"auxiliary_head\.convs\.0": "auxiliary.fuse"}),
        Rename(r"auxiliary_head\.conv_seg\.", "auxiliary.classify."),
    ]


def infer_backbone(state: State, prefix: str = "backbone.") -> dict[str, Any]:
    """The config fields `backbone`, `backbone_style` and `in_channels`."""
    first = f"{prefix}stem.0.weight"
    first = first if first in state else f"{prefix}conv1.weight"
    stem = infer_stem(state, prefix)
    return {
        "in_channels": shape_of(state, first)[1],
        "backbone": infer_resnet(state, prefix),
        "backbone_style": "mmseg" if stem == "pytorch" else stem,
    }


def infer_aux_weight(state: State) -> dict[str, float]:
    """The config field `aux_weight`: mmseg's 0.4 where the checkpoint has such a head."""
    return {"aux_weight": 0.4 if "auxiliary_head.conv_seg.weight" in state else 0.0}


def infer_auxiliary(state: State) -> dict[str, Any]:
    """The config fields `aux_weight` and, with such a head, `aux_width`."""
    found: dict[str, Any] = {**infer_aux_weight(state)}
    if found["aux_weight"]:
        found["aux_width"] = shape_of(state, "auxiliary_head.convs.0.conv.weight")[0]
    return found
