"""DeepLabV3+ checkpoints of mmseg, segmentation_models.pytorch and kazuto1011/deeplab-pytorch."""

from __future__ import annotations

from typing import Any

from pixelwise.convert import Origin, deeplab_pytorch, mmseg, smp
from pixelwise.convert.aspp import torchvision_aspp_rules
from pixelwise.convert.rules import Drop, Rename, Rule
from pixelwise.convert.shapes import State, count_of, rows_of
from pixelwise.spec import DEEPLAB_BGR, IMAGENET_RGB
from pixelwise.systems.deeplabv3plus import DeepLabV3PlusConfig

_RATES = (12, 24, 36)


def _mmseg_rules(cfg: DeepLabV3PlusConfig) -> list[Rule]:
    rules = [*mmseg.backbone_rules(cfg.backbone_style), *mmseg.auxiliary_rules()]
    head = r"decode_head\."
    for theirs, ours in mmseg.PARTS.items():
        rules += [
            Rename(head + rf"image_pool\.1\.{theirs}\.", f"context.pool.project.{ours}."),
            Rename(head + rf"aspp_modules\.0\.{theirs}\.", f"context.pointwise.{ours}."),
            Rename(head + rf"bottleneck\.{theirs}\.", f"context.project.{ours}."),
            Rename(head + rf"c1_bottleneck\.{theirs}\.", f"decoder.reduce.{ours}."),
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
    return [*rules, Rename(head + r"conv_seg\.", "classify.")]


def _mmseg_infer(state: State) -> dict[str, Any]:
    head = "decode_head."
    branches = count_of(state, r"decode_head\.aspp_modules\.(\d+)\.")
    return {
        **mmseg.infer_backbone(state),
        **mmseg.infer_aux_weight(state),
        "num_classes": rows_of(state, head + "conv_seg.weight"),
        "output_stride": 8,
        "aspp_rates": _RATES[: branches - 1],
        "aspp_width": rows_of(state, head + "aspp_modules.0.conv.weight"),
        "image_pool": "first",
        "conv": "separable",
        "projection": "3x3",
        "low_level_width": rows_of(state, head + "c1_bottleneck.conv.weight"),
        "decoder_width": rows_of(state, head + "sep_bottleneck.0.pointwise_conv.conv.weight"),
        "decoder_depth": count_of(state, r"decode_head\.sep_bottleneck\.(\d+)\."),
        "aspp_dropout": 0.0,
        "classifier_dropout": 0.1,
        "align_corners": False,
    }


def _smp_rules(cfg: DeepLabV3PlusConfig) -> list[Rule]:
    return [
        *smp.encoder_rules(cfg.backbone, cfg.backbone_style),
        *torchvision_aspp_rules(r"decoder\.aspp\.0\.", len(cfg.aspp_rates), cfg.conv),
        Rename(r"decoder\.aspp\.1\.0\.", "context.refine.depthwise.conv."),
        Rename(r"decoder\.aspp\.1\.1\.", "context.refine.pointwise.conv."),
        Rename(r"decoder\.aspp\.2\.", "context.refine.pointwise.norm."),
        Rename(r"decoder\.block1\.0\.", "decoder.reduce.conv."),
        Rename(r"decoder\.block1\.1\.", "decoder.reduce.norm."),
        Rename(r"decoder\.block2\.0\.0\.", "decoder.refine.0.depthwise.conv."),
        Rename(r"decoder\.block2\.0\.1\.", "decoder.refine.0.pointwise.conv."),
        Rename(r"decoder\.block2\.1\.", "decoder.refine.0.pointwise.norm."),
        Rename(r"segmentation_head\.0\.", "classify."),
        Drop(r"classification_head\.", "classifier of whole images"),
    ]


def _smp_infer(state: State) -> dict[str, Any]:
    return {
        **smp.infer_encoder(state),
        "num_classes": rows_of(state, "segmentation_head.0.weight"),
        "output_stride": 16,
        "aspp_rates": _RATES,  # smp takes exactly three, and at stride 16 keeps those of stride 8
        "aspp_width": rows_of(state, "decoder.aspp.0.convs.0.0.weight"),
        "image_pool": "last",
        "conv": "bare_separable",
        "projection": "1x1+3x3",
        "low_level_width": rows_of(state, "decoder.block1.0.weight"),
        "decoder_width": rows_of(state, "decoder.block2.0.1.weight"),
        "decoder_depth": 1,
        "aspp_dropout": 0.5,
        "classifier_dropout": 0.0,
        "align_corners": True,
    }


def _deeplab_pytorch_rules(cfg: DeepLabV3PlusConfig) -> list[Rule]:
    blocks = {"reduce": "decoder.reduce"}
    for i in range(cfg.decoder_depth):
        blocks[rf"fc2\.conv{i + 1}"] = f"decoder.refine.{i}"
    return [
        *deeplab_pytorch.encoder_rules(len(cfg.aspp_rates)),
        *deeplab_pytorch.block_rules(blocks),
        Rename(rf"fc2\.conv{cfg.decoder_depth + 1}\.", "classify."),
    ]


def _deeplab_pytorch_infer(state: State) -> dict[str, Any]:
    depth = count_of(state, r"fc2\.conv(\d+)\.conv\.")
    return {
        **deeplab_pytorch.infer_encoder(state),
        "num_classes": rows_of(state, f"fc2.conv{depth}.weight"),
        "low_level_width": rows_of(state, "reduce.conv.weight"),
        "decoder_width": rows_of(state, "fc2.conv1.conv.weight"),
        "decoder_depth": depth - 1,
        "classifier_dropout": 0.0,
    }


ORIGINS: dict[str, Origin] = {
    "mmseg": Origin(rules=_mmseg_rules, infer=_mmseg_infer, input=IMAGENET_RGB),
    "smp": Origin(rules=_smp_rules, infer=_smp_infer, input=IMAGENET_RGB),
    "deeplab-pytorch": Origin(
        rules=_deeplab_pytorch_rules, infer=_deeplab_pytorch_infer, input=DEEPLAB_BGR
    ),
}
