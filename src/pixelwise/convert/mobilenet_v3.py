"""MobileNetV3 keys of torchvision: of a classifier, or of a segmentation network's backbone."""

from __future__ import annotations

from pixelwise.convert.rules import Drop, Rename, Rule, prefixed
from pixelwise.nn.backbones.mobilenet_v3 import MOBILENETS


def torchvision_mobilenet_rules(name: str = "mobilenet_v3_large") -> list[Rule]:
    """Rules for the keys below "features." of a classifier, "backbone." of a segmentation network.

    Args:
        name: row of `MOBILENETS`.
    """
    rows = MOBILENETS[name]
    rules = [*_block("0", "stem"), *_block(str(len(rows) + 1), "head")]
    width = 16
    for i, row in enumerate(rows):
        # Their parts are numbered; the first block has no expansion, some have no squeeze.
        parts = ["expand"] if row.inner != width else []
        parts += ["depthwise", *(["squeeze"] if row.squeeze else []), "project"]
        for number, part in enumerate(parts):
            source, ours = rf"{i + 1}\.block\.{number}", f"blocks.{i}.{part}"
            if part == "squeeze":
                rules += [
                    Rename(rf"{source}\.fc1\.", f"{ours}.reduce."),
                    Rename(rf"{source}\.fc2\.", f"{ours}.expand."),
                ]
            else:
                rules += _block(source, ours)
        width = row.channels
    return rules


def torchvision_classifier_rules(name: str = "mobilenet_v3_large") -> list[Rule]:
    """The same for a classifier of ImageNet, whose end is left out."""
    return [
        *prefixed(torchvision_mobilenet_rules(name), "features.", ""),
        Drop(r"classifier\.", "classifier of ImageNet"),
    ]


def _block(source: str, ours: str) -> list[Rule]:
    """A convolution and its norm, numbered 0 and 1."""
    return [
        Rename(rf"{source}\.0\.", f"{ours}.conv."),
        Rename(rf"{source}\.1\.", f"{ours}.norm."),
    ]
