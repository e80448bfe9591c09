"""ResNet keys of other projects, and what their shapes tell; shared by the systems' tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from pixelwise.convert.rules import Drop, Rename, Rule
from pixelwise.errors import ConversionError
from pixelwise.nn.backbones.resnet import RESNETS

Stem = Literal["plain", "sequence", "timm_deep"]
_CLASSIFIER = Drop(r"fc\.", "classifier of ImageNet")
_DEEPLAB_PYTORCH_CONVS = {"reduce": 1, "conv3x3": 2, "increase": 3}


def torchvision_rules(
    *, stem: Stem = "plain", stem_name: str = "stem", avg_down: bool = False, stages: int = 4
) -> list[Rule]:
    r"""Rules for torchvision's naming, which mmseg, mmdet, timm, smp and semseg share.

    Args:
        stem:      "plain": `conv1`, `bn1`; "sequence": three convolutions, norms and ReLUs as one
                   sequence under `stem_name`; "timm_deep": `conv1.0` … `conv1.6`, then `bn1`.
        stem_name: of the sequence: "stem" (mmseg), "layer0" (semseg).
        avg_down:  the shortcut starts with a pool, so its convolution is number 1.
        stages:    number that the network uses; those after are left out.
    """
    conv, norm = (1, 2) if avg_down else (0, 1)
    layer = rf"layer([1-{stages}])\.(\d+)\."
    unused = [] if stages == 4 else [Drop(rf"layer[{stages + 1}-4]\.", "stage that is not used")]
    return [
        *_stem_rules(stem, stem_name),
        Rename(layer + r"conv(\d)\.", r"layer\1.\2.conv\3."),
        Rename(layer + r"bn(\d)\.", r"layer\1.\2.norm\3."),
        Rename(layer + rf"downsample\.{conv}\.", r"layer\1.\2.shortcut.conv."),
        Rename(layer + rf"downsample\.{norm}\.", r"layer\1.\2.shortcut.norm."),
        *unused,
        _CLASSIFIER,
    ]


def _stem_rules(stem: Stem, name: str) -> list[Rule]:
    if stem == "plain":
        return [
            Rename(r"conv1\.weight$", "stem.0.conv.weight"),
            Rename(r"bn1\.", "stem.0.norm."),
        ]
    if stem == "sequence":
        return [
            rule
            for i in range(3)
            for rule in (
                Rename(rf"{name}\.{3 * i}\.", f"stem.{i}.conv."),
                Rename(rf"{name}\.{3 * i + 1}\.", f"stem.{i}.norm."),
            )
        ]
    return [
        Rename(r"conv1\.0\.", "stem.0.conv."),
        Rename(r"conv1\.1\.", "stem.0.norm."),
        Rename(r"conv1\.3\.", "stem.1.conv."),
        Rename(r"conv1\.4\.", "stem.1.norm."),
        Rename(r"conv1\.6\.", "stem.2.conv."),
        Rename(r"bn1\.", "stem.2.norm."),
    ]


def detectron2_rules() -> list[Rule]:
    """Rules for detectron2's naming: stages `res2` … `res5`, each norm inside its convolution."""
    rules: list[Rule] = [
        Rename(r"stem\.conv1\.weight$", "stem.0.conv.weight"),
        Rename(r"stem\.conv1\.norm\.", "stem.0.norm."),
    ]
    for stage in (1, 2, 3, 4):
        source, ours = rf"res{stage + 1}\.(\d+)\.", rf"layer{stage}.\1."
        rules += [
            Rename(source + r"conv(\d)\.weight$", ours + r"conv\2.weight"),
            Rename(source + r"conv(\d)\.norm\.", ours + r"norm\2."),
            Rename(source + r"shortcut\.weight$", ours + "shortcut.conv.weight"),
            Rename(source + r"shortcut\.norm\.", ours + "shortcut.norm."),
        ]
    return rules


def detectron_pytorch_rules(*, norm: Literal["bn", "gn"] = "bn") -> list[Rule]:
    """Rules for Detectron.pytorch's naming: stages `res1` (the stem) … `res5`.

    Args:
        norm: what its norms are called: frozen affine maps or group norms.
    """
    rules: list[Rule] = [
        Rename(r"res1\.conv1\.", "stem.0.conv."),
        Rename(rf"res1\.{norm}1\.", "stem.0.norm."),
    ]
    for stage in (1, 2, 3, 4):
        source, ours = rf"res{stage + 1}\.(\d+)\.", rf"layer{stage}.\1."
        rules += [
            Rename(source + r"conv(\d)\.", ours + r"conv\2."),
            Rename(source + norm + r"(\d)\.", ours + r"norm\2."),
            Rename(source + r"downsample\.0\.", ours + "shortcut.conv."),
            Rename(source + r"downsample\.1\.", ours + "shortcut.norm."),
        ]
    return rules


