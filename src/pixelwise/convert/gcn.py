"""GCN checkpoints of zijundeng/pytorch-semantic-segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pixelwise.convert import Origin
from pixelwise.convert.resnet import infer_resnet
from pixelwise.convert.rules import Drop, Rename, Rule
from pixelwise.errors import ConversionError
from pixelwise.spec import IMAGENET_RGB

_LEVELS = 4
_FIRST = "gcm1.conv_l1.weight"


def _zijundeng_rules() -> list[Rule]:
    # layer1 is a sequence of the max-pool and torchvision's layer1.
    stages = {r"layer1\.1": "layer1", r"layer([234])": r"layer\1"}
    rules: list[Rule] = [
        Rename(r"layer0\.0\.", "backbone.stem.0.conv."),
        Rename(r"layer0\.1\.", "backbone.stem.0.norm."),
    ]
    for source, ours in stages.items():
        groups = source.count("(")
        block, part = (rf"\{groups + n}" for n in (1, 2))
        to = f"backbone.{ours}.{block}."
        rules += [
            Rename(source + r"\.(\d+)\.conv(\d)\.", f"{to}conv{part}."),
            Rename(source + r"\.(\d+)\.bn(\d)\.", f"{to}norm{part}."),
            Rename(source + r"\.(\d+)\.downsample\.0\.", f"{to}shortcut.conv."),
            Rename(source + r"\.(\d+)\.downsample\.1\.", f"{to}shortcut.norm."),
        ]
    # Theirs count from 1, the deepest level first, as ours do from 0.
    for i in range(_LEVELS):
        for branch, name in (("l", "down_across"), ("r", "across_down")):
            for half in (1, 2):
                source = rf"gcm{i + 1}\.conv_{branch}{half}\."
                rules.append(Rename(source, f"context.{i}.{name}.{half - 1}."))
    for i in range(2 * _LEVELS + 1):
        rules.append(Rename(rf"brm{i + 1}\.conv(\d)\.", rf"refine.{i}.conv\1.conv."))
    return [*rules, Drop(r"fc\.", "classifier of ImageNet")]


def _zijundeng_infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    if _FIRST not in state:
        raise ConversionError(f"the checkpoint has no {_FIRST!r}; is it of this origin and system?")
    # Under its own name, so that the stages are found by one pattern.
    stages = {key.replace("layer1.1.", "layer1."): value for key, value in state.items()}
    return {
        "num_classes": state[_FIRST].shape[0],
        "backbone": infer_resnet(stages),
        "in_channels": state["layer0.0.weight"].shape[1],
        "kernel": state[_FIRST].shape[2],
        "with_refinement": True,
        "upsample": "bilinear",
    }


ORIGINS: dict[str, Origin] = {
    "zijundeng": Origin(rules=_zijundeng_rules(), infer=_zijundeng_infer, input=IMAGENET_RGB),
}
