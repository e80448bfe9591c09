"""DeepLabV3 checkpoints of torchvision, mmseg, smp and kazuto1011/deeplab-pytorch."""

from __future__ import annotations

import re
from typing import Any

from pixelwise.convert import Origin, deeplab_pytorch, mmseg, smp
from pixelwise.convert.aspp import torchvision_aspp_rules
from pixelwise.convert.mobilenet_v3 import torchvision_mobilenet_rules
from pixelwise.convert.resnet import infer_resnet, torchvision_rules
from pixelwise.convert.rules import Drop, Rename, Rule, prefixed
from pixelwise.convert.shapes import State, count_of, rows_of, shape_of
from pixelwise.nn.backbones.mobilenet_v3 import MOBILENETS
from pixelwise.spec import DEEPLAB_BGR, IMAGENET_RGB
from pixelwise.systems.deeplabv3 import DeepLabV3Config

_RATES = (12, 24, 36)  # at stride 8; MobileNetV3 and smp keep them at 16


def _torchvision_rules(cfg: DeepLabV3Config) -> list[Rule]:
    mobile = cfg.backbone in MOBILENETS
    backbone = torchvision_mobilenet_rules(cfg.backbone) if mobile else torchvision_rules()
    return [
        *prefixed(backbone, "backbone.", "backbone."),
        *torchvision_aspp_rules(r"classifier\.0\.", len(cfg.aspp_rates), cfg.conv),
        Rename(r"classifier\.1\.", "context.refine.conv."),
        Rename(r"classifier\.2\.", "context.refine.norm."),
        Rename(r"classifier\.4\.", "classify."),
        Rename(r"aux_classifier\.0\.", "auxiliary.fuse.conv."),
        Rename(r"aux_classifier\.1\.", "auxiliary.fuse.norm."),
        Rename(r"aux_classifier\.4\.", "auxiliary.classify."),
    ]


def _torchvision_infer(state: State) -> dict[str, Any]:
    mobile = "backbone.0.0.weight" in state
    if mobile:
        backbone: dict[str, Any] = {
            "backbone": "mobilenet_v3_large",
            "backbone_style": "torchvision",
            "in_channels": shape_of(state, "backbone.0.0.weight")[1],
        }
    else:
        backbone = {
            "backbone": infer_resnet(state, "backbone."),
            "backbone_style": "pytorch",
            "in_channels": shape_of(state, "backbone.conv1.weight")[1],
        }
    branches = count_of(state, r"classifier\.0\.convs\.(\d+)\.")
    return {
        **backbone,
        "num_classes": rows_of(state, "classifier.4.weight"),
        "output_stride": 16 if mobile else 8,
        "multi_grid": (1, 1, 1),
        "aspp_rates": _RATES[: branches - 2],
        "aspp_width": rows_of(state, "classifier.0.convs.0.0.weight"),
        "image_pool": "last",
        "projection": "1x1+3x3",
        "aspp_dropout": 0.5,
        "align_corners": False,
        # Its training script halves the auxiliary loss.
        "aux_weight": 0.5 if "aux_classifier.4.weight" in state else 0.0,
        "aux_level": 3 if mobile else 4,
    }


def _mmseg_rules(cfg: DeepLabV3Config) -> list[Rule]:
    head = r"decode_head\."
    blocks = {
        head + r"image_pool\.1": "context.pool.project",
        head + r"aspp_modules\.0": "context.pointwise",
        head + "bottleneck": "context.project",
    }
    for i in range(len(cfg.aspp_rates)):
        blocks[head + rf"aspp_modules\.{i + 1}"] = f"context.atrous.{i}"
    return [
        *mmseg.backbone_rules(cfg.backbone_style),
        *mmseg.auxiliary_rules(),
        *mmseg.block_rules(blocks),
        Rename(head + r"conv_seg\.", "classify."),
    ]


def _mmseg_infer(state: State) -> dict[str, Any]:
    branches = count_of(state, r"decode_head\.aspp_modules\.(\d+)\.")
    return {
        **mmseg.infer_backbone(state),
        **mmseg.infer_aux_weight(state),
        "num_classes": rows_of(state, "decode_head.conv_seg.weight"),
        "output_stride": 8,
        "multi_grid": (1, 1, 1),
        "aspp_rates": _RATES[: branches - 1],
        "aspp_width": rows_of(state, "decode_head.aspp_modules.0.conv.weight"),
        "image_pool": "first",
        "projection": "3x3",
        "aspp_dropout": 0.0,
        "classifier_dropout": 0.1,
        "align_corners": False,
    }


def _smp_rules(cfg: DeepLabV3Config) -> list[Rule]:
    rules = [
        *smp.encoder_rules(cfg.backbone, cfg.backbone_style),
        Rename(r"segmentation_head\.0\.", "classify."),
        Drop(r"classification_head\.", "classifier of whole images"),
    ]
    # Until 0.3 the decoder was a sequence, whose parts were numbered.
    for aspp, conv, norm in (("aspp", "conv", "bn"), ("0", "1", "2")):
        rules += [
            *torchvision_aspp_rules(rf"decoder\.{aspp}\.", len(cfg.aspp_rates), cfg.conv),
            Rename(rf"decoder\.{conv}\.", "context.refine.conv."),
            Rename(rf"decoder\.{norm}\.", "context.refine.norm."),
        ]
    return rules


def _smp_infer(state: State) -> dict[str, Any]:
    numbered = "decoder.0.convs.0.0.weight" in state
    convs = "decoder.0.convs." if numbered else "decoder.aspp.convs."
    branches = count_of(state, re.escape(convs) + r"(\d+)\.")
    return {
        **smp.infer_encoder(state),
        "num_classes": rows_of(state, "segmentation_head.0.weight"),
        "output_stride": 8,
        "multi_grid": (1, 1, 1),
        "aspp_rates": _RATES[: branches - 2],
        "aspp_width": rows_of(state, f"{convs}0.0.weight"),
        "image_pool": "last",
        "conv": "bare_separable" if f"{convs}1.0.0.weight" in state else "plain",
        "projection": "1x1+3x3",
        "aspp_dropout": 0.5,
        "align_corners": True,
    }


def _deeplab_pytorch_rules(cfg: DeepLabV3Config) -> list[Rule]:
    return [
        *deeplab_pytorch.encoder_rules(len(cfg.aspp_rates)),
        Rename(r"fc2\.", "classify."),
    ]


def _deeplab_pytorch_infer(state: State) -> dict[str, Any]:
    return {
        **deeplab_pytorch.infer_encoder(state),
        "num_classes": rows_of(state, "fc2.weight"),
    }


ORIGINS: dict[str, Origin] = {
    "torchvision": Origin(rules=_torchvision_rules, infer=_torchvision_infer, input=IMAGENET_RGB),
    "mmseg": Origin(rules=_mmseg_rules, infer=_mmseg_infer, input=IMAGENET_RGB),
    "smp": Origin(rules=_smp_rules, infer=_smp_infer, input=IMAGENET_RGB),
    "deeplab-pytorch": Origin(
        rules=_deeplab_pytorch_rules, infer=_deeplab_pytorch_infer, input=DEEPLAB_BGR
    ),
}
