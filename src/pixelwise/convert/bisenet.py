"""BiSeNet (V1) checkpoints of CoinCheung/BiSeNet and mmseg, with or without auxiliary heads."""

from __future__ import annotations

from typing import Any

from pixelwise.convert import Origin, mmseg
from pixelwise.convert.resnet import infer_resnet, torchvision_rules
from pixelwise.convert.rules import Rename, Rule, prefixed
from pixelwise.convert.shapes import State, shape_of
from pixelwise.spec import IMAGENET_RGB, InputSpec
from pixelwise.systems.bisenet import BiSeNetConfig

# CoinCheung normalises each data set with its own statistics; the class count tells them apart.
_COINCHEUNG_INPUTS = {
    19: InputSpec(mean=(0.3257, 0.3690, 0.3223), std=(0.2112, 0.2148, 0.2115)),  # Cityscapes
    150: InputSpec(  # ADE20K
        mean=(0.49343230, 0.46819794, 0.43106043), std=(0.25680755, 0.25506608, 0.27422913)
    ),
    171: InputSpec(  # COCO-Stuff
        mean=(0.46962251, 0.4464104, 0.40718787), std=(0.27469736, 0.27012361, 0.28515933)
    ),
}


def _coincheung_input(cfg: BiSeNetConfig) -> InputSpec:
    """Of the data set with this number of classes; any other number takes Cityscapes'."""
    return _COINCHEUNG_INPUTS.get(cfg.num_classes, _COINCHEUNG_INPUTS[19])


_COINCHEUNG: list[Rule] = [
    *prefixed(torchvision_rules(), "cp.resnet.", "backbone."),
    *mmseg.block_rules(
        {
            r"cp\.arm16\.conv": "context_path.attend16.project",
            r"cp\.arm32\.conv": "context_path.attend32.project",
            r"cp\.conv_head16": "context_path.smooth16",
            r"cp\.conv_head32": "context_path.smooth32",
            r"cp\.conv_avg": "context_path.image_pool",
            r"sp\.conv1": "spatial_path.0",
            r"sp\.conv2": "spatial_path.1",
            r"sp\.conv3": "spatial_path.2",
            r"sp\.conv_out": "spatial_path.3",
            r"ffm\.convblk": "fusion.fuse",
            r"conv_out\.conv": "head.fuse",
            r"conv_out16\.conv": "auxiliary.0.fuse",
            r"conv_out32\.conv": "auxiliary.1.fuse",
        }
    ),
    Rename(r"cp\.arm(16|32)\.conv_atten\.", r"context_path.attend\1.attend.conv."),
    Rename(r"cp\.arm(16|32)\.bn_atten\.", r"context_path.attend\1.attend.norm."),
    Rename(r"ffm\.conv\.", "fusion.attend.conv."),
    Rename(r"ffm\.bn\.", "fusion.attend.norm."),
    Rename(r"conv_out\.conv_out\.", "head.classify."),
    Rename(r"conv_out16\.conv_out\.", "auxiliary.0.classify."),
    Rename(r"conv_out32\.conv_out\.", "auxiliary.1.classify."),
]


def _coincheung_infer(state: State) -> dict[str, Any]:
    return {
        **_widths(
            state,
            spatial=["sp.conv1", "sp.conv2", "sp.conv3", "sp.conv_out"],
            context="cp.conv_avg",
            fusion="ffm.convblk",
            head=("conv_out.conv", "conv_out.conv_out"),
            auxiliary="conv_out16.conv",
        ),
        "backbone": infer_resnet(state, "cp.resnet."),
        "gate": "norm",
    }


def _mmseg_rules(cfg: BiSeNetConfig) -> list[Rule]:
    context = r"backbone\.context_path\."
    return [
        *mmseg.backbone_rules(cfg.backbone_style, "backbone.context_path.backbone."),
        *mmseg.block_rules(
            {
                context + r"arm16\.conv_layer": "context_path.attend16.project",
                context + r"arm32\.conv_layer": "context_path.attend32.project",
                context + r"arm16\.atten_conv_layer\.1": "context_path.attend16.attend",
                context + r"arm32\.atten_conv_layer\.1": "context_path.attend32.attend",
                context + "conv_head16": "context_path.smooth16",
                context + "conv_head32": "context_path.smooth32",
                context + r"gap_conv\.1": "context_path.image_pool",
                r"backbone\.spatial_path\.layer1": "spatial_path.0",
                r"backbone\.spatial_path\.layer2": "spatial_path.1",
                r"backbone\.spatial_path\.layer3": "spatial_path.2",
                r"backbone\.spatial_path\.layer4": "spatial_path.3",
                r"backbone\.ffm\.conv1": "fusion.fuse",
                r"backbone\.ffm\.conv_atten\.0": "fusion.attend",
                r"decode_head\.convs\.0": "head.fuse",
                r"auxiliary_head\.0\.convs\.0": "auxiliary.0.fuse",
                r"auxiliary_head\.1\.convs\.0": "auxiliary.1.fuse",
            }
        ),
        Rename(r"decode_head\.conv_seg\.", "head.classify."),
        Rename(r"auxiliary_head\.(0|1)\.conv_seg\.", r"auxiliary.\1.classify."),
    ]


def _mmseg_infer(state: State) -> dict[str, Any]:
    path = "backbone.spatial_path.layer"
    return {
        **_widths(
            state,
            spatial=[f"{path}{i}" for i in (1, 2, 3, 4)],
            context="backbone.context_path.gap_conv.1",
            fusion="backbone.ffm.conv1",
            head=("decode_head.convs.0", "decode_head.conv_seg"),
            auxiliary="auxiliary_head.0.convs.0",
        ),
        **mmseg.infer_backbone(state, "backbone.context_path.backbone."),
        "gate": "norm_relu",
        "dropout": 0.1,
    }


def _widths(
    state: State,
    *,
    spatial: list[str],
    context: str,
    fusion: str,
    head: tuple[str, str],
    auxiliary: str,
) -> dict[str, Any]:
    """What the shapes tell, given the names of the blocks that tell it."""
    fuse, classify = head
    with_auxiliary = f"{auxiliary}.conv.weight" in state
    result = {
        "num_classes": shape_of(state, f"{classify}.weight")[0],
        "in_channels": shape_of(state, f"{spatial[0]}.conv.weight")[1],
        "spatial_widths": tuple(shape_of(state, f"{name}.conv.weight")[0] for name in spatial),
        "context_width": shape_of(state, f"{context}.conv.weight")[0],
        "fusion_width": shape_of(state, f"{fusion}.conv.weight")[0],
        "head_width": shape_of(state, f"{fuse}.conv.weight")[0],
        "aux_weight": 1.0 if with_auxiliary else 0.0,
    }
    if with_auxiliary:
        result["aux_width"] = shape_of(state, f"{auxiliary}.conv.weight")[0]
    return result


ORIGINS: dict[str, Origin] = {
    "coincheung": Origin(rules=_COINCHEUNG, infer=_coincheung_infer, input=_coincheung_input),
    "mmseg": Origin(rules=_mmseg_rules, infer=_mmseg_infer, input=IMAGENET_RGB),
}
