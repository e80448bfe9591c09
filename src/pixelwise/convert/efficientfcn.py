"""EfficientFCN checkpoints of its authors."""

from __future__ import annotations

from typing import Any

from pixelwise.convert import Origin
from pixelwise.convert.resnet import infer_resnet, torchvision_rules
from pixelwise.convert.rules import Rename, Rule, prefixed
from pixelwise.convert.shapes import State, rows_of, shape_of
from pixelwise.spec import IMAGENET_RGB

# Sequence of the head and position of a convolution in it, whose norm follows.
_BLOCKS = {
    (r"conv40", 0): "fusion.compress16",
    (r"conv50", 0): "fusion.compress32",
    (r"hgdmodule0\.conv_cat", 0): "codebook.base",
    (r"hgdmodule0\.conv_center", 0): "codebook.spread.0",
    (r"hgdmodule0\.conv_center", 3): "codebook.spread.1",
    (r"hgdmodule0\.conv_affinity0", 0): "assembly.guide",
    (r"hgdmodule0\.conv_affinity1", 0): "assembly.coefficients.0",
    (r"hgdmodule0\.conv_affinity1", 3): "assembly.coefficients.1",
    (r"hgdmodule0\.conv_up", 0): "join",
}


def _rules() -> list[Rule]:
    rules: list[Rule] = prefixed(
        torchvision_rules(stem="timm_deep", avg_down=True), "pretrained.", "backbone."
    )
    for (sequence, position), ours in _BLOCKS.items():
        rules += [
            Rename(rf"head\.{sequence}\.{position}\.", f"{ours}.conv."),
            Rename(rf"head\.{sequence}\.{position + 1}\.", f"{ours}.norm."),
        ]
    return [*rules, Rename(r"head\.conv_pred3\.1\.", "classify.")]


def _infer(state: State) -> dict[str, Any]:
    module = "head.hgdmodule0."
    return {
        "num_classes": rows_of(state, "head.conv_pred3.1.weight"),
        "backbone": infer_resnet(state, "pretrained."),
        "in_channels": shape_of(state, "pretrained.conv1.0.weight")[1],
        "compress_width": rows_of(state, "head.conv50.0.weight"),
        "codewords": rows_of(state, module + "conv_center.0.weight"),
        "codeword_width": rows_of(state, module + "conv_cat.0.weight"),
    }


ORIGINS: dict[str, Origin] = {
    "efficientfcn": Origin(rules=_rules(), infer=_infer, input=IMAGENET_RGB),
}
