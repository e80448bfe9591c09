"""GCN checkpoints of zijundeng/pytorch-semantic-segmentation."""

from __future__ import annotations

from typing import Any

from pixelwise.convert import Origin
from pixelwise.convert.resnet import infer_resnet
from pixelwise.convert.rules import Rename, Rule
from pixelwise.convert.shapes import State, shape_of
from pixelwise.spec import IMAGENET_RGB

_LEVELS = 4


def _backbone_rules() -> list[Rule]:
    """Their `layer0` is torchvision's stem, and their `layer1` begins with its max-pool."""
    rules: list[Rule] = [
        Rename(r"layer0\.0\.", "backbone.stem.0.conv."),
        Rename(r"layer0\.1\.", "backbone.stem.0.norm."),
    ]
    for stage, sequence in {1: r"layer1\.1", 2: "layer2", 3: "layer3", 4: "layer4"}.items():
        block = rf"backbone.layer{stage}.\1."
        rules += [
            Rename(rf"{sequence}\.(\d+)\.conv(\d)\.", rf"{block}conv\2."),
            Rename(rf"{sequence}\.(\d+)\.bn(\d)\.", rf"{block}norm\2."),
            Rename(rf"{sequence}\.(\d+)\.downsample\.0\.", f"{block}shortcut.conv."),
            Rename(rf"{sequence}\.(\d+)\.downsample\.1\.", f"{block}shortcut.norm."),
        ]
    return rules


def _head_rules() -> list[Rule]:
    """Theirs count from 1, the deepest level first, as ours do from 0."""
    rules: list[Rule] = []
    for i in range(_LEVELS):
        for branch, name in (("l", "down_across"), ("r", "across_down")):
            for half in (1, 2):
                source = rf"gcm{i + 1}\.conv_{branch}{half}\."
                rules.append(Rename(source, f"context.{i}.{name}.{half - 1}."))
    for i in range(2 * _LEVELS + 1):
        rules.append(Rename(rf"brm{i + 1}\.conv(\d)\.", rf"refine.{i}.conv\1.conv."))
    return rules


def _infer(state: State) -> dict[str, Any]:
    classes, _, kernel, _ = shape_of(state, "gcm1.conv_l1.weight")
    # Under its own name, so that the stages are found by one pattern.
    stages = {key.replace("layer1.1.", "layer1."): value for key, value in state.items()}
    return {
        "num_classes": classes,
        "backbone": infer_resnet(stages),
        "in_channels": shape_of(state, "layer0.0.weight")[1],
        "kernel": kernel,
        "with_refinement": True,
        "upsample": "bilinear",
    }


ORIGINS: dict[str, Origin] = {
    "zijundeng": Origin(
        rules=[*_backbone_rules(), *_head_rules()], infer=_infer, input=IMAGENET_RGB
    ),
}