def deeplab_pytorch_rules(name: str = "resnet152") -> list[Rule]:
    """Rules for kazuto1011/deeplab-pytorch's naming: stages `layer2` …, blocks counted from 1.

    Args:
        name: row of `RESNETS`; the deepest covers the others too.
    """
    rules: list[Rule] = [
        Rename(r"layer1\.conv1\.conv\.", "stem.0.conv."),
        Rename(r"layer1\.conv1\.bn\.", "stem.0.norm."),
    ]
    for stage, count in enumerate(RESNETS[name].blocks, start=1):
        for block in range(count):
            source, ours = rf"layer{stage + 1}\.block{block + 1}\.", f"layer{stage}.{block}."
            for part, number in _DEEPLAB_PYTORCH_CONVS.items():
                rules += [
                    Rename(source + rf"{part}\.conv\.", f"{ours}conv{number}."),
                    Rename(source + rf"{part}\.bn\.", f"{ours}norm{number}."),
                ]
            rules += [
                Rename(source + r"shortcut\.conv\.", ours + "shortcut.conv."),
                Rename(source + r"shortcut\.bn\.", ours + "shortcut.norm."),
            ]
    return rules


def infer_resnet(
    state: Mapping[str, Tensor], prefix: str = "", *, stage: str = r"layer(\d)", first: int = 1
) -> str:
    r"""Which ResNet a state dict holds, from block counts and shapes; missing last stages are fine.

    Args:
        state:  the source's state dict.
        prefix: literal prefix of the backbone's keys.
        stage:  pattern of a stage's name with its number as the group; detectron2's is r"res(\d)".
        first:  number of the first stage; detectron2's is 2.

    Raises:
        ConversionError: no ResNet that we know; the message holds the counts.
    """
    pattern = re.compile(re.escape(prefix) + stage + r"\.(\d+)\.conv(\d)\.weight$")
    counts: dict[int, int] = {}
    convs, inner, per_group = 0, 0, 1
    for key, value in state.items():
        if match := pattern.match(key):
            number, block, conv = (int(g) for g in match.groups())
            counts[number] = max(counts.get(number, 0), block + 1)
            convs = max(convs, conv)
            if (number, block, conv) == (first, 0, 2):
                inner, per_group = value.shape[0], value.shape[1]
    blocks = tuple(counts[n] for n in sorted(counts))
    groups = inner // per_group
    for name, depth in RESNETS.items():
        same = depth.blocks[: len(blocks)] == blocks and depth.bottleneck == (convs == 3)
        # A truncated network is the shallowest that begins like it: the first one in the table.
        if blocks and same and (depth.groups, depth.groups * depth.group_width) == (groups, inner):
            return name
    raise ConversionError(
        f"no known ResNet under {prefix!r}: blocks {blocks}, {convs} convolutions per block, "
        f"{groups} groups, inner width {inner}; known are {', '.join(RESNETS)}"
    )


def infer_deeplab_pytorch(state: Mapping[str, Tensor], prefix: str = "") -> str:
    """`infer_resnet` for kazuto1011/deeplab-pytorch's naming."""
    names = "|".join(_DEEPLAB_PYTORCH_CONVS)
    pattern = re.compile(re.escape(prefix) + rf"layer(\d)\.block(\d+)\.({names})\.conv\.weight$")
    renamed = {
        f"layer{m[1]}.{int(m[2]) - 1}.conv{_DEEPLAB_PYTORCH_CONVS[m[3]]}.weight": value
        for key, value in state.items()
        if (m := pattern.match(key))
    }
    return infer_resnet(renamed, first=2)


def infer_stem(state: Mapping[str, Tensor], prefix: str = "") -> str:
    """The style of `STYLES` that mmseg's and mmdet's "pytorch" ResNets have: plain, V1c or V1d."""
    if f"{prefix}stem.0.weight" not in state:
        return "pytorch"
    # Not layer1, which has no shortcut in ResNet-18 and 34.
    return "v1d" if f"{prefix}layer2.0.downsample.2.weight" in state else "v1c"
