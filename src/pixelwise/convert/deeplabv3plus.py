"""DeepLabV3+ checkpoints of mmseg and segmentation_models.pytorch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pixelwise.convert import Origin
from pixelwise.convert.backbones import infer_xception, xception_rules
from pixelwise.convert.resnet import infer_resnet, infer_stem, torchvision_rules
from pixelwise.convert.rules import Rename, Rule, prefixed
from pixelwise.errors import ConversionError
from pixelwise.nn.backbones.xception import XCEPTIONS
from pixelwise.spec import IMAGENET_RGB
from pixelwise.systems.deeplabv3plus import DeepLabV3PlusConfig

_RATES = (12, 24, 36)


def _mmseg_rules(cfg: DeepLabV3PlusConfig) -> list[Rule]:
    style = cfg.backbone_style or "pytorch"
    stem = "sequence" if style in ("v1c", "v1d") else "plain"
    parts = {"conv": "conv", "bn": "norm"}
    rules = prefixed(
        torchvision_rules(stem=stem, avg_down=style == "v1d"), "backbone.", "backbone."
    )
    head = r"decode_head\."
    for theirs, ours in parts.items():
        rules += [
            Rename(head + rf"image_pool\.1\.{theirs}\.", f"context.pool.project.{ours}."),
            Rename(head + rf"aspp_modules\.0\.{theirs}\.", f"context.pointwise.{ours}."),
            Rename(head + rf"bottleneck\.{theirs}\.", f"context.project.{ours}."),
            Rename(head + rf"c1_bottleneck\.{theirs}\.", f"decoder.reduce.{ours}."),
            Rename(rf"auxiliary_head\.convs\.0\.{theirs}\.", f"auxiliary.fuse.{ours}."),
        ]
        for half in ("depthwise", "pointwise"):
            source, to = rf"{half}_conv\.{theirs}\.", f"{half}.{ours}."
            rules.append(
                Rename(head + rf"sep_bottleneck\.(\d)\.{source}", rf"decoder.refine.\1.{to}")
            )
            rules += [
                Rename(head + rf"aspp_modules\.{i + 1}\.{source}", f"context.atrous.{i}.{to}")
                for i in range(len(cfg.aspp_rates))
            ]
    return [
        *rules,
        Rename(head + r"conv_seg\.", "classify."),
        Rename(r"auxiliary_head\.conv_seg\.", "auxiliary.classify."),
    ]


def _mmseg_infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    head = "decode_head."
    branches = _count(state, r"decode_head\.aspp_modules\.(\d+)\.")
    stem = (
        "backbone.stem.0.weight" if "backbone.stem.0.weight" in state else "backbone.conv1.weight"
    )
    return {
        "num_classes": _rows(state, head + "conv_seg.weight"),
        "backbone": infer_resnet(state, "backbone."),
        "in_channels": _shape(state, stem)[1],
        "output_stride": 8,
        "backbone_style": infer_stem(state, "backbone."),
        "aspp_rates": _RATES[: branches - 1],
        "aspp_width": _rows(state, head + "aspp_modules.0.conv.weight"),
        "image_pool": "first",
        "conv": "separable",
        "projection": "3x3",
        "low_level_width": _rows(state, head + "c1_bottleneck.conv.weight"),
        "decoder_width": _rows(state, head + "sep_bottleneck.0.pointwise_conv.conv.weight"),
        "decoder_depth": _count(state, r"decode_head\.sep_bottleneck\.(\d+)\."),
        "aspp_dropout": 0.0,
        "classifier_dropout": 0.1,
        "align_corners": False,
        "aux_weight": 0.4 if "auxiliary_head.conv_seg.weight" in state else 0.0,
    }


def _smp_rules(cfg: DeepLabV3PlusConfig) -> list[Rule]:
    if cfg.backbone in XCEPTIONS:
        encoder = prefixed(xception_rules(separator="_"), "encoder.model.", "backbone.")
    elif cfg.backbone_style is None:
        encoder: list[Rule] = [Rename(r"encoder\.model\.", "backbone.body.")]
    else:
        encoder = prefixed(torchvision_rules(), "encoder.", "backbone.")
    aspp = r"decoder\.aspp\.0\."
    branches = [
        rule
        for i in range(len(cfg.aspp_rates))
        for rule in (
            Rename(aspp + rf"convs\.{i + 1}\.0\.0\.", f"context.atrous.{i}.depthwise.conv."),
            Rename(aspp + rf"convs\.{i + 1}\.0\.1\.", f"context.atrous.{i}.pointwise.conv."),
            Rename(aspp + rf"convs\.{i + 1}\.1\.", f"context.atrous.{i}.pointwise.norm."),
        )
    ]
    pool = len(cfg.aspp_rates) + 1
    return [
        *encoder,
        *branches,
        Rename(aspp + r"convs\.0\.0\.", "context.pointwise.conv."),
        Rename(aspp + r"convs\.0\.1\.", "context.pointwise.norm."),
        Rename(aspp + rf"convs\.{pool}\.1\.", "context.pool.project.conv."),
        Rename(aspp + rf"convs\.{pool}\.2\.", "context.pool.project.norm."),
        Rename(aspp + r"project\.0\.", "context.project.conv."),
        Rename(aspp + r"project\.1\.", "context.project.norm."),
        Rename(r"decoder\.aspp\.1\.0\.", "context.refine.depthwise.conv."),
        Rename(r"decoder\.aspp\.1\.1\.", "context.refine.pointwise.conv."),
        Rename(r"decoder\.aspp\.2\.", "context.refine.pointwise.norm."),
        Rename(r"decoder\.block1\.0\.", "decoder.reduce.conv."),
        Rename(r"decoder\.block1\.1\.", "decoder.reduce.norm."),
        Rename(r"decoder\.block2\.0\.0\.", "decoder.refine.0.depthwise.conv."),
        Rename(r"decoder\.block2\.0\.1\.", "decoder.refine.0.pointwise.conv."),
        Rename(r"decoder\.block2\.1\.", "decoder.refine.0.pointwise.norm."),
        Rename(r"segmentation_head\.0\.", "classify."),
    ]


def _smp_infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        **_smp_encoder(state),
        "num_classes": _rows(state, "segmentation_head.0.weight"),
        "output_stride": 16,
        "aspp_rates": _RATES,  # smp takes exactly three, and at stride 16 keeps those of stride 8
        "aspp_width": _rows(state, "decoder.aspp.0.convs.0.0.weight"),
        "image_pool": "last",
        "conv": "bare_separable",
        "projection": "1x1+3x3",
        "low_level_width": _rows(state, "decoder.block1.0.weight"),
        "decoder_width": _rows(state, "decoder.block2.0.1.weight"),
        "decoder_depth": 1,
        "aspp_dropout": 0.5,
        "classifier_dropout": 0.0,
        "align_corners": True,
    }


def _smp_encoder(state: Mapping[str, Tensor]) -> dict[str, Any]:
    if "encoder.layer1.0.conv1.weight" in state:
        return {
            "backbone": infer_resnet(state, "encoder."),
            "backbone_style": "smp",
            "in_channels": _shape(state, "encoder.conv1.weight")[1],
        }
    if "encoder.model.stem_0.conv.weight" in state:
        return {
            "backbone": infer_xception(state, "encoder.model.", separator="_"),
            "backbone_style": "timm",
            "in_channels": _shape(state, "encoder.model.stem_0.conv.weight")[1],
        }
    # Another encoder of timm ("tu-NAME"): its name is not in the file and must be passed.
    return {"backbone_style": None}


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that the pattern's group takes among the keys."""
    found = [int(m[1]) for key in state if (m := re.match(pattern, key))]
    return max(found, default=-1) + 1


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    if key not in state:
        raise ConversionError(f"the checkpoint has no {key!r}; is it of this origin and system?")
    return tuple(state[key].shape)


def _rows(state: Mapping[str, Tensor], key: str) -> int:
    return _shape(state, key)[0]


ORIGINS: dict[str, Origin] = {
    "mmseg": Origin(rules=_mmseg_rules, infer=_mmseg_infer, input=IMAGENET_RGB),
    "smp": Origin(rules=_smp_rules, infer=_smp_infer, input=IMAGENET_RGB),
}
